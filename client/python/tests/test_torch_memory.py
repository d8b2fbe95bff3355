"""Where torch's tensors lie: moved, replaced, tied, views of others, left behind. Skipped where torch is not installed (pip install 'client/python[torch]')."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Literal

import pytest

torch = pytest.importorskip("torch")

from conftest import assert_helpful  # noqa: E402
from torch_models import HIDDEN, Net, carry, served_net  # noqa: E402

import wsync  # noqa: E402
from wsync.engines import torch_nn  # noqa: E402


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


def test_a_view_of_bytes_that_are_no_multiple_of_its_elements_is_copied(trainer: wsync.Trainer) -> None:
    codes = torch.arange(7, dtype=torch.uint8)
    odd = codes[:6].view(torch.int16)[::2]
    want = odd.clone()
    assert trainer.register({"x.codes": codes, "x.odd": odd}, copy="if_needed").copied == ("x.odd",)
    assert torch.equal(odd, want)
    codes.fill_(1)
    assert (odd == 0x0101).all(), "it would be copied from memory that nobody writes any more"


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
