"""The SGLang adapter against an installed SGLang. Run by check_engines.sh; skipped where SGLang is not installed."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sglang", exc_type=ImportError)

import hopper

hopper.be_sglangs_h100()

import tiny  # noqa: E402
import torch  # noqa: E402
from conftest import Cluster  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

import wsync  # noqa: E402
from wsync.engines import sglang as adapter  # noqa: E402

OPTIONS: dict[str, dict[str, Any]] = {"qwen2": {}, "qwen3_moe": {}, "deepseek_v3": {"disable_shared_experts_fusion": True}}
LOADER = "wsync.engines.sglang.load"


def raw(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def tensors(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters, and what MLA layers derive from them."""
    yield from model.named_parameters()
    for name, module in model.named_modules():
        for derived in ("w_kc", "w_vc"):
            if isinstance(getattr(module, derived, None), torch.Tensor):
                yield f"{name}.{derived}", getattr(module, derived)


def updater_of(model: Any, rank: int) -> Any:
    """SGLang's own, which holds the model of one worker."""
    from sglang.srt.model_executor.model_runner_components.weight_updater import WeightUpdater

    return WeightUpdater(
        tp_rank=rank, device="cpu", gpu_id=0, model_config=None, custom_weight_loaders=[LOADER], get_model=lambda: model,
        update_model_fields=lambda **fields: None, recapture_cuda_graph=lambda: None, get_model_runner=lambda: None,
    )  # fmt: skip


@pytest.mark.timeout(600)
@pytest.mark.parametrize("rank, ranks", [(0, 1), (0, 2), (1, 2)])
@pytest.mark.parametrize("kind", tiny.MAKERS)
def test_a_version_arrives_as_sglangs_loader_makes_it_of_the_same_checkpoint(
    kind: str, rank: int, ranks: int, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (start, base), (trained, trained_fp8) = (tiny.write(kind, seed, tmp_path, cluster) for seed in (1, 2))
    options = {"rank": rank, "ranks": ranks, **OPTIONS[kind]}
    want = dict(tensors(hopper.sglang_model(trained_fp8, **options)))
    live = hopper.sglang_model(base, **options)
    assert any(p.dtype == torch.float8_e4m3fn for p in live.parameters())
    assert kind != "qwen2" or any(map(adapter.is_derived, want))
    assert kind != "deepseek_v3" or any(name.endswith("w_kc") for name in want)

    cluster.start_trainer()
    with wsync.Trainer(cluster.socket("trainer")) as trainer:
        weights = load_file(start / "model.safetensors")
        trainer.register(weights)
        monkeypatch.setenv("WSYNC_ROLLOUT_SOCKET", cluster.start_rollout())
        monkeypatch.setattr(torch, "get_device_module", lambda device: torch.cpu)
        take(live, trainer.publish(1), 1, rank)
        addresses = {name: tensor.data_ptr() for name, tensor in tensors(live)}
        for name, tensor in load_file(trained / "model.safetensors").items():
            weights[name].copy_(tensor)
        take(live, trainer.publish(2), 2, rank)
        adapter._lives.pop(id(live)).rollout.close()

    got = dict(tensors(live))
    assert got.keys() == want.keys()
    for name, tensor in got.items():
        assert torch.equal(raw(tensor), raw(want[name])), name
        assert tensor.data_ptr() == addresses[name], f"{name} moved: CUDA graphs would read the old memory"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", tiny.MAKERS)
def test_what_the_check_of_parallelism_asks_after_exists(kind: str, cluster: Cluster, tmp_path: Path) -> None:
    """A module that says nothing of its ranks is not refused: the names must be this version's."""
    from sglang.srt.server_args import ServerArgs

    model = hopper.sglang_model(tiny.write(kind, 1, tmp_path, cluster)[1], rank=1, ranks=2, **OPTIONS[kind])
    adapter.check_parallel(model, 2)
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if name.rpartition(".")[2] in adapter._CUT:
            assert adapter._ranks_of(module) == {2}, name
    experts = [module for module in modules.values() if hasattr(module, "w13_weight")]
    assert all((module.moe_ep_size, module.moe_tp_size) == (1, 2) for module in experts) and bool(experts) == (kind != "qwen2")
    with pytest.raises(wsync.UnsupportedLayout, match="of 4 ranks"):
        adapter.check_parallel(model, 4)
    mla = [module for module in modules.values() if hasattr(module, adapter._REPLICAS[0])]
    assert all(hasattr(module, name) for module in mla for name in adapter._REPLICAS) and bool(mla) == (kind == "deepseek_v3")
    arguments = {
        "attn_dp_size", "attn_cp_size", "enable_dp_lm_head", "moe_dense_tp_size", "moe_a2a_backend", "enable_eplb",
        "ep_num_redundant_experts", "init_expert_location", "elastic_ep_backend", "dwdp_size", "dcp_size",
        "dcp_replicate_q_proj",
    }  # fmt: skip
    assert all(hasattr(ServerArgs, name) for name in arguments)
    assert adapter._server_args().attn_dp_size == 1


def take(model: Any, sync: Any, version: int, rank: int) -> None:
    """What a worker's scheduler does with the three requests of a session."""
    updater = updater_of(model, rank)
    updater.begin_weight_update()
    assert updater.update_weights_from_tensor(adapter.wanted(version), load_format=LOADER)[0]
    updater.end_weight_update(run_post_load=False)
    assert sync.committed().applied


def test_every_moe_backend_is_judged() -> None:
    from sglang.srt.layers.moe.utils import MoeRunnerBackend

    refused = {
        "triton_kernel", "ascend", "flashinfer_trtllm", "experimental_sgl_trtllm", "flashinfer_trtllm_routed",
        "flashinfer_cutlass", "flashinfer_mxfp4", "flashinfer_cutedsl", "flashinfer_megamoe", "marlin", "humming",
        "experimental_sgl_marlin", "lora_cutedsl", "lora_triton", "lora_marlin", "aiter", "hpc_ops", "intel_xpu",
    }  # fmt: skip
    assert {backend.value for backend in MoeRunnerBackend} - adapter._PLAIN_MOE == refused


def test_a_server_with_the_hook_needs_a_session_and_the_calls_for_one_exist() -> None:
    from sglang.srt.entrypoints.engine import Engine
    from sglang.srt.managers import io_struct
    from sglang.srt.managers.scheduler_components import weight_updater

    source = inspect.getsource(weight_updater.SchedulerWeightUpdaterManager.update_weights_from_tensor)
    assert "must run between" in source
    inspect.signature(Engine.begin_weight_update).bind(None, selector="target")
    inspect.signature(Engine.end_weight_update).bind(None)
    inspect.signature(Engine.update_weights_from_tensor).bind(None, adapter.wanted(1), load_format=LOADER)
    request = io_struct.UpdateWeightsFromTensorReqInput(
        serialized_named_tensors=[b""], load_format=LOADER, flush_cache=True, weight_version="1", selector="target"
    )
    assert request.selector == "target"


ENGINE_AND_WORKER = """
import multiprocessing, sys
from wsync.engines import sglang as adapter
from sglang.srt.utils import MultiprocessingSerializer

def worker(queue):
    from sglang.srt.utils.patch_torch import monkey_patch_torch_reductions
    monkey_patch_torch_reductions()
    ((name, tensor),) = MultiprocessingSerializer.deserialize(queue.get())
    sys.exit(0 if (name, tensor.item()) == ("wsync.version", 7) else 9)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=worker, args=(queue,))
    process.start()
    queue.put(MultiprocessingSerializer.serialize(adapter.wanted(7)))
    process.join()
    sys.exit(process.exitcode)
"""


@pytest.mark.timeout(300)
def test_an_engines_own_request_reaches_a_worker_that_it_started(tmp_path: Path) -> None:
    script = tmp_path / "engine.py"
    script.write_text(ENGINE_AND_WORKER)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
