"""The training process's side: register the weights once, publish a version per step.

    trainer = wsync.Trainer("unix:///run/wsync/trainer.sock")
    trainer.register(model.named_parameters())
    sync = trainer.publish(version=step)    # returns at once
    sync.released()                         # weights may change again
    report = sync.committed()               # what each replica made of it
"""

from __future__ import annotations

import _thread
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

import grpc

from . import _rpc, _wire, memory
from .catalog import VersionReport, hash_text, report_from, tensor_message
from .errors import AgentUnavailable, CatalogMismatch, DeadlineExceeded, MemoryNotShareable
from .errors import NotRegistered, WeightsMoved, WsyncError
from .tensors import Tensor, Tensors, View, is_torch, named, plain, pointer_reader, view_of

CopyPolicy = Literal["never", "if_needed", "always"]


@dataclass(frozen=True, slots=True)
class Registration:
    """What the agent made of the registered weights."""

    tensors: int
    quantized_tensors: int
    payload_bytes: int  # per replica and version
    wire_bytes: int
    buckets: int
    plan_hash: str
    committed_version: int  # what the group has already (0: nothing): publish a higher one
    tied: dict[str, str]  # left-out name -> the name whose memory it shares
    copied: tuple[str, ...]  # sent from a copy that publish refreshes


@dataclass(slots=True)
class _Weight:
    name: str
    source: Tensor  # the caller's
    lent: Tensor  # what the agent reads: `source`, or a copy of it
    view: View  # of `lent`


class Trainer:
    """One trainer agent's client. Methods may be called from any thread, one at a time; publications from any."""

    def __init__(self, socket: str = "unix:///run/wsync/trainer.sock", *, timeout: float = 10.0) -> None:
        """`socket`: the agent's local_socket. `timeout`: seconds to wait for the agent to answer at all."""
        self._connection = _rpc.Connection(socket, "wsync-trainer")
        self._stub = _wire.TrainerStub(self._connection.channel)
        self._timeout = timeout
        self._lock = threading.Lock()  # of the three below: publications register again from their threads
        self._id = ""
        self._registration: Registration | None = None
        self._request: list[Any] = []  # messages of the present registration
        self._weights: list[_Weight] = []
        self._copies: list[_Weight] = []
        self._addresses: list[int] = []
        self._readers: list[Callable[[], int]] = []
        self._devices: set[str] = set()

    # ---- registering

    def register(
        self,
        tensors: Tensors,
        *,
        rename: Callable[[str], str | None] | None = None,
        copy: CopyPolicy = "never",
        cast: Callable[[str, Tensor], Any] | None = None,
        tied: Literal["first", "all"] = "first",
        modules_to_not_convert: tuple[str, ...] | list[str] = (),
        replace: bool = False,
        timeout: float = 60.0,
    ) -> Registration:
        """Tells the agent which weights there are and where they lie. Once; again after memory moved.

        `tensors`: (name, tensor) pairs, a mapping, or a module. Any shape; dtypes of torch and numpy. FP32 and FP16
        weights are quantized as BF16 ones are; FP8 weights with their `weight_scale_inv` pass through unchanged.

        `rename(name)` gives the checkpoint's name (see wsync.names), None leaves the tensor out. `cast(name, tensor)`
        gives a dtype to send a copy in, or None: for FP32 masters of weights that stay unquantized.

        `copy`: "never": the agent reads the tensors themselves; private CPU tensors are moved into shared memory
        (their `.data`). "if_needed": what cannot be lent (non-contiguous, private numpy) is copied, and copied again
        by each publish. "always": everything is, and may change right after publish returned.

        `tied`: of tensors that share memory, send "first" or "all".

        CatalogMismatch, MemoryNotShareable and WrongDevice name the tensors; AlreadyRegistered: another process holds
        the agent (`replace=True` takes over); AgentUnavailable; DeadlineExceeded after `timeout` seconds.
        """
        weights, tied_names = _collect(tensors, rename, tied)
        _lend(weights, copy, cast)
        handles = memory.Handles()
        places = [handles.locate(weight.name, weight.view) for weight in weights]
        request = _messages(weights, places, handles, list(modules_to_not_convert), replace)
        self._connection.wait(self._timeout)
        reply = self._call_register(request, timeout)
        request[0].header.replace = False  # to take over was asked for once, not whenever the agent restarts
        with self._lock:
            self._request = request
            self._id = reply.registration_id
        self._weights = weights
        self._copies = [weight for weight in weights if weight.lent is not weight.source]
        lent = [weight.lent for weight in weights if weight.lent is weight.source and is_torch(weight.lent)]
        self._readers = [pointer_reader(tensor) for tensor in lent]
        self._addresses = [read() for read in self._readers]
        self._devices = {weight.view.device for weight in weights}
        self._registration = _registration(reply, tied_names, self._copies)
        return self._registration

    def _call_register(self, request: list[Any], timeout: float) -> Any:
        try:
            return self._stub.register(iter(request), timeout=timeout)
        except grpc.RpcError as error:
            raise _rpc.register_error(self._connection, error) from None

    def _register_again(self, lost: str) -> str:
        """The id of a registration other than `lost`: the agent restarted and forgot ours."""
        with self._lock:
            if self._id == lost:
                self._connection.wait(self._timeout)
                self._id = self._call_register(self._request, 60.0).registration_id
            return self._id

    @property
    def registration(self) -> Registration | None:
        """What the last register answered."""
        return self._registration

    # ---- publishing

    def publish(self, version: int, *, weights: Tensors | None = None, synchronize: bool = True) -> Publication:
        """Makes the present content of the registered weights version `version` (above 0, only grows).

        Returns at once; what comes of it is told by the publication. The weights must not change before `released`.
        `weights`: (name, tensor) pairs to fill registered copies from, under the registered names: gathered shards.
        `synchronize`: wait for the GPU work queued so far first, which may still write the weights.

        WeightsMoved before anything is read, with the names. An agent that restarted since is registered with again.
        """
        if self._registration is None:
            raise NotRegistered(f"publish version {version}: no weights are registered")
        self._check_addresses(version)
        if weights is not None:
            self._fill(named(weights))
        elif self._copies:
            _refresh(self._copies)
        if synchronize:
            memory.synchronize(self._devices)
        return Publication(self, version)

    def _check_addresses(self, version: int) -> None:
        if [read() for read in self._readers] == self._addresses:
            return
        lent = [weight for weight in self._weights if weight.lent is weight.source and is_torch(weight.lent)]
        moved = [w.name for w, read, at in zip(lent, self._readers, self._addresses, strict=True) if read() != at]
        shown = ", ".join(repr(name) for name in moved[:3]) + (f" and {len(moved) - 3} more" if len(moved) > 3 else "")
        raise WeightsMoved(f"publish version {version}: registered weights lie elsewhere now: {shown}", names=moved)

    def _fill(self, tensors: list[tuple[str, Tensor]]) -> None:
        by_name = {weight.name: weight for weight in self._weights}
        unknown = [name for name, _ in tensors if name not in by_name]
        given = {name for name, _ in tensors}
        missing = [weight.name for weight in self._copies if weight.name not in given]
        if unknown or missing:
            raise CatalogMismatch(
                f"publish: {len(unknown)} given weights are not registered, {len(missing)} registered copies are not given",
                names=[*unknown, *missing],
                next_step="give every registered copy, under the name it was registered with",
            )
        for name, tensor in tensors:
            _copy_into(by_name[name].lent, tensor)

    # ---- ending

    def unregister(self, *, timeout: float = 30.0) -> bool:
        """Takes the weights back; a version whose bytes are still being read is aborted. True if there was one."""
        if self._registration is None:
            return False
        request = _wire.message("UnregisterRequest")(registration_id=self._id)
        try:
            return bool(self._stub.unregister(request, timeout=timeout).aborted_version)
        except grpc.RpcError as error:
            code, text = _rpc.code_and_text(error)
            if code == grpc.StatusCode.UNAVAILABLE:
                raise self._connection.absent(text) from None
            if code == grpc.StatusCode.FAILED_PRECONDITION:
                return False  # the agent let go of it already
            raise _rpc.publish_error(self._connection, error, 0) from None
        finally:
            self._forget()

    def _forget(self) -> None:
        self._registration = None
        self._weights, self._copies, self._readers, self._addresses = [], [], [], []

    def close(self) -> None:
        """Unregisters, as far as the agent is there, and closes the connection."""
        try:
            self.unregister(timeout=5.0)
        except WsyncError:
            pass
        self._connection.close()

    def __enter__(self) -> Trainer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Publication:
    """One version on its way. Every wait has a limit; the version goes on whether or not anybody waits."""

    def __init__(self, trainer: Trainer, version: int) -> None:
        self.version = version
        self._trainer = trainer
        self._progress: Any = None
        self._accepted = False
        self.released_future: Future[float] = Future()  # milliseconds from accepted to released
        self.committed_future: Future[VersionReport] = Future()
        self._registration_id = trainer._id
        self._call = self._start()  # here: two publishes in a row reach the agent in that order
        _thread.start_new_thread(self._follow, ())  # threading.Thread's start waits until the thread has begun

    def _start(self) -> Any:
        request = _wire.message("PublishRequest")(registration_id=self._registration_id, version=self.version)
        return self._trainer._stub.publish(request)

    def _follow(self) -> None:
        try:
            try:
                report = self._read()
            except grpc.RpcError as error:
                if not self._may_retry(error):
                    raise
                self._registration_id = self._trainer._register_again(self._registration_id)
                self._call = self._start()
                report = self._read()
        except grpc.RpcError as error:
            self._fail(_rpc.publish_error(self._trainer._connection, error, self.version))
        except WsyncError as error:
            self._fail(error)
        else:
            if not self.released_future.done():  # committed before: nothing had to be read
                self.released_future.set_result(0.0)
            self.committed_future.set_result(report)

    def _read(self) -> VersionReport:
        for event in self._call:
            kind = event.WhichOneof("event")
            if kind == "accepted":
                self._accepted = True
            elif kind == "progress":
                self._progress = event.progress
            elif kind == "released":
                self.released_future.set_result(event.released.elapsed_ms)
            elif kind == "committed":
                return report_from(event.committed)
        raise AgentUnavailable(
            f"publish version {self.version}: wsync-trainer ended the call without a report",
            next_step="'wsync status' tells what was committed",
        )

    def _may_retry(self, error: grpc.RpcError) -> bool:
        """Whether the agent forgot us, and the weights still hold what this publish is about."""
        if self.released_future.done():
            return False
        code, text = _rpc.code_and_text(error)
        if code == grpc.StatusCode.UNAVAILABLE:
            return "replicas" not in text
        return code == grpc.StatusCode.FAILED_PRECONDITION and self._registration_id in text

    def _fail(self, error: WsyncError) -> None:
        if not self.released_future.done():
            self.released_future.set_exception(error)
        self.committed_future.set_exception(error)

    def released(self, timeout: float = 120.0) -> float:
        """Waits until the weights may change again; milliseconds that took. Raises what became of the version."""
        return float(self._wait(self.released_future, timeout, "released"))

    def committed(self, timeout: float = 600.0) -> VersionReport:
        """Waits until every replica applied the version or was given up.

        StaleVersion, InvalidWeights (NaN: names), TooFewReplicas, PublishFailed, AgentUnavailable.
        """
        report: VersionReport = self._wait(self.committed_future, timeout, "committed")
        return report

    def _wait(self, future: Future[Any], timeout: float, what: str) -> Any:
        try:
            return future.result(timeout)
        except FutureTimeout:
            if future.done():  # it is the version's own DeadlineExceeded
                raise
            raise DeadlineExceeded(
                f"version {self.version} was not {what} within {timeout:g} s: {self.progress}"
            ) from None

    @property
    def done(self) -> bool:
        return self.committed_future.done()

    @property
    def progress(self) -> str:
        """Where the version is, for people."""
        p = self._progress
        if p is None:
            return "accepted" if self._accepted else "waits for the agent to accept it"
        return (
            f"{p.encoded_bytes} of {p.total_bytes} bytes encoded, {p.sent_bytes} sent, "
            f"{p.staged_replicas} of {p.replicas} replicas staged, {p.applied_replicas} applied"
        )


# ---- what register does with the tensors


def _collect(
    tensors: Tensors, rename: Callable[[str], str | None] | None, tied: str
) -> tuple[list[_Weight], dict[str, str]]:
    weights: list[_Weight] = []
    tied_names: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for own_name, tensor in named(tensors):
        name = rename(own_name) if rename else own_name
        if name is None:
            continue
        view = view_of(tensor)
        memory_of = (view.address, view.shape, view.dtype, view.device)
        if tied == "first" and view.nbytes and seen.setdefault(memory_of, name) != name:
            tied_names[name] = seen[memory_of]
            continue
        weights.append(_Weight(name, tensor, tensor, view))
    if not weights:
        raise CatalogMismatch("register: there are no tensors", next_step="pass model.named_parameters()")
    return weights, tied_names


def _lend(weights: list[_Weight], copy: CopyPolicy, cast: Callable[[str, Tensor], Any] | None) -> None:
    """Sees to it that an agent could open every weight: as it is, moved to shared memory, or as a copy."""
    private: list[_Weight] = []
    copied: list[_Weight] = []
    dtypes: dict[str, Any] = {}
    for weight in weights:
        view = weight.view
        dtype = cast(weight.name, weight.source) if cast else None
        dtypes[weight.name] = weight.source.dtype if dtype is None else dtype
        if copy == "always" or dtypes[weight.name] != weight.source.dtype:
            copied.append(weight)
        elif not view.contiguous:
            if copy == "never":
                raise MemoryNotShareable(
                    f"'{weight.name}' of shape {view.shape} is not contiguous",
                    names=[weight.name],
                    next_step="make it contiguous, or register with copy='if_needed'",
                )
            copied.append(weight)
        elif view.device == "cpu":
            if copy == "if_needed" and not memory.can_be_shared(weight.source, view):
                copied.append(weight)
            else:
                private.append(weight)
    viewed = [(weight.name, weight.source, weight.view) for weight in private]
    moved = memory.share_viewed(viewed, "registered weights")
    _make_copies(copied, dtypes)
    for weight in weights:
        if id(weight.source) in moved or weight.lent is not weight.source:
            weight.view = view_of(weight.lent)


def _make_copies(weights: list[_Weight], dtypes: dict[str, Any]) -> None:
    on_cpu: list[tuple[_Weight, memory.Blank]] = []
    for weight in weights:
        view = weight.view
        if view.device == "cpu":
            on_cpu.append((weight, memory.Blank(view.shape, dtypes[weight.name], is_torch(weight.source))))
        else:
            weight.lent = plain(weight.source).detach().new_empty(view.shape, dtype=dtypes[weight.name])
    made = memory.empty_shared([blank for _, blank in on_cpu], "copies of registered weights") if on_cpu else []
    for (weight, _), lent in zip(on_cpu, made, strict=True):
        weight.lent = lent
    _refresh(weights)


def _refresh(weights: list[_Weight]) -> None:
    for weight in weights:
        _copy_into(weight.lent, weight.source)


def _copy_into(lent: Tensor, tensor: Tensor) -> None:
    if tuple(lent.shape) != tuple(tensor.shape):
        raise CatalogMismatch(f"a weight of shape {tuple(tensor.shape)} was registered as {tuple(lent.shape)}")
    if is_torch(lent):
        lent.detach().copy_(plain(tensor).detach())
    else:
        lent[...] = tensor


def _messages(
    weights: list[_Weight],
    places: list[tuple[int, int]],
    handles: memory.Handles,
    modules_to_not_convert: list[str],
    replace: bool,
) -> list[Any]:
    header = _wire.message("RegisterHeader")(
        pid=os.getpid(),
        handles=handles.messages(),
        replace=replace,
        modules_to_not_convert=modules_to_not_convert,
    )
    registered = _wire.message("RegisteredTensor")
    entries = [
        registered(
            tensor=tensor_message(weight.name, weight.view.dtype, weight.view.shape), handle=handle, offset_bytes=offset
        )
        for weight, (handle, offset) in zip(weights, places, strict=True)
    ]
    return list(_chunks(entries, header))


def _chunks(entries: list[Any], header: Any) -> Iterator[Any]:
    request = _wire.message("RegisterRequest")
    step = _rpc.TENSORS_PER_MESSAGE
    yield request(header=header, tensors=entries[:step])
    for begin in range(step, len(entries), step):
        yield request(tensors=entries[begin : begin + step])


def _registration(reply: Any, tied: dict[str, str], copies: list[_Weight]) -> Registration:
    return Registration(
        tensors=reply.tensors,
        quantized_tensors=reply.quantized_tensors,
        payload_bytes=reply.payload_bytes,
        wire_bytes=reply.wire_bytes,
        buckets=reply.buckets,
        plan_hash=hash_text(reply.plan_hash),
        committed_version=reply.committed.version,
        tied=tied,
        copied=tuple(weight.name for weight in copies),
    )
