"""SGLang: a custom weight loader, called in every tensor-parallel worker.

    python -m sglang.launch_server ... --custom-weight-loader wsync.engines.sglang.load      # WSYNC_ROLLOUT_SOCKET set
    engine.update_weights_from_tensor(wsync.engines.sglang.wanted(version), load_format="wsync.engines.sglang.load")

The scheduler runs it between forward passes, so nothing reads the weights meanwhile, and flushes the cache as asked.
WSYNC_ROLLOUT_SOCKET names one rollout agent per worker: "unix:///run/wsync/rollout-{rank}.sock".

Written against SGLang's sources of 0.5 to mid-2026; not run here, where no GPU and no SGLang are installed. Checked
without it: the mapping and the layout rules. Plain copies are right on Hopper; Blackwell packs scales and is refused.
"""

from __future__ import annotations

import os
import re
import time
from typing import Any

from ..errors import DeadlineExceeded, UnsupportedLayout
from .live import Live
from .mapping import SGLANG, Sharding

_TIMEOUT = 120.0  # seconds that one update may take; SGLang's own request has no limit
_REFUSED = {"flashinfer_trtllm", "flashinfer_cutlass", "flashinfer_mxfp4", "flashinfer_cutedsl", "marlin", "aiter"}
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
    """UnsupportedLayout names the first module whose live layout is not the checkpoint's, and what to set."""
    if moe_backend in _REFUSED:
        raise UnsupportedLayout(
            f"--moe-runner-backend {moe_backend} shuffles the experts' weights",
            next_step="run with --moe-runner-backend triton (or deep_gemm)",
        )
    for name, module in model.named_modules():
        method = getattr(module, "quant_method", None)
        if getattr(method, "use_marlin", False):
            raise UnsupportedLayout(
                f"'{name}' runs on Marlin, which keeps its weights in a layout of its own",
                names=[name],
                next_step="unset SGLANG_FORCE_FP8_MARLIN and use a GPU with FP8 units (SM 8.9 or newer)",
            )


def _attached(model: Any) -> Live:
    import sglang
    from sglang.srt.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size

    rank, size = get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
    check_layout(model, _moe_backend())
    socket = os.environ.get("WSYNC_ROLLOUT_SOCKET", "unix:///run/wsync/rollout-{rank}.sock")
    live = Live(socket.format(rank=rank))
    sharding = Sharding(rank, size, model.config.num_key_value_heads, local_experts(model))
    engine = f"sglang {sglang.__version__} rank {rank}"
    layers = {int(found[1]) for name, _ in model.named_parameters() if (found := re.search(r"\.layers\.(\d+)\.", name))}

    def skip(name: str) -> bool:
        layer = re.search(r"\.layers\.(\d+)\.", name)
        return bool(layer and int(layer[1]) not in layers)

    live.attach(model, SGLANG, sharding, engine, skip=skip)
    return live


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
