"""Memory that is gone when it is to be read, and what is left of what was refused. Needs torch."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from conftest import Cluster, assert_helpful  # noqa: E402
from torch_models import Net  # noqa: E402

import wsync  # noqa: E402


def test_memory_that_was_freed_since_register_is_told_before_anything_is_read(trainer: wsync.Trainer) -> None:
    storage = torch.ones(4 * 64)
    views = {f"{i}.bias": storage[i * 64 : (i + 1) * 64] for i in range(4)}
    trainer.register(views, copy="if_needed")
    kept = trainer._copies[0].lent.clone()
    storage.untyped_storage().resize_(2 * 64 * 4)
    with pytest.raises(wsync.WeightsMoved, match="freed since") as error:
        trainer.publish(1)
    assert error.value.names == ("2.bias", "3.bias")
    storage.untyped_storage().resize_(0)
    with pytest.raises(wsync.WeightsMoved, match="freed since") as error:
        trainer.publish(1)
    assert set(error.value.names) == set(views) and torch.equal(trainer._copies[0].lent, kept)
    with pytest.raises(wsync.MemoryNotShareable, match="'0.bias': its memory was freed"):
        trainer.publish(1, weights=views)
    trainer.publish(1, weights={name: torch.ones(64) for name in views})


def test_a_parameter_of_fsdp2_that_was_sharded_again_is_refused_by_name(trainer: wsync.Trainer, tmp_path: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        net = fully_shard(torch.nn.Linear(64, 8), mesh=init_device_mesh("cpu", (1,)))
        net.unshard()
        whole = dict(net.named_parameters())
        trainer.register(whole, copy="if_needed")
        net.reshard()
        with pytest.raises(wsync.WeightsMoved) as error:
            trainer.publish(1)
        assert_helpful(error, "weight", "bias")
        with pytest.raises(wsync.MemoryNotShareable, match="freed"):
            trainer.register(whole, copy="if_needed", replace=True)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("what", ["state_dict", "agent_refuses", "no_agent"])
def test_what_is_refused_leaves_nothing_behind(cluster: Cluster, what: str) -> None:
    net = Net()
    before = {name: (p.data_ptr(), p.clone()) for name, p in net.named_parameters(remove_duplicate=False)}
    held = set(Path("/dev/shm").glob(f"wsync-{os.getpid()}-*"))
    trainer = wsync.Trainer(cluster.socket("trainer") if what == "no_agent" else cluster.start_trainer(), timeout=0.2)
    try:
        if what == "state_dict":
            trainer.register(net.state_dict())
        else:
            trainer.register(net, rename=lambda name: name if what == "no_agent" else name * 60)
    except wsync.WsyncError as error:
        assert isinstance(error, (wsync.MemoryNotShareable, wsync.AgentUnavailable, wsync.CatalogMismatch))
    assert trainer.registration is None
    assert set(Path("/dev/shm").glob(f"wsync-{os.getpid()}-*")) == held
    for name, parameter in net.named_parameters(remove_duplicate=False):
        assert not parameter.is_shared() and torch.equal(parameter, before[name][1]), name
        assert what == "agent_refuses" or parameter.data_ptr() == before[name][0], name
    assert net.lm_head.weight is net.embed_tokens.weight
    with pytest.raises(wsync.NotRegistered):
        trainer.publish(1)
    trainer.close()


def test_an_attach_that_is_refused_leaves_nothing_behind(pair: tuple[wsync.Trainer, wsync.Rollout]) -> None:
    trainer, rollout = pair
    trainer.register({"a.bias": torch.ones(64)})
    held = set(Path("/dev/shm").glob(f"wsync-{os.getpid()}-*"))
    wrong = torch.full((65,), 2.0)
    try:
        rollout.attach({"a.bias": wrong})
    except wsync.CatalogMismatch:
        pass
    assert set(Path("/dev/shm").glob(f"wsync-{os.getpid()}-*")) == held and not rollout.attached
    assert (wrong == 2).all()


def test_views_that_are_copied_go_back_with_what_they_are_views_of(trainer: wsync.Trainer) -> None:
    square = torch.randn(6, 6)
    turned = square.t()
    try:
        trainer.register({"a" * 600: square, "b.bias": turned}, copy="if_needed")
    except wsync.CatalogMismatch:
        pass
    square.fill_(3)
    assert (turned == 3).all(), "it would be copied from memory that nobody writes any more"
