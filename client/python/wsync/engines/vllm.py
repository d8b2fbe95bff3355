"""vLLM: `--worker-extension-cls wsync.engines.vllm.WorkerExtension`, then `collective_rpc`.

    llm = LLM(model, worker_extension_cls="wsync.engines.vllm.WorkerExtension", tensor_parallel_size=2)
    wsync.engines.vllm.attach(llm)                # a rollout agent per worker: rollout.sock, of several rollout-{rank}.sock
    ...
    version = wsync.engines.vllm.update(llm)      # between steps; 0: nothing new

A worker runs either a forward pass or an RPC, never both: inside `wsync_apply` nothing reads the weights. What older weights
left in the prefix cache is dropped after each version, unless `update` is told not to. The package's README has the same for
AsyncLLM (`attach_async`, `update_async`) and for `vllm serve`: "wsync_attach", "wsync_poll", and "wsync_apply" between
pause_generation(mode="keep") and resume_generation(). These raise what a worker raised, with its type and names, of which
vLLM's engine process makes a text (`remote_errors`).

vLLM prefers DeepGEMM on Hopper and rounds scales for it: VLLM_USE_DEEP_GEMM_E8M0=0 before it loads, or recipe.scale: pow2
on the trainer agent; else attaching is refused.

Checked against vLLM 0.33.0 (tests/engines, on a CPU that vLLM takes for an H100): Qwen2, Qwen3-MoE and DeepSeek-V3 models of
its own, whole and as a rank of two, a version delivered into them byte-equal to what its loader makes of the same checkpoint,
its worker class, its choice of kernels. Names of older versions are from the sources of 0.11. Never run with a GPU's kernels.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable
from typing import Any

from ..errors import UnsupportedLayout
from .live import Live, check_stage, dequantized, not_in, socket_of
from .mapping import VLLM, Sharding
from .remote_errors import answer, values

_log = logging.getLogger("wsync")

# Backends whose live weights are the checkpoint's bytes, and what to set instead of the others.
_PLAIN_LINEAR = {
    "CutlassFp8BlockScaledMMKernel",
    "TritonFp8BlockScaledMMKernel",
    "DeepGemmFp8BlockScaledMMKernel",
    "FlashInferFp8DeepGEMMDynamicBlockScaledKernel",  # both kernels read what DeepGEMM's loading leaves
    "BlockWiseTorchFP8ScaledMMLinearKernel",
    "W8A8BlockFp8LinearOp",  # until 0.13: CUTLASS, DeepGEMM or Triton, chosen inside
}
_PLAIN_MOE = {"NONE", "TRITON", "BATCHED_TRITON", "VLLM_CUTLASS", "BATCHED_VLLM_CUTLASS", "DEEPGEMM",
              "BATCHED_DEEPGEMM", "CUTLASS_BLOCK_SCALED_GROUPED_GEMM"}  # fmt: skip
_PLAIN_METHODS = {"UnquantizedLinearMethod", "UnquantizedEmbeddingMethod", "UnquantizedFusedMoEMethod",
                  "Fp8KVCacheMethod", "NoneType"}  # fmt: skip
_INSTEAD = {
    "MARLIN": "use a GPU with FP8 units (SM 8.9 or newer), with --linear-backend cutlass and --moe-backend triton",
    "AITER": "set VLLM_ROCM_USE_AITER=0",
}


def _refuse(module: str, backend: str) -> UnsupportedLayout:
    hint = next((text for key, text in _INSTEAD.items() if key in backend.upper()), "")
    return UnsupportedLayout(
        f"'{module}' runs on {backend}, which keeps its weights in a layout of its own",
        names=[module],
        next_step=hint or "set --linear-backend cutlass (or triton) and --moe-backend triton",
    )


def check_layout(model: Any, e8m0: bool = False, pow2_scales: bool = False) -> None:
    """UnsupportedLayout names the first module whose backend does not keep the checkpoint's layout, and what to set.

    Asks each module's `quant_method`: a shuffled weight has the same shape and dtype as a plain one. `e8m0`: DeepGEMM
    rounds scales to powers of two on loading, which is right only for `pow2_scales`.
    """
    check_stage(model, "use --tensor-parallel-size, and leave --pipeline-parallel-size out")
    for name, module in model.named_modules():
        if hasattr(module, "kv_b_proj") and not _mla_is_plain(module):
            raise UnsupportedLayout(
                f"'{name}' keeps a packed or gathered copy of kv_b_proj, which no version would reach",
                names=[name],
                next_step="set VLLM_ROCM_USE_AITER=0 (ROCm), or --no-dcp-q-replicate (context parallelism)",
            )
        if getattr(module, "enable_eplb", False):
            raise UnsupportedLayout(
                f"'{name}' moves its experts about while it runs (EPLB): a version would reach the wrong ones",
                names=[name],
                next_step="leave --enable-eplb out",
            )
        method = getattr(module, "quant_method", None)
        if method is None or type(method).__name__ in _PLAIN_METHODS:
            continue
        if type(method).__name__ not in ("Fp8LinearMethod", "Fp8MoEMethod"):
            raise _refuse(name, type(method).__name__)
        if getattr(method, "use_marlin", False):
            raise _refuse(name, "Marlin")
        if not getattr(method, "block_quant", True):
            raise UnsupportedLayout(
                f"'{name}' holds FP8 with one scale per tensor, which vLLM requantizes when it fuses",
                names=[name],
                next_step="load a checkpoint with weight_block_size [128, 128], as 'wsync quantize' writes",
            )
        backend = _backend(method)
        plain = _PLAIN_MOE if type(method).__name__ == "Fp8MoEMethod" else _PLAIN_LINEAR
        if backend not in plain:
            raise _refuse(name, backend)
        if e8m0 and not pow2_scales and re.search("deep_?gemm|W8A8Block", backend, re.IGNORECASE):
            raise UnsupportedLayout(
                f"'{name}' runs on DeepGEMM with E8M0 scales: fp32 scales would be read as something else",
                names=[name],
                next_step="set VLLM_USE_DEEP_GEMM_E8M0=0, or recipe.scale: pow2 on the trainer agent",
            )


def check_memory(config: Any) -> None:
    """UnsupportedLayout under sleep mode, whose pool of GPU memory (CuMem) has no handle for another process."""
    if getattr(config, "enable_sleep_mode", False):
        raise UnsupportedLayout(
            "vLLM's sleep mode (enable_sleep_mode) keeps the weights in a memory pool that cannot be lent by CUDA IPC",
            next_step="start the engine without enable_sleep_mode=True (--enable-sleep-mode)",
        )


def renaming(model: Any) -> Callable[[str], str | None]:
    """From a checkpoint's names to those of the model's modules, by the models' own `hf_to_vllm_mapper`; None: not loaded.

    A model within has one for what is below it. What these tell of fused modules is left to `mapping`.
    """
    own: dict[int, tuple[str, Any]] = {}  # each once, where it is first: a model and its body share one
    for path, module in model.named_modules():
        mapper = getattr(module, "hf_to_vllm_mapper", None)
        if mapper is not None:
            own.setdefault(id(mapper), (f"{path}." if path else "", mapper))
    fused: dict[str, Any] = {"orig_to_new_stacked": {}}
    mappers = [
        (prefix, dataclasses.replace(mapper, **fused) if hasattr(mapper, "orig_to_new_stacked") else mapper)
        for prefix, mapper in own.values()
    ]

    def rename(name: str) -> str | None:
        for prefix, mapper in mappers:
            if name.startswith(prefix):
                inner = mapper._map_name(name.removeprefix(prefix))
                if inner is None:
                    return None
                name = _moved(name, prefix + inner)
        return name

    return rename


def _moved(name: str, inner: str) -> str:
    """A tensor in another module is the same tensor. Under another name of its own it is what vLLM's loader makes of it:
    Mamba's `A` is minus the exponential of `A_log`.
    """
    if name.rpartition(".")[2] != inner.rpartition(".")[2]:
        raise UnsupportedLayout(
            f"'{name}' is '{inner}' in vLLM, which it computes on loading",
            names=[name],
            next_step="take the versions with wsync.streams.Receiver, and give them to the model's load_weights",
        )
    return inner


def _backend(method: Any) -> str:
    for attribute in ("fp8_backend", "w8a8_block_fp8_linear", "fp8_linear", "kernel"):
        value = getattr(method, attribute, None)
        if value is not None:
            return str(getattr(value, "name", "") or type(value).__name__)
    return type(method).__name__ + " (unknown backend)"


# What MLA layers compute from kv_b_proj on loading; parameters of theirs in newer versions.
_MLA_DERIVED = ("W_UK_T", "W_UV", "W_UK_T_dcp_qrep")


def _mla_is_plain(module: Any) -> bool:
    """Whether what this layer derives from kv_b_proj is what `refresh_mla` makes: not packed, not gathered, not FP8."""
    holders = [holder for holder in (module, getattr(module, "impl", None)) if holder is not None]
    return not any(
        getattr(holder, "is_amx_bmm_enabled", False)
        or getattr(holder, "W_K", None) is not None
        or getattr(holder, "W_UK_T_dcp_qrep", None) is not None
        for holder in holders
    )


def is_derived(name: str) -> bool:
    """Whether vLLM computes this parameter itself."""
    return name.rpartition(".")[2] in _MLA_DERIVED


def refresh_mla(model: Any) -> int:
    """Recomputes what MLA layers derive from kv_b_proj on loading (W_UK_T, W_UV), in place; how many layers."""
    refreshed = 0
    for module in model.modules():
        for holder in (module, getattr(module, "impl", None)):
            if holder is None or not hasattr(holder, "W_UK_T") or not hasattr(holder, "W_UV"):
                continue
            projection = getattr(holder, "kv_b_proj", None) or module.kv_b_proj
            nope, v = holder.qk_nope_head_dim, holder.v_head_dim
            weight = projection.weight
            if weight.element_size() == 1:
                scale = getattr(projection, "weight_scale_inv", None)
                scale = projection.weight_scale if scale is None else scale
                weight = dequantized(weight, scale, holder.W_UV.dtype)
            per_head = weight.view(-1, nope + v, weight.shape[-1])  # [heads, nope + v, kv_lora_rank]
            holder.W_UK_T.copy_(per_head[:, :nope])
            holder.W_UV.copy_(per_head[:, nope:].transpose(1, 2))
            refreshed += 1
    return refreshed


class WorkerExtension:
    """Mixed into every vLLM worker; the methods are for `collective_rpc`."""

    get_model: Any  # of vLLM's worker, as these are
    model_config: Any
    parallel_config: Any
    rank: int

    def wsync_attach(self, socket: str = "", timeout: float = 60.0) -> int:
        """`socket` with {rank}, by default as `live.socket_of`; bytes per version. Refuses layouts that are not the
        checkpoint's, and sleep mode.
        """
        model = self.get_model()
        with Live.opened(socket_of(socket, self.rank, self.parallel_config.world_size)) as live:
            check_memory(self.model_config)
            check_layout(model, *_deep_gemm_scales(live, timeout))
            skip, rename = not_in(model), renaming(model)
            engine = f"vllm {_version()} rank {self.rank}"
            sharding = _sharding(model, self.model_config)
            size = live.attach(model, VLLM, sharding, engine, derived=is_derived, skip=skip, rename=rename, timeout=timeout)
        self._wsync = live
        return size

    def wsync_poll(self) -> int:
        """The version that waits for this worker; 0: none."""
        return self._wsync.poll()

    def wsync_apply(self, timeout: float = 120.0) -> int:
        """Takes the version that waits (or comes); the version served now."""
        outcome = self._wsync.apply(timeout)
        if outcome is not None and outcome.applied:
            refresh_mla(self.get_model())
        return self._wsync.rollout.serving_version

    def wsync_serving(self) -> int:
        """The version in this worker's memory; 0: none yet."""
        return self._wsync.rollout.serving_version

    def wsync_detach(self) -> None:
        self._wsync.close()

    def wsync_call(self, method: str, *arguments: Any) -> dict[str, Any]:
        """One of the methods above; its value or its error as plain data, for `remote_errors.values`.

        What a method raises, vLLM's engine process hands on as text.
        """
        if not method.startswith("wsync_"):
            raise ValueError(f"{method!r} is none of wsync's methods")
        return answer(lambda: getattr(self, method)(*arguments))


def call(llm: Any, method: str, *arguments: Any) -> list[Any]:
    """What each worker's `wsync_...` method returns. Errors of this package are raised as they were there."""
    return values(llm.collective_rpc("wsync_call", args=(method, *arguments)))


async def call_async(engine: Any, method: str, *arguments: Any) -> list[Any]:
    """`call` for an `AsyncLLM`."""
    return values(await engine.collective_rpc("wsync_call", args=(method, *arguments)))


def attach(llm: Any, socket: str = "", timeout: float = 60.0) -> int:
    """Attaches every worker of an `LLM` (or engine with `collective_rpc`); bytes per version of all of them.

    `socket`: of the rollout agents, with {rank}; by default "unix:///run/wsync/rollout.sock" of a single worker, and
    "unix:///run/wsync/rollout-{rank}.sock" of several.
    """
    return sum(call(llm, "wsync_attach", socket, timeout))


async def attach_async(engine: Any, socket: str = "", timeout: float = 60.0) -> int:
    """`attach` for an `AsyncLLM`."""
    return sum(await call_async(engine, "wsync_attach", socket, timeout))


def update(llm: Any, timeout: float = 120.0, *, reset_prefix_cache: bool = True) -> int:
    """If a version waits for all workers, applies it on all of them; the version, or 0 for none.

    `reset_prefix_cache`: prompts that begin alike would else go on from what older weights computed.
    """
    if not all(call(llm, "wsync_poll")):
        return 0
    version = _one_version(call(llm, "wsync_apply", timeout))
    if reset_prefix_cache:
        _check_reset(llm.reset_prefix_cache(), version)
    return version


async def update_async(engine: Any, timeout: float = 120.0, *, reset_prefix_cache: bool = True) -> int:
    """`update` for an `AsyncLLM`, whose requests wait meanwhile and go on. Where it raises, the engine stays paused.

    With the prefix cache goes what those requests have computed so far, with older weights: it is computed anew.
    """
    if not all(await call_async(engine, "wsync_poll")):
        return 0
    await engine.pause_generation(mode="keep")
    version = _one_version(await call_async(engine, "wsync_apply", timeout))
    if reset_prefix_cache:
        _check_reset(await engine.reset_prefix_cache(reset_running_requests=True), version)
    await engine.resume_generation()
    return version


def _one_version(served: list[int]) -> int:
    versions = set(served)
    if len(versions) != 1:
        raise UnsupportedLayout(
            f"workers of one engine serve versions {sorted(versions)}",
            next_step="give the agents of one engine the same `replica` and a `replica_size` of all its ranks",
        )
    return int(versions.pop())


def _check_reset(done: Any, version: int) -> None:
    if done is False:  # older ones say nothing
        _log.warning("version %d: vLLM did not reset its prefix cache, which keeps what older weights computed", version)


# ---- asked of vLLM itself


def _version() -> str:
    import vllm

    return str(vllm.__version__)


def _deep_gemm_scales(live: Live, timeout: float) -> tuple[bool, bool]:
    """(DeepGEMM rounds scales, the plan's scales are powers of two)."""
    from vllm.utils.deep_gemm import is_deep_gemm_e8m0_used

    return bool(is_deep_gemm_e8m0_used()), live.rollout.plan(timeout).pow2_scales


def _sharding(model: Any, config: Any) -> Sharding:
    from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size

    return Sharding(
        tp_rank=get_tensor_model_parallel_rank(),
        tp_size=get_tensor_model_parallel_world_size(),
        kv_heads=config.get_total_num_kv_heads(),
        experts=local_experts(model),
    )


def local_experts(model: Any) -> dict[int, int] | None:
    """Global -> local expert under expert parallelism, from the first fused MoE layer; None: every expert is here."""
    for module in model.modules():
        expert_map = getattr(module, "expert_map", None)
        if expert_map is None:
            expert_map = getattr(module, "_expert_map", None)
        if expert_map is not None and hasattr(module, "local_num_experts"):
            return {expert: local for expert, local in enumerate(expert_map.tolist()) if local >= 0}
    return None
