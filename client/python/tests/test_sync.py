"""Weights from a Trainer to a Rollout through real agents, as numpy arrays."""

from __future__ import annotations

import gc
import threading
import time

import ml_dtypes
import numpy as np
import pytest
from conftest import PATIENCE, Cluster, beside, eventually
from models import SHAPES, EngineThread, assert_same_weights, memory_for, randomize, shared_arrays

import wsync


def test_a_version_arrives_with_every_byte_and_its_number(trainer: wsync.Trainer, rollout: wsync.Rollout) -> None:
    weights = shared_arrays(SHAPES)
    randomize(weights, 1)
    registration = trainer.register(weights)
    assert (registration.tensors, registration.quantized_tensors, registration.committed_version) == (7, 3, 0)
    engine = memory_for(rollout.plan())
    assert {"lm_head.weight", "model.layers.0.mlp.up_proj.weight_scale_inv"} <= engine.keys()
    attached = rollout.attach(engine, engine="pytest")
    assert attached.bytes_per_version == sum(array.nbytes for array in engine.values())
    assert rollout.serving_version == 0
    for version in (1, 7):
        randomize(weights, version)
        sync = trainer.publish(version)
        update = next(rollout.updates(timeout=30))
        assert update.version == version and not update.in_place
        outcome = update.apply()
        assert sync.released() >= 0
        report = sync.committed()
        assert report.applied and report.version == version and report.replicas[0].outcome == "applied"
        assert outcome.applied and outcome.content_digest == report.content_digest == rollout.serving_digest
        assert rollout.serving_version == version
        assert_same_weights(engine, weights)


def test_an_engine_may_attach_again_at_once(trainer: wsync.Trainer, rollout: wsync.Rollout) -> None:
    weights = shared_arrays(SHAPES)
    randomize(weights, 1)
    trainer.register(weights)
    engine = memory_for(rollout.plan())
    for _ in range(20):
        rollout.attach(engine)
    sync = trainer.publish(1)
    assert next(rollout.updates(timeout=30)).apply().version == 1
    assert sync.committed().applied
    assert_same_weights(engine, weights)


def test_in_place_pauses_at_prepare(cluster: Cluster) -> None:
    with wsync.Trainer(cluster.start_trainer()) as trainer:
        with wsync.Rollout(cluster.start_rollout(transfer__sink_mode="in_place")) as rollout:
            weights = shared_arrays(SHAPES)
            randomize(weights, 3)
            trainer.register(weights)
            engine = memory_for(rollout.plan())
            rollout.attach(engine)
            sync = trainer.publish(3)
            update = next(rollout.updates(timeout=30))
            assert update.in_place
            assert update.apply().version == 3
            assert sync.committed().applied
            assert_same_weights(engine, weights)


def test_layers_are_told_as_they_land_and_only_when_all_of_a_layer_is_there(cluster: Cluster) -> None:
    shapes = {"model.embed_tokens.weight": (500, 96)}
    for layer in range(4):
        shapes[f"model.layers.{layer}.mlp.up_proj.weight"] = (512, 256)
        shapes[f"model.layers.{layer}.mlp.down_proj.weight"] = (256, 512)
        shapes[f"model.layers.{layer}.input_layernorm.weight"] = (256,)
    shapes["lm_head.weight"] = (500, 96)
    with wsync.Trainer(cluster.start_trainer()) as trainer:
        with wsync.Rollout(cluster.start_rollout(transfer__sink_mode="in_place")) as rollout:
            weights = shared_arrays(shapes)
            trainer.register(weights)
            engine = memory_for(rollout.plan())
            rollout.attach(engine, layer_events=True)
            for version in (1, 2):
                randomize(weights, version)
                sync = trainer.publish(version)
                told: list[wsync.Layer] = []

                def landed(layer: wsync.Layer, told: list[wsync.Layer] = told) -> None:
                    told.append(layer)
                    its = {name: array for name, array in weights.items() if name.startswith(layer.name + ".")}
                    assert len(its) == 3 if layer.name else True
                    assert_same_weights(engine, its)  # before the version is committed or applied

                assert next(rollout.updates(timeout=30)).apply(on_layer=landed).version == version
                assert sync.committed().applied
                assert [layer.name for layer in told] == [f"model.layers.{i}" for i in range(4)] + [""]
                assert [layer.ready for layer in told] == [1, 2, 3, 4, 5] and told[0].layers == 5


def test_weights_may_change_after_released(cluster: Cluster) -> None:
    with wsync.Trainer(cluster.start_trainer()) as trainer:
        weights = shared_arrays(SHAPES)
        socket = cluster.start_rollout()
        randomize(weights, 5)
        trainer.register(weights)
        engine = EngineThread(socket)
        before = {name: array.copy() for name, array in weights.items()}
        sync = trainer.publish(1)
        sync.released()
        randomize(weights, 6)
        assert sync.committed().applied
        assert_same_weights(engine.weights, before)
        engine.stop()


def test_publishing_the_same_again_moves_nothing(cluster: Cluster) -> None:
    with wsync.Trainer(cluster.start_trainer()) as trainer:
        weights = shared_arrays(SHAPES)
        randomize(weights, 5)
        socket = cluster.start_rollout()
        trainer.register(weights)
        engine = EngineThread(socket)
        assert trainer.publish(4).committed().applied
        again = trainer.publish(4)
        assert again.committed().already_committed and again.released() == 0
        randomize(weights, 6)
        for version, next_version in ((4, 5), (2, 5)):
            with pytest.raises(wsync.StaleVersion) as stale:
                trainer.publish(version).committed()
            assert stale.value.next_version == next_version
            assert f"publish version {next_version}" in str(stale.value)
        engine.stop()


def test_a_report_prints_as_one_line_with_what_one_looks_for() -> None:
    from wsync.catalog import ReplicaOutcome, Timings

    timings = Timings(1.0, 2.0, 3.0, 4.0, 5.0)
    replicas = (ReplicaOutcome("r0", "applied", "", timings), ReplicaOutcome("r1", "left_out", "it was lost", timings))
    report = wsync.VersionReport(7, "1a2b3c4d" * 4, 100, 1_250_000, 12, replicas, 0.5, 1.25, 3.0, 9.96, False)
    assert str(report) == (
        "<version 7: applied by 1 of 2 replicas in 10.0 ms (released after 1.2), 12 tensors, 1.2 MB on the wire, "
        "content 1a2b3c4d; r1 left out: it was lost>"
    )


def test_private_arrays_are_sent_from_registered_copies(cluster: Cluster) -> None:
    socket = cluster.start_rollout(name="r")
    with wsync.Trainer(cluster.start_trainer()) as trainer:
        fused = np.zeros((512, 384), np.float32)
        parts = {"a.q_proj.weight": fused[:, :192], "a.o_proj.weight": fused[:, 192:].T}  # none of it is contiguous
        with pytest.raises(wsync.MemoryNotShareable, match="a.q_proj.weight") as refused:
            trainer.register(parts)
        assert refused.value.names == ("a.q_proj.weight",) and "copy='if_needed'" in refused.value.next_step
        registration = trainer.register(parts, copy="if_needed")
        assert set(registration.copied) == set(parts)
        engine = EngineThread(socket)
        for version in (1, 2):
            fused[...] = np.random.default_rng(version).standard_normal(fused.shape)
            assert trainer.publish(version).committed().applied
            assert_same_weights(engine.weights, parts)
        full = {name: np.full(part.shape, 2.0, np.float32) for name, part in parts.items()}
        assert trainer.publish(3, weights=full).committed().applied
        assert_same_weights(engine.weights, full)
        with pytest.raises(wsync.CatalogMismatch) as wrong:
            trainer.publish(4, weights={"a.q_proj.weight": full["a.q_proj.weight"], "b": fused})
        assert set(wrong.value.names) == {"a.o_proj.weight", "b"}
        engine.stop()


def test_names_dtypes_and_ties_are_the_callers_choice(trainer: wsync.Trainer, rollout: wsync.Rollout) -> None:
    shared = shared_arrays({"_fsdp_wrapped_module.model.norm.weight": (64,), "module.x.weight": (128, 128)}, np.float32)
    shared["tied.weight"] = shared["module.x.weight"]
    shared["optimizer.step"] = shared["module.x.weight"]

    def rename(name: str) -> str | None:
        return None if name.startswith("optimizer") else wsync.names.unwrapped(name)

    def cast(name: str, _: object) -> object:
        return np.dtype(ml_dtypes.bfloat16) if "norm" in name else None

    registration = trainer.register(shared, rename=rename, cast=cast)
    assert registration.tied == {"tied.weight": "x.weight"} and registration.copied == ("model.norm.weight",)
    outputs = rollout.plan().by_name
    assert outputs.keys() == {"model.norm.weight", "x.weight", "x.weight_scale_inv"}
    assert outputs["model.norm.weight"].dtype == wsync.Dtype.BF16
    assert outputs["x.weight"].dtype == wsync.Dtype.F8_E4M3 and outputs["x.weight"].quantized
    assert trainer.register(shared, rename=rename, tied="all", replace=True).tensors == 3


def test_weights_that_are_fp8_pass_through_unchanged(trainer: wsync.Trainer, rollout: wsync.Rollout) -> None:
    codes = shared_arrays({"x.weight": (256, 128)}, ml_dtypes.float8_e4m3fn)
    scales = shared_arrays({"x.weight_scale_inv": (2, 1)}, np.float32)
    codes["x.weight"].view(np.uint8)[...] = np.random.default_rng(0).integers(0, 127, (256, 128))
    scales["x.weight_scale_inv"][...] = 0.25
    trainer.register({**codes, **scales})
    engine = memory_for(rollout.plan())
    rollout.attach(engine)
    sync = trainer.publish(1)
    next(rollout.updates(timeout=30)).apply()
    sync.committed()
    assert (engine["x.weight"].view(np.uint8) == codes["x.weight"].view(np.uint8)).all()
    assert (engine["x.weight_scale_inv"] == 0.25).all()


def test_destinations_take_slices_with_a_pitch(trainer: wsync.Trainer, rollout: wsync.Rollout) -> None:
    weights = shared_arrays({"a.weight": (256, 256), "b.weight": (128, 256)})
    randomize(weights, 8)
    trainer.register(weights)
    plan = rollout.plan().by_name
    fused = memory_for(wsync.Plan((wsync.Output("f", wsync.Dtype.F8_E4M3, (192, 384)),), "", 0, True))["f"]
    fused.view(np.uint8)[...] = 255
    scales = shared_arrays({"s": (3, 2)}, np.float32)["s"]
    destinations = [
        wsync.Destination("a.weight", fused[:64, :128], plan["a.weight"].shape, (64, 128), (128, 256)),
        wsync.Destination("b.weight", fused[64:, 128:], plan["b.weight"].shape),
        wsync.Destination("a.weight_scale_inv", scales[:2], (2, 2)),
        wsync.Destination("b.weight_scale_inv", scales[2:], (1, 2)),
    ]
    rollout.attach(destinations)
    sync = trainer.publish(1)
    next(rollout.updates(timeout=30)).apply()
    assert sync.committed().applied
    got = fused.astype(np.float32)
    assert np.isnan(got[:64, 128:]).all() and np.isnan(got[64:, :128]).all()  # untouched
    want = weights["a.weight"][64:128, 128:].astype(np.float32)
    assert np.abs(got[:64, :128] * scales[0, 1] - want).max() < 0.3


def test_two_replicas_switch_together(cluster: Cluster) -> None:
    with wsync.Trainer(cluster.start_trainer(coordinator__min_replicas="2")) as trainer:
        weights = shared_arrays(SHAPES)
        randomize(weights, 1)
        sockets = [cluster.start_rollout(f"rollout-{i}") for i in range(2)]
        trainer.register(weights)
        engines = [EngineThread(socket) for socket in sockets]
        report = trainer.publish(11).committed()
        assert sorted(r.replica for r in report.replicas) == ["rollout-0", "rollout-1"] and report.applied
        for engine in engines:
            eventually(lambda e=engine: e.rollout.serving_version == 11, "the engine heard of it")  # type: ignore[misc]
            engine.stop()


def test_an_engine_that_polls_takes_what_waits(trainer: wsync.Trainer, rollout: wsync.Rollout) -> None:
    weights = shared_arrays(SHAPES)
    randomize(weights, 1)
    trainer.register(weights)
    engine = memory_for(rollout.plan())
    rollout.attach(engine)
    assert rollout.poll() is None
    sync = trainer.publish(1)
    update = None
    deadline = time.monotonic() + 30
    while update is None and time.monotonic() < deadline:
        update = rollout.poll()
    assert update is not None and update.apply().applied and sync.committed().applied


def test_events_come_in_order(trainer: wsync.Trainer, rollout: wsync.Rollout) -> None:
    weights = shared_arrays(SHAPES)
    randomize(weights, 1)
    trainer.register(weights)
    rollout.attach(memory_for(rollout.plan()))
    sync = trainer.publish(1)
    kinds = []
    for event in rollout.events(timeout=30):
        kinds.append(event.kind)
        if event.kind == "apply":
            rollout.paused(event.version)
        if event.kind == "applied":
            assert event.timings is not None and event.timings.pause_ms >= 0
            break
    assert kinds == ["prepare", "apply", "applied"] and sync.committed().applied


def test_detached_memory_is_left_alone(cluster: Cluster) -> None:
    with wsync.Trainer(cluster.start_trainer()) as trainer:
        weights = shared_arrays(SHAPES)
        randomize(weights, 1)
        socket = cluster.start_rollout()
        trainer.register(weights)
        engine = EngineThread(socket)
        trainer.publish(1).committed()
        engine.rollout.detach()  # while its thread waits for updates
        engine.stop()
        before = engine.weights["lm_head.weight"].copy()
        randomize(weights, 2)
        other = EngineThread(socket)
        assert trainer.publish(2).committed().applied
        np.testing.assert_array_equal(engine.weights["lm_head.weight"], before)
        assert_same_weights(other.weights, weights)
        other.stop()
        with pytest.raises(wsync.ClientClosed):
            engine.rollout.paused(3)


def test_a_detach_between_two_updates_ends_them(cluster: Cluster) -> None:
    with wsync.Trainer(cluster.start_trainer()) as trainer:
        trainer.register(shared_arrays(SHAPES))
        with wsync.Rollout(cluster.start_rollout()) as rollout:
            rollout.attach(memory_for(rollout.plan()))
            updates = rollout.updates()
            sync = trainer.publish(1)
            next(updates).apply()
            assert sync.committed().applied
            rollout.detach()
            assert next(updates, None) is None
            with pytest.raises(wsync.NotAttached):
                next(rollout.updates())


def test_unregistered_weights_can_be_registered_by_another(cluster: Cluster) -> None:
    socket = cluster.start_trainer()
    with wsync.Trainer(socket) as first, wsync.Trainer(socket) as second:
        first.register(shared_arrays(SHAPES))
        with pytest.raises(wsync.AlreadyRegistered, match="replace"):
            second.register(shared_arrays(SHAPES))
        assert first.unregister() is False
        second.register(shared_arrays(SHAPES))
        with pytest.raises(wsync.NotRegistered):
            first.publish(1)


def test_publications_may_be_followed_from_other_threads(cluster: Cluster) -> None:
    with wsync.Trainer(cluster.start_trainer()) as trainer:
        weights = shared_arrays(SHAPES)
        randomize(weights, 1)
        socket = cluster.start_rollout()
        trainer.register(weights)
        engine = EngineThread(socket)
        sync = trainer.publish(1)
        results: list[object] = []
        threads = [threading.Thread(target=lambda: results.append(sync.committed().applied)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert results == [True] * 4
        eventually(lambda: engine.rollout.serving_version == 1, "served")
        engine.stop()


def test_the_garbage_collector_goes_on_while_an_engine_waits_for_a_trainer(cluster: Cluster) -> None:
    with wsync.Rollout(cluster.start_rollout()) as rollout, beside(lambda: rollout.plan(PATIENCE)) as planned:
        with wsync.Trainer(cluster.start_trainer()) as trainer:
            for _ in range(20):
                assert gc.isenabled() and not planned.done()
                time.sleep(0.01)
            trainer.register(shared_arrays(SHAPES))
            assert planned.result(PATIENCE).outputs and gc.isenabled()
