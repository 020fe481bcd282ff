"""What a newer revision of a series does to the jobs of the older ones, and what a new result refers to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, select, update

from dicomnode.dicom import digest
from dicomnode.domain import JOB_MOVES, DeliveryState, JobState
from dicomnode.store import deliveries, jobs, schema
from dicomnode.store.events import note
from dicomnode.store.jobs import Job, NewJob
from dicomnode.store.takeback import take_back

#: `error_class` of a job whose images an operator discarded: no later one is held against it.
DISCARDED: Final = "Discarded"


def supersede(
    connection: Connection, series_uid: str, revision: int, at: datetime, keep: Sequence[str] = ()
) -> list[int]:
    """Set aside every job of an older revision of a series; what it has not sent yet is never sent.

    Jobs whose key is in ``keep`` stay: the newer revision would compute the very same.
    """
    table = schema.job
    query = select(table).where(
        table.c.series_uid == series_uid,
        table.c.revision < revision,
        table.c.state != JobState.SUPERSEDED.value,
        table.c.key.not_in(list(keep)),
    )
    done = []
    for job in [jobs.row_to_job(row) for row in connection.execute(query)]:
        if JobState.SUPERSEDED not in JOB_MOVES[job.state]:
            continue
        jobs.move(connection, job, JobState.SUPERSEDED, finished_at=at.timestamp(), cancel_asked=False)
        unsent = deliveries.cancel_unsent(connection, job.id, at)
        text = f"by revision {revision}" + (f"; {unsent} unsent objects withheld" if unsent else "")
        note(connection, at, "job_superseded", text, series_uid=series_uid, job_id=job.id)
        done.append(job.id)
    return done


def alike(earlier: Sequence[Job], key: str) -> list[Job]:
    """Those of ``earlier`` that compute what a job under ``key`` would: under it, or a key that stood in for it."""
    return [job for job in earlier if job.key in (key, _again(key, job.revision))]


def _again(key: str, revision: int) -> str:
    """The key of a job that computes once more what the one under ``key`` did."""
    return digest("again", key, str(revision))


def renewed(connection: Connection, new: NewJob, at: datetime) -> NewJob:
    """``new`` under another key, if its own is that of a job that was set aside: one UID has one content.

    So it is where the same images come again after their study's identity was settled, or a series was discarded: what
    the earlier job made was withheld or replaced, and its objects have the UIDs that hang on the key. An earlier job
    that made nothing, because its input was damaged or gone, gives its key up. One that stands keeps it, and ``new``
    is then no new job (`jobs.enqueue`).
    """
    known = [job for job in jobs.of_series(connection, new.series_uid) if job.revision < new.revision]
    same = alike(known, new.key)
    if not same:
        return new
    last = same[-1]
    if last.state in (JobState.DEAD, JobState.UNSUITABLE):
        retired = digest("without a result", last.key, str(last.id))
        jobs.move(connection, last, JobState.SUPERSEDED, finished_at=at.timestamp(), key=retired)
        text = f"by revision {new.revision}: its images came again"
        note(connection, at, "job_superseded", text, series_uid=last.series_uid, job_id=last.id)
        return new if last.key == new.key else replace(new, key=_again(new.key, new.revision))
    if last.state is JobState.SUPERSEDED or last.error_class == DISCARDED:
        return replace(new, key=_again(new.key, new.revision))
    return replace(new, key=last.key)


def predecessor(connection: Connection, job: Job) -> Job | None:
    """The last job of an older revision of which a destination has something: a new result refers to it.

    Where the rule was given other options meanwhile, what it made with the former ones, if that was set aside.
    """
    table, delivery = schema.job, schema.delivery
    taken = select(delivery.c.job_id).where(
        delivery.c.state.in_([DeliveryState.DELIVERED.value, DeliveryState.COMMITTED.value])
    )
    same = table.c.config_digest == job.config_digest
    changed = (table.c.rule == job.rule) & (table.c.state == JobState.SUPERSEDED.value)
    query = (
        select(table)
        .where(
            table.c.series_uid == job.series_uid,
            table.c.pipeline == job.pipeline,
            same | changed,
            table.c.revision < job.revision,
            table.c.id.in_(taken),
        )
        .order_by(table.c.revision.desc(), same.desc())
        .limit(1)
    )
    row = connection.execute(query).first()
    return None if row is None else jobs.row_to_job(row)


def withhold_study(connection: Connection, study_uid: str, at: datetime) -> None:
    """Stop everything of a study that is not finished, and take back what was told: its identity is in conflict."""
    table = schema.job
    states = [JobState.QUEUED.value, JobState.RUNNING.value, JobState.STORED.value, JobState.HELD.value]
    query = select(table).where(table.c.study_uid == study_uid, table.c.state.in_(states))
    for job in [jobs.row_to_job(row) for row in connection.execute(query)]:
        # A stored job has its objects under their UIDs and must never run again; the others may, once it is settled.
        to = JobState.SUPERSEDED if job.state in (JobState.STORED, JobState.HELD) else JobState.CANCELLED
        jobs.move(connection, job, to, finished_at=at.timestamp())
        if to is JobState.CANCELLED:
            # It made nothing: once the identity is settled, the same images sent again make a job under its key.
            retired = digest("withheld", job.key, str(job.id))
            connection.execute(update(table).where(table.c.id == job.id).values(key=retired))
        unsent = deliveries.cancel_unsent(connection, job.id, at)
        text = f"its study carries several patient identities; {unsent} unsent objects withheld"
        note(connection, at, "job_cancelled", text, series_uid=job.series_uid, job_id=job.id)
    take_back(connection, study_uid, at)
