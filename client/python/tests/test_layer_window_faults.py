"""An engine that takes layers through a window and is killed, stopped or hangs with them in its hands.

It is a process of its own (this file, run as a program); another replica receives the same versions staged.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import BIN, Cluster, eventually
from models import EngineThread, assert_same_weights, randomize, shared_arrays
from test_layer_window import SHAPES, Pool, rest_of

import wsync

STEPS = ["wanted", "first", "middle", "last"]
# What the fault may cost the trainer, in seconds (tests/faults/README.md), and what two busy cores take to tell us.
LIMITS = {"kill": 1.0, "stop": 5.0, "hang": 10.0}
SLACK = 1.0


class Victim:
    """The engine's process, and what it says."""

    def __init__(self, cluster: Cluster, kind: str = "", step: str = "") -> None:
        command = [sys.executable, __file__, cluster.socket("rollout-0"), kind, step]
        self._log = cluster.folder / f"victim-{kind}.log"
        with open(self._log, "wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=Path(__file__).parent)
        eventually(lambda: self.process.poll() is not None or _ready(cluster), "both engines are ready")
        assert self.process.poll() is None, self.lines()

    def await_line(self, line: str) -> None:
        eventually(lambda: line in self.lines() or self.process.poll() is not None, f"the engine says {line!r}")
        assert line in self.lines(), self.lines()

    def lines(self) -> list[str]:
        return self._log.read_text().splitlines()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def _ready(cluster: Cluster) -> bool:
    command = [BIN / "wsync", "status", "-o", "json", "-c", cluster.coordinator]  # exits with 3 while one lacks a version
    members = json.loads(subprocess.run(command, capture_output=True, timeout=60, check=False).stdout)["members"]
    return [member["state"] for member in members if member["role"] == "rollout"] == ["ready", "ready"]


@pytest.fixture
def job(cluster: Cluster) -> Iterator[tuple[wsync.Trainer, EngineThread, dict[str, np.ndarray]]]:
    with wsync.Trainer(cluster.start_trainer()) as trainer:
        cluster.start_rollout("rollout-0", transfer__sink_mode="in_place")
        weights = shared_arrays(SHAPES)
        trainer.register(weights)
        other = EngineThread(cluster.start_rollout("rollout-1"))
        yield trainer, other, weights
        other.stop()


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("kind", LIMITS)
def test_it_costs_its_own_replica_one_version_at_most(
    cluster: Cluster, job: tuple[wsync.Trainer, EngineThread, dict[str, np.ndarray]], kind: str, step: str
) -> None:
    trainer, other, weights = job
    victim = Victim(cluster, kind, step)
    randomize(weights, 1)
    sync = trainer.publish(1)
    try:
        victim.await_line("fault")
        began = time.monotonic()
        try:
            left_out = {replica.replica for replica in sync.committed().replicas if replica.outcome != "applied"}
            assert left_out == {"rollout-0"}
        except wsync.PublishFailed as failed:  # it said itself that it failed, and the policy is `all`
            assert "rollout-0" in str(failed)
            left_out = set()
        took = time.monotonic() - began
        print(f"LAYERS|{kind}|{step}|{took:.2f}")
        assert took < LIMITS[kind] + SLACK
    finally:
        victim.end()
    if left_out:
        eventually(lambda: other.rollout.serving_version == 1, "the other engine heard of it")

    victim = Victim(cluster)
    try:
        randomize(weights, 2)
        report = trainer.publish(2).committed()
        assert report.applied and len(report.replicas) == 2, report
        victim.await_line(f"applied 2 {report.content_digest}")
        eventually(lambda: other.rollout.serving_version == 2, "the other engine heard of it")
        assert_same_weights(other.weights, weights)
        assert other.rollout.serving_digest == report.content_digest
    finally:
        victim.end()


def main(socket: str, kind: str, step: str) -> None:
    def reach(here: str) -> None:
        if not here or here != step:
            return
        print("fault", flush=True)
        if kind == "hang":
            time.sleep(1000)
        os.kill(os.getpid(), signal.SIGKILL if kind == "kill" else signal.SIGSTOP)

    pool = Pool()

    def allocate(layer: wsync.WantedLayer) -> dict[str, np.ndarray]:
        reach("wanted")
        return pool.allocate(layer)

    names = {"model.layers.0": "first", "model.layers.2": "middle", "": "last"}
    with wsync.Rollout(socket) as rollout:
        rollout.attach(rest_of(rollout), allocate=allocate, layer_window=2)
        for update in rollout.updates():
            for layer in update.layers():
                reach(names.get(layer.name, ""))
            if update.outcome is not None and update.outcome.applied:
                print(f"applied {update.outcome.version} {rollout.serving_digest}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
