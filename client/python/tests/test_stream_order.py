"""Publishes and applies that are ordered against a CUDA stream, without a GPU: agents and streams are the test's."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from conftest import Cluster, eventually
from fake_agents import FakeAgent, FakeCuda, FakeStream, Script, rollout_agent, trainer_agent
from models import SHAPES, memory_for, shared_arrays

import wsync
from wsync import _rpc, _wire, stream_events
from wsync import trainer as trainer_module

EVENT = _wire.message("PublishEvent")
UPDATE = _wire.message("UpdateEvent")


def say(kind: str, **fields: object) -> object:
    names = {"accepted": "Accepted", "released": "Released", "committed": "VersionReport"}
    return EVENT(**{kind: _wire.message(names[kind])(**fields)})


def tell(kind: str, **fields: object) -> object:
    names = {"apply": "Apply", "applied": "AppliedUpdate", "torn": "Torn", "cancelled": "Cancelled",
             "prepare": "Prepare"}  # fmt: skip
    return UPDATE(**{kind: _wire.message(names[kind])(**fields)})


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="wsync-py-") as path:
        yield Path(path)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(stream_events, "_new_event", fake.new_event)
    monkeypatch.setattr(stream_events, "cuda_driver", lambda: fake)
    monkeypatch.setattr(stream_events, "_gates", stream_events.Gates())
    monkeypatch.setattr(trainer_module, "_current", lambda stream: contextlib.nullcontext())
    return fake


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def agent(folder: Path, script: Script) -> Iterator[FakeAgent]:
    agent = trainer_agent(folder, script)
    yield agent
    agent.stop()


@pytest.fixture
def trainer(agent: FakeAgent, cuda: FakeCuda) -> Iterator[wsync.Trainer]:
    with wsync.Trainer(agent.socket) as trainer:
        trainer.register(shared_arrays({"x.weight": (4, 4)}))
        trainer._devices = {"cuda:0"}  # as if they lay there
        trainer._events = stream_events.LentEvents("GPU-0")
        yield trainer


def test_a_publish_records_its_point_and_a_stream_goes_on_behind_the_reads(
    trainer: wsync.Trainer, script: Script
) -> None:
    stream, other = FakeStream(), FakeStream()
    sync = trainer.publish(7, stream=stream)
    request = script.requests.get(timeout=30)
    assert stream.log == ["record e0"]
    assert request.after.handle.startswith(b"e0.") and request.after.device_uuid == "GPU-0"
    assert sync.released(stream=other) == 0.0 and sync.released(stream=stream) == 0.0, "before the agent said a word"
    script.say(say("accepted"))
    assert other.log == ["wait"] and not other.passed() and not stream.passed()
    script.say(say("released", elapsed_ms=8.0))
    assert sync.released(30) == 8.0 and other.passed() and stream.passed()
    assert sync.released(stream=other) == 8.0 and other.log == ["wait"], "what is done needs no waiting"
    script.say(say("committed", version=7))
    script.end()
    assert sync.committed(30).version == 7


def test_asyncio_orders_a_stream_as_well(trainer: wsync.Trainer, script: Script) -> None:
    async def main() -> None:
        sync = wsync.aio.Publication(trainer.publish(7, stream=FakeStream()))
        other = FakeStream()
        assert await sync.released(30, stream=other) == 0.0
        assert other.log == ["wait"] and not other.passed()
        script.say(say("released", elapsed_ms=1.5))
        script.say(say("committed", version=7))
        script.end()
        assert (await sync.committed(30)).version == 7 and other.passed()

    asyncio.run(main())


def test_a_version_that_failed_is_not_an_agent_that_is_gone(trainer: wsync.Trainer, script: Script) -> None:
    """Taken for that, the publish registered again, and said that this process had done so already."""
    sync = trainer.publish(1, stream=FakeStream())
    script.fail("version 1 failed: replica r rank 0 (r) failed in phase connect", grpc.StatusCode.UNAVAILABLE)
    with pytest.raises(wsync.PublishFailed, match="phase connect"):
        sync.committed(30)
    assert script.requests.qsize() == 1  # it did not publish again


def test_events_are_used_again_whatever_became_of_a_version(
    trainer: wsync.Trainer, script: Script, cuda: FakeCuda
) -> None:
    """Those of versions that failed were kept, one more for each."""
    for version in range(1, 5):
        sync = trainer.publish(version, stream=FakeStream())
        if version % 2:
            script.say(say("committed", version=version))
            script.end()
            sync.committed(30)
        else:
            script.fail("the stream did not get there")
            with pytest.raises(wsync.PublishFailed, match="did not get there"):
                sync.committed(30)
        assert len(cuda.events) == 1, version


def test_an_event_that_a_silent_agent_may_still_look_at_is_not_used_again(
    trainer: wsync.Trainer, script: Script, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer._connection._heartbeat, "_ask", lambda timeout: False)
    waiting = FakeStream()
    sync = trainer.publish(1, stream=FakeStream())
    sync.released(stream=waiting)
    with pytest.raises(wsync.AgentGone, match="does not answer any more"):
        sync.committed(30)
    assert waiting.passed(), "it waits for an agent that stands still no more than for a dead one"
    script.end()
    trainer.publish(2, stream=FakeStream())
    assert len(cuda.events) == 2


def test_a_word_is_used_again_though_the_gpu_has_not_looked_at_it_yet(
    trainer: wsync.Trainer, script: Script
) -> None:
    streams = [FakeStream() for _ in range(3)]
    for version, stream in enumerate(streams, 1):
        sync = trainer.publish(version, stream=stream)
        sync.released(stream=stream)
        assert [s.passed() for s in streams[:version]] == [True] * (version - 1) + [False]
        script.say(say("released"))
        script.say(say("committed", version=version))
        script.end()
        sync.committed(30)
    assert all(stream.passed() for stream in streams)
    (word,) = {ctypes.addressof(word) for stream in streams for word, _ in stream.waits}


def test_gates_that_are_closed_at_once_have_words_of_their_own_and_are_opened_once(cuda: FakeCuda) -> None:
    gates = [stream_events._gates.take("cuda:0") for _ in range(2000)]  # of more than one page
    streams = [FakeStream() for _ in gates]
    for gate, stream in zip(gates, streams, strict=True):
        gate.hold(stream, "cuda:0")
    for count, gate in enumerate(gates, 1):
        gate.open()
        if count % 500 == 1:
            assert [stream.passed() for stream in streams] == [True] * count + [False] * (len(gates) - count)
    late = FakeStream()
    stream_events._gates.take("cuda:0").hold(late, "cuda:0")
    for gate in gates:
        gate.open()
    assert not late.passed(), "who was done with a word does not open it for its next user"


def test_a_stream_that_waits_for_an_agent_that_died_goes_on_and_the_error_is_told(
    trainer: wsync.Trainer, script: Script
) -> None:
    sync = trainer.publish(7, stream=FakeStream())
    waiting = FakeStream()
    sync.released(stream=waiting)
    script.say(say("released"))
    script.hang_up()
    with pytest.raises(wsync.AgentUnavailable):
        sync.committed(30)
    assert waiting.passed()
    late = FakeStream()
    sync.released(stream=late)
    assert late.passed()
    assert script.requests.qsize() == 1, "weights that may have changed since are not published again"


def test_a_stream_waits_on_while_an_agent_that_restarted_is_published_to_again(
    trainer: wsync.Trainer, script: Script
) -> None:
    sync = trainer.publish(7, stream=FakeStream())
    waiting = FakeStream()
    sync.released(stream=waiting)
    script.hang_up()
    for _ in range(2):
        assert script.requests.get(timeout=30).version == 7
    assert not waiting.passed()
    script.say(say("released"))
    script.say(say("committed", version=7))
    script.end()
    assert sync.committed(30).version == 7 and waiting.passed()


def test_a_version_that_fails_before_its_reads_lets_the_stream_go_on_or_not_begin_to_wait(
    trainer: wsync.Trainer, script: Script
) -> None:
    sync = trainer.publish(7, stream=FakeStream())
    waiting, late = FakeStream(), FakeStream()
    sync.released(stream=waiting)
    script.fail("a member was lost")
    with pytest.raises(wsync.PublishFailed, match="a member was lost"):
        sync.committed(30)
    assert waiting.passed()
    with pytest.raises(wsync.PublishFailed, match="a member was lost"):
        sync.released(30, stream=late)
    assert late.log == []


def test_a_client_that_closes_leaves_no_stream_waiting(trainer: wsync.Trainer) -> None:
    waiting = FakeStream()
    trainer.publish(7, stream=waiting).released(stream=waiting)
    trainer.close()
    eventually(waiting.passed, "the stream goes on")


def test_a_process_that_ends_leaves_no_stream_waiting(trainer: wsync.Trainer) -> None:
    waiting = FakeStream()
    trainer.publish(7, stream=waiting).released(stream=waiting)
    assert not waiting.passed()
    stream_events._gates.open_all()  # as atexit does
    assert waiting.passed()


def test_a_driver_without_such_waits_is_named_and_the_version_goes_on(
    trainer: wsync.Trainer, script: Script, cuda: FakeCuda
) -> None:
    cuda.refuses = True
    sync = trainer.publish(7, stream=FakeStream())
    with pytest.raises(wsync.StreamUnsupported, match="cannot wait"):
        sync.released(stream=FakeStream())
    script.say(say("released", elapsed_ms=2.0))
    script.say(say("committed", version=7))
    script.end()
    assert sync.released(30) == 2.0 and sync.committed(30).version == 7


def test_a_stream_where_nothing_can_be_ordered_is_refused_with_what_to_do(trainer: wsync.Trainer) -> None:
    with pytest.raises(wsync.WrongDevice, match="cuda:1"):
        trainer.publish(7, stream=FakeStream("cuda:1"))
    with pytest.raises(TypeError, match=r"torch\.cuda\.Stream"):
        trainer.publish(7, stream="a stream")
    unordered = trainer.publish(7, synchronize=False)
    with pytest.raises(wsync.StreamUnsupported, match="without a stream") as error:
        unordered.released(stream=FakeStream())
    assert "publish(version, stream=...)" in error.value.next_step
    trainer._devices = {"cpu"}
    with pytest.raises(wsync.StreamUnsupported, match="on the CPU") as error:
        trainer.publish(8, stream=FakeStream())
    assert "leave `stream` out" in error.value.next_step


# ---- the engine's side


@pytest.fixture
def rollout(folder: Path, script: Script, cuda: FakeCuda) -> Iterator[wsync.Rollout]:
    agent = rollout_agent(folder, script)
    with wsync.Rollout(agent.socket) as rollout:
        rollout.attach(shared_arrays({"x.weight": (4, 4)}))
        assert rollout._engine is not None
        rollout._engine.devices = {"cuda:0"}
        rollout._events = stream_events.LentEvents("GPU-0")
        assert script.requests.get(timeout=30).hello.attachment_id == "a1"
        yield rollout
        script.end()
    agent.stop()


def apply_on(stream: FakeStream, rollout: wsync.Rollout, script: Script, version: int) -> wsync.Outcome:
    script.say(tell("apply", version=version))
    outcome = next(rollout.updates(timeout=30)).apply(30, stream=stream)
    assert (outcome.version, outcome.applied, outcome.confirmed) == (version, True, False)
    assert rollout.serving_version == version and not stream.passed()
    return outcome


def test_an_apply_returns_at_once_and_is_confirmed_later(
    rollout: wsync.Rollout, script: Script, cuda: FakeCuda
) -> None:
    stream = FakeStream()
    apply_on(stream, rollout, script, 7)
    paused = script.requests.get(timeout=30).paused
    assert paused.version == 7 and paused.after.handle.startswith(b"e0.")
    assert stream.log == ["record e0", "wait"]
    script.say(tell("applied", version=7))
    eventually(stream.passed, "the stream goes on, though nobody asks for updates")
    rollout.confirm(30)
    rollout.confirm(0)  # at once
    apply_on(stream, rollout, script, 8)
    assert len(cuda.events) == 1
    script.say(tell("applied", version=8))
    script.say(tell("prepare", version=9))
    script.say(tell("apply", version=9))
    assert next(rollout.updates(timeout=30)).version == 9  # which confirms 8 in passing
    assert rollout.serving_version == 8


def test_confirm_keeps_what_else_the_agent_said(rollout: wsync.Rollout, script: Script) -> None:
    apply_on(FakeStream(), rollout, script, 7)
    script.say(tell("prepare", version=8))
    script.say(tell("applied", version=7))
    script.say(tell("apply", version=8))
    rollout.confirm(30)
    assert next(rollout.updates(timeout=30)).version == 8


def test_a_copy_that_fails_after_all_is_torn_and_told_by_whatever_looks_next(
    rollout: wsync.Rollout, script: Script
) -> None:
    stream = FakeStream()
    apply_on(stream, rollout, script, 7)
    script.say(tell("torn", version=7, reason="the copy failed"))
    eventually(stream.passed, "the stream goes on")
    with pytest.raises(wsync.TornUpdate, match="the copy failed"):
        next(rollout.updates(timeout=30))
    assert rollout.torn and rollout.serving_version == 0
    script.say(tell("apply", version=8))
    update = next(rollout.updates(timeout=30))
    script.say(tell("applied", version=8))
    outcome = update.apply(30, stream=stream)
    assert outcome.confirmed and outcome.version == 8, "torn, it waits for the end"
    assert not rollout.torn and rollout.serving_version == 8


def test_a_version_that_was_given_up_leaves_the_one_before(
    rollout: wsync.Rollout, script: Script, cuda: FakeCuda
) -> None:
    apply_on(FakeStream(), rollout, script, 7)
    script.say(tell("applied", version=7))
    rollout.confirm(30)
    stream = FakeStream()
    apply_on(stream, rollout, script, 8)
    script.say(tell("cancelled", version=8, reason="the engine's stream did not get there"))
    with pytest.raises(wsync.AgentError, match="did not get there"):
        rollout.confirm(30)
    assert rollout.serving_version == 7 and not rollout.torn and stream.passed()
    assert len(cuda.events) == 1


def test_a_stream_waits_for_its_own_version_whatever_is_said_of_another(rollout: wsync.Rollout, script: Script) -> None:
    script.say(tell("apply", version=5))
    update = next(rollout.updates(timeout=30))
    script.say(tell("cancelled", version=6, reason="it could not connect"))
    stream = FakeStream()
    update.apply(30, stream=stream)
    script.say(tell("cancelled", version=5, reason="it was dropped"))
    eventually(stream.passed, "the stream goes on")
    with pytest.raises(wsync.AgentError, match="version 5"):
        rollout.confirm(30)


def test_an_engine_whose_agent_dies_is_not_left_waiting_and_hears_that_it_is_torn(
    rollout: wsync.Rollout, script: Script
) -> None:
    stream = FakeStream()
    apply_on(stream, rollout, script, 7)
    script.hang_up()
    eventually(stream.passed, "the stream goes on, though nobody asks for updates")
    with pytest.raises(wsync.TornUpdate, match="went away"):
        next(rollout.updates(timeout=30))
    assert rollout.torn and rollout.serving_version == 0


def test_an_agent_that_refuses_the_pause_leaves_nothing_waiting_or_served(
    rollout: wsync.Rollout, script: Script
) -> None:
    stream = FakeStream()
    apply_on(stream, rollout, script, 7)
    script.end((grpc.StatusCode.INVALID_ARGUMENT, "an event of another GPU"))
    with pytest.raises(wsync.WsyncError, match="another GPU"):
        next(rollout.updates(timeout=30))
    assert stream.passed() and rollout.torn and rollout.serving_version == 0


def test_an_engine_that_detaches_leaves_no_stream_waiting(rollout: wsync.Rollout, script: Script) -> None:
    stream = FakeStream()
    apply_on(stream, rollout, script, 7)
    rollout.detach()
    assert stream.passed()


def test_a_driver_without_such_waits_is_named_before_the_agent_writes(
    rollout: wsync.Rollout, script: Script, cuda: FakeCuda
) -> None:
    cuda.refuses = True
    script.say(tell("apply", version=7))
    update = next(rollout.updates(timeout=30))
    with pytest.raises(wsync.StreamUnsupported, match="cannot wait"):
        update.apply(30, stream=FakeStream())
    assert script.requests.empty() and rollout.serving_version == 0


def test_in_place_an_apply_on_a_stream_returns_when_it_is_committed(rollout: wsync.Rollout, script: Script) -> None:
    script.say(tell("prepare", version=7, in_place=True))
    update = next(rollout.updates(timeout=30))
    script.say(tell("applied", version=7))
    stream = FakeStream()
    outcome = update.apply(30, stream=stream)
    assert outcome.confirmed and rollout.serving_version == 7
    assert stream.log == ["record e0"]


# ---- real agents, on host memory


def test_host_agents_refuse_streams_by_name_and_live_on(cluster: Cluster) -> None:
    lent = _wire.message("StreamEvent")(handle=b"e" * 64, device_uuid="GPU-0")
    with wsync.Trainer(cluster.start_trainer()) as trainer, wsync.Rollout(cluster.start_rollout()) as rollout:
        trainer.register(shared_arrays(SHAPES))
        rollout.attach(memory_for(rollout.plan()))
        for handle in (b"", b"e" * 64, b"e" * 100_000):
            lent.handle = handle
            request = _wire.message("PublishRequest")(registration_id=trainer._id, version=1, after=lent)
            call = trainer._stub.publish(request)
            with pytest.raises(grpc.RpcError, match="no streams") as error:
                list(call)
            refused = _rpc.publish_error(trainer._connection, error.value, 1)
            assert isinstance(refused, wsync.StreamUnsupported) and "transfer.backend" in str(refused)
        sync = trainer.publish(1)
        assert next(rollout.updates(timeout=30)).apply().version == 1
        assert sync.committed().applied
        assert cluster.alive("trainer") and cluster.alive("rollout-0")
