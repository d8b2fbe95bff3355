"""What looks like a weight and is only a part of it, or stands for it: of that no version can be made."""

from __future__ import annotations

import sys
from typing import Any

from .errors import MemoryNotShareable

_GATHER = "gather it first (deepspeed.zero.GatheredParameters) and give it to wsync.streams.Sender, which copies it"


def check_whole(tensor: Any, name: str = "") -> None:
    """MemoryNotShareable names a tensor that holds this rank's part of a weight, or codes of another library's.

    Each says so by attributes of its own; its shape and dtype are those of any other tensor. A DTensor and a part that
    FSDP1 flattened are looked for elsewhere: in `tensors.plain`, and where the module is known.
    """
    found = _partitioned(tensor) or _megatrons(tensor) or _packed(tensor)
    if found:
        why, step = found
        what = f"'{name}'" if name else f"a tensor of shape {tuple(tensor.shape)}"
        raise MemoryNotShareable(f"{what} {why}", names=[name] if name else [], next_step=step)


def is_zero3(tensor: Any) -> bool:
    """A parameter that DeepSpeed's ZeRO stage 3 splits between its ranks, gathered at the moment or not."""
    return hasattr(tensor, "ds_id") and hasattr(tensor, "ds_status")


def check_kept(tensor: Any, name: str) -> None:
    """`check_whole`, for what is to lie where it is until it is published: memory that ZeRO-3 gathers it takes back."""
    check_whole(tensor, name)
    if is_zero3(tensor):
        raise MemoryNotShareable(
            f"'{name}' is DeepSpeed ZeRO-3's, which frees it after it was gathered", names=[name], next_step=_GATHER
        )


def may_be_part(tensor: Any) -> bool:
    """Whether there is any sign that its shape is not the weight's."""
    flattened = getattr(tensor, "_fsdp_flattened", False)
    return bool(flattened or is_zero3(tensor) or _megatrons(tensor) or _packed(tensor))


def _partitioned(tensor: Any) -> tuple[str, str] | None:
    if not is_zero3(tensor) or getattr(tensor.ds_status, "name", "") == "AVAILABLE":
        return None
    shape = tuple(getattr(tensor, "ds_shape", ()))
    return f"of shape {shape} is DeepSpeed ZeRO-3's, which keeps only parts of it on each rank", _GATHER


def _megatrons(tensor: Any) -> tuple[str, str] | None:
    if not getattr(tensor, "tensor_model_parallel", False) or getattr(tensor, "partition_dim", -1) < 0:
        return None
    ranks = _megatron_ranks(expert=getattr(tensor, "allreduce", True) is False)
    if ranks < 2:
        return None
    return (
        f"of shape {tuple(tensor.shape)} is Megatron's part of a weight that {ranks} tensor-parallel ranks hold, cut along "
        f"dimension {tensor.partition_dim}",
        "gather it under its checkpoint's name (Megatron-Bridge's export_hf_weights, or as examples/slime_wsync.py does) "
        "and give it to wsync.streams.Sender",
    )


def _megatron_ranks(expert: bool) -> int:
    state = sys.modules.get("megatron.core.parallel_state")
    ask = "get_expert_tensor_parallel_world_size" if expert else "get_tensor_model_parallel_world_size"
    if state is not None and hasattr(state, ask) and state.model_parallel_is_initialized():
        return int(getattr(state, ask)())
    torch = sys.modules["torch"]
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return int(torch.distributed.get_world_size()) if ready else 1


def _packed(tensor: Any) -> tuple[str, str] | None:
    """bitsandbytes' parameters: codes whose scales lie beside them, in Python. Before they are quantized they are plain."""
    state = getattr(tensor, "quant_state", None)
    if state is None and (getattr(tensor, "SCB", None) is None or getattr(tensor, "CB", None) is None):
        return None
    return (
        f"is a {type(tensor).__name__} of bitsandbytes: codes without their scales",
        "register the model before it is quantized, or merged into a BF16 one (dequantize(), merge_and_unload())",
    )

