"""The same as wsync.Trainer and wsync.Rollout for asyncio: waits suspend the task instead of blocking its thread.

    trainer = wsync.aio.Trainer(socket)
    await trainer.register(model)
    sync = await trainer.publish(version=step)
    await sync.released()

    async for update in rollout.updates():
        async with engine.paused():
            await update.apply()
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from . import publication as _publication
from . import rollout as _rollout
from . import trainer as _trainer
from . import updates as _updates
from .catalog import Plan, VersionReport
from .errors import DeadlineExceeded
from .layer_window import Layer

_SLICE = 0.5  # seconds that a worker thread may still wait after its task was cancelled

_T = TypeVar("_T")


class Publication:
    """See wsync.Publication."""

    def __init__(self, publication: _publication.Publication) -> None:
        self.sync = publication
        self.version = publication.version

    async def released(self, timeout: float = 120.0, *, stream: Any = None) -> float:
        if stream is not None:
            return self.sync.released(timeout, stream=stream)  # does not wait
        return float(await self._wait(self.sync.released_future, timeout, "released"))

    async def committed(self, timeout: float = 600.0) -> VersionReport:
        report: VersionReport = await self._wait(self.sync.committed_future, timeout, "committed")
        return report

    async def _wait(self, future: Future[Any], timeout: float, what: str) -> Any:
        waiter = asyncio.wrap_future(future)
        waiter.add_done_callback(lambda f: f.cancelled() or f.exception())  # a later error is no unhandled one
        try:
            done, _ = await asyncio.wait([waiter], timeout=timeout)
        finally:
            waiter.cancel()  # where it has no answer: the loop may be gone when one comes
        if done:
            return done.pop().result()
        raise DeadlineExceeded(f"version {self.version} was not {what} within {timeout:g} s: {self.sync.progress}")


class Trainer:
    """See wsync.Trainer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.sync = _trainer.Trainer(*args, **kwargs)

    async def register(self, *args: Any, **kwargs: Any) -> _trainer.Registration:
        return await asyncio.to_thread(self.sync.register, *args, **kwargs)

    async def publish(self, *args: Any, **kwargs: Any) -> Publication:
        return Publication(await asyncio.to_thread(self.sync.publish, *args, **kwargs))

    async def unregister(self, **kwargs: Any) -> bool:
        return await asyncio.to_thread(self.sync.unregister, **kwargs)

    async def close(self) -> None:
        await asyncio.to_thread(self.sync.close)

    async def __aenter__(self) -> Trainer:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class _Turn:
    """One thread at a time follows an agent's updates: a task that is cancelled leaves its thread behind."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    async def run(self, what: Callable[[], _T]) -> _T:
        return await asyncio.to_thread(self._run, what)

    def _run(self, what: Callable[[], _T]) -> _T:
        with self.lock:
            return what()


class Update:
    """See wsync.Update."""

    def __init__(self, update: _updates.Update, turn: _Turn) -> None:
        self.sync = update
        self.version = update.version
        self.in_place = update.in_place
        self._turn = turn

    async def apply(self, timeout: float = 120.0, **kwargs: Any) -> _updates.Outcome:
        return await self._turn.run(lambda: self.sync.apply(timeout, **kwargs))

    async def layers(self, timeout: float = 120.0, **kwargs: Any) -> AsyncGenerator[Layer, None]:
        """As wsync.Update.layers. A loop that is left early is closed by `contextlib.aclosing`, not by itself."""
        steps = self.sync.layers(timeout, **kwargs)
        try:
            while (layer := await self._turn.run(lambda: next(steps, None))) is not None:
                yield layer
        finally:
            await self._turn.run(steps.close)

    @property
    def outcome(self) -> _updates.Outcome | None:
        return self.sync.outcome


class Rollout:
    """See wsync.Rollout."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.sync = _rollout.Rollout(*args, **kwargs)
        self._turn = _Turn()
        # What threads took from the agent, with the call it came by. It outlives the task that asked for it, and goes to
        # the next one: the agent says it once.
        self._taken: deque[tuple[object, _updates.Update | Exception]] = deque()

    @property
    def serving_version(self) -> int:
        return self.sync.serving_version

    async def plan(self, timeout: float = 60.0) -> Plan:
        return await asyncio.to_thread(self.sync.plan, timeout)

    async def attach(self, *args: Any, **kwargs: Any) -> _rollout.Attached:
        return await asyncio.to_thread(self.sync.attach, *args, **kwargs)

    async def updates(self, *, timeout: float | None = None) -> AsyncIterator[Update]:
        loop = asyncio.get_running_loop()
        give_up = None if timeout is None else loop.time() + timeout
        while True:
            wait = _SLICE if give_up is None else min(_SLICE, max(give_up - loop.time(), 0.0))
            taken = self._taken.popleft()[1] if await asyncio.to_thread(self._take, wait) else None
            if isinstance(taken, Exception):
                raise taken
            if taken is not None:
                yield Update(taken, self._turn)
                give_up = None if timeout is None else loop.time() + timeout
            elif not self.sync.attached:
                return
            elif give_up is not None and loop.time() >= give_up:
                raise DeadlineExceeded("no update came from the rollout agent in time")

    def _take(self, timeout: float) -> bool:
        """On a thread. Whether something is taken now: from before, or because it came in time."""
        if not self._turn.lock.acquire(timeout=timeout):
            return False
        try:
            while self._taken and self._taken[0][0] is not self.sync._stream:  # of an attachment that is over
                self._taken.popleft()
            if not self._taken:
                self._taken.append(self._next(timeout))
        except (DeadlineExceeded, StopIteration):
            pass
        finally:
            self._turn.lock.release()
        return bool(self._taken)

    def _next(self, timeout: float) -> tuple[object, _updates.Update | Exception]:
        try:
            update = next(self.sync.updates(timeout=timeout))
        except (DeadlineExceeded, StopIteration):
            raise
        except Exception as error:
            return self.sync._stream, error
        return self.sync._stream, update

    async def confirm(self, timeout: float = 120.0) -> None:
        await self._turn.run(lambda: self.sync.confirm(timeout))

    async def detach(self) -> None:
        await asyncio.to_thread(self.sync.detach)

    async def close(self) -> None:
        await asyncio.to_thread(self.sync.close)

    async def __aenter__(self) -> Rollout:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

