"""torch tensors and numpy arrays seen the same way: dtype, shape, address, device. Neither library is imported here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .catalog import Dtype, matrix
from .errors import MemoryNotShareable

# A torch.Tensor or a numpy.ndarray.
Tensor = Any
Tensors = Any  # Mapping[str, Tensor], Iterable[tuple[str, Tensor]], or a torch module

_BY_NAME = {
    "bool": Dtype.BOOL,
    "uint8": Dtype.U8,
    "int8": Dtype.I8,
    "float8_e5m2": Dtype.F8_E5M2,
    "float8_e4m3fn": Dtype.F8_E4M3,
    "int16": Dtype.I16,
    "uint16": Dtype.U16,
    "float16": Dtype.F16,
    "bfloat16": Dtype.BF16,
    "int32": Dtype.I32,
    "uint32": Dtype.U32,
    "float32": Dtype.F32,
    "float64": Dtype.F64,
    "int64": Dtype.I64,
    "uint64": Dtype.U64,
}


def is_torch(tensor: Tensor) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(tensor, torch.Tensor)


def dtype_of(dtype: Any) -> Dtype:
    """The Dtype of a torch or numpy dtype, or of its name. TypeError for one that the wire does not know."""
    name = str(getattr(dtype, "name", dtype)).removeprefix("torch.")
    try:
        return _BY_NAME[name]
    except KeyError:
        raise TypeError(f"dtype {dtype} cannot be moved; known are {', '.join(_BY_NAME)}") from None


_dtypes: dict[Any, Dtype] = {}  # names of dtypes are slow where there are 18,867 tensors


def _cached_dtype(dtype: Any) -> Dtype:
    found = _dtypes.get(dtype)
    if found is None:
        found = _dtypes[dtype] = dtype_of(dtype)
    return found


@dataclass(frozen=True, slots=True)
class View:
    """Where a tensor lies. `tensor` keeps the memory alive."""

    dtype: Dtype
    shape: tuple[int, ...]
    address: int
    device: str  # "cpu" or "cuda:0"
    contiguous: bool
    row_pitch: int | None  # bytes between rows of the matrix view; None: rows are not evenly spaced
    tensor: Tensor

    @property
    def rows(self) -> int:
        return matrix(self.shape)[0]

    @property
    def cols(self) -> int:
        return matrix(self.shape)[1]

    @property
    def nbytes(self) -> int:
        rows, cols = matrix(self.shape)
        return rows * cols * self.dtype.itemsize


def view_of(tensor: Tensor) -> View:
    """Describes a torch tensor or numpy array. MemoryNotShareable for sharded DTensors, TypeError for anything else."""
    if is_torch(tensor):
        return _torch_view(tensor)
    interface = getattr(tensor, "__array_interface__", None)
    if interface is None:
        raise TypeError(f"expected a torch.Tensor or a numpy.ndarray, got {type(tensor).__name__}")
    dtype = _cached_dtype(tensor.dtype)
    shape = tuple(tensor.shape)
    strides = tuple(stride // dtype.itemsize for stride in tensor.strides)
    contiguous = bool(tensor.flags.c_contiguous)
    return View(dtype, shape, interface["data"][0], "cpu", contiguous, _row_pitch(shape, strides, dtype), tensor)


def _torch_view(tensor: Tensor) -> View:
    if hasattr(tensor, "placements"):  # a DTensor
        if not all(placement.is_replicate() for placement in tensor.placements):
            raise MemoryNotShareable(
                f"a sharded DTensor (placements {tensor.placements}) holds only a part of the weight",
                next_step="register buffers of the full shape, and give full_tensor()s to publish(version, weights=...)",
            )
        tensor = plain(tensor)
    dtype = _cached_dtype(tensor.dtype)
    shape = tuple(tensor.shape)
    contiguous = tensor.is_contiguous()
    if contiguous:
        pitch: int | None = (shape[-1] if shape else 1) * dtype.itemsize
    else:
        pitch = _row_pitch(shape, tensor.stride(), dtype)
    return View(dtype, shape, tensor.data_ptr(), str(tensor.device), contiguous, pitch, tensor)


def _row_pitch(shape: tuple[int, ...], strides: tuple[int, ...], dtype: Dtype) -> int | None:
    if len(shape) < 2:
        inner = strides[0] if shape and shape[0] > 1 else 1
        return (shape[-1] if shape else 1) * dtype.itemsize if inner == 1 else None
    if shape[-1] > 1 and strides[-1] != 1:
        return None
    for i in range(len(shape) - 2):
        if shape[i] > 1 and strides[i] != strides[i + 1] * shape[i + 1]:
            return None
    return (strides[-2] if shape[-2] > 1 or len(shape) > 2 else shape[-1]) * dtype.itemsize


def plain(tensor: Tensor) -> Tensor:
    """A DTensor's own part; any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "placements") else tensor


def pointer_reader(tensor: Tensor) -> Callable[[], int]:
    """A function that gives the tensor's present address, as cheaply as can be: it is called per tensor and version."""
    if is_torch(tensor):
        reader: Callable[[], int] = plain(tensor).data_ptr
        return reader
    address = tensor.__array_interface__["data"][0]  # an array's memory never moves
    return lambda: address


def named(tensors: Tensors) -> list[tuple[str, Tensor]]:
    """Pairs (name, tensor) of a mapping, an iterable of pairs, or a torch module's parameters and buffers."""
    if hasattr(tensors, "named_parameters"):
        return [*tensors.named_parameters(), *_persistent_buffers(tensors)]
    if isinstance(tensors, Mapping):
        return list(tensors.items())
    if isinstance(tensors, Iterable):
        return list(tensors)
    raise TypeError(f"expected (name, tensor) pairs, a mapping or a module, got {type(tensors).__name__}")


def _persistent_buffers(module: Any) -> list[tuple[str, Tensor]]:
    saved = module.state_dict(keep_vars=True)
    return [(name, buffer) for name, buffer in module.named_buffers() if name in saved]
