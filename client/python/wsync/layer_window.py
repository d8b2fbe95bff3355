"""Memory of single layers, asked for when a transfer gets there and given up when the engine has taken them.

With `Rollout.attach(..., allocate=..., layer_window=W)` the destinations of layers do not exist beforehand: `allocate`
makes those of one layer, and at most W layers exist at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from . import _wire, memory
from .catalog import Output
from .destinations import Destination, Lent
from .errors import MemoryNotShareable
from .tensors import Tensor, garbage_free

_MOST_MESSAGE_BYTES = 4_000_000  # an agent takes 4 MiB


@dataclass(frozen=True, slots=True)
class WantedLayer:
    """A layer that has begun to arrive. `outputs`: all of its tensors, in wire order."""

    name: str  # "model.layers.17"
    version: int
    outputs: tuple[Output, ...]
    ticket: int = field(default=0, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer whose bytes have all landed. `name`: "model.layers.17"; "": the tensors of no layer."""

    name: str
    ready: int  # layers complete, with this one
    layers: int  # of the model
    # With a layer window: what `allocate` gave for the layer, by output. Emptied when the layer's turn is over.
    tensors: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)
    ticket: int = field(default=0, repr=False, compare=False)


# What attach takes, for one layer.
Allocate = Callable[[WantedLayer], "Mapping[str, Tensor] | Iterable[Destination]"]


@dataclass(slots=True)
class _Loan:
    ticket: int
    tensors: dict[str, Tensor]
    lent: Lent | None  # while the agent may write there


class LayerWindow:
    """Which layers are lent to the agent now, and what the agent is told of it. One thread: that of the update."""

    def __init__(
        self, allocate: Allocate, size: int, tell: Callable[..., None], gave_up: Callable[[], None]
    ) -> None:
        """`tell` sends an EngineMessage with the field that it is given. `gave_up`: the version failed here."""
        self.size = size
        self._allocate = allocate
        self._tell = tell
        self._gave_up = gave_up
        self._loans: dict[str, _Loan] = {}  # by layer

    def provide(self, wanted: WantedLayer) -> None:
        """Asks for the layer's memory and lends it. Raises what `allocate` raises, MemoryNotShareable, WrongDevice."""
        try:
            message = self._lend(wanted)
        except BaseException as error:
            self._refuse(wanted.ticket, f"no memory for it: {_text(error)}")
            raise
        self._tell(provide_layer=message)

    def _lend(self, wanted: WantedLayer) -> Any:
        given = self._allocate(wanted)
        with garbage_free():
            if isinstance(given, Mapping):
                destinations = [Destination(name, tensor) for name, tensor in given.items()]
            else:
                destinations = list(given)
            lent = Lent(destinations, f"layer {wanted.name}")
        # What computed with this memory before may still be queued on the GPU, whose allocator does not mind.
        memory.synchronize(lent.devices)
        message = _wire.message("ProvideLayer")(
            ticket=wanted.ticket, handles=lent.handles.messages(), destinations=lent.entries
        )
        if message.ByteSize() > _MOST_MESSAGE_BYTES:
            raise MemoryNotShareable(
                f"layer {wanted.name}: {len(destinations)} destinations make a message of {message.ByteSize()} bytes; "
                f"an agent takes {_MOST_MESSAGE_BYTES}",
                next_step="take whole tensors instead of slices, or attach without layer_window",
            )
        tensors: dict[str, Tensor] = {}
        for destination in destinations:
            tensors.setdefault(destination.output, destination.target)
        self._loans[wanted.name] = _Loan(wanted.ticket, tensors, lent)
        return message

    def landed(self, layer: Layer) -> Layer:
        """The agent has let go of the layer's memory: the layer with its tensors."""
        if not layer.name:  # the tensors of no layer, whose memory is not given up, have a turn as well
            self._loans[""] = _Loan(layer.ticket, {}, None)
        loan = self._loans[layer.name]
        tensors, loan.tensors, loan.lent = loan.tensors, {}, None
        return Layer(layer.name, layer.ready, layer.layers, tensors, layer.ticket)

    def take(self, layer: Layer) -> None:
        """Gives the layer's memory up, and says so."""
        layer.tensors.clear()
        loan = self._loans.pop(layer.name, None)
        if loan is not None:
            self._tell(layer_taken=_wire.message("LayerTaken")(ticket=loan.ticket))

    def give_up(self, layer: Layer, error: BaseException) -> None:
        """The engine's work on the layer failed. What is lent stays lent until the agent says that the version ended."""
        loan = self._loans.get(layer.name)
        if loan is not None:
            left = isinstance(error, GeneratorExit)
            self._refuse(loan.ticket, "it left the loop over the layers" if left else _text(error))

    def _refuse(self, ticket: int, why: str) -> None:
        self._gave_up()
        self._tell(layer_refused=_wire.message("LayerRefused")(ticket=ticket, reason=why[:1000]))

    def room(self) -> bool:
        """Another layer may be asked for, and none is landing."""
        layers = sum(1 for name in self._loans if name)
        return layers < self.size and all(loan.lent is None for loan in self._loans.values())

    def reset(self) -> None:
        """The agent writes nowhere any more: a version ended, or began again, or the agent is gone."""
        self._loans.clear()


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
