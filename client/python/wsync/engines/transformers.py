"""Hugging Face transformers 5 models loaded with FP8 weights (quantization_config of method "fp8").

`FP8Linear` keeps `weight` and `weight_scale_inv` as the checkpoint has them; stacked experts (`FP8Experts`) keep
`gate_up_proj` [E, 2I, H] and `down_proj` [E, H, I] with `..._scale_inv`. Written against transformers 5.24.
"""

from __future__ import annotations

from typing import Any

from ..rollout import Attached, Rollout
from . import torch_nn
from .mapping import TRANSFORMERS


def attach(rollout: Rollout, model: Any, **options: Any) -> Attached:
    """Attaches a whole model. Options and errors as `torch_nn.attach`; a BF16 model is refused, naming FP8 outputs."""
    return torch_nn.attach(
        rollout, model, naming=TRANSFORMERS, engine=f"transformers {type(model).__name__}", **options
    )
