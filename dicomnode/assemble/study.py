"""Rules of a whole study: one job over every series that matches, once nothing of the study is on its way any more.

A cine often comes as one series per slice. Its job belongs to the study: it is filed under the StudyInstanceUID where
others have their SeriesInstanceUID, so that a late series makes a new revision of it as a late image does of a series.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy import Connection

from dicomnode import dicom
from dicomnode.config import Rule
from dicomnode.domain import Instance, JobState, SeriesState
from dicomnode.rules import Verdict
from dicomnode.store import instances, jobs, outputs, revisions, series
from dicomnode.store.jobs import Job, NewJob
from dicomnode.store.series import Series

logger = logging.getLogger(__name__)

#: Series in these states may still change what belongs to the study.
_OPEN = frozenset({SeriesState.RECEIVING, SeriesState.ASSEMBLING})
#: A study with an open series is looked at again after this.
_LOOK_AGAIN = timedelta(seconds=2)

#: Verdicts on a series that has not been routed yet.
Judge = Callable[[Series, Sequence[Instance]], Sequence[Verdict]]


@dataclass(frozen=True, slots=True)
class Member:
    """A series of a study that a rule wants."""

    series: Series
    held: Sequence[Instance]


def wait_until(members: Sequence[Series], now: datetime, quiet_s: float) -> datetime | None:
    """When to look again; None if every series is decided and the study has been quiet for so long."""
    quiet = max(one.last_at for one in members) + timedelta(seconds=quiet_s)
    if any(one.state in _OPEN for one in members):
        return now + _LOOK_AGAIN
    return quiet if quiet > now else None


def members(connection: Connection, one: Series, rules: Sequence[Rule], judge: Judge) -> list[Member]:
    """Every series of the study of ``one`` that one of ``rules`` wants, in the order of their UIDs."""
    names = {rule.name for rule in rules}
    found = []
    for other in series.of_study(connection, one.study_uid):
        if other.state not in {SeriesState.COMPLETE, SeriesState.ROUTED}:
            continue
        if outputs.is_own_result(connection, other.series_uid):
            continue
        held = instances.of_series(connection, other.series_uid)
        if held and _wanted(other, held, names, judge):
            found.append(Member(other, held))
    return sorted(found, key=lambda member: member.series.series_uid)


def _wanted(one: Series, held: Sequence[Instance], names: set[str], judge: Judge) -> bool:
    if one.state is SeriesState.ROUTED:
        return any(verdict["matched"] and verdict["rule"] in names for verdict in one.verdicts or ())
    return any(verdict.matched and verdict.rule in names for verdict in judge(one, held))


def combined(job: NewJob, found: Sequence[Member], quiet_s: float) -> NewJob:
    """``job`` of one of the series as the job of all of them."""
    inputs = sorted(item.sop_instance_uid for member in found for item in member.held)
    whose = sorted({item.patient_key for member in found for item in member.held})
    study_uid = job.study_uid
    proof = f"study quiet for {quiet_s:g} s, {len(found)} series match"
    return replace(
        job,
        key=dicom.digest(
            "study", study_uid, *inputs, *whose, job.pipeline, job.version, job.weights_digest, job.config_digest
        ),
        series_uid=study_uid,
        inputs=inputs,
        incomplete=any(member.series.incomplete for member in found),
        completion=f"{proof}; {job.completion}",
    )


def numbered(
    connection: Connection, wanted: Sequence[NewJob], decided_at: datetime | None, at: datetime
) -> list[NewJob]:
    """``wanted`` of a study as its next revision, if any of it is new; what it replaces is set aside.

    A job is left out where images of the one that it would replace are past their retention.

    Parameters
    ----------
    decided_at
        When the series that asks was called complete.
    """
    if not wanted:
        return []
    study_uid = wanted[0].series_uid
    earlier = jobs.of_series(connection, study_uid)
    same = {job.key: revisions.alike(earlier, job.key) for job in wanted}
    fresh = [job for job in wanted if _due(same[job.key], decided_at) and _whole(connection, job, earlier)]
    if not fresh:
        return []
    revision = max((job.revision for job in earlier), default=-1) + 1
    keep = [job.key for known in same.values() for job in known]
    revisions.supersede(connection, study_uid, revision, at, keep=keep)
    return [replace(job, revision=revision) for job in fresh]


def _due(same: Sequence[Job], decided_at: datetime | None) -> bool:
    """Whether something is to be computed of which ``same`` are the earlier jobs.

    What ended without a result, or was set aside, is computed anew once a series of it came again or was decided again:
    every series of the study asks, and those that were there before ask for nothing new.
    """
    if not same:
        return True
    last = same[-1]
    again = decided_at is not None and decided_at > last.created_at
    ended = last.state in (JobState.DEAD, JobState.UNSUITABLE, JobState.SUPERSEDED)
    return again and (ended or last.error_class == revisions.DISCARDED)


def _whole(connection: Connection, job: NewJob, earlier: Sequence[Job]) -> bool:
    """Whether all images of the latest job of the same rule are kept: else a part would replace the whole.

    Images that an operator discarded are not missed, nor those that the rules want no more.
    """
    same = [one for one in earlier if (one.pipeline, one.config_digest) == (job.pipeline, job.config_digest)]
    same = [one for one in same if one.error_class != revisions.DISCARDED]
    usable = {
        item.sop_instance_uid
        for one in series.of_study(connection, job.study_uid)
        if one.state is not SeriesState.REJECTED
        for item in instances.of_series(connection, one.series_uid)
    }
    gone = set(same[-1].inputs) - usable if same else set()
    if gone:
        logger.warning(
            "Study makes no new job: images of the earlier one are gone or rejected",
            extra={"action": "study_job_withheld", "study_uid": job.study_uid, "rule": job.rule, "gone": len(gone)},
        )
    return not gone
