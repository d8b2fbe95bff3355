"""The inference engine's side: say where weights belong, then follow the versions.

    rollout = wsync.Rollout("unix:///run/wsync/rollout.sock")
    rollout.attach(destinations)
    for update in rollout.updates():
        with engine.paused():
            update.apply()

The agent writes into the engine's own memory; no weight byte passes through Python.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import grpc

from . import _rpc, _wire, memory
from .arguments import check_callable, check_seconds, check_text, whole_number
from .catalog import Output, Plan, hash_text, output_from
from .destinations import Destination, Engine, dtype_of_destination
from .errors import (
    AgentError,
    AgentUnavailable,
    CatalogMismatch,
    ClientClosed,
    DeadlineExceeded,
    NotAttached,
    StreamUnsupported,
    TornUpdate,
    WsyncError,
)
from .hints import dtype_hint
from .layer_window import Allocate, LayerWindow
from .ownership import OfOneProcess
from .stream_events import LentEvents, Stream, StreamOrder, check_stream
from .tensors import Tensor, garbage_free
from .updates import Detached, Event, Outcome, Update, UpdateStream

_PLAN_TIMEOUT = 5.0  # of an agent that has just refused destinations by it

_log = logging.getLogger("wsync")


@dataclass(frozen=True, slots=True)
class Attached:
    """What the agent made of the destinations."""

    plan_hash: str
    bytes_per_version: int


@dataclass(frozen=True, slots=True)
class _Pending:
    """A version that was applied on a stream: whether it succeeded is not known yet."""

    version: int
    order: StreamOrder
    told: UpdateStream  # which says what becomes of it
    before: tuple[int, str]  # what was served


class Rollout(OfOneProcess):
    """One rollout agent's client. One thread follows the updates; properties may be read from any."""

    def __init__(self, socket: str = "unix:///run/wsync/rollout.sock", *, timeout: float = 10.0) -> None:
        """`socket`: the agent's local_socket. `timeout`: seconds to wait for the agent to answer at all."""
        check_text("socket", socket)
        check_seconds("timeout", timeout)
        self._connection = _rpc.Connection(socket, "wsync-rollout")
        self._stub = _wire.RolloutStub(self._connection.channel)
        self._timeout = timeout
        self._engine: Engine | None = None
        self._stream: UpdateStream | None = None
        self._serving = 0
        self._digest = ""
        self._torn = False
        self._events = LentEvents("")
        self._pending: _Pending | None = None
        self._put_back: deque[Event] = deque()
        self._asked: Event | None = None  # what the agent waits for: it asks for nothing else before
        self._writing = False  # it was told of the pause, and has not said yet how that ended
        self._open: list[Update] = []  # those that have no outcome yet
        self._gave_up: tuple[int, str, bool] | None = None  # what was served when the engine gave up at a layer

    # ---- what is served

    @property
    def serving_version(self) -> int:
        """The version in the engine's memory, for tagging samples; 0: none, or torn."""
        return self._serving

    @property
    def serving_digest(self) -> str:
        """Its content digest, equal on all replicas; "" with version 0."""
        return self._digest

    @property
    def torn(self) -> bool:
        """The memory holds parts of two versions: do not serve."""
        return self._torn

    @property
    def attached(self) -> bool:
        """Whether an engine is attached, or will be again when its agent is back."""
        return self._engine is not None

    # ---- attaching

    def plan(self, timeout: float = 60.0) -> Plan:
        """What the agent will deliver. Waits for a trainer to register; DeadlineExceeded says what is missing."""
        check_seconds("timeout", timeout)
        self._connection.check_open("plan")
        self._connection.wait(self._timeout)
        outputs: list[Output] = []
        first: Any = None
        try:
            for reply in self._stub.get_outputs(_wire.message("GetOutputsRequest")(), timeout=timeout):
                first = first or reply
                with garbage_free():  # not while waiting, which may be long
                    outputs.extend(map(output_from, reply.outputs))
        except grpc.RpcError as error:
            raise _rpc.attach_error(self._connection, error, "plan") from None
        except ValueError:  # gRPC's word for a channel that was closed meanwhile
            raise self._connection.closed("plan") from None
        pow2 = first.rules.scale_format == 2
        return Plan(tuple(outputs), hash_text(first.plan_hash), first.payload_bytes, first.rules.fp8, pow2)

    def attach(
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
    ) -> Attached:
        """Tells the agent where the engine wants its bytes. Waits for a trainer's catalog; checks everything against it.

        A mapping {output name: tensor} takes whole outputs. Private CPU tensors are moved to shared memory (their
        `.data`). `engine` is the name shown by 'wsync status'. `allow_partial`: outputs that nobody takes are dropped.
        `layer_events`: with an agent in mode in_place, hear of each layer when it is complete: `update.apply(on_layer=)`.

        `layer_window=W` and `allocate`, with an agent in mode in_place: the destinations of layers do not exist yet, and
        `destinations` are those of the tensors of no layer (embeddings, output head). When the first byte of a layer is
        there, `allocate(layer)` gives the layer's, in either form that `destinations` may have; it is called on the
        thread that follows the update. The layer's turn in `update.layers()` ends with its memory being given up, and at
        most W layers have memory at once: 1 for the least memory, 2 so that one lands while the engine works on another.
        A catalog whose layers are interleaved needs W for all that are under way together: CatalogMismatch says how many.

        `module`: the torch module that the tensors are of. Each version is refused (DestinationsMoved) where it holds others
        in their place by then. Without it only memory that moved is noticed.

        CatalogMismatch lists names, shapes and dtypes that disagree; AlreadyAttached; MemoryNotShareable; WrongDevice;
        DeadlineExceeded after `timeout` seconds says what is missing.
        """
        check_text("engine", engine)
        check_callable("allocate", allocate)
        check_seconds("timeout", timeout)
        layer_window = whole_number("layer_window", layer_window, 0)
        if (allocate is None) != (layer_window == 0):
            raise ValueError("allocate and layer_window=1 or more go together")
        self._connection.check_open("attach")
        window = None if allocate is None else LayerWindow(allocate, layer_window, self._tell, self._give_up)
        self.detach(timeout=self._timeout)  # by a call: the agent may see the end of the updates only after the attach
        if isinstance(destinations, Mapping):
            destinations = [Destination(name, tensor) for name, tensor in destinations.items()]
        destinations = list(destinations)
        self._open.clear()
        with contextlib.ExitStack() as undo:  # what was refused leaves nothing behind
            undo.callback(self._forget_engine)
            with garbage_free():
                self._engine = Engine(destinations, engine, allow_partial, layer_events, window, module, undo)
            self._events = LentEvents(self._engine.uuid)
            try:
                attached = self._attach_now(timeout)
            except CatalogMismatch as refused:
                raise self._explained(refused, destinations) from None
            undo.pop_all()
        return attached

    def _explained(self, refused: CatalogMismatch, destinations: list[Destination]) -> CatalogMismatch:
        """With what to do about it, where it is about dtypes: the plan says which side is in the wrong."""
        with contextlib.suppress(WsyncError):
            hint = dtype_hint(self.plan(_PLAN_TIMEOUT).by_name, ((d.output, dtype_of_destination(d)) for d in destinations))
            return CatalogMismatch(refused.text, names=refused.names, next_step=hint or refused.next_step)
        return refused

    def _forget_engine(self) -> None:
        self._engine = None

    def _attach_now(self, timeout: float) -> Attached:
        engine = self._engine
        if engine is None:  # detached meanwhile
            raise self._detached("attach")
        self._connection.wait(min(self._timeout, timeout))
        if self._stream is not None and self._stream.silent:  # it stood still: it may not know that the call was ended
            self._call_detach(self._stream, timeout)
        try:
            reply = self._stub.attach(iter(engine.request), timeout=timeout)
        except grpc.RpcError as error:
            raise _rpc.attach_error(self._connection, error) from None
        except ValueError:  # gRPC's word for a channel that was closed meanwhile
            raise self._detached("attach") from None
        if self._engine is not engine:  # detached during the call, which knew nothing of this attachment
            with contextlib.suppress(grpc.RpcError, ValueError):  # gone, or closed: it ends with the connection
                self._stub.detach(_wire.message("DetachRequest")(attachment_id=reply.attachment_id), timeout=timeout)
            raise self._detached("attach")
        self._serving, self._digest = 0, ""  # as the agent sees it: it does not know what the memory holds
        self._put_back.clear()
        self._asked, self._writing = None, False
        if engine.window is not None:
            engine.window.reset()
        try:
            self._stream = UpdateStream(self._connection, self._stub, reply.attachment_id, self._heard)
        except ValueError:
            raise self._detached("attach") from None
        attached = Attached(hash_text(reply.plan_hash), reply.bytes_per_version)
        where, size = self._connection.socket, attached.bytes_per_version / 1e6
        _log.info("attached to %s: %.1f MB per version, plan %s", where, size, attached.plan_hash[:8])
        return attached

    def _detached(self, doing: str) -> Detached | ClientClosed:
        """Why a call that was under way ended: somebody called `close`, or `detach`."""
        return self._connection.closed(doing) if self._connection.is_closed else Detached(f"{doing}: the engine detached")

    # ---- following

    def updates(self, *, timeout: float | None = None, reattach_timeout: float = 60.0) -> Iterator[Update]:
        """Yields each version for which the engine has to pause; `update.apply()` inside the pause.

        Until `detach` or `close`, which another thread may call. One that was yielded before and for which the agent still
        waits comes again with each call, not with each turn. `timeout`: DeadlineExceeded after this many seconds
        without a version. TornUpdate, AgentError: a version that was applied on a stream did not succeed after all; the
        first one says that the engine must pause. An agent that died, or has not answered for four seconds, is attached to
        again, for `reattach_timeout` seconds; then AgentUnavailable. CatalogMismatch: the trainer registered another
        catalog that the destinations do not fit.
        """
        _check_times(timeout, reattach_timeout)
        self._check_attached("updates")
        if (unanswered := self._unanswered()) is not None:
            yield unanswered
        yield from self._updates(timeout, reattach_timeout)

    def _check_attached(self, doing: str) -> None:
        self._connection.check_open(doing)
        if self._stream is None:
            raise NotAttached(f"{doing}: no engine is attached")

    def _unanswered(self) -> Update | None:
        asked, attachment = self._asked, self._stream
        if asked is None:
            return None
        same = (u for u in self._open if u.version == asked.version and u._attachment is attachment)
        return next(same, None)

    def _updates(self, timeout: float | None, reattach_timeout: float) -> Iterator[Update]:
        deadline = _deadline(timeout)
        while True:
            try:
                event = self._next(deadline)
            except AgentUnavailable as away:
                _log.warning("%s; attaching again", away)
                self._give_up_pending("the agent went away while it wrote")
                try:
                    self._reattach(reattach_timeout)
                except (Detached, ClientClosed):
                    return
                continue
            except (Detached, ClientClosed):
                return
            if event.asks:
                update = Update(self, event)
                self._open.append(update)
                yield update
                deadline = _deadline(timeout)

    def poll(self) -> Update | None:
        """The update that waits for a pause, or None: `updates` for engines that have a loop of their own.

        None also while the agent is away: the engine serves on, and is attached again by a later poll.
        """
        try:
            return next(self.updates(timeout=0.0, reattach_timeout=0.0), None)
        except (DeadlineExceeded, AgentUnavailable):
            return None

    def events(self, *, timeout: float | None = None) -> Iterator[Event]:
        """Every event as it comes, for engines that do the protocol themselves: answer with `paused`.

        NotAttached or ClientClosed ends it, when somebody has called `detach` or `close`.
        """
        _check_times(timeout, 0.0)
        self._check_attached("events")
        while True:
            yield self._next(_deadline(timeout))

    def paused(self, version: int) -> None:
        """The answer to "apply", and to "prepare" in place: nothing reads the weights until applied or cancelled.

        DestinationsMoved before anything is written, with the names.
        """
        self._pause(version, None)

    def _pause(self, version: int, stream: Stream | None, *, hold: bool = False) -> StreamOrder | None:
        """`hold`: the stream waits for the end of it, and nobody else: what becomes of it is pending."""
        self._check_attached(f"version {version}")
        updates = self._stream
        if self._engine is None or updates is None:  # detached meanwhile
            raise self._detached(f"version {version}")
        self._engine.check(version)
        paused = _wire.message("EnginePaused")(version=version)
        order = None
        if stream is None:
            memory.synchronize(self._engine.devices)
        else:
            device = check_stream(stream, self._engine.devices, f"apply version {version}")
            order = StreamOrder(self._events, device, stream)
            paused.after.CopyFrom(order.after.message)
            if hold:
                try:
                    order.hold(stream)  # first: where it cannot wait, the agent must not write
                except StreamUnsupported:
                    order.open()
                    raise
                self._engine.widen(stream=stream)
                self._pending = _Pending(version, order, updates, (self._serving, self._digest))
                self._serving, self._digest = version, ""
        self._asked, self._writing = None, not hold
        self._tell(paused=paused)
        if order is not None and updates.ended:  # before there was anything to be told of it
            order.open()
        return order

    def _next(self, deadline: float | None) -> Event:
        stream = self._stream
        if stream is None:
            raise self._detached("updates")
        if self._put_back:
            return self._put_back.popleft()
        try:
            event = stream.get(deadline)
        except (AgentUnavailable, DeadlineExceeded, Detached, ClientClosed):
            raise
        except WsyncError:
            if self._pending is not None:  # nobody will say what became of it
                self._pending, self._serving, self._digest, self._torn = None, 0, "", True
            raise
        if self._window is not None and event.kind in ("prepare", "applied", "torn", "cancelled"):
            self._window.reset()
        if event.asks:
            self._asked = event
        if (event.kind == "applied" and self._pending is None) or event.layer is not None:
            self._widen("" if event.layer is None else event.layer.name)
        if event.kind == "applied":
            if self._pending is not None:
                self._pending.order.end()
                self._pending = None
            self._serving, self._digest, self._torn = event.version, event.content_digest, False
            self._gave_up = None
        elif event.kind == "torn":
            self._give_up_pending(event.reason)
            self._serving, self._digest, self._torn = 0, "", True
            self._gave_up = None
        elif event.kind == "cancelled" and self._gave_up is not None:  # nothing was written
            (self._serving, self._digest, self._torn), self._gave_up = self._gave_up, None
        elif event.kind == "cancelled" and self._pending is not None and event.version == self._pending.version:
            pending, self._pending = self._pending, None
            pending.order.end()
            self._serving, self._digest = pending.before
            raise AgentError(
                f"version {event.version} was not applied after all: {event.reason}",
                next_step="what the stream computed since is from the version before, which is served on",
            )
        self._settle(event)
        return event

    def _widen(self, layer: str) -> None:
        """Before anybody hears that it is complete: whichever stream reads it then."""
        if self._engine is not None and self._engine.widen(layer):
            memory.synchronize(self._engine.devices)

    def _settle(self, event: Event) -> None:
        """What the event says of the updates: also of those that were left in the middle, and may be asked again."""
        if event.kind in ("applied", "torn", "cancelled"):
            self._writing = False
        if event.kind == "torn":
            _log.error("version %d: the weights are torn, the engine must stay paused: %s", event.version, event.reason)
        if event.kind == "applied" or (event.kind == "cancelled" and not self._torn):
            applied = event.kind == "applied"
            outcome = Outcome(event.version, applied, event.content_digest, event.timings, event.reason)
            _log.log(logging.INFO if applied else logging.WARNING, "%s", outcome)
            for update in self._open:
                update.outcome = outcome
            self._open.clear()

    # ---- applied on a stream, and not yet confirmed

    def confirm(self, timeout: float = 120.0) -> None:
        """Returns when the version that was applied on a stream is known to have succeeded; at once where none was.

        `updates` finds that out as well, by the next version. TornUpdate, AgentError: it did not; AgentUnavailable;
        DeadlineExceeded after `timeout` seconds.
        """
        check_seconds("timeout", timeout)
        self._connection.check_process("confirm")
        deadline = time.monotonic() + timeout
        others: list[Event] = []
        try:
            while self._pending is not None:
                event = self._next(deadline)
                if event.kind != "applied":
                    others.append(event)
        except AgentUnavailable:
            self._give_up_pending("the agent went away while it wrote")
            raise
        finally:
            self._put_back.extendleft(reversed(others))

    def _heard(self, told: UpdateStream, event: Event | None) -> None:
        """On the reading thread, before anybody else: the engine's host may be waiting for its stream, which waits too.

        None: nothing more will come.
        """
        pending = self._pending
        if pending is None or pending.told is not told:
            return
        if event is None:
            pending.order.open()
        elif event.kind == "cancelled":  # of another version: that one was not asked for
            if event.version == pending.version:
                pending.order.open()
        elif event.kind in ("applied", "torn") and event.version >= pending.version:
            pending.order.open()

    @property
    def _window(self) -> LayerWindow | None:
        return None if self._engine is None else self._engine.window

    def _tell(self, **message: Any) -> None:
        if self._stream is not None:
            self._stream.send(_wire.message("EngineMessage")(**message))

    def _give_up(self) -> None:
        """In an update: the weights are torn, until the agent says what became of the version."""
        if self._gave_up is not None or self._torn or self._stream is None:
            return
        self._gave_up = (self._serving, self._digest, self._torn)
        self._serving, self._digest, self._torn = 0, "", True

    def _give_up_pending(self, why: str) -> None:
        pending, self._pending = self._pending, None
        if pending is None:
            return
        if pending.told.silent:  # it may look for the event yet
            pending.order.open()
        else:
            pending.order.end()
        self._serving, self._digest, self._torn = 0, "", True
        raise TornUpdate(f"version {pending.version} was not applied after all: {why}")

    def _reattach(self, timeout: float) -> None:
        if self._stream is not None:
            self._stream.close()
        give_up = time.monotonic() + timeout
        while True:
            left = give_up - time.monotonic()
            try:
                self._attach_now(max(left, 0.1))
                return
            except (AgentUnavailable, DeadlineExceeded):
                if left <= 0:
                    raise
                time.sleep(0.1)  # the agent may be there and not yet have its coordinator

    # ---- ending

    def detach(self, *, timeout: float = 10.0) -> None:
        """Takes the memory back: once it returns, the agent does not write there any more.

        Calls that other threads have open end with NotAttached, and `updates` ends.
        """
        check_seconds("timeout", timeout)
        self._connection.check_process("detach")
        if self._stream is None:
            return
        self._stream.detaching = True
        try:
            self._call_detach(self._stream, timeout)
            _log.info("detached from %s", self._connection.socket)
        finally:
            self._let_go()

    def _call_detach(self, stream: UpdateStream, timeout: float) -> None:
        request = _wire.message("DetachRequest")(attachment_id=stream.attachment_id)
        try:
            self._stub.detach(request, timeout=timeout)
        except grpc.RpcError as error:
            code, _ = _rpc.code_and_text(error)
            if code not in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE):  # it let go already
                raise _rpc.detach_error(self._connection, error) from None

    def _let_go(self) -> None:
        if self._stream is not None:
            self._stream.close()
        if self._pending is not None:
            self._pending.order.open()
        self._stream, self._engine, self._pending = None, None, None
        self._put_back.clear()
        self._asked, self._writing, self._gave_up = None, False, None  # not `_open`: its outcomes may be on their way
        self._serving, self._digest, self._torn = 0, "", False

    def close(self) -> None:
        """Detaches, as far as the agent is there, and closes the connection.

        Calls that other threads have open end with ClientClosed, and `updates` ends. In a forked child it does nothing.
        """
        if self._connection.is_elsewhere:
            return
        self._connection.is_closed = True
        try:
            self.detach(timeout=5.0)
        except WsyncError:
            pass
        self._connection.close()

    def __enter__(self) -> Rollout:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_times(timeout: float | None, reattach_timeout: float) -> None:
    if timeout is not None:
        check_seconds("timeout", timeout)
    check_seconds("reattach_timeout", reattach_timeout)


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout
