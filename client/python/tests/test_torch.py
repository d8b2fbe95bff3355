"""torch modules on both ends, on the CPU. Skipped where torch is not installed (pip install 'client/python[torch]')."""

from __future__ import annotations

import os
from typing import Literal

import pytest

torch = pytest.importorskip("torch")
from conftest import Cluster, assert_helpful  # noqa: E402
from torch.testing._internal.two_tensor import TwoTensor  # noqa: E402
from torch_models import HIDDEN, Fp8Linear, Net, carry, served_net  # noqa: E402

import wsync  # noqa: E402
from wsync.engines import torch_nn  # noqa: E402
from wsync.engines.live import dequantized  # noqa: E402
from wsync.engines.vllm import refresh_mla  # noqa: E402
from wsync.streams import Sender  # noqa: E402


def test_a_module_trains_in_shared_memory_and_another_serves_it(pair: tuple[wsync.Trainer, wsync.Rollout]) -> None:
    trainer, rollout = pair
    net, engine = Net(), served_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    parameters = list(net.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    registration = trainer.register(net)
    assert registration.tensors == 6 and registration.copied == ()  # the tied head is the embedding
    assert list(net.parameters()) == parameters and net.lm_head.weight is net.embed_tokens.weight
    assert all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
    attached = torch_nn.attach(rollout, engine)
    assert attached.bytes_per_version == registration.payload_bytes
    tokens = torch.arange(64)
    for version in (1, 2, 3):
        loss = torch.nn.functional.cross_entropy(net(tokens).float(), tokens.roll(1))
        loss.backward()
        optimizer.step()  # writes where the agent reads
        optimizer.zero_grad()
        assert carry(trainer, rollout, version).applied
        with torch.no_grad():
            trained, served = net(tokens).float(), engine(tokens).float()
        assert (trained - served).abs().max() < 0.1 * trained.abs().max()
        assert torch.equal(engine.norm.weight, net.norm.weight)
        assert torch.equal(engine.embed_tokens.weight, net.embed_tokens.weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_floating_dtype_is_quantized_alike(pair: tuple[wsync.Trainer, wsync.Rollout], dtype: torch.dtype) -> None:
    trainer, rollout = pair
    net, engine = Net(dtype), served_net()
    registration = trainer.register(net, cast=lambda name, _: None if "proj.weight" in name else torch.bfloat16)
    assert registration.quantized_tensors == 2
    assert (len(registration.copied) == 4) == (dtype != torch.bfloat16)
    torch_nn.attach(rollout, engine)
    assert carry(trainer, rollout, 1).applied
    want = net.up_proj.weight.detach().float()
    got = dequantized(engine.up_proj.weight, engine.up_proj.weight_scale_inv, torch.float32)
    assert (got - want).abs().max() <= want.abs().max() / 16
    with torch.no_grad():
        net.norm.bias.fill_(3)
    assert carry(trainer, rollout, 2).applied
    assert (engine.norm.bias == 3).all()


def test_non_contiguous_parameters_are_refused_or_copied_as_asked(pair: tuple[wsync.Trainer, wsync.Rollout]) -> None:
    trainer, rollout = pair
    weight = torch.randn(256, HIDDEN).t()
    with pytest.raises(wsync.MemoryNotShareable, match="not contiguous"):
        trainer.register({"x.weight": weight})
    part = torch.randn(2 * HIDDEN, HIDDEN)[:HIDDEN]  # contiguous, of a larger storage
    with pytest.raises(wsync.MemoryNotShareable, match="shares its storage"):
        trainer.register({"x.weight": part})
    assert trainer.register({"x.weight": weight, "y.weight": part}, copy="if_needed").copied == ("x.weight", "y.weight")
    assert trainer.register(Net(), copy="always", replace=True).copied[0] == "embed_tokens.weight"


def test_tensors_that_cannot_be_sent_are_named(trainer: wsync.Trainer, rollout: wsync.Rollout) -> None:
    with pytest.raises(wsync.MemoryNotShareable, match="'x.weight'") as error:
        trainer.register({"x.weight": torch.eye(128).to_sparse()})
    assert_helpful(error, "x.weight")
    freed = torch.zeros(4, 4)
    freed.untyped_storage().resize_(0)
    for absent, why in (
        (torch.nn.LazyLinear(3).weight, "no shape yet"),
        (torch.nn.Parameter(TwoTensor(torch.zeros(4, 4), torch.zeros(4, 4))), "TwoTensor wraps"),
        (freed, "freed"),
    ):
        for copy in ("never", "if_needed", "always"):
            with pytest.raises(wsync.MemoryNotShareable, match=f"'x.weight'.*{why}") as error:
                trainer.register({"x.weight": absent}, copy=copy)
            assert_helpful(error, "x.weight")
    for wrong in (torch.zeros(3, dtype=torch.complex128), [1, 2]):
        with pytest.raises(TypeError, match="'x.bias'"):
            trainer.register({"x.bias": wrong})
    for cast in (torch.complex128, "bfloat16", 3):
        with pytest.raises(TypeError, match="'x.bias'"):
            trainer.register({"x.bias": torch.zeros(3)}, cast=lambda name, tensor, dtype=cast: dtype)
    with pytest.raises(TypeError, match="'x.bias'.*same library"):
        trainer.register({"x.bias": torch.zeros(3).numpy()}, cast=lambda name, array: torch.bfloat16)
    with pytest.raises(TypeError, match="named_parameters"):
        trainer.register(Net().parameters())
    trainer.register({"x.bias": torch.zeros(3)}, copy="always")
    for given in ([1, 2, 3], torch.zeros(4), None):
        with pytest.raises((TypeError, wsync.CatalogMismatch), match="'x.bias'"):
            trainer.publish(1, weights={"x.bias": given})
    trainer.register({"x.bias": torch.zeros(3).numpy()}, copy="always", cast=lambda _, array: array.dtype, replace=True)
    with pytest.raises(TypeError, match="'x.bias'"):
        trainer.publish(1, weights={"x.bias": torch.zeros(3, dtype=torch.bfloat16)})
    with pytest.raises(TypeError, match="'x.bias'"):
        rollout.attach({"x.bias": [1, 2, 3]})


def test_weights_on_the_meta_device_are_said_to_have_no_memory(trainer: wsync.Trainer) -> None:
    copies: tuple[Literal["never", "if_needed", "always"], ...] = ("never", "if_needed", "always")
    for copy in copies:
        with pytest.raises(wsync.MemoryNotShareable, match="'x.weight' has no memory.*meta") as error:
            trainer.register({"x.weight": torch.empty(4, 4, device="meta")}, copy=copy)
        assert_helpful(error, "x.weight")
    trainer.register({"x.weight": torch.zeros(4, 4)}, copy="always")
    with pytest.raises(wsync.MemoryNotShareable, match="'x.weight' has no memory"):
        trainer.publish(1, weights={"x.weight": torch.empty(4, 4, device="meta")})


def test_what_was_copied_may_change_once_publish_returned(pair: tuple[wsync.Trainer, wsync.Rollout]) -> None:
    trainer, rollout = pair
    net, engine = Net(), served_net()
    trainer.register(net, copy="always")
    torch_nn.attach(rollout, engine)
    want = net.norm.weight.detach().clone()
    sync = trainer.publish(1)
    with torch.no_grad():
        net.norm.weight.fill_(9)
    next(rollout.updates(timeout=30)).apply()
    assert sync.committed().applied and torch.equal(engine.norm.weight, want)


def test_a_module_without_room_for_an_output_is_told_which(pair: tuple[wsync.Trainer, wsync.Rollout]) -> None:
    trainer, rollout = pair
    trainer.register(Net())
    with pytest.raises(wsync.CatalogMismatch) as error:
        torch_nn.attach(rollout, Net())  # BF16 linears: no place for scales, and FP8 does not fit
    assert {"up_proj.weight_scale_inv", "down_proj.weight_scale_inv"} <= set(error.value.names)
    engine = served_net()
    engine.extra = torch.nn.Parameter(torch.zeros(3), requires_grad=False)
    with pytest.raises(wsync.CatalogMismatch, match="'extra': no output goes there"):
        torch_nn.attach(rollout, engine)


def test_a_module_without_memory_is_materialized_when_the_plan_is_known(pair: tuple[wsync.Trainer, wsync.Rollout]) -> None:
    trainer, rollout = pair
    net = Net()
    trainer.register(net)
    with torch.device("meta"):
        engine = served_net()
    with pytest.raises(wsync.MemoryNotShareable, match="meta device") as error:
        torch_nn.attach(rollout, engine)
    assert "allocate" in error.value.next_step
    asked: list[str] = []

    def allocate(name: str, meta: torch.Tensor) -> torch.Tensor:
        asked.append(name)
        return torch.empty_like(meta, device="cpu")

    torch_nn.attach(rollout, engine, allocate=allocate)
    assert sorted(asked) == sorted(name for name, _ in engine.named_parameters())
    assert engine.lm_head.weight is engine.embed_tokens.weight
    assert carry(trainer, rollout, 1).applied
    assert isinstance(engine.up_proj.weight, torch.nn.Parameter) and not engine.up_proj.weight.requires_grad
    with torch.no_grad():
        tokens = torch.arange(64)
        trained, served = net(tokens).float(), engine(tokens).float()
    assert (trained - served).abs().max() < 0.1 * trained.abs().max()


class Rotary(torch.nn.Module):
    """What models compute themselves and checkpoints do not have, beside what they have."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(8, dtype=torch.bfloat16), requires_grad=False)
        self.register_buffer("inv_freq", torch.arange(4.0), persistent=False)
        self.register_buffer("nothing", None)
        self.register_buffer("table", torch.zeros(4))


@pytest.mark.parametrize("meta", [False, True])
def test_buffers_that_checkpoints_do_not_have_stay_as_they_are(
    pair: tuple[wsync.Trainer, wsync.Rollout], meta: bool
) -> None:
    trainer, rollout = pair
    net = Rotary()
    net.weight.fill_(2)
    net.table.fill_(3)
    with torch.device("meta" if meta else "cpu"):
        engine = Rotary()
    assert trainer.register(net).tensors == 2
    asked: list[str] = []

    def allocate(name: str, tensor: torch.Tensor) -> torch.Tensor:
        asked.append(name)
        return torch.empty_like(tensor, device="cpu")

    torch_nn.attach(rollout, engine, allocate=allocate if meta else None)
    assert asked == (["weight", "table"] if meta else [])
    assert engine.inv_freq.is_meta == meta and (meta or torch.equal(engine.inv_freq, torch.arange(4.0)))
    assert carry(trainer, rollout, 1).applied
    assert (engine.weight == 2).all() and (engine.table == 3).all()


def test_what_no_output_fills_needs_no_memory(pair: tuple[wsync.Trainer, wsync.Rollout]) -> None:
    trainer, rollout = pair
    trainer.register({"weight": torch.full((8,), 2, dtype=torch.bfloat16)})  # parameters only, as of named_parameters()
    engine = Rotary()
    engine.table = engine.table.to("meta")
    with pytest.raises(wsync.CatalogMismatch, match="'table': no output goes there"):
        torch_nn.attach(rollout, engine)
    torch_nn.attach(rollout, engine, allow_partial=True)
    assert engine.table.is_meta
    assert carry(trainer, rollout, 1).applied and (engine.weight == 2).all()


def test_sharded_dtensors_are_refused_and_replicated_ones_taken(trainer: wsync.Trainer, cluster: Cluster) -> None:
    from torch.distributed import destroy_process_group, init_process_group
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    init_process_group("gloo", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        sharded = distribute_tensor(torch.randn(128, 128), mesh, [Shard(0)])
        with pytest.raises(wsync.MemoryNotShareable, match="sharded DTensor") as error:
            trainer.register({"x.weight": sharded})
        assert_helpful(error, "x.weight")
        assert "'x.weight'" in str(error.value) and "full_tensor" in error.value.next_step
        trainer.register({"x.weight": torch.zeros(128, 128)}, copy="always")
        with pytest.raises(wsync.MemoryNotShareable, match="'x.weight'") as error:
            trainer.publish(1, weights={"x.weight": sharded})
        assert_helpful(error, "x.weight")
        with pytest.raises(wsync.MemoryNotShareable, match="'x.weight'"):
            Sender(cluster.socket("trainer")).send([("x.weight", sharded)])
        replicated = distribute_tensor(torch.randn(128, 128), mesh, [Replicate()])
        assert trainer.register({"x.weight": replicated}, copy="always", replace=True).quantized_tensors == 1
    finally:
        destroy_process_group()


def test_mla_tensors_follow_kv_b_proj() -> None:
    heads, nope, v, rank = 3, 128, 64, 256
    torch.manual_seed(1)

    class Attention(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kv_b_proj = Fp8Linear(heads * (nope + v), rank, False)
            self.qk_nope_head_dim, self.v_head_dim = nope, v
            self.W_UV = torch.zeros(heads, rank, v, dtype=torch.bfloat16)
            self.W_UK_T = torch.zeros(heads, nope, rank, dtype=torch.bfloat16)

    attention = Attention()
    codes = torch.randn(heads * (nope + v), rank)
    attention.kv_b_proj.weight.data = codes.to(torch.float8_e4m3fn)
    attention.kv_b_proj.weight_scale_inv.data = torch.rand(5, 2)
    pointers = attention.W_UV.data_ptr(), attention.W_UK_T.data_ptr()
    assert refresh_mla(attention) == 1
    assert (attention.W_UV.data_ptr(), attention.W_UK_T.data_ptr()) == pointers  # captured by CUDA graphs
    full = dequantized(attention.kv_b_proj.weight, attention.kv_b_proj.weight_scale_inv, torch.bfloat16)
    latent, query = torch.randn(rank).bfloat16().float(), torch.randn(heads, nope).bfloat16().float()
    up = (full.float() @ latent).view(heads, nope + v)
    absorbed = torch.einsum("hn,hnr,r->h", query, attention.W_UK_T.float(), latent)
    torch.testing.assert_close(absorbed, (query * up[:, :nope]).sum(-1), rtol=1e-3, atol=1e-3)
    values = torch.einsum("hrv,r->hv", attention.W_UV.float(), latent)
    torch.testing.assert_close(values, up[:, nope:], rtol=1e-3, atol=1e-3)
