"""For training loops that hand weights over as a stream of (name, tensor), one step after another: verl, NeMo-RL, slime.

Such loops gather shards into tensors that live until the next one comes. `Sender` keeps one registered buffer per name
and fills it; `Receiver` keeps one buffer per output, lets the agent write into it, and gives the tensors out. Both need
torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from .catalog import VersionReport
from .errors import CatalogMismatch, NotAttached
from .publication import Publication
from .rollout import Rollout
from .tensors import Tensor, plain, torch_dtype
from .trainer import Trainer


class Sender:
    """The training side. Costs one copy of the weights, on the device that the tensors come from."""

    def __init__(self, socket: str = "unix:///run/wsync/trainer.sock", *, timeout: float = 10.0) -> None:
        self.trainer = Trainer(socket, timeout=timeout)
        self._buffers: dict[str, Tensor] = {}
        self._order: list[str] = []
        self._last = 0

    def send(self, weights: Iterable[tuple[str, Tensor]], version: int | None = None) -> Publication:
        """Copies what the stream gives and publishes it as `version` (by default the next one).

        The stream's tensors may be reused as soon as the next one is asked for. Another set of names, shapes or dtypes
        than last time is registered anew. PublishInProgress while the publication before is not released.
        """
        self.trainer._check_released(self._last + 1 if version is None else version)
        names, changed = [], self.trainer.registration is None
        for name, tensor in weights:
            names.append(name)
            changed |= not self._fill(name, plain(tensor, name).detach())
        if changed or names != self._order:
            self._buffers = {name: self._buffers[name] for name in names}
            self._order = []  # until they are registered
            registered = self.trainer.register(self._buffers, tied="all", replace=self.trainer.registration is not None)
            self._order = names
            self._last = max(self._last, registered.committed_version)
        self._last = self._last + 1 if version is None else version
        return self.trainer.publish(self._last)

    def _fill(self, name: str, tensor: Tensor) -> bool:
        """False: there was no buffer for such a tensor yet."""
        buffer = self._buffers.get(name)
        if buffer is not None and _kind(buffer) == _kind(tensor):
            buffer.copy_(tensor)
            return True
        self._buffers[name] = tensor.clone(memory_format=_contiguous())
        return False

    def send_and_wait(self, weights: Iterable[tuple[str, Tensor]], version: int | None = None) -> VersionReport:
        """`send`, and waits until every replica applied it or was given up."""
        return self.send(weights, version).committed()

    def close(self) -> None:
        self.trainer.close()


class Receiver:
    """The inference side: FP8 codes and scales under checkpoint names, whole, in buffers of its own on `device`."""

    def __init__(
        self, socket: str = "unix:///run/wsync/rollout.sock", *, device: Any = "cpu", engine: str = "wsync stream"
    ) -> None:
        self.rollout = Rollout(socket)
        self._device = device
        self._engine = engine
        self._buffers: dict[str, Tensor] = {}

    def receive(self, timeout: float = 120.0) -> Iterator[tuple[str, Tensor]]:
        """Waits for the next version and gives all its tensors, in wire order; valid until the next `receive`.

        DeadlineExceeded when no version came within `timeout` seconds; TornUpdate when one came in parts only.
        """
        if not self._buffers:
            self.attach(timeout)
        try:
            while not self._applied(timeout):
                pass
        except CatalogMismatch:  # the trainer registered another one: the next call makes buffers for that
            self._buffers = {}
            raise
        yield from self._buffers.items()

    def attach(self, timeout: float = 60.0) -> None:
        """Makes the buffers and attaches them. `receive` does it by itself; earlier saves the first version a catch-up."""
        import torch

        buffers = {
            output.name: torch.empty(output.shape, dtype=torch_dtype(output.dtype), device=self._device)
            for output in self.rollout.plan(timeout).outputs
        }
        self.rollout.attach(buffers, engine=self._engine, timeout=timeout)
        self._buffers = buffers

    def _applied(self, timeout: float) -> bool:
        update = next(self.rollout.updates(timeout=timeout), None)
        if update is None:
            raise NotAttached("receive: the receiver was closed")
        return update.apply(timeout).applied

    def close(self) -> None:
        self.rollout.close()


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.device


def _contiguous() -> Any:
    import torch

    return torch.contiguous_format
