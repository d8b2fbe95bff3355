"""Memory for a window of layers, lent while a version lands: real agents, numpy arrays in shared memory."""

from __future__ import annotations

import gc
import subprocess
import weakref
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from conftest import BIN, Cluster, beside
from models import NUMPY, assert_same_weights, randomize, shared_arrays

import wsync
from wsync.memory import Blank, empty_shared

LAYERS = 4
SHAPES: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (500, 96)}
for _layer in range(LAYERS):
    SHAPES[f"model.layers.{_layer}.mlp.up_proj.weight"] = (512, 256)
    SHAPES[f"model.layers.{_layer}.mlp.down_proj.weight"] = (256, 512)
    SHAPES[f"model.layers.{_layer}.input_layernorm.weight"] = (256,)
SHAPES["lm_head.weight"] = (500, 96)
NAMES = [f"model.layers.{layer}" for layer in range(LAYERS)]


class Pool:
    """Makes the arrays of a layer, and knows which of them still exist."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.most = 0
        self.most_bytes = 0
        self._alive: list[weakref.ref[Any]] = []

    def allocate(self, layer: wsync.WantedLayer) -> dict[str, np.ndarray]:
        blanks = [Blank(output.shape, np.dtype(NUMPY[output.dtype]), False) for output in layer.outputs]
        arrays = empty_shared(blanks, layer.name)
        self.asked.append(layer.name)
        buffer = arrays[0]
        while not isinstance(buffer, wsync.SharedBuffer):
            buffer = buffer.obj if isinstance(buffer, memoryview) else buffer.base
        self._alive.append(weakref.ref(buffer))
        self.most = max(self.most, len(self.alive()))
        self.most_bytes = max(self.most_bytes, sum(buffer.nbytes for buffer in self.alive()))
        return dict(zip((output.name for output in layer.outputs), arrays, strict=True))

    def alive(self) -> list[wsync.SharedBuffer]:
        return [buffer for buffer in (ref() for ref in self._alive) if buffer is not None]


@pytest.fixture
def pair(cluster: Cluster) -> Iterator[tuple[wsync.Trainer, wsync.Rollout, dict[str, np.ndarray]]]:
    with wsync.Trainer(cluster.start_trainer()) as trainer:
        with wsync.Rollout(cluster.start_rollout(transfer__sink_mode="in_place")) as rollout:
            weights = shared_arrays(SHAPES)
            randomize(weights, 0)
            trainer.register(weights)
            yield trainer, rollout, weights


Pair = tuple[wsync.Trainer, wsync.Rollout, dict[str, np.ndarray]]


def rest_of(rollout: wsync.Rollout) -> dict[str, np.ndarray]:
    """Memory for the tensors of no layer."""
    outputs = [output for output in rollout.plan().outputs if ".layers." not in output.name]
    blanks = [Blank(output.shape, np.dtype(NUMPY[output.dtype]), False) for output in outputs]
    return dict(zip((output.name for output in outputs), empty_shared(blanks, "rest"), strict=True))


def of_layer(weights: dict[str, np.ndarray], layer: str) -> dict[str, np.ndarray]:
    return {name: array for name, array in weights.items() if name.startswith(layer + ".")}


@pytest.mark.parametrize("window", [1, 2])
def test_layers_come_one_after_another_through_memory_for_a_window(pair: Pair, window: int) -> None:
    trainer, rollout, weights = pair
    pool, rest = Pool(), rest_of(rollout)
    rollout.attach(rest, allocate=pool.allocate, layer_window=window)
    for version in (1, 2, 3):
        randomize(weights, version)
        sync = trainer.publish(version)
        update = next(rollout.updates(timeout=30))
        seen: list[str] = []
        for layer in update.layers():
            seen.append(layer.name)
            if layer.name:
                assert_same_weights(layer.tensors, of_layer(weights, layer.name))
                assert len(layer.tensors) == 5  # two weights, their scales, a norm
        assert update.outcome is not None and update.outcome.version == version
        report = sync.committed()
        assert report.applied and report.content_digest == rollout.serving_digest
        assert seen == [*NAMES, ""]
        assert_same_weights(rest, {name: weights[name] for name in rest})
    assert pool.asked == NAMES * 3
    assert pool.most == window  # with two, one was lent while another was looked at
    assert not pool.alive()


def test_a_callback_may_take_the_layers_too_and_memory_may_be_used_again(pair: Pair) -> None:
    trainer, rollout, weights = pair
    pool = Pool()
    memory: dict[str, np.ndarray] = {}

    def allocate(layer: wsync.WantedLayer) -> dict[str, np.ndarray]:
        if not memory:  # all layers are equal: one's memory does for each
            memory.update({name.removeprefix(layer.name): a for name, a in pool.allocate(layer).items()})
        return {layer.name + name: array for name, array in memory.items()}

    rollout.attach(rest_of(rollout), allocate=allocate, layer_window=1)
    taken: dict[str, np.ndarray] = {}

    def take(layer: wsync.Layer) -> None:
        taken.update({name: array.copy() for name, array in layer.tensors.items()})

    sync = trainer.publish(1)
    assert next(rollout.updates(timeout=30)).apply(on_layer=take).applied
    assert sync.committed().applied and len(pool.asked) == 1
    assert_same_weights(taken, {name: weights[name] for layer in NAMES for name in of_layer(weights, layer)})


def test_slices_of_a_layer_go_to_destinations(pair: Pair) -> None:
    trainer, rollout, weights = pair
    halves: dict[str, np.ndarray] = {}

    def allocate(layer: wsync.WantedLayer) -> list[wsync.Destination]:
        destinations = []
        for output in layer.outputs:
            shape = (output.shape[0] // 2, *output.shape[1:]) if len(output.shape) == 2 else output.shape
            rows = (shape[0], output.shape[0]) if len(output.shape) == 2 else None  # the second half
            (array,) = empty_shared([Blank(shape, np.dtype(NUMPY[output.dtype]), False)], "half")
            destinations.append(wsync.Destination(output.name, array, shape=output.shape, rows=rows))
        return destinations

    rollout.attach(rest_of(rollout), allocate=allocate, layer_window=1)
    sync = trainer.publish(1)
    for layer in next(rollout.updates(timeout=30)).layers():
        halves.update({name: array.copy() for name, array in layer.tensors.items()})
    assert sync.committed().applied
    upper = {name: array[array.shape[0] // 2 :] for name, array in weights.items() if name.endswith("proj.weight")}
    assert_same_weights(halves, upper)


@pytest.mark.parametrize("where", ["body", "break", "callback"])
def test_what_fails_in_the_last_turn_of_all_is_not_committed(pair: Pair, where: str) -> None:
    trainer, rollout, _ = pair
    rollout.attach(rest_of(rollout), allocate=Pool().allocate, layer_window=1)
    sync = trainer.publish(1)
    update = next(rollout.updates(timeout=30))

    def work(layer: wsync.Layer) -> None:
        if layer.ready == layer.layers:
            raise RuntimeError("tying failed")

    if where == "callback":
        with pytest.raises(RuntimeError):
            update.apply(on_layer=work)
    elif where == "body":
        with pytest.raises(RuntimeError):
            for layer in update.layers():
                work(layer)
    else:
        for layer in update.layers():
            if layer.ready == layer.layers:
                break
    assert rollout.torn and rollout.serving_version == 0
    with pytest.raises(wsync.WsyncError, match="gave up at the tensors of no layer"):
        sync.committed()
    sync = trainer.publish(2)
    assert next(rollout.updates(timeout=30)).apply().applied and sync.committed().applied
    assert rollout.serving_version == 2 and not rollout.torn


@pytest.mark.parametrize("where", ["allocate", "body", "break", "callback"])
def test_an_engine_that_fails_at_a_layer_is_torn_and_named_and_the_next_version_mends_it(pair: Pair, where: str) -> None:
    trainer, rollout, weights = pair
    pool = Pool()
    failing = True

    def allocate(layer: wsync.WantedLayer) -> dict[str, np.ndarray]:
        if failing and where == "allocate" and layer.name == "model.layers.2":
            raise MemoryError("no room")
        return pool.allocate(layer)

    def work(layer: wsync.Layer) -> None:
        if failing and layer.name == "model.layers.2":
            raise RuntimeError("repacking failed")

    def follow(update: wsync.Update) -> None:
        if where == "callback":
            update.apply(on_layer=work)
            return
        for layer in update.layers():
            if failing and where == "break" and layer.name == "model.layers.2":
                break
            if where == "body":
                work(layer)

    rollout.attach(rest_of(rollout), allocate=allocate, layer_window=1)
    sync = trainer.publish(1)
    update = next(rollout.updates(timeout=30))
    if where == "break":
        follow(update)
    else:
        with pytest.raises(MemoryError if where == "allocate" else RuntimeError):
            follow(update)
    assert rollout.torn and rollout.serving_version == 0
    with pytest.raises(wsync.WsyncError) as failed:
        sync.committed()
    told = {"allocate": "no room", "body": "left the loop", "break": "left the loop", "callback": "repacking failed"}
    assert "model.layers.2" in str(failed.value) and told[where] in str(failed.value)
    failing = False
    randomize(weights, 2)
    sync = trainer.publish(2)
    for update in rollout.updates(timeout=30):
        follow(update)
        break
    assert sync.committed().applied
    assert rollout.serving_version == 2 and not rollout.torn
    gc.collect()
    assert not pool.alive()


def test_an_engine_that_has_no_memory_for_the_first_byte_serves_on(cluster: Cluster) -> None:
    shapes = {name: shape for name, shape in SHAPES.items() if ".layers." in name}
    with wsync.Trainer(cluster.start_trainer()) as trainer:
        with wsync.Rollout(cluster.start_rollout(transfer__sink_mode="in_place")) as rollout:
            weights = shared_arrays(shapes)
            randomize(weights, 1)
            trainer.register(weights)
            pool, room = Pool(), True

            def allocate(layer: wsync.WantedLayer) -> dict[str, np.ndarray]:
                if not room:
                    raise MemoryError("no room")
                return pool.allocate(layer)

            rollout.attach({}, allocate=allocate, layer_window=1)
            sync = trainer.publish(1)
            assert next(rollout.updates(timeout=30)).apply().applied and sync.committed().applied
            digest, room = rollout.serving_digest, False
            randomize(weights, 2)
            sync = trainer.publish(2)
            with pytest.raises(MemoryError):
                next(rollout.updates(timeout=30)).apply()
            with pytest.raises(wsync.WsyncError):
                sync.committed()
            events = rollout.events(timeout=30)
            assert next(event.kind for event in events if event.kind in ("cancelled", "torn")) == "cancelled"
            assert (rollout.serving_version, rollout.serving_digest, rollout.torn) == (1, digest, False)


def test_memory_that_does_not_fit_a_layer_is_told_by_name(pair: Pair) -> None:
    trainer, rollout, _ = pair
    pool = Pool()
    wrong = True

    def allocate(layer: wsync.WantedLayer) -> dict[str, np.ndarray]:
        arrays = pool.allocate(layer)
        if wrong:
            name = f"{layer.name}.input_layernorm.weight"
            arrays[name] = empty_shared([Blank((255,), np.dtype(ml_dtypes.bfloat16), False)], "wrong")[0]
        return arrays

    rollout.attach(rest_of(rollout), allocate=allocate, layer_window=1)
    sync = trainer.publish(1)
    with beside(lambda: next(rollout.updates(timeout=30)).apply(timeout=60)) as applying:
        with pytest.raises(wsync.WsyncError, match="input_layernorm.weight': the plan sends shape .256., the engine expects"):
            sync.committed()
        wrong = False
        assert trainer.publish(2).committed().applied  # the engine waited for it, torn
    assert applying.result().version == 2


def test_what_cannot_be_windowed_is_refused_in_words(pair: Pair, cluster: Cluster) -> None:
    trainer, rollout, _ = pair
    pool = Pool()
    for bad in ({"allocate": pool.allocate}, {"layer_window": 2}, {"allocate": pool.allocate, "layer_window": -1}):
        with pytest.raises(ValueError, match="layer_window"):
            rollout.attach({}, **bad)  # type: ignore[arg-type]
    with pytest.raises(wsync.CatalogMismatch, match="lm_head.weight': no destination takes it"):
        rollout.attach({}, allocate=pool.allocate, layer_window=1)
    interleaved = shared_arrays({f"l.layers.{i}.{kind}_proj.weight": (256, 256) for kind in ("up", "down") for i in (0, 1)})
    trainer.register(interleaved, replace=True)
    with pytest.raises(wsync.CatalogMismatch, match="give layer_window 2 or more"):
        rollout.attach({}, allocate=pool.allocate, layer_window=1)
    with wsync.Rollout(cluster.start_rollout("staged")) as staged:
        with pytest.raises(wsync.AgentError, match="sink_mode: in_place"):
            staged.attach({}, allocate=pool.allocate, layer_window=2)


def test_a_deep_check_says_that_the_layers_are_not_the_agents_any_more(pair: Pair, cluster: Cluster) -> None:
    trainer, rollout, _ = pair
    rollout.attach(rest_of(rollout), allocate=Pool().allocate, layer_window=1)
    sync = trainer.publish(1)
    assert next(rollout.updates(timeout=30)).apply().applied and sync.committed().applied
    # Not by Cluster.wsync: that it cannot be verified is an exit code of its own.
    command = [BIN / "wsync", "verify", "--deep", "-c", cluster.coordinator]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "takes layers through a window" in done.stdout + done.stderr


def test_an_agent_that_is_killed_with_layers_in_its_hands_is_attached_to_again(pair: Pair, cluster: Cluster) -> None:
    trainer, rollout, weights = pair
    pool = Pool()
    rollout.attach(rest_of(rollout), allocate=pool.allocate, layer_window=2)
    sync = trainer.publish(1)
    again: list[wsync.VersionReport] = []

    def publish_again() -> None:  # version 1 lost its only replica, and failed: its number is free
        with pytest.raises(wsync.WsyncError):
            sync.committed()
        again.append(trainer.publish(1).committed())

    update = next(rollout.updates(timeout=30))
    layers = update.layers()
    assert next(layers).name == "model.layers.0"
    cluster.restart("rollout-0")
    with beside(publish_again):
        for layer in layers:
            if layer.name:
                assert_same_weights(layer.tensors, of_layer(weights, layer.name))
    assert again[0].applied and update.outcome is not None and update.outcome.applied and rollout.serving_version == 1
    assert pool.asked[-LAYERS:] == NAMES
    gc.collect()
    assert not pool.alive()
