"""Clients are of the process that made them: neither pickled nor used in a forked child."""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Cluster, assert_helpful
from models import SHAPES, memory_for, randomize, shared_arrays

import wsync


def test_what_belongs_to_a_process_is_neither_pickled_nor_copied(cluster: Cluster) -> None:
    sender, receiver = wsync.streams.Sender(cluster.socket("trainer")), wsync.streams.Receiver(cluster.socket("rollout-0"))
    for client in (
        sender,
        receiver,
        sender.trainer,
        receiver.rollout,
        wsync.aio.Trainer(cluster.socket("trainer")),
        wsync.aio.Rollout(cluster.socket("rollout-0")),
        wsync.SharedBuffer(4096),
    ):
        for how in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(wsync.WrongProcess, match=type(client).__name__) as error:
                how({"in": [client]} if how is copy.deepcopy else client)
            assert_helpful(error)
            assert isinstance(error.value, TypeError)  # what whoever pickles is ready for


def in_a_child(what: Callable[[], Any]) -> str:
    """What `what` raises in a forked child, as "Class: text"; "" for nothing. Fails where it hangs."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read)
            try:
                what()
                said = ""
            except BaseException as error:
                said = f"{type(error).__name__}: {error}"
            os.write(write, said.encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as answers:
        said = answers.read().decode()  # to the end of the child; pytest's timeout ends the wait for one that hangs
    assert os.waitpid(pid, 0)[1] == 0
    return said


@pytest.mark.timeout(60)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_is_told_at_its_first_call_and_harms_nothing(cluster: Cluster) -> None:
    weights = shared_arrays(SHAPES)
    randomize(weights, 1)
    trainer = wsync.Trainer(cluster.start_trainer(coordinator__min_replicas_wait_ms="10s"))
    trainer.register(weights)
    rollout = wsync.Rollout(cluster.start_rollout())
    engine = memory_for(rollout.plan())
    rollout.attach(engine)
    publication = trainer.publish(1)
    update = next(rollout.updates(timeout=30))
    awaited = wsync.aio.Publication(publication)
    calls: list[Callable[[], Any]] = [
        lambda: trainer.register(weights, replace=True),
        lambda: trainer.publish(2),
        lambda: trainer.unregister(),
        lambda: trainer.wait_for_replicas(1),
        lambda: publication.released(),
        lambda: publication.committed(),
        lambda: asyncio.run(awaited.committed()),
        lambda: rollout.plan(),
        lambda: rollout.attach(engine),
        lambda: next(rollout.updates()),
        lambda: rollout.poll(),
        lambda: next(rollout.events()),
        lambda: rollout.paused(1),
        lambda: rollout.detach(),
        lambda: update.apply(),
        lambda: next(update.layers()),
    ]
    for i, call in enumerate(calls):
        said = in_a_child(call)
        assert said.startswith("WrongProcess:") and "forked" in said, (i, said)
    for close in (trainer.close, rollout.close):
        assert in_a_child(close) == ""
    assert update.apply().applied and publication.committed().applied  # the parent has everything still
    assert trainer.publish(2).version == 2
    assert next(rollout.updates(timeout=30)).apply().version == 2
    rollout.close()
    trainer.close()
