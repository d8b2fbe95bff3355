"""The weights that a trainer registers: collected, lent as they are or as copies, and described to the agent."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from . import memory
from .adapters import Choice
from .catalog import Dtype
from .conversions import Part
from .errors import CatalogMismatch, MemoryNotShareable
from .held import Held
from .names import Live, live
from .tensors import Tensor, Tensors, View, cached_dtype, check_readable, check_type, is_torch, plain, view_of
from .whole import check_kept

CopyPolicy = Literal["never", "if_needed", "always"]
Cast = Callable[[str, Tensor], Any] | Literal["unquantized"]


@dataclass(slots=True)
class Weight:
    name: str
    source: Tensor  # the caller's, or a part of it
    lent: Tensor  # what the agent reads: `source`, or a copy of it
    view: View  # of `lent`
    home: Tensor  # what the caller has: `source`, or what that is a part of
    part: Part | None = None

    @property
    def copied(self) -> bool:
        return self.lent is not self.source

    def look_again(self) -> None:
        """Takes the part from where its home lies now."""
        if self.part is not None:
            copied = self.copied
            self.source = self.part.of(plain(self.home, self.name), self.name)
            if not copied:
                self.lent, self.view = self.source, view_of(self.source, self.name)


@dataclass(slots=True)
class Tie:
    """Another name, and maybe another tensor, for the memory of a weight: not sent."""

    name: str
    source: Tensor
    view: View
    weight: Weight
    home: Tensor

    @property
    def apart(self) -> bool:
        """A tensor of its own, that could be moved alone."""
        return self.home is not self.weight.home


def collect(
    tensors: Tensors, rename: Callable[[str], str | None] | None, tied: str, adapters: Choice = "merged"
) -> tuple[list[Weight], list[Tie]]:
    weights: list[Weight] = []
    ties: list[Tie] = []
    seen: dict[tuple[Any, ...], Weight] = {}
    entries = live(tensors, adapters)
    flattened = any(getattr(entry.tensor, "_fsdp_flattened", False) for entry in entries)
    whole = _kept_whole(tensors) if flattened and hasattr(tensors, "children") else set()
    for entry in entries:
        name = rename(entry.name) if rename else entry.name
        if name is None:
            continue
        if not isinstance(name, str):
            raise TypeError(f"rename gives {name!r} for '{entry.name}': expected a name, or None to leave the tensor out")
        weight = _weight(entry, name, flattened=id(entry.tensor) not in whole)
        view = weight.view
        # A view of other shape, dtype or order (w.t() of a square w) is a weight of its own: an engine needs it so.
        order = None if view.contiguous else _strides(weight.source)
        memory_of = (view.address, view.shape, view.dtype, view.device, order)
        if tied == "first" and view.nbytes and seen.setdefault(memory_of, weight) is not weight:
            ties.append(Tie(name, weight.source, view, seen[memory_of], weight.home))
            continue
        weights.append(weight)
    if not weights:
        raise CatalogMismatch("register: there are no tensors", next_step="pass model.named_parameters()")
    return weights, ties


def _weight(entry: Live, name: str, flattened: bool) -> Weight:
    """MemoryNotShareable, CatalogMismatch: there is no such weight, or not all of it. `flattened`: FSDP1's would be parts."""
    tensor = entry.tensor
    if flattened:
        _check_unflattened(name, tensor)
    check_kept(tensor, name)
    if entry.problem:
        raise CatalogMismatch(f"register: {entry.problem}", names=[name], next_step=_COMPUTED)
    source = entry.taken()
    view = view_of(source, name)
    if view.device == "meta":
        raise _no_values(name)
    return Weight(name, source, source, view, tensor, entry.part)


_COMPUTED = (
    "convert the weights before each version (transformers.core_model_loading.revert_weight_conversion(model, "
    "model.state_dict())) and give them to wsync.streams.Sender, or leave it out (rename)"
)


def _no_values(name: str) -> MemoryNotShareable:
    return MemoryNotShareable(
        f"'{name}' has no memory: it lies on torch's meta device",
        names=[name],
        next_step="load the weights before (module.to_empty(device=...), then load_state_dict), or leave it out (rename)",
    )


def _check_unflattened(name: str, tensor: Tensor) -> None:
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
    weights: list[Weight],
    ties: list[Tie],
    copy: CopyPolicy,
    cast: Callable[[str, Tensor], Any] | None,
    undo: contextlib.ExitStack,
) -> None:
    """Sees to it that an agent could open every weight: as it is, moved to shared memory, or as a copy.

    `undo` gets what moves them back.
    """
    both: list[Weight | Tie] = [*weights, *ties]
    homes = _homes(both)
    given = memory.sharers([(one.source, one.view) for one in both] + list(homes.values()))
    private: list[Weight | Tie] = []
    copied: list[Weight] = []
    dtypes: dict[str, Any] = {}
    for weight in weights:
        dtypes[weight.name] = _dtype_to_send(weight, cast)
        if copy == "always" or dtypes[weight.name] != weight.source.dtype:
            copied.append(weight)
        elif not weight.view.contiguous:
            if copy == "never":
                raise _scattered(weight)
            copied.append(weight)
        elif weight.view.device == "cpu":
            if copy == "if_needed" and not memory.can_be_shared(*homes.get(id(weight.home), (weight.source, weight.view)), given):
                copied.append(weight)
            else:
                private.append(weight)
    mine = {id(one.home) for one in private}
    private += [tie for tie in ties if tie.apart and id(tie.weight.home) in mine]
    whole = [(one.name, one.source, one.view) for one in private if id(one.home) not in homes]
    moving = whole + list({id(one.home): (one.name, *homes[id(one.home)]) for one in private if id(one.home) in homes}.values())
    with _together(moving, copied, undo):
        memory.share_viewed(moving, "registered weights", given, undo)
    for weight in weights:
        if id(weight.home) in mine:
            weight.look_again()
    _make_copies(copied, dtypes)
    for weight in copied:
        weight.view = view_of(weight.lent, weight.name)


def _homes(those: list[Weight | Tie]) -> dict[int, tuple[Tensor, View]]:
    """What these are parts of, by id."""
    homes: dict[int, tuple[Tensor, View]] = {}
    for one in those:
        if one.source is not one.home and id(one.home) not in homes:
            homes[id(one.home)] = (one.home, view_of(one.home, one.name))
    return homes


def _scattered(weight: Weight) -> MemoryNotShareable:
    if weight.part is None:
        what, step = f"'{weight.name}' of shape {weight.view.shape} is not contiguous", "make it contiguous, or "
    else:
        what, step = f"'{weight.name}' of shape {weight.view.shape} lies scattered in the model's own tensor", ""
    return MemoryNotShareable(what, names=[weight.name], next_step=f"{step}register with copy='if_needed'")


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
def _together(moving: list[tuple[str, Tensor, View]], copied: list[Weight], undo: contextlib.ExitStack) -> Iterator[None]:
    """What is copied from the memory of a weight that moves meanwhile is copied from where that lies then."""
    owners = {view.address: tensor for _, tensor, view in moving if view.torch}
    views: list[tuple[Tensor, Tensor]] = []
    for weight in copied:
        view = weight.view
        if owners and view.torch and view.device == "cpu" and view.nbytes and weight.source is view.tensor:
            owner = owners.get(view.tensor.untyped_storage().data_ptr())
            if owner is not None and owner is not weight.source and weight.part is None:
                views.append((weight.source, owner))
    undo.callback(_go_along, views)
    yield
    _go_along(views)


def _go_along(views: list[tuple[Tensor, Tensor]]) -> None:
    for tensor, owner in views:
        if tensor.untyped_storage().data_ptr() != owner.untyped_storage().data_ptr():
            moved = owner.untyped_storage()
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
        weight.look_again()
        copy_into(weight.lent, weight.source, weight.name)


def held_by(tensors: Tensors, weights: list[Weight], ties: list[Tie]) -> Held | None:
    """What tells whether a registered module still holds these; None for pairs, of which nobody can tell."""
    names = {id(tie.home): tie.name for tie in reversed(ties)}  # reversed: the first of a tensor's names stays
    names |= {id(weight.home): weight.name for weight in reversed(weights)}
    return Held(tensors, names) if hasattr(tensors, "named_modules") else None


def copy_into(lent: Tensor, tensor: Tensor, name: str) -> None:
    """CatalogMismatch for another shape, TypeError for what is no tensor, MemoryNotShareable for one without values."""
    check_type(tensor, name)
    if cached_dtype(tensor.dtype, name) is Dtype.C64 and cached_dtype(lent.dtype, name) is not Dtype.C64:
        raise TypeError(f"'{name}' holds complex numbers: as {lent.dtype} they would lose their imaginary parts")
    if getattr(tensor, "is_meta", False):
        raise _no_values(name)
    if tuple(lent.shape) != tuple(tensor.shape):
        raise CatalogMismatch(
            f"'{name}' of shape {tuple(tensor.shape)} was registered as {tuple(lent.shape)}", names=[name]
        )
    check_readable(plain(tensor, name), name)
    if not is_torch(lent):
        try:
            lent[...] = tensor
        except TypeError as error:  # a torch tensor of a dtype that numpy does not have, or on a GPU
            raise TypeError(f"'{name}' was registered as a numpy.ndarray: {error}") from error
    elif is_torch(tensor):
        lent.detach().copy_(plain(tensor, name).detach())
    else:
        raise TypeError(f"'{name}' was registered as a torch.Tensor: expected one, got {type(tensor).__name__}")
