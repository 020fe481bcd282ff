"""The job table: claim order, fencing, retries, poison, supersession; and a model with crashes as actions."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from dicomnode.domain import Band, DeliveryState, Flavour, JobState, ObjectKind, Output
from dicomnode.errors import IllegalMove, StaleEpoch
from dicomnode.store import deliveries, events, jobs, leader, outputs, review, revisions
from dicomnode.store.db import Database, migrate, open_database
from dicomnode.store.jobs import MAX_LOST, Failure, NewJob, RetryPolicy
from tests.conftest import Clock

NOW = datetime(2026, 1, 2, tzinfo=UTC)
POLICY = RetryPolicy(max_attempts=3, backoff_s=10)
TRANSIENT = Failure(error_class="OutOfMemory", message="no memory", transient=True)
FINAL = Failure(error_class="ResultInvalid", message="NaN")


def new(key: str, *, band: Band = Band.ROUTINE, pipeline: str = "ct", series: str = "1.2", revision: int = 0) -> NewJob:
    return NewJob(
        key=key, series_uid=series, study_uid="1", revision=revision, rule="r", pipeline=pipeline, version="1",
        weights_digest="", config_digest="", class_name="a:B", options={}, send_to=["PACS", "OTHER"], inputs=["1.2.3"],
        incomplete=False, completion="counted", band=band,
    )  # fmt: skip


def output(job_id: int, number: int = 0) -> Output:
    return Output(
        role="denoised", index=number, sop_class_uid="1", sop_instance_uid=f"2.25.{job_id}{number}",
        series_uid="2.25.9",
        study_uid="1", path=Path("/x"), size=1, sha256="0",
    )  # fmt: skip


def claim(database: Database, at: datetime = NOW, epoch: int = 1, full: tuple[str, ...] = ()) -> jobs.Job | None:
    with database.write() as connection:
        return jobs.claim(connection, at, epoch, "slot", full)


def enqueue(database: Database, *many: NewJob, at: datetime = NOW) -> list[int | None]:
    with database.write() as connection:
        return [jobs.enqueue(connection, one, at) for one in many]


def state(database: Database, job_id: int) -> JobState:
    with database.read() as connection:
        found = jobs.get(connection, job_id)
    assert found is not None
    return found.state


def test_the_same_key_makes_one_job(database: Database) -> None:
    assert enqueue(database, new("a"), new("a"))[1] is None


def test_bands_are_never_crossed_and_a_full_pipeline_is_passed_over(database: Database, clock: Clock) -> None:
    enqueue(database, new("old", band=Band.BATCH), at=clock())
    clock.advance(1e6)
    enqueue(
        database, new("routine", pipeline="mr"), new("later", pipeline="mr"), new("stat", band=Band.STAT), at=clock()
    )
    order = []
    while (job := claim(database, clock(), full=("ct",) if order == ["stat"] else ())) is not None:
        order.append(job.key)
    assert order == ["stat", "routine", "later", "old"]


def test_a_stale_attempt_commits_nothing(database: Database, clock: Clock) -> None:
    enqueue(database, new("a"))
    first = claim(database)
    assert first is not None
    with database.write() as connection:
        jobs.release_orphans(connection, 2, clock())
    second = claim(database, clock(), epoch=2)
    assert second is not None and second.attempt == first.attempt, "a restart of the node is no failed attempt"
    with database.write() as connection:
        assert not jobs.finish(connection, first, [output(first.id)], clock(), quality={}, notes=[])
        assert outputs.of_job(connection, first.id) == []
        assert jobs.fail(connection, first, FINAL, POLICY, clock()) is None
        assert jobs.finish(connection, second, [output(first.id)], clock(), quality={"q": 1.0}, notes=["n"])
    with database.read() as connection:
        assert {d.destination for d in deliveries.of_job(connection, first.id)} == {"PACS", "OTHER"}


def test_result_and_outbox_commit_together(database: Database, clock: Clock) -> None:
    enqueue(database, new("a"))
    job = claim(database)
    assert job is not None

    class Crash(Exception):
        pass

    with pytest.raises(Crash), database.write() as connection:
        jobs.finish(connection, job, [output(job.id)], clock(), quality={}, notes=[])
        raise Crash
    assert state(database, job.id) is JobState.RUNNING
    with database.read() as connection:
        assert outputs.of_job(connection, job.id) == [] and deliveries.of_job(connection, job.id) == []


def test_a_transient_failure_waits_longer_each_time_and_then_is_dead(database: Database, clock: Clock) -> None:
    enqueue(database, new("a"), at=clock())
    pauses = []
    for _ in range(3):
        job = claim(database, clock())
        assert job is not None
        with database.write() as connection:
            after = jobs.fail(connection, job, TRANSIENT, POLICY, clock())
            again = jobs.get(connection, job.id)
        assert again is not None
        pauses.append((again.not_before - clock()).total_seconds())
        assert claim(database, clock()) is None, "the pause is kept"
        clock.advance(3600)
    assert after is JobState.DEAD and pauses[:2] == [10, 20]


def test_an_error_that_is_not_transient_is_dead_at_once_and_retry_runs_it_again(
    database: Database, clock: Clock
) -> None:
    enqueue(database, new("a"))
    job = claim(database)
    assert job is not None
    with database.write() as connection:
        assert jobs.fail(connection, job, FINAL, POLICY, clock()) is JobState.DEAD
        dead = jobs.get(connection, job.id)
        assert dead is not None and "NaN" in dead.error
        jobs.retry(connection, dead, clock())
    again = claim(database, clock())
    assert again is not None and again.attempt == 1


def test_a_job_that_kills_its_worker_too_often_is_poison(database: Database, clock: Clock) -> None:
    enqueue(database, new("a"))
    for number in range(MAX_LOST):
        job = claim(database, clock())
        assert job is not None and job.attempt == 1, "losing the worker is not the job's attempt"
        with database.write() as connection:
            after = jobs.lose(connection, job, "killed", clock())
        assert after is (JobState.DEAD if number == MAX_LOST - 1 else JobState.QUEUED)


def test_a_newer_revision_withholds_what_was_not_sent(database: Database, clock: Clock) -> None:
    enqueue(database, new("old"), new("waiting"))
    job = claim(database)
    assert job is not None
    with database.write() as connection:
        jobs.finish(connection, job, [output(job.id, 0), output(job.id, 1)], clock(), quality={}, notes=[])
        first, *_ = deliveries.due(connection, "PACS", clock())
        deliveries.start(connection, [first], clock())
        sending = next(d for d in deliveries.of_job(connection, job.id) if d.id == first.id)
        deliveries.delivered(connection, sending, clock(), 0)
        assert len(revisions.supersede(connection, "1.2", 1, clock())) == 2
        states = [d.state for d in deliveries.of_job(connection, job.id)]
        assert states.count(DeliveryState.DELIVERED) == 1 and states.count(DeliveryState.CANCELLED) == 3
        assert not deliveries.due(connection, "PACS", clock())
    assert claim(database) is None


def test_a_job_closes_when_its_last_object_was_accepted(database: Database, clock: Clock) -> None:
    enqueue(database, replace(new("a"), send_to=["PACS"]))
    job = claim(database)
    assert job is not None
    with database.write() as connection:
        jobs.finish(connection, job, [output(job.id, 0), output(job.id, 1)], clock(), quality={}, notes=[])
        for one in deliveries.due(connection, "PACS", clock()):
            assert state_in(connection, job.id) is JobState.STORED
            deliveries.start(connection, [one], clock())
            deliveries.delivered(connection, replace(one, state=DeliveryState.SENDING), clock(), 0)
    assert state(database, job.id) is JobState.CLOSED
    with database.read() as connection:
        assert [e.action for e in events.of(connection, job_id=job.id)][-1] == "job_closed"


def state_in(connection: object, job_id: int) -> JobState:
    found = jobs.get(connection, job_id)  # type: ignore[arg-type]
    assert found is not None
    return found.state


def test_an_illegal_move_is_refused(database: Database, clock: Clock) -> None:
    enqueue(database, new("a"))
    job = claim(database)
    assert job is not None
    with database.write() as connection:
        jobs.unsuitable(connection, job, "not a head", clock())
        done = jobs.get(connection, job.id)
        assert done is not None
        with pytest.raises(IllegalMove):
            jobs.cancel(connection, done, clock())


def test_one_leader_at_a_time_and_a_stale_one_is_told(database: Database, clock: Clock) -> None:
    lease = timedelta(seconds=15)
    with database.write() as connection:
        assert leader.acquire(connection, "a", clock(), lease) == 1
        assert leader.acquire(connection, "b", clock(), lease) is None
        clock.advance(16)
        assert leader.acquire(connection, "b", clock(), lease) == 2
        with pytest.raises(StaleEpoch):
            leader.renew(connection, 1, clock(), lease)


def test_a_job_without_objects_is_closed_at_once(database: Database, clock: Clock) -> None:
    enqueue(database, new("a"))
    job = claim(database)
    assert job is not None
    with database.write() as connection:
        assert jobs.finish(connection, job, [], clock(), quality={}, notes=[])
    assert state(database, job.id) is JobState.CLOSED


@pytest.mark.parametrize("end", ["restart", "lost", "failed", "forgotten"])
def test_a_cancel_is_kept_however_the_run_ends(database: Database, clock: Clock, end: str) -> None:
    enqueue(database, new("a"))
    job = claim(database)
    assert job is not None
    with database.write() as connection:
        jobs.cancel(connection, job, clock())
        if end == "restart":
            jobs.release_orphans(connection, 2, clock())
        elif end == "lost":
            jobs.lose(connection, job, "killed", clock())
        elif end == "failed":
            jobs.fail(connection, job, TRANSIENT, POLICY, clock())
        else:
            jobs.release_forgotten(connection, 1, [], clock())
    assert state(database, job.id) is JobState.CANCELLED


def test_a_run_that_no_slot_knows_goes_back_to_the_queue(database: Database, clock: Clock) -> None:
    enqueue(database, new("a"), new("b"))
    first, second = claim(database), claim(database)
    assert first is not None and second is not None
    with database.write() as connection:
        assert jobs.release_forgotten(connection, 1, [first.id], clock()) == [second.id]
    assert (state(database, first.id), state(database, second.id)) == (JobState.RUNNING, JobState.QUEUED)


def test_what_was_on_its_way_when_its_job_was_superseded_is_not_sent_again(database: Database, clock: Clock) -> None:
    enqueue(database, replace(new("old"), send_to=["PACS"]))
    job = claim(database)
    assert job is not None
    with database.write() as connection:
        jobs.finish(connection, job, [output(job.id, 0), output(job.id, 1)], clock(), quality={}, notes=[])
        batch = deliveries.start(connection, deliveries.due(connection, "PACS", clock()), clock())
        revisions.supersede(connection, "1.2", 1, clock())
        deliveries.hand_back(connection, batch[:1], clock())
        deliveries.put_back(connection, clock())
        assert not deliveries.due(connection, "PACS", clock())
        assert {d.state for d in deliveries.of_job(connection, job.id)} == {DeliveryState.CANCELLED}


def test_an_identity_conflict_withholds_what_is_on_its_way_for_good(database: Database, clock: Clock) -> None:
    enqueue(database, replace(new("a"), send_to=["PACS"]))
    job = claim(database)
    assert job is not None
    with database.write() as connection:
        jobs.finish(connection, job, [output(job.id, 0)], clock(), quality={}, notes=[])
        batch = deliveries.start(connection, deliveries.due(connection, "PACS", clock()), clock())
        revisions.withhold_study(connection, "1", clock())
        deliveries.hand_back(connection, batch, clock())
        assert not deliveries.due(connection, "PACS", clock())
        withheld = jobs.get(connection, job.id)
        assert withheld is not None
        with pytest.raises(IllegalMove):  # its objects exist under their UIDs: it cannot run a second time
            jobs.retry(connection, withheld, clock())


def test_a_withheld_study_is_neither_postponed_nor_sent_in_the_other_flavour(database: Database, clock: Clock) -> None:
    enqueue(database, replace(new("a"), send_to=["PACS"]))
    job = claim(database)
    assert job is not None
    flavours = [Flavour.LABELMAP, Flavour.ANY, Flavour.BINARY]
    made = [replace(output(job.id, number), flavour=flavour) for number, flavour in enumerate(flavours)]
    with database.write() as connection:
        jobs.finish(
            connection, job, made, clock(), quality={}, notes=[],
            takes=lambda _to, one: one.flavour is not Flavour.BINARY,
        )  # fmt: skip
        refused, other = deliveries.start(connection, deliveries.due(connection, "PACS", clock()), clock())
        revisions.withhold_study(connection, "1", clock())
        deliveries.fall_back(connection, refused, list(ObjectKind), clock(), "no label maps")
        deliveries.postpone(connection, other, clock(), timedelta(seconds=1), "out of resources")
        clock.advance(5)
        assert deliveries.due(connection, "PACS", clock()) == []
        assert {d.state for d in deliveries.of_job(connection, job.id)} == {DeliveryState.CANCELLED}


def test_what_waits_behind_a_postponed_object_of_its_study_is_not_due_before_it(
    database: Database, clock: Clock
) -> None:
    enqueue(database, replace(new("a"), send_to=["PACS"]))
    job = claim(database)
    assert job is not None
    with database.write() as connection:
        jobs.finish(connection, job, [output(job.id, 0), output(job.id, 1)], clock(), quality={}, notes=[])
        batch = deliveries.start(connection, deliveries.due(connection, "PACS", clock()), clock())
        deliveries.postpone(connection, batch[0], clock(), timedelta(seconds=60), "out of resources")
        deliveries.hand_back(connection, batch[1:], clock())
        assert deliveries.due(connection, "PACS", clock()) == []
        later = deliveries.next_due(connection, "PACS")
        assert later == clock() + timedelta(seconds=60), "else the lane asks a hundred times a second"


def test_a_new_result_refers_to_the_last_one_that_was_delivered(database: Database, clock: Clock) -> None:
    def one(revision: int) -> jobs.Job:
        enqueue(database, replace(new(f"r{revision}", revision=revision), send_to=["PACS"]))
        job = claim(database)
        assert job is not None
        return job

    first = one(0)
    with database.write() as connection:
        jobs.finish(connection, first, [output(first.id)], clock(), quality={}, notes=[])
        sending = deliveries.start(connection, deliveries.due(connection, "PACS", clock()), clock())
        deliveries.delivered(connection, sending[0], clock(), 0)
    one(1)  # never delivered
    third = one(2)
    with database.read() as connection:
        before = revisions.predecessor(connection, third)
    assert before is not None and before.id == first.id


class JobTable(RuleBasedStateMachine):
    """The table against a dictionary, with a crash of the node as one of the actions."""

    keys = Bundle("keys")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.database = open_database("sqlite", Path(self.folder.name))
        migrate(self.database)
        self.now, self.epoch, self.number = NOW, 1, 0
        self.model: dict[int, JobState] = {}
        self.running: dict[int, jobs.Job] = {}
        self.stale: list[jobs.Job] = []

    def teardown(self) -> None:
        self.database.close()
        self.folder.cleanup()

    @rule(band=st.sampled_from(list(Band)))
    def enqueue(self, band: Band) -> None:
        self.number += 1
        job_id, again = enqueue(self.database, new(str(self.number), band=band), new(str(self.number)), at=self.now)
        assert job_id is not None and again is None
        self.model[job_id] = JobState.QUEUED

    @rule()
    def claim(self) -> None:
        self.now += timedelta(hours=2)
        job = claim(self.database, self.now, self.epoch)
        assert (job is None) == (JobState.QUEUED not in self.model.values())
        if job is not None:
            assert self.model[job.id] is JobState.QUEUED
            self.model[job.id] = JobState.RUNNING
            self.running[job.id] = job

    def _take(self) -> jobs.Job | None:
        return self.running.pop(next(iter(self.running))) if self.running else None

    @rule()
    def finish(self) -> None:
        if (job := self._take()) is not None:
            with self.database.write() as connection:
                assert jobs.finish(connection, job, [output(job.id)], self.now, quality={}, notes=[])
            self.model[job.id] = JobState.STORED

    @rule()
    def hold(self) -> None:
        if (job := self._take()) is not None:
            with self.database.write() as connection:
                made = [output(job.id)]
                assert jobs.finish(connection, job, made, self.now, quality={}, notes=[], hold="look first")
            self.model[job.id] = JobState.HELD

    @rule(released=st.booleans())
    def review(self, released: bool) -> None:
        for job_id, known in self.model.items():
            if known is JobState.HELD:
                with self.database.write() as connection:
                    found = jobs.get(connection, job_id)
                    assert found is not None
                    if released:
                        review.release(connection, found, "a person", {}, self.now)
                    else:
                        review.reject(connection, found, "a person", "", self.now)
                self.model[job_id] = JobState.STORED if released else JobState.REJECTED
                return

    @rule(failure=st.sampled_from([TRANSIENT, FINAL]))
    def fail(self, failure: Failure) -> None:
        if (job := self._take()) is not None:
            with self.database.write() as connection:
                after = jobs.fail(connection, job, failure, POLICY, self.now)
            again = failure.transient and job.attempt < POLICY.max_attempts
            assert after is (JobState.QUEUED if again else JobState.DEAD)
            self.model[job.id] = after

    @rule()
    def lose(self) -> None:
        if (job := self._take()) is not None:
            with self.database.write() as connection:
                after = jobs.lose(connection, job, "killed", self.now)
            assert after is (JobState.DEAD if job.lost_count + 1 == MAX_LOST else JobState.QUEUED)
            self.model[job.id] = after

    @rule()
    def crash_and_restart(self) -> None:
        self.epoch += 1
        with self.database.write() as connection:
            released = jobs.release_orphans(connection, self.epoch, self.now)
        assert sorted(released) == sorted(self.running)
        for job_id, job in self.running.items():
            self.model[job_id] = JobState.QUEUED
            self.stale.append(job)
        self.running.clear()

    @rule()
    def orphan_commits_late(self) -> None:
        if self.stale:
            job = self.stale.pop()
            with self.database.write() as connection:
                assert not jobs.finish(connection, job, [output(job.id)], self.now, quality={}, notes=[])

    @rule()
    def retry_dead(self) -> None:
        for job_id, known in self.model.items():
            if known is JobState.DEAD:
                with self.database.write() as connection:
                    dead = jobs.get(connection, job_id)
                    assert dead is not None
                    jobs.retry(connection, dead, self.now)
                self.model[job_id] = JobState.QUEUED
                return

    @invariant()
    def table_agrees(self) -> None:
        with self.database.read() as connection:
            seen = {job.id: job.state for job in jobs.latest(connection, limit=1000)}
            assert seen == self.model
            for job_id, known in seen.items():
                made = known in (JobState.STORED, JobState.HELD, JobState.REJECTED)
                assert len(outputs.of_job(connection, job_id)) == made
                assert len(deliveries.of_job(connection, job_id)) == 2 * made
            due = {one.job_id for one in deliveries.due(connection, "PACS", self.now)}
            assert due == {job_id for job_id, known in seen.items() if known is JobState.STORED}


TestJobTable = JobTable.TestCase
TestJobTable.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
