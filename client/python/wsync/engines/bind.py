"""Placements and the engine's tensors -> destinations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .. import memory
from ..destinations import Destination
from ..errors import UnsupportedLayout
from ..tensors import Tensor, View, view_of
from .mapping import Placement


def bind(placements: Iterable[Placement], parameters: Mapping[str, Tensor]) -> list[Destination]:
    """One destination per placement. Private CPU parameters are moved to shared memory first (their `.data`), and with
    them those of `parameters` that have the same memory.

    UnsupportedLayout names parameters whose rows are not evenly spaced: another layout than the checkpoint's.
    """
    placements = list(placements)
    used = dict.fromkeys(placement.parameter for placement in placements)
    views = {name: view_of(parameters[name], name) for name in used}
    shared = [(name, view) for name, view in [*views.items(), *_same_memory(views, parameters)] if view.torch]
    memory.share_viewed([(name, view.tensor, view) for name, view in shared], "engine weights")
    odd = [name for name, view in views.items() if view.row_pitch is None]
    if odd:
        raise UnsupportedLayout(
            f"{len(odd)} parameters are not laid out row by row, such as '{odd[0]}': the engine keeps them in a layout "
            "of its kernels",
            names=odd,
            next_step="choose a backend that keeps the checkpoint's layout",
        )
    return [_destination(placement, views[placement.parameter]) for placement in placements]


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


def _destination(placement: Placement, parameter: View) -> Destination:
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
        tensor=parameter.tensor,
        nbytes=(bottom - top) * (right - left) * itemsize,
        torch=parameter.torch,
    )
    return Destination(placement.output.name, target, placement.output.shape, placement.rows, placement.cols)
