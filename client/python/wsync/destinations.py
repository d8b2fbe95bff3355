"""The engine's memory: which slice of which output goes where, and that it still lies there."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import _rpc, _wire, memory
from .catalog import Dtype, matrix, tensor_message
from .errors import CatalogMismatch, DestinationsMoved, MemoryNotShareable
from .held import Held
from .tensors import Addresses, Tensor, View, cached_dtype, view_of

if TYPE_CHECKING:
    from .layer_window import LayerWindow


@dataclass(frozen=True, slots=True)
class Destination:
    """A slice of an output -> memory of the engine.

    `target` holds exactly the slice: `rows` x `cols` of the output's matrix view (a scalar is 1 x 1, [n] one row of n,
    [a, b, c] a*b rows of c), rows evenly spaced, elements of a row adjacent. Without `rows` and `cols` the target holds
    the whole output. `shape` and `dtype` are the whole output's as the engine expects it; by default the target's.

    `wider`: a torch tensor of the target's shape and of a wider dtype, for what the engine keeps so. The agent writes into
    `target`, and this process copies that into `wider`: when a layer or the version is complete, before the engine goes on.
    Not in a layer window.
    """

    output: str
    target: Tensor | View
    shape: tuple[int, ...] | None = None
    rows: tuple[int, int] | None = None
    cols: tuple[int, int] | None = None
    dtype: Dtype | None = None
    wider: Tensor | None = None


def dtype_of_destination(destination: Destination) -> Dtype:
    """As the engine expects the output."""
    target = destination.target
    own = target.dtype if isinstance(target, View) else cached_dtype(target.dtype, destination.output)
    return own if destination.dtype is None else destination.dtype


class Lent:
    """Destinations as messages, and what keeps their memory alive. Private CPU tensors are moved to shared memory."""

    def __init__(
        self, destinations: list[Destination], purpose: str, undo: contextlib.ExitStack | None = None
    ) -> None:
        """`undo` gets what moves them back, and lets go of the memory."""
        for d in destinations:
            if not isinstance(d, Destination):
                raise TypeError(f"{purpose}: expected wsync.Destination or {{output: tensor}}, got {type(d).__name__}")
        views = [d.target if isinstance(d.target, View) else view_of(d.target, d.output) for d in destinations]
        on_torch = [(d.output, view.tensor, view) for d, view in zip(destinations, views, strict=True) if view.torch]
        # A tensor may be the target of several destinations; its first view stands for it.
        self.each = {id(tensor): (output, tensor) for output, tensor, _ in reversed(on_torch)}
        for d in destinations:
            if d.wider is not None:
                base = d.wider if d.wider._base is None else d.wider._base
                self.each.setdefault(id(base), (d.output, base))
        self.wider = [(d.output, d.wider, view.tensor) for d, view in zip(destinations, views, strict=True) if d.wider is not None]
        memory.share_viewed([entry for entry in on_torch if entry[2].contiguous], purpose, undo=undo)
        self.handles = memory.Handles()
        if undo is not None:
            undo.callback(self.handles.let_go)
        self.entries = [_destination(d, view, self.handles) for d, view in zip(destinations, views, strict=True)]
        self.devices = {view.device for _, _, view in on_torch}


class Engine:
    """Destinations as the agent wants to hear of them, ready to be sent again."""

    def __init__(
        self,
        destinations: list[Destination],
        engine: str,
        allow_partial: bool,
        layer_events: bool,
        window: LayerWindow | None = None,
        module: Any = None,
        undo: contextlib.ExitStack | None = None,
    ) -> None:
        lent = Lent(destinations, "engine weights", undo)
        header = _wire.message("AttachHeader")(
            pid=os.getpid(),
            engine=engine,
            handles=lent.handles.messages(),
            allow_partial=allow_partial,
            layer_events=layer_events,
            layer_window=0 if window is None else window.size,
            destinations=len(lent.entries),
        )
        self.window = window
        self.request = _chunks(lent.entries, header)
        self._addresses = Addresses(list(lent.each.values()))
        self._wider = lent.wider
        self.devices = lent.devices
        self.uuid = lent.handles.uuid
        self._module = None if module is None else Held(module, {key: name for key, (name, _) in lent.each.items()})
        self._handles = lent.handles

    def widen(self, layer: str = "", stream: Any = None) -> bool:
        """Copies what landed to where the engine keeps it wider, all of it or a layer's, on `stream` or the current one.

        Whether there was anything.
        """
        mine = [(into, landed) for name, into, landed in self._wider if not layer or name.startswith(f"{layer}.")]
        if mine:
            torch = sys.modules["torch"]
            queue = contextlib.nullcontext() if stream is None else torch.cuda.stream(stream)
            with queue, torch.inference_mode():  # engines make their parameters in it
                for into, landed in mine:
                    into.copy_(landed)
        return bool(mine)

    def check(self, version: int) -> None:
        replaced = self._module.replaced() if self._module else []
        if replaced:
            raise DestinationsMoved(
                f"version {version}: the module holds other parameters than it was attached with: {replaced[0]!r}"
                + (f" and {len(replaced) - 1} more" if len(replaced) > 1 else ""),
                names=replaced,
            )
        moved = self._addresses.moved()
        if moved:
            raise DestinationsMoved(
                f"version {version}: the engine's memory lies elsewhere than when it was attached: {moved[0]!r}"
                + (f" and {len(moved) - 1} more" if len(moved) > 1 else ""),
                names=moved,
            )


_DESTINATION = _wire.message("Destination")


def _destination(destination: Destination, view: View, handles: memory.Handles) -> Any:
    name = destination.output
    if view.row_pitch is None:
        raise MemoryNotShareable(
            f"'{name}': the rows of the target (shape {view.shape}) are not evenly spaced",
            names=[name],
            next_step="give a target whose last dimension is contiguous, or several destinations",
        )
    shape = view.shape if destination.shape is None else destination.shape
    all_rows, all_cols = matrix(shape)
    rows = destination.rows or (0, all_rows)
    cols = destination.cols or (0, all_cols)
    if (rows[1] - rows[0], cols[1] - cols[0]) != matrix(view.shape):
        raise CatalogMismatch(
            f"'{name}': rows {rows} x columns {cols} do not fit the target's {view.rows} x {view.cols}", names=[name]
        )
    handle, offset = handles.locate(name, view)
    dtype = view.dtype if destination.dtype is None else destination.dtype
    return _DESTINATION(
        output=tensor_message(name, dtype, shape),
        row_begin=rows[0],
        row_end=rows[1],
        col_begin=cols[0],
        col_end=cols[1],
        handle=handle,
        offset_bytes=offset,
        row_pitch_bytes=view.row_pitch,
    )


def _chunks(entries: list[Any], header: Any) -> list[Any]:
    request = _wire.message("AttachRequest")
    step = _rpc.TENSORS_PER_MESSAGE
    rest = range(step, len(entries), step)
    return [request(header=header, destinations=entries[:step])] + [
        request(destinations=entries[begin : begin + step]) for begin in rest
    ]
