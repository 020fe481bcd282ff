"""When is a series complete? The earliest proof wins, and every decision says why."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dicomnode.assemble.completeness import Decision, Signals, Wait, decide, quiet_period
from dicomnode.config import Assemble
from dicomnode.domain import AssociationEnd, Completion

SETTINGS = Assemble()
OPEN = Signals(
    instances=20, quiet_for_s=0.0, open_for_s=1.0, expected=None, asking=False, announced=None, last_end=None,
    associations=1,
    sender_connected=True, regular=True, geometry="20 planes 5 mm apart", holes=False, sender_reopened=0,
)  # fmt: skip
RELEASED = replace(OPEN, last_end=AssociationEnd.RELEASED, sender_connected=False)


def verdict(signals: Signals) -> Decision | Wait:
    return decide(signals, SETTINGS, 10.0, "default")


def test_the_archives_count_proves_it_while_the_association_is_still_open() -> None:
    decision = verdict(replace(OPEN, expected=20))
    assert isinstance(decision, Decision) and decision.completion is Completion.COUNTED
    assert not decision.incomplete and "20" in decision.reason


def test_released_and_regular_fires_at_once() -> None:
    decision = verdict(RELEASED)
    assert isinstance(decision, Decision) and decision.completion is Completion.REGULAR


@pytest.mark.parametrize(
    "change",
    [
        {"sender_connected": True},
        {"last_end": AssociationEnd.ABORTED},
        {"regular": False, "geometry": "slice missing at 35 mm"},
        {"associations": 4},
        {"sender_reopened": 1},
        {"instances": 2},
        {"announced": 40},
        {"expected": 40},
        {"asking": True},
    ],
)
def test_what_takes_the_proof_away(change: dict[str, object]) -> None:
    assert isinstance(verdict(replace(RELEASED, **change)), Wait)  # type: ignore[arg-type]


def test_quiet_decides_when_nothing_proves_it() -> None:
    unproven = replace(OPEN, sender_connected=False, last_end=AssociationEnd.RELEASED, regular=False, geometry="uneven")
    assert isinstance(verdict(replace(unproven, quiet_for_s=9.9)), Wait)
    decision = verdict(replace(unproven, quiet_for_s=10.0))
    assert isinstance(decision, Decision) and decision.completion is Completion.QUIET and not decision.incomplete


def test_an_aborted_association_waits_longer_and_marks_the_series_incomplete() -> None:
    aborted = replace(OPEN, sender_connected=False, last_end=AssociationEnd.ABORTED)
    assert isinstance(verdict(replace(aborted, quiet_for_s=59.0)), Wait)
    decision = verdict(replace(aborted, quiet_for_s=60.0))
    assert isinstance(decision, Decision) and decision.incomplete


def test_a_hole_in_the_stack_marks_the_series_incomplete() -> None:
    holed = replace(RELEASED, regular=False, holes=True, geometry="1 of 21 planes missing", quiet_for_s=11)
    decision = verdict(holed)
    assert isinstance(decision, Decision) and decision.completion is Completion.QUIET and decision.incomplete


def test_fewer_than_counted_waits_for_the_cap_and_is_marked() -> None:
    short = replace(RELEASED, expected=21, quiet_for_s=500.0, open_for_s=599.0)
    assert isinstance(verdict(short), Wait)
    decision = verdict(replace(short, open_for_s=600.0))
    assert isinstance(decision, Decision) and decision.completion is Completion.CAP and decision.incomplete
    assert "20 of 21" in decision.reason


def test_the_quiet_period_is_learned_from_the_senders_own_pauses() -> None:
    assert quiet_period(SETTINGS, None, [1.0] * 4) == (10.0, "default; 4 of 5 series known")
    assert quiet_period(SETTINGS, None, [2.0] * 30)[0] == 6.0
    assert quiet_period(SETTINGS, None, [0.1] * 30)[0] == SETTINGS.quiet_min_s
    assert quiet_period(SETTINGS, None, [100.0] * 30)[0] == SETTINGS.quiet_max_s
    assert quiet_period(SETTINGS, 4.0, [100.0] * 30) == (4.0, "configured for this source")
