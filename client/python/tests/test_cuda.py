"""GPU memory at both ends, through agents with the cuda backend: needs torch and two GPUs, and skips without."""

from __future__ import annotations

import faulthandler
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")
if torch.cuda.device_count() < 2:
    pytest.skip("needs two CUDA devices", allow_module_level=True)

from conftest import Cluster, beside, eventually  # noqa: E402

import wsync  # noqa: E402
from wsync.engines.live import dequantized  # noqa: E402
from wsync.streams import Receiver, Sender  # noqa: E402
from wsync.tensors import torch_dtype  # noqa: E402


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """Ends the run where a test hangs, also in a call that keeps Python's lock; pytest -s shows where."""
    faulthandler.dump_traceback_later(120, exit=True, file=sys.__stderr__ or sys.stderr)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def pair(cluster: Cluster) -> Iterator[tuple[wsync.Trainer, wsync.Rollout]]:
    trainer_socket = cluster.start_trainer(transfer__backend="cuda", transfer__device="0")
    rollout_socket = cluster.start_rollout(transfer__backend="cuda", transfer__device="1")
    with wsync.Trainer(trainer_socket, timeout=30) as trainer, wsync.Rollout(rollout_socket, timeout=30) as rollout:
        yield trainer, rollout


def model(count: int = 20, device: str = "cuda:0") -> dict[str, torch.Tensor]:
    """Parameters in segments of the caching allocator, most of them not at a segment's begin."""
    torch.manual_seed(0)
    tensors = {f"model.layers.{i}.mlp.up_proj.weight": torch.randn(384, 512, device=device).bfloat16() for i in range(count)}
    tensors["model.norm.weight"] = torch.randn(512, device=device).bfloat16()
    return tensors


def memory_for(plan: wsync.Plan, device: str = "cuda:1") -> dict[str, torch.Tensor]:
    return {output.name: torch.zeros(output.shape, dtype=torch_dtype(output.dtype), device=device) for output in plan.outputs}


def assert_same(engine: dict[str, torch.Tensor], trained: dict[str, torch.Tensor]) -> None:
    for name, want in trained.items():
        want = want.float().cpu()
        scale = engine.get(f"{name}_scale_inv")
        if scale is None:
            assert torch.equal(engine[name].float().cpu(), want), name
        else:
            got = dequantized(engine[name], scale, torch.float32).cpu()
            assert (got - want).abs().max() <= want.abs().max() / 16, name


def carry(
    trainer: wsync.Trainer, rollout: wsync.Rollout, version: int, stream: torch.cuda.Stream | None = None
) -> wsync.Outcome:
    """`stream`: of the trainer's GPU, and gets the release as well."""
    sync = trainer.publish(version, stream=stream)
    if stream is not None:
        sync.released(stream=stream)
    outcome = next(rollout.updates(timeout=60)).apply()
    assert sync.committed(60).applied
    return outcome


def test_parameters_travel_from_gpu_to_gpu_by_ipc(pair: tuple[wsync.Trainer, wsync.Rollout]) -> None:
    trainer, rollout = pair
    weights = model()
    registration = trainer.register(weights)
    assert registration.copied == () and registration.quantized_tensors == 20
    engine = memory_for(rollout.plan())
    rollout.attach(engine)
    for version in (1, 2, 3):
        for weight in weights.values():
            weight.mul_(-1.5)  # queued on the GPU: publish waits for it
        assert carry(trainer, rollout, version).version == version
        assert_same(engine, weights)


def test_weights_that_moved_and_cpu_memory_are_told_apart(pair: tuple[wsync.Trainer, wsync.Rollout]) -> None:
    trainer, _ = pair
    module = torch.nn.Linear(256, 256, device="cuda:0", dtype=torch.bfloat16)
    trainer.register(module)
    module.weight.data = module.weight.data.clone()
    with pytest.raises(wsync.WeightsMoved, match="weight"):
        trainer.publish(1)
    for other in ({"x.weight": torch.randn(128, 128)}, {"x.weight": torch.randn(128, 128, device="cuda:1")}):
        with pytest.raises(wsync.WrongDevice):
            trainer.register(other, replace=True)
    mixed = {"a.weight": torch.randn(128, 128, device="cuda:0"), "b.weight": torch.randn(128, 128, device="cuda:1")}
    with pytest.raises(wsync.WrongDevice) as error:
        trainer.register(mixed, replace=True)
    assert set(error.value.names) == {"a.weight", "b.weight"}
    trainer.register(model(2), replace=True)


def test_expandable_segments_are_refused_by_name(cluster: Cluster) -> None:
    script = (
        "import sys, torch, wsync\n"
        "weight = torch.randn(512, 512, device='cuda:0')\n"
        "try:\n    wsync.Trainer(sys.argv[1]).register({'x.weight': weight})\n"
        "except wsync.MemoryNotShareable as error:\n    print(error.names, error.next_step)\n"
    )
    socket = cluster.start_trainer(transfer__backend="cuda")
    environment = {**os.environ, "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    done = subprocess.run([sys.executable, "-c", script, socket], env=environment, capture_output=True, text=True)
    assert "x.weight" in done.stdout and "expandable_segments" in done.stdout, done.stdout + done.stderr


def test_streams_and_slices_on_gpus(pair: tuple[wsync.Trainer, wsync.Rollout], cluster: Cluster) -> None:
    trainer, rollout = pair
    weights = {f"l.{name}_proj.weight": torch.randn(256, 512, device="cuda:0").bfloat16() for name in ("gate", "up")}
    trainer.register(weights)
    plan = rollout.plan().outputs
    placements = wsync.engines.mapping.place(plan)
    fused = {
        "l.gate_up_proj.weight": torch.zeros(512, 512, dtype=torch.float8_e4m3fn, device="cuda:1"),
        "l.gate_up_proj.weight_scale_inv": torch.zeros(4, 4, device="cuda:1"),
    }
    wsync.engines.mapping.check(placements, {name: tuple(tensor.shape) for name, tensor in fused.items()})
    rollout.attach(wsync.engines.bind.bind(placements, fused))
    carry(trainer, rollout, 1)
    got = dequantized(fused["l.gate_up_proj.weight"], fused["l.gate_up_proj.weight_scale_inv"], torch.float32).cpu()
    want = torch.cat([weight.float().cpu() for weight in weights.values()])
    assert (got - want).abs().max() <= want.abs().max() / 16
    trainer.unregister()
    rollout.detach()
    sender, receiver = Sender(cluster.socket("trainer")), Receiver(cluster.socket("rollout-0"), device="cuda:1")
    with beside(lambda: sender.send_and_wait(weights.items(), 2)) as sending:
        while receiver.rollout.serving_version < 2:  # first it may be caught up with what is committed
            got = dict(receiver.receive(timeout=60))
        assert_same(got, weights)
    assert sending.result().applied
    receiver.close()
    sender.close()


# ---- layers through a window


@pytest.mark.parametrize("window", [1, 2])
def test_a_window_of_layers_is_all_the_memory_they_take_though_the_gpu_still_reads_one_when_its_turn_is_over(
    cluster: Cluster, window: int
) -> None:
    cuda = {"transfer__backend": "cuda"}
    trainer_socket = cluster.start_trainer(transfer__device="0", transfer__bucket_bytes="16MiB", **cuda)
    rollout_socket = cluster.start_rollout(transfer__device="1", transfer__sink_mode="in_place", **cuda)
    weights = large(8)
    weights["model.norm.weight"] = torch.zeros(512, device="cuda:0").bfloat16()
    with wsync.Trainer(trainer_socket, timeout=30) as trainer, wsync.Rollout(rollout_socket, timeout=30) as rollout:
        trainer.register(weights)
        engine = memory_for(rollout.plan())  # as another layout would be: what landed is copied there
        rest = {name: tensor for name, tensor in engine.items() if ".layers." not in name}
        a_layer = sum(tensor.nbytes for name, tensor in engine.items() if name.startswith("model.layers.0."))

        def allocate(layer: wsync.WantedLayer) -> dict[str, torch.Tensor]:
            return {o.name: torch.empty(o.shape, dtype=torch_dtype(o.dtype), device="cuda:1") for o in layer.outputs}

        rollout.attach(rest, allocate=allocate, layer_window=window)
        torch.cuda.synchronize("cuda:1")
        before = torch.cuda.memory_allocated("cuda:1")
        for version in (1, 2):
            torch.cuda.reset_peak_memory_stats("cuda:1")  # comparing, below, takes memory as well
            for weight in weights.values():
                weight.normal_()
            sync = trainer.publish(version)
            update = next(rollout.updates(timeout=60))
            with torch.cuda.device("cuda:1"):
                for layer in update.layers():
                    torch.cuda._sleep(SECOND // 20)  # the next layer gets the same memory: it must not come before that
                    copy(engine, layer.tensors)
            assert sync.committed(60).applied
            assert update.outcome is not None and update.outcome.version == rollout.serving_version == version
            torch.cuda.synchronize("cuda:1")
            took = torch.cuda.max_memory_allocated("cuda:1") - before
            assert_same(engine, weights)
            assert took <= window * a_layer + 2**20, f"{took} bytes for a window of {window} layers of {a_layer}"
            assert torch.cuda.memory_allocated("cuda:1") == before


# ---- ordered against streams

SECOND = 1_800_000_000  # torch.cuda._sleep counts cycles; about a second of them
LIMIT = 20  # seconds; nothing here takes half of it


def large(count: int = 16) -> dict[str, torch.Tensor]:
    """Half a gigabyte: what is read too early, or overwritten too early, shows."""
    return {f"model.layers.{i}.mlp.up_proj.weight": torch.zeros(4096, 4096, device="cuda:0").bfloat16() for i in range(count)}


def fill(tensors: dict[str, torch.Tensor], value: float) -> None:
    for tensor in tensors.values():
        tensor.fill_(value)


def assert_filled(engine: dict[str, torch.Tensor], value: float) -> None:
    """All that is served is what all weights being `value` gives."""
    for name, tensor in engine.items():
        if name.endswith("_scale_inv"):
            weight = engine[name.removesuffix("_scale_inv")]
            product = weight.float().abs().amax().item() * tensor.amax().item()
            assert abs(product - value) < value / 100 and (tensor == tensor.flatten()[0]).all(), name
            assert (weight.view(torch.uint8) == weight.view(torch.uint8).flatten()[0]).all(), name


@pytest.fixture(params=["full", "ring"])
def ordered(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[tuple[wsync.Trainer, wsync.Rollout]]:
    cuda = {"transfer__backend": "cuda", "transfer__bucket_bytes": "16MiB"}
    trainer_socket = cluster.start_trainer(transfer__device="0", transfer__source_mode=request.param, **cuda)
    rollout_socket = cluster.start_rollout(transfer__backend="cuda", transfer__device="1")
    with wsync.Trainer(trainer_socket, timeout=30) as trainer, wsync.Rollout(rollout_socket, timeout=30) as rollout:
        yield trainer, rollout


def like(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.empty_like(tensor) for name, tensor in tensors.items()}


def copy(to: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        to[name].copy_(tensor, non_blocking=True)


def assert_passes(stream: torch.cuda.Stream) -> None:
    eventually(stream.query, "the stream goes on", patience=LIMIT)


def test_a_publish_reads_what_the_stream_leaves_and_the_stream_may_overwrite_behind_it(
    ordered: tuple[wsync.Trainer, wsync.Rollout],
) -> None:
    trainer, rollout = ordered
    weights = large()
    trainer.register(weights)
    engine = memory_for(rollout.plan())
    rollout.attach(engine)
    fill(weights, 0.5)
    torch.cuda.synchronize("cuda:0")
    stream = torch.cuda.Stream(device="cuda:0")
    carry(trainer, rollout, 1, stream)  # sessions are open, kernels loaded, memory for waits is there
    assert_passes(stream)
    for version in (2, 3):
        begun = time.monotonic()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(SECOND)
            fill(weights, float(version))
            sync = trainer.publish(version, stream=stream)
            sync.released(stream=stream)
            fill(weights, 100.0)
        assert time.monotonic() - begun < 0.4, "this thread waits for no GPU"
        assert not stream.query() and not sync.released_future.done()
        assert next(rollout.updates(timeout=LIMIT)).apply(LIMIT).version == version
        assert sync.committed(LIMIT).applied
        assert_filled(engine, float(version))
        assert_passes(stream)
        assert all((weight == 100.0).all() for weight in weights.values())


def test_an_apply_writes_between_two_reads_of_the_engines_stream(
    ordered: tuple[wsync.Trainer, wsync.Rollout],
) -> None:
    trainer, rollout = ordered
    weights = large()
    trainer.register(weights)
    engine = memory_for(rollout.plan())
    rollout.attach(engine)
    before, after = like(engine), like(engine)
    stream = torch.cuda.Stream(device="cuda:1")
    fill(weights, 1.0)
    sync = trainer.publish(1)
    next(rollout.updates(timeout=LIMIT)).apply(LIMIT, stream=stream)  # memory for waits is there from now on
    rollout.confirm(LIMIT)
    assert sync.committed(LIMIT).applied
    assert_passes(stream)
    for version in (2, 3):
        fill(weights, float(version))
        sync = trainer.publish(version)
        update = next(rollout.updates(timeout=LIMIT))
        begun = time.monotonic()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(SECOND)
            copy(before, engine)
            outcome = update.apply(LIMIT, stream=stream)
            copy(after, engine)
        assert time.monotonic() - begun < 0.4, "this thread waits for no GPU"
        assert outcome.applied and not outcome.confirmed and not sync.done
        assert rollout.serving_version == version and not stream.query()
        rollout.confirm(LIMIT)
        assert sync.committed(LIMIT).applied
        assert_passes(stream)
        assert_filled(before, float(version - 1))
        assert_filled(after, float(version))


def test_in_place_lands_only_when_the_engines_stream_has_read(cluster: Cluster) -> None:
    cuda = {"transfer__backend": "cuda", "transfer__bucket_bytes": "16MiB"}
    trainer = wsync.Trainer(cluster.start_trainer(transfer__device="0", **cuda), timeout=30)
    rollout = wsync.Rollout(
        cluster.start_rollout(transfer__backend="cuda", transfer__device="1", transfer__sink_mode="in_place"), timeout=30
    )
    weights = large(4)
    trainer.register(weights)
    engine = memory_for(rollout.plan())
    rollout.attach(engine)
    before = like(engine)
    fill(weights, 1.0)
    carry(trainer, rollout, 1)
    fill(weights, 2.0)
    sync = trainer.publish(2)
    update = next(rollout.updates(timeout=LIMIT))
    stream = torch.cuda.Stream(device="cuda:1")
    with torch.cuda.stream(stream):
        torch.cuda._sleep(SECOND)
        copy(before, engine)
        assert update.apply(LIMIT, stream=stream).confirmed
    assert sync.committed(LIMIT).applied
    assert_passes(stream)
    assert_filled(before, 1.0)
    assert_filled(engine, 2.0)
    rollout.close()
    trainer.close()


def test_a_training_process_that_is_killed_before_its_stream_got_there_leaves_a_healthy_agent(
    ordered: tuple[wsync.Trainer, wsync.Rollout], cluster: Cluster
) -> None:
    trainer, rollout = ordered
    script = (
        "import sys, time, torch, wsync\n"
        "weights = {'x.weight': torch.ones(4096, 4096, device='cuda:0').bfloat16()}\n"
        "trainer = wsync.Trainer(sys.argv[1])\n"
        "trainer.register(weights)\n"
        "torch.cuda._sleep(60 * 1_800_000_000)\n"
        "sync = trainer.publish(1, stream=torch.cuda.current_stream())\n"
        "sync.released(stream=torch.cuda.current_stream())\n"
        "print('waits', flush=True)\n"
        "time.sleep(60)\n"
    )
    doomed = subprocess.Popen(
        [sys.executable, "-c", script, cluster.socket("trainer")], stdout=subprocess.PIPE, text=True
    )
    try:
        assert doomed.stdout is not None
        assert select.select([doomed.stdout], [], [], 3 * LIMIT)[0], "torch takes a while to import, but not so long"
        assert doomed.stdout.readline() == "waits\n"
    finally:
        doomed.kill()
        doomed.wait(LIMIT)
    weights = {"x.weight": torch.full((4096, 4096), 3.0, device="cuda:0").bfloat16()}
    trainer.register(weights, timeout=LIMIT)
    engine = memory_for(rollout.plan(LIMIT))
    rollout.attach(engine, timeout=LIMIT)
    sync = trainer.publish(1)
    assert next(rollout.updates(timeout=LIMIT)).apply(LIMIT).version == 1
    assert sync.committed(LIMIT).applied
    assert_filled(engine, 3.0)
    assert cluster.alive("trainer") and cluster.alive("rollout-0")


def test_a_trainers_stream_whose_agent_is_killed_goes_on(
    ordered: tuple[wsync.Trainer, wsync.Rollout], cluster: Cluster
) -> None:
    trainer, rollout = ordered
    trainer.register(large(2))
    rollout.attach(memory_for(rollout.plan()))
    busy, waiting = torch.cuda.Stream(device="cuda:0"), torch.cuda.Stream(device="cuda:0")
    with torch.cuda.stream(busy):
        torch.cuda._sleep(3 * SECOND)
    sync = trainer.publish(1, stream=busy)
    sync.released(stream=waiting)
    assert not waiting.query() and not sync.done
    cluster.kill("trainer")
    with pytest.raises(wsync.AgentUnavailable):
        sync.committed(LIMIT)
    assert_passes(waiting)


def test_an_engines_stream_whose_agent_is_killed_goes_on_and_the_engine_hears_that_it_is_torn(
    ordered: tuple[wsync.Trainer, wsync.Rollout], cluster: Cluster
) -> None:
    trainer, rollout = ordered
    trainer.register(large(2))
    engine = memory_for(rollout.plan())
    rollout.attach(engine)
    trainer.publish(1)
    update = next(rollout.updates(timeout=LIMIT))
    stream = torch.cuda.Stream(device="cuda:1")
    with torch.cuda.stream(stream):
        torch.cuda._sleep(3 * SECOND)
        update.apply(LIMIT, stream=stream)
    assert not stream.query()
    cluster.kill("rollout-0")
    with pytest.raises(wsync.TornUpdate):
        next(rollout.updates(timeout=LIMIT, reattach_timeout=0.0))
    assert rollout.torn
    assert_passes(stream)


def test_what_this_thread_waits_for_by_torch_does_not_keep_a_stream_from_going_on(
    ordered: tuple[wsync.Trainer, wsync.Rollout],
) -> None:
    trainer, rollout = ordered
    weights = large(2)
    trainer.register(weights)
    rollout.attach(memory_for(rollout.plan()))
    stream = torch.cuda.Stream(device="cuda:0")
    with torch.cuda.stream(stream), beside(lambda: next(rollout.updates(timeout=LIMIT)).apply(LIMIT)) as applied:
        sync = trainer.publish(1, stream=stream)
        sync.released(stream=stream)
        fill(weights, 1.0)
        stream.synchronize()
        assert applied.result(LIMIT).applied
    assert sync.committed(LIMIT).applied
