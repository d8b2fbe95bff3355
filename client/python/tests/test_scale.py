"""Costs of Python at the size of Qwen3-30B-A3B: 18,867 tensors in, 37,491 outputs out. Limits are CPU time, with slack."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
from conftest import Cluster
from models import memory_for, shared_arrays

import wsync
from wsync.tensors import garbage_free

TENSORS = 18_867


def many() -> dict[str, np.ndarray]:
    """As many names as the model has, each as small as a block allows."""
    names = [f"model.layers.{i // 384}.mlp.experts.{i // 3 % 128}.{'gate up down'.split()[i % 3]}_proj.weight" for i in range(18624)]
    names += [f"model.layers.{i}.input_layernorm.weight" for i in range(TENSORS - len(names))]
    return shared_arrays({name: (4, 4) if "experts" in name else (4,) for name in names}, ml_dtypes.bfloat16)


def seconds(what: Callable[[], object]) -> tuple[float, float]:
    """(wall, CPU of this process)"""
    wall, cpu = time.perf_counter(), time.process_time()
    what()
    return time.perf_counter() - wall, time.process_time() - cpu


def test_registering_attaching_and_publishing_18867_tensors(cluster: Cluster) -> None:
    weights = many()
    assert len(weights) == TENSORS
    with wsync.Trainer(cluster.start_trainer()) as trainer, wsync.Rollout(cluster.start_rollout()) as rollout:
        register = seconds(lambda: trainer.register(weights))
        assert trainer.registration and trainer.registration.quantized_tensors == 18624
        engine = memory_for(rollout.plan())
        assert len(engine) == TENSORS + 18624
        attach = seconds(lambda: rollout.attach(engine))

        def follow() -> None:
            for update in rollout.updates():
                if update.apply().version == 5:
                    return

        threading.Thread(target=follow, daemon=True).start()
        cost = []
        for version in range(1, 6):
            publications: list[wsync.Publication] = []
            cost.append(seconds(lambda v=version, p=publications: p.append(trainer.publish(v)))[1])  # type: ignore[misc]
            next(iter(weights.values()))[0, 0] += 1
            assert publications[0].committed().applied
        print(
            f"\nregister {register[0]:.2f} s (Python {register[1]:.2f}), attach {attach[0]:.2f} s (Python {attach[1]:.2f}), "
            f"publish {min(cost) * 1e3:.2f} ms of Python per version"
        )
        assert register[1] < 4 and attach[1] < 4  # under 2 s on an idle machine
        assert min(cost) < 0.012


def test_what_a_publish_looks_at_of_a_module_and_an_apply_of_its_destinations() -> None:
    """Whether 18,867 parameters are where they were, and 37,491 destinations: with the memory of each apart, as of a model."""
    torch = pytest.importorskip("torch")
    from wsync.held import Held
    from wsync.tensors import Addresses

    def linear() -> object:
        module = torch.nn.Module()
        module.weight = torch.nn.Parameter(torch.empty(4, 4, dtype=torch.bfloat16))
        module.register_parameter("bias", None)
        return module

    experts = torch.nn.ModuleList(torch.nn.ModuleDict({n: linear() for n in ("gate", "up", "down")}) for _ in range(48 * 128))
    model = torch.nn.ModuleList([experts, *(linear() for _ in range(TENSORS - 3 * len(experts)))])
    weights = list(model.named_parameters())
    assert len(weights) == TENSORS
    held, addresses = Held(model, {id(tensor): name for name, tensor in weights}), Addresses(weights)
    targets = Addresses([(str(i), torch.empty(4)) for i in range(TENSORS + 18624)])

    def median(what: Callable[[], object]) -> tuple[float, float]:
        each = [seconds(what) for _ in range(20)]
        wall, cpu = sorted(w for w, _ in each), sorted(c for _, c in each)
        return wall[10] * 1e3, cpu[10] * 1e3

    publish = median(lambda: (held.replaced(), addresses.moved()))
    apply = median(targets.moved)
    print(f"\npublish {publish[0]:.2f} ms (CPU {publish[1]:.2f}), apply {apply[0]:.2f} ms (CPU {apply[1]:.2f})")
    assert held.replaced() == addresses.moved() == targets.moved() == []
    assert publish[1] < 15 and apply[1] < 15  # about 3 and 2 where little else runs


def test_the_collector_is_off_until_the_last_thread_needs_it_no_more() -> None:
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with garbage_free():
            entered.set()
            leave.wait(30)

    thread = threading.Thread(target=other)
    with garbage_free():
        thread.start()
        assert entered.wait(30) and not gc.isenabled()
    assert not gc.isenabled(), "the other thread is not done"
    with garbage_free():  # finds it off, and must not keep it so
        leave.set()
        thread.join()
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    try:
        with garbage_free():
            pass
        assert not gc.isenabled(), "it was off before"
    finally:
        gc.enable()
