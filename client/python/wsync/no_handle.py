"""Why memory of a GPU has no CUDA IPC handle: what made it is asked, since each has another cure."""

from __future__ import annotations

import sys
from typing import Any

from .errors import MemoryNotShareable

_CURES = {
    "expandable_segments": (
        "in an expandable segment",
        "run without expandable_segments:True in PYTORCH_CUDA_ALLOC_CONF (or PYTORCH_ALLOC_CONF)",
    ),
    "async_allocator": (
        "in cudaMallocAsync's pool",
        "run without backend:cudaMallocAsync in PYTORCH_CUDA_ALLOC_CONF (or PYTORCH_ALLOC_CONF)",
    ),
    "memory_pool": (
        "in a memory pool of its own (torch.cuda.MemPool)",
        "make it outside of the pool; where it is an engine's sleep mode that makes it, run without that",
    ),
    "": (
        "in memory that plain cudaMalloc did not make",
        "exporting needs plain cudaMalloc memory, as torch's allocator uses by default: no expandable_segments, no pool",
    ),
}


def no_handle(name: str, address: int) -> MemoryNotShareable:
    """The error for a tensor at this device address; its `cause` is one of those above."""
    cause = _cause(address, sys.modules.get("torch"))
    where, step = _CURES[cause]
    return MemoryNotShareable(
        f"'{name}' lies {where}, which has no CUDA IPC handle", names=[name], next_step=step, cause=cause
    )


def _cause(address: int, torch: Any) -> str:
    try:
        if torch.cuda.memory.get_allocator_backend() == "cudaMallocAsync":
            return "async_allocator"
        segments = torch.cuda.memory.memory_snapshot()
    except (AttributeError, RuntimeError):  # no torch, or one that does not tell
        return ""
    for segment in segments:
        if segment["address"] <= address < segment["address"] + segment["total_size"]:
            if segment.get("is_expandable", False):
                return "expandable_segments"
            return "memory_pool" if tuple(segment.get("segment_pool_id", (0, 0))) != (0, 0) else ""
    return ""
