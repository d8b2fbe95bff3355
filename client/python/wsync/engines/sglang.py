"""SGLang: a custom weight loader, called in every tensor-parallel worker.

    python -m sglang.launch_server ... --custom-weight-loader wsync.engines.sglang.load      # WSYNC_ROLLOUT_SOCKET set
    engine.begin_weight_update(selector="target")
    engine.update_weights_from_tensor(wsync.engines.sglang.wanted(version), load_format="wsync.engines.sglang.load")
    engine.end_weight_update()

The scheduler runs it between forward passes, so nothing reads the weights meanwhile. It flushes the cache of what older
weights computed, which is SGLang's default, and reports failure where requests still run then: pause_generation() first, or
flush_cache=False. Versions without
begin_weight_update need no session. `selector="target"` (update_weights_from_tensor has it too, not on every entry point)
leaves a draft model alone: there is one agent per worker, and the draft's weights are not in the plan.
An error of `load` ends the server, as SGLang has it for any loader's: its log has the text, with names and the next step.
WSYNC_ROLLOUT_SOCKET names one rollout agent per worker; by default "unix:///run/wsync/rollout.sock" of a single worker, and
"unix:///run/wsync/rollout-{rank}.sock" of several.

Checked against SGLang 0.5.23 (tests/engines, on a CPU that SGLang takes for an H100): Qwen2, Qwen3-MoE and DeepSeek-V3
models of its own, whole and as a rank of two, a version delivered into them by its WeightUpdater byte-equal to what its
loader makes of the same checkpoint, the calls above. Names of older versions are from the sources of 0.5. Never run with a
GPU's kernels. Plain copies are right on Hopper; Blackwell packs scales and is refused.
"""

from __future__ import annotations

import os
import time
from typing import Any

from ..errors import DeadlineExceeded, UnsupportedLayout
from .live import Live, check_stage, not_in, socket_of
from .mapping import SGLANG, Sharding

_TIMEOUT = 120.0  # seconds that one update may take; SGLang's own request has no limit
_PLAIN_MOE = {"auto", "triton", "deep_gemm", "cutlass"}  # whose experts' weights are the checkpoint's bytes
_REPLICAS = ("w_kc_qrep", "q_b_proj_qrep", "q_b_proj_qrep_weight")  # of what other ranks have
_lives: dict[int, Live] = {}  # by id of the model: a worker has one, and one more for a draft model


def wanted(version: int) -> list[tuple[str, Any]]:
    """The `named_tensors` that ask `load` for at least this version: SGLang moves these 8 bytes, wsync the weights."""
    import torch

    return [("wsync.version", torch.tensor([version], dtype=torch.int64))]


def load(model: Any, named_tensors: Any) -> None:
    """SGLang's hook. Attaches at first; then takes versions until the wanted one is served."""
    version = int(dict(named_tensors)["wsync.version"].item())
    live = _lives.get(id(model))
    if live is None:
        live = _lives[id(model)] = _attached(model)
    deadline = time.monotonic() + _TIMEOUT
    while live.rollout.serving_version < version:
        outcome = live.apply(max(deadline - time.monotonic(), 0.0))
        if outcome is None:
            raise DeadlineExceeded(
                f"version {version} did not come within {_TIMEOUT:g} s; served is {live.rollout.serving_version}"
            )
    derive = getattr(model, "post_load_weights", None)  # MLA: w_kc and w_vc come from kv_b_proj
    if derive is not None:
        derive()


def check_layout(model: Any, moe_backend: str = "auto") -> None:
    """UnsupportedLayout names the first module whose live layout is not the checkpoint's, and what to set.

    `moe_backend`: of layers that do not say which one they run on.
    """
    for name, module in model.named_modules():
        method = getattr(module, "quant_method", None)
        if getattr(method, "use_marlin", False):
            raise UnsupportedLayout(
                f"'{name}' runs on Marlin, which keeps its weights in a layout of its own",
                names=[name],
                next_step="unset SGLANG_FORCE_FP8_MARLIN and use a GPU with FP8 units (SM 8.9 or newer)",
            )
        if getattr(module, "num_fused_shared_experts", 0):
            raise UnsupportedLayout(
                f"'{name}' keeps the shared experts among the routed ones",
                names=[name],
                next_step="run with --disable-shared-experts-fusion",
            )
        if any(getattr(module, replica, None) is not None for replica in _REPLICAS):
            raise UnsupportedLayout(
                f"'{name}' keeps the other ranks' queries in copies made once, which a version would not reach",
                names=[name],
                next_step="leave --dcp-replicate-q-proj out",
            )
        if not hasattr(module, "w13_weight"):
            continue
        asked = getattr(method, "get_moe_runner_backend", lambda layer: None)(module)
        backend = moe_backend if asked is None else str(getattr(asked, "value", asked))
        if backend not in _PLAIN_MOE:
            raise UnsupportedLayout(
                f"'{name}' runs on {backend}, which may shuffle the experts' weights",
                names=[name],
                next_step="run with --moe-runner-backend triton (or deep_gemm)",
            )


# Whose `tp_size` is what `mapping` cuts by: all of them by the same.
_CUT = {"qkv_proj", "q_proj", "k_proj", "v_proj", "gate_up_proj", "gate_proj", "up_proj", "q_b_proj", "kv_b_proj",
        "o_proj", "down_proj", "embed_tokens", "lm_head"}  # fmt: skip


def check_parallel(model: Any, tp_size: int, server_args: Any = None) -> None:
    """UnsupportedLayout names the first module that is not cut as the `tp_size` ranks cut, and what to leave out.

    Experts may be cut by all ranks, or lie whole on ranks that share them out; not both.
    """
    check_stage(model, "use --tp-size, and leave --pp-size out")
    for name, module in model.named_modules():
        spread = getattr(module, "moe_ep_size", 1)
        over = getattr(module, "moe_tp_size", 1 if spread > 1 else tp_size)
        if over != (1 if spread > 1 else tp_size):
            raise UnsupportedLayout(
                f"'{name}' has experts cut over {over} and spread over {spread} of {tp_size} ranks",
                names=[name],
                next_step=f"run with --ep-size 1 or --ep-size {tp_size}, and leave --moe-dp-size out",
            )
        others = _ranks_of(module) - {tp_size}
        if name.rpartition(".")[2] in _CUT and others:
            raise UnsupportedLayout(
                f"'{name}' is cut over {min(others)} of {tp_size} ranks",
                names=[name],
                next_step=_leave_out(server_args, tp_size),
            )


def _ranks_of(module: Any) -> set[int]:
    """How many ranks a module says that it is cut over."""
    groups = [getattr(module, name) for name in ("tp_group", "kv_tp_group") if hasattr(module, name)]
    if groups:
        return {1 if group is None else int(group.world_size) for group in groups}
    return {module.tp_size} if hasattr(module, "tp_size") else set()  # older


def _leave_out(server_args: Any, tp_size: int) -> str:
    usual = {
        "enable_dp_attention": (False, None),
        "attn_dp_size": (1, None),
        "enable_dp_lm_head": (False, None),
        "attn_cp_size": (1, None),
        "dcp_size": (1, None),  # decode context parallelism: keys and values are cut over fewer ranks
        "moe_dense_tp_size": (tp_size, None),
        "moe_a2a_backend": ("none", None),
    }
    given = [
        "--" + argument.replace("_", "-")
        for argument, values in usual.items()
        if str(getattr(server_args, argument, None)) not in map(str, values)
    ]
    return f"leave {' and '.join(given)} out" if given else "run with plain tensor parallelism"


def check_experts(server_args: Any) -> None:
    """UnsupportedLayout where experts do not lie in the checkpoint's order, or do not stay: their weights look alike."""
    located = getattr(server_args, "init_expert_location", "trivial")
    flags = {
        "--enable-eplb": getattr(server_args, "enable_eplb", False),
        "--ep-num-redundant-experts": getattr(server_args, "ep_num_redundant_experts", 0),
        "--init-expert-location": located != "trivial",
        "--elastic-ep-backend": getattr(server_args, "elastic_ep_backend", None),
        "--dwdp-size": getattr(server_args, "dwdp_size", 1) > 1,
    }
    given = [flag for flag, is_set in flags.items() if is_set]
    if given:
        raise UnsupportedLayout(
            f"experts are placed by {' and '.join(given)}: a version would reach the wrong ones",
            next_step=f"leave {' and '.join(given)} out",
        )


def is_derived(name: str) -> bool:
    """Whether SGLang fills this parameter itself: the KV cache's scales, which FP8 checkpoints bring along or not."""
    return name.endswith((".k_scale", ".v_scale"))


def _attached(model: Any) -> Live:
    import sglang

    rank, size = _ranks()
    check_experts(_server_args())
    check_parallel(model, size, _server_args())
    check_layout(model, _moe_backend())
    with Live.opened(socket_of(os.environ.get("WSYNC_ROLLOUT_SOCKET", ""), rank, size)) as live:
        sharding = Sharding(rank, size, model.config.num_key_value_heads, local_experts(model))
        engine = f"sglang {sglang.__version__} rank {rank}"
        live.attach(model, SGLANG, sharding, engine, derived=is_derived, skip=not_in(model))
    return live


def _ranks() -> tuple[int, int]:
    """(tensor-parallel rank, ranks) of this worker."""
    try:
        from sglang.srt.runtime_context import get_parallel
    except ImportError:  # older
        from sglang.srt.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size

        return get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
    parallel = get_parallel()
    if parallel.attn_tp_size != parallel.tp_size:
        raise UnsupportedLayout(
            f"attention is cut over {parallel.attn_tp_size} of {parallel.tp_size} ranks",
            next_step="run without data-parallel attention (--attn-dp-size, --enable-dp-attention) and context parallelism",
        )
    return parallel.tp_rank, parallel.tp_size


def _server_args() -> Any:
    try:
        from sglang.srt.runtime_context import get_server_args
    except ImportError:  # older
        try:
            from sglang.srt.server_args import get_global_server_args as get_server_args
        except ImportError:  # before 0.5.4
            return None
    try:
        return get_server_args()
    except (RuntimeError, ValueError):  # a model without a server
        return None


def _moe_backend() -> str:
    try:
        from sglang.srt.layers.moe import get_moe_runner_backend
    except ImportError:  # before 0.5.2
        return "auto"
    return str(getattr(get_moe_runner_backend(), "value", "auto"))


def local_experts(model: Any) -> dict[int, int] | None:
    """Global -> local expert under expert parallelism, from the first fused MoE layer; None: every expert is here."""
    for module in model.modules():
        size = getattr(module, "moe_ep_size", 1)
        if size > 1 and hasattr(module, "num_local_experts"):
            begin = module.moe_ep_rank * module.num_local_experts
            return {begin + local: local for local in range(module.num_local_experts)}
    return None
