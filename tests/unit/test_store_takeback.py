"""A study that turns out to carry two patients: what was told of it is taken back, once, from whom it was told to."""

from __future__ import annotations

from sqlalchemy import select

from dicomnode.store import notifications, revisions, schema
from dicomnode.store.notifications import Kind, State
from tests.peers.found import ABSENT, HEMORRHAGE, SUBDURAL, ended, finding, hooks
from tests.unit.test_store_notifications import BLEED, HOOKS, codes, kinds, rows, tell

TWO = hooks(
    triage={"kind": "webhook", "url": "https://x.example/", "secret_file": "/none"},
    engine={"kind": "hl7", "host": "127.0.0.1"},
)


def conflict(database, clock):
    with database.write() as connection:
        revisions.withhold_study(connection, "1.2", clock())


def test_a_positive_that_was_told_is_taken_back_for_the_same_job(database, clock):
    job_id = ended(database, HOOKS, BLEED, clock())
    (first,) = tell(database, clock)
    conflict(database, clock)
    (second,) = tell(database, clock)
    assert (second.kind, second.job_id, second.sequence) == (Kind.RETRACTION, job_id, 1)
    assert second.content["replaces"] == first.key and second.content["findings"] == []
    assert codes(second, "retracted") == [HEMORRHAGE[0], SUBDURAL[0]]
    assert {one["presence"] for one in second.content["retracted"]} == {"undetermined"}, "never absent"
    assert "several patient identities" in second.content["reason"]


def test_it_is_taken_back_once_however_often_the_conflict_is_seen(database, clock):
    ended(database, HOOKS, BLEED, clock())
    tell(database, clock)
    for _ in range(3):
        conflict(database, clock)
    assert kinds(database) == ["positive", "retraction"]


def test_everybody_who_was_told_hears_of_it(database, clock):
    ended(database, TWO, BLEED, clock())
    tell(database, clock, "triage")
    tell(database, clock, "engine")
    conflict(database, clock)
    assert [tell(database, clock, hook)[0].kind for hook in ("triage", "engine")] == [Kind.RETRACTION] * 2


def test_what_nobody_has_got_is_withdrawn_without_a_word(database, clock):
    ended(database, HOOKS, BLEED, clock())
    conflict(database, clock)
    assert tell(database, clock) == []
    assert [one.state for one in rows(database)] == [State.SUPPRESSED]


def test_what_somebody_may_have_got_is_not_tried_again_and_taken_back(database, clock):
    ended(database, HOOKS, BLEED, clock())
    with database.write() as connection:
        tried = notifications.claim(connection, "triage", clock())
        notifications.postpone(connection, tried, clock.now.replace(year=2027), "no answer", refused=False)
    conflict(database, clock)
    assert [one.kind for one in tell(database, clock)] == [Kind.RETRACTION]
    assert [one.state for one in rows(database)] == [State.DEAD, State.SENT]


def test_a_positive_in_flight_does_not_take_its_retraction_with_it(database, clock):
    """A lane that tries it a second time finds the conflict, and suppresses the positive alone."""
    ended(database, HOOKS, BLEED, clock())
    with database.write() as connection:
        for _ in range(2):
            tried = notifications.claim(connection, "triage", clock())
    conflict(database, clock)
    with database.write() as connection:
        notifications.suppress(connection, tried, clock(), "the study carries several patient identities")
    assert [one.kind for one in tell(database, clock)] == [Kind.RETRACTION]


def test_nothing_was_said_nothing_is_taken_back(database, clock):
    ended(database, HOOKS, [ABSENT], clock())
    conflict(database, clock)
    with database.read() as connection:
        assert connection.execute(select(schema.notification)).first() is None


def test_other_studies_are_not_touched(database, clock):
    ended(database, HOOKS, BLEED, clock())
    ended(database, HOOKS, BLEED, clock(), study="1.9", series="1.9.3")
    tell(database, clock)
    conflict(database, clock)
    assert [one.kind for one in rows(database, "1.9")] == [Kind.POSITIVE]


def test_once_it_is_settled_what_still_holds_is_said_again_as_a_correction(database, clock):
    ended(database, HOOKS, BLEED, clock())
    tell(database, clock)
    conflict(database, clock)
    tell(database, clock)
    ended(database, HOOKS, [finding()], clock(), revision=1)
    assert kinds(database) == ["positive", "retraction", "correction"], "never a second positive"


def test_a_correction_that_is_stopped_on_its_way_does_not_take_the_retraction_with_it(database, clock):
    """Somebody was told before it: what takes that back goes, although this correction never went anywhere."""
    ended(database, HOOKS, BLEED, clock())
    tell(database, clock)
    ended(database, HOOKS, [finding()], clock(), revision=1)
    with database.write() as connection:
        correction = notifications.claim(connection, "triage", clock())  # a lane has it in hand, and reads who it is
    assert correction.sequence == 1 and correction.attempt == 1
    conflict(database, clock)
    with database.write() as connection:
        notifications.suppress(connection, correction, clock(), "the study carries several patient identities")
    assert [one.kind for one in tell(database, clock)] == [Kind.RETRACTION]


def test_a_positive_whose_first_try_may_have_arrived_is_taken_back_although_the_second_was_stopped(database, clock):
    """The second identity came in between the tries: the lane saw it before routing did."""
    ended(database, HOOKS, BLEED, clock())
    with database.write() as connection:
        for _ in range(2):
            tried = notifications.claim(connection, "triage", clock())
        notifications.suppress(connection, tried, clock(), "the study carries several patient identities")
    conflict(database, clock)
    assert [one.kind for one in tell(database, clock)] == [Kind.RETRACTION]
