"""Whether a torch module still holds the tensors that were registered from it: what it replaced stays alive, and stale."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Iterator
from typing import Any

from .tensors import Tensor


class Held:
    """Asked per version, so it looks at nothing but the places that held a tensor, or a module with tensors, before.

    Only when one of these changed the module is gone through. A module that was wrapped meanwhile (torch.compile,
    activation checkpointing) holds the same tensors elsewhere, which is no change.
    """

    def __init__(self, module: Any, names: dict[int, str]) -> None:
        """`names`: what the tensors are registered as, by id. Who asks keeps the tensors alive."""
        self._module = weakref.ref(module)
        self._names = names
        self._look(module)

    def _look(self, module: Any) -> None:
        self._places: list[dict[str, Any]] = []
        self._keys: list[str] = []
        self._were: list[Any] = []
        self._paths: dict[str, int] = {}
        for path, holder in module.named_modules(remove_duplicate=False):
            for place in (holder._parameters, holder._buffers, holder._modules):
                for key, value in place.items() if isinstance(place, dict) else ():  # not so of TorchScript
                    if id(value) in self._names:
                        self._paths[f"{path}.{key}"] = id(value)
                    elif place is not holder._modules or value is None:
                        continue
                    self._places.append(place)
                    self._keys.append(key)
                    self._were.append(value)

    def replaced(self) -> list[str]:
        """Names of tensors that the module does not hold any more, or holds under some of their names only."""
        if all(map(operator.is_, map(dict.get, self._places, self._keys), self._were)):
            return []
        module = self._module()
        if module is None:
            return []
        now = dict(_tensors(module))
        there = {id(tensor) for tensor in now.values()}
        gone = [
            self._names[was]
            for path, was in self._paths.items()
            if was not in there or (path in now and id(now[path]) != was)
        ]
        if not gone:
            self._look(module)
        return list(dict.fromkeys(gone))


def _tensors(module: Any) -> Iterator[tuple[str, Tensor]]:
    for path, holder in module.named_modules(remove_duplicate=False):
        for place in (holder._parameters, holder._buffers):
            yield from ((f"{path}.{key}", tensor) for key, tensor in place.items())
