"""Hugging Face transformers 5 models, in BF16 (recipe.fp8: false) or loaded with FP8 weights (quantization_config of "fp8").

Live parameters are mapped to the checkpoint's names by the tables with which transformers itself saves a model, for any
family that it has: experts that lie stacked (`FP8Experts`: `gate_up_proj` [E, 2I, H], with `..._scale_inv`) get each expert's
tensors as parts, vision towers and heads their own prefixes. Written against transformers 5.24.
"""

from __future__ import annotations

from typing import Any

from ..rollout import Attached, Rollout
from . import torch_nn


def attach(rollout: Rollout, model: Any, **options: Any) -> Attached:
    """Attaches a whole model. Options and errors as `torch_nn.attach`; FP8 outputs are refused by a BF16 model, by name."""
    return torch_nn.attach(rollout, model, engine=f"transformers {type(model).__name__}", **options)
