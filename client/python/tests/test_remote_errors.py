"""Errors of workers, which engines hand on as text, arrive as they were raised."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Cluster, assert_helpful

import wsync
from wsync.engines import vllm
from wsync.engines.remote_errors import answer, values

KINDS = [kind for kind in vars(wsync.errors).values() if isinstance(kind, type) and issubclass(kind, wsync.WsyncError)]


def raises(error: BaseException) -> Callable[[], Any]:
    def call() -> Any:
        raise error

    return call


def carried(answers: list[Any]) -> list[Any]:
    """Through another process, as any engine may do it."""
    return json.loads(json.dumps(answers))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_arrives_with_its_type_names_and_next_step(kind: type[wsync.WsyncError]) -> None:
    if kind is wsync.StaleVersion:
        error: wsync.WsyncError = wsync.StaleVersion("old", next_version=7)
    else:
        error = kind("it broke", names=["a.weight", "b.weight"], next_step="do this")
    with pytest.raises(kind) as told:
        values(carried([answer(raises(error))]))
    assert type(told.value) is kind and str(told.value) == str(error)
    assert (told.value.names, told.value.next_step) == (error.names, error.next_step)
    for name in ("report", "cause", "next_version", "text"):
        assert getattr(told.value, name, "none") == getattr(error, name, "none")


def test_the_worker_is_named_and_the_others_are_counted() -> None:
    answers = [answer(lambda: 3), *[answer(raises(wsync.TornUpdate("parts of two")))] * 2]
    with pytest.raises(wsync.TornUpdate, match="worker 1 of 3, 2 of them failed: parts of two"):
        values(carried(answers))
    assert values(carried([answer(lambda: 3), answer(lambda: None)])) == [3, None]


def test_an_error_of_a_newer_worker_is_told_as_what_it_says() -> None:
    told = carried([answer(raises(wsync.TornUpdate("parts of two", names=["x"])))])
    told[0]["wsync_error"]["kind"] = "SomethingNew"
    with pytest.raises(wsync.AgentError, match="parts of two") as error:
        values(told)
    assert_helpful(error, "x")


def test_other_exceptions_pass_as_they_are() -> None:
    with pytest.raises(ZeroDivisionError):
        answer(lambda: 1 // 0)
    with pytest.raises(ValueError, match="none of wsync"):
        vllm.WorkerExtension().wsync_call("get_model")


class EngineProcess:
    """What vLLM's default engine makes of an exception: nothing but its text is left."""

    def __init__(self, worker: vllm.WorkerExtension) -> None:
        self.worker = worker

    def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[Any]:
        try:
            return carried([getattr(self.worker, method)(*args)])
        except Exception as error:
            raise Exception(f"Call to {method} method failed: {error}") from None


def test_vllms_own_process_hands_on_errors_as_they_were(cluster: Cluster) -> None:
    class Worker(vllm.WorkerExtension):
        rank = 0

        def get_model(self) -> Any:  # type: ignore[override]
            raise wsync.UnsupportedLayout("'layers.0' runs on Marlin", names=["layers.0"], next_step="use another")

    llm = EngineProcess(Worker())
    with pytest.raises(wsync.UnsupportedLayout, match="runs on Marlin") as error:
        vllm.attach(llm, cluster.socket("rollout-{rank}"))
    assert_helpful(error, "layers.0")
