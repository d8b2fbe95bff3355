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
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, TypeVar, get_args

from . import publication as _publication
from . import rollout as _rollout
from . import trainer as _trainer
from . import updates as _updates
from .adapters import Choice as AdapterChoice
from .arguments import check_choice, check_seconds, whole_number
from .catalog import Plan, VersionReport
from .destinations import Destination
from .errors import AgentUnavailable, DeadlineExceeded
from .layer_window import Allocate, Layer
from .ownership import OfOneProcess
from .publication import Require
from .registration import Registration
from .replicas import too_few
from .stream_events import Stream
from .tensors import Tensor, Tensors
from .weights import Cast, CopyPolicy

_SLICE = 0.5  # seconds that a worker thread may still wait after its task was cancelled
_SHORT_SLICE = 0.02
_LOOK = 0.005  # seconds between looks at whether another call has ended, which is rare to be waited for

_T = TypeVar("_T")


class Publication(OfOneProcess):
    """One version on its way: wsync.Publication, with `await`."""

    def __init__(self, publication: _publication.Publication) -> None:
        self.sync = publication
        self.version = publication.version

    async def released(self, timeout: float = 120.0, *, stream: Stream | None = None) -> float:
        """Waits until the weights may change again; milliseconds that took. As wsync.Publication.released."""
        if stream is not None:
            return self.sync.released(timeout, stream=stream)  # does not wait
        return float(await self._wait(self.sync.released_future, timeout, "released"))

    async def committed(self, timeout: float = 600.0, *, require: Require = "any") -> VersionReport:
        """Waits until every replica applied the version or was given up. As wsync.Publication.committed."""
        check_choice("require", require, get_args(Require))
        report: VersionReport = await self._wait(self.sync.committed_future, timeout, "committed")
        return self.sync._checked(report, require)

    async def _wait(self, future: Future[Any], timeout: float, what: str) -> Any:
        self.sync._check_wait(timeout, what)
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
        """Whether it is known what became of it."""
        return self.sync.done

    @property
    def progress(self) -> str:
        """Where the version is, for people."""
        return self.sync.progress


class Trainer(OfOneProcess):
    """One trainer agent's client: wsync.Trainer, with `await`. `sync` is what it wraps."""

    def __init__(
        self,
        socket: str = "unix:///run/wsync/trainer.sock",
        *,
        timeout: float = 10.0,
        reconnect_timeout: float = 0.8,
    ) -> None:
        """As wsync.Trainer."""
        self.sync = _trainer.Trainer(socket, timeout=timeout, reconnect_timeout=reconnect_timeout)

    async def register(
        self,
        tensors: Tensors,
        *,
        rename: Callable[[str], str | None] | None = None,
        copy: CopyPolicy = "never",
        cast: Cast | None = None,
        tied: Literal["first", "all"] = "first",
        adapters: AdapterChoice = "merged",
        modules_to_not_convert: tuple[str, ...] | list[str] = (),
        replace: bool = False,
        timeout: float = 60.0,
    ) -> Registration:
        """As wsync.Trainer.register, on another thread: `rename` and `cast` are called there.

        Cancelled, it goes on by itself; the next `register` is the one that counts.
        """
        return await asyncio.to_thread(
            self.sync.register,
            tensors,
            rename=rename,
            copy=copy,
            cast=cast,
            tied=tied,
            adapters=adapters,
            modules_to_not_convert=modules_to_not_convert,
            replace=replace,
            timeout=timeout,
        )

    @property
    def registration(self) -> Registration | None:
        """What the last register answered."""
        return self.sync.registration

    async def publish(
        self, version: int, *, weights: Tensors | None = None, synchronize: bool = True, stream: Stream | None = None
    ) -> Publication:
        """As wsync.Trainer.publish, on another thread. Cancelled, it goes on by itself: 'wsync status' tells."""
        publish = self.sync.publish
        return Publication(
            await asyncio.to_thread(publish, version, weights=weights, synchronize=synchronize, stream=stream)
        )

    async def wait_for_replicas(self, n: int = 1, *, timeout: float = 300.0) -> tuple[str, ...]:
        """As wsync.Trainer.wait_for_replicas. Cancelled, it looks no more."""
        n = whole_number("n", n, 1)
        check_seconds("timeout", timeout)
        give_up = time.monotonic() + timeout
        while True:
            ready, absent = await asyncio.to_thread(self.sync._ready_replicas)
            if len(ready) >= n:
                return tuple(ready)
            left = give_up - time.monotonic()
            if left <= 0:
                raise too_few(n, timeout, ready, absent)
            await asyncio.sleep(min(_trainer._LOOK, left))

    async def unregister(self, *, timeout: float = 30.0) -> bool:
        """As wsync.Trainer.unregister."""
        return await asyncio.to_thread(self.sync.unregister, timeout=timeout)

    async def close(self) -> None:
        """As wsync.Trainer.close; so does leaving an `async with` block."""
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


class Update(OfOneProcess):
    """One version that waits for the engine to pause: wsync.Update, with `await`."""

    def __init__(self, update: _updates.Update, rollout: Rollout) -> None:
        self.sync = update
        self.version = update.version
        self.in_place = update.in_place
        self._rollout = rollout.sync
        self._turn = rollout._turn

    async def apply(
        self,
        timeout: float = 120.0,
        *,
        on_layer: Callable[[Layer], None] | None = None,
        stream: Stream | None = None,
    ) -> _updates.Outcome:
        """As wsync.Update.apply; `on_layer` is called on another thread. `timeout` counts the wait for other calls as well.

        Cancelled before the agent was told of the pause, it never is, and the update comes again from the next `updates()`
        or is applied by another call. Afterwards the agent may write at any moment, so the task ends when it is known what
        became of the version, within `timeout`: `outcome` has it. Then CancelledError is raised, but where the weights are
        torn what `apply` ended with, TornUpdate mostly: the engine must stay paused. `asyncio.timeout` and `wait_for` take
        that long, too.
        """
        doing = f"apply of version {self.version}"
        return await self._whole(doing, lambda left: self.sync.apply(left, on_layer=on_layer, stream=stream), timeout)

    async def _whole(self, doing: str, what: Callable[[float], _T], timeout: float) -> _T:
        check_seconds("timeout", timeout)
        self._rollout._connection.check_process(doing)
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

    async def layers(self, timeout: float = 120.0, *, stream: Stream | None = None) -> AsyncGenerator[Layer, None]:
        """As wsync.Update.layers. A loop that is left early is closed by `contextlib.aclosing`, not by itself.

        Cancelled, or closed early, it ends when the agent writes no more. What that took is torn until the next version,
        unless nothing was written: layers are missing.
        """
        doing = f"layers of version {self.version}"
        give_up = time.monotonic() + timeout
        steps = self.sync.layers(timeout, stream=stream)

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
        """Once it is known how the update ended."""
        return self.sync.outcome


class Rollout(OfOneProcess):
    """One rollout agent's client: wsync.Rollout, with `await`. `sync`, which it wraps, has the bare protocol."""

    def __init__(self, socket: str = "unix:///run/wsync/rollout.sock", *, timeout: float = 10.0) -> None:
        """As wsync.Rollout."""
        self.sync = _rollout.Rollout(socket, timeout=timeout)
        self._turn = _Turn()
        # What threads took from the agent, with the call it came by. It outlives the task that asked for it, and goes to
        # the next one: the agent says it once.
        self._taken: deque[tuple[object, _updates.Update | Exception]] = deque()

    @property
    def serving_version(self) -> int:
        """The version in the engine's memory, for tagging samples; 0: none, or torn."""
        return self.sync.serving_version

    @property
    def serving_digest(self) -> str:
        """Its content digest, equal on all replicas; "" with version 0."""
        return self.sync.serving_digest

    @property
    def attached(self) -> bool:
        """Whether an engine is attached, or will be again when its agent is back."""
        return self.sync.attached

    @property
    def torn(self) -> bool:
        """The memory holds parts of two versions: do not serve."""
        return self.sync.torn

    async def plan(self, timeout: float = 60.0) -> Plan:
        """As wsync.Rollout.plan."""
        return await asyncio.to_thread(self.sync.plan, timeout)

    async def attach(
        self,
        destinations: Iterable[Destination] | Mapping[str, Tensor],
        *,
        engine: str = "python",
        allow_partial: bool = False,
        layer_events: bool = False,
        allocate: Allocate | None = None,
        layer_window: int = 0,
        module: Any = None,
        timeout: float = 60.0,
    ) -> _rollout.Attached:
        """As wsync.Rollout.attach, on another thread."""
        return await asyncio.to_thread(
            self.sync.attach,
            destinations,
            engine=engine,
            allow_partial=allow_partial,
            layer_events=layer_events,
            allocate=allocate,
            layer_window=layer_window,
            module=module,
            timeout=timeout,
        )

    async def updates(
        self, *, timeout: float | None = None, reattach_timeout: float = 60.0
    ) -> AsyncIterator[Update]:
        """As wsync.Rollout.updates: it ends when the engine is detached or the client closed, by whoever."""
        _rollout._check_times(timeout, reattach_timeout)
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
        """As wsync.Rollout.confirm."""
        check_seconds("timeout", timeout)
        self.sync._connection.check_process("confirm")
        await self._turn.run("confirm", self.sync.confirm, timeout)

    async def detach(self, *, timeout: float = 10.0) -> None:
        """As wsync.Rollout.detach: once it returns, the agent does not write there any more."""
        await asyncio.to_thread(self.sync.detach, timeout=timeout)

    async def close(self) -> None:
        """As wsync.Rollout.close; so does leaving an `async with` block."""
        await asyncio.to_thread(self.sync.close)

    async def __aenter__(self) -> Rollout:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
