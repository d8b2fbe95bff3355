"""Handles: which allocation, which offset, once each; what cannot be lent. The CUDA driver is scripted here."""

from __future__ import annotations

import gc
import math
import os
import sys
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest

import wsync
from wsync.catalog import Dtype
from wsync.memory import Handles
from wsync.tensors import View, view_of


def named(name: str) -> bool:
    return os.path.exists(f"/dev/shm{name}")


def test_a_shared_buffer_has_a_name_for_as_long_as_something_is_made_of_it() -> None:
    buffer = wsync.SharedBuffer(4096)
    name = buffer.name
    array = buffer.array(128, np.float32, (8, 4))
    array[...] = 7
    assert named(name) and os.stat(f"/dev/shm{name}").st_mode & 0o777 == 0o600
    del buffer
    gc.collect()
    assert named(name) and (array == 7).all()
    del array
    gc.collect()
    assert not named(name)


def test_a_forked_child_does_not_take_the_name_away() -> None:
    buffer = wsync.SharedBuffer(4096)
    child = os.fork()
    if child == 0:
        name = buffer.name
        del buffer
        gc.collect()
        os._exit(0 if named(name) else 1)
    _, status = os.waitpid(child, 0)
    assert status == 0 and named(buffer.name)


def test_tensors_of_one_buffer_are_one_handle_with_offsets() -> None:
    one, two = wsync.SharedBuffer(1 << 16), wsync.SharedBuffer(1 << 12)
    views = {
        "a": view_of(one.array(0, np.float32, (16,))),
        "b": view_of(one.array(1024, np.float32, (16, 4))),
        "c": view_of(two.array(64, np.uint8, (10,))),
        "empty": view_of(np.zeros((0, 4), np.float32)),
    }
    handles = Handles()
    assert [handles.locate(name, view) for name, view in views.items()] == [(0, 0), (0, 1024), (1, 64), (0, 0)]
    assert [message.shared_memory.name for message in handles.messages()] == [one.name, two.name]
    assert handles.messages()[0].shared_memory.size_bytes == 1 << 16


def test_row_pitch_is_known_where_rows_are_evenly_spaced() -> None:
    base = np.zeros((4, 6, 8), np.float32)
    assert view_of(base).row_pitch == 32
    assert view_of(base[:, :, :3]).row_pitch == 32
    assert view_of(base[1]).row_pitch == 32
    assert view_of(base[:, 1]).row_pitch == 6 * 32
    assert view_of(base[:, :2]).row_pitch is None  # two rows, then a gap
    assert view_of(base[:, :, ::2]).row_pitch is None
    assert view_of(base.transpose(0, 2, 1)).row_pitch is None
    assert view_of(base[0, 0]).row_pitch == 32
    assert view_of(base[0, 0, ::2]).row_pitch is None
    assert view_of(np.float32(1).reshape(())).row_pitch == 4


# ---- CUDA

GIB = 1 << 30


@dataclass
class ScriptedDriver:
    """Two devices; segments of the caching allocator on each; 9 GiB and up is an expandable segment."""

    exported: list[int] = field(default_factory=list)

    def allocation(self, address: int) -> tuple[int, int]:
        return address // GIB * GIB, GIB

    def exportable(self, address: int) -> bool:
        return address < 9 * GIB

    def export(self, base: int) -> bytes:
        self.exported.append(base)
        return base.to_bytes(64, "little")

    def uuid(self, address: int) -> str:
        return "GPU-b" if 5 * GIB <= address < 9 * GIB else "GPU-a"


def on_gpu(address: int, shape: tuple[int, ...] = (4, 4), device: str = "cuda:0") -> View:
    return View(Dtype.BF16, shape, address, device, True, 8, object(), 2 * math.prod(shape))


def test_tensors_of_one_cuda_allocation_are_exported_once() -> None:
    driver = ScriptedDriver()
    handles = Handles(driver)
    places = [handles.locate(str(i), on_gpu(address)) for i, address in enumerate((GIB + 512, 3 * GIB, GIB, 2 * GIB - 32))]
    assert places == [(0, 512), (1, 0), (0, 0), (0, GIB - 32)]
    assert driver.exported == [GIB, 3 * GIB]
    ipc = [message.cuda_ipc for message in handles.messages()]
    assert [(i.device_uuid, i.size_bytes, len(i.handle)) for i in ipc] == [("GPU-a", GIB, 64)] * 2


def played_torch(backend: str = "native", **segment: object) -> SimpleNamespace:
    """What is asked of torch's allocator, which has one segment."""
    segments = [{"address": 9 * GIB, "total_size": GIB, **segment}]
    memory = SimpleNamespace(get_allocator_backend=lambda: backend, memory_snapshot=lambda: segments)
    return SimpleNamespace(cuda=SimpleNamespace(memory=memory))


@pytest.mark.parametrize(
    ("torch", "cause", "text"),
    [
        (played_torch(is_expandable=True), "expandable_segments", "expandable_segments:True"),
        (played_torch(backend="cudaMallocAsync"), "async_allocator", "backend:cudaMallocAsync"),
        (played_torch(is_expandable=False, segment_pool_id=(1, 0)), "memory_pool", "sleep mode"),
        (played_torch(is_expandable=False, segment_pool_id=(0, 0)), "", "plain cudaMalloc"),
        (played_torch(address=GIB), "", "plain cudaMalloc"),
        (None, "", "plain cudaMalloc"),
    ],
)
def test_memory_without_a_handle_is_refused_with_the_setting_that_made_it(
    monkeypatch: pytest.MonkeyPatch, torch: SimpleNamespace | None, cause: str, text: str
) -> None:
    monkeypatch.setitem(sys.modules, "torch", torch)  # type: ignore[arg-type]
    with pytest.raises(wsync.MemoryNotShareable, match="no CUDA IPC handle") as error:
        Handles(ScriptedDriver()).locate("w", on_gpu(9 * GIB))
    assert error.value.names == ("w",) and error.value.cause == cause and text in error.value.next_step
    assert not any(other in error.value.next_step for other in ("sleep mode", "backend:cudaMallocAsync", "segments:True") if other not in text)


def test_tensors_on_two_devices_are_the_wrong_device_and_both_are_named() -> None:
    handles = Handles(ScriptedDriver())
    handles.locate("here", on_gpu(GIB))
    with pytest.raises(wsync.WrongDevice, match="GPU-b") as error:
        handles.locate("there", on_gpu(5 * GIB, device="cuda:1"))
    assert error.value.names == ("there", "here")
    with pytest.raises(wsync.WrongDevice):
        handles.locate("host", view_of(wsync.SharedBuffer(4096).array(0, np.float32, (4,))))
    with pytest.raises(wsync.WrongDevice, match="mps"):
        handles.locate("apple", on_gpu(GIB + (1 << 33), device="mps:0"))


def test_a_missing_driver_is_said() -> None:
    if os.path.exists("/dev/nvidia0"):
        pytest.skip("this machine has a driver")
    with pytest.raises(wsync.MemoryNotShareable):
        wsync.cuda_driver.CudaDriver()
