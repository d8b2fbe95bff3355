"""Weights that change while an agent reads them: noticed, told, and called off where that can be. Needs torch."""

from __future__ import annotations

import asyncio
import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import fake_agents  # noqa: E402
from conftest import Cluster, assert_helpful, eventually  # noqa: E402

import wsync  # noqa: E402
from wsync import _wire, stream_events  # noqa: E402
from wsync import trainer as trainer_module  # noqa: E402


@pytest.fixture
def script() -> fake_agents.Script:
    return fake_agents.Script()


@pytest.fixture
def trainer(tmp_path: Path, script: fake_agents.Script) -> Iterator[wsync.Trainer]:
    """Of an agent that says what the test says: real ones are through before anything could go wrong."""
    agent = fake_agents.trainer_agent(tmp_path, script)
    with wsync.Trainer(agent.socket) as trainer:
        yield trainer
    agent.stop()


def event(**what: Any) -> Any:
    return _wire.message("PublishEvent")(**what)


ACCEPTED = event(accepted=_wire.message("Accepted")(epoch=1, replicas=1))
PROGRESS = event(progress=_wire.message("PublishProgress")(replicas=1))
RELEASED = event(released=_wire.message("Released")(elapsed_ms=2.0))


def committed(version: int) -> Any:
    replica = _wire.message("ReplicaOutcome")(replica="rollout-0", outcome=1)
    return event(committed=_wire.message("VersionReport")(version=version, replicas=[replica]))


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 4))


NAMES = {"0.weight", "0.bias", "1.weight", "1.bias"}


def step_of(net: torch.nn.Module, **how: bool) -> torch.optim.Optimizer:
    """An optimizer whose gradients are there."""
    net(torch.ones(8)).sum().backward()
    return torch.optim.AdamW(net.parameters(), lr=1e-2, **how)


@pytest.mark.parametrize("how", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=["loop", "foreach", "fused"])
def test_a_step_before_released_is_told_and_the_version_called_off(
    trainer: wsync.Trainer, script: fake_agents.Script, how: dict[str, bool]
) -> None:
    net = model()
    trainer.register(net)
    optimizer = step_of(net, **how)
    script.say(ACCEPTED)
    publication = trainer.publish(1)
    script.requests.get(timeout=30)
    optimizer.step()
    for wait in (publication.released, publication.committed):
        with pytest.raises(wsync.WeightsChanged, match="called off") as error:
            wait(timeout=30)
        assert set(error.value.names) == NAMES and error.value.report is None
        assert_helpful(error)
    script.end()
    script.say(ACCEPTED)
    script.say(RELEASED)
    script.say(committed(2))
    script.end()
    again = trainer.publish(2)
    assert again.released() == 2.0
    optimizer.step()
    assert again.committed().version == 2


def test_one_that_nobody_waits_for_is_called_off_as_soon_as_the_agent_says_something(
    trainer: wsync.Trainer, script: fake_agents.Script
) -> None:
    net = model()
    trainer.register(net)
    publication = trainer.publish(1)
    with torch.no_grad():
        net[1].bias.add_(1)
    script.say(ACCEPTED)
    script.say(PROGRESS)
    eventually(lambda: publication.done, "it was called off")
    with pytest.raises(wsync.WeightsChanged) as error:
        publication.committed()
    assert error.value.names == ("1.bias",)


def test_weights_that_changed_by_the_time_they_were_read_fail_the_version_though_it_was_applied(
    trainer: wsync.Trainer, script: fake_agents.Script
) -> None:
    net = model()
    trainer.register(net)
    publication = trainer.publish(1)
    script.requests.get(timeout=30)
    with torch.no_grad():
        net[0].weight[0].fill_(1)  # a view of it
    script.say(ACCEPTED)
    script.say(RELEASED)
    eventually(publication.released_future.done, "the agent read them")
    with pytest.raises(wsync.WeightsChanged, match=r"goes out: committed\(\) tells") as error:
        publication.released()
    assert error.value.names == ("0.weight",)
    script.say(committed(1))
    script.end()
    with pytest.raises(wsync.WeightsChanged, match="1 of 1 replicas applied it") as told:
        publication.committed()
    assert told.value.report.version == 1


def test_asyncio_tells_it_as_well(tmp_path: Path, script: fake_agents.Script) -> None:
    agent = fake_agents.trainer_agent(tmp_path, script)

    async def train() -> None:
        net = model()
        async with wsync.aio.Trainer(agent.socket) as trainer:
            await trainer.register(net)
            publication = await trainer.publish(1)
            step_of(net).step()
            with pytest.raises(wsync.WeightsChanged):
                await publication.released()

    asyncio.run(train())
    agent.stop()


def test_an_agent_that_comes_back_is_not_given_weights_that_changed_meanwhile(
    trainer: wsync.Trainer, script: fake_agents.Script
) -> None:
    net = model()
    trainer.register(net)
    publication = trainer.publish(1)
    script.requests.get(timeout=30)
    step_of(net).step()
    script.hang_up()
    script.say(RELEASED)  # for the call that must not come
    with pytest.raises(wsync.WeightsChanged, match="called off"):
        publication.committed(timeout=30)
    assert script.requests.empty()


def test_what_does_not_change_weights_is_no_change(trainer: wsync.Trainer, script: fake_agents.Script) -> None:
    net, other = model(), model()
    with torch.inference_mode():
        fixed = torch.ones(3)
    trainer.register({**dict(net.named_parameters()), "fixed.bias": fixed})
    publication = trainer.publish(1)
    step_of(other, fused=True).step()  # of other weights
    net(torch.ones(8)).sum().backward()
    net.zero_grad()
    for word in (ACCEPTED, PROGRESS, RELEASED, committed(1)):
        script.say(word)
    script.end()
    assert publication.released() == 2.0 and publication.committed().version == 1


def test_copies_may_change_right_after_publish(trainer: wsync.Trainer, script: fake_agents.Script) -> None:
    net = model()
    trainer.register(net, copy="always")
    publication = trainer.publish(1)
    step_of(net).step()
    for word in (ACCEPTED, RELEASED, committed(1)):
        script.say(word)
    script.end()
    assert publication.committed().version == 1


@pytest.mark.parametrize("when", ["before", "behind"])
def test_on_a_stream_only_what_is_queued_behind_released_is_right(
    trainer: wsync.Trainer, script: fake_agents.Script, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    cuda = fake_agents.FakeCuda()
    monkeypatch.setattr(stream_events, "_new_event", cuda.new_event)
    monkeypatch.setattr(stream_events, "cuda_driver", lambda: cuda)
    monkeypatch.setattr(stream_events, "_gates", stream_events.Gates())
    monkeypatch.setattr(trainer_module, "_current", lambda stream: contextlib.nullcontext())
    net, stream = model(), fake_agents.FakeStream()
    trainer.register(net)
    trainer._devices = {"cuda:0"}
    optimizer = step_of(net)
    script.say(ACCEPTED)
    publication = trainer.publish(1, stream=stream)
    script.requests.get(timeout=30)
    if when == "before":
        optimizer.step()
        with pytest.raises(wsync.WeightsChanged, match="called off"):
            publication.released(stream=stream)
        return
    publication.released(stream=stream)
    optimizer.step()
    script.say(RELEASED)
    script.say(committed(1))
    script.end()
    assert publication.committed(timeout=30).version == 1


def test_a_real_agent_calls_the_version_off_and_takes_the_number_again(cluster: Cluster) -> None:
    with wsync.Trainer(cluster.start_trainer(coordinator__min_replicas_wait_ms="10s", recipe__fp8="false")) as trainer:
        net = model()
        trainer.register(net)
        publication = trainer.publish(1)  # waits for a replica
        step_of(net, fused=True).step()
        with pytest.raises(wsync.WeightsChanged, match="called off"):
            publication.released()
        rollout = wsync.Rollout(cluster.start_rollout())
        rollout.attach({name: torch.zeros_like(p, requires_grad=False) for name, p in net.named_parameters()})
        again = trainer.publish(1)
        assert next(rollout.updates(timeout=30)).apply().applied
        assert again.committed().applied
        rollout.close()


def test_optimizers_are_listened_to_without_a_word_of_warning(trainer: wsync.Trainer) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.register(model())
        net = model()
        net.register_parameter("sparse", torch.nn.Parameter(torch.zeros(2).to_sparse()))
        step_of(net, foreach=False).step()
