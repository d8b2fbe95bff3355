"""What to do where an engine's dtypes are not the plan's: the cause is on one of the two sides, and each has its cure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .catalog import Dtype, Output

_HALF = (Dtype.BF16, Dtype.F16)


def dtype_hint(plan: Mapping[str, Output], held: Iterable[tuple[str, Dtype]]) -> str:
    """`held`: what the engine's memory is, by output. "" where dtypes are not what disagrees."""
    cures: dict[str, list[str]] = {}
    for name, dtype in held:
        output = plan.get(name)
        if output is not None and output.dtype != dtype:
            cures.setdefault(_cure(output, dtype), []).append(name)
    return "; ".join(f"{cure} ({_some(names)})" for cure, names in cures.items())


def _some(names: list[str]) -> str:
    return repr(names[0]) + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _cure(output: Output, held: Dtype) -> str:
    if output.quantized:
        return (
            f"the engine holds {held.name} where the trainer's agent gives FP8: start it from an FP8 checkpoint ('wsync "
            "quantize' makes one), or set recipe.fp8: false in trainer.yaml"
        )
    if output.dtype == Dtype.F32 and held in _HALF:
        return "the trainer sends FP32 masters: register(..., cast=\"unquantized\"), or cast=lambda name, tensor: ..."
    if held == Dtype.F8_E4M3:
        return (
            f"the engine holds FP8 where the trainer's agent leaves {output.dtype.name}: 'wsync plan' says why, keep the "
            "engine's weight out of FP8 ('wsync quantize' decides as the agent does), or set recipe.include"
        )
    return f"the trainer sends {output.dtype.name}, the engine holds {held.name}: load it in that dtype, or register(..., cast=...)"
