"""From the names that training frameworks give to weights, to the checkpoint's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from . import adapters, conversions
from .conversions import Part
from .errors import CatalogMismatch
from .tensors import Tensor, Tensors, named, plain

_WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
_BASE_LAYER = re.compile(r"(^|\.)(?:base_layer\.)+")


def unwrapped(name: str) -> str:
    """Without what FSDP, activation checkpointing and torch.compile put in, anywhere; without DDP's "module." and PEFT's
    "base_model.model." in front, and PEFT's "base_layer.". For register(..., rename=...) of pairs, and for Sender.
    """
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    while name.startswith(("module.", "base_model.model.")):
        name = name.removeprefix("module.").removeprefix("base_model.model.")
    return _BASE_LAYER.sub(r"\1", name)


@dataclass(slots=True)
class Live:
    """What is there of one tensor of the checkpoint."""

    name: str  # the checkpoint's
    tensor: Tensor  # the caller's own
    own: str  # what the caller calls it
    part: Part | None = None  # of it; None: all
    problem: str = ""  # why the checkpoint has no such tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape) if self.part is None else self.part.shape

    def taken(self) -> Tensor:
        """The tensor, or the part of it as it lies now."""
        return self.tensor if self.part is None else self.part.of(plain(self.tensor, self.name), self.name)


def live(tensors: Tensors, choice: adapters.Choice = "merged") -> list[Live]:
    """A module's parameters and saved buffers by the checkpoint's names; pairs and mappings as they are.

    Of transformers models, wherever they lie in the module, names and parts are those that `save_pretrained` writes. Adapters
    of PEFT go by `choice`, which `adapters` explains. Every other tensor of a module has its own name.
    """
    pairs = named(tensors)
    if not hasattr(tensors, "named_modules"):
        adapters.check_pairs([name for name, _ in pairs], choice)
        return [Live(name, tensor, name) for name, tensor in pairs]
    own = dict(pairs)
    kept = adapters.names(tensors, list(own), choice)
    if choice == "only":
        return [Live(target, own[name], name) for name, target in kept.items()]
    found: dict[str, list[Live]] = {}
    for prefix, model in _models(tensors):
        below = {name: unwrapped(target.removeprefix(prefix)) for name, target in kept.items() if target.startswith(prefix)}
        converted = conversions.converted(model, {inner: own[name] for name, inner in below.items()})
        outside = unwrapped(prefix)
        for name, inner in below.items():
            one = converted[inner]
            found[name] = [Live(outside + target, own[name], name, part) for target, part in one.parts]
            if one.problem:
                found[name].append(Live(outside + inner, own[name], name, problem=one.problem))
    clean = unwrapped if adapters.inside(tensors) else str
    return [entry for name, target in kept.items() for entry in found.get(name, [Live(clean(target), own[name], name)])]


def pairs(tensors: Tensors, choice: adapters.Choice = "merged") -> list[tuple[str, Tensor]]:
    """`live` as (name, tensor) pairs. CatalogMismatch names what the checkpoint has in no such form."""
    entries = live(tensors, choice)
    odd = [entry for entry in entries if entry.problem]
    if odd:
        raise CatalogMismatch(odd[0].problem, names=[entry.name for entry in odd], next_step="give (name, tensor) pairs")
    return [(entry.name, entry.taken()) for entry in entries]


def _models(module: Any) -> Iterator[tuple[str, Any]]:
    """(prefix of its names, model) of the outermost transformers models in a module, itself included."""
    inside: list[str] = []
    for path, holder in module.named_modules():
        prefix = f"{path}." if path else ""
        if conversions.is_model(holder) and not any(prefix.startswith(outer) for outer in inside):
            inside.append(prefix)
            yield prefix, holder
