"""Waiting for replicas, and for all of them; what is told of a version meanwhile, in figures and in the log."""

from __future__ import annotations

import asyncio
import logging

import pytest
from conftest import Cluster, assert_helpful, beside, eventually
from models import SHAPES, EngineThread, memory_for, randomize, shared_arrays

import wsync


def test_a_trainer_waits_until_enough_engines_are_attached(cluster: Cluster) -> None:
    with wsync.Trainer(cluster.start_trainer()) as trainer:
        with pytest.raises(wsync.DeadlineExceeded, match="0 of 1 replicas.*no other rollout agent has joined") as error:
            trainer.wait_for_replicas(timeout=0.0)
        assert_helpful(error)
        sockets = [cluster.start_rollout(f"rollout-{i}") for i in (0, 1)]
        trainer.register(shared_arrays(SHAPES))
        first = EngineThread(sockets[0])
        assert trainer.wait_for_replicas(1, timeout=30) == ("rollout-0",)
        eventually(lambda: "rollout-1" in absent(trainer), "the other agent has joined")
        with pytest.raises(wsync.DeadlineExceeded, match="1 of 2 replicas.*'rollout-1': waiting.*no engine") as error:
            trainer.wait_for_replicas(2, timeout=0.2)
        assert error.value.names == ("rollout-1",)
        with beside(lambda: trainer.wait_for_replicas(2, timeout=30)) as waiting:
            second = EngineThread(sockets[1])
        assert waiting.result() == ("rollout-0", "rollout-1")
        first.stop()
        second.stop()


def absent(trainer: wsync.Trainer) -> dict[str, str]:
    return trainer._ready_replicas()[1]


def test_a_replica_of_several_ranks_is_ready_when_all_are(cluster: Cluster) -> None:
    with wsync.Trainer(cluster.start_trainer()) as trainer:
        trainer.register(shared_arrays(SHAPES))
        ranks = [{"name": f"r{i}", "replica": "big", "rank": str(i), "replica_size": "2"} for i in (0, 1)]
        first = EngineThread(start_rank(cluster, ranks[0]))
        eventually(lambda: absent(trainer) == {"big": "1 of its 2 ranks did not join"}, "the first rank is ready")
        second = EngineThread(start_rank(cluster, ranks[1]))
        assert trainer.wait_for_replicas(1, timeout=30) == ("big",)
        first.stop()
        second.stop()


def start_rank(cluster: Cluster, flags: dict[str, str]) -> str:
    return cluster._start(flags["name"], "wsync-rollout", {"coordinator": cluster.coordinator, **flags})


def test_asyncio_waits_for_replicas_as_well(cluster: Cluster) -> None:
    socket = cluster.start_trainer()

    async def main() -> None:
        async with wsync.aio.Trainer(socket) as trainer:
            with pytest.raises(wsync.DeadlineExceeded, match="0 of 1"):
                await trainer.wait_for_replicas(timeout=0.0)
            waiting = asyncio.create_task(trainer.wait_for_replicas(timeout=60))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await trainer.register(shared_arrays(SHAPES))
            engine = await asyncio.to_thread(EngineThread, cluster.start_rollout())
            assert await trainer.wait_for_replicas(timeout=30) == ("rollout-0",)
            await asyncio.to_thread(engine.stop)

    asyncio.run(main())


def test_a_replica_that_was_left_out_fails_who_wants_all(cluster: Cluster) -> None:
    with wsync.Trainer(cluster.start_trainer(coordinator__policy="quorum", coordinator__quorum="1")) as trainer:
        trainer.register(shared_arrays(SHAPES))
        one = EngineThread(cluster.start_rollout("rollout-0"))
        other = wsync.Rollout(cluster.start_rollout("rollout-1"))
        other.attach(memory_for(other.plan()))
        trainer.wait_for_replicas(2, timeout=30)
        publication = trainer.publish(1)
        next(other.updates(timeout=30))  # and does not pause
        cluster.kill("rollout-1")
        with pytest.raises(wsync.NotAllApplied, match="1 of 2 replicas: 'rollout-1'") as error:
            publication.committed(require="all")
        assert_helpful(error, "rollout-1")
        report = error.value.report
        assert report == publication.committed() and not report.applied

        async def wanting() -> None:
            with pytest.raises(wsync.NotAllApplied):
                await wsync.aio.Publication(publication).committed(require="all")

        asyncio.run(wanting())
        figures = report.metrics()
        assert figures["wsync/replicas"] == 2 and figures["wsync/replicas_applied"] == 1
        assert figures["wsync/replicas_left_out"] + figures["wsync/replicas_torn"] == 1
        one.stop()
        other.close()


def test_a_report_is_a_flat_dict_of_floats(pair: tuple[wsync.Trainer, wsync.Rollout]) -> None:
    trainer, rollout = pair
    trainer.register(shared_arrays(SHAPES))
    engine = memory_for(rollout.plan())
    rollout.attach(engine)
    publication = trainer.publish(7)
    next(rollout.updates(timeout=30)).apply()
    report = publication.committed(require="all")
    figures = report.metrics(prefix="")
    assert all(isinstance(name, str) and type(figure) is float for name, figure in figures.items())
    assert figures["version"] == 7 and figures["wire_bytes"] == report.wire_bytes and figures["replicas_applied"] == 1
    assert figures["committed_ms"] >= figures["staged_ms"] > 0 and figures["slowest_pause_ms"] > 0
    assert report.metrics().keys() == {f"wsync/{name}" for name in figures}


def test_the_log_has_one_line_per_version_and_says_what_happens(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="wsync")
    weights = shared_arrays(SHAPES)
    with wsync.Trainer(cluster.start_trainer()) as trainer, wsync.Rollout(cluster.start_rollout()) as rollout:
        trainer.register(weights)
        rollout.attach(memory_for(rollout.plan()))
        trainer.wait_for_replicas(timeout=30)
        assert [line.split(" ", 1)[0] for line in caplog.messages] == ["registered", "attached"]
        assert "7 tensors, 3 of them quantized" in caplog.messages[0] and "MB per version" in caplog.messages[1]
        for version in (1, 2):
            randomize(weights, version)
            caplog.clear()
            publication = trainer.publish(version)
            next(rollout.updates(timeout=30)).apply()
            publication.committed()
            eventually(lambda: len(caplog.messages) == 2, "one line on either side")
            lines = sorted(caplog.messages)
            assert lines[0].startswith(f"<version {version}: applied by 1 of 1 replicas")
            assert lines[1].startswith(f"version {version} applied: content ") and "paused for" in lines[1]
        caplog.clear()
        with pytest.raises(wsync.StaleVersion):
            trainer.publish(1).committed()
        eventually(lambda: [r.levelname for r in caplog.records] == ["WARNING"], "what failed is a warning")
        assert caplog.messages[0].startswith("StaleVersion: publish version 1")
        caplog.clear()
    assert {line.split(" ", 1)[0] for line in caplog.messages} == {"detached", "unregistered"}


def test_a_program_that_asks_for_no_log_gets_none() -> None:
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("wsync").handlers)
