"""What the recipes for verl, NeMo-RL and slime rest on: weights as a stream on both sides. Needs torch."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from conftest import Cluster, beside, eventually  # noqa: E402

import wsync  # noqa: E402
from wsync.engines.live import dequantized  # noqa: E402
from wsync.streams import Receiver, Sender  # noqa: E402


def gathered(fill: float, names: tuple[str, ...] = ("a.weight", "b.bias")) -> Iterator[tuple[str, torch.Tensor]]:
    """Each tensor lives until the next is asked for, as gathered shards do."""
    scratch = torch.empty(256 * 128)
    for name in names:
        shape = (256, 128) if name.endswith("weight") else (256,)
        tensor = scratch[: torch.Size(shape).numel()].view(shape).fill_(fill)
        yield name, tensor
        tensor.fill_(float("nan"))


def test_a_stream_arrives_as_a_stream(cluster: Cluster) -> None:
    sender = Sender(cluster.start_trainer(coordinator__min_replicas_wait_ms="10s"))
    receiver = Receiver(cluster.start_rollout())
    for step in (1, 2, 3):
        with beside(lambda s=step: sender.send_and_wait(gathered(s))) as sending:  # type: ignore[misc]
            got = dict(receiver.receive(timeout=60))
        assert sending.result().version == step and sending.result().applied
        assert list(got) == ["a.weight", "a.weight_scale_inv", "b.bias"]
        assert got["a.weight"].dtype == torch.float8_e4m3fn
        weight = dequantized(got["a.weight"], got["a.weight_scale_inv"], torch.float32)
        assert torch.allclose(weight, torch.full_like(weight, step))
        assert (got["b.bias"] == step).all()
        assert sender.trainer.registration.committed_version == 0  # registered once, before anything was committed
    receiver.close()
    sender.close()


def test_another_set_of_weights_is_registered_anew(cluster: Cluster) -> None:
    sender = Sender(cluster.start_trainer(coordinator__min_replicas_wait_ms="10s"))
    socket = cluster.start_rollout()
    for names, version in ((("a.weight",), 1), (("a.weight", "c.weight"), 2)):
        receiver = Receiver(socket)
        with beside(lambda n=names: sender.send_and_wait(gathered(7, n))):  # type: ignore[misc]
            while True:  # until the new catalog is the plan
                plan = {output.name for output in receiver.rollout.plan().outputs if not output.is_scale}
                if plan == set(names):
                    break
            got = dict(receiver.receive(timeout=60))
        assert {name for name in got if not name.endswith("scale_inv")} == set(names)
        assert receiver.rollout.serving_version == version
        receiver.close()
    sender.close()


def test_both_ends_go_on_after_an_agent_that_was_not_there(cluster: Cluster) -> None:
    sender = Sender(cluster.socket("trainer"), timeout=0.5)
    receiver = Receiver(cluster.socket("rollout-0"))
    with pytest.raises(wsync.AgentUnavailable):
        sender.send(gathered(1))
    with pytest.raises(wsync.AgentUnavailable):
        receiver.attach(timeout=0.5)
    cluster.start_trainer(coordinator__min_replicas_wait_ms="10s")
    cluster.start_rollout()
    with beside(lambda: sender.send_and_wait(gathered(2))) as sending:
        got = dict(receiver.receive(timeout=60))
    assert sending.result().applied and (got["b.bias"] == 2).all()
    receiver.close()
    sender.close()


def test_buffers_are_not_filled_while_the_version_before_is_read(cluster: Cluster) -> None:
    sender = Sender(cluster.start_trainer(coordinator__min_replicas_wait_ms="2s"))
    first = sender.send(gathered(1))  # waits for a replica, which does not come
    kept = sender._buffers["b.bias"].clone()
    with pytest.raises(wsync.PublishInProgress):
        sender.send(gathered(2))
    assert torch.equal(sender._buffers["b.bias"], kept)
    with pytest.raises(wsync.TooFewReplicas):
        first.committed()
    sender.close()


RANKS = """
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as processes

import wsync
from wsync.streams import Sender


def fsdp1(model, original):
    from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

    model = FSDP(model, use_orig_params=original, device_id=torch.device("cpu"))
    with FSDP.summon_full_params(model):
        yield model, [(wsync.names.unwrapped(name), p.detach()) for name, p in model.named_parameters()]


def fsdp2(model, original):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    yield model, ((name, p.full_tensor()) for name, p in model.named_parameters())


def run(rank, folder, socket):
    meeting, limit = f"file://{folder}/rendezvous", timedelta(seconds=60)  # for each step that the ranks take together
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=limit)
    sender = Sender(socket)
    for i, (shard, original) in enumerate([(fsdp1, False), (fsdp1, True), (fsdp2, True)]):
        torch.manual_seed(i)
        model = torch.nn.Sequential(torch.nn.Linear(128, 256), torch.nn.Linear(256, 8)).to(torch.bfloat16)
        if rank == 0:
            torch.save(model.state_dict(), f"{folder}/whole-{i}.pt")
        for sharded, weights in shard(model, original):
            if rank == 0:
                sender.send_and_wait(weights)
            else:
                list(weights)  # gathering needs every rank
            dist.barrier()
        try:
            wsync.Trainer(socket).register(sharded, rename=wsync.names.unwrapped)
        except wsync.MemoryNotShareable as error:
            Path(f"{folder}/refused-{i}-{rank}").write_text(str(error))
    dist.destroy_process_group()


if __name__ == "__main__":
    processes.spawn(run, args=tuple(sys.argv[1:]), nprocs=2)
"""


@contextlib.contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """With all that it starts: none of them outlives the block, however that ends."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with process:
            pass


@pytest.mark.timeout(60)
def test_processes_that_hang_end_with_the_block_that_runs_them() -> None:
    hang = "import time; time.sleep(600)"
    script = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {hang!r}]); print(p.pid, flush=True); p.wait()"
    with pytest.raises(subprocess.TimeoutExpired), running([sys.executable, "-c", script]) as process:
        assert process.stdout is not None
        child = Path(f"/proc/{int(process.stdout.readline())}/stat")
        process.wait(timeout=0.2)
    assert process.returncode == -signal.SIGKILL
    eventually(lambda: not child.exists() or child.read_text().rpartition(")")[2].split()[0] == "Z", "the child has ended")


@pytest.mark.timeout(200)
def test_what_fsdp_shards_is_sent_while_it_is_whole_and_refused_in_parts(cluster: Cluster, tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    socket = cluster.start_trainer(coordinator__min_replicas_wait_ms="10s")
    receiver = Receiver(cluster.start_rollout())
    command = [sys.executable, str(script), str(tmp_path), socket]
    with running(command) as ranks:
        for i in range(3):
            got = dict(receiver.receive(timeout=60))
            want = torch.load(tmp_path / f"whole-{i}.pt")
            assert {name for name in got if not name.endswith("scale_inv")} == want.keys()
            assert torch.equal(got["0.bias"], want["0.bias"]) and torch.equal(got["1.bias"], want["1.bias"])
            weight = dequantized(got["0.weight"], got["0.weight_scale_inv"], torch.float32)
            assert (weight - want["0.weight"].float()).abs().max() <= want["0.weight"].float().abs().max() / 16
        output, _ = ranks.communicate(timeout=60)
    assert ranks.returncode == 0, output
    for rank in (0, 1):
        refused = [(tmp_path / f"refused-{i}-{rank}").read_text() for i in range(3)]
        assert "summon_full_params" in refused[0] and "summon_full_params" in refused[1]
        assert "'0.weight': a sharded DTensor" in refused[2]
    receiver.close()


WHOLE_RANKS = """
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.fsdp import ShardingStrategy

import wsync


def sharded(module, strategy):
    cpu = torch.device("cpu")
    return FSDP(module, use_orig_params=True, sharding_strategy=ShardingStrategy[strategy], device_id=cpu)


def run(rank, folder, socket):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.manual_seed(7)
    model = torch.nn.Sequential(torch.nn.Linear(128, 256), torch.nn.Linear(256, 8)).to(torch.bfloat16)
    if rank == 0:
        torch.save(model.state_dict(), f"{folder}/whole.pt")
    mixed = torch.nn.Sequential(sharded(torch.nn.Linear(8, 8), "FULL_SHARD"), torch.nn.Linear(8, 8))
    whole, mixed = sharded(model, "NO_SHARD"), sharded(mixed, "NO_SHARD")
    if rank == 0:
        with wsync.Trainer(socket) as trainer:
            for weights in (mixed, whole.named_parameters()):
                try:
                    trainer.register(weights, rename=wsync.names.unwrapped, copy="if_needed")
                except wsync.MemoryNotShareable as error:
                    with open(f"{folder}/refused", "a") as file:
                        print(*error.names, error.next_step, file=file)
            trainer.register(whole, rename=wsync.names.unwrapped, copy="if_needed")
            trainer.publish(1).committed()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    processes.spawn(run, args=tuple(sys.argv[1:]), nprocs=2)
"""


@pytest.mark.timeout(300)
def test_what_fsdp_keeps_whole_is_registered_as_it_lies(cluster: Cluster, tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(WHOLE_RANKS)
    socket = cluster.start_trainer(coordinator__min_replicas_wait_ms="10s")
    receiver = Receiver(cluster.start_rollout())
    command = [sys.executable, str(script), str(tmp_path), socket]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as ranks:
        got = dict(receiver.receive(timeout=120))
        output, _ = ranks.communicate(timeout=120)
    assert ranks.returncode == 0, output
    want = torch.load(tmp_path / "whole.pt")
    assert torch.equal(got["0.bias"], want["0.bias"]) and torch.equal(got["1.bias"], want["1.bias"])
    weight = dequantized(got["0.weight"], got["0.weight_scale_inv"], torch.float32)
    assert (weight - want["0.weight"].float()).abs().max() <= want["0.weight"].float().abs().max() / 16
    refused = (tmp_path / "refused").read_text().splitlines()
    assert refused[0].startswith("0.weight ") and refused[1].startswith("0.weight ") and "NO_SHARD" in refused[1]
    receiver.close()


@contextlib.contextmanager
def asked_to_the_end(names: tuple[str, ...] = ("a.weight", "b.bias")) -> Iterator[Iterator[tuple[str, torch.Tensor]]]:
    """A stream of gathered weights. The block fails the test where it left ranks alone that gather with it."""
    given: list[str] = []

    def stream() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in gathered(1, names):
            given.append(name)
            yield name, tensor

    yield stream()
    assert given == list(names), "the other ranks wait for this one"


def test_a_stream_is_asked_to_its_end_whatever_fails(cluster: Cluster) -> None:
    absent = Sender(cluster.socket("trainer"), timeout=0.2)
    with asked_to_the_end() as weights, pytest.raises(wsync.AgentUnavailable):
        absent.send(weights)
    absent.close()
    cluster.start_trainer(coordinator__min_replicas_wait_ms="10s")
    sender = Sender(cluster.socket("trainer"))
    first = sender.send(gathered(1))  # waits for a replica, which does not come
    with asked_to_the_end() as weights, pytest.raises(wsync.PublishInProgress):
        sender.send(weights)
    trainer = sender.trainer
    for wrong in ({"version": "two"}, {"version": 0}):
        with asked_to_the_end() as weights, pytest.raises((TypeError, ValueError), match="version"):
            trainer.publish(weights=weights, **wrong)
    with asked_to_the_end() as weights, pytest.raises(ValueError, match="copy"):
        trainer.register(weights, copy="sometimes")
    sender.close()
    with asked_to_the_end() as weights, pytest.raises(wsync.ClientClosed):
        sender.send(weights)
    with pytest.raises(wsync.WsyncError):
        first.committed()


def test_a_wrong_tensor_in_the_middle_of_a_stream_is_told_after_the_rest(cluster: Cluster) -> None:
    sender = Sender(cluster.start_trainer())
    freed = torch.ones(4)
    freed.untyped_storage().resize_(0)
    cut = torch.ones(64)
    cut.untyped_storage().resize_(16)
    for wrong, error, text in (
        (("x.weight", freed), wsync.MemoryNotShareable, "'x.weight': its memory was freed"),
        (("x.weight", cut), wsync.MemoryNotShareable, "cut to 16 bytes, of which it needs 256"),
        (("x.weight", [1.0]), TypeError, "list"),
        ("x.weight", TypeError, "pairs"),
    ):
        rest = iter([("a.weight", torch.ones(2)), wrong, ("b.bias", torch.ones(2)), wrong])
        with pytest.raises(error, match=text):
            sender.send(rest)  # type: ignore[arg-type]
        assert next(rest, None) is None
    assert sender.trainer.registration is None
    sender.close()


def test_the_first_send_makes_one_copy(cluster: Cluster) -> None:
    sender = Sender(cluster.start_trainer(coordinator__min_replicas_wait_ms="10s"))
    sizes = [(3, 5), (1 << 10,), (700, 512), (1 << 16,), *[(100, 300)] * 60, (2048, 1024)]
    weights = {f"{i}.bias": torch.full(size, float(i)) for i, size in enumerate(sizes)}
    registered = sender.trainer.register
    lay: dict[str, int] = {}

    def register(tensors: dict[str, torch.Tensor], **options: bool) -> wsync.Registration:
        lay.update({name: tensor.data_ptr() for name, tensor in tensors.items()})
        return registered(tensors, **options)

    sender.trainer.register = register  # type: ignore[method-assign,assignment]
    held = shared_bytes()
    publication = sender.send(weights)
    assert {name: tensor.data_ptr() for name, tensor in sender._buffers.items()} == lay, "they were copied once more"
    for name, tensor in weights.items():
        assert torch.equal(sender._buffers[name], tensor)
    taken, size = shared_bytes() - held, sum(tensor.nbytes for tensor in weights.values())
    assert size <= taken <= size * 1.25
    sender.close()
    with pytest.raises(wsync.WsyncError):
        publication.committed()
    del publication
    eventually(lambda: shared_bytes() == held, "what was closed holds no memory")


def shared_bytes() -> int:
    return sum(path.stat().st_size for path in Path("/dev/shm").glob(f"wsync-{os.getpid()}-*"))
