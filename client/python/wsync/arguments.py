"""Arguments that can never be right: named at once, by the call that was given them."""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any


def check_choice(argument: str, given: Any, choices: tuple[str, ...]) -> None:
    if given not in choices:
        raise ValueError(f"{argument}={given!r}: expected one of {', '.join(map(repr, choices))}")


def check_seconds(argument: str, given: Any) -> None:
    """A finite number, 0 or more."""
    if not isinstance(given, numbers.Real) or isinstance(given, bool):
        raise TypeError(f"{argument}={given!r}: expected seconds, got {type(given).__name__}")
    if not 0 <= float(given) < math.inf:
        raise ValueError(f"{argument}={given!r}: expected seconds, 0 or more; every call has a time limit")


def check_callable(argument: str, given: Any) -> None:
    if given is not None and not callable(given):
        raise TypeError(f"{argument}={given!r}: expected a function, got {type(given).__name__}")


def check_text(argument: str, given: Any) -> None:
    if not isinstance(given, str):
        raise TypeError(f"{argument}={given!r}: expected a str, got {type(given).__name__}")


def whole_number(argument: str, given: Any, least: int) -> int:
    try:
        number = operator.index(given)
    except TypeError:
        raise TypeError(f"{argument}={given!r}: expected an int, got {type(given).__name__}") from None
    if number < least:
        raise ValueError(f"{argument}={number}: expected {least} or more")
    return number
