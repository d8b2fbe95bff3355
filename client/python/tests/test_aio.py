"""The asyncio form: waits suspend the task, and the loop goes on."""

from __future__ import annotations

import asyncio

import pytest

import wsync
from conftest import Cluster
from models import SHAPES, assert_same_weights, memory_for, randomize, shared_arrays


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
