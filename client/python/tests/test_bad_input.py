"""Bad input: each a typed error with names and a next step, and the agent is as usable as before."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from conftest import Cluster, assert_helpful, eventually
from models import SHAPES, EngineThread, memory_for, randomize, shared_arrays

import wsync


def test_an_address_that_is_no_local_socket_is_refused_at_once() -> None:
    for address in ("127.0.0.1:7470", "unix:relative.sock", ""):
        with pytest.raises(ValueError, match="unix:///"):
            wsync.Trainer(address)


def test_using_a_trainer_before_register_says_so(trainer: wsync.Trainer) -> None:
    with pytest.raises(wsync.NotRegistered, match="no weights"):
        trainer.publish(1)
    with pytest.raises(wsync.CatalogMismatch, match="no tensors"):
        trainer.register({})


def test_arguments_that_can_never_be_right_are_named(trainer: wsync.Trainer) -> None:
    weights = shared_arrays({"x.weight": (4, 4)})
    for wrong, error in (
        ({"copy": "sometimes"}, ValueError),
        ({"copy": None}, ValueError),
        ({"tied": "last"}, ValueError),
        ({"modules_to_not_convert": "lm_head"}, TypeError),
        ({"rename": lambda name: 5}, TypeError),
        ({"rename": "unwrapped"}, TypeError),
        ({"cast": "quantized"}, ValueError),
        ({"cast": 16}, TypeError),
        ({"timeout": None}, TypeError),
        ({"timeout": -1}, ValueError),
        ({"timeout": float("inf")}, ValueError),
    ):
        with pytest.raises(error, match=next(iter(wrong))):
            trainer.register(weights, **wrong)
    trainer.register(weights)
    for version, error in (("1", TypeError), (1.0, TypeError), (None, TypeError), (0, ValueError), (1 << 70, ValueError)):
        with pytest.raises(error, match=f"version '?{version}"):
            trainer.publish(version)
    publication = trainer.publish(np.int64(3))
    assert publication.version == 3
    for wait in (publication.released, publication.committed, trainer.unregister, wsync.Trainer):
        for timeout, error in ((None, TypeError), ("1", TypeError), (True, TypeError), (-0.1, ValueError), (np.nan, ValueError)):
            with pytest.raises(error, match="timeout"):
                wait(timeout=timeout)
    with pytest.raises(ValueError, match="require='most'"):
        publication.committed(require="most")  # type: ignore[arg-type]
    for n, error in ((0, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match="n="):
            trainer.wait_for_replicas(n)  # type: ignore[arg-type]
    for socket in (None, 7470):
        with pytest.raises(TypeError, match="socket"):
            wsync.Trainer(socket)  # type: ignore[arg-type]
    for nbytes, error in ((0, ValueError), (-1, ValueError), (1.0, TypeError)):
        with pytest.raises(error, match="nbytes"):
            wsync.SharedBuffer(nbytes)  # type: ignore[arg-type]


def test_arguments_of_an_engine_that_can_never_be_right_are_named(trainer: wsync.Trainer, rollout: wsync.Rollout) -> None:
    trainer.register(shared_arrays({"a.bias": (64,)}))
    memory = memory_for(rollout.plan())
    for wrong, error in (
        ({"engine": None}, TypeError),
        ({"timeout": None}, TypeError),
        ({"timeout": -1}, ValueError),
        ({"allocate": "cuda", "layer_window": 1}, TypeError),
        ({"layer_window": 1.5}, TypeError),
        ({"layer_window": -1}, ValueError),
        ({"layer_window": 1}, ValueError),
    ):
        with pytest.raises(error, match=next(iter(wrong))):
            rollout.attach(memory, **wrong)
    with pytest.raises(TypeError, match="Destination"):
        rollout.attach([memory["a.bias"]])  # type: ignore[list-item]
    rollout.attach(memory)
    for follow in (rollout.updates, rollout.events):
        with pytest.raises(ValueError, match="timeout"):
            next(follow(timeout=-1))
    with pytest.raises(TypeError, match="reattach_timeout"):
        next(rollout.updates(reattach_timeout=None))  # type: ignore[arg-type]
    for wait in (rollout.plan, rollout.confirm, rollout.detach):
        with pytest.raises(TypeError, match="timeout"):
            wait(timeout="soon")  # type: ignore[arg-type]


def test_a_process_that_registers_twice_is_not_told_to_stop_itself(trainer: wsync.Trainer) -> None:
    trainer.register(shared_arrays({"x.weight": (4, 4)}))
    with pytest.raises(wsync.AlreadyRegistered, match="this very process") as error:
        trainer.register(shared_arrays({"x.weight": (4, 4)}))
    assert "replace=True" in error.value.next_step and "stop" not in str(error.value)
    trainer.register(shared_arrays({"x.weight": (4, 4)}), replace=True)


def test_nan_in_a_weight_fails_the_version_and_names_it(cluster: Cluster) -> None:
    with wsync.Trainer(cluster.start_trainer()) as trainer:
        weights = shared_arrays(SHAPES)
        randomize(weights, 1)
        socket = cluster.start_rollout()
        trainer.register(weights)
        engine = EngineThread(socket)
        assert trainer.publish(1).committed().applied
        weights["model.layers.0.mlp.up_proj.weight"][3, 5] = np.nan
        with pytest.raises(wsync.InvalidWeights) as error:
            trainer.publish(2).committed()
        assert_helpful(error, "model.layers.0.mlp.up_proj.weight")
        eventually(lambda: engine.rollout.serving_version == 1, "the version before is served on")
        randomize(weights, 2)
        assert trainer.publish(2).committed().applied
        engine.stop()


def test_impossible_catalogs_are_refused_with_names(trainer: wsync.Trainer, cluster: Cluster) -> None:
    weights = shared_arrays({"x.weight": (4, 4)})
    with pytest.raises(wsync.CatalogMismatch) as error:
        trainer.register([("x.weight", weights["x.weight"])] * 2, tied="all")
    assert_helpful(error, "x.weight")
    with pytest.raises(wsync.CatalogMismatch):
        trainer.register({"n" * 600: weights["x.weight"]})
    with pytest.raises(TypeError, match="'x'.*complex"):
        trainer.register({"x": np.zeros(3, np.complex128)})
    with pytest.raises(TypeError, match="'x'.*list"):
        trainer.register({"x": [1, 2]})
    with pytest.raises(TypeError, match="'x'.*complex"):
        trainer.register({"x": np.zeros(3)}, cast=lambda name, array: np.dtype(np.complex128))
    with pytest.raises(TypeError, match="'x'.*imaginary"):
        trainer.register({"x": np.zeros(3, np.complex64)}, cast=lambda name, array: np.dtype(np.float32))
    with pytest.raises(TypeError, match="expected .name, tensor. pairs"):
        trainer.register(list(weights.values()))
    with pytest.raises(TypeError, match="5"):
        trainer.register({5: weights["x.weight"]})
    trainer.register({"x": np.zeros(3, np.float32)}, copy="always")
    for given in ([1, 2, 3], np.zeros(4), np.zeros(3, np.complex64), np.array(["a", "b", "c"])):
        with pytest.raises((TypeError, wsync.CatalogMismatch), match="'x'"):
            trainer.publish(1, weights={"x": given})
    assert cluster.alive("trainer")


def test_memory_that_is_too_large_is_refused_before_a_byte_is_written() -> None:
    with pytest.raises(wsync.MemoryNotShareable, match="shared memory cannot hold") as error:
        wsync.SharedBuffer(1 << 60)
    assert_helpful(error)


def test_a_cuda_handle_at_a_host_agent_is_the_wrong_device(trainer: wsync.Trainer, cluster: Cluster) -> None:
    from wsync import _wire
    from wsync.registration import messages_of
    from wsync.tensors import view_of
    from wsync.weights import Weight

    class OneIpcHandle:
        def messages(self) -> list[object]:
            ipc = _wire.message("CudaIpc")(handle=b"h" * 64, device_uuid="GPU-0", size_bytes=1 << 20)
            return [_wire.message("MemoryHandle")(cuda_ipc=ipc)]

    weights = shared_arrays({"x.weight": (4, 4)})
    x = weights["x.weight"]
    entry = [Weight("x.weight", x, x, view_of(x), x)]
    request = messages_of(entry, [(0, 0)], OneIpcHandle(), [], False)  # type: ignore[arg-type]
    with pytest.raises(wsync.WrongDevice, match="host backend") as error:
        trainer._call_register(request, 10)
    assert_helpful(error)
    assert cluster.alive("trainer")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("float8_e8m0fnu", wsync.Dtype.F8_E8M0),
        ("float8_e4m3fnuz", wsync.Dtype.F8_E4M3FNUZ),
        ("float8_e5m2fnuz", wsync.Dtype.F8_E5M2FNUZ),
        ("complex64", wsync.Dtype.C64),
    ],
)
def test_dtypes_that_are_only_moved_are_known_by_the_names_that_numpy_and_torch_give_them(
    name: str, dtype: wsync.Dtype
) -> None:
    of_numpy = np.dtype(getattr(ml_dtypes, name, None) or getattr(np, name))
    assert wsync.tensors.dtype_of(of_numpy) is dtype
    assert dtype.itemsize == of_numpy.itemsize
    torch = pytest.importorskip("torch")
    assert wsync.tensors.torch_dtype(dtype) is getattr(torch, name)
    assert wsync.tensors.dtype_of(getattr(torch, name)) is dtype


def test_mx_exponents_reach_the_engine_as_they_are(trainer: wsync.Trainer, rollout: wsync.Rollout) -> None:
    scales = shared_arrays({"model.layers.0.mlp.up_proj.weight_scale": (256, 8)}, ml_dtypes.float8_e8m0fnu)
    (exponents,) = scales.values()
    exponents.view(np.uint8)[...] = np.arange(2048, dtype=np.uint32).reshape(256, 8) % 255  # 255 is NaN
    trainer.register(scales)
    (output,) = rollout.plan().outputs
    assert output.dtype is wsync.Dtype.F8_E8M0 and not output.quantized
    engine = shared_arrays({output.name: output.shape}, ml_dtypes.float8_e8m0fnu)
    rollout.attach(engine)
    sync = trainer.publish(1)
    next(rollout.updates(timeout=30)).apply()
    sync.committed()
    assert np.array_equal(engine[output.name].view(np.uint8), exponents.view(np.uint8))


def test_destinations_that_do_not_fit_are_listed_with_both_sides(trainer: wsync.Trainer, rollout: wsync.Rollout) -> None:
    weights = shared_arrays({"a.weight": (128, 128), "b.weight": (128, 128), "norm.weight": (64,)})
    randomize(weights, 1)
    trainer.register(weights)
    fp8 = shared_arrays({"a": (128, 128)}, ml_dtypes.float8_e4m3fn)["a"]
    bf16 = shared_arrays({"b": (128, 128), "norm": (65,)})
    with pytest.raises(wsync.CatalogMismatch) as error:
        rollout.attach({"a.weight": fp8, "b.weight": bf16["b"], "norm.weight": bf16["norm"], "c.weight": fp8})
    assert_helpful(error, "b.weight", "norm.weight", "c.weight", "a.weight_scale_inv")
    assert "'wsync quantize'" in error.value.next_step and "recipe.fp8: false" in error.value.next_step
    for text in ("the plan sends F8_E4M3, the engine holds BF16", "[64]", "[65]", "no tensor of that name"):
        assert text in str(error.value)
    with pytest.raises(wsync.CatalogMismatch, match="do not fit the target"):
        rollout.attach([wsync.Destination("a.weight", fp8, rows=(0, 64))])
    engine = memory_for(rollout.plan())
    rollout.attach(engine)  # the agent is as usable as before
    sync = trainer.publish(1)
    assert next(rollout.updates(timeout=30)).apply().applied and sync.committed().applied


@pytest.mark.parametrize(
    ("sent", "held", "fp8", "cures"),
    [
        (np.float32, ml_dtypes.bfloat16, "false", ['cast="unquantized"']),
        (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, "false", ["'wsync plan'", "recipe.include"]),
        (ml_dtypes.bfloat16, np.float16, "false", ["cast=", "load it in that dtype"]),
        (ml_dtypes.bfloat16, ml_dtypes.bfloat16, "true", ["'wsync quantize'", "recipe.fp8: false"]),
    ],
    ids=["masters", "codes", "half", "bf16_engine"],
)
def test_a_refusal_of_a_dtype_says_whose_it_is_and_what_cures_it(
    cluster: Cluster, sent: type, held: type, fp8: str, cures: list[str]
) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    with wsync.Trainer(cluster.start_trainer(recipe__fp8=fp8)) as trainer, wsync.Rollout(cluster.start_rollout()) as rollout:
        trainer.register(shared_arrays({name: (128, 128)}, sent))
        with pytest.raises(wsync.CatalogMismatch) as error:
            rollout.attach(shared_arrays({name: (128, 128)}, held))
        assert_helpful(error, name)
        assert all(cure in error.value.next_step for cure in cures), error.value.next_step


def test_overlapping_destinations_are_refused(trainer: wsync.Trainer, rollout: wsync.Rollout) -> None:
    trainer.register(shared_arrays({"a.bias": (64,), "b.bias": (64,)}))
    one = shared_arrays({"x": (64,)})["x"]
    with pytest.raises(wsync.CatalogMismatch, match="overlap"):
        rollout.attach({"a.bias": one, "b.bias": one})


def test_a_second_engine_is_refused(cluster: Cluster) -> None:
    with wsync.Trainer(cluster.start_trainer()) as trainer:
        socket = cluster.start_rollout()
        trainer.register(shared_arrays(SHAPES))
        first = EngineThread(socket)
        with wsync.Rollout(socket) as second:
            with pytest.raises(wsync.AlreadyAttached) as error:
                second.attach(memory_for(second.plan()))
            assert_helpful(error)
        first.stop()


def test_private_arrays_cannot_be_destinations(trainer: wsync.Trainer, rollout: wsync.Rollout) -> None:
    trainer.register(shared_arrays({"a.bias": (64,)}))
    with pytest.raises(wsync.MemoryNotShareable) as error:
        rollout.attach({"a.bias": np.zeros(64, ml_dtypes.bfloat16)})
    assert_helpful(error, "a.bias")


def test_a_catalog_that_does_not_fit_any_more_ends_the_updates(trainer: wsync.Trainer, rollout: wsync.Rollout) -> None:
    trainer.register(shared_arrays({"a.bias": (64,)}))
    rollout.attach(shared_arrays({"a.bias": (64,)}))
    trainer.register(shared_arrays({"a.bias": (32,)}), replace=True)
    with pytest.raises(wsync.CatalogMismatch) as error:
        next(rollout.updates(timeout=30))
    assert_helpful(error, "a.bias")
