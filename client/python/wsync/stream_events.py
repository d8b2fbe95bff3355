"""CUDA events that put a stream of this process and an agent's work in order, so that no host waits for a GPU.

This process owns them and lends them by IPC handle. One is recorded here, and the agent's work waits for it; another one
the agent records, and a stream of ours waits for it. Since they are ours, a wait for an agent that died can be ended:
by recording the event again.
"""

from __future__ import annotations

import threading
from typing import Any

from . import _wire
from .errors import StreamUnsupported, WrongDevice
from .memory import cuda_driver

Stream = Any  # a torch.cuda.Stream


def check_stream(stream: Stream, devices: set[str], what: str) -> str:
    """The GPU that `stream` and the memory lent to the agent lie on. StreamUnsupported, WrongDevice, TypeError."""
    if devices <= {"cpu"}:
        raise StreamUnsupported(f"{what}: the memory lies on the CPU, where there is no stream to put in order")
    if not hasattr(stream, "wait_event"):
        raise TypeError(f"{what}: expected a torch.cuda.Stream, got {type(stream).__name__}")
    device = str(stream.device)
    if devices != {device}:
        raise WrongDevice(
            f"{what}: the stream is one of {device}, the memory lies on {', '.join(sorted(devices))}",
            next_step="give a stream of the agent's GPU",
        )
    return device


class LentEvent:
    """One event of ours, and the message that lends it."""

    def __init__(self, device: str, uuid: str, idle: Stream) -> None:
        self._idle = idle
        self._event, handle = _new_event(device)
        self.message = _wire.message("StreamEvent")(handle=handle, device_uuid=uuid)

    def record(self, stream: Stream) -> None:
        """What the agent orders after this event comes after everything that is in `stream` now."""
        self._event.record(stream)

    def hold(self, stream: Stream) -> None:
        """What `stream` gets from now on waits for what the agent recorded last."""
        stream.wait_event(self._event)

    def end(self) -> None:
        """Ends every wait for an agent that will not get there any more."""
        self._event.record(self._idle)


class LentEvents:
    """The events of one registration or attachment: a few, used again and again. Thread-safe.

    All are kept until this object goes: an agent may have any of them open.
    """

    def __init__(self, uuid: str) -> None:
        self._uuid = uuid
        self._lock = threading.Lock()
        self._all: list[LentEvent] = []
        self._free: list[LentEvent] = []
        self._idle: Stream = None  # made before anything can be stuck

    def take(self, device: str) -> LentEvent:
        with self._lock:
            if self._free:
                return self._free.pop()
            if self._idle is None:
                self._idle = _idle_stream(device)
            event = LentEvent(device, self._uuid, self._idle)
            self._all.append(event)
            return event

    def give_back(self, *events: LentEvent) -> None:
        """The version that they were taken for is complete. Those of one that failed are not used again."""
        with self._lock:
            self._free.extend(events)


class StreamOrder:
    """One version's two events: `after` is recorded in the stream that is given, `marked` is the agent's to record."""

    def __init__(self, events: LentEvents, device: str, stream: Stream) -> None:
        self._events = events
        self.device = device
        self.after, self.marked = events.take(device), events.take(device)
        self.after.record(stream)
        self._lock = threading.Lock()
        self._held = self._failed = False

    def hold(self, stream: Stream) -> None:
        """`stream` goes on when the agent's work is done, or when the version has failed."""
        with self._lock:
            self.marked.hold(stream)
            self._held = True
            if self._failed:
                self.marked.end()

    def complete(self) -> None:
        """The events may be used for another version."""
        self._events.give_back(self.after, self.marked)

    def fail(self) -> None:
        """The agent may be gone, and will not mark what a stream waits for. Any thread."""
        with self._lock:
            self._failed = True
            if self._held:
                self.marked.end()


def _new_event(device: str) -> tuple[Any, bytes]:
    import torch

    with torch.cuda.device(device):
        event = torch.cuda.Event(interprocess=True)
        return event, bytes(event.ipc_handle())


def _idle_stream(device: str) -> Stream:
    """One in which nothing ever waits: torch's own streams are a few that take turns, and any may be the one that is stuck.

    Of the highest priority: where CUDA_DEVICE_MAX_CONNECTIONS is 1, as Megatron wants it, ordinary ones share one queue.
    """
    import torch

    ordinal = torch.device(device).index or 0
    return torch.cuda.ExternalStream(cuda_driver().new_stream(ordinal), device=device)
