"""The asyncio form: waits suspend the task, and the loop goes on."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from conftest import Cluster, eventually
from fake_agents import Script, rollout_agent
from models import SHAPES, assert_same_weights, memory_for, randomize, shared_arrays

import wsync
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


def test_what_can_be_asked_without_waiting_is_the_same(cluster: Cluster) -> None:
    trainer_socket, rollout_socket = cluster.start_trainer(), cluster.start_rollout()

    async def main() -> None:
        async with wsync.aio.Trainer(trainer_socket) as trainer, wsync.aio.Rollout(rollout_socket) as rollout:
            assert trainer.registration is None and not rollout.attached
            assert await trainer.register(shared_arrays(SHAPES)) == trainer.registration
            with pytest.raises(wsync.NotAttached):
                await rollout.poll()
            await rollout.attach(memory_for(await rollout.plan()))
            assert rollout.attached and rollout.serving_digest == "" and await rollout.poll() is None
            sync = await trainer.publish(1)
            while (update := await rollout.poll()) is None:
                await asyncio.sleep(0.01)
            again = await rollout.poll()
            assert again is not None and again.sync is update.sync and not sync.done and sync.progress
            outcome = await update.apply()
            assert await rollout.poll() is None
            assert (await sync.committed()).applied and sync.done
            assert rollout.serving_digest == outcome.content_digest != ""

    asyncio.run(asyncio.wait_for(main(), 120))


def test_an_engine_waits_as_long_for_its_agent_to_come_back_as_it_is_told_to(cluster: Cluster) -> None:
    trainer_socket, rollout_socket = cluster.start_trainer(), cluster.start_rollout()

    async def main() -> None:
        async with wsync.aio.Trainer(trainer_socket) as trainer, wsync.aio.Rollout(rollout_socket) as rollout:
            await trainer.register(shared_arrays(SHAPES))
            await rollout.attach(memory_for(await rollout.plan()))
            cluster.kill("rollout-0")
            assert await rollout.poll() is None
            with pytest.raises(wsync.AgentUnavailable):
                async for _ in rollout.updates(reattach_timeout=0.3):
                    pass

    asyncio.run(asyncio.wait_for(main(), 30))


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
    message = {"apply": "Apply", "applied": "AppliedUpdate", "torn": "Torn", "cancelled": "Cancelled"}[kind]
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
            take = rollout.sync._updates
            monkeypatch.setattr(rollout.sync, "_updates", lambda *args: (waiting.set(), take(*args))[1])
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


async def told(script: Script, kind: str) -> None:
    """Returns when the agent was told this."""
    while (await asyncio.to_thread(script.requests.get, True, 30)).WhichOneof("message") != kind:
        pass


async def not_told(script: Script) -> None:
    await asyncio.sleep(0.3)
    while not script.requests.empty():
        assert script.requests.get().WhichOneof("message") == "hello"


def test_an_apply_in_a_task_of_its_own_does_not_wait_for_the_loop_of_updates(folder: Path) -> None:
    async def main() -> None:
        script = Script()
        async with attached(folder, script) as rollout:
            applies: list[asyncio.Task[wsync.Outcome]] = []

            async def pause_and_apply(update: wsync.aio.Update) -> wsync.Outcome:
                await asyncio.sleep(0.3)  # what is being generated comes to its end
                return await update.apply(30)

            async def follow() -> None:
                async for update in rollout.updates(timeout=60):
                    applies.append(asyncio.create_task(pause_and_apply(update)))

            following = asyncio.create_task(follow())
            for version in (1, 2, 3):
                begun = asyncio.get_running_loop().time()
                say(script, "apply", version)
                await told(script, "paused")
                assert asyncio.get_running_loop().time() - begun < 0.3 + 0.4, "it waited for the loop, turn after turn"
                say(script, "applied", version)
                assert (await applies[-1]).version == version
            await cancelled(following)

    asyncio.run(asyncio.wait_for(main(), 60))


@pytest.mark.parametrize("end", ["applied", "cancelled"])
def test_an_apply_that_is_cancelled_ends_when_the_agent_writes_no_more(folder: Path, end: str) -> None:
    script = Script()

    async def main() -> None:
        async with attached(folder, script) as rollout:
            say(script, "apply", 1)
            update = await anext(rollout.updates(timeout=30))
            applying = asyncio.create_task(update.apply(30))
            await told(script, "paused")
            for _ in range(3):  # however often
                applying.cancel()
                await asyncio.sleep(0.1)
            assert not applying.done(), "its engine would go on, and the agent may write"
            say(script, end, 1)
            with pytest.raises(asyncio.CancelledError):
                await applying
            assert update.outcome is not None and update.outcome.applied == (end == "applied")
            assert rollout.serving_version == (1 if end == "applied" else 0) and not rollout.torn
            assert await update.apply(30) is update.outcome  # again: it has ended, and nobody is told anything
            await not_told(script)
            say(script, "apply", 2)
            assert (await anext(rollout.updates(timeout=30))).version == 2

    asyncio.run(asyncio.wait_for(main(), 60))


@pytest.mark.parametrize("end", ["torn", "agent gone", "asked again", "time"])
def test_an_apply_that_is_cancelled_and_ends_torn_says_so_instead(folder: Path, end: str) -> None:
    script = Script()

    async def main() -> None:
        async with attached(folder, script) as rollout:
            say(script, "apply", 1)
            update = await anext(rollout.updates(timeout=30))
            applying = asyncio.create_task(update.apply(1 if end == "time" else 30))
            await told(script, "paused")
            applying.cancel()
            await asyncio.sleep(0.1)
            if end == "agent gone":
                script.hang_up()
            elif end != "time":
                say(script, "torn", 1)
            if end == "asked again":
                say(script, "apply", 2)
            with pytest.raises(wsync.TornUpdate):
                await asyncio.wait_for(asyncio.shield(applying), 5)  # it does not wait for another version
            assert rollout.torn and rollout.serving_version == 0
            await not_told(script)
            if end == "asked again":
                again = await anext(rollout.updates(timeout=30))
                assert again.version == 2
            elif end == "torn":
                say(script, "apply", 2)
                again = update  # waits on for the next complete version
            else:
                return
            applying = asyncio.create_task(again.apply(30))
            await told(script, "paused")
            say(script, "applied", 2)
            assert (await applying).version == 2 and not rollout.torn

    asyncio.run(asyncio.wait_for(main(), 60))


def test_an_apply_that_is_cancelled_while_it_waits_for_its_turn_never_tells_the_agent(folder: Path) -> None:
    script = Script()

    async def main() -> None:
        async with attached(folder, script) as rollout:
            say(script, "apply", 1)
            update = await anext(rollout.updates(timeout=30))
            gate = threading.Event()
            hung = asyncio.create_task(rollout._turn.run("something", lambda _: gate.wait(30), 30))
            await asyncio.sleep(0)
            applying = asyncio.create_task(update.apply(30))
            await asyncio.sleep(0.05)
            await asyncio.wait_for(cancelled(applying), 1)
            gate.set()
            await hung
            await not_told(script)
            again = await anext(rollout.updates(timeout=30))  # the agent asks once: it would wait for ever
            assert again.version == 1
            applying = asyncio.create_task(again.apply(30))
            await told(script, "paused")
            say(script, "applied", 1)
            assert (await applying).applied and (await update.apply(30)).applied

    asyncio.run(asyncio.wait_for(main(), 60))


def test_an_apply_that_is_cancelled_before_it_told_the_agent_never_does(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On its thread already, and about to."""
    script = Script()
    entered, gate = threading.Event(), threading.Event()

    async def main() -> None:
        async with attached(folder, script) as rollout:
            say(script, "apply", 1)
            update = await anext(rollout.updates(timeout=30))
            apply = update.sync.apply
            monkeypatch.setattr(update.sync, "apply", lambda left, **how: (entered.set(), gate.wait(30), apply(left, **how))[2])
            applying = asyncio.create_task(update.apply(30))
            await asyncio.to_thread(entered.wait, 30)
            applying.cancel()
            await asyncio.sleep(0.05)
            gate.set()
            with pytest.raises(asyncio.CancelledError):
                await applying
            await not_told(script)
            assert update.outcome is None and not rollout.torn

    asyncio.run(asyncio.wait_for(main(), 60))


def test_what_waits_behind_a_call_that_hangs_has_its_own_limit_and_says_so(folder: Path) -> None:
    script = Script()

    async def main() -> None:
        async with attached(folder, script) as rollout:
            say(script, "apply", 1)
            update = await anext(rollout.updates(timeout=30))
            applying = asyncio.create_task(update.apply(30))
            await told(script, "paused")
            behind = r"it waits behind apply of version 1, which began \d"
            for call, doing in (
                (lambda: update.apply(0.2), "apply of version 1 did not begin within 0.2 s"),
                (lambda: rollout.confirm(0.2), "confirm did not begin within 0.2 s"),
                (lambda: anext(update.layers(0.2)), "layers of version 1 did not begin within 0.2 s"),
                (lambda: anext(rollout.updates(timeout=0.2)), "no update came from the rollout agent in time"),
            ):
                with pytest.raises(wsync.DeadlineExceeded, match=f"{doing}: {behind}"):
                    await asyncio.wait_for(call(), 10)
            say(script, "applied", 1)
            assert (await applying).applied

    asyncio.run(asyncio.wait_for(main(), 60))


def test_layers_that_are_cancelled_or_left_end_when_the_agent_writes_no_more(folder: Path) -> None:
    script = Script()

    async def follow(update: aio.Update, leave: bool) -> None:
        async with contextlib.aclosing(update.layers(30)) as layers:
            async for _ in layers:
                if leave:
                    break

    async def main() -> None:
        async with attached(folder, script) as rollout:
            for version, leave in ((1, False), (2, True)):
                say(script, "apply", version)
                update = await anext(rollout.updates(timeout=30))
                following = asyncio.create_task(follow(update, leave))
                await told(script, "paused")
                if leave:
                    ready = _wire.message("LayerReady")(version=version, layer="model.layers.0", ready=1, layers=2)
                    script.say(_wire.message("UpdateEvent")(layer_ready=ready))
                else:
                    following.cancel()
                await asyncio.sleep(0.3)
                assert not following.done() and rollout.sync._writing
                say(script, "applied", version)
                with contextlib.suppress(asyncio.CancelledError):
                    await following
                assert update.outcome is not None and update.outcome.applied
                assert rollout.torn == leave and rollout.serving_version == (0 if leave else version)

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_real_agent_has_written_when_the_apply_that_was_cancelled_ends(cluster: Cluster) -> None:
    weights = shared_arrays({f"model.layers.{i}.mlp.up_proj.weight": (1024, 1024) for i in range(4)})
    trainer_socket = cluster.start_trainer()
    rollout_socket = cluster.start_rollout(transfer__sink_mode="in_place")

    async def main() -> None:
        async with aio.Trainer(trainer_socket) as trainer, aio.Rollout(rollout_socket) as rollout:
            await trainer.register(weights)
            memory = memory_for(await rollout.plan())
            await rollout.attach(memory)
            for version in range(1, 11):
                randomize(weights, version)
                sync = await trainer.publish(version)
                update = await anext(rollout.updates(timeout=30))
                applying = asyncio.create_task(update.apply(30))
                await asyncio.sleep(0.002 * version)
                applying.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await applying
                then = {name: array.copy() for name, array in memory.items()}
                if update.outcome is None:  # the agent was told nothing
                    update = await anext(rollout.updates(timeout=30))
                    await update.apply(30)
                else:
                    assert update.outcome.applied and rollout.serving_version == version and not rollout.torn
                    assert (await update.apply(0)).applied
                    assert_same_weights(then, weights)
                assert (await sync.committed()).applied
                assert_same_weights(memory, weights)

    asyncio.run(asyncio.wait_for(main(), 120))


@pytest.mark.parametrize("how", ["detach", "close"])
@pytest.mark.parametrize("slice_s", [0.01, 10.0])
def test_updates_end_when_somebody_detaches_or_closes_as_the_loop_without_asyncio_does(
    folder: Path, monkeypatch: pytest.MonkeyPatch, how: str, slice_s: float
) -> None:
    """With short slices it comes between two of them, with long ones in the middle of one."""
    monkeypatch.setattr(aio, "_SLICE", slice_s)

    async def main() -> None:
        async with attached(folder, Script()) as rollout:

            async def follow() -> str:
                async for _ in rollout.updates():
                    pass
                return "ended"

            loops = [asyncio.create_task(follow()), asyncio.create_task(asyncio.to_thread(list, rollout.sync.updates()))]
            await asyncio.sleep(0.2)
            await getattr(rollout, how)()
            assert await asyncio.wait_for(asyncio.gather(*loops), 5) == ["ended", []]
            error = wsync.ClientClosed if how == "close" else wsync.NotAttached
            for begin in (lambda: anext(rollout.updates()), lambda: asyncio.to_thread(list, rollout.sync.updates())):
                with pytest.raises(error, match="^updates: "):
                    await begin()

    asyncio.run(asyncio.wait_for(main(), 60))


def test_an_update_goes_to_one_of_two_loops(folder: Path) -> None:
    script = Script()

    async def main() -> None:
        async with attached(folder, script) as rollout:
            for version in range(1, 11):
                loops = [asyncio.create_task(anext(rollout.updates(timeout=0.2))) for _ in range(3)]
                await asyncio.sleep(0.01)
                say(script, "apply", version)
                came = [u for u in await asyncio.gather(*loops, return_exceptions=True) if isinstance(u, aio.Update)]
                assert [update.version for update in came] == [version]
                assert [type(loop.exception()) for loop in loops].count(wsync.DeadlineExceeded) == 2
                applying = asyncio.create_task(came[0].apply(30))
                await told(script, "paused")
                say(script, "applied", version)
                assert (await applying).applied

    asyncio.run(asyncio.wait_for(main(), 60))


def test_what_was_taken_of_an_attachment_that_is_over_is_dropped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aio, "_SLICE", 10.0)
    script = Script()
    waiting = threading.Event()

    async def main() -> None:
        async with attached(folder, script) as rollout:
            take = rollout.sync._updates
            monkeypatch.setattr(rollout.sync, "_updates", lambda *args: (waiting.set(), take(*args))[1])
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
