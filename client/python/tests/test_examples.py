"""The examples: the one that trains is run, the recipes for loops that are not installed here must at least compile."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import BIN, REPO

EXAMPLES = REPO / "client" / "python" / "examples"


def tiny_rl(*arguments: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    environment = {**os.environ, "WSYNC_BIN": str(BIN), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(EXAMPLES / "tiny_rl.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=380)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("how", [[], ["--through-host"]], ids=["lent", "through_host"])
def test_tiny_rl_learns_with_fp8_rollouts(how: list[str]) -> None:
    done = tiny_rl(*how)
    print(done.stdout[-4000:])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert len(re.findall(r"^step ", done.stdout, re.MULTILINE)) == 50


def test_tiny_rl_says_which_devices_do_not_go_together() -> None:
    for devices, text in (("cuda:0 cuda:0", "one agent per GPU"), ("cpu cuda:0", "needs a trainer on one")):
        device, rollout = devices.split()
        done = tiny_rl(f"--device={device}", f"--rollout-device={rollout}")
        assert done.returncode == 2 and text in done.stderr, done.stderr


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_every_example_compiles_and_names_what_it_was_written_against(path: Path) -> None:
    source = path.read_text()
    compile(source, path.name, "exec")
    if path.name != "tiny_rl.py":
        assert re.search(r"[Ww]ritten against .*commits? [0-9a-f]{7}", source.replace("\n", " "))
        assert "Not run here" in source.replace("\n", " ")
