"""Whether weights that an agent reads are written meanwhile: what it has then is a mixture of two states.

torch counts the writes to a tensor (`_version`), for all that are views of the same; fused optimizers write without counting,
so steps of torch's optimizers are listened to as well. Nobody counts what is written through `.data`, by kernels of one's
own, by a replayed CUDA graph, by numpy, or to tensors made in inference mode.
"""

from __future__ import annotations

import bisect
import sys
import threading
import weakref
from collections.abc import Sequence
from typing import Any

from .tensors import Tensor, is_torch, plain


class Watched:
    """The tensors of one registration that an agent reads where they lie. Immutable."""

    def __init__(self, tensors: Sequence[tuple[str, Tensor]]) -> None:
        counted: dict[int, tuple[str, Tensor]] = {}
        for name, tensor in tensors:
            if is_torch(tensor):
                for one in (tensor, plain(tensor, name)):  # a DTensor counts for itself
                    if _is_counted(one):
                        counted.setdefault(id(one), (name, one))
        self.names = [name for name, _ in counted.values()]
        self._tensors = [tensor for _, tensor in counted.values()]
        if self._tensors:
            _listen()

    def counts(self) -> list[int]:
        """How often each was written so far. 0.1 us a tensor."""
        return list(map(sys.modules["torch"].Tensor._version.__get__, self._tensors)) if self._tensors else []

    def within(self, written: list[tuple[int, int]]) -> list[str]:
        """Names of those that lie in one of these ranges of addresses, which are sorted and apart."""
        begins = [begin for begin, _ in written]
        found = []
        for name, tensor in zip(self.names, self._tensors, strict=True):
            begin = plain(tensor).data_ptr()
            before = bisect.bisect_left(begins, begin + tensor.nbytes) - 1
            if before >= 0 and written[before][1] > begin:
                found.append(name)
        return found


def _is_counted(tensor: Tensor) -> bool:
    try:
        return int(tensor._version) >= 0
    except RuntimeError:  # made in inference mode; is_inference() forgets that when `.data` is set
        return False


class Reading:
    """From when a version is published until its weights were read. Thread-safe."""

    def __init__(self, watched: Watched) -> None:
        self._watched: Watched | None = watched
        self._since = watched.counts()
        self._stepped: list[str] = []
        with _lock:
            _readings.add(self)

    def changed(self) -> list[str]:
        """Names of the tensors that were written since; [] once `stop` was called."""
        watched = self._watched
        if watched is None:
            return []
        now = watched.counts()
        if now == self._since and not self._stepped:
            return []
        names = [name for name, a, b in zip(watched.names, now, self._since, strict=True) if a != b]
        return list(dict.fromkeys([*names, *self._stepped]))

    def stepping(self, written: list[tuple[int, int]]) -> None:
        """An optimizer begins to write there."""
        watched = self._watched
        if watched is not None:
            self._stepped = self._stepped + watched.within(written)

    def stop(self) -> None:
        """What is written from now on is nobody's concern."""
        self._watched = None
        with _lock:
            _readings.discard(self)


_lock = threading.Lock()
_readings: weakref.WeakSet[Reading] = weakref.WeakSet()
_listens = False


def _listen() -> None:
    global _listens
    with _lock:
        if _listens:
            return
        _listens = True
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    register_optimizer_step_pre_hook(_before_step)  # for good: taking it out again is not safe while others step


def _before_step(optimizer: Any, *_: object) -> None:
    with _lock:
        readings = list(_readings)
    if not readings:
        return
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    written = sorted(_range(parameter) for parameter in parameters if parameter.grad is not None)
    for reading in readings:
        reading.stepping(written)


def _range(parameter: Tensor) -> tuple[int, int]:
    local = parameter.to_local() if hasattr(parameter, "placements") else parameter
    try:
        return local.data_ptr(), local.data_ptr() + local.nbytes
    except RuntimeError:  # it has no memory of its own, so it is none of ours
        return 0, 0
