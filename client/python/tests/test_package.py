"""What the package promises apart from behaviour: types, versions, few dependencies."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

from conftest import REPO

import wsync
from wsync import _wire, catalog

PACKAGE = REPO / "client" / "python"


def test_the_types_check() -> None:
    done = subprocess.run([sys.executable, "-m", "mypy", "--strict"], cwd=PACKAGE, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_importing_it_imports_neither_torch_nor_numpy_nor_an_engine() -> None:
    check = "import sys, wsync; print([m for m in ('torch', 'numpy', 'transformers', 'vllm', 'pickle') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("[]", "['pickle']")  # multiprocessing's own import


def test_no_module_pickles() -> None:
    for path in Path(wsync.__file__).parent.rglob("*.py"):
        assert not re.search(r"\b(pickle|marshal|eval|exec)\b", path.read_text()), path


def test_its_version_is_the_projects() -> None:
    project = re.search(r"VERSION (\S+)", (REPO / "CMakeLists.txt").read_text().split("project(", 1)[1])
    assert project and wsync.__version__ == project[1]


def test_importing_it_is_enough_for_every_module_that_readme_names() -> None:
    named = set(re.findall(r"`wsync\.([a-z_]+)\.", (PACKAGE / "README.md").read_text()))
    assert {"streams", "aio", "engines"} <= named and all(hasattr(wsync, name) for name in named)


def test_dtypes_are_numbered_as_in_the_protocol() -> None:
    descriptor = _wire.message("Tensor").DESCRIPTOR.fields_by_name["dtype"].enum_type
    numbers = {value.name.removeprefix("DTYPE_"): value.number for value in descriptor.values}
    assert numbers.pop("UNSPECIFIED") == 0
    assert numbers == {dtype.name: dtype.value for dtype in catalog.Dtype}


def test_errors_carry_names_and_a_next_step() -> None:
    kinds = [kind for kind in vars(wsync.errors).values() if isinstance(kind, type) and issubclass(kind, wsync.WsyncError)]
    assert len(kinds) > 15
    for kind in kinds:
        assert getattr(wsync, kind.__name__) is kind
        error = kind("text", next_version=3) if kind is wsync.StaleVersion else kind("text", names=["a"], next_step="do")
        assert error.next_step and error.next_step in str(error)


def test_asyncios_calls_have_the_signatures_of_those_they_wrap_and_say_what_they_do() -> None:
    pairs = [
        (wsync.aio.Trainer, wsync.Trainer, ()),
        (wsync.aio.Publication, wsync.Publication, ("free_for",)),
        (wsync.aio.Rollout, wsync.Rollout, ("events", "paused")),
        (wsync.aio.Update, wsync.Update, ()),
    ]
    for ours, theirs, bare in pairs:
        calls = {n for n, call in vars(theirs).items() if not n.startswith("_") and callable(call)} - set(bare)
        assert calls <= vars(ours).keys(), ours
        made_by_user = ["__init__"] if ours in (wsync.aio.Trainer, wsync.aio.Rollout) else []
        for name in [*calls, *made_by_user]:
            want, have = (inspect.signature(getattr(kind, name)).parameters for kind in (theirs, ours))
            assert [str(p) for p in have.values()] == [str(p) for p in want.values()], (ours, name)
        for name in vars(ours):
            assert name.startswith("_") or getattr(ours, name).__doc__, (ours, name)
