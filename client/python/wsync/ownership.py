"""What belongs to the process that made it: a connection with threads of its own, and memory that is lent to an agent."""

from __future__ import annotations

from typing import Any, NoReturn, SupportsIndex

from .errors import WrongProcess


class OfOneProcess:
    """Refuses to be pickled or copied. That it is not used after a fork is the connection's to see."""

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        kind: Any = type(self)
        raise WrongProcess(f"a {kind.__module__}.{kind.__qualname__} cannot be pickled or copied: it is of one process")
