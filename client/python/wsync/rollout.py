"""The inference engine's side: say where weights belong, then follow the versions.

    rollout = wsync.Rollout("unix:///run/wsync/rollout.sock")
    rollout.attach(destinations)
    for update in rollout.updates():
        with engine.paused():
            update.apply()

The agent writes into the engine's own memory; no weight byte passes through Python.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import grpc

from . import _rpc, _wire, memory
from .catalog import Dtype, Output, Plan, Timings, hash_text, matrix, output_from, tensor_message, timings_from
from .errors import AgentUnavailable, CatalogMismatch, DeadlineExceeded, DestinationsMoved
from .errors import MemoryNotShareable, NotAttached, TornUpdate, WsyncError
from .tensors import Tensor, View, is_torch, pointer_reader, view_of


@dataclass(frozen=True, slots=True)
class Destination:
    """A slice of an output -> memory of the engine.

    `target` holds exactly the slice: `rows` x `cols` of the output's matrix view (a scalar is 1 x 1, [n] one row of n,
    [a, b, c] a*b rows of c), rows evenly spaced, elements of a row adjacent. Without `rows` and `cols` the target holds
    the whole output. `shape` and `dtype` are the whole output's as the engine expects it; by default the target's.
    """

    output: str
    target: Tensor | View
    shape: tuple[int, ...] | None = None
    rows: tuple[int, int] | None = None
    cols: tuple[int, int] | None = None
    dtype: Dtype | None = None


@dataclass(frozen=True, slots=True)
class Attached:
    """What the agent made of the destinations."""

    plan_hash: str
    bytes_per_version: int


@dataclass(frozen=True, slots=True)
class Event:
    """One message of the agent, as it came.

    `kind`: "prepare" (a version is on its way; `in_place`: pause now), "apply" (staged: pause now), "layer_ready" (every
    byte of `layer` is in its place, not yet committed), "applied" (the memory holds exactly this version), "torn" (it
    holds parts of two: stay paused), "cancelled" (it will not come).
    """

    kind: str
    version: int
    in_place: bool = False
    reason: str = ""
    content_digest: str = ""
    timings: Timings | None = None
    layer: Layer | None = None


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer whose bytes have all landed. `name`: "model.layers.17"; "": the tensors of no layer."""

    name: str
    ready: int  # layers complete, with this one
    layers: int  # of the model


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an update ended. Not `applied`: cancelled, nothing was touched, the version before is served on."""

    version: int
    applied: bool
    content_digest: str
    timings: Timings | None
    reason: str


class Rollout:
    """One rollout agent's client. One thread follows the updates; properties may be read from any."""

    def __init__(self, socket: str = "unix:///run/wsync/rollout.sock", *, timeout: float = 10.0) -> None:
        """`socket`: the agent's local_socket. `timeout`: seconds to wait for the agent to answer at all."""
        self._connection = _rpc.Connection(socket, "wsync-rollout")
        self._stub = _wire.RolloutStub(self._connection.channel)
        self._timeout = timeout
        self._engine: _Engine | None = None
        self._stream: _Stream | None = None
        self._serving = 0
        self._digest = ""
        self._torn = False

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
        self._connection.wait(self._timeout)
        outputs: list[Output] = []
        first: Any = None
        try:
            for reply in self._stub.get_outputs(_wire.message("GetOutputsRequest")(), timeout=timeout):
                first = first or reply
                outputs.extend(output_from(output) for output in reply.outputs)
        except grpc.RpcError as error:
            raise _rpc.attach_error(self._connection, error) from None
        pow2 = first.rules.scale_format == 2
        return Plan(tuple(outputs), hash_text(first.plan_hash), first.payload_bytes, first.rules.fp8, pow2)

    def attach(
        self,
        destinations: Iterable[Destination] | Mapping[str, Tensor],
        *,
        engine: str = "python",
        allow_partial: bool = False,
        layer_events: bool = False,
        timeout: float = 60.0,
    ) -> Attached:
        """Tells the agent where the engine wants its bytes. Waits for a trainer's catalog; checks everything against it.

        A mapping {output name: tensor} takes whole outputs. Private CPU tensors are moved to shared memory (their
        `.data`). `engine` is the name shown by 'wsync status'. `allow_partial`: outputs that nobody takes are dropped.
        `layer_events`: with an agent in mode in_place, hear of each layer when it is complete: `update.apply(on_layer=)`.

        CatalogMismatch lists names, shapes and dtypes that disagree; AlreadyAttached; MemoryNotShareable; WrongDevice;
        DeadlineExceeded after `timeout` seconds says what is missing.
        """
        self._let_go()
        if isinstance(destinations, Mapping):
            destinations = [Destination(name, tensor) for name, tensor in destinations.items()]
        self._engine = _Engine(list(destinations), engine, allow_partial, layer_events)
        try:
            return self._attach_now(timeout)
        except WsyncError:
            self._engine = None
            raise

    def _attach_now(self, timeout: float) -> Attached:
        if self._engine is None:  # detached meanwhile
            raise _Detached("the engine detached")
        self._connection.wait(min(self._timeout, timeout))
        try:
            reply = self._stub.attach(iter(self._engine.request), timeout=timeout)
        except grpc.RpcError as error:
            raise _rpc.attach_error(self._connection, error) from None
        self._serving, self._digest = 0, ""  # as the agent sees it: it does not know what the memory holds
        self._stream = _Stream(self._connection, self._stub, reply.attachment_id)
        return Attached(hash_text(reply.plan_hash), reply.bytes_per_version)

    # ---- following

    def updates(self, *, timeout: float | None = None, reattach_timeout: float = 60.0) -> Iterator[Update]:
        """Yields each version for which the engine has to pause; `update.apply()` inside the pause.

        Until `detach` or `close`, which another thread may call. `timeout`: DeadlineExceeded after this many seconds
        without a version. An agent that restarts is attached to again, for `reattach_timeout` seconds; then
        AgentUnavailable. CatalogMismatch: the trainer registered another catalog that the destinations do not fit.
        """
        deadline = _deadline(timeout)
        while True:
            try:
                event = self._next(deadline)
            except AgentUnavailable:
                self._reattach(reattach_timeout)
                continue
            except _Detached:
                return
            if event.kind == "apply" or (event.kind == "prepare" and event.in_place):
                yield Update(self, event)
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
        """Every event as it comes, for engines that do the protocol themselves: answer with `paused`."""
        while True:
            yield self._next(_deadline(timeout))

    def paused(self, version: int) -> None:
        """The answer to "apply", and to "prepare" in place: nothing reads the weights until applied or cancelled.

        DestinationsMoved before anything is written, with the names.
        """
        stream = self._stream
        if self._engine is None or stream is None:
            raise NotAttached(f"version {version}: no engine is attached")
        self._engine.check(version)
        memory.synchronize(self._engine.devices)
        stream.send(_wire.message("EngineMessage")(paused=_wire.message("EnginePaused")(version=version)))

    def _next(self, deadline: float | None) -> Event:
        if self._stream is None:
            raise NotAttached("no engine is attached")
        event = self._stream.get(deadline)
        if event.kind == "applied":
            self._serving, self._digest, self._torn = event.version, event.content_digest, False
        elif event.kind == "torn":
            self._serving, self._digest, self._torn = 0, "", True
        return event

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
        """Takes the memory back: once it returns, the agent does not write there any more."""
        if self._stream is None:
            return
        self._stream.detaching = True
        request = _wire.message("DetachRequest")(attachment_id=self._stream.attachment_id)
        try:
            self._stub.detach(request, timeout=timeout)
        except grpc.RpcError as error:
            code, _ = _rpc.code_and_text(error)
            if code not in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE):  # it let go already
                raise _rpc.attach_error(self._connection, error) from None
        finally:
            self._let_go()

    def _let_go(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream, self._engine = None, None
        self._serving, self._digest, self._torn = 0, "", False

    def close(self) -> None:
        """Detaches, as far as the agent is there, and closes the connection."""
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


class Update:
    """One version that waits for the engine to pause."""

    def __init__(self, rollout: Rollout, event: Event) -> None:
        self.version = event.version
        self.in_place = event.in_place
        self._rollout = rollout

    def apply(self, timeout: float = 120.0, *, on_layer: Callable[[Layer], None] | None = None) -> Outcome:
        """Tells the agent that the engine is paused, and waits until its memory holds a complete version.

        Returns the version that was applied (a newer one, if this one was overtaken), or that it was cancelled and
        nothing was touched. When the update fails half-way the engine's weights are torn: this goes on waiting, paused,
        for the next complete version, also across a restart of the agent. TornUpdate when none came within `timeout`
        seconds: the engine must stay paused. DeadlineExceeded: nothing was touched.

        `on_layer` is called on this thread for each layer as it becomes complete (attached with `layer_events`, agent in
        mode in_place), so that work on it overlaps the transfer. What landed is not committed yet; a version that is
        sent again calls it again for every layer.
        """
        rollout = self._rollout
        deadline = time.monotonic() + timeout
        asked: int | None = self.version
        began = False  # memory may have been touched by an agent that is gone
        while True:
            try:
                if asked is not None:
                    rollout.paused(asked)
                    asked, began = None, True
                event = rollout._next(deadline)
            except AgentUnavailable as error:
                if began:
                    rollout._serving, rollout._digest, rollout._torn = 0, "", True
                self._find_agent(deadline, error)
                continue
            except DeadlineExceeded as error:
                if not rollout.torn:
                    raise
                raise TornUpdate(f"version {self.version}: no complete version within {timeout:g} s: {error}") from None
            if event.kind == "apply" or (event.kind == "prepare" and event.in_place):
                asked = event.version
            elif event.kind == "applied":
                return Outcome(event.version, True, event.content_digest, event.timings, "")
            elif event.layer is not None and on_layer is not None:
                on_layer(event.layer)
            elif event.kind == "cancelled" and not rollout.torn:
                return Outcome(event.version, False, "", None, event.reason)

    def _find_agent(self, deadline: float, error: AgentUnavailable) -> None:
        left = deadline - time.monotonic()
        try:
            if left <= 0:
                raise error
            self._rollout._reattach(left)
        except (AgentUnavailable, DeadlineExceeded) as gone:
            if not self._rollout.torn:
                raise
            raise TornUpdate(f"version {self.version}: the agent went away while it wrote: {gone}") from None


# ---- the engine's memory


class _Engine:
    """Destinations as the agent wants to hear of them, ready to be sent again."""

    def __init__(self, destinations: list[Destination], engine: str, allow_partial: bool, layer_events: bool) -> None:
        views = [d.target if isinstance(d.target, View) else view_of(d.target) for d in destinations]
        torch_ones = {id(view.tensor): (d.output, view) for d, view in zip(destinations, views, strict=True)
                      if is_torch(view.tensor)}  # fmt: skip
        whole = [(name, view.tensor, view) for name, view in torch_ones.values() if view.contiguous]
        moved = memory.share_viewed(whole, "engine weights")
        handles = memory.Handles()
        entries = [
            _destination(destination, view_of(destination.target) if id(destination.target) in moved else view, handles)
            for destination, view in zip(destinations, views, strict=True)
        ]
        header = _wire.message("AttachHeader")(
            pid=os.getpid(),
            engine=engine,
            handles=handles.messages(),
            allow_partial=allow_partial,
            layer_events=layer_events,
        )
        self.request = _chunks(entries, header)
        self._names = [name for name, _ in torch_ones.values()]
        self._readers: list[Callable[[], int]] = [pointer_reader(view.tensor) for _, view in torch_ones.values()]
        self._addresses = [read() for read in self._readers]
        self.devices = {view.device for _, view in torch_ones.values()}
        self._held = handles

    def check(self, version: int) -> None:
        now = [read() for read in self._readers]
        if now != self._addresses:
            moved = [name for name, a, b in zip(self._names, now, self._addresses, strict=True) if a != b]
            raise DestinationsMoved(
                f"version {version}: the engine's memory lies elsewhere than when it was attached: {moved[0]!r}"
                + (f" and {len(moved) - 1} more" if len(moved) > 1 else ""),
                names=moved,
            )


_DESTINATION = _wire.message("Destination")


def _destination(destination: Destination, view: View, handles: memory.Handles) -> Any:
    name = destination.output
    if view.row_pitch is None:
        raise MemoryNotShareable(
            f"'{name}': the rows of the target (shape {view.shape}) are not evenly spaced",
            names=[name],
            next_step="give a target whose last dimension is contiguous, or several destinations",
        )
    shape = view.shape if destination.shape is None else destination.shape
    all_rows, all_cols = matrix(shape)
    rows = destination.rows or (0, all_rows)
    cols = destination.cols or (0, all_cols)
    if (rows[1] - rows[0], cols[1] - cols[0]) != matrix(view.shape):
        raise CatalogMismatch(
            f"'{name}': rows {rows} x columns {cols} do not fit the target's {view.rows} x {view.cols}", names=[name]
        )
    handle, offset = handles.locate(name, view)
    dtype = view.dtype if destination.dtype is None else destination.dtype
    return _DESTINATION(
        output=tensor_message(name, dtype, shape),
        row_begin=rows[0],
        row_end=rows[1],
        col_begin=cols[0],
        col_end=cols[1],
        handle=handle,
        offset_bytes=offset,
        row_pitch_bytes=view.row_pitch,
    )


def _chunks(entries: list[Any], header: Any) -> list[Any]:
    request = _wire.message("AttachRequest")
    step = _rpc.TENSORS_PER_MESSAGE
    rest = range(step, len(entries), step)
    return [request(header=header, destinations=entries[:step])] + [
        request(destinations=entries[begin : begin + step]) for begin in rest
    ]


# ---- the update stream


class _Detached(NotAttached):
    """The updates ended because this process detached."""


class _Stream:
    """The Updates call: a thread reads it into a queue, so that waiting for it can have a deadline."""

    def __init__(self, connection: _rpc.Connection, stub: _wire.RolloutStub, attachment_id: str) -> None:
        self.attachment_id = attachment_id
        self.detaching = False
        self._connection = connection
        self._outgoing: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._incoming: queue.SimpleQueue[Event | WsyncError] = queue.SimpleQueue()
        self._ended: WsyncError | None = None
        hello = _wire.message("EngineHello")(attachment_id=attachment_id)
        self.send(_wire.message("EngineMessage")(hello=hello))
        self._call = stub.updates(iter(self._outgoing.get, None))
        threading.Thread(target=self._read, name="wsync-updates", daemon=True).start()

    def send(self, message: Any) -> None:
        self._outgoing.put(message)

    def close(self) -> None:
        self.detaching = True
        self._call.cancel()
        self._outgoing.put(None)

    def _read(self) -> None:
        try:
            for message in self._call:
                self._incoming.put(_event(message))
            end: WsyncError = self._connection.absent("it ended the updates: it is shutting down")
        except grpc.RpcError as error:
            code, _ = _rpc.code_and_text(error)
            end = _rpc.attach_error(self._connection, error)
            if code == grpc.StatusCode.NOT_FOUND:
                end = NotAttached(f"updates: {_rpc.code_and_text(error)[1]}")
        if self.detaching:
            end = _Detached("the engine detached")
        self._outgoing.put(None)
        self._incoming.put(end)

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
        raise self._ended


def _event(message: Any) -> Event:
    kind = message.WhichOneof("event")
    body = getattr(message, kind)
    if kind == "applied":
        return Event(kind, body.version, False, "", hash_text(body.content_digest), timings_from(body.timings))
    if kind == "prepare":
        return Event(kind, body.version, body.in_place)
    if kind == "layer_ready":
        return Event(kind, body.version, layer=Layer(body.layer, body.ready, body.layers))
    return Event(kind, body.version, reason=getattr(body, "reason", ""))


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout
