"""Held results: nothing leaves before a person decides, everything once it is released, nothing ever if rejected."""

from __future__ import annotations

from datetime import datetime

import pytest
from sqlalchemy import insert, update

from dicomnode.domain import DeliveryState, JobState, SeriesState
from dicomnode.errors import IllegalMove
from dicomnode.store import deliveries, events, jobs, notifications, review, revisions, schema
from dicomnode.store.db import Database
from dicomnode.store.notifications import Kind
from tests.conftest import Clock
from tests.peers.found import finding, hooks
from tests.unit.test_housekeep import Site
from tests.unit.test_store_jobs import claim, enqueue, new, output, state

WHY = "the interval is wide"
HOOKS = hooks(triage={"kind": "webhook", "url": "https://x.example/", "secret_file": "/none"}).notify


def held(database: Database, at: datetime, *, revision: int = 0, findings: int = 0) -> jobs.Job:
    """A job of series 1.2 whose two objects wait for a person, as the dispatcher leaves it."""
    enqueue(database, new(f"held-{revision}", revision=revision), at=at)
    job = claim(database, at)
    assert job is not None
    with database.write() as connection:
        made = [output(job.id, 0), output(job.id, 1)]
        found = [finding()] * findings
        assert jobs.finish(connection, job, made, at, quality={}, notes=[], findings=found, hold=WHY)
    return look(database, job.id)


def look(database: Database, job_id: int) -> jobs.Job:
    with database.read() as connection:
        found = jobs.get(connection, job_id)
    assert found is not None
    return found


def deliveries_of(database: Database, job_id: int) -> list[DeliveryState]:
    with database.read() as connection:
        return [one.state for one in deliveries.of_job(connection, job_id)]


def test_a_held_job_keeps_its_objects_and_sends_nothing(database: Database, clock: Clock) -> None:
    job = held(database, clock())
    assert (job.state, job.hold, job.released_at) == (JobState.HELD, WHY, None)
    assert deliveries_of(database, job.id) == [DeliveryState.HELD] * 4
    clock.advance(1e6)
    with database.write() as connection:
        deliveries.put_back(connection, clock())
        assert deliveries.due(connection, "PACS", clock()) == [] and deliveries.next_due(connection, "PACS") is None
        assert deliveries.unsent(connection) == {}
        with pytest.raises(IllegalMove):
            jobs.retry(connection, job, clock())
        with pytest.raises(IllegalMove):
            jobs.cancel(connection, job, clock())


def test_released_it_is_sent_once_and_closes_like_any_other(database: Database, clock: Clock) -> None:
    job = held(database, clock())
    clock.advance(3600)
    with database.write() as connection:
        assert review.release(connection, job, "A. Reader", {}, clock()) == 4
    assert look(database, job.id).released_at == clock() and state(database, job.id) is JobState.STORED
    with database.write() as connection, pytest.raises(IllegalMove, match="only a held job"):
        review.release(connection, look(database, job.id), "B. Reader", {}, clock())
    with database.write() as connection:
        for destination in ("PACS", "OTHER"):
            for one in deliveries.start(connection, deliveries.due(connection, destination, clock()), clock()):
                deliveries.delivered(connection, one, clock(), 0)
    assert state(database, job.id) is JobState.CLOSED
    with database.read() as connection:
        [said] = [e.text for e in events.of(connection, job_id=job.id) if e.action == "result_released"]
    assert "by A. Reader" in said and WHY in said


def test_two_people_cannot_decide_the_same_job(database: Database, clock: Clock) -> None:
    job = held(database, clock())
    with database.write() as connection:
        review.reject(connection, job, "A", "", clock())
    with database.write() as connection, pytest.raises(IllegalMove, match="moved meanwhile"):
        review.release(connection, job, "B", {}, clock())  # B still looks at what was held
    assert deliveries_of(database, job.id) == [DeliveryState.CANCELLED] * 4


def test_rejected_it_is_never_sent_again(database: Database, clock: Clock) -> None:
    job = held(database, clock(), findings=1)
    with database.write() as connection:
        assert review.reject(connection, job, "A. Reader", "crosses the valve", clock()) == 4
    rejected = look(database, job.id)
    assert rejected.state is JobState.REJECTED and rejected.released_at is None
    for move in (jobs.retry, jobs.cancel):
        with database.write() as connection, pytest.raises(IllegalMove):
            move(connection, rejected, clock())
    with database.write() as connection, pytest.raises(IllegalMove, match="only a held job"):
        review.release(connection, rejected, "B", HOOKS, clock())
    clock.advance(1e6)
    with database.read() as connection:
        assert deliveries.due(connection, "PACS", clock()) == [] and notifications.of_study(connection, "1") == []
        [said] = [e.text for e in events.of(connection, job_id=job.id) if e.action == "result_rejected"]
    assert "by A. Reader: crosses the valve" in said


def test_a_crash_in_the_middle_of_a_decision_leaves_the_job_held(database: Database, clock: Clock) -> None:
    class Crash(Exception):
        pass

    job = held(database, clock(), findings=1)
    for decide in (
        lambda connection: review.release(connection, job, "A", HOOKS, clock()),
        lambda connection: review.reject(connection, job, "A", "", clock()),
    ):
        with pytest.raises(Crash), database.write() as connection:
            decide(connection)
            raise Crash
        assert state(database, job.id) is JobState.HELD
        assert deliveries_of(database, job.id) == [DeliveryState.HELD] * 4
    with database.read() as connection:
        assert notifications.of_study(connection, "1") == []


def test_a_newer_revision_takes_the_decision_away(database: Database, clock: Clock) -> None:
    job = held(database, clock())
    with database.write() as connection:
        assert revisions.supersede(connection, "1.2", 1, clock()) == [job.id]
    assert deliveries_of(database, job.id) == [DeliveryState.CANCELLED] * 4
    with database.write() as connection, pytest.raises(IllegalMove, match="superseded"):
        review.release(connection, look(database, job.id), "A", {}, clock())


def test_while_later_images_are_coming_nothing_is_released(database: Database, clock: Clock) -> None:
    job = held(database, clock())
    table = schema.series
    with database.write() as connection:
        connection.execute(
            insert(table).values(
                series_uid="1.2", study_uid="1", state=SeriesState.ROUTED.value, calling_ae="A",
                first_at=clock().timestamp(), last_at=clock().timestamp(),
            )
        )  # fmt: skip
    for coming in (SeriesState.RECEIVING, SeriesState.ASSEMBLING, SeriesState.COMPLETE):
        with database.write() as connection:
            connection.execute(update(table).values(state=coming.value))
        with database.write() as connection, pytest.raises(IllegalMove, match="newer ones"):
            review.release(connection, job, "A", {}, clock())
    with database.write() as connection:
        connection.execute(update(table).values(state=SeriesState.ROUTED.value))
        assert review.release(connection, job, "A", {}, clock()) == 4


def test_an_identity_conflict_withholds_held_results_too(database: Database, clock: Clock) -> None:
    job = held(database, clock())
    with database.write() as connection:
        revisions.withhold_study(connection, "1", clock())
    assert state(database, job.id) is JobState.SUPERSEDED
    assert deliveries_of(database, job.id) == [DeliveryState.CANCELLED] * 4


def test_findings_are_told_when_their_job_is_released_and_not_before(database: Database, clock: Clock) -> None:
    job = held(database, clock(), findings=1)
    with database.read() as connection:
        assert notifications.of_study(connection, "1") == []
    with database.write() as connection:
        review.release(connection, job, "A", HOOKS, clock())
        [told] = notifications.of_study(connection, "1")
    assert told.kind is Kind.POSITIVE and told.job_id == job.id


def test_what_nobody_released_changes_no_message(database: Database, clock: Clock) -> None:
    """An older revision told of a bleeding; the newer, that sees none, is held, and later superseded itself."""
    enqueue(database, new("r0"), at=clock())
    first = claim(database, clock())
    assert first is not None

    def messages() -> list[Kind]:
        with database.read() as connection:
            return [one.kind for one in notifications.of_study(connection, "1")]

    with database.write() as connection:
        jobs.finish(connection, first, [output(first.id)], clock(), quality={}, notes=[], findings=[finding()])
        notifications.announce(connection, first, [finding()], HOOKS, clock())
        [one] = notifications.of_study(connection, "1")
        notifications.claim(connection, "triage", clock())
        notifications.sent(connection, one, clock())
        revisions.supersede(connection, "1.2", 1, clock())
    second = held(database, clock(), revision=1)
    enqueue(database, new("other", series="1.3"), at=clock())
    other = claim(database, clock())
    assert other is not None
    with database.write() as connection:  # another series of the study ends meanwhile
        jobs.finish(connection, other, [], clock(), quality={}, notes=[], findings=[])
        notifications.announce(connection, other, [], HOOKS, clock())
    assert messages() == [Kind.POSITIVE], "the held result takes nothing back"
    with database.write() as connection:
        review.release(connection, second, "A", HOOKS, clock())
    assert messages() == [Kind.POSITIVE, Kind.RETRACTION]


def test_a_held_finding_that_was_superseded_is_never_told(database: Database, clock: Clock) -> None:
    held(database, clock(), findings=1)
    with database.write() as connection:
        revisions.supersede(connection, "1.2", 1, clock())
    enqueue(database, new("newer", revision=1), new("other", series="1.3"), at=clock())
    other = [claim(database, clock()), claim(database, clock())][1]
    assert other is not None and other.series_uid == "1.3", "the newer revision still runs"
    with database.write() as connection:
        jobs.finish(connection, other, [], clock(), quality={}, notes=[], findings=[])
        notifications.announce(connection, other, [], HOOKS, clock())
        assert notifications.of_study(connection, "1") == []


def test_a_job_without_deliveries_closes_when_it_is_released(database: Database, clock: Clock) -> None:
    enqueue(database, new("a"), at=clock())
    job = claim(database, clock())
    assert job is not None
    with database.write() as connection:
        jobs.finish(connection, job, [], clock(), quality={}, notes=[], hold=WHY)
        found = jobs.get(connection, job.id)
        assert found is not None and found.state is JobState.HELD
        assert review.release(connection, found, "A", {}, clock()) == 0
    assert state(database, job.id) is JobState.CLOSED


def test_retention_waits_for_the_decision(database: Database, clock: Clock, tmp_path) -> None:  # type: ignore[no-untyped-def]
    site = Site(database, clock, tmp_path / "data")
    waiting, refused = site.series(1, SeriesState.ROUTED), site.series(2, SeriesState.ROUTED)
    held_folder = site.job(1, JobState.HELD, DeliveryState.HELD)
    rejected_folder = site.job(2, JobState.REJECTED, DeliveryState.CANCELLED)
    clock.advance(365 * 86400)
    site.housekeeper.retain()
    assert waiting.exists() and held_folder.exists(), "nobody has decided"
    assert not refused.exists() and not rejected_folder.exists()
