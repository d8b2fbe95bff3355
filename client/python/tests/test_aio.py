"""The asyncio form: waits suspend the task, and the loop goes on."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import wsync
from conftest import Cluster, eventually
from fake_agents import Script, rollout_agent
from models import SHAPES, assert_same_weights, memory_for, randomize, shared_arrays
from wsync import _wire, aio


def test_trainer_and_engine_in_one_event_loop(cluster: Cluster) -> None:
    weights = shared_arrays(SHAPES)
    randomize(weights, 1)
    trainer_socket, rollout_socket = cluster.start_trainer(), cluster.start_rollout()

    async def engine(rollout: wsync.aio.Rollout, versions: int) -> list[int]:
        served = []
        async for update in rollout.updates(timeout=60):
            served.append((await update.apply()).version)
            if len(served) == versions:
                return served
        return served

    async def main() -> None:
        async with wsync.aio.Trainer(trainer_socket) as trainer, wsync.aio.Rollout(rollout_socket) as rollout:
            await trainer.register(weights)
            memory = memory_for(await rollout.plan())
            await rollout.attach(memory)
            following = asyncio.create_task(engine(rollout, 2))
            for version in (1, 2):
                randomize(weights, version)
                sync = await trainer.publish(version)
                await sync.released()
                assert (await sync.committed()).applied
            assert await following == [1, 2] and rollout.serving_version == 2
            assert_same_weights(memory, weights)
            randomize(weights, 3)
            with pytest.raises(wsync.StaleVersion):
                await (await trainer.publish(1)).committed()
            with pytest.raises(wsync.DeadlineExceeded):
                async for _ in rollout.updates(timeout=0.1):
                    pass

    asyncio.run(asyncio.wait_for(main(), 120))


def test_a_wait_that_runs_out_names_the_version_and_where_it_is(cluster: Cluster) -> None:
    async def main() -> None:
        async with wsync.aio.Trainer(cluster.start_trainer(coordinator__min_replicas_wait_ms="10s")) as trainer:
            await trainer.register(shared_arrays(SHAPES))
            sync = await trainer.publish(5)
            with pytest.raises(wsync.DeadlineExceeded, match="version 5 was not committed within 0.2 s"):
                await sync.committed(timeout=0.2)

    asyncio.run(main())


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="wsync-py-") as path:
        yield Path(path)


@contextlib.asynccontextmanager
async def attached(folder: Path, script: Script) -> AsyncIterator[wsync.aio.Rollout]:
    """An engine at an agent that says what the test says."""
    agent = rollout_agent(folder, script)
    try:
        async with wsync.aio.Rollout(agent.socket) as rollout:
            await rollout.attach(shared_arrays({"x.weight": (4, 4)}))
            yield rollout
    finally:
        agent.stop()


def say(script: Script, kind: str, version: int) -> None:
    message = {"apply": "Apply", "applied": "AppliedUpdate"}[kind]
    script.say(_wire.message("UpdateEvent")(**{kind: _wire.message(message)(version=version)}))


async def cancelled(task: asyncio.Task[object]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_an_update_that_comes_to_a_cancelled_task_goes_to_the_next(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aio, "_SLICE", 10.0)
    script = Script()
    waiting = threading.Event()

    async def main() -> None:
        async with attached(folder, script) as rollout:
            take = rollout.sync.updates
            monkeypatch.setattr(rollout.sync, "updates", lambda **kw: (waiting.set(), take(**kw))[1])
            task = asyncio.create_task(anext(rollout.updates()))
            await asyncio.to_thread(waiting.wait, 30)
            await cancelled(task)
            say(script, "apply", 1)  # to the thread that the task left behind
            update = await anext(rollout.updates(timeout=30))
            assert update.version == 1
            say(script, "applied", 1)
            assert (await update.apply(30)).applied and rollout.serving_version == 1
            with pytest.raises(wsync.DeadlineExceeded):  # it comes once
                await anext(rollout.updates(timeout=0.1))

    asyncio.run(asyncio.wait_for(main(), 60))


def test_an_update_that_was_left_to_its_thread_keeps_what_the_agent_says_of_it(folder: Path) -> None:
    script = Script()

    async def main() -> None:
        async with attached(folder, script) as rollout:
            say(script, "apply", 1)
            update = await anext(rollout.updates(timeout=30))
            task = asyncio.create_task(update.apply(30))
            await asyncio.to_thread(script.requests.get, True, 30)  # hello
            await asyncio.to_thread(script.requests.get, True, 30)  # paused
            await cancelled(task)
            following = asyncio.create_task(anext(rollout.updates(timeout=30)))
            await asyncio.sleep(0.1)
            say(script, "applied", 1)
            say(script, "apply", 2)
            assert (await following).version == 2 and rollout.serving_version == 1

    asyncio.run(asyncio.wait_for(main(), 60))


def test_what_was_taken_of_an_attachment_that_is_over_is_dropped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aio, "_SLICE", 10.0)
    script = Script()
    waiting = threading.Event()

    async def main() -> None:
        async with attached(folder, script) as rollout:
            take = rollout.sync.updates
            monkeypatch.setattr(rollout.sync, "updates", lambda **kw: (waiting.set(), take(**kw))[1])
            task = asyncio.create_task(anext(rollout.updates()))
            await asyncio.to_thread(waiting.wait, 30)
            await cancelled(task)
            say(script, "apply", 1)
            await asyncio.to_thread(eventually, lambda: bool(rollout._taken), "the thread took it")
            script.end()
            await rollout.attach(shared_arrays({"x.weight": (4, 4)}))
            say(script, "apply", 2)
            assert (await anext(rollout.updates(timeout=30))).version == 2

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_cancelled_wait_does_not_end_the_publication(cluster: Cluster) -> None:
    weights = shared_arrays(SHAPES)
    randomize(weights, 1)

    async def main() -> None:
        agent = cluster.start_trainer(coordinator__min_replicas_wait_ms="10s")
        async with wsync.aio.Trainer(agent) as trainer:
            await trainer.register(weights)
            sync = await trainer.publish(1)
            waits = [asyncio.create_task(wait(30)) for wait in (sync.released, sync.committed)]
            await asyncio.sleep(0)  # both wait now
            for task in waits:
                await cancelled(task)
            assert not sync.sync.released_future.cancel() and not sync.sync.committed_future.cancel()
            async with wsync.aio.Rollout(cluster.start_rollout()) as rollout:
                await rollout.attach(memory_for(await rollout.plan()))
                update = await anext(rollout.updates(timeout=30))
                assert (await update.apply()).applied
                await sync.released(30)
                assert (await sync.committed(30)).applied

    asyncio.run(asyncio.wait_for(main(), 120))
