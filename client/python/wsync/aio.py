"""The same as wsync.Trainer and wsync.Rollout for asyncio: waits suspend the task instead of blocking its thread.

    trainer = wsync.aio.Trainer(socket)
    await trainer.register(model)
    sync = await trainer.publish(version=step)
    await sync.released()

    async for update in rollout.updates():
        async with engine.paused():
            await update.apply()

A task that is cancelled in `apply` or `layers` ends when the agent writes no more, so an engine's pause around it is long
enough. Cancelled in a wait it ends at once, and loses nothing. A `register` or `publish` that is cancelled goes on by itself:
the next `register` is the one that counts, and of a publication without a handle `wsync status` tells.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from . import publication as _publication
from . import rollout as _rollout
from . import trainer as _trainer
from . import updates as _updates
from .catalog import Plan, VersionReport
from .errors import AgentUnavailable, DeadlineExceeded
from .layer_window import Layer

_SLICE = 0.5  # seconds that a worker thread may still wait after its task was cancelled
_SHORT_SLICE = 0.02
_LOOK = 0.005  # seconds between looks at whether another call has ended, which is rare to be waited for

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
        self.sync._look_at_weights()
        waiter = asyncio.wrap_future(future)
        waiter.add_done_callback(lambda f: f.cancelled() or f.exception())  # a later error is no unhandled one
        try:
            done, _ = await asyncio.wait([waiter], timeout=timeout)
        finally:
            waiter.cancel()  # where it has no answer: the loop may be gone when one comes
        if done:
            return done.pop().result()
        raise DeadlineExceeded(f"version {self.version} was not {what} within {timeout:g} s: {self.progress}")

    @property
    def done(self) -> bool:
        return self.sync.done

    @property
    def progress(self) -> str:
        return self.sync.progress


class Trainer:
    """See wsync.Trainer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.sync = _trainer.Trainer(*args, **kwargs)

    async def register(self, *args: Any, **kwargs: Any) -> _trainer.Registration:
        return await asyncio.to_thread(self.sync.register, *args, **kwargs)

    @property
    def registration(self) -> _trainer.Registration | None:
        return self.sync.registration

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
    """One call at a time follows an agent's updates, on a thread: a task that is cancelled may leave it behind."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # taken on an event loop's thread, given back on the worker's
        self._worker = ThreadPoolExecutor(1, "wsync-aio")  # its own: the loop's may be full of others' work
        self._doing, self._since = "", 0.0
        self._waiting: deque[object] = deque()  # in order: a loop that comes again at once must not be first again

    async def run(self, doing: str, what: Callable[[float], _T], timeout: float) -> _T:
        """`what` is given the seconds that are left. Cancelled, it goes on without its task."""
        work = self.start(what, await self.take(doing, timeout))
        await asyncio.wait([work])
        return work.result()

    async def take(self, doing: str, timeout: float) -> float:
        """The seconds that are left. To be followed by `start`, without a wait between them."""
        give_up = time.monotonic() + timeout
        if not await self.free(doing, timeout):
            raise DeadlineExceeded(f"{doing} did not begin within {timeout:.3g} s: it waits behind {self.at}")
        return max(give_up - time.monotonic(), 0.0)

    async def free(self, doing: str, timeout: float) -> bool:
        """Takes the turn, where it comes in time. By looking: a thread that waits could not be called off."""
        give_up = time.monotonic() + timeout
        ticket = object()
        self._waiting.append(ticket)
        try:
            while self._waiting[0] is not ticket or not self._lock.acquire(blocking=False):
                if time.monotonic() >= give_up:
                    return False
                await asyncio.sleep(_LOOK)
        finally:
            self._waiting.remove(ticket)
        self._doing, self._since = doing, time.monotonic()
        return True

    def start(self, what: Callable[[float], _T], timeout: float) -> asyncio.Future[_T]:
        def work() -> _T:
            try:
                return what(timeout)
            finally:
                self._lock.release()

        try:
            done = asyncio.get_running_loop().run_in_executor(self._worker, contextvars.copy_context().run, work)
        except BaseException:
            self._lock.release()
            raise
        done.add_done_callback(lambda f: f.cancelled() or f.exception())  # nobody may be left to ask for it
        return done

    @property
    def at(self) -> str:
        return f"{self._doing}, which began {time.monotonic() - self._since:.1f} s ago"


class Update:
    """See wsync.Update."""

    def __init__(self, update: _updates.Update, rollout: Rollout) -> None:
        self.sync = update
        self.version = update.version
        self.in_place = update.in_place
        self._rollout = rollout.sync
        self._turn = rollout._turn

    async def apply(self, timeout: float = 120.0, **kwargs: Any) -> _updates.Outcome:
        """As wsync.Update.apply; `on_layer` is called on another thread. `timeout` counts the wait for other calls as well.

        Cancelled before the agent was told of the pause, it never is, and the update comes again from the next `updates()`
        or is applied by another call. Afterwards the agent may write at any moment, so the task ends when it is known what
        became of the version, within `timeout`: `outcome` has it. Then CancelledError is raised, but where the weights are
        torn what `apply` ended with, TornUpdate mostly: the engine must stay paused. `asyncio.timeout` and `wait_for` take
        that long, too.
        """
        doing = f"apply of version {self.version}"
        return await self._whole(doing, lambda left: self.sync.apply(left, **kwargs), timeout)

    async def _whole(self, doing: str, what: Callable[[float], _T], timeout: float) -> _T:
        left = await self._turn.take(doing, timeout)
        self.sync._called_off = False
        work = self._turn.start(what, left)
        cancelled: asyncio.CancelledError | None = None
        while not work.done():
            try:
                await asyncio.wait([work])
            except asyncio.CancelledError as error:
                cancelled = error
                self.sync._called_off = True
        if cancelled is None or (work.exception() is not None and self._rollout.torn):
            return work.result()
        raise cancelled

    async def layers(self, timeout: float = 120.0, **kwargs: Any) -> AsyncGenerator[Layer, None]:
        """As wsync.Update.layers. A loop that is left early is closed by `contextlib.aclosing`, not by itself.

        Cancelled, or closed early, it ends when the agent writes no more. What that took is torn until the next version,
        unless nothing was written: layers are missing.
        """
        doing = f"layers of version {self.version}"
        give_up = time.monotonic() + timeout
        steps = self.sync.layers(timeout, **kwargs)

        def end(left: float) -> None:
            steps.close()
            self.sync._let_end(left)

        try:
            while True:
                layer = await self._whole(doing, lambda _: next(steps, None), max(give_up - time.monotonic(), 0.0))
                if layer is None:
                    return
                yield layer
        finally:
            began = inspect.getgeneratorstate(steps) != inspect.GEN_CREATED
            if began and self.outcome is None:
                await self._whole(doing, end, max(give_up - time.monotonic(), _SLICE))

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

    @property
    def serving_digest(self) -> str:
        return self.sync.serving_digest

    @property
    def attached(self) -> bool:
        return self.sync.attached

    @property
    def torn(self) -> bool:
        return self.sync.torn

    async def plan(self, timeout: float = 60.0) -> Plan:
        return await asyncio.to_thread(self.sync.plan, timeout)

    async def attach(self, *args: Any, **kwargs: Any) -> _rollout.Attached:
        return await asyncio.to_thread(self.sync.attach, *args, **kwargs)

    async def updates(
        self, *, timeout: float | None = None, reattach_timeout: float = 60.0
    ) -> AsyncIterator[Update]:
        """As wsync.Rollout.updates: it ends when the engine is detached or the client closed, by whoever."""
        self.sync._check_attached("updates")
        loop = asyncio.get_running_loop()
        give_up = None if timeout is None else loop.time() + timeout
        engine = self.sync._engine
        taken = self._pop() or self.sync._unanswered()
        while True:
            if isinstance(taken, Exception):
                raise taken
            if taken is not None:
                yield Update(taken, self)
                give_up = None if timeout is None else loop.time() + timeout
                engine = self.sync._engine
            if engine is None or engine is not self.sync._engine:
                return
            await asyncio.sleep(0)  # the task that was made for an update has its turn before the next one
            # While an update waits for its apply, that may come at any moment, from another task.
            wait = _SLICE if self.sync._asked is None else _SHORT_SLICE
            if give_up is not None:
                wait = min(wait, max(give_up - loop.time(), 0.0))
            if await self._turn.free("updates", wait):
                await asyncio.wait([self._turn.start(lambda left: self._take(left, reattach_timeout), wait)])
                behind = ""
            else:
                behind = f": it waits behind {self._turn.at}"
            taken = self._pop()
            if taken is None and give_up is not None and loop.time() >= give_up and engine is self.sync._engine:
                raise DeadlineExceeded("no update came from the rollout agent in time" + behind)

    async def poll(self) -> Update | None:
        """As wsync.Rollout.poll. None also while another call follows the agent, which has what comes."""
        self.sync._check_attached("poll")
        taken = self._pop() or self.sync._unanswered()
        if taken is None and await self._turn.free("poll", 0.0):
            await asyncio.wait([self._turn.start(lambda left: self._take(left, 0.0), 0.0)])
            taken = self._pop()
        if taken is None or isinstance(taken, AgentUnavailable):
            return None
        if isinstance(taken, Exception):
            raise taken
        return Update(taken, self)

    def _pop(self) -> _updates.Update | Exception | None:
        """What was taken, but of an attachment that is over. Loops beside this one may be faster."""
        while self._taken:
            try:
                stream, taken = self._taken.popleft()
            except IndexError:
                break
            if stream is not None and stream is self.sync._stream:
                return taken
        return None

    def _take(self, timeout: float, reattach_timeout: float) -> None:
        """On the worker's thread."""
        if self._taken and self._taken[-1][0] is self.sync._stream:  # by the call before, which was cancelled
            return
        try:
            taken: _updates.Update | Exception = next(self.sync._updates(timeout, reattach_timeout))
        except (DeadlineExceeded, StopIteration):
            return
        except Exception as error:
            taken = error
        self._taken.append((self.sync._stream, taken))

    async def confirm(self, timeout: float = 120.0) -> None:
        await self._turn.run("confirm", self.sync.confirm, timeout)

    async def detach(self) -> None:
        await asyncio.to_thread(self.sync.detach)

    async def close(self) -> None:
        await asyncio.to_thread(self.sync.close)

    async def __aenter__(self) -> Rollout:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
