"""Whether a torch module still holds the tensors that were registered from it: what it replaced stays alive, and stale."""

from __future__ import annotations

import gc
import operator
from collections.abc import Iterator
from typing import Any

from .tensors import Tensor


class Held:
    """Asked per version, so it looks at nothing but the dicts that held a tensor, or a module with tensors, before.

    Only when one of these holds something else now the module is gone through. A module that was wrapped meanwhile
    (torch.compile, activation checkpointing) holds the same tensors elsewhere, which is no change. What is given another
    dict (`module._parameters = {...}`, which nothing in torch does to a module in use) is not noticed.
    """

    def __init__(self, module: Any, names: dict[int, str]) -> None:
        """`names`: what the tensors are registered as, by id. Who asks keeps the tensors alive, this the module."""
        self._module = module
        self._names = names
        self._look()

    def _look(self) -> None:
        self._paths: dict[str, int] = {}
        exact: dict[int, dict[str, Any]] = {}  # by id: a module may be at several paths
        plain: dict[int, dict[str, Any]] = {}
        for path, holder in self._module.named_modules(remove_duplicate=False):
            for place in _places(holder):
                here = {f"{path}.{key}": id(value) for key, value in place.items() if id(value) in self._names}
                if here:
                    self._paths.update(here)
                    exact[id(place)] = place
            children = holder._modules
            if isinstance(children, dict) and children:
                (plain if all(map(_equals_itself_only, children.values())) else exact)[id(children)] = children
        self._exact, self._plain = tuple(exact.values()), tuple(plain.values())
        self._were_exact, self._were_plain = gc.get_referents(*self._exact), gc.get_referents(*self._plain)

    def _same(self) -> bool:
        """`get_referents` tells what many dicts hold sooner than asking each.

        `==` of lists passes over what is the same without a look at it. Tensors must not be compared so.
        """
        exact = gc.get_referents(*self._exact)
        return (
            len(exact) == len(self._were_exact)
            and all(map(operator.is_, exact, self._were_exact))
            and gc.get_referents(*self._plain) == self._were_plain
        )

    def replaced(self) -> list[str]:
        """Names of tensors that the module does not hold any more, or holds under some of their names only."""
        if self._same():
            return []
        now = dict(_tensors(self._module))
        there = {id(tensor) for tensor in now.values()}
        gone = [
            self._names[was]
            for path, was in self._paths.items()
            if was not in there or (path in now and id(now[path]) != was)
        ]
        if not gone:
            self._look()
        return list(dict.fromkeys(gone))


def _equals_itself_only(module: Any) -> bool:
    kind: Any = type(module)
    return kind.__eq__ is object.__eq__


def _places(holder: Any) -> list[dict[str, Tensor]]:
    return [place for place in (holder._parameters, holder._buffers) if isinstance(place, dict)]  # not so of TorchScript


def _tensors(module: Any) -> Iterator[tuple[str, Tensor]]:
    for path, holder in module.named_modules(remove_duplicate=False):
        for place in _places(holder):
            yield from ((f"{path}.{key}", tensor) for key, tensor in place.items())
