"""torch tensors and numpy arrays seen the same way: dtype, shape, address, device. Neither library is imported here."""

from __future__ import annotations

import contextlib
import gc
import logging
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .catalog import ITEMSIZE, Dtype, matrix
from .errors import MemoryNotShareable
from .whole import check_whole

_log = logging.getLogger("wsync")

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
    "float8_e8m0fnu": Dtype.F8_E8M0,
    "float8_e4m3fnuz": Dtype.F8_E4M3FNUZ,
    "float8_e5m2fnuz": Dtype.F8_E5M2FNUZ,
    "complex64": Dtype.C64,
}

_NAMES = {dtype: name for name, dtype in _BY_NAME.items()}


def is_torch(tensor: Tensor) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(tensor, torch.Tensor)


def dtype_of(dtype: Any, name: str = "") -> Dtype:
    """The Dtype of a torch or numpy dtype, or of its name. TypeError for one that the wire does not know.

    `name`: here and below, of the tensor that it is about, for the error.
    """
    text = str(getattr(dtype, "name", dtype)).removeprefix("torch.")
    try:
        return _BY_NAME[text]
    except KeyError:
        raise TypeError(f"{_of(name)}dtype {dtype} cannot be moved; known are {', '.join(_BY_NAME)}") from None


_dtypes: dict[Any, Dtype] = {}  # names of dtypes are slow where there are 18,867 tensors


def cached_dtype(dtype: Any, name: str = "") -> Dtype:
    """`dtype_of`, for many."""
    found = _dtypes.get(dtype)
    if found is None:
        found = _dtypes[dtype] = dtype_of(dtype, name)
    return found


def _of(name: str) -> str:
    return f"'{name}': " if name else ""


@dataclass(slots=True)  # not frozen: that makes it three times as slow, and there are 37,491
class View:
    """Where a tensor lies. `tensor` keeps the memory alive. Only `address` changes, when `share` moves the tensor."""

    dtype: Dtype
    shape: tuple[int, ...]
    address: int
    device: str  # "cpu" or "cuda:0"
    contiguous: bool
    row_pitch: int | None  # bytes between rows of the matrix view; None: rows are not evenly spaced
    tensor: Tensor
    nbytes: int  # of its elements
    torch: bool = False  # a torch.Tensor

    @property
    def rows(self) -> int:
        return matrix(self.shape)[0]

    @property
    def cols(self) -> int:
        return matrix(self.shape)[1]


def torch_dtype(dtype: Dtype) -> Any:
    """The torch dtype of that name."""
    import torch

    return getattr(torch, _NAMES[dtype])


def bf16_of(tensor: Tensor) -> Any:
    """The BF16 dtype of an FP32 tensor's own library; None for another dtype. ImportError where numpy has none."""
    if cached_dtype(tensor.dtype) != Dtype.F32:
        return None
    if is_torch(tensor):
        return torch_dtype(Dtype.BF16)
    import ml_dtypes
    import numpy as np

    return np.dtype(ml_dtypes.bfloat16)


def view_of(tensor: Tensor, name: str = "") -> View:
    """Describes a torch tensor or numpy array. TypeError for anything else.

    MemoryNotShareable for sharded DTensors, and for tensors without memory of their own: sparse or lazy ones, and subclasses
    that wrap others. Meta tensors have a view, at address 0.
    """
    if is_torch(tensor):
        return _torch_view(plain(tensor, name), name)
    check_type(tensor, name)
    dtype = cached_dtype(tensor.dtype, name)
    if not tensor.dtype.isnative:  # its name is that of a native one
        raise TypeError(f"{_of(name)}the bytes of {tensor.dtype.str!r} elements are in another machine's order")
    shape = tuple(tensor.shape)
    strides = tuple(stride // dtype.itemsize for stride in tensor.strides)
    contiguous = bool(tensor.flags.c_contiguous)
    pitch = _row_pitch(shape, strides, dtype)
    address = tensor.__array_interface__["data"][0]
    return View(dtype, shape, address, "cpu", contiguous, pitch, tensor, tensor.nbytes)


def check_type(tensor: Tensor, name: str) -> None:
    """TypeError for what is neither a torch tensor nor a numpy array."""
    if not is_torch(tensor) and not hasattr(tensor, "__array_interface__"):
        raise TypeError(f"{_of(name)}expected a torch.Tensor or a numpy.ndarray, got {type(tensor).__name__}")


def _torch_view(tensor: Tensor, name: str) -> View:
    dtype = cached_dtype(tensor.dtype, name)
    try:
        shape = tuple(tensor.shape)
        contiguous = tensor.is_contiguous()
        address = tensor.data_ptr()
    except RuntimeError as error:
        if hasattr(tensor, "materialize"):
            why, step = f"an {type(tensor).__name__} has no shape yet", "run its lazy module once before"
        else:
            why, step = f"a tensor of layout {tensor.layout} is not laid out in memory: {error}", "give a dense tensor"
        raise MemoryNotShareable(f"{_of(name)}{why}", names=[name] if name else [], next_step=step) from error
    check_readable(tensor, name)
    if address == 0 and tensor.nbytes and (tensor.is_cpu or tensor.is_cuda):
        wraps = hasattr(tensor, "__tensor_flatten__")
        why = f"a {type(tensor).__name__} " + ("wraps other tensors and has no memory of its own" if wraps else "has no memory")
        step = "give the tensors inside it, or a plain one (dequantized)" if wraps else "give a tensor with values"
        raise MemoryNotShareable(f"{_of(name)}{why}", names=[name] if name else [], next_step=step)
    if tensor.is_neg():
        why = "a view whose sign torch turns when it is read: its memory holds the opposite"
        raise MemoryNotShareable(f"{_of(name)}{why}", names=[name] if name else [], next_step="give its resolve_neg()")
    if contiguous:
        pitch: int | None = (shape[-1] if shape else 1) * ITEMSIZE[dtype]
    else:
        pitch = _row_pitch(shape, tensor.stride(), dtype)
    device = "cpu" if tensor.is_cpu else str(tensor.device)
    return View(dtype, shape, address, device, contiguous, pitch, tensor, tensor.nbytes, True)


def why_unreadable(tensor: Tensor) -> str:
    """Why its elements lie outside of the memory that its storage has by now; "" where they do not, or torch would tell.

    Neither torch nor numpy looks when it copies: it reads what is not there, and the process dies.
    """
    if not is_torch(tensor):
        return _why_outside(tensor)
    if tensor.numel() == 0 or tensor.is_meta or tensor.layout != sys.modules["torch"].strided or _dispatches(tensor):
        return ""
    has = tensor.untyped_storage().nbytes()
    last = tensor.numel() - 1 if tensor.is_contiguous() else _last(tensor.shape, tensor.stride())
    needs = (tensor.storage_offset() + last + 1) * tensor.element_size()
    if has >= needs:
        return ""
    return f"its storage was cut to {has} bytes, of which it needs {needs}" if has else "its memory was freed"


def _dispatches(tensor: Tensor) -> bool:
    """Whether its class does what is asked of it in a way of its own: then its storage says nothing."""
    kind: Any = type(tensor)
    return kind.__torch_dispatch__ is not sys.modules["torch"].Tensor.__torch_dispatch__


def _last(shape: Iterable[int], strides: Iterable[int]) -> int:
    return sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def _why_outside(array: Tensor) -> str:
    """Of a view of an array that was made smaller since: `resize(refcheck=False)`."""
    base: Any = getattr(array, "base", None)
    if array.size == 0 or not hasattr(base, "__array_interface__"):
        return ""
    begin, owner = array.__array_interface__["data"][0], base.__array_interface__["data"][0]
    spans = [(size - 1) * stride for size, stride in zip(array.shape, array.strides, strict=True)]
    first = begin + sum(span for span in spans if span < 0)
    end = begin + sum(span for span in spans if span > 0) + array.itemsize
    return "" if owner <= first and end <= owner + base.nbytes else "the array that it is a view of was made smaller"


def check_readable(tensor: Tensor, name: str) -> None:
    """MemoryNotShareable where its elements lie outside of its storage by now. Right before they are read, or lent."""
    if why := why_unreadable(tensor):
        raise MemoryNotShareable(
            f"{_of(name)}{why}",
            names=[name] if name else [],
            next_step="bring it back before (FSDP2: unshard()), or give a copy",
        )


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


def plain(tensor: Tensor, name: str = "") -> Tensor:
    """A replicated DTensor's own copy; any other tensor as it is. MemoryNotShareable for parts of a weight, and stand-ins."""
    check_whole(tensor, name)
    if not hasattr(tensor, "placements"):
        return tensor
    if not all(placement.is_replicate() for placement in tensor.placements):
        raise MemoryNotShareable(
            f"{_of(name)}a sharded DTensor (placements {tensor.placements}) holds only a part of the weight",
            names=[name] if name else [],
            next_step="give its full_tensor(): to Sender, or to publish(version, weights=...) for a registered buffer",
        )
    return tensor.to_local()


class Addresses:
    """Where torch tensors lay, and whether they still do; of a view also what it is a view of, which alone may be moved.

    Asked per version: all of the cost is torch's own `data_ptr`, 50 ns a tensor on one machine and 120 on another. An
    engine is asked for twice as many as a trainer, codes and scales. Nothing coarser would do: a parameter may be given
    other memory that was there all the time.
    """

    def __init__(self, tensors: list[tuple[str, Tensor]]) -> None:
        viewed = {id(base): (name, base) for name, tensor in tensors if (base := plain(tensor, name)._base) is not None}
        for _, tensor in tensors:
            viewed.pop(id(tensor), None)
        tensors = [*tensors, *viewed.values()]
        self._names = [name for name, _ in tensors]
        self._tensors = [plain(tensor, name) for name, tensor in tensors]
        self._were = self._now()

    def _now(self) -> list[int]:
        if not self._tensors:
            return []
        return list(map(sys.modules["torch"].Tensor.data_ptr, self._tensors))

    def moved(self) -> list[str]:
        """Names of those that lie elsewhere now."""
        now = self._now()
        if now == self._were:
            return []
        return list(dict.fromkeys(name for name, a, b in zip(self._names, now, self._were, strict=True) if a != b))


_collector = threading.Lock()
_needed_off = 0  # by so many threads
_was_on = False  # before the first of them


@contextlib.contextmanager
def garbage_free() -> Iterator[None]:
    """For code that makes very many objects, all of which stay: the collector would look at them again and again.

    It is off for every thread, until the last one leaves.
    """
    global _needed_off, _was_on
    with _collector:
        if _needed_off == 0:
            _was_on = gc.isenabled()
            gc.disable()
        _needed_off += 1
    try:
        yield
    finally:
        with _collector:
            _needed_off -= 1
            if _needed_off == 0 and _was_on:
                gc.enable()


def once(tensors: Tensors) -> Tensors:
    """A module, a mapping or a list as it is, of anything else the one iterator that everybody is to use."""
    if hasattr(tensors, "named_parameters") or isinstance(tensors, (Mapping, list, tuple)):
        return tensors
    if not isinstance(tensors, Iterable):
        raise TypeError(f"expected (name, tensor) pairs, a mapping or a module, got {type(tensors).__name__}")
    return iter(tensors)


@contextlib.contextmanager
def to_the_end(stream: Any) -> Iterator[None]:
    """An error leaves the block only when `stream`, where it is an iterator, was asked for all it gives.

    Gathering shards is collective: the other ranks do their part of it, and would wait for this one for ever.
    """
    try:
        yield
    except Exception:
        if isinstance(stream, Iterator):
            _drain(stream)
        raise


def _drain(stream: Iterator[Any]) -> None:
    try:
        for _ in stream:
            pass
    except Exception as error:  # the first error is the one that is told
        _log.warning("weights could not be gathered to the end after an error: %r", error)


def check_pair(pair: Any) -> tuple[str, Tensor]:
    """TypeError for what is no (name, tensor)."""
    if isinstance(pair, (tuple, list)) and len(pair) == 2 and isinstance(pair[0], str):
        return pair[0], pair[1]
    what = f"{pair[0]!r} for a name" if isinstance(pair, tuple) and pair else type(pair).__name__
    raise TypeError(f"expected (name, tensor) pairs, such as module.named_parameters(), got {what}")


def named(tensors: Tensors) -> list[tuple[str, Tensor]]:
    """Pairs (name, tensor) of a mapping, an iterable of pairs, or a torch module's parameters and persistent buffers.

    A tied tensor of a module comes under each of its names.
    """
    if hasattr(tensors, "named_parameters"):
        return [*tensors.named_parameters(remove_duplicate=False), *_persistent_buffers(tensors)]
    return list(map(check_pair, tensors.items() if isinstance(tensors, Mapping) else once(tensors)))


def _persistent_buffers(module: Any) -> list[tuple[str, Tensor]]:
    """Those that checkpoints have. Not by state_dict(), for which FSDP1 gathers the weights, on all ranks or not at all."""
    left_out = {
        id(holder._buffers.get(key)) for holder in module.modules() for key in getattr(holder, "_non_persistent_buffers_set", ())
    }
    return [(name, buffer) for name, buffer in module.named_buffers(remove_duplicate=False) if id(buffer) not in left_out]
