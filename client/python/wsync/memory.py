"""Memory that this process owns and lends to an agent: POSIX shared memory for CPU tensors, CUDA IPC for GPU tensors.

A handle names a whole allocation, so tensors are (handle, offset). Everything lent stays alive while it is lent: the
handles hold the tensors.
"""

from __future__ import annotations

import bisect
import contextlib
import ctypes
import functools
import math
import mmap
import os
import secrets
import sys
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import Any

from . import _wire
from .arguments import whole_number
from .cuda_driver import Driver, cuda_driver
from .errors import MemoryNotShareable, WrongDevice
from .no_handle import no_handle
from .ownership import OfOneProcess
from .tensors import Tensor, View, cached_dtype, check_readable, view_of

_FOLDER = "/dev/shm"
_ALIGN = 128  # as the agents align what they allocate


class SharedBuffer(OfOneProcess, mmap.mmap):
    """Zeroed shared memory with a name. The tensors and arrays made of it keep it alive, and with it the name.

    The name goes when the buffer goes, also when the process is killed: Python's resource tracker unlinks it then.
    """

    name: str
    address: int
    nbytes: int

    def __new__(cls, nbytes: int, purpose: str = "shared memory") -> SharedBuffer:
        """`nbytes` above 0. MemoryNotShareable when /dev/shm cannot hold it, before a byte is written."""
        nbytes = whole_number("nbytes", nbytes, 1)
        name = f"/wsync-{os.getpid()}-{secrets.token_hex(8)}"
        fd = os.open(_FOLDER + name, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, nbytes)
            self = super().__new__(cls, fd, nbytes)
        except OSError as error:
            os.unlink(_FOLDER + name)
            raise MemoryNotShareable(
                f"{purpose}: shared memory cannot hold {nbytes >> 20} MiB: {error.strerror}",
                next_step="free some, or enlarge it: 'mount -o remount,size=... /dev/shm' (docker: --shm-size)",
            ) from error
        finally:
            os.close(fd)
        resource_tracker.register(name, "shared_memory")
        self.name, self.nbytes = name, nbytes
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self))
        _buffers[self.address] = self
        global _starts
        _starts = sorted(_buffers.keys())
        weakref.finalize(self, _unlink, name, os.getpid())
        return self

    def array(self, offset: int, dtype: Any, shape: tuple[int, ...]) -> Any:
        """A numpy array at `offset` bytes; `dtype` as numpy knows it (ml_dtypes' too)."""
        import numpy as np

        dtype = np.dtype(dtype)
        count = int(np.prod(shape, dtype=np.int64))
        return np.frombuffer(self, np.uint8, count * dtype.itemsize, offset).view(dtype).reshape(shape)

    def tensor(self, offset: int, dtype: Any, shape: tuple[int, ...]) -> Any:
        """A torch tensor at `offset` bytes."""
        import torch

        count = 1
        for dim in shape:
            count *= dim
        if count == 0:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self, dtype=dtype, count=count, offset=offset).view(shape)


_buffers: weakref.WeakValueDictionary[int, SharedBuffer] = weakref.WeakValueDictionary()  # by address
_starts: list[int] = []  # their addresses, sorted, and those of some that are gone


def _unlink(name: str, owner: int) -> None:
    if os.getpid() != owner:  # a forked child's copy
        return
    try:
        os.unlink(_FOLDER + name)
    except FileNotFoundError:
        return
    resource_tracker.unregister(name, "shared_memory")


def _containing(address: int, nbytes: int) -> SharedBuffer | None:
    i = bisect.bisect_right(_starts, address) - 1
    buffer = _buffers.get(_starts[i]) if i >= 0 else None
    return buffer if buffer is not None and address + nbytes <= buffer.address + buffer.nbytes else None


def layout(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Offsets for tensors of these sizes in bytes, each aligned to 128, and the size of it all."""
    offsets, end = [], 0
    for size in sizes:
        offsets.append(end)
        end += -(-size // _ALIGN) * _ALIGN
    return offsets, max(end, _ALIGN)


@dataclass(frozen=True, slots=True)
class Blank:
    """A tensor to be made: `dtype` is torch's or numpy's own."""

    shape: tuple[int, ...]
    dtype: Any
    torch: bool

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * cached_dtype(self.dtype).itemsize


def empty_shared(blanks: Sequence[Blank], purpose: str) -> list[Tensor]:
    """Zeroed contiguous tensors, all in one new SharedBuffer."""
    offsets, size = layout([blank.nbytes for blank in blanks])
    buffer = SharedBuffer(size, purpose)
    return [
        (buffer.tensor if blank.torch else buffer.array)(offset, blank.dtype, blank.shape)
        for offset, blank in zip(offsets, blanks, strict=True)
    ]


def share(named_tensors: Sequence[tuple[str, Tensor]], purpose: str = "shared tensors") -> None:
    """Moves private CPU torch tensors into shared memory: same objects, same values, other storage (`tensor.data`).

    Tensors that are in shared memory already, or on a GPU, stay. Tied tensors stay tied, views of the same storage in
    another shape as well. MemoryNotShareable names tensors that cannot be moved: numpy arrays, parts of a larger
    storage, and what a tensor that is not given lies in, too, which would be left behind: state_dict() and detach()
    make such.
    """
    share_viewed([(name, tensor, view_of(tensor, name)) for name, tensor in named_tensors], purpose)


def share_viewed(
    viewed: Sequence[tuple[str, Tensor, View]],
    purpose: str,
    given: Mapping[int, int] | None = None,
    undo: contextlib.ExitStack | None = None,
) -> None:
    """`share` for tensors that were looked at already. Views are brought up to date.

    `given`: `sharers` of these and of others that follow them; by default of these alone. `undo` gets what moves them back
    to private memory, with the values that they have then.
    """
    private: dict[int, list[tuple[Tensor, View]]] = {}
    for name, tensor, view in viewed:
        if view.device != "cpu" or view.nbytes == 0 or _containing(view.address, view.nbytes):
            continue
        why = _why_immovable(tensor, view)
        if why:
            raise MemoryNotShareable(
                f"'{name}' cannot be moved to shared memory: it {why}",
                names=[name],
                next_step="make it in a wsync.SharedBuffer, give it a storage of its own, or register with "
                "copy='if_needed'",
            )
        private.setdefault(view.address, []).append((tensor, view))
    if not private:
        return
    given = given if given is not None else sharers([(tensor, view) for _, tensor, view in viewed])
    for name, tensor, view in viewed:
        if view.address in private:
            check_readable(tensor, name)
        if view.address in private and _owners(tensor) > given[view.address]:
            raise MemoryNotShareable(
                f"'{name}' cannot be moved to shared memory: {_NOT_ALONE}",
                names=[name],
                next_step="let go of the other (a state_dict, a loss before its backward), or give the module or its "
                "parameters themselves; register with copy='if_needed' makes copies",
            )
    groups = list(private.values())
    places = empty_shared([Blank(view.shape, tensor.dtype, True) for tensor, view in (group[0] for group in groups)], purpose)
    if undo is not None:
        undo.callback(_move_back, groups)
    for place, group in zip(places, groups, strict=True):
        _move(group, place)


def _move(group: Sequence[tuple[Tensor, View]], place: Tensor) -> None:
    """Tensors of one storage, and all of it, to where `place` lies: some may see it in another shape or dtype."""
    with sys.modules["torch"].no_grad():
        place.copy_(group[0][0])
        for tensor, view in group:
            same = (tensor.dtype, view.shape) == (place.dtype, tuple(place.shape))
            tensor.data = place if same else place.view(-1).view(tensor.dtype).view(view.shape)
            view.address = place.data_ptr()
        _bring_bases([tensor for tensor, _ in group], place)


def _move_back(groups: Sequence[Sequence[tuple[Tensor, View]]]) -> None:
    for group in groups:
        _move(group, group[0][0].detach().new_empty(group[0][1].shape))


def _bring_bases(moved: Sequence[Tensor], place: Tensor) -> None:
    """What the moved ones are views of goes along: that is what others write to, and look at."""
    given = {id(tensor) for tensor in moved}
    for base in {id(tensor._base): tensor._base for tensor in moved if tensor._base is not None}.values():
        if id(base) not in given:
            begin = place.storage_offset() * place.element_size() // base.element_size() + base.storage_offset()
            base.data = base.new_empty(0).set_(place.untyped_storage(), begin, base.shape, base.stride())


def can_be_shared(tensor: Tensor, view: View, given: Mapping[int, int]) -> bool:
    """Whether `share` leaves a CPU tensor where it is, or may move it: with all of `given`, which are `sharers`."""
    if view.nbytes == 0 or _containing(view.address, view.nbytes) is not None:
        return True
    return not _why_immovable(tensor, view) and _owners(tensor) <= given[view.address]


def sharers(tensors: Sequence[tuple[Tensor, View]]) -> dict[int, int]:
    """Where a storage of torch's begins on the CPU -> how many of these tensors, and of those they are views of, have it."""
    inside: dict[int, set[int]] = {}
    for tensor, view in tensors:
        if view.torch and view.device == "cpu":
            ids = inside.setdefault(view.tensor.untyped_storage().data_ptr(), set())
            ids.add(id(tensor))
            if tensor._base is not None:
                ids.add(id(tensor._base))
    return {address: len(ids) for address, ids in inside.items()}


_NOT_ALONE = (
    "another tensor lies in the same memory (state_dict(), detach() and .data give such a pair), and would be left "
    "behind there"
)


def _owners(tensor: Tensor) -> int:
    """How many tensors have its storage, itself included; 1 where this torch does not tell."""
    torch = sys.modules["torch"]
    if not hasattr(torch._C, "_storage_Use_Count"):
        return 1
    return _storage_uses(tensor) - _uses_by_one(torch) + 1


@functools.cache
def _uses_by_one(torch: Any) -> int:
    return _storage_uses(torch.empty(1))


def _storage_uses(tensor: Tensor) -> int:
    storage = tensor.untyped_storage()
    return int(sys.modules["torch"]._C._storage_Use_Count(storage._cdata))


def _why_immovable(tensor: Tensor, view: View) -> str:
    if not view.torch:
        return "is a numpy array in private memory"
    if not view.contiguous:
        return "is not contiguous"
    if hasattr(tensor, "placements"):
        return "is a DTensor"
    storage = tensor.untyped_storage()
    if storage.nbytes() != view.nbytes or storage.is_shared():
        return "shares its storage with other tensors or processes"
    return ""


# ---- handles


class Handles:
    """The allocations behind a set of tensors, each once, as messages for an agent."""

    def __init__(self, driver: Driver | None = None) -> None:
        self._driver = driver
        self._bases: list[int] = []  # sorted; _ends and _index beside it
        self._ends: list[int] = []
        self._index: list[int] = []
        self._messages: list[Any] = []
        self._held: list[Any] = []
        self._uuid: dict[str, str] = {}  # device UUID -> first tensor seen there

    @property
    def uuid(self) -> str:
        """Of the one device that everything lies on; "cpu"."""
        return next(iter(self._uuid), "cpu")

    def let_go(self) -> None:
        """Of the memory, which is not lent after all."""
        self._held.clear()

    def messages(self) -> list[Any]:
        """MemoryHandle messages; `locate` indexes them."""
        return self._messages

    def locate(self, name: str, view: View) -> tuple[int, int]:
        """(index of the handle, offset in bytes). MemoryNotShareable and WrongDevice name the tensor."""
        if view.nbytes == 0:
            return 0, 0
        address = view.address
        i = bisect.bisect_right(self._bases, address) - 1
        if i < 0 or address + view.nbytes > self._ends[i]:
            i = self._add(name, view)
        return self._index[i], address - self._bases[i]

    def _add(self, name: str, view: View) -> int:
        if view.device == "cpu":
            base, size, message = self._shared(name, view)
            where = "cpu"
        else:
            base, size, where, message = self._ipc(name, view)
        others = [device for device in self._uuid if device != where]
        if others:
            raise WrongDevice(
                f"'{name}' lies on {where}, '{self._uuid[others[0]]}' on {others[0]}",
                names=[name, self._uuid[others[0]]],
            )
        self._uuid.setdefault(where, name)
        i = bisect.bisect_right(self._bases, base)
        self._bases.insert(i, base)
        self._ends.insert(i, base + size)
        self._index.insert(i, len(self._messages))
        self._messages.append(message)
        return i

    def _shared(self, name: str, view: View) -> tuple[int, int, Any]:
        buffer = _containing(view.address, view.nbytes)
        if buffer is None:
            raise MemoryNotShareable(
                f"'{name}' lies in private memory",
                names=[name],
                next_step="move it with wsync.share([...]), or register with copy='if_needed'",
            )
        self._held.append(buffer)
        shared = _wire.message("SharedMemory")(name=buffer.name, size_bytes=buffer.nbytes)
        return buffer.address, buffer.nbytes, _wire.message("MemoryHandle")(shared_memory=shared)

    def _ipc(self, name: str, view: View) -> tuple[int, int, str, Any]:
        if not view.device.startswith("cuda"):
            raise WrongDevice(f"'{name}' lies on {view.device}; agents are for cpu and cuda", names=[name])
        driver = self._driver or cuda_driver()
        if not driver.exportable(view.address):
            raise no_handle(name, view.address)
        base, size = driver.allocation(view.address)
        uuid = driver.uuid(view.address)
        ipc = _wire.message("CudaIpc")(handle=driver.export(base), device_uuid=uuid, size_bytes=size)
        self._held.append(view.tensor)
        return base, size, uuid, _wire.message("MemoryHandle")(cuda_ipc=ipc)


def synchronize(devices: set[str]) -> None:
    """Waits until the GPU has done what was asked of it so far on these devices; nothing for "cpu"."""
    cuda = [device for device in devices if device != "cpu"]
    if cuda:
        torch = sys.modules["torch"]
        for device in cuda:
            torch.cuda.synchronize(device)
