"""The weights that a trainer registers: collected, lent as they are or as copies, and described to the agent."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from . import memory
from .errors import CatalogMismatch, MemoryNotShareable
from .tensors import Tensor, Tensors, View, cached_dtype, check_type, is_torch, named, plain, view_of

CopyPolicy = Literal["never", "if_needed", "always"]


@dataclass(slots=True)
class Weight:
    name: str
    source: Tensor  # the caller's
    lent: Tensor  # what the agent reads: `source`, or a copy of it
    view: View  # of `lent`

    @property
    def copied(self) -> bool:
        return self.lent is not self.source


@dataclass(slots=True)
class Tie:
    """Another name, and maybe another tensor, for the memory of a weight: not sent."""

    name: str
    source: Tensor
    view: View
    weight: Weight

    @property
    def apart(self) -> bool:
        """A tensor of its own, that could be moved alone."""
        return self.source is not self.weight.source


def check_choice(argument: str, given: Any, choices: tuple[str, ...]) -> None:
    if given not in choices:
        raise ValueError(f"{argument}={given!r}: expected one of {', '.join(map(repr, choices))}")


def collect(
    tensors: Tensors, rename: Callable[[str], str | None] | None, tied: str
) -> tuple[list[Weight], list[Tie]]:
    weights: list[Weight] = []
    ties: list[Tie] = []
    seen: dict[tuple[Any, ...], Weight] = {}
    pairs = named(tensors)
    flattened = any(getattr(tensor, "_fsdp_flattened", False) for _, tensor in pairs)
    whole = _kept_whole(tensors) if flattened and hasattr(tensors, "children") else set()
    for own_name, tensor in pairs:
        name = rename(own_name) if rename else own_name
        if name is None:
            continue
        if not isinstance(name, str):
            raise TypeError(f"rename gives {name!r} for '{own_name}': expected a name, or None to leave the tensor out")
        if id(tensor) not in whole:
            _check_whole(name, tensor)
        view = view_of(tensor, name)
        if view.device == "meta":
            raise _no_values(name)
        # A view of other shape, dtype or order (w.t() of a square w) is a weight of its own: an engine needs it so.
        order = None if view.contiguous else _strides(tensor)
        memory_of = (view.address, view.shape, view.dtype, view.device, order)
        weight = Weight(name, tensor, tensor, view)
        if tied == "first" and view.nbytes and seen.setdefault(memory_of, weight) is not weight:
            ties.append(Tie(name, tensor, view, seen[memory_of]))
            continue
        weights.append(weight)
    if not weights:
        raise CatalogMismatch("register: there are no tensors", next_step="pass model.named_parameters()")
    return weights, ties


def _no_values(name: str) -> MemoryNotShareable:
    return MemoryNotShareable(
        f"'{name}' has no memory: it lies on torch's meta device",
        names=[name],
        next_step="load the weights before (module.to_empty(device=...), then load_state_dict), or leave it out (rename)",
    )


def _check_whole(name: str, tensor: Tensor) -> None:
    """FSDP1 marks what it flattened; by itself a part of it looks like any other parameter."""
    if not getattr(tensor, "_fsdp_flattened", False):
        return
    distributed = sys.modules["torch"].distributed
    if hasattr(tensor, "_is_flat_param") or (distributed.is_initialized() and distributed.get_world_size() > 1):
        raise MemoryNotShareable(
            f"'{name}' of shape {tuple(tensor.shape)} is FSDP1's, which holds only this rank's part of it, flattened",
            names=[name],
            next_step="send it with wsync.streams.Sender within FSDP.summon_full_params(model); under NO_SHARD register the "
            "module itself, with use_orig_params=True",
        )


def _kept_whole(module: Any, kept: bool = False) -> set[int]:
    """Ids of the parameters that FSDP1 has only put together (NO_SHARD): they say of themselves what parts say, too."""
    strategy = getattr(module, "sharding_strategy", None)
    if strategy is not None:  # the module is FSDP's: what is below goes by its strategy
        kept = getattr(strategy, "name", "") == "NO_SHARD"
    mine = (tensor for tensor in module._parameters.values() if not hasattr(tensor, "_is_flat_param"))
    return set(map(id, mine if kept else ())).union(*(_kept_whole(child, kept) for child in module.children()))


def _strides(tensor: Tensor) -> tuple[int, ...]:
    return tuple(plain(tensor).stride() if is_torch(tensor) else tensor.strides)


def lend(
    weights: list[Weight], ties: list[Tie], copy: CopyPolicy, cast: Callable[[str, Tensor], Any] | None
) -> None:
    """Sees to it that an agent could open every weight: as it is, moved to shared memory, or as a copy."""
    private: list[Weight] = []
    copied: list[Weight] = []
    given = memory.sharers([(one.source, one.view) for one in weights] + [(one.source, one.view) for one in ties])
    dtypes: dict[str, Any] = {}
    for weight in weights:
        view = weight.view
        dtypes[weight.name] = _dtype_to_send(weight, cast)
        if copy == "always" or dtypes[weight.name] != weight.source.dtype:
            copied.append(weight)
        elif not view.contiguous:
            if copy == "never":
                raise MemoryNotShareable(
                    f"'{weight.name}' of shape {view.shape} is not contiguous",
                    names=[weight.name],
                    next_step="make it contiguous, or register with copy='if_needed'",
                )
            copied.append(weight)
        elif view.device == "cpu":
            if copy == "if_needed" and not memory.can_be_shared(weight.source, view, given):
                copied.append(weight)
            else:
                private.append(weight)
    with _together(private, copied):
        moved = {id(weight) for weight in private}
        memory.share_viewed(
            [(weight.name, weight.source, weight.view) for weight in private]
            + [(tie.name, tie.source, tie.view) for tie in ties if tie.apart and id(tie.weight) in moved],
            "registered weights",
            given,
        )
    _make_copies(copied, dtypes)
    for weight in copied:
        weight.view = view_of(weight.lent, weight.name)


def _dtype_to_send(weight: Weight, cast: Callable[[str, Tensor], Any] | None) -> Any:
    own = weight.source.dtype
    dtype = cast(weight.name, weight.source) if cast else None
    if dtype is None:
        return own
    cached_dtype(dtype, weight.name)
    if weight.view.torch != (type(dtype).__module__ == "torch"):
        raise TypeError(f"'{weight.name}': cast gives {dtype!r} for a tensor of {own!r}: give a dtype of the same library")
    return dtype


@contextlib.contextmanager
def _together(private: list[Weight], copied: list[Weight]) -> Iterator[None]:
    """What is copied from the memory of a weight that moves meanwhile is copied from where that lies then."""
    owners = {weight.view.address: weight for weight in private if weight.view.torch}
    views: list[tuple[Tensor, Weight]] = []
    for weight in copied:
        view = weight.view
        if owners and view.torch and view.device == "cpu" and view.nbytes and weight.source is view.tensor:
            owner = owners.get(view.tensor.untyped_storage().data_ptr())
            if owner is not None and owner.source is not weight.source:
                views.append((weight.source, owner))
    yield
    for tensor, owner in views:
        if tensor.untyped_storage().data_ptr() != owner.view.address:
            moved = owner.source.untyped_storage()
            tensor.data = tensor.new_empty(0).set_(moved, tensor.storage_offset(), tensor.shape, tensor.stride())


def _make_copies(weights: list[Weight], dtypes: dict[str, Any]) -> None:
    on_cpu: list[tuple[Weight, memory.Blank]] = []
    for weight in weights:
        view = weight.view
        if view.device == "cpu":
            on_cpu.append((weight, memory.Blank(view.shape, dtypes[weight.name], view.torch)))
        else:
            weight.lent = plain(weight.source).detach().new_empty(view.shape, dtype=dtypes[weight.name])
    made = memory.empty_shared([blank for _, blank in on_cpu], "copies of registered weights") if on_cpu else []
    for (weight, _), lent in zip(on_cpu, made, strict=True):
        weight.lent = lent
    refresh(weights)


def refresh(weights: list[Weight]) -> None:
    for weight in weights:
        copy_into(weight.lent, weight.source, weight.name)


def copy_into(lent: Tensor, tensor: Tensor, name: str) -> None:
    """CatalogMismatch for another shape, TypeError for what is no tensor, MemoryNotShareable for one without values."""
    check_type(tensor, name)
    cached_dtype(tensor.dtype, name)
    if getattr(tensor, "is_meta", False):
        raise _no_values(name)
    if tuple(lent.shape) != tuple(tensor.shape):
        raise CatalogMismatch(
            f"'{name}' of shape {tuple(tensor.shape)} was registered as {tuple(lent.shape)}", names=[name]
        )
    if not is_torch(lent):
        try:
            lent[...] = tensor
        except TypeError as error:  # a torch tensor of a dtype that numpy does not have, or on a GPU
            raise TypeError(f"'{name}' was registered as a numpy.ndarray: {error}") from error
    elif is_torch(tensor):
        lent.detach().copy_(plain(tensor, name).detach())
    else:
        raise TypeError(f"'{name}' was registered as a torch.Tensor: expected one, got {type(tensor).__name__}")
