"""What a person decides about a held result: it is sent, or it never is. Each move is one transaction."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, or_, select

from dicomnode.config import Hook
from dicomnode.domain import JobState, SeriesState
from dicomnode.errors import IllegalMove
from dicomnode.store import deliveries, jobs, notifications, schema
from dicomnode.store.events import note
from dicomnode.store.jobs import Job

#: A series in one of these will be decided anew, and with it what becomes of the results on it.
_OPEN: Final = (SeriesState.RECEIVING.value, SeriesState.ASSEMBLING.value, SeriesState.COMPLETE.value)


def release(connection: Connection, job: Job, by: str, hooks: Mapping[str, Hook], at: datetime) -> int:
    """Held -> stored: everything of the job is sent, and who must be told of its findings is told now.

    Returns
    -------
    int
        How many deliveries go out; the job is closed at once if none does.

    Raises
    ------
    IllegalMove
        The job is not held, or later images of its series are about to replace it.
    """
    if job.state is not JobState.HELD:
        raise IllegalMove(f"job {job.id} is {job.state}: only a held job can be released")
    table = schema.series
    coming = connection.scalar(
        select(table.c.series_uid)
        .where(
            or_(table.c.series_uid == job.series_uid, table.c.study_uid == job.series_uid),  # or a job of a study
            table.c.state.in_(_OPEN),
        )
        .limit(1)
    )
    if coming is not None:
        raise IllegalMove(f"images of series {coming} came after job {job.id}: wait for what the newer ones make of it")
    sent = deliveries.let_go(connection, job.id, at)
    to = JobState.STORED if sent else JobState.CLOSED
    jobs.move(connection, job, to, released_at=at.timestamp())
    text = f"by {by}; {sent} deliveries go out; it was held because {job.hold}"
    note(connection, at, "result_released", text, series_uid=job.series_uid, job_id=job.id)
    notifications.announce(connection, job, job.findings, hooks, at)
    return sent


def reject(connection: Connection, job: Job, by: str, why: str, at: datetime) -> int:
    """Held -> rejected: nothing of the job is ever sent, and nobody is told. Return how many deliveries that ended."""
    if job.state is not JobState.HELD:
        raise IllegalMove(f"job {job.id} is {job.state}: only a held job can be rejected")
    ended = deliveries.cancel_unsent(connection, job.id, at)
    jobs.move(connection, job, JobState.REJECTED, finished_at=at.timestamp())
    text = f"by {by}" + (f": {why}" if why else "") + f"; {ended} deliveries ended; it was held because {job.hold}"
    note(connection, at, "result_rejected", text, series_uid=job.series_uid, job_id=job.id)
    return ended
