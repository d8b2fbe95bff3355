"""Plain torch.nn modules whose parameters have the checkpoint's names and shapes: FP8 codes and scales as they come.

A quantized weight `X.weight` needs a float8_e4m3fn parameter of that name and a float32 `X.weight_scale_inv`.
"""

from __future__ import annotations

from typing import Any

from ..rollout import Attached, Rollout
from ..tensors import named
from .bind import bind
from .mapping import UNFUSED, Naming, check, place


def attach(
    rollout: Rollout,
    module: Any,
    *,
    naming: Naming = UNFUSED,
    engine: str = "torch",
    allow_partial: bool = False,
    timeout: float = 60.0,
) -> Attached:
    """Attaches every parameter and persistent buffer of `module`; its CPU parameters move to shared memory.

    CatalogMismatch lists outputs without a parameter, and parameters (unless `allow_partial`) that no output fills.
    """
    parameters = dict(named(module))
    outputs = rollout.plan(timeout).outputs
    if allow_partial:
        outputs = tuple(output for output in outputs if output.name in parameters)
    placements = place(outputs, naming)
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    used = {placement.parameter for placement in placements}
    check(placements, shapes, derived=lambda name: allow_partial and name not in used)
    return rollout.attach(bind(placements, parameters), engine=engine, allow_partial=allow_partial, timeout=timeout)
