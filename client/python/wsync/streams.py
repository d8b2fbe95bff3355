"""For training loops that hand weights over as a stream of (name, tensor), one step after another: verl, NeMo-RL, slime.

Such loops gather shards into tensors that live until the next one comes. `Sender` keeps one registered buffer per name
and fills it; `Receiver` keeps one buffer per output, lets the agent write into it, and gives the tensors out. Both need
torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .catalog import VersionReport
from .errors import CatalogMismatch, NotAttached
from .memory import SharedBuffer, layout
from .ownership import OfOneProcess
from .publication import Publication, Require
from .rollout import Rollout
from .tensors import Tensor, check_pair, check_readable, is_torch, plain, to_the_end, torch_dtype
from .trainer import Trainer

_MOST = 256 << 20  # bytes of shared memory that are taken ahead of the tensors that will lie there
_LEAST = 1 << 20


class Sender(OfOneProcess):
    """The training side. Costs one copy of the weights, on the device that the tensors come from.

    On the CPU up to a quarter more, since nobody knows beforehand how much a stream brings. Where a stream brings another set
    than the last one, what differs is there twice until the new set is registered.
    """

    def __init__(self, socket: str = "unix:///run/wsync/trainer.sock", *, timeout: float = 10.0) -> None:
        self.trainer = Trainer(socket, timeout=timeout)
        self._buffers: dict[str, Tensor] = {}
        self._room = _Room()
        self._order: list[str] = []
        self._last = 0

    def send(self, weights: Iterable[tuple[str, Tensor]], version: int | None = None) -> Publication:
        """Copies what the stream gives and publishes it as `version` (by default the next one).

        The stream's tensors may be reused as soon as the next one is asked for. Another set of names, shapes or dtypes
        than last time is registered anew. PublishInProgress while the publication before is not released.

        Whatever fails, all that the stream gives is asked for first: gathering shards is collective, and other ranks would
        wait for this one.
        """
        stream = iter(weights.items() if isinstance(weights, Mapping) else weights)
        with to_the_end(stream):
            return self._send(stream, version)

    def _send(self, weights: Iterator[tuple[str, Tensor]], version: int | None) -> Publication:
        number = self._last + 1 if version is None else version
        self.trainer._connection.check_open(f"send version {number}")
        self.trainer._check_released(number)
        names, changed = [], self.trainer.registration is None
        for name, tensor in map(check_pair, weights):
            names.append(name)
            changed |= not self._fill(name, tensor)
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
        if not is_torch(tensor):
            raise TypeError(f"'{name}': expected a torch.Tensor, got {type(tensor).__name__}")
        tensor = plain(tensor, name).detach()
        check_readable(tensor, name)
        buffer = self._buffers.get(name)
        if buffer is not None and _kind(buffer) == _kind(tensor):
            buffer.copy_(tensor)
            return True
        if tensor.is_cpu:
            self._buffers[name] = self._room.empty_like(tensor).copy_(tensor)
        else:
            self._buffers[name] = tensor.clone(memory_format=_contiguous())
        return False

    def send_and_wait(
        self, weights: Iterable[tuple[str, Tensor]], version: int | None = None, *, require: Require = "any"
    ) -> VersionReport:
        """`send`, and waits until every replica applied it or was given up; `require` as in `Publication.committed`."""
        return self.send(weights, version).committed(require=require)

    def close(self) -> None:
        self.trainer.close()
        self._buffers, self._room = {}, _Room()


class _Room:
    """Shared memory for one tensor after another, so that none has to be moved there later.

    Large tensors get memory of their own, small ones lie together: a mapping for each of 45,032 is more than a process has.
    """

    def __init__(self) -> None:
        self._shared: SharedBuffer | None = None
        self._used = 0
        self._total = 0  # of all tensors so far

    def empty_like(self, tensor: Tensor) -> Tensor:
        """Contiguous. MemoryNotShareable when /dev/shm cannot hold it."""
        _, size = layout([tensor.numel() * tensor.element_size()])
        ahead = min(max(self._total // 8, _LEAST), _MOST)
        self._total += size
        if size > ahead // 8:
            return SharedBuffer(size, "buffers of a stream").tensor(0, tensor.dtype, tuple(tensor.shape))
        if self._shared is None or self._used + size > self._shared.nbytes:
            self._shared, self._used = SharedBuffer(ahead, "buffers of a stream"), 0
        place = self._shared.tensor(self._used, tensor.dtype, tuple(tensor.shape))
        self._used += size
        return place


class Receiver(OfOneProcess):
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
        self._buffers = {}


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.device


def _contiguous() -> Any:
    import torch

    return torch.contiguous_format
