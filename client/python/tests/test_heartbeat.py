"""How a silent agent is told from a slow one and from one that is not asked at all, with the clock of a test."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from conftest import eventually

from wsync import heartbeat
from wsync.heartbeat import Heartbeat


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(heartbeat, "_PERIOD", 0.01)
    monkeypatch.setattr(heartbeat, "_PATIENCE", 0.01)
    yield


class Agent:
    def __init__(self, answers: str) -> None:
        self.answers = answers  # "y" or "n", or "l" for none that we heard of late; the last one goes on for ever
        self.asked = 0

    def __call__(self, timeout: float) -> bool:
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        if answer == "l":
            time.sleep(timeout + heartbeat._LATE + 0.01)
        return answer == "y"


@pytest.mark.parametrize(("answers", "questions"), [("n", 2), ("yyn", 4), ("nyn", 4), ("lnlyn", 6)])
def test_two_misses_in_a_row_make_an_agent_silent(
    answers: str, questions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "_LATE", 0.1)
    agent = Agent(answers)
    told = threading.Event()
    beat = Heartbeat(agent)
    beat.watch(lambda: (told.set(), beat.close())[0])
    assert told.wait(30)
    assert agent.asked == questions


def test_every_open_call_is_told_once_and_no_other() -> None:
    told: list[str] = []
    gate = threading.Event()

    def ask(timeout: float) -> bool:
        gate.wait(30)
        return False

    beat = Heartbeat(ask)
    watches = [beat.watch(lambda name=name: told.append(name)) for name in "abc"]  # type: ignore[misc]
    watches[1].end()
    gate.set()
    eventually(lambda: sorted(told) == ["a", "c"], "both calls are told")
    beat.watch(lambda: told.append("d"))
    eventually(lambda: told[2:] == ["d"], "the next one is told, too")
    for watch in watches:
        watch.end()  # also of a call that was told
    beat.close()


def test_nobody_is_asked_while_no_call_is_open() -> None:
    agent = Agent("y")
    beat = Heartbeat(agent)
    watch = beat.watch(lambda: None)
    eventually(lambda: agent.asked > 2, "it asks while a call is open")
    watch.end()
    time.sleep(0.05)  # the question that was being asked
    asked = agent.asked
    time.sleep(0.1)
    assert agent.asked == asked
    beat.close()
