"""GPU memory at both ends, through agents with the cuda backend: needs torch and two GPUs, and skips without."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")
if torch.cuda.device_count() < 2:
    pytest.skip("needs two CUDA devices", allow_module_level=True)

import wsync  # noqa: E402
from conftest import Cluster  # noqa: E402
from wsync.catalog import Dtype  # noqa: E402
from wsync.engines.live import dequantized  # noqa: E402
from wsync.streams import Receiver, Sender  # noqa: E402

TORCH = {Dtype.F8_E4M3: torch.float8_e4m3fn, Dtype.F32: torch.float32, Dtype.BF16: torch.bfloat16}


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
    return {output.name: torch.zeros(output.shape, dtype=TORCH[output.dtype], device=device) for output in plan.outputs}


def assert_same(engine: dict[str, torch.Tensor], trained: dict[str, torch.Tensor]) -> None:
    for name, want in trained.items():
        want = want.float().cpu()
        scale = engine.get(f"{name}_scale_inv")
        if scale is None:
            assert torch.equal(engine[name].float().cpu(), want), name
        else:
            got = dequantized(engine[name], scale, torch.float32).cpu()
            assert (got - want).abs().max() <= want.abs().max() / 16, name


def carry(trainer: wsync.Trainer, rollout: wsync.Rollout, version: int) -> wsync.Outcome:
    sync = trainer.publish(version)
    outcome = next(rollout.updates(timeout=60)).apply()
    assert sync.committed().applied
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
    sending = threading.Thread(target=lambda: sender.send_and_wait(weights.items(), 2))
    sending.start()
    assert_same(dict(receiver.receive(timeout=60)), weights)
    sending.join(60)
    receiver.close()
    sender.close()
