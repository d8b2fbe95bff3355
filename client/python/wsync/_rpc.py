"""Connecting to an agent, and its answers as this package's errors."""

from __future__ import annotations

import os
import re
import socket as sockets
from collections.abc import Callable

import grpc

from . import errors
from .heartbeat import Heartbeat, Watch

# A message holds this many tensors: far below gRPC's 4 MiB, with names of up to 512 bytes.
TENSORS_PER_MESSAGE = 4000

_OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 50),  # a restarting agent is back within a second
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    # A call whose answers are read by one thread needs no second one to poll for it: a publish starts 3 ms sooner.
    ("SingleThreadedUnaryStream", 1),
]


class Connection:
    """A channel to one agent's Unix socket. Thread-safe."""

    def __init__(self, socket: str, daemon: str) -> None:
        """`socket` as the agent's local_socket says: "unix:///path". Connects on first use."""
        if not re.fullmatch(r"unix:///.+", socket):
            raise ValueError(f"{socket!r} is not a local socket: expected unix:///path, as local_socket has it")
        self.socket = socket
        self.daemon = daemon
        self.channel = grpc.insecure_channel(socket, options=_OPTIONS)
        self._check = self.channel.unary_unary("/grpc.health.v1.Health/Check")  # both messages are empty enough as bytes
        self._heartbeat = Heartbeat(self._answers)
        self._pid = os.getpid()
        self.is_closed = False  # or is about to be: what ends a client's calls may go on

    def check_open(self, doing: str) -> None:
        """ClientClosed, where it is; WrongProcess."""
        self.check_process(doing)
        if self.is_closed:
            raise self.closed(doing)

    def check_process(self, doing: str) -> None:
        """WrongProcess in a forked child, where nobody would ever answer: the threads stayed behind."""
        if self.is_elsewhere:
            raise errors.WrongProcess(
                f"{doing}: process {os.getpid()} was forked from {self._pid}, whose client of {self.daemon} this is"
            )

    @property
    def is_elsewhere(self) -> bool:
        """This is a forked child's copy: what the parent has with the agent is not its to end."""
        return os.getpid() != self._pid

    def closed(self, doing: str) -> errors.ClientClosed:
        return errors.ClientClosed(f"{doing}: the client of {self.daemon} at {self.socket} was closed")

    def wait(self, timeout: float) -> None:
        """Returns once the agent answers a health check; AgentUnavailable after `timeout` seconds."""
        try:
            self._check(b"", timeout=timeout, wait_for_ready=True)
        except ValueError:  # gRPC's word for a channel that was closed
            raise self.closed("wait for the agent") from None
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE):
                raise self.absent() from None
            # Any other answer is one, too.

    def watch(self, silent: Callable[[], None]) -> Watch:
        """While a call is open: `silent` is called, on another thread, within 4 s of the agent's being stopped."""
        return self._heartbeat.watch(silent)

    def _answers(self, timeout: float) -> bool:
        try:
            self._check(b"", timeout=timeout)
        except grpc.RpcError as error:
            return bool(error.code() != grpc.StatusCode.DEADLINE_EXCEEDED)
        except ValueError:  # gRPC's word for a channel that was closed meanwhile
            pass
        return True

    def gone(self, how: str, where: str, silent_for: float) -> errors.AgentGone:
        """`how` it was noticed, `where` its work was, and how long ago it last said something."""
        text = f"{self.daemon} at {self.socket} {how} in phase {where}, last heard of {silent_for:.1f} s before"
        return errors.AgentGone(text)

    def absent(self, why: str = "") -> errors.AgentUnavailable:
        if self._denied():
            return errors.AgentUnavailable(
                f"may not connect to {self.socket}: permission denied",
                next_step=f"run as {self.daemon}'s user, or give its local_socket a directory of yours",
            )
        text = f"no {self.daemon} answers at {self.socket}" + (f": {why}" if why else "")
        return errors.AgentUnavailable(text, next_step=f"start one with '{self.daemon} --config FILE', or give its socket")

    def _denied(self) -> bool:
        """gRPC does not say why a socket cannot be connected to."""
        with sockets.socket(sockets.AF_UNIX) as probe:
            probe.setblocking(False)
            try:
                probe.connect(self.socket.removeprefix("unix://"))
            except PermissionError:
                return True
            except OSError:
                pass
        return False

    def close(self) -> None:
        self.is_closed = True
        self._heartbeat.close()
        self.channel.close()


def code_and_text(error: grpc.RpcError) -> tuple[grpc.StatusCode, str]:
    return error.code(), error.details() or ""  # RpcErrors of calls are grpc.Call as well


def quoted_names(text: str) -> list[str]:
    """Tensor names as the agents' texts quote them, each once, in order."""
    return list(dict.fromkeys(re.findall(r"'([^'\s]+)'", text)))


_COMMON: dict[grpc.StatusCode, type[errors.WsyncError]] = {
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.NOT_FOUND: errors.MemoryNotShareable,
    grpc.StatusCode.PERMISSION_DENIED: errors.MemoryNotShareable,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.MemoryNotShareable,
}


# How the agents' backends speak of memory: of the other kind's, or another GPU's, and of what they could not open.
_OTHER_DEVICE = re.compile(r"on the (host|cuda) backend|it names memory of ''")
_NOT_OPENED = re.compile(r"cannot open (shared memory|a CUDA IPC handle)|shared memory '': |CUDA IPC handle|no process \d+ here")


def _refused(text: str) -> type[errors.WsyncError]:
    """What INVALID_ARGUMENT is about, in answer to a catalog or destinations. Names of tensors may say anything."""
    text = re.sub(r"'[^']*'", "''", text)
    if _OTHER_DEVICE.search(text):
        return errors.WrongDevice
    return errors.MemoryNotShareable if _NOT_OPENED.search(text) else errors.CatalogMismatch


def _common(connection: Connection, error: grpc.RpcError, doing: str) -> errors.WsyncError:
    code, text = code_and_text(error)
    if code == grpc.StatusCode.UNAVAILABLE:
        return connection.absent(text)
    if code == grpc.StatusCode.CANCELLED and connection.is_closed:
        return connection.closed(doing)
    if code == grpc.StatusCode.UNIMPLEMENTED:
        text = f"something else than a {connection.daemon} answers at {connection.socket}: give its local_socket"
    kind = _COMMON.get(code, errors.AgentError)
    return kind(f"{doing}: {text} ({code.name})", names=quoted_names(text))


def is_held_by_this_process(text: str) -> bool:
    """Whether an agent, or `register_error`, says so of its registration."""
    return f"process {os.getpid()} has registered" in text


def register_error(connection: Connection, error: grpc.RpcError) -> errors.WsyncError:
    code, text = code_and_text(error)
    if code == grpc.StatusCode.ALREADY_EXISTS:
        if is_held_by_this_process(text):
            return errors.AlreadyRegistered(
                f"register: this very process {os.getpid()} has registered weights with {connection.daemon} at "
                f"{connection.socket}",
                next_step="register(..., replace=True) puts these in their place; or unregister() before",
            )
        return errors.AlreadyRegistered(f"register: {text}")
    if code == grpc.StatusCode.INVALID_ARGUMENT:
        return _refused(text)(f"register: {text}", names=quoted_names(text))
    return _common(connection, error, "register")


def status_error(connection: Connection, error: grpc.RpcError) -> errors.WsyncError:
    return _common(connection, error, "wait for replicas")


def unregister_error(connection: Connection, error: grpc.RpcError) -> errors.WsyncError:
    return _common(connection, error, "unregister")


def detach_error(connection: Connection, error: grpc.RpcError) -> errors.WsyncError:
    return _common(connection, error, "detach")


def attach_error(connection: Connection, error: grpc.RpcError, doing: str = "attach") -> errors.WsyncError:
    """`doing`: also for what is asked before an attach, and told after it."""
    code, text = code_and_text(error)
    if code == grpc.StatusCode.ALREADY_EXISTS:
        return errors.AlreadyAttached(f"{doing}: {text}")
    if code == grpc.StatusCode.INVALID_ARGUMENT:
        return _refused(text)(f"{doing}: {text}", names=quoted_names(text))
    if code == grpc.StatusCode.FAILED_PRECONDITION and "layer_window" in text:
        return errors.AgentError(f"{doing}: {text}", next_step="set transfer.sink_mode: in_place in rollout.yaml")
    if code == grpc.StatusCode.FAILED_PRECONDITION:  # the catalog changed under an attached engine
        again = "attach again, with what fits it"
        return errors.CatalogMismatch(f"{doing}: {text}", names=quoted_names(text), next_step=again)
    return _common(connection, error, doing)


def is_agents_verdict(text: str, version: int) -> bool:
    """Whether the agent says that the version failed; else UNAVAILABLE is about the agent itself."""
    return text.startswith(f"version {version} failed") or "replicas" in text


def publish_error(connection: Connection, error: grpc.RpcError, version: int) -> errors.WsyncError:
    code, text = code_and_text(error)
    doing = f"publish version {version}"
    if "CUDA event" in text and code in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT):
        wrong = errors.StreamUnsupported if code == grpc.StatusCode.FAILED_PRECONDITION else errors.WrongDevice
        return wrong(f"{doing}: {text}")
    if code == grpc.StatusCode.FAILED_PRECONDITION:
        higher = re.search(r"publish (?:this as version )?(\d+) or higher", text)
        if higher:
            return errors.StaleVersion(f"{doing}: {text}", next_version=int(higher[1]))
        if "still being published" in text:
            return errors.PublishInProgress(f"{doing}: {text}")
        return errors.NotRegistered(f"{doing}: {text}")
    if code == grpc.StatusCode.INVALID_ARGUMENT:
        return errors.InvalidWeights(f"{doing}: {text}", names=quoted_names(text))
    if code == grpc.StatusCode.UNAVAILABLE:
        if "replicas" in text:
            return errors.TooFewReplicas(f"{doing}: {text}")
        if is_agents_verdict(text, version):
            return errors.PublishFailed(f"{doing}: {text}")
        return connection.absent(text)
    if code == grpc.StatusCode.CANCELLED and connection.is_closed:
        return connection.closed(doing)
    return errors.PublishFailed(f"{doing}: {text} ({code.name})", names=quoted_names(text))
