"""Jobs: the queue is this table. Every move is one guarded update; commits of a run are fenced by attempt and epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from dicomnode.domain import JOB_MOVES, Band, JobState, Output
from dicomnode.errors import IllegalMove
from dicomnode.store import deliveries, instances, schema
from dicomnode.store.events import note

#: A job that took its worker down this often is poison.
MAX_LOST: Final = 3
#: Longest pause between tries [s].
MAX_BACKOFF_S: Final = 3600.0
_ERROR_CHARS: Final = 4000
_TRACE_CHARS: Final = 20000


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """What assembly asks for."""

    key: str
    series_uid: str
    study_uid: str
    revision: int
    rule: str
    pipeline: str
    version: str
    weights_digest: str
    config_digest: str
    class_name: str
    options: Mapping[str, Any]
    send_to: Sequence[str]
    #: SOP Instance UIDs, sorted.
    inputs: Sequence[str]
    incomplete: bool
    #: Why the series counted as complete.
    completion: str
    band: Band


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(NewJob):
    """One job as the table has it."""

    id: int
    state: JobState
    attempt: int
    lost_count: int
    epoch: int
    slot: str
    not_before: datetime
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    cancel_asked: bool
    phase: str
    fraction: float
    error_class: str
    error: str
    trace: str
    quality: Mapping[str, float]
    notes: Sequence[str]
    #: What was found, without identity: see `dicomnode.pipeline.Finding`.
    findings: Sequence[Mapping[str, Any]]
    #: Why a person had to look before anything was sent; empty: nobody had to.
    hold: str
    #: When that person let it go; None: not yet, or never.
    released_at: datetime | None


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def row_to_job(row: Row[Any]) -> Job:
    """Read one row of the job table."""
    values = dict(row._mapping)
    values["state"], values["band"] = JobState(row.state), Band(row.band)
    for name in ("not_before", "created_at", "started_at", "finished_at", "released_at"):
        values[name] = _time(values[name])
    values["quality"], values["notes"], values["findings"] = row.quality or {}, row.notes or [], row.findings or []
    return Job(**values)


def enqueue(connection: Connection, job: NewJob, at: datetime) -> int | None:
    """Insert a queued job; None if a job with this key exists (routing the same input again adds nothing)."""
    table = schema.job
    if connection.scalar(select(table.c.id).where(table.c.key == job.key)) is not None:
        return None
    seconds = at.timestamp()
    values = {name: getattr(job, name) for name in NewJob.__dataclass_fields__}
    values |= {"options": dict(job.options), "send_to": list(job.send_to), "inputs": list(job.inputs)}
    values |= {"band": int(job.band), "state": JobState.QUEUED.value, "not_before": seconds, "created_at": seconds}
    try:
        job_id = int(connection.execute(insert(table).values(**values)).inserted_primary_key[0])  # type: ignore[index]
    except IntegrityError as error:  # PostgreSQL: another leader's insert won
        raise IllegalMove(f"job {job.key[:12]} was inserted meanwhile") from error
    note(connection, at, "job_queued", f"rule {job.rule!r}", series_uid=job.series_uid, job_id=job_id)
    return job_id


def get(connection: Connection, job_id: int) -> Job | None:
    """One job, or None."""
    row = connection.execute(select(schema.job).where(schema.job.c.id == job_id)).first()
    return None if row is None else row_to_job(row)


def of_series(connection: Connection, series_uid: str) -> list[Job]:
    """Every job of a series, oldest first."""
    query = select(schema.job).where(schema.job.c.series_uid == series_uid).order_by(schema.job.c.id)
    return [row_to_job(row) for row in connection.execute(query)]


def latest(connection: Connection, states: Sequence[JobState] = (), limit: int = 50) -> list[Job]:
    """The newest jobs, of these states if any are given."""
    query = select(schema.job).order_by(schema.job.c.id.desc()).limit(limit)
    if states:
        query = query.where(schema.job.c.state.in_([state.value for state in states]))
    return [row_to_job(row) for row in connection.execute(query)]


def counts(connection: Connection) -> dict[str, int]:
    """How many jobs are in each state."""
    query = select(schema.job.c.state, func.count()).group_by(schema.job.c.state)
    return {row[0]: row[1] for row in connection.execute(query)}


def claim(connection: Connection, now: datetime, epoch: int, slot: str, full: Sequence[str]) -> Job | None:
    """queued -> running for the job that goes next; None if nothing may start.

    Order: band, then age; a band is never crossed by ageing. Pipelines in ``full`` run at their limit already.
    """
    table = schema.job
    query = (
        select(table)
        .where(
            table.c.state == JobState.QUEUED.value,
            table.c.not_before <= now.timestamp(),
            table.c.pipeline.not_in(list(full)),
        )
        .order_by(table.c.band.desc(), table.c.created_at, table.c.id)
        .limit(1)
        .with_for_update(skip_locked=True)  # SQLite has no such clause and needs none: the transaction is immediate
    )
    row = connection.execute(query).first()
    if row is None:
        return None
    changes = {"state": JobState.RUNNING.value, "attempt": row.attempt + 1, "epoch": epoch, "slot": slot}
    changes |= {"started_at": now.timestamp(), "phase": "", "fraction": 0.0}
    connection.execute(update(table).where(table.c.id == row.id).values(**changes))
    text = f"attempt {row.attempt + 1} on {slot}"
    note(connection, now, "job_started", text, series_uid=row.series_uid, job_id=row.id)
    return get(connection, row.id)


def _fenced(connection: Connection, job: Job, to: JobState, **values: object) -> bool:
    """Leave ``running``, but only if this attempt is still the one that counts."""
    if to not in JOB_MOVES[JobState.RUNNING]:
        raise IllegalMove(f"job {job.id}: running -> {to} is not a move")
    table = schema.job
    done = connection.execute(
        update(table)
        .where(
            table.c.id == job.id,
            table.c.state == JobState.RUNNING.value,
            table.c.attempt == job.attempt,
            table.c.epoch == job.epoch,
        )
        .values(state=to.value, **values)
    )
    return done.rowcount == 1


def progress(connection: Connection, job: Job, phase: str, fraction: float) -> bool:
    """Record how far a run is. Return whether its cancellation was asked."""
    table = schema.job
    mine = (table.c.id == job.id, table.c.attempt == job.attempt, table.c.epoch == job.epoch)
    connection.execute(update(table).where(*mine).values(phase=phase[:64], fraction=fraction))
    return bool(connection.scalar(select(table.c.cancel_asked).where(*mine)))


def cancels_asked(connection: Connection) -> set[int]:
    """Running jobs that someone asked to cancel."""
    table = schema.job
    query = select(table.c.id).where(table.c.state == JobState.RUNNING.value, table.c.cancel_asked.is_(True))
    return set(connection.scalars(query))


def finish(
    connection: Connection,
    job: Job,
    outputs: Sequence[Output],
    at: datetime,
    *,
    quality: Mapping[str, float],
    notes: Sequence[str],
    findings: Sequence[Mapping[str, Any]] = (),
    hold: str = "",
    takes: Callable[[str, Output], bool] = lambda _destination, _output: True,
) -> bool:
    """running -> stored: outputs and one delivery per output and destination, in the same transaction (the outbox).

    ``takes`` says which destination wants which object. With a reason to ``hold`` the job becomes held instead, and its
    deliveries wait for `review`. Return False, having written nothing, if the attempt is stale; its files are rubbish.
    """
    wanted = [[to for to in job.send_to if takes(to, output)] for output in outputs]
    done = JobState.STORED if any(wanted) else JobState.CLOSED  # nothing to deliver: nothing to wait for
    done = JobState.HELD if hold else done
    if not _fenced(
        connection, job, done, fraction=1.0, quality=dict(quality), notes=list(notes), findings=list(findings),
        error="", error_class="", trace="", finished_at=at.timestamp(), hold=hold[:_ERROR_CHARS],
    ):  # fmt: skip
        return False
    for output, destinations in zip(outputs, wanted, strict=True):
        row = connection.execute(
            insert(schema.output).values(
                job_id=job.id,
                role=output.role,
                number=output.index,
                sop_class_uid=output.sop_class_uid,
                sop_instance_uid=output.sop_instance_uid,
                series_uid=output.series_uid,
                study_uid=output.study_uid,
                path=str(output.path),
                size=output.size,
                sha256=output.sha256,
                kind=output.kind.value,
                flavour=output.flavour.value,
            )
        )
        output_id = row.inserted_primary_key[0]  # type: ignore[index]
        for destination in destinations:
            deliveries.add(connection, output_id, job.id, output.study_uid, destination, at, held=bool(hold))
    text = f"{len(outputs)} objects for {', '.join(job.send_to)}"
    note(connection, at, "job_stored", text, series_uid=job.series_uid, job_id=job.id)
    if hold:
        note(connection, at, "job_held", hold, series_uid=job.series_uid, job_id=job.id)
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How failures are tried again: pause = backoff * 2^(attempt - 1), at most an hour."""

    max_attempts: int = 3
    backoff_s: float = 10.0

    def pause(self, attempt: int) -> timedelta:
        """Pause after the given failed attempt (1 is the first)."""
        return timedelta(seconds=min(self.backoff_s * 2.0 ** (attempt - 1), MAX_BACKOFF_S))


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a run ended without a result. Raised errors carry the class; only ``transient`` decides about a retry."""

    error_class: str
    message: str
    trace: str = ""
    transient: bool = False


def fail(connection: Connection, job: Job, failure: Failure, policy: RetryPolicy, at: datetime) -> JobState | None:
    """running -> queued (transient, tries left) or dead. Return the new state, None if the attempt is stale."""
    again = failure.transient and job.attempt < policy.max_attempts
    to = JobState.QUEUED if again else JobState.DEAD
    values: dict[str, Any] = {
        "error_class": failure.error_class[:64],
        "error": failure.message[:_ERROR_CHARS],
        "trace": failure.trace[-_TRACE_CHARS:],
        "finished_at": at.timestamp(),
    }
    if again:
        values["not_before"] = (at + policy.pause(job.attempt)).timestamp()
    if _cancelled_instead(connection, job, at):
        return JobState.CANCELLED
    if not _fenced(connection, job, to, **values):
        return None
    text = f"attempt {job.attempt}: {failure.error_class}: {failure.message[:300]}"
    note(connection, at, "job_retry" if again else "job_dead", text, series_uid=job.series_uid, job_id=job.id)
    return to


def lose(connection: Connection, job: Job, message: str, at: datetime) -> JobState | None:
    """running -> queued because the worker died; dead when that happened too often (poison)."""
    poison = job.lost_count + 1 >= MAX_LOST
    to = JobState.DEAD if poison else JobState.QUEUED
    values = {"lost_count": job.lost_count + 1, "attempt": job.attempt - 1}
    text = f"{message} ({job.lost_count + 1} of {MAX_LOST})"
    if _cancelled_instead(connection, job, at):
        return JobState.CANCELLED
    if not _fenced(connection, job, to, **values, error_class="WorkerLost", error=text, not_before=at.timestamp()):
        return None
    note(connection, at, "job_poison" if poison else "job_lost", text, series_uid=job.series_uid, job_id=job.id)
    return to


def unsuitable(connection: Connection, job: Job, reason: str, at: datetime) -> bool:
    """running -> unsuitable: the input is not for this algorithm. An outcome, kept with its reason."""
    done = _fenced(
        connection, job, JobState.UNSUITABLE, error_class="Unsuitable", error=reason[:_ERROR_CHARS],
        finished_at=at.timestamp(),
    )  # fmt: skip
    if done:
        note(connection, at, "job_unsuitable", reason, series_uid=job.series_uid, job_id=job.id)
    return done


def release_orphans(connection: Connection, epoch: int, at: datetime) -> list[int]:
    """running -> queued for jobs of an older leader. Not the job's fault: nothing is counted against it."""
    return _release(connection, schema.job.c.epoch < epoch, at, "the node stopped in mid-run")


def release_forgotten(connection: Connection, epoch: int, known: Sequence[int], at: datetime) -> list[int]:
    """running -> queued for jobs of this leader that no slot of it runs: their end could not be recorded."""
    table = schema.job
    return _release(connection, (table.c.epoch == epoch) & table.c.id.not_in(known), at, "its end was not recorded")


def _release(connection: Connection, which: ColumnElement[bool], at: datetime, why: str) -> list[int]:
    table = schema.job
    running = select(table).where(table.c.state == JobState.RUNNING.value, which)
    found = connection.execute(running).all()
    for row in found:
        to = JobState.CANCELLED if row.cancel_asked else JobState.QUEUED
        connection.execute(
            update(table)
            .where(table.c.id == row.id, table.c.state == JobState.RUNNING.value)
            .values(state=to.value, attempt=row.attempt - 1, not_before=at.timestamp())
        )
        action = "job_cancelled" if row.cancel_asked else "job_released"
        note(connection, at, action, why, series_uid=row.series_uid, job_id=row.id)
    return [row.id for row in found]


def move(connection: Connection, job: Job, to: JobState, **values: object) -> None:
    """Make one move that is not the end of a run; raises `IllegalMove`."""
    if to not in JOB_MOVES[job.state]:
        raise IllegalMove(f"job {job.id} is {job.state}: it cannot become {to}")
    table = schema.job
    done = connection.execute(
        update(table).where(table.c.id == job.id, table.c.state == job.state.value).values(state=to.value, **values)
    )
    if done.rowcount != 1:
        raise IllegalMove(f"job {job.id} moved meanwhile; look again")


def cancel(connection: Connection, job: Job, at: datetime) -> None:
    """Cancel a queued job at once; ask a running one to stop (the dispatcher ends its worker)."""
    if job.state is JobState.RUNNING:
        connection.execute(update(schema.job).where(schema.job.c.id == job.id).values(cancel_asked=True))
        note(connection, at, "job_cancel_asked", "by an operator", series_uid=job.series_uid, job_id=job.id)
        return
    move(connection, job, JobState.CANCELLED, finished_at=at.timestamp())
    note(connection, at, "job_cancelled", "by an operator", series_uid=job.series_uid, job_id=job.id)


def _cancelled_instead(connection: Connection, job: Job, at: datetime) -> bool:
    """Whether a job that ended without a result was asked to stop: then it does not run again."""
    table = schema.job
    asked = connection.scalar(select(table.c.cancel_asked).where(table.c.id == job.id))
    return bool(asked) and cancelled(connection, job, at)


def cancelled(connection: Connection, job: Job, at: datetime) -> bool:
    """running -> cancelled, once its worker was ended."""
    done = _fenced(connection, job, JobState.CANCELLED, finished_at=at.timestamp())
    if done:
        note(connection, at, "job_cancelled", "its worker was ended", series_uid=job.series_uid, job_id=job.id)
    return done


def retry(connection: Connection, job: Job, at: datetime) -> None:
    """dead, cancelled or unsuitable -> queued with its tries counted anew; dead deliveries of a stored job go again."""
    if instances.patients_of_study(connection, job.study_uid) > 1:
        why = f"its study {job.study_uid} carries several patient identities"
        raise IllegalMove(f"{why}: `dicomnode series UID --discard` those of the wrong one, then retry job {job.id}")
    if job.state in (JobState.STORED, JobState.CLOSED):
        if deliveries.retry_dead(connection, job.id, at) == 0:
            raise IllegalMove(f"job {job.id} is {job.state} and none of its deliveries is dead: nothing to retry")
        return
    if job.state is JobState.SUPERSEDED:
        why = f"job {job.id} was set aside, by newer images, a discard or its patient's identity"
        raise IllegalMove(f"{why}: `dicomnode series UID --again` has the rules decide anew about a series")
    move(
        connection, job, JobState.QUEUED, attempt=0, lost_count=0, not_before=at.timestamp(), error="", error_class="",
        trace="", cancel_asked=False,
    )  # fmt: skip
    note(connection, at, "job_retried", "by an operator", series_uid=job.series_uid, job_id=job.id)
