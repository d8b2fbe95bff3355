"""The recipes' own classes, carrying weights between real agents, with the frameworks around them played.

verl's base class is the real one where verl is installed (`--no-deps` does: ray and the rest of verl are played). NeMo-RL
and slime are in no package index: what their base classes and engines are called and given is written down here.
"""

from __future__ import annotations

import abc
import asyncio
import base64
import importlib.util
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

torch = pytest.importorskip("torch")

from conftest import REPO, Cluster, beside  # noqa: E402

import wsync  # noqa: E402
from wsync.engines.live import dequantized  # noqa: E402
from wsync.errors import UnsupportedLayout  # noqa: E402
from wsync.streams import Receiver  # noqa: E402

WAIT = {"coordinator__min_replicas_wait_ms": "10s"}


def weights(fill: float) -> Iterator[tuple[str, torch.Tensor]]:
    yield "a.weight", torch.full((256, 128), float(fill))
    yield "b.bias", torch.full((256,), float(fill))


def check(got: dict[str, torch.Tensor], fill: float) -> None:
    weight = dequantized(got["a.weight"], got["a.weight_scale_inv"], torch.float32)
    assert torch.allclose(weight, torch.full_like(weight, fill)) and (got["b.bias"] == fill).all()


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModuleType]:
    """play("a.b", x=1): a module a.b that has x, for this test."""

    def play(name: str, **attributes: Any) -> ModuleType:
        for i in range(1, name.count(".") + 1):
            parent = name.rsplit(".", i)[0]
            if parent not in sys.modules:
                monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
        module = ModuleType(name)
        vars(module).update(attributes)
        monkeypatch.setitem(sys.modules, name, module)
        if "." in name:
            monkeypatch.setattr(sys.modules[name.rpartition(".")[0]], name.rpartition(".")[2], module, raising=False)
        return module

    return play


def load(path: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def recipe(name: str) -> Any:
    return load(REPO / "client" / "python" / "examples" / f"{name}.py", name)


async def listed(stream: Any) -> list[Any]:
    return [item async for item in stream]


def verl_path() -> Path:
    spec = importlib.util.find_spec("verl")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("verl is not installed")
    return Path(spec.submodule_search_locations[0])


def test_verls_engine_is_made_and_called_as_verl_0_9_does(
    cluster: Cluster, play: Callable[..., ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = verl_path() / "checkpoint_engine" / "base.py"
    for name in (
        "ray", "verl.single_controller.base", "verl.single_controller.base.decorator", "verl.single_controller.ray",
        "verl.utils.distributed", "verl.utils.import_utils", "verl.utils.ray_utils", "verl.workers.config",
        "verl.workers.rollout", "verl.workers.rollout.utils",
    ):  # fmt: skip
        play(name).__getattr__ = lambda attribute: MagicMock()  # type: ignore[method-assign]
    play("verl.single_controller.base", Worker=object)
    play("verl.checkpoint_engine")
    base = load(path, "verl.checkpoint_engine.base")
    monkeypatch.setitem(sys.modules, "verl.checkpoint_engine.base", base)
    recipe("verl_checkpoint_engine")

    sockets = {"trainer_socket": cluster.start_trainer(**WAIT), "rollout_socket": cluster.start_rollout()}
    new = base.CheckpointEngineRegistry.new
    trainers = [new("wsync", is_master=rank == 0, bucket_size=1 << 20, device="cpu", **sockets) for rank in (0, 1)]
    worker = new("wsync", bucket_size=1 << 20, device="cpu", **sockets)
    metadata = [engine.prepare() for engine in (*trainers, worker)]
    ours, theirs = type(worker).build_topology(2, 1, metadata)
    assert all(len(value) == 2 for value in ours.values()) and all(len(value) == 1 for value in theirs.values())
    for rank, engine in enumerate(trainers):
        engine.init_process_group(**{key: value[rank] for key, value in ours.items()})
    worker.init_process_group(**{key: value[0] for key, value in theirs.items()})
    assert worker.wire_format == "named_tensors"
    for step in (1, 2):
        asyncio.run(trainers[1].send_weights(weights(step), global_steps=step))
        with beside(lambda s=step: asyncio.run(trainers[0].send_weights(weights(s), global_steps=s))):  # type: ignore[misc]
            check(dict(asyncio.run(listed(worker.receive_weights(global_steps=step)))), step)
        for engine in (*trainers, worker):
            engine.finalize()


def test_verls_vllm_worker_hands_fp8_on_as_it_came(play: Callable[..., ModuleType]) -> None:
    quantized = lambda weights, model, quant_config, dtype=None: ((f"quantized {n}", t) for n, t in weights)  # noqa: E731
    verl = play("verl.utils.vllm.vllm_quant_utils", quant_weights=quantized)
    play("verl.workers.rollout.vllm_rollout.utils", vLLMColocateWorkerExtension=type("Extension", (), {}))
    recipe("verl_vllm_worker")
    codes, bf16 = torch.zeros(2).to(torch.float8_e4m3fn), torch.zeros(2, dtype=torch.bfloat16)
    given = [("a.weight", codes), ("a.weight_scale_inv", torch.ones(1)), ("b.weight", bf16)]
    got = verl.quant_weights(given, object(), object(), dtype=torch.bfloat16)
    assert [name for name, _ in got] == ["a.weight", "a.weight_scale_inv", "quantized b.weight"]


def test_verl_still_quantizes_where_the_worker_recipe_takes_its_place() -> None:
    source = (verl_path() / "utils" / "vllm" / "vllm_quant_utils.py").read_text()
    assert "def quant_weights(weights, model, quant_config, dtype=torch.bfloat16):" in source
    assert "quant_weights(weights, model, quant_config, dtype=vllm_dtype)" in source
    server = (verl_path() / "workers" / "rollout" / "vllm_rollout" / "vllm_async_server.py").read_text()
    assert server.index('"worker_extension_cls"') < server.index("**engine_kwargs,")


class NemoBase(abc.ABC):
    """The abstract methods of nemo_rl/utils/checkpoint_engines/base.py."""

    prepare = init_policy_process_group = init_rollout_process_group = abc.abstractmethod(lambda self: None)
    send_weights = receive_weight_batches = abc.abstractmethod(lambda self: None)

    def finalize(self) -> None: ...


def test_nemo_rls_engine_carries_batches(cluster: Cluster, play: Callable[..., ModuleType]) -> None:
    play("nemo_rl.utils.checkpoint_engines.base", CheckpointEngine=NemoBase)
    fp8 = play("nemo_rl.models.generation.vllm.quantization.fp8")
    make = recipe("nemo_rl_wsync").WsyncCheckpointEngine
    kwargs = {"trainer_socket": cluster.start_trainer(**WAIT), "rollout_socket": cluster.start_rollout(), "device": "cpu"}
    policy, rollout = (make(bucket_size=1024, **kwargs) for _ in range(2))
    sizes = {"train_world_size": 1, "rollout_world_size": 1, "metadata": [policy.prepare(), rollout.prepare()]}
    policy.init_policy_process_group(worker_rank=0, **sizes)
    with pytest.raises(UnsupportedLayout, match="once more"):
        rollout.init_rollout_process_group(rollout_rank=0, **sizes)
    fp8.get_quantized_weight_iterator = lambda: None  # type: ignore[attr-defined]
    rollout.init_rollout_process_group(rollout_rank=0, **sizes)
    for step in (1, 2):
        with beside(lambda s=step: asyncio.run(policy.send_weights(weights(s)))):  # type: ignore[misc]
            batches = asyncio.run(listed(rollout.receive_weight_batches()))
        assert len(batches) > 1
        check({name: tensor for batch in batches for name, tensor in batch}, step)
        rollout.finalize()


class Remote:
    """A ray actor's handle whose every method is noted, and done at once by `do` if there is one."""

    def __init__(self, do: Callable[[str, dict[str, Any]], None]) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._do = do

    def __getattr__(self, method: str) -> Any:
        def remote(*arguments: Any, **options: Any) -> None:
            self.calls.append((method, *arguments))
            self._do(method, options)

        return SimpleNamespace(remote=remote)


@pytest.fixture
def slime(play: Callable[..., ModuleType], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The recipe, in a slime whose iterator gives weights(local["step"])."""
    iterator = SimpleNamespace(get_hf_weight_chunks=lambda local: [[item] for item in weights(local["step"])])
    play("ray", get=lambda references: references)
    play("sglang.srt.entrypoints.engine", Engine=type("Engine", (), {"begin_weight_update": None}))
    base = "slime.backends.megatron_utils.update_weight.hf_weight_iterator_base"
    play(base, HfWeightIteratorBase=SimpleNamespace(create=lambda args, model, *, model_name, quantization_config: iterator))
    play("slime.utils.distributed_utils", get_gloo_group=lambda: "gloo")
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "barrier", lambda group: None)
    return recipe("slime_wsync")


def test_slimes_requests_survive_what_a_server_does_with_them(slime: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "sglang"]:
        monkeypatch.delitem(sys.modules, name)  # the real one from here on
    pytest.importorskip("sglang", exc_type=ImportError)
    from sglang.srt.utils import MultiprocessingSerializer
    from sglang.srt.utils.common import normalize_serialized_named_tensor_payloads
    from sglang.srt.utils.patch_torch import monkey_patch_torch_reductions

    monkey_patch_torch_reductions()  # as every worker does, and not undone
    normalized = normalize_serialized_named_tensor_payloads(slime.payloads(7, ranks=2))
    assert len(normalized) == 2
    for payload in normalized:
        ((name, tensor),) = MultiprocessingSerializer.deserialize(payload)
        assert (name, tensor.item()) == ("wsync.version", 7)


def test_slimes_updater_publishes_and_asks_every_engine_in_a_session(cluster: Cluster, slime: Any) -> None:
    trainer = cluster.start_trainer(**WAIT)
    receiver = Receiver(cluster.start_rollout())

    def do(method: str, options: dict[str, Any]) -> None:
        if method == "update_weights_from_tensor":
            asked = [pickle.loads(base64.b64decode(each)) for each in options["serialized_named_tensors"]]
            assert [tensors[0][1].item() for tensors in asked] == [int(options["weight_version"])] * 2
            check(dict(receiver.receive(timeout=60)), float(options["weight_version"]))

    engine, step = Remote(do), {"step": 0.0}
    make = slime.UpdateWeightFromWsync
    updater = make(SimpleNamespace(), [], lambda: step, model_name="qwen2", quantization_config={}, socket=trainer)
    updater.connect_rollout_engines([engine], object(), engine_gpu_counts=[2], engine_gpu_offsets=[0])
    for version in (1, 2):
        step["step"] = float(version)
        updater.update_weights()
    assert updater.weight_version == 2 and updater.pop_metrics() == {}
    one = [
        ("pause_generation",), ("flush_cache",), ("_make_request", "begin_weight_update", {"selector": "target"}),
        ("update_weights_from_tensor",), ("_make_request", "end_weight_update"), ("continue_generation",),
    ]  # fmt: skip
    assert engine.calls == one * 2
    receiver.close()


def test_slimes_other_ranks_are_not_left_at_the_barrier_by_a_version_that_failed(
    cluster: Cluster, slime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached: list[str] = []
    monkeypatch.setattr(torch.distributed, "barrier", lambda group: reached.append(group))
    options = {"model_name": "qwen2", "quantization_config": {}, "socket": cluster.socket("trainer")}
    updater = slime.UpdateWeightFromWsync(SimpleNamespace(), [], lambda: {"step": 1.0}, **options)
    updater._sender.trainer._timeout = 0.2
    with pytest.raises(wsync.AgentUnavailable):
        updater.update_weights()
    assert reached == ["gloo"]
