"""Placements and the engine's tensors -> destinations."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from .. import memory
from ..catalog import Dtype
from ..destinations import Destination
from ..errors import UnsupportedLayout
from ..tensors import Tensor, View, torch_dtype, view_of
from .mapping import Placement

# What an engine may keep in a wider dtype than the checkpoint has it in: every value is the same there.
_WIDER = {
    (narrow, wide)
    for wide, narrower in {
        Dtype.F32: (Dtype.BF16, Dtype.F16),
        Dtype.F64: (Dtype.BF16, Dtype.F16, Dtype.F32),
    }.items()
    for narrow in narrower
}


def bind(
    placements: Iterable[Placement], parameters: Mapping[str, Tensor], homes: Mapping[str, Tensor] | None = None
) -> list[Destination]:
    """One destination per placement. Private CPU parameters are moved to shared memory first (their `.data`), and with
    them those of `parameters` that have the same memory.

    `homes`: for parameters that are parts of the engine's own tensors, these: whether they move is watched.

    What the engine keeps in a wider dtype than the plan's lands in memory made here, and is widened on completion.

    UnsupportedLayout names parameters whose rows are not evenly spaced: another layout than the checkpoint's.
    """
    placements = list(placements)
    used = dict.fromkeys(placement.parameter for placement in placements)
    views = {name: view_of(parameters[name], name) for name in used}
    share(views, parameters)
    odd = [name for name, view in views.items() if view.row_pitch is None]
    if odd:
        raise UnsupportedLayout(
            f"{len(odd)} parameters are not laid out row by row, such as '{odd[0]}': the engine keeps them in a layout "
            "of its kernels",
            names=odd,
            next_step="choose a backend that keeps the checkpoint's layout",
        )
    landings = _landings(placements, views)
    destinations = []
    for placement in placements:
        view, home = views[placement.parameter], (homes or {}).get(placement.parameter)
        if id(placement) in landings:
            destinations.append(_widened(placement, view, home, landings[id(placement)]))
        else:
            destinations.append(_destination(placement, view, home))
    return destinations


def share(views: Mapping[str, View], among: Mapping[str, Tensor]) -> None:
    """Moves private CPU tensors to shared memory, and with them those of `among` that have the same memory."""
    shared = [(name, view) for name, view in [*views.items(), *_same_memory(views, among)] if view.torch]
    memory.share_viewed([(name, view.tensor, view) for name, view in shared], "engine weights")


def _same_memory(views: Mapping[str, View], parameters: Mapping[str, Tensor]) -> list[tuple[str, View]]:
    """Of the other parameters those that lie where one of `views` does: tied, and tensors of their own."""
    here = {view.address for view in views.values() if view.torch and view.device == "cpu"}
    seen = {id(view.tensor) for view in views.values()}
    found = []
    for name, tensor in parameters.items() if here else ():
        if id(tensor) not in seen and getattr(getattr(tensor, "device", None), "type", "") == "cpu":
            view = view_of(tensor, name)
            if view.address in here:
                found.append((name, view))
    return found


def _destination(placement: Placement, parameter: View, home: Tensor | None) -> Destination:
    (top, bottom), (left, right) = placement.rows, placement.cols
    pitch = parameter.row_pitch or 0
    itemsize = parameter.dtype.itemsize
    target = View(
        dtype=parameter.dtype,
        shape=(bottom - top, right - left),
        address=parameter.address + placement.row * pitch + placement.col * itemsize,
        device=parameter.device,
        contiguous=False,
        row_pitch=max(pitch, (right - left) * itemsize),
        tensor=parameter.tensor if home is None else home,
        nbytes=(bottom - top) * (right - left) * itemsize,
        torch=parameter.torch,
    )
    return Destination(placement.output.name, target, placement.output.shape, placement.rows, placement.cols)


# ---- what the engine keeps in a wider dtype


def _landings(placements: list[Placement], views: Mapping[str, View]) -> dict[int, Tensor]:
    """By id of the placements whose parameter is wider than the output: memory of the output's dtype."""
    wide = [p for p in placements if views[p.parameter].torch and (p.output.dtype, views[p.parameter].dtype) in _WIDER]
    made: dict[int, Tensor] = {}
    on_cpu: list[tuple[Placement, memory.Blank]] = []
    for p in wide:
        shape, dtype = (p.rows[1] - p.rows[0], p.cols[1] - p.cols[0]), torch_dtype(p.output.dtype)
        if views[p.parameter].device == "cpu":
            on_cpu.append((p, memory.Blank(shape, dtype, True)))
        else:
            made[id(p)] = views[p.parameter].tensor.detach().new_empty(shape, dtype=dtype)
    tensors = memory.empty_shared([blank for _, blank in on_cpu], "what engines widen") if on_cpu else []
    return made | {id(p): tensor for (p, _), tensor in zip(on_cpu, tensors, strict=True)}


def _widened(placement: Placement, parameter: View, home: Tensor | None, landing: Any) -> Destination:
    tensor = parameter.tensor
    pitch = (parameter.row_pitch or 0) // parameter.dtype.itemsize
    with sys.modules["torch"].no_grad():
        begin = tensor.storage_offset() + placement.row * pitch + placement.col
        wider = tensor.as_strided(tuple(landing.shape), (max(pitch, 1), 1), begin)
    name, output = placement.output.name, placement.output
    return Destination(name, landing, output.shape, placement.rows, placement.cols, wider=wider)
