"""What is left when a client ends: after unregister, detach and close nothing is lent, and nothing is lent again."""

from __future__ import annotations

import itertools
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from conftest import Cluster, beside, eventually
from fake_agents import FakeAgent, Script, handler, rollout_agent, trainer_agent
from models import SHAPES, memory_for, shared_arrays

import wsync
from wsync import _rpc, _wire


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
    said, text = (wsync.ClientClosed, "was closed") if how == "close" else (wsync.NotRegistered, "the weights were unregistered")
    with pytest.raises(said, match=f"version 1: .*{text}"):
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
        self.says = ""  # instead of registering again
        self.published: list[str] = []
        numbers = itertools.count(1)

        def register(requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
            for _ in requests:
                pass
            number = next(numbers)
            if number > 1:
                if self.says:
                    context.abort(grpc.StatusCode.ALREADY_EXISTS, self.says)
                self.entered.set()
                self.gate.wait(30)
            self.registered.add(f"r{number}")
            return _wire.message("RegisterReply")(registration_id=f"r{number}")

        def publish(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            self.registered.discard(request.registration_id)
            self.published.append(request.registration_id)
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


@pytest.mark.parametrize("later", ["register", "unregister"])
def test_a_registration_that_was_overtaken_does_not_win(folder: Path, later: str) -> None:
    agent = ForgetfulAgent(folder)
    try:
        with wsync.Trainer(agent.agent.socket) as trainer:
            trainer.register(shared_arrays({"x.weight": (4, 4)}))
            with ThreadPoolExecutor(1) as pool:
                overtaken = pool.submit(trainer.register, shared_arrays({"old.weight": (4, 4)}), replace=True)
                assert agent.entered.wait(30)
                agent.entered.clear()
                if later == "register":
                    with beside(lambda: trainer.register(shared_arrays({"new.weight": (4, 4)}), replace=True)) as newer:
                        assert agent.entered.wait(30)
                        agent.gate.set()
                        newer.result(30)
                else:
                    assert not trainer.unregister()
                    agent.gate.set()
                with pytest.raises(wsync.NotRegistered, match="meanwhile"):
                    overtaken.result(30)
            names = [weight.name for weight in trainer._weights]
            assert (names, trainer._id) == ((["new.weight"], "r3") if later == "register" else ([], "r1"))
            assert "r2" not in agent.registered
    finally:
        agent.gate.set()
        agent.agent.stop()


def test_a_publication_whose_connection_alone_was_lost_is_made_again_with_the_same_registration(folder: Path) -> None:
    agent = ForgetfulAgent(folder)
    agent.says = f"process {os.getpid()} has registered its weights and still runs: stop it"
    try:
        with wsync.Trainer(agent.agent.socket) as trainer:
            trainer.register(shared_arrays({"x.weight": (4, 4)}))
            with pytest.raises(wsync.AgentUnavailable):  # it loses the second publish as well
                trainer.publish(1).committed(30)
            assert agent.published == ["r1", "r1"] and trainer._id == "r1"
            agent.says = "process 1 has registered its weights and still runs: stop it"
            with pytest.raises(wsync.AlreadyRegistered, match="process 1 "):  # took over meanwhile
                trainer.publish(2).committed(30)
    finally:
        agent.agent.stop()


def test_a_registration_that_is_on_its_way_when_the_weights_are_taken_back_is_taken_back_too(folder: Path) -> None:
    agent = ForgetfulAgent(folder)
    try:
        with wsync.Trainer(agent.agent.socket) as trainer:
            trainer.register(shared_arrays({"x.weight": (4, 4)}))
            sync = trainer.publish(1)
            assert agent.entered.wait(30)
            with beside(trainer.unregister) as unregistered:
                eventually(lambda: trainer._era == 2, "unregister has begun")
                time.sleep(0.05)
                assert not unregistered.done(), "it would leave what is on its way"
                agent.gate.set()
            assert not agent.registered
            with pytest.raises(wsync.NotRegistered, match="unregistered before"):
                sync.committed(30)
    finally:
        agent.gate.set()
        agent.agent.stop()


@pytest.mark.parametrize("patience", [0.8, 30.0])
def test_an_agent_that_takes_its_time_to_answer_is_registered_with_again(folder: Path, patience: float) -> None:
    agent = ForgetfulAgent(folder)
    agent.gate.set()
    try:
        with wsync.Trainer(agent.agent.socket, reconnect_timeout=patience) as trainer:
            trainer.register(shared_arrays({"x.weight": (4, 4)}))
            agent.agent.health_takes = 0.5  # as on a loaded machine
            with pytest.raises(wsync.AgentUnavailable):  # it loses the second publish as well
                trainer.publish(1).committed(30)
            assert agent.entered.is_set(), "it was there, and was not found"
    finally:
        agent.agent.stop()


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize(
    ("code", "text"),
    [
        (grpc.StatusCode.FAILED_PRECONDITION, "registration r1 is not known"),
        (grpc.StatusCode.UNAVAILABLE, "the agent is gone"),
        (grpc.StatusCode.ABORTED, "this agent stood still"),
    ],
)
def test_a_publication_is_not_made_again_with_weights_that_were_registered_meanwhile(
    folder: Path, replace: bool, code: grpc.StatusCode, text: str
) -> None:
    script = Script()
    agent = trainer_agent(folder, script)
    try:
        with wsync.Trainer(agent.socket) as trainer:
            trainer.register(shared_arrays({"x.weight": (4, 4)}))
            sync = trainer.publish(1)
            script.requests.get(timeout=30)
            agent.registration_id = "r2"
            trainer.register(shared_arrays({"y.weight": (4, 4)}), replace=replace)
            script.fail(text, code)
            with pytest.raises(wsync.NotRegistered, match="version 1: the weights were registered anew") as error:
                sync.committed(10)
            assert "publish" in error.value.next_step
            with pytest.raises(wsync.NotRegistered):
                sync.released(10)
            assert script.requests.empty(), "version 1 would be of the new weights"
            trainer.publish(2)
            assert script.requests.get(timeout=30).registration_id == "r2"
            script.end()
    finally:
        agent.stop()


def test_a_registration_waits_for_one_that_a_publication_is_making_again_and_stays_the_last(folder: Path) -> None:
    agent = ForgetfulAgent(folder)
    try:
        with wsync.Trainer(agent.agent.socket) as trainer:
            trainer.register(shared_arrays({"x.weight": (4, 4)}))
            sync = trainer.publish(1)
            assert agent.entered.wait(30)  # its own, again
            with beside(lambda: trainer.register(shared_arrays({"y.weight": (4, 4)}), replace=True)) as registering:
                eventually(lambda: trainer._era == 2, "register has begun")
                time.sleep(0.05)
                assert not registering.done(), "what is on its way would come after it"
                agent.gate.set()
            assert agent.registered == {"r3"} and trainer._id == "r3"
            with pytest.raises(wsync.NotRegistered, match="registered anew"):
                sync.committed(30)
    finally:
        agent.gate.set()
        agent.agent.stop()


def test_weights_that_real_agents_carry_are_those_of_the_registration_that_the_number_was_given_for(
    cluster: Cluster,
) -> None:
    socket = cluster.start_trainer()
    with wsync.Trainer(socket, reconnect_timeout=60.0) as trainer:
        trainer.register(shared_arrays(SHAPES))
        cluster.kill("trainer")
        sync = trainer.publish(1)
        with pytest.raises(wsync.DeadlineExceeded):
            sync.released(timeout=0.5)
        with beside(lambda: trainer.register(shared_arrays({"y.weight": (128, 128)}), replace=True)):
            cluster.restart("trainer")
        with pytest.raises(wsync.NotRegistered, match="version 1: the weights were registered anew"):
            sync.committed(10)
        assert trainer.registration is not None and trainer.registration.committed_version == 0


# ---- what is said of it


def test_an_agent_that_does_not_answer_is_a_deadline_of_the_call_that_was_made(cluster: Cluster) -> None:
    with wsync.Trainer(cluster.start_trainer()) as trainer, wsync.Rollout(cluster.start_rollout()) as rollout:
        trainer.register(shared_arrays(SHAPES))
        rollout.attach(memory_for(rollout.plan()))
        try:
            for name in ("trainer", "rollout-0"):
                cluster.freeze(name)
            with pytest.raises(wsync.DeadlineExceeded, match="^detach: "):
                rollout.detach(timeout=0.3)
            with pytest.raises(wsync.DeadlineExceeded, match="^unregister: "):
                trainer.unregister(timeout=0.3)
        finally:
            for name in ("trainer", "rollout-0"):
                os.kill(cluster.processes[name].pid, signal.SIGCONT)


def test_a_client_that_was_closed_says_so(cluster: Cluster) -> None:
    with wsync.Trainer(cluster.start_trainer()) as trainer:
        trainer.register(shared_arrays(SHAPES))
        with wsync.Rollout(cluster.start_rollout()) as rollout:
            memory = memory_for(rollout.plan())
            rollout.attach(memory)
            trainer.publish(1)
            update = next(rollout.updates(timeout=30))
    for use in (
        lambda: trainer.register(shared_arrays(SHAPES)),
        lambda: trainer.publish(2),
        lambda: rollout.plan(),
        lambda: rollout.attach(memory),
        lambda: next(rollout.updates()),
        lambda: rollout.poll(),
        lambda: update.apply(),
    ):
        with pytest.raises(wsync.ClientClosed, match="was closed") as error:
            use()
        assert error.value.next_step
    assert not trainer.unregister()
    for client in (trainer, rollout):  # once more does nothing
        client.close()
    rollout.detach()


def test_a_version_that_is_on_its_way_when_the_trainer_is_closed_is_not_said_to_have_failed(cluster: Cluster) -> None:
    with wsync.Trainer(cluster.start_trainer()) as trainer:
        trainer.register(shared_arrays(SHAPES))
        with wsync.Rollout(cluster.start_rollout()) as rollout:
            rollout.attach(memory_for(rollout.plan()))
            sync = trainer.publish(1)
            next(rollout.updates(timeout=30))  # which never pauses
            sync.released()
            trainer.close()
            with pytest.raises(wsync.ClientClosed, match="publish version 1: .*was closed") as error:
                sync.committed(5)
            assert "wsync status" in error.value.next_step


@pytest.mark.parametrize("how", ["detach", "close"])
def test_calls_of_an_engine_that_are_open_end_as_somebody_ended_them(folder: Path, how: str) -> None:
    script = Script()
    agent = rollout_agent(folder, script)
    said = wsync.ClientClosed if how == "close" else wsync.NotAttached
    try:
        for call in ("apply", "events", "confirm"):
            with wsync.Rollout(agent.socket) as rollout:
                rollout.attach(shared_arrays({"x.weight": (4, 4)}))
                if call == "apply":
                    script.say(_wire.message("UpdateEvent")(apply=_wire.message("Apply")(version=1)))
                    update = next(rollout.updates(timeout=30))
                elif call == "confirm":
                    rollout._pending = Pending()  # type: ignore[assignment]  # a GPU's
                calls = {"apply": lambda: update.apply(30), "events": lambda: next(rollout.events()), "confirm": rollout.confirm}
                with ThreadPoolExecutor(1) as pool:
                    open_call = pool.submit(calls[call])
                    time.sleep(0.2)
                    getattr(rollout, how)()
                    with pytest.raises(wsync.WsyncError) as error:
                        open_call.result(10)
                assert isinstance(error.value, said) and error.value.next_step
                script.end()
    finally:
        agent.stop()


class Pending:
    """What `confirm` waits for the end of."""

    version = 1
    told = order = SimpleNamespace(silent=False, open=lambda: None, end=lambda: None)


def test_an_attach_that_waits_for_a_trainer_when_its_client_is_closed_says_so(cluster: Cluster) -> None:
    rollout = wsync.Rollout(cluster.start_rollout())
    with ThreadPoolExecutor(1) as pool:
        attaching = pool.submit(rollout.attach, shared_arrays({"x.weight": (4, 4)}))
        time.sleep(0.5)
        rollout.close()
        with pytest.raises(wsync.ClientClosed, match="^attach: .*was closed"):
            attaching.result(10)


def test_a_version_that_is_called_off_by_closing_its_trainer_is_said_to_have_failed(cluster: Cluster) -> None:
    with wsync.Trainer(cluster.start_trainer(coordinator__min_replicas_wait_ms="10s")) as trainer:
        trainer.register(shared_arrays(SHAPES))
        sync = trainer.publish(1)
        with pytest.raises(wsync.DeadlineExceeded):
            sync.released(0.5)
        trainer.close()
        with pytest.raises(wsync.PublishFailed):
            sync.committed(5)


REFUSALS = {
    "memory handle 0, where tensor 'x' lies: cannot open a CUDA IPC handle on the host backend; export shared memory, or "
    "run the agent with the cuda backend": wsync.WrongDevice,
    "memory handle 0 of engine vllm: cannot open shared memory on the cuda backend; export CUDA memory": wsync.WrongDevice,
    "memory handle 0: cannot open a CUDA IPC handle of 64 bytes: it names memory of 'GPU-1', this agent runs on GPU-0 (0); "
    "start it on the GPU of its client process": wsync.WrongDevice,
    "memory handle 0: cannot open shared memory '/wsync-1-a': it is not shared memory": wsync.MemoryNotShareable,
    "memory handle 0: cannot open shared memory '/x': the handle claims 9 bytes, the segment has 8": wsync.MemoryNotShareable,
    "memory handle 0: cannot open a CUDA IPC handle on GPU-0: it claims 9 bytes, the allocation has 8": wsync.MemoryNotShareable,
    "shared memory 'x': not a name for shm_open: expected one '/' and then 1 to 250 bytes": wsync.MemoryNotShareable,
    "there is no process 7 here: give the pid of the process whose memory it is": wsync.MemoryNotShareable,
    "tensor 'shared memory on the host backend' is registered twice": wsync.CatalogMismatch,
    "tensor 'x' has 9 bytes at offset 0 of memory handle 0, which has only 8 bytes": wsync.CatalogMismatch,
}  # fmt: skip


class Refusal(grpc.RpcError):
    def __init__(self, text: str) -> None:
        self.details = lambda: text
        self.code = lambda: grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("text", REFUSALS)
def test_a_refusal_is_of_the_device_only_where_the_agent_says_so(text: str) -> None:
    connection = _rpc.Connection("unix:///none.sock", "wsync-trainer")
    for convert, doing in ((_rpc.register_error, "register"), (_rpc.attach_error, "attach")):
        error = convert(connection, Refusal(text))
        assert type(error) is REFUSALS[text] and str(error).startswith(f"{doing}: "), error
    connection.close()
