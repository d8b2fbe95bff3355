"""Hugging Face transformers 5 models loaded with FP8 weights (quantization_config of method "fp8").

`FP8Linear` keeps `weight` and `weight_scale_inv` as the checkpoint has them; stacked experts (`FP8Experts`) keep
`gate_up_proj` [E, 2I, H] and `down_proj` [E, H, I] with `..._scale_inv`. Written against transformers 5.24.
"""

from __future__ import annotations

from typing import Any

from ..rollout import Attached, Rollout
from . import torch_nn
from .mapping import TRANSFORMERS


def attach(rollout: Rollout, model: Any, *, timeout: float = 60.0) -> Attached:
    """Attaches a whole model. Errors as `torch_nn.attach`; a model in BF16 is refused, naming its FP8 outputs."""
    engine = f"transformers {type(model).__name__}"
    return torch_nn.attach(rollout, model, naming=TRANSFORMERS, engine=engine, timeout=timeout)
