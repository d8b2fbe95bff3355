"""What is left when a client ends: after unregister, detach and close nothing is lent, and nothing is lent again."""

from __future__ import annotations

import itertools
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

import wsync
from conftest import Cluster, beside, eventually
from fake_agents import FakeAgent, handler
from models import SHAPES, shared_arrays
from wsync import _wire


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="wsync-py-") as path:
        yield Path(path)


# ---- nothing registers again


@pytest.mark.parametrize("how", ["unregister", "close"])
def test_a_publication_that_waits_for_its_agent_does_not_register_again_what_was_taken_back(
    cluster: Cluster, how: str
) -> None:
    socket = cluster.start_trainer()
    trainer = wsync.Trainer(socket, reconnect_timeout=60.0)
    trainer.register(shared_arrays(SHAPES))
    cluster.kill("trainer")
    sync = trainer.publish(1)
    with pytest.raises(wsync.DeadlineExceeded):
        sync.released(timeout=0.5)
    if how == "close":
        trainer.close()
    else:
        with pytest.raises(wsync.AgentUnavailable):
            trainer.unregister()
    with pytest.raises(wsync.NotRegistered, match="version 1: the weights were unregistered"):
        sync.committed(timeout=5)
    cluster.restart("trainer")
    with wsync.Trainer(socket) as other:
        other.register(shared_arrays(SHAPES))  # AlreadyRegistered, if somebody had
    trainer.close()


class ForgetfulAgent:
    """Loses every publish. The second registration waits for the test; `registered` are those nobody took back."""

    def __init__(self, folder: Path) -> None:
        self.registered: set[str] = set()
        self.entered, self.gate = threading.Event(), threading.Event()
        numbers = itertools.count(1)

        def register(requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
            for _ in requests:
                pass
            number = next(numbers)
            if number > 1:
                self.entered.set()
                self.gate.wait(30)
            self.registered.add(f"r{number}")
            return _wire.message("RegisterReply")(registration_id=f"r{number}")

        def publish(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            self.registered.discard(request.registration_id)
            context.abort(grpc.StatusCode.UNAVAILABLE, "the agent is gone")

        def unregister(request: Any, context: grpc.ServicerContext) -> Any:
            self.registered.discard(request.registration_id)
            return _wire.message("UnregisterReply")()

        unary = grpc.unary_unary_rpc_method_handler
        self.agent = FakeAgent(
            folder,
            "Trainer",
            {
                "Register": handler(grpc.stream_unary_rpc_method_handler, register, "RegisterRequest", "RegisterReply"),
                "Publish": handler(grpc.unary_stream_rpc_method_handler, publish, "PublishRequest", "PublishEvent"),
                "Unregister": handler(unary, unregister, "UnregisterRequest", "UnregisterReply"),
            },
        )


def test_a_registration_that_is_on_its_way_when_the_weights_are_taken_back_is_taken_back_too(folder: Path) -> None:
    agent = ForgetfulAgent(folder)
    try:
        with wsync.Trainer(agent.agent.socket) as trainer:
            trainer.register(shared_arrays({"x.weight": (4, 4)}))
            sync = trainer.publish(1)
            assert agent.entered.wait(30)
            with beside(trainer.unregister) as unregistered:
                eventually(lambda: trainer._era == 1, "unregister has begun")
                time.sleep(0.05)
                assert not unregistered.done(), "it would leave what is on its way"
                agent.gate.set()
            assert not agent.registered
            with pytest.raises(wsync.NotRegistered, match="unregistered before"):
                sync.committed(30)
    finally:
        agent.gate.set()
        agent.agent.stop()
