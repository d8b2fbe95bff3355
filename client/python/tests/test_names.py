"""What a module's tensors are called in its checkpoint, where they lie, and what is refused: without agents where that does."""

from __future__ import annotations

import contextlib
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.0")

import families  # noqa: E402
from conftest import assert_helpful  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

import wsync  # noqa: E402
from wsync.weights import Tie, Weight, collect, lend  # noqa: E402

transformers.logging.disable_progress_bar()

EXPERT = "model.layers.0.mlp.experts.1.up_proj.weight"


def registered(module: Any, **options: Any) -> dict[str, Weight]:
    """What `register` would send, ready to be lent."""
    weights, ties = sent(module, **options)
    return {weight.name: weight for weight in weights}


def sent(module: Any, copy: Any = "never", adapters: Any = "merged", rename: Any = None) -> tuple[list[Weight], list[Tie]]:
    weights, ties = collect(module, rename, "first", adapters)
    lend(weights, ties, copy, None, contextlib.ExitStack())
    return weights, ties


@pytest.mark.parametrize("wrap", ["bare", "compiled", "ddp", "child"])
def test_a_model_is_known_by_its_checkpoints_names_wherever_it_lies(wrap: str) -> None:
    model = families.build("mixtral")
    wanted = set(registered(families.build("mixtral")))
    if wrap == "compiled":
        module: Any = torch.compile(model)
        model.model.layers[0] = torch.compile(model.model.layers[0])
    elif wrap == "ddp":  # its own wants process groups
        module = torch.nn.Module()
        module.module = model
    else:
        module = model
    if wrap == "child":  # a model with a head of its own for values, say
        module = torch.nn.Module()
        module.pretrained, module.value = model, torch.nn.Linear(8, 1)
        wanted = {f"pretrained.{name}" for name in wanted} | {"value.weight", "value.bias"}
    names = set(registered(module))
    assert names == wanted and any("block_sparse_moe.experts.3.w2" in name for name in names)


def test_experts_are_lent_as_parts_of_their_stack_and_only_once() -> None:
    model = families.build("qwen3_moe")
    stack = model.model.layers[0].mlp.experts.gate_up_proj
    weights = registered(model)
    up = weights[EXPERT]
    assert up.home is stack and not up.copied and up.view.contiguous
    assert up.view.address == stack[1, 128:].data_ptr()
    with torch.no_grad():
        stack[1, 128:] = 3.0
    assert bool((up.lent == 3.0).all()) and up.lent._version == stack._version > 0
    handles = wsync.memory.Handles()
    places = {handles.locate(weight.name, weight.view)[0] for weight in weights.values()}
    assert places == {0}, "one shared memory for all"


def test_parts_are_read_from_where_their_stack_lies_when_it_is_copied() -> None:
    model = families.build("qwen3_moe")
    stack = model.model.layers[0].mlp.experts.gate_up_proj
    up = registered(model, copy="always")[EXPERT]
    stack.data = torch.full_like(stack, 5.0)
    wsync.weights.refresh([up])
    assert bool((up.lent == 5.0).all())
    stack.data = torch.zeros(2, 2, dtype=stack.dtype)
    with pytest.raises(wsync.CatalogMismatch) as error:
        wsync.weights.refresh([up])
    assert_helpful(error, EXPERT)


def test_copies_are_filled_from_a_model_by_its_checkpoints_names(pair: tuple[wsync.Trainer, wsync.Rollout]) -> None:
    trainer, rollout = pair
    trainer.register(families.build("qwen3_moe", seed=1), copy="always", modules_to_not_convert=["model", "lm_head"])
    engine, other = (families.build("qwen3_moe", seed) for seed in (2, 3))
    wsync.engines.transformers.attach(rollout, engine)
    trainer.publish(1, weights=other)
    assert next(rollout.updates(timeout=30)).apply().applied
    assert all(torch.equal(tensor, other.get_parameter(name)) for name, tensor in engine.named_parameters())


def test_a_stack_that_moved_or_was_replaced_is_found_before_a_byte_is_read(
    pair: tuple[wsync.Trainer, wsync.Rollout],
) -> None:
    trainer, _ = pair
    model = families.build("qwen3_moe")
    experts = model.model.layers[0].mlp.experts
    trainer.register(model)
    experts.gate_up_proj.data = experts.gate_up_proj.data.clone()
    with pytest.raises(wsync.WeightsMoved) as error:
        trainer.publish(1)
    assert all("layers.0.mlp.experts." in name and "down" not in name for name in error.value.names)
    trainer.register(model, replace=True)
    experts.down_proj = torch.nn.Parameter(experts.down_proj.detach().clone())
    with pytest.raises(wsync.WeightsMoved, match="other tensors") as error:
        trainer.publish(1)
    assert all("layers.0.mlp.experts." in name and "down_proj" in name for name in error.value.names)


def test_an_engine_whose_stack_moved_is_told_before_a_byte_is_written(pair: tuple[wsync.Trainer, wsync.Rollout]) -> None:
    trainer, rollout = pair
    trainer.register(plain_pairs(families.build("qwen3_moe", seed=1)), modules_to_not_convert=["model", "lm_head"])
    engine = families.build("qwen3_moe", seed=2)
    wsync.engines.transformers.attach(rollout, engine)
    engine.model.layers[1].mlp.experts.gate_up_proj.data = torch.zeros_like(engine.model.layers[1].mlp.experts.gate_up_proj)
    trainer.publish(1)
    with pytest.raises(wsync.DestinationsMoved):
        next(rollout.updates(timeout=30)).apply()


def plain_pairs(model: Any) -> list[tuple[str, Any]]:
    """Every weight as a tensor of its own, under the checkpoint's names."""
    return [(name, weight.lent.detach().clone()) for name, weight in registered(model).items()]


def test_a_model_that_was_loaded_is_sent_as_it_was_stored(tmp_path: Path) -> None:
    families.save("mixtral", tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    files = load_file(tmp_path / "model.safetensors")
    weights = registered(loaded)
    assert weights.keys() == files.keys() and all(torch.equal(weights[name].lent, files[name]) for name in files)


def test_what_transformers_would_have_to_compute_is_refused_by_name_or_left_out() -> None:
    from transformers.core_model_loading import Interleave, Transpose, WeightConverter

    model = families.build("qwen3_moe")
    model._weight_conversions = [
        WeightConverter("mlp.experts.gate_up_proj", "mlp.experts.gate_up_proj", operations=[Interleave(dim=1)]),
        WeightConverter("mlp.experts.down_proj_t", "mlp.experts.down_proj", operations=[Transpose(1, 2)]),
    ]
    name = "model.layers.0.mlp.experts.gate_up_proj"
    with pytest.raises(wsync.CatalogMismatch, match="computes") as error:
        registered(model)
    assert_helpful(error, name)

    def rename(name: str) -> str | None:
        return None if name.endswith("gate_up_proj") else name

    with pytest.raises(wsync.MemoryNotShareable, match="scattered") as scattered:
        registered(model, rename=rename)
    assert "if_needed" in scattered.value.next_step
    weight = registered(model, rename=rename, copy="if_needed")["model.layers.0.mlp.experts.down_proj_t"]
    assert torch.equal(weight.lent, model.model.layers[0].mlp.experts.down_proj.transpose(1, 2))


def test_a_conversion_that_fails_is_told_and_nothing_is_guessed() -> None:
    from transformers.core_model_loading import Chunk, WeightConverter

    model = families.build("qwen3_moe")
    wrong = WeightConverter(["mlp.a.weight", "mlp.b.weight"], "mlp.experts.down_proj", operations=[Chunk(dim=9)])
    model._weight_conversions = [wrong]
    with pytest.raises(wsync.CatalogMismatch, match="Qwen3Moe") as error:
        registered(model)
    assert_helpful(error)


# ---- PEFT


def lora(model: Any, **options: Any) -> Any:
    peft = pytest.importorskip("peft")
    options = {"r": 4, "target_modules": ["q_proj", "down_proj"], **options}
    adapted = peft.get_peft_model(model, peft.LoraConfig(**options))
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return adapted


def test_merged_adapters_are_sent_within_the_base_models_weights() -> None:
    before = {name: weight.lent.clone() for name, weight in registered(families.build("qwen3")).items()}
    adapted = lora(families.build("qwen3"), modules_to_save=["lm_head"])
    adapted.merge_adapter()
    weights = registered(adapted)
    assert weights.keys() == before.keys()
    changed = {name for name, weight in weights.items() if not torch.equal(weight.lent, before[name])}
    assert changed == {name for name in before if "q_proj" in name or "down_proj" in name or "lm_head" in name}
    merged = dict(adapted.merge_and_unload().named_parameters())
    assert all(torch.equal(weight.lent, merged[name]) for name, weight in weights.items())


def test_a_version_without_its_adapters_is_refused_by_name(trainer: wsync.Trainer) -> None:
    adapted = lora(families.build("qwen3"))
    trainer.register(adapted)
    with pytest.raises(wsync.UnmergedAdapters) as error:
        trainer.publish(1)
    assert_helpful(error, "base_model.model.model.layers.0.self_attn.q_proj")
    adapted.merge_adapter()
    trainer.publish(1)
    adapted.unmerge_adapter()
    with pytest.raises(wsync.UnmergedAdapters):
        trainer.publish(2)
    with adapted.disable_adapter():  # then the base is what the model computes
        trainer.publish(2)
    trainer.register(adapted, adapters="base", replace=True)
    trainer.publish(3)


def test_an_adapter_that_no_weight_can_hold_is_refused_by_name(trainer: wsync.Trainer) -> None:
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    adapted = peft.get_peft_model(families.build("qwen3"), config)
    assert trainer.register(adapted).tensors == len(registered(families.build("qwen3")))
    with pytest.raises(wsync.UnmergedAdapters):
        trainer.publish(1)


def test_pairs_of_a_model_with_adapters_are_refused_unless_said_to_be_its_base() -> None:
    adapted = lora(families.build("qwen3"))
    with pytest.raises(wsync.CatalogMismatch, match="pairs do not tell") as error:
        registered(adapted.named_parameters(), rename=wsync.names.unwrapped)
    assert any("q_proj.base_layer" in name for name in error.value.names)
    assert "model.norm.weight" in registered(adapted.named_parameters(), rename=wsync.names.unwrapped, adapters="base")


@pytest.mark.parametrize("wrapped", [True, False])
def test_adapters_alone_are_named_as_their_own_files(wrapped: bool, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = families.build("qwen3")
    if wrapped:
        model = lora(model)
    else:
        if tuple(map(int, peft.__version__.split(".")[:2])) < (0, 22):
            pytest.skip(f"transformers adds adapters by itself with peft 0.22, this is {peft.__version__}")
        model.add_adapter(peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    model.save_pretrained(tmp_path)
    files = load_file(tmp_path / "adapter_model.safetensors")
    weights = registered(model, adapters="only")
    assert weights.keys() == files.keys() and all(torch.equal(weights[name].lent, files[name]) for name in files)
    with pytest.raises(ValueError, match="one active adapter"):
        registered(families.build("qwen3"), adapters="only")


def test_experts_with_adapters_are_known_by_their_names() -> None:
    adapted = lora(families.build("qwen3_moe"), target_modules=["q_proj"], target_parameters=["mlp.experts.down_proj"])
    adapted.merge_adapter()
    assert registered(adapted).keys() == registered(families.build("qwen3_moe")).keys()


@pytest.mark.parametrize("given, name", [
    ("module.base_model.model.model.norm.weight", "model.norm.weight"),
    ("base_model.model._orig_mod.a.base_layer.base_layer.weight", "a.weight"),
    ("model.base_model.model.x", "model.base_model.model.x"),
    ("my_base_layer.weight", "my_base_layer.weight"),
])  # fmt: skip
def test_names_lose_what_frameworks_put_in(given: str, name: str) -> None:
    assert wsync.names.unwrapped(given) == name


# ---- parts of weights, and what stands for them


def marked(parameter: Any, **attributes: Any) -> Any:
    for name, value in attributes.items():
        setattr(parameter, name, value)
    return parameter


def zero3(available: bool) -> Any:
    status = SimpleNamespace(name="AVAILABLE" if available else "NOT_AVAILABLE")
    tensor = torch.nn.Parameter(torch.ones(4, 4) if available else torch.empty(0))
    return marked(tensor, ds_id=0, ds_status=status, ds_shape=torch.Size([4, 4]), ds_numel=16)


def megatrons(ranks: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    state: Any = types.ModuleType("megatron.core.parallel_state")
    state.model_parallel_is_initialized = lambda: True
    state.get_tensor_model_parallel_world_size = lambda: ranks
    monkeypatch.setitem(sys.modules, "megatron.core.parallel_state", state)
    return marked(torch.nn.Parameter(torch.ones(4, 4)), tensor_model_parallel=True, partition_dim=0, partition_stride=1)


class Wrapping(torch.Tensor):
    """As quantized tensors of torchao and Transformer Engine are: codes and scales in one that has no memory."""

    @staticmethod
    def __new__(cls, codes: Any) -> Any:
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.bfloat16)

    def __init__(self, codes: Any) -> None:
        self.codes = codes

    def __tensor_flatten__(self) -> Any:
        return ["codes"], None

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].codes)
        raise NotImplementedError(f"{func}")


def fake() -> Any:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return torch.empty(4, 4)


PARTS = {
    "zero3": (lambda: zero3(available=False), "ZeRO-3", "GatheredParameters"),
    "zero3_gathered": (lambda: zero3(available=True), "ZeRO-3", "Sender"),
    "bitsandbytes_4": (
        lambda: marked(torch.nn.Parameter(torch.ones(8, 1, dtype=torch.uint8), False), quant_state=object()),
        "bitsandbytes", "merge_and_unload",
    ),
    "bitsandbytes_8": (
        lambda: marked(torch.nn.Parameter(torch.ones(4, 4, dtype=torch.int8), False), CB=object(), SCB=object()),
        "bitsandbytes", "dequantize",
    ),
    "wrapping": (lambda: Wrapping(torch.ones(4, 4, dtype=torch.int8)), "Wrapping", "dequantized"),
    "fake": (fake, "x.weight", ""),
    "sparse": (lambda: torch.ones(4, 4).to_sparse(), "layout", "dense"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged), "x.weight", ""),
    "lazy": (lambda: torch.nn.parameter.UninitializedParameter(), "no shape", "lazy"),
    "negated": (lambda: torch._neg_view(torch.ones(4, 4)), "sign", "resolve_neg"),
    "meta": (lambda: torch.empty(4, 4, device="meta"), "meta", "to_empty"),
}  # fmt: skip


@pytest.mark.parametrize("kind", PARTS)
def test_what_is_a_part_of_a_weight_or_stands_for_one_is_refused_by_name(kind: str) -> None:
    make, what, step = PARTS[kind]
    tensor = make()
    with pytest.raises(wsync.MemoryNotShareable, match=what) as error:
        sent([("x.weight", tensor)])
    assert error.value.names == ("x.weight",) and step in error.value.next_step and error.value.next_step


def test_megatrons_part_is_refused_where_there_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(wsync.MemoryNotShareable, match="2 tensor-parallel ranks") as error:
        sent([("x.weight", megatrons(2, monkeypatch))])
    assert_helpful(error, "x.weight")
    sent([("x.weight", megatrons(1, monkeypatch))])
    whole = marked(torch.nn.Parameter(torch.ones(4)), tensor_model_parallel=False, partition_dim=-1)
    megatrons(2, monkeypatch)
    sent([("norm.weight", whole)])


def test_parts_are_refused_by_a_sender_too_and_gathered_weights_taken(trainer: wsync.Trainer) -> None:
    from wsync.streams import Sender

    trainer.close()
    sender = Sender(trainer._connection.socket)
    try:
        with pytest.raises(wsync.MemoryNotShareable, match="ZeRO-3"):
            sender.send([("x.weight", zero3(available=False))])
        sender.send([("x.weight", zero3(available=True))])
    finally:
        sender.close()


def test_models_with_parts_of_weights_are_refused_by_the_weights_name() -> None:
    model = families.build("qwen3_moe")
    experts = model.model.layers[0].mlp.experts
    experts.gate_up_proj = zero3(available=False)
    with pytest.raises(wsync.MemoryNotShareable, match="ZeRO-3") as error:
        registered(model)
    assert any("layers.0.mlp.experts" in name for name in error.value.names)


def test_arrays_of_another_byte_order_are_refused_by_name() -> None:
    import numpy as np

    with pytest.raises(TypeError, match="x.weight.*order"):
        sent({"x.weight": np.ones((4, 4), ">f4")})
