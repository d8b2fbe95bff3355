"""One version on its way from the trainer's side, and how it may be ordered against a CUDA stream."""

from __future__ import annotations

import _thread
import logging
import threading
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TYPE_CHECKING, Any, Literal, get_args

import grpc

from . import _rpc, _wire
from .arguments import check_choice, check_seconds
from .catalog import VersionReport, report_from
from .changes import Reading
from .errors import (
    AgentUnavailable,
    ClientClosed,
    DeadlineExceeded,
    NotAllApplied,
    NotRegistered,
    StreamUnsupported,
    WeightsChanged,
    WsyncError,
)
from .ownership import OfOneProcess
from .stream_events import Stream, StreamOrder, check_stream

if TYPE_CHECKING:
    from .trainer import Trainer

_log = logging.getLogger("wsync")

Require = Literal["any", "all"]


class Publication(OfOneProcess):
    """One version on its way. Every wait has a limit; the version goes on whether or not anybody waits.

    Unless the trainer is closed, or this process ends, before it is released: then it is called off.
    """

    def __init__(self, trainer: Trainer, version: int, order: StreamOrder | None = None) -> None:
        self.version = version
        self._order = order
        self._trainer = trainer
        self._progress: Any = None
        self._accepted = False
        self._silent = False
        self._holds: Stream | None = None  # what it gets now comes after `released`
        self._heard = time.monotonic()
        self.released_future: Future[float] = Future()  # milliseconds from accepted to released
        self.committed_future: Future[VersionReport] = Future()
        for future in (self.released_future, self.committed_future):
            future.set_running_or_notify_cancel()  # a waiter that is cancelled must not take the answer from the others
        self._registration_id, self._era = trainer._id, trainer._era
        self._lock = threading.Lock()  # of the call, and of what is known of changes
        self._changed: list[str] = []  # what was written before it was read
        self._call = self._start()  # here: two publishes in a row reach the agent in that order
        self._reading = Reading(trainer._watched)  # after it: the agent need not wait for this
        _thread.start_new_thread(self._follow, ())  # threading.Thread's start waits until the thread has begun

    def _start(self) -> Any:
        request = _wire.message("PublishRequest")(registration_id=self._registration_id, version=self.version)
        if self._order is not None:
            request.after.CopyFrom(self._order.after.message)
        try:
            return self._trainer._stub.publish(request)
        except ValueError:  # gRPC's word for a channel that was closed meanwhile
            raise self._trainer._connection.closed(f"publish version {self.version}") from None

    def _follow(self) -> None:
        watch = self._trainer._connection.watch(self._hang_up)
        try:
            try:
                report = self._read()
            except grpc.RpcError as error:
                if not self._may_retry(error):
                    raise
                if not self._called_off(error):
                    self._registration_id = self._register_again(error)
                elif self._era != self._trainer._era:
                    raise self._taken_back() from None
                self._start_again()
                report = self._read()
        except grpc.RpcError as error:
            self._fail(self._error(error), ended=not (self._silent or self._changed))
        except ClientClosed as error:
            self._fail(error)
        except WsyncError as error:
            self._fail(error, ended=True)
        except BaseException as error:
            self._fail(AgentUnavailable(f"publish version {self.version}: its answers could not be read: {error!r}"))
            raise
        else:
            if self._order is not None:
                self._order.end()
            if not self.released_future.done():  # committed before: nothing had to be read
                self.released_future.set_result(0.0)
            if self._changed:
                change = self._change(report)
                self.committed_future.set_exception(change)
                _log.warning("%s", change)
            else:
                self.committed_future.set_result(report)
                _log.log(logging.INFO if report.applied else logging.WARNING, "%r", report)
        finally:  # whatever happened: a stream may be waiting
            self._reading.stop()
            watch.end()
            if self._order is not None:
                self._order.open()

    def _start_again(self) -> None:
        """With an agent that forgot: where the weights are what they were."""
        self._look_at_weights()
        with self._lock:
            if self._changed:
                raise self._change()
            self._call = self._start()
        if self._silent:
            self._call.cancel()

    def _look_at_weights(self) -> None:
        """Calls the version off where they were written and are not read yet. Any thread."""
        with self._lock:
            if not self._changed and not self.released_future.done():
                self._changed = self._reading.changed()
                if self._changed:
                    self._call.cancel()

    def _release(self, elapsed_ms: float) -> None:
        if self._order is not None:
            self._order.open()
        with self._lock:
            goes_out = not self._changed  # it was not called off before
            self._changed = self._changed or self._reading.changed()
            self._reading.stop()
            if self._changed:
                self.released_future.set_exception(self._change(goes_out=goes_out))
            else:
                self.released_future.set_result(elapsed_ms)
        _log.debug("version %d: its weights were read after %.1f ms", self.version, elapsed_ms)

    def _change(self, report: VersionReport | None = None, *, goes_out: bool = False) -> WeightsChanged:
        """`report`, where it was committed. `goes_out`: nothing can hold it back any more."""
        names = self._changed
        if report is not None:
            took = sum(replica.outcome == "applied" for replica in report.replicas)
            end = f"it may be parts of two states, and {took} of {len(report.replicas)} replicas applied it"
        elif goes_out:
            end = "it may be parts of two states, and goes out: committed() tells"
        else:
            end = "it is called off, unless it was read to its end just then: 'wsync status' tells"
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        what = ", ".join(map(repr, names[:3])) + more
        text = f"version {self.version}: weights were written while they were read: {what}; {end}"
        return WeightsChanged(text, names=names, report=report)

    def _hang_up(self) -> None:
        """The agent does not answer any more, and would leave the call open."""
        self._silent = True
        self._call.cancel()

    def _register_again(self, lost: grpc.RpcError) -> str:
        forgotten = lost.code() == grpc.StatusCode.FAILED_PRECONDITION
        try:
            again = self._trainer._register_again(self._registration_id, self._era, forgotten=forgotten)
        except AgentUnavailable as absent:
            raise self._error(lost) if self._accepted else absent from None
        if not again:
            raise self._taken_back()
        return again

    def _taken_back(self) -> WsyncError:
        trainer, doing = self._trainer, f"publish version {self.version}"
        if trainer._connection.is_closed:
            return trainer._connection.closed(doing)
        return NotRegistered(
            f"{doing}: {trainer._era_ended} before their agent came back",
            next_step="wait for committed() before register() or unregister(), or publish what is registered now",
        )

    def _error(self, error: grpc.RpcError) -> WsyncError:
        code, text = _rpc.code_and_text(error)
        called_off = code == grpc.StatusCode.CANCELLED and not self._silent
        if self._changed and (called_off or self._agent_forgot(error)):
            return self._change()
        lost = code == grpc.StatusCode.UNAVAILABLE and self._accepted and not _rpc.is_agents_verdict(text, self.version)
        if not self._silent and not lost:
            return _rpc.publish_error(self._trainer._connection, error, self.version)
        how = "does not answer any more" if self._silent else f"was lost ({text})"
        where = f"{self._phase} of version {self.version} ({self.progress})"
        return self._trainer._connection.gone(how, where, time.monotonic() - self._heard)

    @property
    def _phase(self) -> str:
        if not self._accepted:
            return "begin"
        if not self.released_future.done():
            return "encode"
        progress = self._progress
        return "apply" if progress is not None and progress.staged_replicas == progress.replicas else "broadcast"

    def _read(self) -> VersionReport:
        for event in self._call:
            self._heard = time.monotonic()
            kind = event.WhichOneof("event")
            if kind == "accepted":
                self._accepted = True
            elif kind == "progress":
                self._progress = event.progress
                self._look_at_weights()
            elif kind == "released":
                self._release(event.released.elapsed_ms)
            elif kind == "committed":
                return report_from(event.committed)
        raise AgentUnavailable(
            f"publish version {self.version}: wsync-trainer ended the call without a report",
            next_step="'wsync status' tells what was committed",
        )

    def _may_retry(self, error: grpc.RpcError) -> bool:
        """Whether the agent forgot us, and the weights still hold what this publish is about."""
        return not self._changed and self._agent_forgot(error)

    def _agent_forgot(self, error: grpc.RpcError) -> bool:
        if self.released_future.done() or self._silent:
            return False
        code, text = _rpc.code_and_text(error)
        if self._called_off(error):
            return True
        if code == grpc.StatusCode.UNAVAILABLE:
            return not _rpc.is_agents_verdict(text, self.version)
        return code == grpc.StatusCode.FAILED_PRECONDITION and self._registration_id in text

    @staticmethod
    def _called_off(error: grpc.RpcError) -> bool:
        """Whether the agent stood still, and could not know that somebody waits and the weights are as they were."""
        code, text = _rpc.code_and_text(error)
        return bool(code == grpc.StatusCode.ABORTED and "stood still" in text)

    def _fail(self, error: WsyncError, *, ended: bool = False) -> None:
        """`ended`: the agent has done so, or is dead; else it may go on with the version."""
        if self._order is not None:
            self._order.end() if ended else self._order.open()
        if not self.released_future.done():
            self.released_future.set_exception(error)
        self.committed_future.set_exception(error)
        _log.warning("%s: %s", type(error).__name__, error)

    def released(self, timeout: float = 120.0, *, stream: Stream | None = None) -> float:
        """Waits until the weights may change again; milliseconds that took. Raises what became of the version.

        WeightsChanged: they have changed already, as far as torch counts it. Where that is seen before the agent has read
        them, the version is called off; else it goes out, and `committed` raises as well.

        `stream`: a torch.cuda.Stream, where the publish was given one too. Returns at once (0.0, unless it is known):
        what the stream gets from now on is done when the weights were read, and may change them. What fails later is
        raised by `committed`, and does not stop the stream, nor does an agent that dies. It is this library's thread that
        lets the stream go on: do not wait for the stream in a call that keeps Python's lock (torch's own do not).
        StreamUnsupported: this GPU's driver cannot let a stream wait.
        """
        self._trainer._connection.check_process(f"released version {self.version}")
        self._look_at_weights()
        if stream is None:
            return float(self._wait(self.released_future, timeout, "released"))
        if self._order is None:
            raise StreamUnsupported(
                f"version {self.version} was published without a stream",
                next_step="publish(version, stream=...), or wait with released()",
            )
        check_stream(stream, {self._order.device}, f"released version {self.version}")
        if self.released_future.done():
            return self.released_future.result()
        if self._changed:
            raise self._change()
        self._order.hold(stream)
        self._holds = stream
        self._reading.stop()  # what is written from now on is queued behind
        return 0.0

    def free_for(self, stream: Stream | None) -> bool:
        """Whether what is written now, on `stream` (None: by this thread), comes after the weights were read."""
        return self.released_future.done() or (stream is not None and bool(stream == self._holds))

    def committed(self, timeout: float = 600.0, *, require: Require = "any") -> VersionReport:
        """Waits until every replica applied the version or was given up.

        `require="all"`: NotAllApplied, with the report, where one was given up. The version is committed all the same.

        StaleVersion, InvalidWeights (NaN: names), TooFewReplicas, PublishFailed, AgentUnavailable; AgentGone when the
        agent died (within a second) or stood still (within five), with its phase and when it was last heard of;
        WeightsChanged: what the replicas have is parts of two states, its `report` says which have it.
        """
        check_choice("require", require, get_args(Require))
        self._look_at_weights()
        report: VersionReport = self._wait(self.committed_future, timeout, "committed")
        return self._checked(report, require)

    def _checked(self, report: VersionReport, require: Require) -> VersionReport:
        if require == "any" or report.applied:
            return report
        others = [replica for replica in report.replicas if replica.outcome != "applied"]
        what = "; ".join(f"'{other.replica}' {other.outcome.replace('_', ' ')}: {other.reason}" for other in others)
        raise NotAllApplied(
            f"version {self.version} was applied by {len(report.replicas) - len(others)} of {len(report.replicas)} "
            f"replicas: {what}",
            names=[other.replica for other in others],
            report=report,
        )

    def _wait(self, future: Future[Any], timeout: float, what: str) -> Any:
        self._check_wait(timeout, what)
        try:
            return future.result(timeout)
        except FutureTimeout:
            if future.done():  # it is the version's own DeadlineExceeded
                raise
            raise DeadlineExceeded(
                f"version {self.version} was not {what} within {timeout:g} s: {self.progress}"
            ) from None

    def _check_wait(self, timeout: float, what: str) -> None:
        check_seconds("timeout", timeout)
        self._trainer._connection.check_process(f"{what} version {self.version}")

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
