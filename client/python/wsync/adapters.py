"""PEFT's adapters in a model that is registered: which tensors are the base model's, and whether these hold the adapters.

The base weights of a model with LoRA adapters are what was there before the training, unless the adapters are merged into
them (`merge_adapter()`). So "merged", the default, sends the base weights and has every publish look whether they are; "base"
sends them without looking, for engines that have adapters of their own; "only" sends the adapter alone, under the names that
PEFT's `save_pretrained` gives it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from typing import Any, Literal

from .errors import CatalogMismatch, UnmergedAdapters

Choice = Literal["merged", "base", "only"]


def check_pairs(names: list[str], choice: Choice) -> None:
    """CatalogMismatch for the pairs of a model with adapters: of these nobody can tell whether they are merged."""
    bases = [name for name in names if ".base_layer." in name]
    if bases and choice == "merged":
        raise CatalogMismatch(
            f"register: '{bases[0]}' and {len(bases) - 1} more are base weights of a PEFT model, without its adapters unless "
            "these are merged, which (name, tensor) pairs do not tell",
            names=bases,
            next_step="register the model itself, or say adapters='base' where the weights are to go without adapters",
        )


def names(module: Any, own: list[str], choice: Choice) -> dict[str, str]:
    """The module's names that are sent -> the same without what PEFT put around and into the base model.

    Without PEFT's layers in it, all of them as they are. ValueError for "only" where there is not one active adapter.
    """
    if choice == "only":
        return _adapter_names(module, own)
    rules: dict[str, str | None] = {}  # a module or tensor -> what it is called in the base model; None: it is not in it
    for path, layer in _layers(module):
        prefix = f"{path}." if path else ""
        rules.update({prefix + inner: target if target is None else path + target for inner, target in _rules(layer)})
    kept = {name: _renamed(name, rules) for name in own} if rules else dict(zip(own, own, strict=True))
    return {name: target for name, target in kept.items() if target is not None}


def _renamed(name: str, rules: dict[str, str | None]) -> str | None:
    parts = name.split(".")
    target = name
    for count in range(1, len(parts) + 1):
        path = ".".join(parts[:count])
        other = rules.get(path, path)
        if other is None:
            return None
        if other != path and target.startswith(path):
            target = (other + target[len(path) :]).removeprefix(".")
    return target


def _rules(layer: Any) -> Iterator[tuple[str, str | None]]:
    """What lies in the layer -> what is put behind the layer's own name in its place, None for what is no base weight."""
    children = [*layer._modules, *layer._parameters, *layer._buffers]
    if _is_peft_model(layer):
        yield from ((child, None) for child in children if child != "base_model")
        inner = layer.base_model
        if _is(inner, "peft.tuners.tuners_utils", "BaseTuner"):
            others = [*inner._modules, *inner._parameters, *inner._buffers]
            yield from ((f"base_model.{child}", None) for child in others if child != "model")
    elif _is(layer, "peft.tuners.tuners_utils", "BaseTunerLayer"):
        yield from ((child, None) for child in children if child != "base_layer")
    elif hasattr(layer, "modules_to_save"):
        active = next((one for one in layer.active_adapters if one in layer.modules_to_save), None)
        used = "original_module" if active is None or layer.disable_adapters else f"modules_to_save.{active}"
        others = ["original_module", *(f"modules_to_save.{one}" for one in layer.modules_to_save)]
        yield from ((other, "" if other == used else None) for other in others)
    else:  # TrainableTokensWrapper: its adapter is a layer of its own, around the embedding
        yield from (("original_module", None), ("token_adapter", ""))


def inside(module: Any) -> bool:
    """Whether PEFT put anything into the module, or around it."""
    return bool(_layers(module))


def _layers(module: Any) -> list[tuple[str, Any]]:
    if "peft" not in sys.modules:
        return []
    return [
        (path, layer)
        for path, layer in module.named_modules(remove_duplicate=False)
        if _is_peft_model(layer)
        or _is(layer, "peft.tuners.tuners_utils", "BaseTunerLayer")
        or _is(layer, "peft.utils.other", "AuxiliaryTrainingWrapper")
    ]


def _is_peft_model(layer: Any) -> bool:
    return _is(layer, "peft.peft_model", "PeftModel") or _is(layer, "peft.mixed_model", "PeftMixedModel")


def _is(layer: Any, module: str, kind: str) -> bool:
    found = sys.modules.get(module)
    return found is not None and isinstance(layer, getattr(found, kind, ()))


# ---- whether they are merged


class Merged:
    """The layers with adapters of one registered module, to be asked per version."""

    def __init__(self, module: Any, choice: Choice) -> None:
        self.choice = choice
        layers = _layers(module) if choice == "merged" and hasattr(module, "named_modules") else []
        self._layers = [(path, one) for path, one in layers if _is(one, "peft.tuners.tuners_utils", "BaseTunerLayer")]
        self._models = [(path, one) for path, one in layers if _is_peft_model(one)]

    def check(self, version: int) -> None:
        """UnmergedAdapters names the layers with an active adapter that is not in the base weights, or cannot be."""
        apart = [path for path, layer in self._layers if _apart(layer)]
        apart += [path or type(model).__name__ for path, model in self._models if _learns_prompts(model)]
        if apart:
            more = f" and {len(apart) - 1} more layers" if len(apart) > 1 else ""
            raise UnmergedAdapters(
                f"publish version {version}: adapters of '{apart[0]}'{more} are active and not merged: the version would be "
                "the base model",
                names=apart,
            )


def _apart(layer: Any) -> bool:
    if layer.disable_adapters:
        return False
    return bool(set(layer.active_adapters) & layer._get_available_adapters() - set(layer.merged_adapters))


def _learns_prompts(model: Any) -> bool:
    configs = getattr(model, "peft_config", {})
    active = getattr(model, "active_adapters", None) or [getattr(model, "active_adapter", "")]
    return any(getattr(configs.get(name), "is_prompt_learning", False) for name in active)


# ---- the adapter alone


def _adapter_names(module: Any, own: list[str]) -> dict[str, str]:
    """By PEFT's own choice of what belongs to an adapter, made on tokens in the tensors' place."""
    model = next((one for _, one in module.named_modules() if hasattr(one, "peft_config")), None)
    active = [] if model is None else list(_active(model))
    if model is None or len(active) != 1:
        raise ValueError(
            f"adapters='only': expected a model with one active adapter, found {', '.join(map(repr, active)) or 'none'}"
        )
    path = next(path for path, one in module.named_modules() if one is model)
    inside = f"{path}." if path else ""
    torch = sys.modules["torch"]
    tokens = {name.removeprefix(inside): torch.empty(0, device="meta") for name in own if name.startswith(inside)}
    saved = importlib.import_module("peft").get_peft_model_state_dict(
        model, state_dict=dict(tokens), adapter_name=active[0], save_embedding_layers=False
    )
    names_of = {id(token): name for name, token in tokens.items()}
    front = "" if _is_peft_model(model) else "base_model.model."  # as transformers' save_pretrained writes it
    return {inside + names_of[id(token)]: front + target for target, token in saved.items()}


def _active(model: Any) -> list[str]:
    active = model.active_adapters
    return list(active() if callable(active) else active)
