"""What the recipes for verl, NeMo-RL and slime rest on: weights as a stream on both sides. Needs torch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")

import wsync  # noqa: E402
from conftest import Cluster, beside  # noqa: E402
from wsync.engines.live import dequantized  # noqa: E402
from wsync.streams import Receiver, Sender  # noqa: E402


def gathered(fill: float, names: tuple[str, ...] = ("a.weight", "b.bias")) -> Iterator[tuple[str, torch.Tensor]]:
    """Each tensor lives until the next is asked for, as gathered shards do."""
    scratch = torch.empty(256 * 128)
    for name in names:
        shape = (256, 128) if name.endswith("weight") else (256,)
        tensor = scratch[: torch.Size(shape).numel()].view(shape).fill_(fill)
        yield name, tensor
        tensor.fill_(float("nan"))


def test_a_stream_arrives_as_a_stream(cluster: Cluster) -> None:
    sender = Sender(cluster.start_trainer(coordinator__min_replicas_wait_ms="10s"))
    receiver = Receiver(cluster.start_rollout())
    for step in (1, 2, 3):
        with beside(lambda s=step: sender.send_and_wait(gathered(s))) as sending:  # type: ignore[misc]
            got = dict(receiver.receive(timeout=60))
        assert sending.result().version == step and sending.result().applied
        assert list(got) == ["a.weight", "a.weight_scale_inv", "b.bias"]
        assert got["a.weight"].dtype == torch.float8_e4m3fn
        weight = dequantized(got["a.weight"], got["a.weight_scale_inv"], torch.float32)
        assert torch.allclose(weight, torch.full_like(weight, step))
        assert (got["b.bias"] == step).all()
        assert sender.trainer.registration.committed_version == 0  # registered once, before anything was committed
    receiver.close()
    sender.close()


def test_another_set_of_weights_is_registered_anew(cluster: Cluster) -> None:
    sender = Sender(cluster.start_trainer(coordinator__min_replicas_wait_ms="10s"))
    socket = cluster.start_rollout()
    for names, version in ((("a.weight",), 1), (("a.weight", "c.weight"), 2)):
        receiver = Receiver(socket)
        with beside(lambda n=names: sender.send_and_wait(gathered(7, n))):  # type: ignore[misc]
            while True:  # until the new catalog is the plan
                plan = {output.name for output in receiver.rollout.plan().outputs if not output.is_scale}
                if plan == set(names):
                    break
            got = dict(receiver.receive(timeout=60))
        assert {name for name in got if not name.endswith("scale_inv")} == set(names)
        assert receiver.rollout.serving_version == version
        receiver.close()
    sender.close()


def test_both_ends_go_on_after_an_agent_that_was_not_there(cluster: Cluster) -> None:
    sender = Sender(cluster.socket("trainer"), timeout=0.5)
    receiver = Receiver(cluster.socket("rollout-0"))
    with pytest.raises(wsync.AgentUnavailable):
        sender.send(gathered(1))
    with pytest.raises(wsync.AgentUnavailable):
        receiver.attach(timeout=0.5)
    cluster.start_trainer(coordinator__min_replicas_wait_ms="10s")
    cluster.start_rollout()
    with beside(lambda: sender.send_and_wait(gathered(2))) as sending:
        got = dict(receiver.receive(timeout=60))
    assert sending.result().applied and (got["b.bias"] == 2).all()
    receiver.close()
    sender.close()


def test_buffers_are_not_filled_while_the_version_before_is_read(cluster: Cluster) -> None:
    sender = Sender(cluster.start_trainer(coordinator__min_replicas_wait_ms="2s"))
    first = sender.send(gathered(1))  # waits for a replica, which does not come
    kept = sender._buffers["b.bias"].clone()
    with pytest.raises(wsync.PublishInProgress):
        sender.send(gathered(2))
    assert torch.equal(sender._buffers["b.bias"], kept)
    with pytest.raises(wsync.TooFewReplicas):
        first.committed()
    sender.close()
