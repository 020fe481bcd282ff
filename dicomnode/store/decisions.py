"""An operator has a series decided again, or its images forgotten so that it can come anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, update

from dicomnode.domain import JobState, SeriesState
from dicomnode.errors import StoreError
from dicomnode.store import instances, jobs, schema, series
from dicomnode.store.events import note
from dicomnode.store.jobs import Job
from dicomnode.store.series import Series

#: A series in one of these was decided.
_DECIDED: Final = (SeriesState.ROUTED, SeriesState.UNROUTED, SeriesState.REJECTED)
#: A job in one of these reads, or is going to read, the images of its series.
_READING: Final = (JobState.QUEUED, JobState.RUNNING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Discarded:
    """What became of a series whose images an operator does not want."""

    images: int
    #: Series of its study that are decided again, because it carries one patient identity now.
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


def discard(connection: Connection, spool: Path, series_uid: str, at: datetime) -> Discarded:
    """Delete the received images of a series.

    Where its study carries one patient identity now, and carried several before, the other series of the study are
    decided again: what had been withheld of them is computed.

    Raises
    ------
    StoreError
        There is no such series, it is not decided yet, or a job is about to read it.
    """
    one = _known(connection, series_uid)
    if one.state not in _DECIDED:
        raise StoreError(f"series {series_uid} is {one.state}: it can be discarded once it is decided")
    held = instances.of_series(connection, series_uid)
    uids = {item.sop_instance_uid for item in held}
    for job in _jobs(connection, one):
        if job.state in _READING and uids & set(job.inputs):
            raise StoreError(
                f"series {series_uid} is the input of job {job.id}, which is {job.state}: let that end, or stop it "
                f"with `dicomnode jobs cancel {job.id}`, then discard the series"
            )
    conflict = instances.patients_of_study(connection, one.study_uid) > 1
    for item in held:
        (spool / item.path).unlink(missing_ok=True)
    instances.forget(connection, sorted(uids))
    table = schema.series
    connection.execute(update(table).where(table.c.series_uid == series_uid).values(instances=0))
    text = f"{len(held)} images discarded, by an operator"
    note(connection, at, "series_discarded", text, series_uid=series_uid)
    settled = conflict and instances.patients_of_study(connection, one.study_uid) <= 1
    return Discarded(images=len(held), settled=_settled(connection, one, at) if settled else ())


def _known(connection: Connection, series_uid: str) -> Series:
    one = series.get(connection, series_uid)
    if one is None:
        raise StoreError(f"no series {series_uid} has arrived")
    return one


def _jobs(connection: Connection, one: Series) -> list[Job]:
    """Of the series, and of its study: those are filed under the study's UID."""
    return [*jobs.of_series(connection, one.series_uid), *jobs.of_series(connection, one.study_uid)]


def _settled(connection: Connection, discarded: Series, at: datetime) -> list[str]:
    """Have the rest of a study decided again; every series that has images and was decided."""
    found = []
    for other in series.of_study(connection, discarded.study_uid):
        withheld = other.state in (SeriesState.ROUTED, SeriesState.REJECTED)  # an unrouted one was not stopped
        if withheld and instances.of_series(connection, other.series_uid):
            _reopen(connection, other, at, "decided again: its study carries one patient identity now")
            found.append(other.series_uid)
    return found


def _reopen(connection: Connection, one: Series, at: datetime, why: str) -> None:
    """Back to complete. A routed series has jobs of its revision: what replaces them is of the next one."""
    revision = one.revision + (one.state is SeriesState.ROUTED)
    values = {"revision": revision, "decided_at": at.timestamp()}
    series.move(connection, one, SeriesState.COMPLETE, at, why, **values)
