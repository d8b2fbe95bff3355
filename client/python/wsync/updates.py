"""What an agent tells an engine, and what an engine does with it: events, and the updates for which it has to pause."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc

from . import _rpc, _wire
from .arguments import check_callable, check_seconds
from .catalog import Timings, hash_text, output_from, timings_from
from .errors import AgentUnavailable, ClientClosed, DeadlineExceeded, NotAttached, TornUpdate, WsyncError
from .layer_window import Layer, LayerWindow, WantedLayer
from .ownership import OfOneProcess
from .stream_events import Stream, StreamOrder

if TYPE_CHECKING:
    from .rollout import Rollout


_SLICE = 0.25  # seconds that an apply which waits may go on after it was called off


@dataclass(frozen=True, slots=True)
class Event:
    """One message of the agent, as it came.

    `kind`: "prepare" (a version is on its way; `in_place`: pause now), "apply" (staged: pause now), "layer_ready" (every
    byte of `layer` is in its place, not yet committed), "layer_wanted" (with a layer window: there is no place for `wanted`
    yet), "applied" (the memory holds exactly this version), "torn" (it
    holds parts of two: stay paused), "cancelled" (it will not come).
    """

    kind: str
    version: int
    in_place: bool = False
    reason: str = ""
    content_digest: str = ""
    timings: Timings | None = None
    layer: Layer | None = None
    wanted: WantedLayer | None = None

    @property
    def asks(self) -> bool:
        """Whether the agent waits for the engine to pause."""
        return self.kind == "apply" or (self.kind == "prepare" and self.in_place)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an update ended. Not `applied`: cancelled, nothing was touched, the version before is served on."""

    version: int
    applied: bool
    content_digest: str
    timings: Timings | None
    reason: str
    # False: applied on a stream. That it succeeded is told by `Rollout.confirm` or `updates`; the digest is "" until then.
    confirmed: bool = True

    def __str__(self) -> str:
        if not self.applied:
            return f"version {self.version} was not applied: {self.reason}"
        paused = "" if self.timings is None else f", paused for {self.timings.pause_ms:.1f} ms"
        return f"version {self.version} applied: content {self.content_digest[:8]}{paused}"


class Update(OfOneProcess):
    """One version that waits for the engine to pause."""

    def __init__(self, rollout: Rollout, event: Event) -> None:
        self.version = event.version
        self.in_place = event.in_place
        self.outcome: Outcome | None = None  # once `apply` or `layers` has ended, or `updates` has heard how it did
        self._rollout = rollout
        self._attachment = rollout._stream  # which asked for the pause
        self._called_off = False  # by another thread: the agent is told nothing more

    def apply(
        self,
        timeout: float = 120.0,
        *,
        on_layer: Callable[[Layer], None] | None = None,
        stream: Stream | None = None,
    ) -> Outcome:
        """Tells the agent that the engine is paused, and waits until its memory holds a complete version.

        Returns the version that was applied (a newer one, if this one was overtaken), or that it was cancelled and
        nothing was touched. When the update fails half-way the engine's weights are torn: this goes on waiting, paused,
        for the next complete version, also across a restart of the agent. TornUpdate when none came within `timeout`
        seconds: the engine must stay paused. DeadlineExceeded: nothing was touched. Whatever else ends it early leaves
        the replica torn as well, until `updates` has heard how the version ended.

        Called again it goes on where it was left: it returns the outcome that there is by now, or waits on for it, and
        tells the agent nothing twice. NotAttached: the attachment that asked for this version is over.

        `on_layer` is called on this thread for each layer as it becomes complete (attached with `layer_events`, agent in
        mode in_place), so that work on it overlaps the transfer. What landed is not committed yet; a version that is
        sent again calls it again for every layer. See `layers` for the same as a loop.

        `stream`: a torch.cuda.Stream, the one that reads the weights. The agent writes when everything that is in the
        stream now has been done; this returns at once, and what the stream gets from now on waits for the agent and reads
        the new version, which was verified and committed. The outcome is not `confirmed` yet: where the version fails
        after all, or the agent dies, the stream goes on, and `Rollout.confirm` or `updates` says what it has read. With
        an agent in mode in_place, whose bytes land before the commit, and while the weights are torn, it returns when
        they are committed. A stream that does not get there within the agent's limits costs the replica the version.
        It is this library's thread that lets the stream go on: do not wait for the stream in a call that keeps Python's
        lock (torch's own do not). StreamUnsupported: the engine's memory lies on the CPU, or this GPU's driver cannot
        let a stream wait.
        """
        check_callable("on_layer", on_layer)
        steps = self._follow(timeout, stream)
        with contextlib.closing(steps):
            for layer in steps:
                if on_layer is None:
                    continue
                try:
                    on_layer(layer)
                except BaseException as error:
                    steps.throw(error)
        assert self.outcome is not None
        return self.outcome

    def layers(self, timeout: float = 120.0, *, stream: Stream | None = None) -> Generator[Layer, None, None]:
        """As `apply`, one turn for each layer as it becomes complete; `outcome` says how it ended.

            for layer in update.layers():
                repack(layer.name, layer.tensors)

        With a layer window `layer.tensors` is what `allocate` gave, and is given up when the turn is over: the loop
        body must not keep it. A window of two lets the next layer land while the body runs. Leaving the loop early, or
        an exception in its body or in `allocate`, leaves this replica torn, unless nothing was written yet: stay paused
        for the next update. With a layer window it also fails the version here; without one the agent goes on, and
        `updates` hears that it was applied. The agent waits 6 s for a turn to end, and stage_timeout_ms
        (trainer.yaml) bounds them all. Without layer events there are no turns. Errors as `apply`.
        """
        yield from self._follow(timeout, stream)

    def _follow(self, timeout: float, stream: Stream | None) -> Generator[Layer, None, None]:
        rollout = self._rollout
        check_seconds("timeout", timeout)
        rollout._connection.check_process(f"version {self.version}")
        if self.outcome is not None:
            return
        rollout._check_attached(f"version {self.version}")
        if self._attachment is not rollout._stream and not rollout.torn:  # torn: any complete version is waited for
            raise NotAttached(
                f"version {self.version}: the attachment that asked for it is over",
                next_step="take the next one from updates()",
            )
        try:
            yield from self._steps(timeout, stream)
        finally:
            if rollout._writing and self.outcome is None:  # the agent may write until it says how the version ended
                rollout._give_up()

    def _steps(self, timeout: float, stream: Stream | None) -> Generator[Layer, None, None]:
        rollout = self._rollout
        deadline = time.monotonic() + timeout
        order: StreamOrder | None = None
        window = rollout._window
        landed: deque[Layer] = deque()
        while True:
            try:
                if self._called_off and not rollout._writing:
                    raise CalledOff(f"version {self.version}: its apply was called off")
                asked = rollout._asked
                if asked is not None:
                    landed.clear()
                    hold = stream is not None and not asked.in_place and not rollout.torn
                    if order is not None:  # torn or overtaken: the agent is done with it
                        order.end()
                    order = rollout._pause(asked.version, stream, hold=hold)
                    if hold:
                        self.outcome = Outcome(asked.version, True, "", None, "", confirmed=False)
                        rollout._open.clear()  # with weights that are not torn there is no other
                        return
                event = self._next(deadline)
            except AgentUnavailable as error:
                landed.clear()
                order = None
                if rollout._writing:
                    rollout._serving, rollout._digest, rollout._torn = 0, "", True
                self._find_agent(deadline, error)
                continue
            except (DeadlineExceeded, CalledOff) as error:
                if not rollout.torn and not rollout._writing:
                    raise
                why = "" if isinstance(error, CalledOff) else f" within {timeout:g} s"
                raise TornUpdate(f"version {self.version}: no complete version{why}: {error}") from None
            if event is None:
                continue
            if self.outcome is not None:
                if order is not None and self.outcome.applied:
                    order.end()
                return
            if event.wanted is not None:
                if window is not None:
                    window.provide(event.wanted)
            elif event.layer is not None:
                landed.append(event.layer if window is None else window.landed(event.layer))
            # Where there is room for another layer, its memory is given first: it lands while the engine works on this.
            while landed and not (window and window.room() and landed[-1].ready < landed[-1].layers):
                yield from _turn(landed.popleft(), window)

    def _next(self, deadline: float) -> Event | None:
        """None from time to time, to see whether this was called off."""
        try:
            return self._rollout._next(min(deadline, time.monotonic() + _SLICE))
        except DeadlineExceeded:
            if time.monotonic() >= deadline:
                raise
            return None

    def _let_end(self, timeout: float) -> None:
        """After `layers` was left in the middle: returns when the agent writes no more.

        The layers that nobody took are missing, so what was applied then is as torn for the engine.
        """
        rollout = self._rollout
        deadline = time.monotonic() + timeout
        try:
            while rollout._writing and self.outcome is None:
                rollout._next(deadline)
        except DeadlineExceeded as error:
            raise TornUpdate(f"version {self.version}: its end was not heard of within {timeout:g} s: {error}") from None
        except (AgentUnavailable, NotAttached, ClientClosed):
            return  # it does not write any more
        if self.outcome is not None and self.outcome.applied:
            rollout._serving, rollout._digest, rollout._torn = 0, "", True

    def _find_agent(self, deadline: float, error: AgentUnavailable) -> None:
        left = deadline - time.monotonic()
        try:
            if left <= 0 or self._called_off:
                raise error
            self._rollout._reattach(left)
            self._attachment = self._rollout._stream
        except (AgentUnavailable, DeadlineExceeded) as gone:
            if not self._rollout.torn:
                raise
            raise TornUpdate(f"version {self.version}: the agent went away while it wrote: {gone}") from None


def _turn(layer: Layer, window: LayerWindow | None) -> Generator[Layer, None, None]:
    try:
        yield layer
    except BaseException as error:  # GeneratorExit as well: the loop was left
        if window is not None:
            window.give_up(layer, error)
        raise
    if window is not None:
        window.take(layer)


class CalledOff(WsyncError):
    """`apply` had told the agent nothing, or it was done with it, when it was called off. Never leaves this package."""


# ---- the update stream


class Detached(NotAttached):
    """The updates ended because this process detached."""


class UpdateStream:
    """The Updates call: a thread reads it into a queue, so that waiting for it can have a deadline."""

    def __init__(
        self,
        connection: _rpc.Connection,
        stub: _wire.RolloutStub,
        attachment_id: str,
        heard: Callable[[UpdateStream, Event | None], None],
    ) -> None:
        """`heard` is called on the reading thread for each event, and with None when nothing more will come."""
        self.attachment_id = attachment_id
        self.detaching = False
        self.ended = False  # nothing more will come, though what came before may still wait to be read
        self._connection = connection
        self._outgoing: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._incoming: queue.SimpleQueue[Event | WsyncError] = queue.SimpleQueue()
        self._ended: WsyncError | None = None
        self._heard = heard
        hello = _wire.message("EngineHello")(attachment_id=attachment_id)
        self.send(_wire.message("EngineMessage")(hello=hello))
        self._call = stub.updates(iter(self._outgoing.get, None))
        self.silent = False  # the agent did not answer any more, and the call was ended here
        self._last = ("attach", time.monotonic())  # what the agent said last
        self._watch = connection.watch(self._hang_up)
        threading.Thread(target=self._read, name="wsync-updates", daemon=True).start()

    def send(self, message: Any) -> None:
        self._outgoing.put(message)

    def close(self) -> None:
        self.detaching = True
        self._call.cancel()
        self._outgoing.put(None)

    def _hang_up(self) -> None:
        """The agent does not answer any more, and would leave the call open."""
        self.silent = True
        self._call.cancel()

    def _read(self) -> None:
        end: WsyncError = self._connection.absent("its updates could not be read")
        try:
            end = self._read_all()
        finally:  # whatever happened: a stream or a thread may be waiting
            self._watch.end()
            self.ended = True
            self._heard(self, None)
            self._outgoing.put(None)
            self._incoming.put(end)

    def _read_all(self) -> WsyncError:
        """Why nothing more will come."""
        try:
            for message in self._call:
                event = _event(message)
                self._last = (f"{event.kind} of version {event.version}", time.monotonic())
                self._heard(self, event)
                self._incoming.put(event)
            end: WsyncError = self._connection.absent("it ended the updates: it is shutting down")
        except grpc.RpcError as error:
            code, _ = _rpc.code_and_text(error)
            end = _rpc.attach_error(self._connection, error, "updates")
            if code == grpc.StatusCode.NOT_FOUND:
                end = NotAttached(f"updates: {_rpc.code_and_text(error)[1]}")
            elif self.silent or code == grpc.StatusCode.UNAVAILABLE:
                how = "does not answer any more" if self.silent else f"was lost ({_rpc.code_and_text(error)[1]})"
                end = self._connection.gone(how, self._last[0], time.monotonic() - self._last[1])
        if self.detaching:
            return self._connection.closed("updates") if self._connection.is_closed else Detached("the engine detached")
        return end

    def get(self, deadline: float | None) -> Event:
        """The next event; DeadlineExceeded at `deadline` (monotonic; None: waits). What ended the call, once it has."""
        if self._ended is None:
            try:
                wait = None if deadline is None else max(deadline - time.monotonic(), 0.0)
                got = self._incoming.get(timeout=wait)
            except queue.Empty:
                raise DeadlineExceeded("no update came from the rollout agent in time") from None
            if isinstance(got, Event):
                return got
            self._ended = got
            self._incoming.put(got)  # another thread may wait as well
        raise self._ended


def _event(message: Any) -> Event:
    kind = message.WhichOneof("event")
    body = getattr(message, kind)
    if kind == "applied":
        return Event(kind, body.version, False, "", hash_text(body.content_digest), timings_from(body.timings))
    if kind == "prepare":
        return Event(kind, body.version, body.in_place)
    if kind == "layer_wanted":
        outputs = tuple(output_from(output) for output in body.outputs)
        return Event(kind, body.version, wanted=WantedLayer(body.layer, body.version, outputs, body.ticket))
    if kind == "layer_ready":
        return Event(kind, body.version, layer=Layer(body.layer, body.ready, body.layers, ticket=body.ticket))
    return Event(kind, body.version, reason=getattr(body, "reason", ""))
