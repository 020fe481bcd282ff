"""The thread of a service: what ends a round, what ends the thread, and what does not."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import pytest
from sqlalchemy.exc import DatabaseError, OperationalError

from dicomnode.rounds import Rounds, together

LONG_S = 30.0


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def unexpected(error: Exception) -> None:
    pytest.fail(f"not foreseen here: {error}")


def test_a_round_sleeps_as_long_as_it_says_and_waking_ends_that() -> None:
    seen: list[int] = []
    rounds = Rounds("service", lambda: seen.append(1) or LONG_S, unexpected)
    rounds.start()
    until(lambda: len(seen) == 1)
    rounds.wake()
    until(lambda: len(seen) == 2)
    begun = time.monotonic()
    rounds.stop()
    rounds.join(LONG_S)
    assert not rounds.alive and rounds.stopping and time.monotonic() - begun < LONG_S / 2


def test_waking_in_the_midst_of_a_round_is_not_lost() -> None:
    inside, go, seen = threading.Event(), threading.Event(), []

    def step() -> float:
        seen.append(1)
        inside.set()
        go.wait(LONG_S)
        return LONG_S

    rounds = Rounds("service", step, unexpected)
    rounds.start()
    inside.wait(LONG_S)
    rounds.wake()
    go.set()
    until(lambda: len(seen) == 2)
    rounds.stop()
    rounds.join(LONG_S)


def test_a_fault_is_told_put_right_and_not_the_end(caplog: pytest.LogCaptureFixture) -> None:
    faults: list[Exception] = []
    recovered: list[int] = []
    ended: list[str] = []
    todo: list[Exception] = [ValueError("bad item"), OperationalError("select", None, Exception("locked"))]

    def step() -> float:
        if todo:
            raise todo.pop(0)
        return LONG_S

    def recover() -> float:
        recovered.append(1)
        return 0.0

    rounds = Rounds(
        "service", step, faults.append, recover=recover, ended=lambda: ended.append(threading.current_thread().name)
    )
    with caplog.at_level(logging.ERROR):
        rounds.start()
        until(lambda: len(recovered) == 2)
        assert rounds.alive
        rounds.stop()
        rounds.join(LONG_S)
    assert [str(fault) for fault in faults] == ["bad item"]
    assert [record.action for record in caplog.records] == ["database_unavailable"]  # type: ignore[attr-defined]
    assert ended == ["service"]


def test_a_fault_while_putting_right_is_told_and_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dicomnode.rounds._RETRY_S", 0.001)
    faults: list[str] = []
    todo = [DatabaseError("update", None, Exception("disk image is malformed")), ValueError("bad row")]

    def step() -> float:
        raise ValueError("bad item")

    def recover() -> float:
        if todo:
            raise todo.pop(0)
        return LONG_S

    rounds = Rounds("service", step, lambda error: faults.append(type(error).__name__), recover=recover)
    rounds.start()
    until(lambda: len(faults) == 3 or not rounds.alive)
    assert rounds.alive, "a service whose thread is gone delivers nothing until somebody notices"
    assert faults == ["ValueError", "DatabaseError", "ValueError"], "and nothing else is done until it is put right"
    rounds.stop()
    rounds.join(LONG_S)


def test_waking_does_not_shorten_the_pause_after_a_fault_but_stopping_does() -> None:
    tries: list[int] = []

    def step() -> float:
        tries.append(1)
        raise ValueError

    rounds = Rounds("service", step, lambda error: None, recover=lambda: LONG_S)
    rounds.start()
    until(lambda: len(tries) == 1)
    for _ in range(20):
        rounds.wake()
        time.sleep(0.005)
    assert len(tries) == 1
    rounds.stop()
    rounds.join(LONG_S / 2)
    assert not rounds.alive


def test_what_never_began_is_joined_at_once() -> None:
    rounds = Rounds("service", lambda: 0.0, unexpected)
    rounds.stop()
    rounds.join(LONG_S)
    assert not rounds.alive


def test_what_waits_for_several_waits_for_all_at_once() -> None:
    meeting = threading.Barrier(3, timeout=LONG_S)
    met: list[int] = []
    together(*(lambda: met.append(meeting.wait()) for _ in range(3)))  # one after another, the first would wait in vain
    assert sorted(met) == [0, 1, 2]
