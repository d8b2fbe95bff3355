"""Agents whose every word the test says, for what real ones cannot be brought to do without a GPU."""

from __future__ import annotations

import ctypes
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any, ClassVar

import grpc

import wsync
from wsync import _wire


class FakeStream:
    """What wsync asks of a torch.cuda.Stream; `log` is what was put into it."""

    _made: ClassVar[list[FakeStream]] = []

    def __init__(self, device: str = "cuda:0") -> None:
        self.device = device
        self.log: list[str] = []
        self.waits: list[tuple[ctypes.c_uint32, int]] = []  # (word, value)
        self._made.append(self)
        self.cuda_stream = len(self._made)

    @classmethod
    def of(cls, handle: int) -> FakeStream:
        return cls._made[handle - 1]

    def passed(self) -> bool:
        """Whether a GPU would be past everything that is in the stream."""
        return all(ctypes.c_int32(word.value - value).value >= 0 for word, value in self.waits)


class FakeEvent:
    """What wsync asks of a torch.cuda.Event; `recorded` lists the streams that it was recorded in."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.recorded: list[FakeStream] = []

    def record(self, stream: FakeStream) -> None:
        self.recorded.append(stream)
        stream.log.append(f"record {self.name}")


class FakeCuda:
    """Events by number, in the order they were made, and what is asked of the driver."""

    DEVICE = 1 << 40  # device addresses are host addresses plus this
    PAGES: list[Any] = []  # of all of them, never freed, as is promised: gates of a test that is over are opened at exit

    def __init__(self) -> None:
        self.events: list[FakeEvent] = []
        self.refuses = False

    def new_event(self, device: str) -> tuple[FakeEvent, bytes]:
        event = FakeEvent(f"e{len(self.events)}")
        self.events.append(event)
        return event, event.name.encode().ljust(64, b".")

    def page_locked(self, ordinal: int, nbytes: int) -> tuple[int, int]:
        self.PAGES.append(ctypes.create_string_buffer(nbytes + 4))
        address = -(-ctypes.addressof(self.PAGES[-1]) // 4) * 4
        return address, address + self.DEVICE

    def wait_for_word(self, ordinal: int, stream: int, address: int, value: int) -> None:
        if self.refuses:
            raise wsync.StreamUnsupported("a stream cannot wait for a word")
        waiting = FakeStream.of(stream)
        assert waiting.device == f"cuda:{ordinal}"
        waiting.log.append("wait")
        waiting.waits.append((ctypes.c_uint32.from_address(address - self.DEVICE), value))


class FakeAgent:
    """A gRPC server at a socket; each call's answers come from what the test says."""

    def __init__(self, folder: Path, service: str, methods: dict[str, grpc.RpcMethodHandler]) -> None:
        self.registration_id = "r1"  # of a trainer's agent
        self._server = grpc.server(futures.ThreadPoolExecutor(8))
        self.health_takes = 0.0  # seconds

        def check(request: bytes, context: grpc.ServicerContext) -> bytes:
            time.sleep(self.health_takes)
            return b""

        health = grpc.unary_unary_rpc_method_handler(check)
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": health}),
                grpc.method_handlers_generic_handler(f"wsync.v1.{service}", methods),
            )
        )
        self.socket = f"unix://{folder}/{service}.sock"
        self._server.add_insecure_port(self.socket)
        self._server.start()

    def stop(self) -> None:
        self._server.stop(0).wait()


class Script:
    """The answers to one call after another: what `say` was given, until one of the others ends the call."""

    def __init__(self) -> None:
        self.requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._calls: list[queue.SimpleQueue[Any]] = [queue.SimpleQueue()]
        self._begun = 0

    def say(self, message: Any) -> None:
        self._calls[-1].put(message)

    def end(self, word: Any = None) -> None:
        """As an agent that has said everything. What is said from now on is for the next call."""
        words = self._calls[-1]
        self._calls.append(queue.SimpleQueue())
        words.put(word)

    def hang_up(self) -> None:
        """As an agent that dies."""
        self.end((grpc.StatusCode.UNAVAILABLE, "the agent is gone"))

    def fail(self, text: str, code: grpc.StatusCode = grpc.StatusCode.DEADLINE_EXCEEDED) -> None:
        self.end((code, text))

    def answers(self, context: grpc.ServicerContext) -> Iterator[Any]:
        words = self._calls[self._begun]
        self._begun += 1
        while context.is_active():  # a thread left waiting would outlive the server, and end the run with it
            try:
                word = words.get(timeout=0.05)
            except queue.Empty:
                continue
            if word is None:
                return
            if isinstance(word, tuple):
                context.abort(*word)
            yield word


def handler(make: Callable[..., Any], behavior: Any, request: str, reply: str) -> grpc.RpcMethodHandler:
    return make(
        behavior,
        request_deserializer=_wire.message(request).FromString,
        response_serializer=_wire.message(reply).SerializeToString,
    )


def trainer_agent(folder: Path, script: Script) -> FakeAgent:
    def register(requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
        for _ in requests:
            pass
        return _wire.message("RegisterReply")(registration_id=agent.registration_id)

    def publish(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        script.requests.put(request)
        return script.answers(context)

    agent = FakeAgent(
        folder,
        "Trainer",
        {
            "Register": handler(grpc.stream_unary_rpc_method_handler, register, "RegisterRequest", "RegisterReply"),
            "Publish": handler(grpc.unary_stream_rpc_method_handler, publish, "PublishRequest", "PublishEvent"),
            "Unregister": handler(
                grpc.unary_unary_rpc_method_handler,
                lambda request, context: _wire.message("UnregisterReply")(),
                "UnregisterRequest",
                "UnregisterReply",
            ),
        },
    )
    return agent


def rollout_agent(folder: Path, script: Script) -> FakeAgent:
    def attach(requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
        for _ in requests:
            pass
        return _wire.message("AttachReply")(attachment_id="a1")

    def updates(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        def read() -> None:
            try:
                for request in requests:
                    script.requests.put(request)
            except grpc.RpcError:
                pass

        threading.Thread(target=read, daemon=True).start()
        return script.answers(context)

    return FakeAgent(
        folder,
        "Rollout",
        {
            "Attach": handler(grpc.stream_unary_rpc_method_handler, attach, "AttachRequest", "AttachReply"),
            "Updates": handler(grpc.stream_stream_rpc_method_handler, updates, "EngineMessage", "UpdateEvent"),
            "Detach": handler(
                grpc.unary_unary_rpc_method_handler,
                lambda request, context: _wire.message("DetachReply")(),
                "DetachRequest",
                "DetachReply",
            ),
        },
    )
