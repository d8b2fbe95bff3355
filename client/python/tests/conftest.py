"""Real daemons for the tests: WSYNC_BIN names the folder with wsync-trainer, wsync-rollout and wsync."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import wsync

REPO = Path(__file__).resolve().parents[3]
BIN = Path(os.environ.get("WSYNC_BIN", REPO / "build" / "release" / "bin"))
PATIENCE = 60.0  # sanitizer builds on two busy cores


def pytest_configure(config: pytest.Config) -> None:
    if not (BIN / "wsync-trainer").exists():
        raise pytest.UsageError(f"no {BIN}/wsync-trainer: build it, or set WSYNC_BIN to the folder of the daemons")


def eventually(what: Callable[[], bool], text: str, patience: float = PATIENCE) -> None:
    """Fails the test when `what` does not become true."""
    deadline = time.monotonic() + patience
    while not what():
        assert time.monotonic() < deadline, f"not within {patience:g} s: {text}"
        time.sleep(0.02)


@contextlib.contextmanager
def beside(what: Callable[[], Any]) -> Iterator[Future[Any]]:
    """Runs `what` on a thread beside the block; the block ends when it has, and what it raised fails the test."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(what)
        yield future
        future.result(PATIENCE)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def assert_helpful(error: pytest.ExceptionInfo[wsync.WsyncError], *names: str) -> None:
    """It says what to do, and names these."""
    assert error.value.next_step and error.value.next_step in str(error.value)
    assert set(names) <= set(error.value.names), error.value.names


class Cluster:
    """One trainer agent and some rollout agents in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.coordinator = f"127.0.0.1:{free_port()}"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._flags: dict[str, list[str]] = {}

    def socket(self, name: str) -> str:
        return f"unix://{self.folder}/{name}.sock"

    def start_trainer(self, **flags: str) -> str:
        flags = {"coordinator.listen": self.coordinator, "transfer.bucket_bytes": "64KiB", **_dotted(flags)}
        return self._start("trainer", "wsync-trainer", flags)

    def start_rollout(self, name: str = "rollout-0", **flags: str) -> str:
        flags = {"coordinator": self.coordinator, "name": name, "replica": name, **_dotted(flags)}
        return self._start(name, "wsync-rollout", flags)

    def _start(self, name: str, binary: str, flags: dict[str, str]) -> str:
        self._flags[name] = [str(BIN / binary), f"--local_socket={self.socket(name)}"]
        self._flags[name] += [f"--{key}={value}" for key, value in flags.items()]
        self._run(name)
        return self.socket(name)

    def _run(self, name: str) -> None:
        with open(self.folder / f"{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen(self._flags[name], stdout=log, stderr=log)
        path = self.folder / f"{name}.sock"
        eventually(lambda: path.exists() or self.processes[name].poll() is not None, f"{name} listens")
        assert self.processes[name].poll() is None, (self.folder / f"{name}.log").read_text()

    def kill(self, name: str) -> None:
        process = self.processes[name]
        process.send_signal(signal.SIGKILL)
        process.wait()

    def freeze(self, name: str) -> None:
        """SIGSTOP, and returns when every thread of the agent has stopped. `kill` still works."""
        process = self.processes[name]
        process.send_signal(signal.SIGSTOP)
        tasks = Path(f"/proc/{process.pid}/task")
        eventually(
            lambda: all(task.joinpath("stat").read_text().rpartition(")")[2].split()[0] == "T" for task in tasks.iterdir()),
            f"{name} is stopped",
        )

    def restart(self, name: str) -> None:
        """Kills an agent and starts it again, on the same addresses."""
        self.kill(name)
        (self.folder / f"{name}.sock").unlink(missing_ok=True)
        self._run(name)

    def alive(self, name: str) -> bool:
        return self.processes[name].poll() is None

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def wsync(self, *arguments: str) -> str:
        done = subprocess.run([BIN / "wsync", *arguments], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def stop(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()


def _dotted(flags: dict[str, str]) -> dict[str, str]:
    return {key.replace("__", "."): value for key, value in flags.items()}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="wsync-py-") as folder:  # short: a socket's path has 107 bytes
        cluster = Cluster(Path(folder))
        try:
            yield cluster
        finally:
            cluster.stop()


@pytest.fixture
def trainer(cluster: Cluster) -> Iterator[wsync.Trainer]:
    with wsync.Trainer(cluster.start_trainer()) as trainer:
        yield trainer


@pytest.fixture
def rollout(cluster: Cluster, trainer: wsync.Trainer) -> Iterator[wsync.Rollout]:
    with wsync.Rollout(cluster.start_rollout()) as rollout:
        yield rollout


@pytest.fixture
def pair(trainer: wsync.Trainer, rollout: wsync.Rollout) -> tuple[wsync.Trainer, wsync.Rollout]:
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
    return trainer, rollout
