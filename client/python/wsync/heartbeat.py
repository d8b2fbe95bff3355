"""Whether an agent that has a call of ours open still answers: one that is stopped ends no call by itself."""

from __future__ import annotations

import _thread
import threading
import time
from collections.abc import Callable

# A stopped agent is noticed within 4 s: with what it takes to say so, below the five that it may cost a trainer. Two
# questions in a row, since what was asked just before this process itself stood still stays without an answer as well.
_PERIOD = 1.0
_PATIENCE = 1.5  # for an answer: on a machine short of processors a live agent may need as long
_MISSES = 2
_LATE = 0.5  # we stood still ourselves, or were kept from running: what that answer says is old


class Watch:
    """One open call. `end` it with the call."""

    def __init__(self, heartbeat: Heartbeat, silent: Callable[[], None]) -> None:
        self._heartbeat = heartbeat
        self.silent = silent

    def end(self) -> None:
        self._heartbeat._end(self)


class Heartbeat:
    """Asks an agent once a second, while a call is open for longer than that. Thread-safe."""

    def __init__(self, ask: Callable[[float], bool]) -> None:
        """`ask(timeout)`: False when no answer came in that many seconds; an agent that is not there is an answer."""
        self._ask = ask
        self._changed = threading.Condition()
        self._watches: set[Watch] = set()
        self._running = False
        self._closed = False

    def watch(self, silent: Callable[[], None]) -> Watch:
        """`silent` is called once, on this object's thread, when the agent does not answer any more."""
        watch = Watch(self, silent)
        with self._changed:
            self._watches.add(watch)
            if not self._running:
                self._running = True
                _thread.start_new_thread(self._run, ())
            self._changed.notify()
        return watch

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _end(self, watch: Watch) -> None:
        with self._changed:
            self._watches.discard(watch)

    def _run(self) -> None:
        while self._pause():
            if not all(self._missed() for _ in range(_MISSES)):
                continue
            with self._changed:
                watches, self._watches = self._watches, set()
            for watch in watches:
                watch.silent()

    def _pause(self) -> bool:
        """Returns when somebody watches, a period later; False: closed."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._closed or self._watches)
                if self._changed.wait_for(lambda: self._closed, _PERIOD):
                    return False
                if self._watches:
                    return True

    def _missed(self) -> bool:
        begun = time.monotonic()
        return not self._ask(_PATIENCE) and time.monotonic() - begun < _PATIENCE + _LATE
