"""One version on its way from the trainer's side, and how it may be ordered against a CUDA stream."""

from __future__ import annotations

import _thread
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TYPE_CHECKING, Any

import grpc

from . import _rpc, _wire
from .catalog import VersionReport, report_from
from .errors import AgentUnavailable, DeadlineExceeded, StreamUnsupported, WsyncError
from .stream_events import Stream, StreamOrder, check_stream

if TYPE_CHECKING:
    from .trainer import Trainer


class Publication:
    """One version on its way. Every wait has a limit; the version goes on whether or not anybody waits."""

    def __init__(self, trainer: Trainer, version: int, order: StreamOrder | None = None) -> None:
        self.version = version
        self._order = order
        self._trainer = trainer
        self._progress: Any = None
        self._accepted = False
        self.released_future: Future[float] = Future()  # milliseconds from accepted to released
        self.enqueued_future: Future[float] = Future()  # published with a stream: until every read was on its way
        self.committed_future: Future[VersionReport] = Future()
        self._registration_id = trainer._id
        self._call = self._start()  # here: two publishes in a row reach the agent in that order
        _thread.start_new_thread(self._follow, ())  # threading.Thread's start waits until the thread has begun

    def _start(self) -> Any:
        request = _wire.message("PublishRequest")(registration_id=self._registration_id, version=self.version)
        if self._order is not None:
            request.after.CopyFrom(self._order.after.message)
            request.released.CopyFrom(self._order.marked.message)
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
            for future in (self.enqueued_future, self.released_future):
                if not future.done():  # committed before: nothing had to be read
                    future.set_result(0.0)
            if self._order is not None:
                self._order.complete()
            self.committed_future.set_result(report)

    def _read(self) -> VersionReport:
        for event in self._call:
            kind = event.WhichOneof("event")
            if kind == "accepted":
                self._accepted = True
            elif kind == "progress":
                self._progress = event.progress
            elif kind == "reads_enqueued":
                self.enqueued_future.set_result(event.reads_enqueued.elapsed_ms)
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
        if self.released_future.done() or self.enqueued_future.done():
            return False
        code, text = _rpc.code_and_text(error)
        if code == grpc.StatusCode.UNAVAILABLE:
            return "replicas" not in text
        return code == grpc.StatusCode.FAILED_PRECONDITION and self._registration_id in text

    def _fail(self, error: WsyncError) -> None:
        if self._order is not None:
            self._order.fail()
        for future in (self.enqueued_future, self.released_future):
            if not future.done():
                future.set_exception(error)
        self.committed_future.set_exception(error)

    def released(self, timeout: float = 120.0, *, stream: Stream | None = None) -> float:
        """Waits until the weights may change again; milliseconds that took. Raises what became of the version.

        `stream`: a torch.cuda.Stream, where the publish was given one too. Returns as soon as every read of the weights
        is on its way: what the stream gets from now on is done after them, and may change the weights. No host waits
        for the GPU. What fails later is raised by `committed`; an agent that dies does not stop the stream. An agent in
        source_mode ring then fails a version that loses a member, where it would have read the weights again.
        """
        if stream is None:
            return float(self._wait(self.released_future, timeout, "released"))
        if self._order is None:
            raise StreamUnsupported(
                f"version {self.version} was published without a stream",
                next_step="publish(version, stream=...), or wait with released()",
            )
        check_stream(stream, {self._order.device}, f"released version {self.version}")
        took = float(self._wait(self.enqueued_future, timeout, "read"))
        self._order.hold(stream)
        return took

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
