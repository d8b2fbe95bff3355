"""Publishes and applies that are ordered against a CUDA stream, without a GPU: agents and streams are the test's."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

import wsync
from conftest import Cluster, eventually
from fake_agents import FakeAgent, FakeCuda, FakeStream, Script, rollout_agent, trainer_agent
from models import SHAPES, memory_for, shared_arrays
from wsync import _rpc, _wire, stream_events
from wsync import trainer as trainer_module

EVENT = _wire.message("PublishEvent")
UPDATE = _wire.message("UpdateEvent")


def say(kind: str, **fields: object) -> object:
    names = {"accepted": "Accepted", "reads_enqueued": "ReadsEnqueued", "released": "Released", "committed": "VersionReport"}
    return EVENT(**{kind: _wire.message(names[kind])(**fields)})


def tell(kind: str, **fields: object) -> object:
    names = {"apply": "Apply", "applied": "AppliedUpdate", "torn": "Torn", "cancelled": "Cancelled",
             "apply_enqueued": "ApplyEnqueued", "prepare": "Prepare"}  # fmt: skip
    return UPDATE(**{kind: _wire.message(names[kind])(**fields)})


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="wsync-py-") as path:
        yield Path(path)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(stream_events, "_new_event", fake.new_event)
    monkeypatch.setattr(stream_events, "_idle_stream", fake.idle_stream)
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
    trainer: wsync.Trainer, script: Script, cuda: FakeCuda
) -> None:
    stream, other = FakeStream(), FakeStream()
    sync = trainer.publish(7, stream=stream)
    request = script.requests.get(timeout=30)
    assert stream.log == ["record e0"]
    assert request.after.handle.startswith(b"e0.") and request.released.handle.startswith(b"e1.")
    assert request.after.device_uuid == request.released.device_uuid == "GPU-0"
    script.say(say("accepted"))
    script.say(say("reads_enqueued", elapsed_ms=1.5))
    assert sync.released(30, stream=other) == 1.5
    assert other.log == ["wait e1"] and not sync.released_future.done()
    script.say(say("released", elapsed_ms=8.0))
    script.say(say("committed", version=7))
    script.end()
    assert sync.released(30) == 8.0 and sync.committed(30).version == 7
    assert cuda.idle.log == []


def test_asyncio_orders_a_stream_as_well(trainer: wsync.Trainer, script: Script) -> None:
    async def main() -> None:
        sync = wsync.aio.Publication(trainer.publish(7, stream=FakeStream()))
        script.say(say("reads_enqueued", elapsed_ms=1.5))
        other = FakeStream()
        assert await sync.released(30, stream=other) == 1.5
        assert other.log == ["wait e1"]
        script.say(say("committed", version=7))
        script.end()
        assert (await sync.committed(30)).version == 7

    asyncio.run(main())


def test_events_are_used_again_after_a_good_version_and_never_after_a_failed_one(
    trainer: wsync.Trainer, script: Script, cuda: FakeCuda
) -> None:
    for version, good, made in ((1, True, 2), (2, True, 2), (3, False, 2), (4, True, 4)):
        sync = trainer.publish(version, stream=FakeStream())
        script.say(say("reads_enqueued"))
        if good:
            script.say(say("committed", version=version))
            script.end()
            sync.committed(30)
        else:
            script.fail("the stream did not get there")
            with pytest.raises(wsync.PublishFailed, match="did not get there"):
                sync.committed(30)
        assert len(cuda.events) == made, version


def test_a_stream_that_waits_for_an_agent_that_died_goes_on_and_the_error_is_told(
    trainer: wsync.Trainer, script: Script, cuda: FakeCuda
) -> None:
    sync = trainer.publish(7, stream=FakeStream())
    script.say(say("reads_enqueued"))
    waiting = FakeStream()
    sync.released(30, stream=waiting)
    script.hang_up()
    with pytest.raises(wsync.AgentUnavailable):
        sync.committed(30)
    assert cuda.idle.log == ["record e1"]  # ends the wait
    late = FakeStream()
    sync.released(30, stream=late)  # and a stream that begins to wait now does not stay either
    assert late.log == ["wait e1"] and cuda.idle.log == ["record e1"] * 2
    assert script.requests.qsize() == 1, "weights that may have changed since are not published again"


def test_a_version_that_fails_before_its_reads_does_not_give_the_weights_back(
    trainer: wsync.Trainer, script: Script
) -> None:
    sync = trainer.publish(7, stream=FakeStream())
    script.fail("a member was lost")
    stream = FakeStream()
    with pytest.raises(wsync.PublishFailed, match="a member was lost"):
        sync.released(30, stream=stream)
    assert stream.log == []


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
    update = next(rollout.updates(timeout=30))
    script.say(tell("apply_enqueued", version=version))
    outcome = update.apply(30, stream=stream)
    assert (outcome.version, outcome.applied, outcome.confirmed) == (version, True, False)
    return outcome


def test_an_apply_returns_when_the_copy_is_on_its_way_and_is_confirmed_later(
    rollout: wsync.Rollout, script: Script, cuda: FakeCuda
) -> None:
    stream = FakeStream()
    apply_on(stream, rollout, script, 7)
    paused = script.requests.get(timeout=30).paused
    assert paused.version == 7
    assert paused.after.handle.startswith(b"e0.") and paused.applied.handle.startswith(b"e1.")
    assert stream.log == ["record e0", "wait e1"]
    assert rollout.serving_version == 7
    script.say(tell("applied", version=7))
    rollout.confirm(30)
    rollout.confirm(0)  # at once
    apply_on(stream, rollout, script, 8)
    assert len(cuda.events) == 2
    script.say(tell("applied", version=8))
    script.say(tell("prepare", version=9))
    script.say(tell("apply", version=9))
    assert next(rollout.updates(timeout=30)).version == 9  # which confirms 8 in passing
    assert rollout.serving_version == 8 and cuda.idle.log == []


def test_confirm_keeps_what_else_the_agent_said(rollout: wsync.Rollout, script: Script) -> None:
    apply_on(FakeStream(), rollout, script, 7)
    script.say(tell("prepare", version=8))
    script.say(tell("applied", version=7))
    script.say(tell("apply", version=8))
    rollout.confirm(30)
    assert next(rollout.updates(timeout=30)).version == 8


def test_a_copy_that_fails_after_all_is_torn_and_told_by_whatever_looks_next(
    rollout: wsync.Rollout, script: Script, cuda: FakeCuda
) -> None:
    apply_on(FakeStream(), rollout, script, 7)
    script.say(tell("torn", version=7, reason="the copy failed"))
    with pytest.raises(wsync.TornUpdate, match="the copy failed"):
        next(rollout.updates(timeout=30))
    assert rollout.torn and rollout.serving_version == 0
    script.say(tell("apply", version=8))
    update = next(rollout.updates(timeout=30))
    script.say(tell("applied", version=8))
    assert update.apply(30, stream=FakeStream()).version == 8
    assert not rollout.torn and rollout.serving_version == 8


def test_a_version_that_was_given_up_leaves_the_one_before(rollout: wsync.Rollout, script: Script) -> None:
    apply_on(FakeStream(), rollout, script, 7)
    script.say(tell("applied", version=7))
    rollout.confirm(30)
    apply_on(FakeStream(), rollout, script, 8)
    script.say(tell("cancelled", version=8, reason="the engine's stream did not get there"))
    with pytest.raises(wsync.AgentError, match="did not get there"):
        rollout.confirm(30)
    assert rollout.serving_version == 7 and not rollout.torn


def test_an_engine_whose_agent_dies_is_not_left_waiting_and_hears_that_it_is_torn(
    rollout: wsync.Rollout, script: Script, cuda: FakeCuda
) -> None:
    apply_on(FakeStream(), rollout, script, 7)
    script.hang_up()
    eventually(lambda: cuda.idle.log == ["record e1"], "the wait is ended, though nobody asks for updates")
    with pytest.raises(wsync.TornUpdate, match="went away"):
        next(rollout.updates(timeout=30))
    assert rollout.torn and rollout.serving_version == 0


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
