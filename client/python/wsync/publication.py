"""One version on its way from the trainer's side, and how it may be ordered against a CUDA stream."""

from __future__ import annotations

import _thread
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TYPE_CHECKING, Any

import grpc

from . import _rpc, _wire
from .catalog import VersionReport, report_from
from .errors import AgentUnavailable, ClientClosed, DeadlineExceeded, NotRegistered, StreamUnsupported, WsyncError
from .stream_events import Stream, StreamOrder, check_stream

if TYPE_CHECKING:
    from .trainer import Trainer


class Publication:
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
        self._call = self._start()  # here: two publishes in a row reach the agent in that order
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
                    raise self._taken_back()
                self._call = self._start()
                if self._silent:
                    self._call.cancel()
                report = self._read()
        except grpc.RpcError as error:
            self._fail(self._error(error), ended=not self._silent)
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
            self.committed_future.set_result(report)
        finally:  # whatever happened: a stream may be waiting
            watch.end()
            if self._order is not None:
                self._order.open()

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
            elif kind == "released":
                if self._order is not None:
                    self._order.open()
                self.released_future.set_result(event.released.elapsed_ms)
            elif kind == "committed":
                return report_from(event.committed)
        raise AgentUnavailable(
            f"publish version {self.version}: wsync-trainer ended the call without a report",
            next_step="'wsync status' tells what was committed",
        )

    def _may_retry(self, error: grpc.RpcError) -> bool:
        """Whether the agent forgot us, and the weights still hold what this publish is about."""
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

    def released(self, timeout: float = 120.0, *, stream: Stream | None = None) -> float:
        """Waits until the weights may change again; milliseconds that took. Raises what became of the version.

        `stream`: a torch.cuda.Stream, where the publish was given one too. Returns at once (0.0, unless it is known):
        what the stream gets from now on is done when the weights were read, and may change them. What fails later is
        raised by `committed`, and does not stop the stream, nor does an agent that dies. It is this library's thread that
        lets the stream go on: do not wait for the stream in a call that keeps Python's lock (torch's own do not).
        StreamUnsupported: this GPU's driver cannot let a stream wait.
        """
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
        self._order.hold(stream)
        self._holds = stream
        return 0.0

    def free_for(self, stream: Stream | None) -> bool:
        """Whether what is written now, on `stream` (None: by this thread), comes after the weights were read."""
        return self.released_future.done() or (stream is not None and bool(stream == self._holds))

    def committed(self, timeout: float = 600.0) -> VersionReport:
        """Waits until every replica applied the version or was given up.

        StaleVersion, InvalidWeights (NaN: names), TooFewReplicas, PublishFailed, AgentUnavailable; AgentGone when the
        agent died (within a second) or stood still (within five), with its phase and when it was last heard of.
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
