"""verl with vLLM: FP8 weights reach an FP8 server as they came. See verl_checkpoint_engine.py, which carries them.

Written against verl 0.9.1 (commit 11eb3d0 before it): its worker hands every weight of an FP8 model to
`vllm_quant_utils.quant_weights`, which takes codes for values and quantizes them once more. Here FP8 codes and their scales
pass, and what comes in BF16 goes through verl's quantizer as before. Not run here: a server, which wants a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from verl.utils.vllm import vllm_quant_utils
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension

_quantized = vllm_quant_utils.quant_weights


def as_they_came(
    weights: Iterable[tuple[str, torch.Tensor]], *model: Any, **options: Any
) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in weights:
        if tensor.dtype == torch.float8_e4m3fn or name.endswith("_scale_inv"):
            yield name, tensor
        else:
            yield from _quantized([(name, tensor)], *model, **options)


vllm_quant_utils.quant_weights = as_they_came  # in the worker, which imports this module for the class below


class WorkerExtension(vLLMColocateWorkerExtension):
    """verl's own; named so that vLLM's workers import this module."""
