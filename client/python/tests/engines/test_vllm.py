"""The vLLM adapter against an installed vLLM. Run by check_engines.sh; skipped where vLLM is not installed."""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", exc_type=ImportError)

import hopper
import tiny
import torch
from conftest import Cluster, eventually
from safetensors.torch import load_file

import wsync
from wsync.engines import vllm as adapter

hopper.be_an_h100()

# DeepGEMM's kernels on the load path want a GPU; without it vLLM takes its next choice.
PLAIN = {"VLLM_USE_DEEP_GEMM": "0"}


def environment(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    """vLLM's settings of the environment, with what it remembers of them forgotten."""
    import vllm.utils.deep_gemm

    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for function in vars(vllm.utils.deep_gemm).values():
        if isinstance(function, functools._lru_cache_wrapper):
            function.cache_clear()


def worker_of(config: Any, model: Any) -> Any:
    """vLLM's worker with our extension, as its own wrapper makes it, holding `model`."""
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    wrapper = WorkerWrapperBase(rpc_rank=0)
    options = {"vllm_config": config, "local_rank": 0, "rank": 0, "distributed_init_method": "", "is_driver_worker": True}
    wrapper.init_worker([options])
    assert isinstance(wrapper.worker, adapter.WorkerExtension)
    wrapper.worker.model_runner = SimpleNamespace(get_model=lambda: model)
    return wrapper


def raw(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("rank, ranks", [(0, 1), (0, 2), (1, 2)])
@pytest.mark.parametrize("kind", [*tiny.MAKERS, *tiny.WITH_OTHER_NAMES])
def test_a_version_arrives_as_vllms_loader_makes_it_of_the_same_checkpoint(
    kind: str, rank: int, ranks: int, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.v1.serial_utils import run_method  # what its executors do on a worker

    environment(monkeypatch, **PLAIN)
    (_, base), (trained, trained_fp8) = (tiny.write(kind, seed, tmp_path, cluster) for seed in (1, 2))
    parallel = {"tensor_parallel_size": ranks, "distributed_executor_backend": "mp"} if ranks > 1 else {}
    config = hopper.vllm_config(base, worker_extension_cls="wsync.engines.vllm.WorkerExtension", **parallel)
    live = hopper.vllm_model(config, rank=rank)
    want = hopper.vllm_model(hopper.vllm_config(trained_fp8, **parallel), rank=rank)
    names = {name for name, _ in live.named_parameters()}
    assert any(p.dtype == torch.float8_e4m3fn for p in live.parameters())
    assert kind != "deepseek_v3" or any(map(adapter.is_derived, names))
    worker = worker_of(config, live)

    cluster.start_trainer()
    with wsync.Trainer(cluster.socket("trainer")) as trainer:
        trainer.register(load_file(trained / "model.safetensors"))
        socket = cluster.start_rollout()
        resets: list[int] = []
        llm = SimpleNamespace(
            collective_rpc=lambda method, args=(): [run_method(worker, method, args, {})],
            reset_prefix_cache=lambda: resets.append(worker.worker.wsync_serving()),
        )
        assert adapter.attach(llm, socket) > 0
        addresses = {name: parameter.data_ptr() for name, parameter in live.named_parameters()}
        sync = trainer.publish(1)
        eventually(lambda: adapter.update(llm) == 1, "the version waits for every worker")
        assert sync.committed().applied and resets == [1], "once, when the version is there"
        llm.collective_rpc("wsync_detach")

    expected = dict(want.named_parameters())
    assert expected.keys() == names
    for name, parameter in live.named_parameters():
        assert torch.equal(raw(parameter), raw(expected[name])), name
        assert parameter.data_ptr() == addresses[name], f"{name} moved: CUDA graphs would read the old memory"


@pytest.mark.timeout(600)
def test_what_vllm_prefers_on_an_h100_is_accepted_once_scales_agree(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment(monkeypatch)
    from vllm.utils.deep_gemm import is_deep_gemm_e8m0_used

    model = hopper.vllm_model(hopper.vllm_config(tiny.write("qwen3_moe", 1, tmp_path, cluster)[1]), load=False)
    methods = [getattr(module, "quant_method", None) for module in model.modules()]
    kernels = {adapter._backend(m) for m in methods if type(m).__name__ in ("Fp8LinearMethod", "Fp8MoEMethod")}
    assert kernels == {"FlashInferFp8DeepGEMMDynamicBlockScaledKernel", "TRITON"}
    assert is_deep_gemm_e8m0_used(), "the default that check_layout refuses for fp32 scales"
    with pytest.raises(wsync.UnsupportedLayout, match="E8M0"):
        adapter.check_layout(model, e8m0=True)
    adapter.check_layout(model, e8m0=True, pow2_scales=True)
    environment(monkeypatch, VLLM_USE_DEEP_GEMM_E8M0="0")
    assert not is_deep_gemm_e8m0_used()
    adapter.check_layout(model)


def test_every_kernel_of_vllm_for_block_fp8_is_judged() -> None:
    from vllm.model_executor.kernels.linear import _POSSIBLE_FP8_BLOCK_KERNELS
    from vllm.model_executor.layers.fused_moe.oracle.fp8 import Fp8MoeBackend
    from vllm.platforms import PlatformEnum

    linear = {kernel.__name__ for kernel in _POSSIBLE_FP8_BLOCK_KERNELS[PlatformEnum.CUDA]}
    refused = {"B12xFp8BlockScaledMMKernel", "MarlinFP8ScaledMMLinearKernel", "HummingFP8ScaledMMLinearKernel"}
    assert linear - adapter._PLAIN_LINEAR == refused
    older = {"W8A8BlockFp8LinearOp"}
    assert adapter._PLAIN_LINEAR - linear == older
    moe = {backend.name for backend in Fp8MoeBackend}
    refused = {"FLASHINFER_TRTLLM", "FLASHINFER_CUTLASS", "MARLIN", "HUMMING", "AITER", "XPU", "CPU", "CPU_W8A8", "HPC",
               "EMULATION", "TRITON_MXFP8", "AITER_MXFP8"}  # fmt: skip
    assert moe - adapter._PLAIN_MOE == refused


def test_the_settings_that_refusals_name_exist() -> None:
    from typing import get_args

    import vllm.envs
    from vllm.config.kernel import LinearBackend, MoEBackend

    known = vllm.envs.environment_variables
    assert {"VLLM_USE_DEEP_GEMM", "VLLM_USE_DEEP_GEMM_E8M0", "VLLM_ROCM_USE_AITER"} <= known.keys()
    assert {"cutlass", "triton"} <= set(get_args(LinearBackend)) and "triton" in get_args(MoEBackend)


def test_the_models_whose_loader_computes_are_refused_by_name() -> None:
    from vllm.model_executor.models.falcon_h1 import FalconH1ForCausalLM

    model = SimpleNamespace(named_modules=lambda: [("", SimpleNamespace(hf_to_vllm_mapper=FalconH1ForCausalLM.hf_to_vllm_mapper))])
    rename = adapter.renaming(model)
    assert rename("model.layers.0.mamba.in_proj.weight") == "model.layers.0.mamba.mamba.in_proj.weight"
    with pytest.raises(wsync.UnsupportedLayout, match="computes") as error:
        rename("model.layers.0.mamba.A_log")
    assert error.value.names == ("model.layers.0.mamba.A_log",)


def test_sleep_mode_is_a_setting_of_vllms_model() -> None:
    from vllm.config import ModelConfig

    assert "enable_sleep_mode" in inspect.signature(ModelConfig).parameters


def test_the_calls_that_the_adapter_and_its_documentation_make_exist() -> None:
    from vllm import LLM
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.worker.gpu_worker import Worker

    inspect.signature(LLM.collective_rpc).bind(None, "wsync_attach", args=("unix:///socket", 60.0))
    inspect.signature(LLM.reset_prefix_cache).bind(None)
    inspect.signature(Worker.get_model).bind(None)
    inspect.signature(AsyncLLM.collective_rpc).bind(None, "wsync_apply", args=(60.0,))
    inspect.signature(AsyncLLM.collective_rpc).bind(None, "wsync_call", args=("wsync_apply", 60.0))
    inspect.signature(AsyncLLM.pause_generation).bind(None, mode="keep")
    inspect.signature(AsyncLLM.resume_generation).bind(None)
    inspect.signature(AsyncLLM.reset_prefix_cache).bind(None, reset_running_requests=True)
