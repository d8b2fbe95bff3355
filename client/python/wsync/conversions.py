"""Which tensors of a checkpoint the parameters of a transformers model are: by what transformers itself does on saving.

A model holds all experts of a layer in one tensor, names its layers otherwise than its checkpoints, and keeps the tables that
lead from one to the other (`WeightConverter`, `WeightRenaming`). They are not read here but run, as `save_pretrained` runs
them: on stand-ins without memory, one storage per parameter. What comes out is a name and, in the stand-in's storage, an
offset and strides: a view of the parameter. What comes out with a storage of its own was computed, and is none.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import CatalogMismatch
from .tensors import Tensor
from .whole import may_be_part

_SCALE = "_scale_inv"  # a quantized parameter's scales are cut as the parameter itself is


@dataclass(frozen=True, slots=True)
class Part:
    """A view of a tensor, in its elements."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    whole: tuple[tuple[int, ...], tuple[int, ...]]  # shape and strides of the tensor that it is a part of

    def of(self, tensor: Tensor, name: str) -> Tensor:
        """The view. CatalogMismatch where the tensor has another shape or other strides by now."""
        now = (tuple(tensor.shape), tuple(tensor.stride()))
        if now != self.whole:
            raise CatalogMismatch(
                f"'{name}' is a part of a tensor of shape {self.whole[0]} and strides {self.whole[1]}, which has {now[0]} "
                f"and {now[1]} now",
                names=[name],
                next_step="register the model again",
            )
        with sys.modules["torch"].no_grad():
            return tensor.as_strided(self.shape, self.strides, tensor.storage_offset() + self.offset)


@dataclass(slots=True)
class Converted:
    """What a checkpoint has of one parameter."""

    parts: list[tuple[str, Part | None]] = field(default_factory=list)  # name -> what of it; None: all
    problem: str = ""  # why it has none


def is_model(module: Any) -> bool:
    """A transformers model: one that `save_pretrained` writes."""
    modeling = sys.modules.get("transformers.modeling_utils")
    return modeling is not None and isinstance(module, modeling.PreTrainedModel)


def converted(model: Any, tensors: Mapping[str, Tensor]) -> dict[str, Converted]:
    """For each of the model's tensors, by its name in the model: what the checkpoint has of it.

    Names that `save_pretrained` leaves out have no parts and no problem. CatalogMismatch: transformers cannot convert this
    model at all.
    """
    ignored = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    weights = {name: tensor for name, tensor in tensors.items() if name not in ignored and not _is_scale(name, tensors)}
    scales = {name.removesuffix(_SCALE): tensor for name, tensor in tensors.items() if _is_scale(name, tensors)}
    found = {name: Converted() for name in tensors}
    for group, suffix in ((weights, ""), (scales, _SCALE)):
        for name, one in _run(model, group).items():
            found[name + suffix] = Converted([(target + suffix, part) for target, part in one.parts], one.problem)
    return found


def _is_scale(name: str, tensors: Mapping[str, Tensor]) -> bool:
    return name.endswith(_SCALE) and name.removesuffix(_SCALE) in tensors


def _run(model: Any, tensors: Mapping[str, Tensor]) -> dict[str, Converted]:
    """Where it fails over the shapes of what is no whole weight, that stays as it is: its user refuses it by that name."""
    odd = [name for name, tensor in tensors.items() if not _is_strided(tensor)]
    try:
        found = _run_all(model, {name: tensor for name, tensor in tensors.items() if name not in odd})
    except CatalogMismatch:
        odd += [name for name, tensor in tensors.items() if name not in odd and may_be_part(tensor)]
        if not odd:
            raise
        found = _run_all(model, {name: tensor for name, tensor in tensors.items() if name not in odd})
    return found | {name: Converted([(name, None)]) for name in odd}


def _run_all(model: Any, tensors: Mapping[str, Tensor]) -> dict[str, Converted]:
    stand_ins = {name: _stand_in(tensor) for name, tensor in tensors.items()}
    results = _reverted(model, stand_ins) if stand_ins else {}
    homes = {_storage(stand_in): name for name, stand_in in stand_ins.items()}
    found = {name: Converted() for name in tensors}
    filled = dict.fromkeys(tensors, 0)
    computed: list[str] = []
    for target, result in results.items():
        home = homes.get(_storage(result))
        if home is None:
            computed.append(target)
            continue
        found[home].parts.append((target, _part(result, stand_ins[home])))
        filled[home] += result.numel()
    for name, stand_in in stand_ins.items():
        if filled[name] != stand_in.numel():
            found[name] = Converted(problem=_why(type(model).__name__, name, computed))
    return found


def _why(model: str, name: str, computed: list[str]) -> str:
    made = f" (there it is in {', '.join(map(repr, computed[:2]))}{' and others' if len(computed) > 2 else ''})" if computed else ""
    return f"'{name}' of {model} is not in its checkpoints as it lies in the model: transformers computes what they have{made}"


def _is_strided(tensor: Tensor) -> bool:
    try:
        return bool(tensor.layout == sys.modules["torch"].strided and len(tensor.shape) == len(tensor.stride()))
    except (RuntimeError, ValueError):  # a lazy one has no shape yet
        return False


def _stand_in(tensor: Tensor) -> Any:
    torch = sys.modules["torch"]
    with torch.no_grad():
        return torch.empty_strided(tuple(tensor.shape), tuple(tensor.stride()), dtype=tensor.dtype, device="meta")


def _storage(tensor: Any) -> int:
    return int(tensor.untyped_storage()._cdata)


def _part(result: Any, whole: Any) -> Part | None:
    shape, strides, offset = tuple(result.shape), tuple(result.stride()), int(result.storage_offset())
    home = (tuple(whole.shape), tuple(whole.stride()))
    return None if (shape, strides, offset) == (*home, 0) else Part(shape, strides, offset, home)


# ---- transformers' own


class _Saved:
    """A model as its conversion for saving sees it, with these conversions."""

    def __init__(self, model: Any, conversions: list[Any]) -> None:
        self._model = model
        self._weight_conversions = conversions

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _reverted(model: Any, stand_ins: dict[str, Any]) -> dict[str, Any]:
    loading = importlib.import_module("transformers.core_model_loading")
    revert = getattr(loading, "revert_weight_conversion", None)
    if revert is None:  # before 5.0 a model's names were its checkpoints'
        return stand_ins
    try:
        with _views(sys.modules["torch"])():
            return dict(revert(_Saved(model, _conversions(model, loading)), dict(stand_ins)))
    except Exception as error:
        raise CatalogMismatch(
            f"register: transformers cannot tell the checkpoint's names of {type(model).__name__}: "
            f"{type(error).__name__}: {error}",
            next_step="give (name, tensor) pairs under the checkpoint's names instead of the model",
        ) from error


def _conversions(model: Any, loading: Any) -> list[Any]:
    """What the model was loaded with; else those of its family, without prefixes that its checkpoint may have had.

    A quantized checkpoint's loading brings some along that dequantize, which nothing turns round: the family's are right.
    """
    family = importlib.import_module("transformers.conversion_mapping").get_model_conversion_mapping
    default = [one for one in family(model, add_legacy=False) if not isinstance(one, loading.PrefixChange)]
    own = getattr(model, "_weight_conversions", None)
    if own is None:
        return default
    if not any(map(_dequantizes, own)):
        return list(own)
    return default + [one for one in own if isinstance(one, loading.PrefixChange)]


def _dequantizes(conversion: Any) -> bool:
    return any(hasattr(operation, "hf_quantizer") for operation in getattr(conversion, "operations", ()))


def _views(torch: Any) -> Any:
    class Views(torch.overrides.TorchFunctionMode):  # type: ignore[misc]
        """Saving makes what it cuts out contiguous, a copy each time. Where it lies is what is asked here."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return args[0] if func is torch.Tensor.contiguous else func(*args, **(kwargs or {}))

    return Views
