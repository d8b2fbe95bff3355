"""Errors of this package across an engine's worker processes, which hand on only the text of an exception: as plain data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from .. import errors
from ..errors import AgentError, WsyncError

_ERROR, _VALUE = "wsync_error", "value"
_KINDS = {kind.__name__: kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, WsyncError)}


def answer(call: Callable[[], Any]) -> dict[str, Any]:
    """In a worker: what `call` returns, or the WsyncError it raises, for `values`. Other exceptions pass.

    Both as JSON has it: numbers, strings, lists and dicts.
    """
    try:
        return {_VALUE: call()}
    except WsyncError as error:
        plain = {name: value for name, value in vars(error).items() if isinstance(value, (str, int, float))}
        record = {**plain, "kind": type(error).__name__, "message": str(error), "names": list(error.names)}
        return {_ERROR: record}


def values(answers: Iterable[Any]) -> list[Any]:
    """On the caller's side: what the workers' calls returned, in order; else the first one's error is raised, as it was there.

    It says which worker's it is, and how many others failed. One of a kind that is not known here is an AgentError.
    """
    told = list(answers)
    failed = [(i, one[_ERROR]) for i, one in enumerate(told) if _ERROR in one]
    if not failed:
        return [one[_VALUE] for one in told]
    worker, record = failed[0]
    others = f", {len(failed)} of them failed" if len(failed) > 1 else ""
    where = f"worker {worker} of {len(told)}{others}: " if len(told) > 1 else ""
    raise _error(record, where)


def _error(record: dict[str, Any], where: str) -> WsyncError:
    kind = _KINDS.get(record["kind"], AgentError)
    error = kind.__new__(kind)
    error.args = (where + record["message"],)
    known = {name: value for name, value in record.items() if name not in ("kind", "message", "names", "text")}
    vars(error).update(known, names=tuple(record["names"]), text=where + record["text"])
    return error
