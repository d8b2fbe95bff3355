"""Peers that are not there, die, stop or hang: each a typed error with a next step, none a hang."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import PATIENCE, Cluster, assert_helpful, eventually
from models import SHAPES, EngineThread, assert_same_weights, memory_for, randomize, shared_arrays

import wsync

SLACK = 0.5  # what two busy cores take


# ---- nobody there


def test_a_missing_agent_is_named_with_its_socket(tmp_path: Path) -> None:
    for client, use in (
        (wsync.Trainer(f"unix://{tmp_path}/none.sock", timeout=0.2), lambda c: c.register(shared_arrays(SHAPES))),
        (wsync.Rollout(f"unix://{tmp_path}/none.sock", timeout=0.2), lambda c: c.plan()),
    ):
        began = time.monotonic()
        with pytest.raises(wsync.AgentUnavailable, match="none.sock") as error:
            use(client)
        assert time.monotonic() - began < 5
        assert_helpful(error)
        client.close()


def test_no_trainer_is_a_deadline_that_says_what_is_missing(cluster: Cluster) -> None:
    with wsync.Rollout(cluster.start_rollout()) as rollout:
        with pytest.raises(wsync.DeadlineExceeded, match="no catalog yet"):
            rollout.plan(timeout=2.0)


def test_no_replica_fails_the_publish_with_the_reason(cluster: Cluster) -> None:
    with wsync.Trainer(cluster.start_trainer(coordinator__min_replicas_wait_ms="100ms")) as trainer:
        trainer.register(shared_arrays(SHAPES))
        with pytest.raises(wsync.TooFewReplicas, match="0 of 1") as error:
            trainer.publish(1).committed()
        assert_helpful(error)


def test_a_publish_to_a_stopped_agent_ends_in_its_deadline_or_within_five_seconds(cluster: Cluster) -> None:
    with wsync.Trainer(cluster.start_trainer(coordinator__min_replicas_wait_ms="100ms")) as trainer:
        trainer.register(shared_arrays(SHAPES))
        cluster.freeze("trainer")
        began = time.monotonic()
        sync = trainer.publish(1)
        with pytest.raises(wsync.DeadlineExceeded, match="was not released within 0.3 s"):
            sync.released(timeout=0.3)
        with pytest.raises(wsync.AgentGone, match="does not answer any more in phase begin"):
            sync.released()
        assert 3 < time.monotonic() - began < 5 + SLACK
        os.kill(cluster.processes["trainer"].pid, signal.SIGCONT)
        with pytest.raises(wsync.TooFewReplicas):
            trainer.publish(1).committed()


# ---- trainer side


def test_the_trainer_registers_again_by_itself_when_its_agent_restarted(cluster: Cluster) -> None:
    with wsync.Trainer(cluster.start_trainer()) as trainer:
        weights = shared_arrays(SHAPES)
        randomize(weights, 1)
        socket = cluster.start_rollout()
        trainer.register(weights)
        engine = EngineThread(socket)
        assert trainer.publish(1).committed().applied
        cluster.restart("trainer")
        randomize(weights, 2)
        assert trainer.publish(2).committed().applied
        assert_same_weights(engine.weights, weights)
        eventually(lambda: engine.rollout.serving_version == 2, "the engine heard of it")
        engine.stop()


def test_a_trainer_agent_that_stays_away_costs_a_second(cluster: Cluster) -> None:
    with wsync.Trainer(cluster.start_trainer()) as trainer:
        trainer.register(shared_arrays(SHAPES))
        cluster.kill("trainer")
        began = time.monotonic()
        with pytest.raises(wsync.AgentUnavailable) as error:
            trainer.publish(1).committed(timeout=20)
        assert time.monotonic() - began < 1 + SLACK
        assert_helpful(error)


def test_a_publish_waits_as_long_for_an_agent_as_it_is_told_to(cluster: Cluster) -> None:
    socket = cluster.start_trainer(coordinator__min_replicas_wait_ms="100ms")
    with wsync.Trainer(socket, reconnect_timeout=PATIENCE) as trainer:
        trainer.register(shared_arrays(SHAPES))
        cluster.start_rollout()
        cluster.kill("trainer")
        back = threading.Timer(1.5, cluster.restart, ["trainer"])
        back.start()
        with pytest.raises(wsync.TooFewReplicas):  # the agent's word: no engine is attached
            trainer.publish(1).committed()
        back.join()


@pytest.mark.parametrize("stopped", [False, True])
def test_a_trainer_agent_that_goes_while_a_version_runs_is_named_in_time(cluster: Cluster, stopped: bool) -> None:
    with wsync.Trainer(cluster.start_trainer()) as trainer:
        weights = shared_arrays(SHAPES)
        randomize(weights, 1)
        trainer.register(weights)
        with wsync.Rollout(cluster.start_rollout()) as rollout:
            rollout.attach(memory_for(rollout.plan()))
            sync = trainer.publish(1)
            next(rollout.updates(timeout=30))  # which never pauses
            sync.released()
            began = time.monotonic()
            cluster.freeze("trainer") if stopped else cluster.kill("trainer")
            with pytest.raises(wsync.AgentGone, match=r"in phase \w+ of version 1 .*last heard of \d\.\d s before") as error:
                sync.committed(timeout=20)
            assert time.monotonic() - began < (5 if stopped else 1) + SLACK
            assert_helpful(error)
            if stopped:
                os.kill(cluster.processes["trainer"].pid, signal.SIGCONT)


def test_another_trainer_that_took_over_is_not_pushed_out(cluster: Cluster) -> None:
    socket = cluster.start_trainer()
    with wsync.Trainer(socket) as first, wsync.Trainer(socket) as second:
        first.register(shared_arrays(SHAPES))
        second.register(shared_arrays(SHAPES), replace=True)
        with pytest.raises(wsync.AlreadyRegistered):
            first.publish(1).committed()


_REGISTER_AND_HANG = """
import sys, time
import wsync
from models import SHAPES, shared_arrays
trainer = wsync.Trainer(sys.argv[1])
trainer.register(shared_arrays(SHAPES))
print("registered", flush=True)
time.sleep(60)
"""


def test_a_trainer_that_dies_leaves_no_memory_and_a_usable_agent(cluster: Cluster) -> None:
    socket = cluster.start_trainer()
    command = [sys.executable, "-c", _REGISTER_AND_HANG, socket]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent) as process:
        assert process.stdout and process.stdout.readline() == "registered\n"

        def its_memory() -> list[str]:
            return [name for name in os.listdir("/dev/shm") if name.startswith(f"wsync-{process.pid}-")]

        assert its_memory()
        process.send_signal(signal.SIGKILL)
        process.wait()
        eventually(lambda: not its_memory(), "the dead process's memory has no name any more")
    with wsync.Trainer(socket) as trainer:
        assert trainer.register(shared_arrays(SHAPES)).tensors == 7


# ---- rollout side


def test_an_engine_finds_its_agent_again(cluster: Cluster) -> None:
    with wsync.Trainer(cluster.start_trainer()) as trainer:
        weights = shared_arrays(SHAPES)
        randomize(weights, 1)
        socket = cluster.start_rollout()
        trainer.register(weights)
        engine = EngineThread(socket)
        assert trainer.publish(1).committed().applied
        cluster.restart("rollout-0")
        eventually(lambda: len(engine.outcomes) == 2, "the restarted agent caught up and applied version 1 again")
        randomize(weights, 2)
        assert trainer.publish(2).committed().applied
        assert_same_weights(engine.weights, weights)
        assert engine.error is None
        engine.stop()


def test_an_engine_hears_of_a_stopped_agent_and_finds_it_again_when_it_goes_on(cluster: Cluster) -> None:
    with wsync.Trainer(cluster.start_trainer()) as trainer:
        weights = shared_arrays(SHAPES)
        randomize(weights, 1)
        socket = cluster.start_rollout()
        trainer.register(weights)
        engine = EngineThread(socket)
        assert trainer.publish(1).committed().applied
        call = engine.rollout._stream
        assert call is not None
        cluster.freeze("rollout-0")
        began = time.monotonic()
        eventually(lambda: call.ended, "the engine's library noticed")
        assert 3 < time.monotonic() - began < 5 + SLACK
        os.kill(cluster.processes["rollout-0"].pid, signal.SIGCONT)
        eventually(lambda: len(engine.outcomes) == 2, "the agent caught up and applied version 1 again")
        randomize(weights, 2)
        assert trainer.publish(2).committed().applied
        assert_same_weights(engine.weights, weights)
        assert engine.error is None
        engine.stop()


def test_whoever_follows_the_bare_events_is_told_that_the_agent_is_gone(trainer: wsync.Trainer, cluster: Cluster) -> None:
    trainer.register(shared_arrays({"a.bias": (64,)}))
    with wsync.Rollout(cluster.start_rollout()) as rollout:
        rollout.attach(shared_arrays({"a.bias": (64,)}))
        cluster.kill("rollout-0")
        with pytest.raises(wsync.AgentGone, match="wsync-rollout at .* in phase attach, last heard of") as error:
            next(rollout.events(timeout=30))
        assert_helpful(error)


def test_an_agent_that_dies_while_it_may_write_leaves_the_update_waiting_for_a_whole_version(cluster: Cluster) -> None:
    with wsync.Trainer(cluster.start_trainer()) as trainer:
        weights = shared_arrays(SHAPES)
        randomize(weights, 1)
        with wsync.Rollout(cluster.start_rollout(transfer__sink_mode="in_place")) as rollout:
            trainer.register(weights)
            engine = memory_for(rollout.plan())
            rollout.attach(engine)
            sync = trainer.publish(1)
            update = next(rollout.updates(timeout=30))
            cluster.freeze("rollout-0")  # `paused` is never read

            def go_on() -> None:
                cluster.restart("rollout-0")
                with pytest.raises(wsync.WsyncError):  # its only replica was lost
                    sync.committed()
                assert trainer.publish(2).committed().applied

            trainer_goes_on = threading.Timer(0.5, go_on)
            trainer_goes_on.start()
            outcome = update.apply(timeout=60)
            assert outcome.applied and outcome.version == 2 and not rollout.torn
            trainer_goes_on.join(60)
            assert_same_weights(engine, weights)


def test_an_agent_that_dies_for_good_while_it_may_write_is_torn(cluster: Cluster) -> None:
    with wsync.Trainer(cluster.start_trainer()) as trainer:
        weights = shared_arrays(SHAPES)
        randomize(weights, 1)
        with wsync.Rollout(cluster.start_rollout(), timeout=0.5) as rollout:
            trainer.register(weights)
            rollout.attach(memory_for(rollout.plan()))
            trainer.publish(1)
            update = next(rollout.updates(timeout=30))
            cluster.freeze("rollout-0")
            killer = threading.Timer(0.3, cluster.kill, ["rollout-0"])
            killer.start()
            with pytest.raises(wsync.TornUpdate) as error:
                update.apply(timeout=2)
            assert_helpful(error)
            assert rollout.torn and rollout.serving_version == 0


def test_an_engine_that_does_not_pause_is_left_out_and_not_waited_for(cluster: Cluster) -> None:
    flags = {"coordinator__apply_timeout_ms": "500ms"}
    with wsync.Trainer(cluster.start_trainer(**flags)) as trainer:
        weights = shared_arrays(SHAPES)
        randomize(weights, 1)
        with wsync.Rollout(cluster.start_rollout()) as rollout:
            trainer.register(weights)
            rollout.attach(memory_for(rollout.plan()))
            report = trainer.publish(1).committed(timeout=60)
            assert not report.applied and report.replicas[0].outcome == "left_out" and report.replicas[0].reason
            update = next(rollout.updates(timeout=30))  # it may still take it
            assert update.apply().version == 1


def test_waiting_for_an_update_has_a_limit(trainer: wsync.Trainer, rollout: wsync.Rollout) -> None:
    trainer.register(shared_arrays({"a.bias": (64,)}))
    rollout.attach(shared_arrays({"a.bias": (64,)}))
    with pytest.raises(wsync.DeadlineExceeded):
        next(rollout.updates(timeout=0.2))
