"""CUDA streams of this process and an agent's work, put in order without a host thread of the user's waiting for a GPU.

The agent after a stream of ours: an event is recorded here and lent by IPC handle; the agent's own thread looks whether it
has come. A stream of ours after the agent: the stream waits for a word in memory of this process, which this library's own
thread writes when the agent says so, or when nothing will come of it any more. No GPU ever waits for another process.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import threading
from typing import Any

from . import _wire
from .cuda_driver import cuda_driver
from .errors import StreamUnsupported, WrongDevice

Stream = Any  # a torch.cuda.Stream

_PAGE = 4096
_WORD = 4


def check_stream(stream: Stream, devices: set[str], what: str) -> str:
    """The GPU that `stream` and the memory lent to the agent lie on. StreamUnsupported, WrongDevice, TypeError."""
    if devices <= {"cpu"}:
        raise StreamUnsupported(f"{what}: the memory lies on the CPU, where there is no stream to put in order")
    if not hasattr(stream, "cuda_stream"):
        raise TypeError(f"{what}: expected a torch.cuda.Stream, got {type(stream).__name__}")
    device = str(stream.device)
    if devices != {device}:
        raise WrongDevice(
            f"{what}: the stream is one of {device}, the memory lies on {', '.join(sorted(devices))}",
            next_step="give a stream of the agent's GPU",
        )
    return device


# ---- the agent after a stream


class LentEvent:
    """One event of ours, and the message that lends it."""

    def __init__(self, device: str, uuid: str) -> None:
        self._event, handle = _new_event(device)
        self.message = _wire.message("StreamEvent")(handle=handle, device_uuid=uuid)

    def record(self, stream: Stream) -> None:
        """What the agent does after this event comes after everything that is in `stream` now."""
        self._event.record(stream)


class LentEvents:
    """The events of one registration or attachment: a few, used again and again. Thread-safe.

    All are kept until this object goes: an agent may have any of them open, and look at those that did not come back.
    """

    def __init__(self, uuid: str) -> None:
        self._uuid = uuid
        self._lock = threading.Lock()
        self._all: list[LentEvent] = []
        self._free: list[LentEvent] = []

    def take(self, device: str) -> LentEvent:
        with self._lock:
            if self._free:
                return self._free.pop()
            event = LentEvent(device, self._uuid)
            self._all.append(event)
            return event

    def give_back(self, event: LentEvent) -> None:
        """The agent has ended the version that it was taken for, or is dead: nothing is done any more when it comes."""
        with self._lock:
            self._free.append(event)


# ---- a stream after the agent


class _Word:
    def __init__(self, host: int, device: int) -> None:
        self.memory = ctypes.c_uint32.from_address(host)
        self.address = device


class Gate:
    """What streams wait for until it is opened, once. Thread-safe."""

    def __init__(self, gates: Gates, word: _Word) -> None:
        self._gates = gates
        self._word = word
        self._open_at = (word.memory.value + 1) & 0xFFFFFFFF

    def hold(self, stream: Stream, device: str) -> None:
        """What `stream` gets from now on waits. StreamUnsupported: this GPU or its driver has no such wait."""
        cuda_driver().wait_for_word(_ordinal(device), stream.cuda_stream, self._word.address, self._open_at)

    def open(self) -> None:
        self._gates._open(self)


class Gates:
    """All gates of this process, in page-locked memory. Thread-safe.

    The number in a word only grows, and streams wait for a number or a higher one. So a word is used for the next gate as
    soon as it is opened: a stream that has not looked yet passes all the same. Words are never freed, since a stream may
    look at any time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: list[_Word] = []
        self._closed: set[Gate] = set()
        self._pid = os.getpid()
        atexit.register(self.open_all)  # a process whose streams wait might not end

    def prepare(self, device: str) -> None:
        """Makes room for a gate, for which the GPU may have to be waited for: before any stream waits for one."""
        with self._lock:
            if self._free:
                return
        host, address = cuda_driver().page_locked(_ordinal(device), _PAGE)  # without the lock: others may open gates
        with self._lock:
            self._free += [_Word(host + at, address + at) for at in range(0, _PAGE, _WORD)]

    def take(self, device: str) -> Gate:
        while True:
            self.prepare(device)
            with self._lock:
                if self._free:
                    gate = Gate(self, self._free.pop())
                    self._closed.add(gate)
                    return gate

    def _open(self, gate: Gate) -> None:
        with self._lock:
            if gate in self._closed:
                self._closed.remove(gate)
                gate._word.memory.value = gate._open_at
                self._free.append(gate._word)

    def open_all(self) -> None:
        if os.getpid() != self._pid:  # a forked child's copy
            return
        with self._lock:
            closed = list(self._closed)
        for gate in closed:
            gate.open()


_gates = Gates()


class StreamOrder:
    """One version's place among streams: `after` is recorded in the one that is given, and others wait for its end."""

    def __init__(self, events: LentEvents, device: str, stream: Stream) -> None:
        self._events = events
        self.device = device
        self._lock = threading.Lock()
        self._gate: Gate | None = None  # once a stream waits
        self._open = False
        self._ended = False
        _gates.prepare(device)
        self.after = events.take(device)
        self.after.record(stream)

    def hold(self, stream: Stream) -> None:
        """`stream` goes on when the agent's work is done, or when the version has failed. StreamUnsupported."""
        with self._lock:
            if self._open:
                return
            gate = self._gate = self._gate or _gates.take(self.device)
        gate.hold(stream, self.device)  # should it be opened meanwhile, the stream passes

    def open(self) -> None:
        """The agent's work is done, or nothing will come of it: streams go on. Any thread, any number of times."""
        with self._lock:
            self._open = True
            if self._gate is not None:
                self._gate.open()

    def end(self) -> None:
        """The agent is done with the version, whatever became of it: streams go on, and the event may be used again."""
        self.open()
        with self._lock:
            ended, self._ended = self._ended, True
        if not ended:
            self._events.give_back(self.after)


def _ordinal(device: str) -> int:
    return int(device.rpartition(":")[2])


def _new_event(device: str) -> tuple[Any, bytes]:
    import torch

    with torch.cuda.device(device):
        event = torch.cuda.Event(interprocess=True)
        return event, bytes(event.ipc_handle())
