"""Plain torch.nn modules whose parameters have the checkpoint's names and shapes: FP8 codes and scales as they come.

A quantized weight `X.weight` needs a float8_e4m3fn parameter of that name and a float32 `X.weight_scale_inv`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import CatalogMismatch, MemoryNotShareable
from ..rollout import Attached, Rollout
from ..tensors import Tensor, named
from .bind import bind
from .mapping import UNFUSED, Naming, check, place


def attach(
    rollout: Rollout,
    module: Any,
    *,
    naming: Naming = UNFUSED,
    engine: str = "torch",
    allow_partial: bool = False,
    allocate: Callable[[str, Tensor], Tensor] | None = None,
    layer_events: bool = False,
    timeout: float = 60.0,
) -> Attached:
    """Attaches every parameter and persistent buffer of `module`; its CPU parameters move to shared memory.

    A module built on the "meta" device has shapes and no memory: `allocate(name, meta)` gives the tensor for each of
    its parameters and persistent buffers just in time, when the plan is known and fits, and nothing is ever initialised
    twice. By default there are none. Buffers that checkpoints do not have (`persistent=False`), and with `allow_partial`
    what no output fills, stay as they are: those on the meta device are the caller's to compute.

    A tied parameter is filled by the output of any of its names; where several come, `allow_partial` takes the first.

    CatalogMismatch lists outputs without a parameter, and parameters (unless `allow_partial`) that no output fills.
    """
    parameters = dict(named(module))
    outputs = rollout.plan(timeout).outputs
    if allow_partial:
        taken = {id(parameters[output.name]): output for output in reversed(outputs) if output.name in parameters}
        outputs = tuple(output for output in outputs if taken.get(id(parameters.get(output.name))) is output)
    placements = place(outputs, naming)
    used = {placement.parameter for placement in placements}
    shapes = {name: tuple(parameters[name].shape) for name in _one_name_each(parameters, used)}
    check(placements, shapes, derived=lambda name: allow_partial and name not in used)
    _materialize(module, parameters, used, allocate)
    return rollout.attach(
        bind(placements, parameters),
        engine=engine,
        allow_partial=allow_partial,
        layer_events=layer_events,
        module=module,
        timeout=timeout,
    )


def _one_name_each(parameters: dict[str, Tensor], used: set[str]) -> list[str]:
    """Of a tied parameter's names the one in `used`, or else the first."""
    names: dict[int, str] = {}
    for name, tensor in parameters.items():
        other = names.setdefault(id(tensor), name)
        if other in used and name in used and name != other:
            raise CatalogMismatch(
                f"'{other}' and '{name}' are one parameter of the engine, and the plan has both: they may differ",
                names=[other, name],
                next_step="register with tied='first', untie the engine's, or attach with allow_partial=True to take one",
            )
        if name in used:
            names[id(tensor)] = name
    return list(names.values())


def _materialize(
    module: Any, parameters: dict[str, Tensor], used: set[str], allocate: Callable[[str, Tensor], Tensor] | None
) -> None:
    """Puts what `allocate` gives in the place of tensors on the meta device, in the module and in `parameters`.

    Of those in `used` only: memory that nothing fills would be served as it is.
    """
    absent = [name for name, tensor in parameters.items() if name in used and getattr(tensor, "is_meta", False)]
    if absent and allocate is None:
        raise MemoryNotShareable(
            f"{len(absent)} parameters have no memory, such as '{absent[0]}' on the meta device",
            names=absent,
            next_step="give allocate=lambda name, meta: torch.empty_like(meta, device=...)",
        )
    made: dict[int, Tensor] = {}  # by id of what it stands for: tied parameters stay tied
    for name in absent:
        assert allocate is not None
        meta = parameters[name]
        tensor = allocate(name, meta)
        if (tensor.shape, tensor.dtype) != (meta.shape, meta.dtype):
            raise CatalogMismatch(
                f"allocate gave {tensor.dtype} {tuple(tensor.shape)} for '{name}', which is {meta.dtype} "
                f"{tuple(meta.shape)}",
                names=[name],
            )
        if type(meta).__name__ == "Parameter":
            tensor = type(meta)(tensor, requires_grad=meta.requires_grad)
        made[id(meta)] = parameters[name] = tensor
    for holder in module.modules():
        for tensors in (holder._parameters, holder._buffers):
            tensors.update({leaf: made[id(tensor)] for leaf, tensor in tensors.items() if id(tensor) in made})
