"""An operator has a series decided again, or its images forgotten so that it can come anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, select, update

from dicomnode.config import Hook
from dicomnode.domain import JOB_MOVES, JobState, SeriesState
from dicomnode.errors import StoreError
from dicomnode.store import deliveries, instances, jobs, schema, series
from dicomnode.store.events import note
from dicomnode.store.jobs import Job
from dicomnode.store.notifications import announce
from dicomnode.store.revisions import DISCARDED
from dicomnode.store.series import Series
from dicomnode.store.takeback import take_back

#: A series in one of these was decided.
_DECIDED: Final = (SeriesState.ROUTED, SeriesState.UNROUTED, SeriesState.REJECTED)
#: Neither is one that a router only looks at: its move fails once the images are gone.
_DISCARDABLE: Final = (*_DECIDED, SeriesState.COMPLETE)
#: A job in one of these reads, or is going to read, the images of its series.
_READING: Final = (JobState.QUEUED, JobState.RUNNING)
#: A job in one of these has made something.
_MADE: Final = (JobState.STORED, JobState.HELD, JobState.CLOSED, JobState.SUPERSEDED)
#: In the message that takes something back, and in the job's record.
_REASON: Final = "The images that this was found on were discarded by an operator."


@dataclass(frozen=True, slots=True, kw_only=True)
class Discarded:
    """What became of a series whose images an operator does not want."""

    images: int
    #: Jobs whose results were set aside with it.
    results: Sequence[int]
    #: Series of its study that are decided again: it carries one patient identity now, or a job was made of them all.
    settled: Sequence[str]


def decide_again(connection: Connection, series_uid: str, at: datetime) -> None:
    """Have a series routed by the rules, pipelines and weights as they are now.

    Jobs that would compute the very same stand; others are set aside, and what is computed instead names the result
    that it replaces.

    Raises
    ------
    StoreError
        There is no such series, it is not decided yet, or its images are gone.
    """
    one = _known(connection, series_uid)
    if one.state not in _DECIDED:
        raise StoreError(f"series {series_uid} is {one.state}: it is decided when it is complete")
    if not instances.of_series(connection, series_uid):
        raise StoreError(f"series {series_uid} cannot be decided again: its images are no longer kept; send it again")
    _reopen(connection, one, at, "decided again, by an operator")


def discard(connection: Connection, spool: Path, series_uid: str, hooks: Mapping[str, Hook], at: datetime) -> Discarded:
    """Delete the received images of a series, and set the results on them aside.

    What was told of such a result is taken back, if no other shows it. Where the study carries one patient identity
    now, and carried several before, what stands is told again, and its other series are decided again: what had been
    withheld of them is computed. So are those that a job of the whole study was made of together with this one.

    Raises
    ------
    StoreError
        There is no such series, more of it may come, or a job is about to read it.
    """
    one = _known(connection, series_uid)
    if one.state not in _DISCARDABLE:
        raise StoreError(f"series {series_uid} is {one.state}: it can be discarded once it is complete")
    held = instances.of_series(connection, series_uid)
    uids = {item.sop_instance_uid for item in held}
    on_it = [job for job in _of_study(connection, one.study_uid) if uids & set(job.inputs)]
    for job in on_it:
        if job.state in _READING:
            raise StoreError(
                f"series {series_uid} is the input of job {job.id}, which is {job.state}: let that end, or stop it "
                f"with `dicomnode jobs cancel {job.id}`, then discard the series"
            )
    conflict = instances.patients_of_study(connection, one.study_uid) > 1
    text = f"{len(held)} images discarded, by an operator"
    if one.state is SeriesState.COMPLETE:
        series.move(connection, one, SeriesState.REJECTED, at, text)
    instances.forget(connection, sorted(uids))
    table = schema.series
    connection.execute(update(table).where(table.c.series_uid == series_uid).values(instances=0))
    note(connection, at, "series_discarded", text, series_uid=series_uid)
    aside = [job for job in on_it if _set_aside(connection, job, at)]
    made = [job.id for job in aside if job.state in _MADE]
    settled: list[str] = []
    if not conflict:
        for gone in {job.pipeline: job for job in aside if job.state in _MADE}.values():
            _unsay(connection, gone, hooks, at)
        of_study = {uid for job in aside if job.series_uid == one.study_uid for uid in job.inputs}
        settled = _reopened(connection, one, of_study, "an input of its study's job was discarded", at)
    elif made:
        take_back(connection, one.study_uid, at, _REASON)
    if conflict and instances.patients_of_study(connection, one.study_uid) <= 1:
        _tell_again(connection, one.study_uid, hooks, at)
        every = _there(connection, one.study_uid)
        settled = _reopened(connection, one, every, "its study carries one patient identity now", at)
    # Last: all that fails before leaves every file. After the commit a crash would leave files without rows, which the
    # next start adopts: discarded images would come back. One between here and the commit leaves rows without files,
    # which routing tells and another discard clears.
    for item in held:
        (spool / item.path).unlink(missing_ok=True)
    return Discarded(images=len(held), results=made, settled=settled)


def _set_aside(connection: Connection, job: Job, at: datetime) -> bool:
    """Send no more of what a job made, and let its findings say nothing. Return whether that was still to be done."""
    if job.error_class == DISCARDED:
        return False
    if JobState.SUPERSEDED in JOB_MOVES[job.state]:
        jobs.move(connection, job, JobState.SUPERSEDED, finished_at=at.timestamp())
    unsent = deliveries.cancel_unsent(connection, job.id, at)
    values: dict[str, Any] = {"error_class": DISCARDED, "error": _REASON}
    if job.state in _MADE:
        # Held and never let go: else it would speak for its series until a newer result does (`statements`).
        values |= {"hold": f"{_REASON} What it found says nothing any more.", "released_at": None}
    connection.execute(update(schema.job).where(schema.job.c.id == job.id).values(**values))
    text = f"its images were discarded; {unsent} unsent objects withheld"
    note(connection, at, "job_superseded", text, series_uid=job.series_uid, job_id=job.id)
    return True


def _tell_again(connection: Connection, study_uid: str, hooks: Mapping[str, Hook], at: datetime) -> None:
    """Announce what results say whose images are all there, after everything of the study was taken back."""
    there = _there(connection, study_uid)
    for job in _of_study(connection, study_uid):
        if job.state in (JobState.STORED, JobState.CLOSED) and set(job.inputs) <= there:
            announce(connection, job, job.findings, hooks, at)


def _unsay(connection: Connection, gone: Job, hooks: Mapping[str, Hook], at: datetime) -> None:
    """Take back what nothing shows any more now that ``gone`` says nothing; what still stands is left alone.

    A message reads patient and order from the images of its job: one that says something, and has its images, is asked
    first.
    """
    there = _there(connection, gone.study_uid)

    def rank(job: Job) -> tuple[bool, bool, int]:
        return set(job.inputs) <= there, job.state is not JobState.SUPERSEDED, job.id

    speaks = [job for job in _of_study(connection, gone.study_uid) if job.pipeline == gone.pipeline and _speaks(job)]
    last = max(speaks, key=rank, default=None)
    if last is None:
        announce(connection, gone, [], hooks, at, _REASON)
    else:
        announce(connection, last, last.findings, hooks, at, _REASON)


def _speaks(job: Job) -> bool:
    """Whether a job has said something, or nothing urgent, that may still hold."""
    if job.state is JobState.SUPERSEDED:
        return bool(job.findings) and (not job.hold or job.released_at is not None)
    return job.state in (JobState.STORED, JobState.CLOSED)


def _there(connection: Connection, study_uid: str) -> set[str]:
    """Images of a study that are kept."""
    return {
        item.sop_instance_uid
        for one in series.of_study(connection, study_uid)
        for item in instances.of_series(connection, one.series_uid)
    }


def _known(connection: Connection, series_uid: str) -> Series:
    one = series.get(connection, series_uid)
    if one is None:
        raise StoreError(f"no series {series_uid} has arrived")
    return one


def _of_study(connection: Connection, study_uid: str) -> list[Job]:
    """Every job of a study, and of its series, oldest first."""
    table = schema.job
    query = select(table).where(table.c.study_uid == study_uid).order_by(table.c.id)
    return [jobs.row_to_job(row) for row in connection.execute(query)]


def _reopened(connection: Connection, discarded: Series, uids: set[str], why: str, at: datetime) -> list[str]:
    """Have the series of a study that hold any of the images ``uids`` decided again, if they had been."""
    found = []
    for other in series.of_study(connection, discarded.study_uid):
        withheld = other.state in (SeriesState.ROUTED, SeriesState.REJECTED)  # an unrouted one was not stopped
        if withheld and any(
            item.sop_instance_uid in uids for item in instances.of_series(connection, other.series_uid)
        ):
            _reopen(connection, other, at, f"decided again: {why}")
            found.append(other.series_uid)
    return found


def _reopen(connection: Connection, one: Series, at: datetime, why: str) -> None:
    """Back to complete. A routed series has jobs of its revision: what replaces them is of the next one."""
    revision = one.revision + (one.state is SeriesState.ROUTED)
    values = {"revision": revision, "decided_at": at.timestamp()}
    series.move(connection, one, SeriesState.COMPLETE, at, why, **values)
