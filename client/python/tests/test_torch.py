"""torch modules on both ends, on the CPU. Skipped where torch is not installed (pip install 'client/python[torch]')."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from typing import Literal

import pytest

torch = pytest.importorskip("torch")
from torch.testing._internal.two_tensor import TwoTensor  # noqa: E402

import wsync  # noqa: E402
from conftest import Cluster, assert_helpful  # noqa: E402
from wsync.engines import torch_nn  # noqa: E402
from wsync.engines.live import dequantized  # noqa: E402
from wsync.engines.vllm import refresh_mla  # noqa: E402
from wsync.streams import Sender  # noqa: E402

HIDDEN = 128


class Net(torch.nn.Module):
    """Embedding, two linear layers with a norm between, and an output head tied to the embedding."""

    def __init__(self, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.embed_tokens = torch.nn.Embedding(64, HIDDEN, dtype=dtype)
        self.up_proj = torch.nn.Linear(HIDDEN, 3 * HIDDEN, dtype=dtype)
        self.norm = torch.nn.LayerNorm(3 * HIDDEN, dtype=dtype)
        self.down_proj = torch.nn.Linear(3 * HIDDEN, HIDDEN, bias=False, dtype=dtype)
        self.lm_head = torch.nn.Linear(HIDDEN, 64, bias=False, dtype=dtype)
        self.lm_head.weight = self.embed_tokens.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed_tokens(tokens)
        return self.lm_head(x + self.down_proj(torch.relu(self.norm(self.up_proj(x)))))


class Fp8Linear(torch.nn.Module):
    """FP8 codes and block scales, as the checkpoint has them."""

    def __init__(self, rows: int, cols: int, bias: bool) -> None:
        super().__init__()
        codes = torch.zeros(rows, cols, dtype=torch.float8_e4m3fn)
        self.weight = torch.nn.Parameter(codes, requires_grad=False)
        self.weight_scale_inv = torch.nn.Parameter(torch.zeros(-(-rows // 128), -(-cols // 128)), requires_grad=False)
        self.bias = torch.nn.Parameter(torch.zeros(rows, dtype=torch.bfloat16), requires_grad=False) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, dequantized(self.weight, self.weight_scale_inv, x.dtype), self.bias)


def served_net() -> Net:
    net = Net()
    net.up_proj = Fp8Linear(3 * HIDDEN, HIDDEN, True)
    net.down_proj = Fp8Linear(HIDDEN, 3 * HIDDEN, False)
    return net.requires_grad_(False)


@pytest.fixture
def pair(trainer: wsync.Trainer, rollout: wsync.Rollout) -> Iterator[tuple[wsync.Trainer, wsync.Rollout]]:
    torch.manual_seed(0)
    yield trainer, rollout


def carry(trainer: wsync.Trainer, rollout: wsync.Rollout, version: int) -> wsync.VersionReport:
    sync = trainer.publish(version)
    assert next(rollout.updates(timeout=30)).apply().applied
    return sync.committed()


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


def test_parameters_that_moved_are_found_before_a_byte_is_read(pair: tuple[wsync.Trainer, wsync.Rollout]) -> None:
    trainer, rollout = pair
    net, engine = Net(), served_net()
    trainer.register(net)
    torch_nn.attach(rollout, engine)
    assert carry(trainer, rollout, 1).applied
    net.down_proj.weight.data = net.down_proj.weight.data.clone()
    with pytest.raises(wsync.WeightsMoved, match="down_proj.weight") as error:
        trainer.publish(2)
    assert error.value.names == ("down_proj.weight",)
    trainer.register(net, replace=True)
    assert carry(trainer, rollout, 2).applied
    engine.up_proj.weight.data = engine.up_proj.weight.data.clone()
    trainer.publish(3)
    with pytest.raises(wsync.DestinationsMoved) as moved:
        next(rollout.updates(timeout=30)).apply()
    assert moved.value.names == ("up_proj.weight",)


def replace_a_parameter(net: Net) -> None:
    net.down_proj.weight = torch.nn.Parameter(torch.zeros_like(net.down_proj.weight))


def replace_a_module(net: Net) -> None:
    net.down_proj = torch.nn.Linear(3 * HIDDEN, HIDDEN, bias=False, dtype=torch.bfloat16)


def delete_a_parameter(net: Net) -> None:
    del net.down_proj.weight


@pytest.mark.parametrize("copy", ["never", "always"])
@pytest.mark.parametrize("change", [replace_a_parameter, replace_a_module, delete_a_parameter])
def test_parameters_that_were_replaced_are_not_published_as_they_were(
    trainer: wsync.Trainer, change: Callable[[Net], None], copy: Literal["never", "always"]
) -> None:
    net = Net()
    trainer.register(net, copy=copy, rename=lambda name: f"model.{name}")
    change(net)
    with pytest.raises(wsync.WeightsMoved, match="the module has other tensors now") as error:
        trainer.publish(1)
    assert error.value.names == ("model.down_proj.weight",)
    if copy == "always" and change is not delete_a_parameter:  # what is given need not come from the module
        trainer.publish(1, weights=[(f"model.{name}", tensor) for name, tensor in net.named_parameters()])


class EqualToItsKind(torch.nn.Linear):
    """As a dataclass is."""

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self)

    __hash__ = torch.nn.Linear.__hash__


def test_what_replaces_its_equal_is_another_all_the_same(trainer: wsync.Trainer) -> None:
    net = Net()
    net.scale = torch.nn.Parameter(torch.ones(1))
    net.up_proj = EqualToItsKind(HIDDEN, 3 * HIDDEN, dtype=torch.bfloat16)
    trainer.register(net)
    trainer.publish(1)
    net.scale = torch.nn.Parameter(torch.ones(1))
    net.up_proj = EqualToItsKind(HIDDEN, 3 * HIDDEN, dtype=torch.bfloat16)
    with pytest.raises(wsync.WeightsMoved) as error:
        trainer.publish(2)
    assert set(error.value.names) == {"scale", "up_proj.weight", "up_proj.bias"}


def test_a_module_that_only_wsync_was_given_is_looked_at_as_well(trainer: wsync.Trainer) -> None:
    net = Net()
    trainer.register(torch.nn.ModuleDict({"actor": net}))
    gc.collect()
    replace_a_parameter(net)
    with pytest.raises(wsync.WeightsMoved) as error:
        trainer.publish(1)
    assert error.value.names == ("actor.down_proj.weight",)


def test_views_of_what_was_moved_are_found(pair: tuple[wsync.Trainer, wsync.Rollout]) -> None:
    trainer, rollout = pair
    trainer.register({"a.bias": torch.ones(64), "b.bias": torch.ones(64)})
    fused = torch.nn.Parameter(wsync.SharedBuffer(512).tensor(0, torch.float32, (128,)), requires_grad=False)
    rollout.attach({"a.bias": fused[:64], "b.bias": fused[64:]})
    assert carry(trainer, rollout, 1).applied and (fused == 1).all()
    fused.data = fused.data.clone()  # the views lie where they lay, and nobody reads them
    trainer.publish(2)
    with pytest.raises(wsync.DestinationsMoved) as error:
        next(rollout.updates(timeout=30)).apply()
    assert set(error.value.names) <= {"a.bias", "b.bias"} and error.value.names


def test_a_tie_that_was_cut_is_found(trainer: wsync.Trainer) -> None:
    net = Net()
    trainer.register(net)
    net.lm_head.weight = torch.nn.Parameter(net.lm_head.weight.detach().clone())
    with pytest.raises(wsync.WeightsMoved) as error:
        trainer.publish(1)
    assert error.value.names == ("embed_tokens.weight",)


def test_a_tie_of_modules_that_was_cut_is_found(trainer: wsync.Trainer) -> None:
    net = Net()
    net.up_again = net.up_proj
    assert trainer.register(net).tied.keys() == {"lm_head.weight", "up_again.weight", "up_again.bias"}
    net.up_again = torch.nn.Linear(HIDDEN, 3 * HIDDEN, dtype=torch.bfloat16)
    with pytest.raises(wsync.WeightsMoved) as error:
        trainer.publish(1)
    assert set(error.value.names) == {"up_proj.weight", "up_proj.bias"}


def test_every_name_of_a_tied_weight_can_be_sent(pair: tuple[wsync.Trainer, wsync.Rollout]) -> None:
    trainer, rollout = pair
    net, engine = Net(), served_net()
    engine.lm_head.weight = torch.nn.Parameter(torch.zeros_like(engine.lm_head.weight), requires_grad=False)
    once = trainer.register(net)
    assert once.tied == {"lm_head.weight": "embed_tokens.weight"}
    both = trainer.register(net, tied="all", replace=True)
    assert (both.tensors, both.tied) == (once.tensors + 1, {})
    torch_nn.attach(rollout, engine)
    assert carry(trainer, rollout, 1).applied
    for served in (engine.embed_tokens, engine.lm_head):
        assert torch.equal(served.weight, net.embed_tokens.weight)


@pytest.mark.parametrize("sent", ["embed_tokens.weight", "lm_head.weight"])
@pytest.mark.parametrize("meta", [False, True])
def test_an_engine_takes_its_tied_weight_under_either_name(
    pair: tuple[wsync.Trainer, wsync.Rollout], sent: str, meta: bool
) -> None:
    trainer, rollout = pair
    net = Net()
    with torch.device("meta" if meta else "cpu"):
        engine = served_net()
    trainer.register(net, rename=lambda name: name if name == sent or "proj" in name or "norm" in name else None)
    torch_nn.attach(rollout, engine, allocate=(lambda _, like: torch.empty_like(like, device="cpu")) if meta else None)
    assert engine.lm_head.weight is engine.embed_tokens.weight
    assert carry(trainer, rollout, 1).applied
    assert torch.equal(engine.lm_head.weight, net.lm_head.weight)


def test_an_engine_that_ties_refuses_both_names_unless_one_may_be_left(pair: tuple[wsync.Trainer, wsync.Rollout]) -> None:
    trainer, rollout = pair
    net, engine = Net(), served_net()
    trainer.register(net, tied="all")
    with pytest.raises(wsync.CatalogMismatch, match="one parameter") as error:
        torch_nn.attach(rollout, engine)
    assert_helpful(error, "embed_tokens.weight", "lm_head.weight")
    torch_nn.attach(rollout, engine, allow_partial=True)
    assert carry(trainer, rollout, 1).applied
    assert torch.equal(engine.lm_head.weight, net.lm_head.weight)


def test_weights_whose_other_tensor_would_be_left_behind_are_refused_or_copied(
    pair: tuple[wsync.Trainer, wsync.Rollout],
) -> None:
    trainer, rollout = pair
    net, engine = Net(), served_net()
    for detached in (net.state_dict(), {name: p.data for name, p in net.named_parameters()}):
        with pytest.raises(wsync.MemoryNotShareable, match="another tensor lies in the same memory") as error:
            trainer.register(detached)
        assert_helpful(error, "embed_tokens.weight")
    registration = trainer.register(detached, copy="if_needed")
    assert len(registration.copied) == registration.tensors
    torch_nn.attach(rollout, engine)
    with torch.no_grad():
        net.norm.weight.fill_(7)
    assert carry(trainer, rollout, 1).applied
    assert (engine.norm.weight == 7).all()


def test_what_a_view_is_a_view_of_goes_with_it_to_shared_memory(pair: tuple[wsync.Trainer, wsync.Rollout]) -> None:
    trainer, rollout = pair
    experts, served = torch.nn.Parameter(torch.zeros(4 * 64, 128)), torch.zeros(256, 128)
    trainer.register({"experts.bias": experts.view(4, 64, 128), "flat.bias": torch.ones(8).view(-1)})
    rollout.attach({"experts.bias": served.view(4, 64, 128), "flat.bias": torch.zeros(8)})
    with torch.no_grad():
        experts.fill_(3)
    assert carry(trainer, rollout, 1).applied
    assert (served == 3).all()


def test_an_engine_that_replaced_a_parameter_is_told_before_anything_is_written(
    pair: tuple[wsync.Trainer, wsync.Rollout],
) -> None:
    trainer, rollout = pair
    net, engine = Net(), served_net()
    trainer.register(net)
    torch_nn.attach(rollout, engine)
    assert carry(trainer, rollout, 1).applied
    engine.norm.weight = torch.nn.Parameter(torch.zeros_like(engine.norm.weight))
    trainer.publish(2)
    with pytest.raises(wsync.DestinationsMoved, match="holds other parameters") as error:
        next(rollout.updates(timeout=30)).apply()
    assert error.value.names == ("norm.weight",)
    torch_nn.attach(rollout, engine)
    assert next(rollout.updates(timeout=30)).apply().version == 2
    assert torch.equal(engine.norm.weight, net.norm.weight)


def test_an_engine_tied_through_its_memory_is_attached_as_one(pair: tuple[wsync.Trainer, wsync.Rollout]) -> None:
    trainer, rollout = pair
    net, engine = Net(), served_net()
    trainer.register(net)
    engine.lm_head.weight = torch.nn.Parameter(engine.embed_tokens.weight.data)
    torch_nn.attach(rollout, engine, allow_partial=True)
    assert carry(trainer, rollout, 1).applied
    assert torch.equal(engine.lm_head.weight, net.lm_head.weight)


def test_destinations_whose_other_tensor_would_be_left_behind_are_refused(
    pair: tuple[wsync.Trainer, wsync.Rollout],
) -> None:
    trainer, rollout = pair
    trainer.register(Net())
    engine = served_net()
    with pytest.raises(wsync.MemoryNotShareable, match="another tensor lies in the same memory"):
        rollout.attach({name: served for name, served in engine.state_dict().items() if name in rollout.plan().by_name})
    assert torch_nn.attach(rollout, engine).bytes_per_version > 0


def test_what_shares_a_weights_memory_goes_with_it_to_shared_memory(trainer: wsync.Trainer) -> None:
    net = Net()
    net.lm_head.weight = torch.nn.Parameter(net.embed_tokens.weight.data)  # tied, and a parameter of its own
    assert trainer.register(net).tied == {"lm_head.weight": "embed_tokens.weight"}
    assert net.lm_head.weight.data_ptr() == net.embed_tokens.weight.data_ptr()
    trainer.publish(1)
    net.lm_head.weight.data = net.lm_head.weight.data.clone()
    with pytest.raises(wsync.WeightsMoved) as error:
        trainer.publish(2)
    assert error.value.names == ("lm_head.weight",)


def test_copies_are_filled_from_a_module_with_ties(trainer: wsync.Trainer) -> None:
    net = Net()
    trainer.register(net, copy="always")
    trainer.publish(1, weights=net)
    assert torch.equal(trainer._copies[0].lent, net.embed_tokens.weight)


def test_names_that_are_made_one_are_one_weight(trainer: wsync.Trainer) -> None:
    registration = trainer.register(Net(), rename=lambda name: name.replace("lm_head", "embed_tokens"))
    assert registration.tensors == 6 and not registration.tied


def test_a_module_that_is_wrapped_or_extended_holds_what_was_registered(
    pair: tuple[wsync.Trainer, wsync.Rollout],
) -> None:
    trainer, rollout = pair
    net, engine = Net(), served_net()
    trainer.register(net, rename=lambda name: None if name.startswith("norm.") else name)
    torch_nn.attach(rollout, engine, allow_partial=True)
    net.up_proj = torch.nn.Sequential(net.up_proj)
    net.more = torch.nn.Linear(2, 2)
    net.norm.weight = torch.nn.Parameter(net.norm.weight.detach().clone())  # was left out
    for version in (1, 2):
        assert carry(trainer, rollout, version).applied
    net.up_proj[0].bias = torch.nn.Parameter(net.up_proj[0].bias.detach().clone())
    with pytest.raises(wsync.WeightsMoved) as error:
        trainer.publish(3)
    assert error.value.names == ("up_proj.bias",)


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
    for wrong in (torch.zeros(3, dtype=torch.complex64), [1, 2]):
        with pytest.raises(TypeError, match="'x.bias'"):
            trainer.register({"x.bias": wrong})
    for cast in (torch.complex64, "bfloat16", 3):
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


def test_a_view_of_bytes_that_are_no_multiple_of_its_elements_is_copied(trainer: wsync.Trainer) -> None:
    codes = torch.arange(7, dtype=torch.uint8)
    odd = codes[:6].view(torch.int16)[::2]
    want = odd.clone()
    assert trainer.register({"x.codes": codes, "x.odd": odd}, copy="if_needed").copied == ("x.odd",)
    assert torch.equal(odd, want)
    codes.fill_(1)
    assert (odd == 0x0101).all(), "it would be copied from memory that nobody writes any more"


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


def test_views_of_one_weight_in_another_shape_dtype_or_order_are_no_ties(pair: tuple[wsync.Trainer, wsync.Rollout]) -> None:
    trainer, rollout = pair
    weight = torch.randn(8, 4, dtype=torch.bfloat16)
    square = torch.randn(6, 6, dtype=torch.bfloat16)
    weights = {
        "a.bias": weight,
        "tied.bias": weight,
        "reshaped.bias": weight.view(4, 8),
        "flat.bias": weight.view(-1),
        "bits.bias": weight.view(torch.int32),
        "square.bias": square,
        "turned.bias": square.t(),  # the same shape, and other elements at the same place
    }
    before = {name: tensor.clone() for name, tensor in weights.items()}
    registration = trainer.register(weights, copy="if_needed")
    assert registration.tied == {"tied.bias": "a.bias"} and registration.copied == ("turned.bias",)
    for name, tensor in weights.items():  # moved to shared memory as one, each still seen in its own way
        assert tensor.shape == before[name].shape and torch.equal(tensor, before[name]), name
    weight.fill_(3)
    square.copy_(torch.arange(36).view(6, 6))
    assert (weights["flat.bias"] == 3).all() and (weights["reshaped.bias"] == 3).all()
    assert torch.equal(weights["turned.bias"], square.t()), "it would be copied from memory that nobody writes any more"
    engine = {name: torch.zeros_like(before[name]).contiguous() for name in weights if name != "tied.bias"}
    rollout.attach(engine)
    assert carry(trainer, rollout, 1).applied
    for name, tensor in engine.items():
        assert torch.equal(tensor, weights[name]), name


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
