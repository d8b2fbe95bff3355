"""Plain torch.nn modules whose parameters have the checkpoint's names and shapes: FP8 codes and scales as they come.

A quantized weight `X.weight` needs a float8_e4m3fn parameter of that name and a float32 `X.weight_scale_inv`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..conversions import Part
from ..errors import CatalogMismatch, MemoryNotShareable, UnsupportedLayout
from ..names import Live, live, unwrapped
from ..rollout import Attached, Rollout
from ..tensors import Tensor, view_of
from .bind import bind, share
from .mapping import UNFUSED, Naming, check, place


def attach(
    rollout: Rollout,
    module: Any,
    *,
    naming: Naming = UNFUSED,
    engine: str = "torch",
    allow_partial: bool = False,
    allocate: Callable[[str, Tensor], Tensor] | None = None,
    layer_events: bool = False,
    timeout: float = 60.0,
) -> Attached:
    """Attaches every parameter and persistent buffer of `module`; its CPU parameters move to shared memory.

    A module built on the "meta" device has shapes and no memory: `allocate(name, meta)` gives the tensor for each of
    its parameters and persistent buffers just in time, when the plan is known and fits, and nothing is ever initialised
    twice. By default there are none. Buffers that checkpoints do not have (`persistent=False`), and with `allow_partial`
    what no output fills, stay as they are: those on the meta device are the caller's to compute.

    A tied parameter is filled by the output of any of its names; where several come, `allow_partial` takes the first.

    CatalogMismatch lists outputs without a parameter, and parameters (unless `allow_partial`) that no output fills.
    """
    outputs = rollout.plan(timeout).outputs
    parameters = _parameters(module, {output.name for output in outputs})
    if allow_partial:
        taken = {_place(parameters[output.name]): output for output in reversed(outputs) if output.name in parameters}
        outputs = tuple(o for o in outputs if o.name in parameters and taken[_place(parameters[o.name])] is o)
    placements = place(outputs, naming)
    used = {placement.parameter for placement in placements}
    shapes = {name: parameters[name].shape for name in _one_name_each(parameters, used)}
    check(placements, shapes, derived=lambda name: allow_partial and name not in used)
    _materialize(module, parameters, used, allocate)
    mine = {name: one for name, one in parameters.items() if name in used}
    everything = {one.own: one.tensor for one in parameters.values()}
    share({one.own: view_of(one.tensor, name) for name, one in mine.items()}, everything)
    return rollout.attach(
        bind(
            placements,
            {name: one.taken() for name, one in mine.items()},
            {name: one.tensor for name, one in mine.items() if one.part is not None},
        ),
        engine=engine,
        allow_partial=allow_partial,
        layer_events=layer_events,
        module=module,
        timeout=timeout,
    )


def _parameters(module: Any, wanted: set[str]) -> dict[str, Live]:
    """What the module has, by the plan's names: the checkpoint's, or where the plan has none of these, the module's own.

    UnsupportedLayout names what the checkpoint has in no such form.
    """
    by_own: dict[str, list[Live]] = {}
    for entry in live(module, "base"):
        by_own.setdefault(entry.own, []).append(entry)
    found: dict[str, Live] = {}
    for own, entries in by_own.items():
        if unwrapped(own) in wanted and not any(entry.name in wanted for entry in entries):
            entries = [Live(unwrapped(own), entries[0].tensor, own)]
        for entry in entries:
            if entry.problem:
                raise UnsupportedLayout(
                    f"attach: {entry.problem}",
                    names=[entry.own],
                    next_step="take the version with wsync.streams.Receiver, and load it with the framework's own loader",
                )
            found[entry.name] = entry
    return found


def _place(entry: Live) -> tuple[int, Part | None]:
    """Equal for the names of one parameter."""
    return id(entry.tensor), entry.part


def _one_name_each(parameters: dict[str, Live], used: set[str]) -> list[str]:
    """Of a tied parameter's names the one in `used`, or else the first."""
    names: dict[tuple[int, Part | None], str] = {}
    for name, entry in parameters.items():
        other = names.setdefault(_place(entry), name)
        if other in used and name in used and name != other:
            raise CatalogMismatch(
                f"'{other}' and '{name}' are one parameter of the engine, and the plan has both: they may differ",
                names=[other, name],
                next_step="register with tied='first', untie the engine's, or attach with allow_partial=True to take one",
            )
        if name in used:
            names[_place(entry)] = name
    return list(names.values())


def _materialize(
    module: Any, parameters: dict[str, Live], used: set[str], allocate: Callable[[str, Tensor], Tensor] | None
) -> None:
    """Puts what `allocate` gives in the place of tensors on the meta device, in the module and in `parameters`.

    Of those in `used` only: memory that nothing fills would be served as it is.
    """
    absent = {one.own: one.tensor for name, one in parameters.items() if name in used and getattr(one.tensor, "is_meta", False)}
    if absent and allocate is None:
        first = next(iter(absent))
        raise MemoryNotShareable(
            f"{len(absent)} parameters have no memory, such as '{first}' on the meta device",
            names=absent,
            next_step="give allocate=lambda name, meta: torch.empty_like(meta, device=...)",
        )
    made: dict[int, Tensor] = {}  # by id of what it stands for: tied parameters stay tied
    for own, meta in absent.items():
        assert allocate is not None
        if id(meta) not in made:
            made[id(meta)] = _allocated(own, meta, allocate)
    for entry in parameters.values():
        entry.tensor = made.get(id(entry.tensor), entry.tensor)
    for holder in module.modules():
        for tensors in (holder._parameters, holder._buffers):
            tensors.update({leaf: made[id(tensor)] for leaf, tensor in tensors.items() if id(tensor) in made})


def _allocated(name: str, meta: Tensor, allocate: Callable[[str, Tensor], Tensor]) -> Tensor:
    tensor = allocate(name, meta)
    if (tensor.shape, tensor.dtype) != (meta.shape, meta.dtype):
        raise CatalogMismatch(
            f"allocate gave {tensor.dtype} {tuple(tensor.shape)} for '{name}', which is {meta.dtype} {tuple(meta.shape)}",
            names=[name],
        )
    return type(meta)(tensor, requires_grad=meta.requires_grad) if type(meta).__name__ == "Parameter" else tensor
