"""What is left in the middle: updates whose engine gives up, copies that are still read, errors that travel."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from conftest import Cluster, eventually
from models import memory_for, randomize, shared_arrays

import wsync

SHAPES: dict[str, tuple[int, ...]] = {f"model.layers.{i}.mlp.up_proj.weight": (512, 256) for i in range(4)}
Pair = tuple[wsync.Trainer, wsync.Rollout, dict[str, np.ndarray]]


@pytest.fixture
def pair(cluster: Cluster) -> Iterator[Pair]:
    with wsync.Trainer(cluster.start_trainer()) as trainer:
        with wsync.Rollout(cluster.start_rollout(transfer__sink_mode="in_place")) as rollout:
            weights = shared_arrays(SHAPES)
            randomize(weights, 1)
            trainer.register(weights)
            rollout.attach(memory_for(rollout.plan()), layer_events=True)
            yield trainer, rollout, weights


def hear(rollout: wsync.Rollout) -> None:
    """Reads what the agent has said, until the weights are whole again."""
    for event in rollout.events(timeout=30):
        if event.kind == "applied":
            return


def test_an_update_that_is_not_waited_for_to_its_end_is_torn_until_that_is_heard(pair: Pair) -> None:
    trainer, rollout, _ = pair
    sync = trainer.publish(1)
    update = next(rollout.updates(timeout=30))
    with pytest.raises(wsync.TornUpdate):
        update.apply(timeout=0.0)
    assert rollout.torn and rollout.serving_version == 0
    assert sync.committed().applied  # the agent was told that the engine is paused, and went on
    hear(rollout)
    assert rollout.serving_version == 1 and not rollout.torn
    assert update.outcome is not None and update.apply(timeout=0.0) is update.outcome  # asked again: it ended so


def test_an_apply_ends_as_the_agent_said_though_somebody_detaches_meanwhile(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, rollout, _ = pair
    sync = trainer.publish(1)
    update = next(rollout.updates(timeout=30))
    settle = rollout._settle

    def late(event: wsync.Event) -> None:
        if event.kind == "applied":
            rollout.detach()  # on another thread, between what the agent says and who waits for it
        settle(event)

    monkeypatch.setattr(rollout, "_settle", late)
    assert update.apply(30).applied and sync.committed().applied


def test_an_apply_that_ran_out_of_time_goes_on_where_it_was_when_it_is_called_again(pair: Pair) -> None:
    trainer, rollout, _ = pair
    sync = trainer.publish(1)
    update = next(rollout.updates(timeout=30))
    with pytest.raises(wsync.TornUpdate):
        update.apply(timeout=0.0)
    assert update.apply(timeout=30).version == 1 and rollout.serving_version == 1 and not rollout.torn
    assert sync.committed().applied


def test_an_update_that_was_not_applied_comes_again_until_it_is(pair: Pair) -> None:
    trainer, rollout, _ = pair
    sync = trainer.publish(1)
    update = next(rollout.updates(timeout=30))
    assert next(rollout.updates(timeout=30)) is update and rollout.poll() is update
    assert update.apply().applied and rollout.poll() is None
    assert sync.committed().applied


def test_an_update_of_an_attachment_that_is_over_is_refused(pair: Pair) -> None:
    trainer, rollout, _ = pair
    trainer.publish(1)
    update = next(rollout.updates(timeout=30))
    rollout.attach(memory_for(rollout.plan()), layer_events=True)
    with pytest.raises(wsync.NotAttached, match="version 1: the attachment that asked for it is over") as error:
        update.apply(timeout=30)
    assert "updates()" in error.value.next_step and not rollout.torn


@pytest.mark.parametrize("where", ["callback", "loop"])
def test_an_engine_that_fails_at_a_layer_without_a_window_is_torn_until_it_hears_of_the_end(pair: Pair, where: str) -> None:
    trainer, rollout, _ = pair

    def work(layer: wsync.Layer) -> None:
        raise RuntimeError("repacking failed")

    sync = trainer.publish(1)
    update = next(rollout.updates(timeout=30))
    with pytest.raises(RuntimeError):
        if where == "callback":
            update.apply(on_layer=work)
        else:
            for layer in update.layers():
                work(layer)
    assert rollout.torn and rollout.serving_version == 0
    assert sync.committed().applied
    hear(rollout)
    assert rollout.serving_version == 1 and not rollout.torn


def test_copies_are_not_written_while_the_version_before_is_still_read(cluster: Cluster) -> None:
    with wsync.Trainer(cluster.start_trainer()) as trainer:
        weights = {name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}
        trainer.register(weights, copy="always")
        first = trainer.publish(1)  # waits for a replica, which does not come
        with pytest.raises(wsync.PublishInProgress, match="version 1 is still read"):
            trainer.publish(2)
        with pytest.raises(wsync.TooFewReplicas):
            first.committed()
        with pytest.raises(wsync.TooFewReplicas):  # it is asked for, at least
            trainer.publish(2).committed()


def test_updates_end_when_the_engine_detaches_while_its_agent_is_away(pair: Pair, cluster: Cluster) -> None:
    _, rollout, _ = pair
    ended = threading.Event()
    failed: list[BaseException] = []

    def follow() -> None:
        try:
            for _ in rollout.updates():
                pass
        except BaseException as error:
            failed.append(error)
        ended.set()

    thread = threading.Thread(target=follow)
    thread.start()
    cluster.kill("rollout-0")
    eventually(lambda: rollout._stream is None or rollout._stream.ended, "the end of the updates")
    rollout.close()
    assert ended.wait(30) and not failed
    thread.join()


def kinds(base: type[wsync.WsyncError]) -> list[type[wsync.WsyncError]]:
    return [base, *(kind for child in base.__subclasses__() for kind in kinds(child))]


@pytest.mark.parametrize("kind", sorted(set(kinds(wsync.WsyncError)), key=lambda kind: kind.__name__))
def test_errors_come_out_of_a_pickle_as_they_went_in(kind: type[wsync.WsyncError]) -> None:
    if kind is wsync.StaleVersion:
        error: wsync.WsyncError = wsync.StaleVersion("version 3 is old", next_version=5)
    else:
        error = kind("it failed", names=("a", "b"), next_step="do this")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind and str(again) == str(error)
    assert (again.names, again.next_step) == (error.names, error.next_step)
    assert getattr(again, "next_version", None) == getattr(error, "next_version", None)


@pytest.mark.parametrize("version", [0, -1])
def test_versions_begin_with_one(pair: Pair, version: int) -> None:
    with pytest.raises(ValueError, match="versions begin with 1"):
        pair[0].publish(version)
