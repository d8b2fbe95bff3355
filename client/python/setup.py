"""Compiles the protocol's descriptors into the package, so that no generated code is committed or tied to one protobuf.

The .proto files come from the repository (../../proto), or from the copy that an sdist carries (proto/).
"""

import shutil
import tempfile
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

HERE = Path(__file__).resolve().parent
APIS = [f"wsync/v1/{name}.proto" for name in ("types", "coordinator", "trainer", "rollout")]


def proto_root() -> Path:
    for root in (HERE / "proto", HERE.parent.parent / "proto"):
        if (root / APIS[0]).is_file():
            return root
    raise SystemExit("wsync: the .proto files are missing: build from the repository or from an sdist of it")


def compile_descriptors(out: Path) -> None:
    from grpc_tools import protoc

    out.parent.mkdir(parents=True, exist_ok=True)
    arguments = [f"-I{proto_root()}", f"--descriptor_set_out={out}", "--include_imports", *APIS]
    if protoc.main(["protoc", *arguments]) != 0:
        raise SystemExit("wsync: protoc failed, see above")


class BuildPy(build_py):
    def run(self) -> None:
        super().run()
        root = HERE if self.editable_mode else Path(self.build_lib)
        compile_descriptors(root / "wsync" / "_proto" / "wsync.binpb")


class Sdist(sdist):
    def make_release_tree(self, base_dir: str, files: list) -> None:
        super().make_release_tree(base_dir, files)
        for api in APIS:
            target = Path(base_dir) / "proto" / api
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(proto_root() / api, target)


# Built elsewhere: the checkout stays as it is, and no older build's files slip into a wheel.
with tempfile.TemporaryDirectory() as scratch:
    setup(
        cmdclass={"build_py": BuildPy, "sdist": Sdist},
        options={"build": {"build_base": scratch}, "egg_info": {"egg_base": scratch}},
    )
