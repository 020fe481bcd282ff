"""From a complete series to jobs: every matching rule makes one, and every verdict is kept with its reasons."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from pydicom import Dataset, dcmread
from sqlalchemy import Connection

from dicomnode import dicom, faults
from dicomnode.assemble import study
from dicomnode.config import Config, Rule
from dicomnode.domain import Instance, SeriesState
from dicomnode.errors import IllegalMove, SeriesError
from dicomnode.rules import Verdict, evaluate, series_facts
from dicomnode.store import instances, jobs, outputs, pipelines, revisions, series
from dicomnode.store.db import Database
from dicomnode.store.jobs import NewJob
from dicomnode.store.pipelines import PipelineInfo
from dicomnode.store.series import Series

logger = logging.getLogger(__name__)

#: Rule evaluation reads no element longer than this [bytes]; pixel data is never read.
_DEFER: Final = 65536
#: Why raw data of others stays where it is.
_FOREIGN: Final = (
    ", and none could use it: raw data of another maker, whose content only its maker can read. It is kept as any "
    "series; convert the measurement to MRD and wrap it with `dicomnode wrap`"
)


class Router:
    """Evaluates the rules and writes the jobs."""

    def __init__(self, config: Config, database: Database, clock: Callable[[], datetime]) -> None:
        self.config, self.database, self.clock = config, database, clock
        # Series whose study is not settled yet: (instances, when to look again), so that waiting costs nothing.
        self._waits: dict[str, tuple[int, datetime]] = {}

    def route(self, one: Series) -> int:
        """complete -> routed, unrouted or rejected. Return how many jobs were queued.

        Waits (returns 0) while no slot has said which pipelines it loaded, because their versions are part of a job,
        and while a rule of the whole study wants the series and more of the study may come.
        """
        waits = self._waits.get(one.series_uid)
        if waits is not None and waits[0] == one.instances and self.clock() < waits[1]:
            return 0
        with self.database.read() as connection:
            held = instances.of_series(connection, one.series_uid)
            own = outputs.is_own_result(connection, one.series_uid)
            patients = instances.patients_of_study(connection, one.study_uid)
            loaded = pipelines.described(connection)
            of_study = series.of_study(connection, one.study_uid)
        if self.config.pipelines and not set(self.config.pipelines) <= set(loaded):
            return 0
        facts, verdicts, lost = self._looked(one, held)
        now = self.clock()
        own = own or facts.get("series.own_result") == "yes"
        whole = [rule for rule in self._matched(verdicts) if rule.scope == "study"]
        until = study.wait_until(of_study, now, self.config.assemble.study_quiet_s) if whole and not own else None
        if until is not None and patients <= 1:
            self._waits[one.series_uid] = (one.instances, until)
            return 0
        self._waits.pop(one.series_uid, None)
        wanted = self._wanted(one, held, verdicts, loaded)
        of_whole = self._of_study(one, held, whole, loaded)
        with self.database.write() as connection:
            _look_again_if_changed(connection, one, patients, of_whole)
            kept = {"facts": facts, "verdicts": [asdict(verdict) for verdict in verdicts]}
            reject = _conflict(one, held, patients) or lost or _gone(connection, one, held)
            queued: list[int] = []
            if reject:
                if patients > 1:
                    revisions.withhold_study(connection, one.study_uid, now)
                series.move(connection, one, SeriesState.REJECTED, now, reject, **kept)
            elif own:
                series.move(connection, one, SeriesState.UNROUTED, now, "own result (loop guard)", **kept)
            else:
                earlier = jobs.of_series(connection, one.series_uid)
                keep = [job.key for new in wanted for job in revisions.alike(earlier, new.key)]
                revisions.supersede(connection, one.series_uid, one.revision, now, keep=keep)
                queued = self._enqueue(connection, one, wanted, of_whole, kept, now)
            faults.reached("before-route-commit")
        _report(one, queued, verdicts, reject)
        return len(queued)

    def _looked(self, one: Series, held: Sequence[Instance]) -> tuple[dict[str, Any], list[Verdict], str]:
        """Facts and verdicts, or why there are none: a discard was interrupted, and no later look finds the files."""
        try:
            if held:
                return *self._explain(one, held), ""
        except FileNotFoundError:
            pass
        why = f"the files of series {one.series_uid} are gone: `dicomnode series UID --discard` it, and send it again"
        return {}, [], why

    def _explain(self, one: Series, held: Sequence[Instance]) -> tuple[dict[str, Any], list[Verdict]]:
        headers = [item.header for item in held]
        header = read_header(self.config.node.data / "spool" / representative(held).path)
        facts = dict(series_facts(headers, header))
        facts["series.incomplete"] = "yes" if one.incomplete else "no"
        facts["series.source"] = one.calling_ae
        return facts, list(evaluate(self.config.rules, header, facts))

    def _wanted(
        self, one: Series, held: Sequence[Instance], verdicts: Sequence[Verdict], loaded: dict[str, PipelineInfo]
    ) -> list[NewJob]:
        matched = [rule for rule in self._matched(verdicts) if rule.scope == "series"]
        return [self._job(one, held, rules, loaded[rules[0].pipeline]) for rules in _together(matched, self.config)]

    def _matched(self, verdicts: Sequence[Verdict]) -> list[Rule]:
        return [rule for rule in self.config.rules if any(v.matched and v.rule == rule.name for v in verdicts)]

    def _of_study(
        self, one: Series, held: Sequence[Instance], whole: Sequence[Rule], loaded: dict[str, PipelineInfo]
    ) -> list[NewJob]:
        """One job for all series of the study that the rules ``whole`` want; the same from whichever of them."""
        wanted = []
        for rules in _together(whole, self.config):
            with self.database.read() as connection:
                found = study.members(connection, one, rules, lambda other, images: self._explain(other, images)[1])
            job = self._job(one, held, rules, loaded[rules[0].pipeline])
            wanted.append(study.combined(job, found, self.config.assemble.study_quiet_s))
        return wanted

    def _enqueue(
        self,
        connection: Connection,
        one: Series,
        wanted: Sequence[NewJob],
        of_whole: Sequence[NewJob],
        kept: dict[str, Any],
        now: datetime,
    ) -> list[int]:
        if not wanted and not of_whole:
            foreign = kept["facts"].get("series.raw") == "foreign"
            reason = f"no rule wants it{_FOREIGN if foreign else ''}"
            series.move(connection, one, SeriesState.UNROUTED, now, reason, **kept)
            return []
        made = [*wanted, *study.numbered(connection, of_whole, one.decided_at, now)]
        made = [revisions.renewed(connection, job, now) for job in made]
        queued = [job_id for job in made if (job_id := jobs.enqueue(connection, job, now)) is not None]
        names = " + ".join(job.rule for job in (*wanted, *of_whole))
        series.move(connection, one, SeriesState.ROUTED, now, f"wanted by: {names}", **kept)
        return queued

    def _job(self, one: Series, held: Sequence[Instance], rules: Sequence[Rule], info: PipelineInfo) -> NewJob:
        first, settings = rules[0], self.config.pipelines[rules[0].pipeline]
        config_digest = self.config.job_digest(first)
        inputs = sorted(item.sop_instance_uid for item in held)
        whose = sorted({item.patient_key for item in held})  # a corrected identity under the same UIDs is another job
        algorithm = info.algorithm or info.class_name
        completion = one.completion.value if one.completion else ""
        return NewJob(
            key=dicom.digest(
                one.series_uid, *inputs, *whose, algorithm, info.version, info.weights_digest, config_digest
            ),
            series_uid=one.series_uid,
            study_uid=one.study_uid,
            revision=one.revision,
            rule=" + ".join(rule.name for rule in rules)[:64],
            pipeline=first.pipeline,
            version=info.version,
            weights_digest=info.weights_digest,
            config_digest=config_digest,
            class_name=settings.class_,
            options={**settings.options, **first.options},
            send_to=sorted({name for rule in rules for name in rule.send_to}),
            inputs=inputs,
            incomplete=one.incomplete,
            completion=f"{completion}: {one.proof}",
            band=max(rule.band for rule in rules),
        )


def _together(matched: Sequence[Rule], config: Config) -> list[list[Rule]]:
    """Rules that ask for the same computation share one job, with every destination of theirs: nothing twice."""
    groups: dict[tuple[str, str], list[Rule]] = {}
    for rule in sorted(matched, key=lambda rule: rule.name):
        groups.setdefault((rule.pipeline, config.job_digest(rule)), []).append(rule)
    return list(groups.values())


def _conflict(one: Series, held: Sequence[Instance], patients: int) -> str:
    """Reason to stop, or empty: one study with two patients is an identity conflict (never guess)."""
    if patients > 1:
        return (
            f"study {one.study_uid} carries {patients} different patient identities: nothing of it is processed; "
            "correct the identity at the source, `dicomnode series UID --discard` the series that carry the wrong one, "
            "and send those again; the rest is then decided by itself"
        )
    studies = {item.study_uid for item in held}
    if len(studies) > 1:
        return f"series {one.series_uid} carries {len(studies)} Study Instance UIDs; correct it at the source"
    return ""


def _look_again_if_changed(connection: Connection, one: Series, patients: int, of_whole: Sequence[NewJob]) -> None:
    """Raise `IllegalMove` where a discard or an arrival in the rest of the study undid what the decision rests on.

    What changes in the series itself, its own move notices (`series.move`).
    """
    wanted = sorted({uid for job in of_whole for uid in job.inputs})
    now = instances.patients_of_study(connection, one.study_uid)
    if now != patients or instances.kept(connection, wanted) != set(wanted):
        raise IllegalMove(f"study {one.study_uid} changed while series {one.series_uid} was looked at")


def _gone(connection: Connection, one: Series, held: Sequence[Instance]) -> str:
    """Reason not to replace a result, or empty: part of what it was made of is past its retention."""
    every = jobs.of_series(connection, one.series_uid)
    earlier = [job for job in every if job.revision < one.revision and job.error_class != revisions.DISCARDED]
    missing = set(earlier[-1].inputs) - {item.sop_instance_uid for item in held} if earlier else set()
    if not missing:
        return ""
    return (
        f"{len(missing)} images of the earlier result are past their retention: the new ones "
        "alone would replace the whole by a part; send the whole series again"
    )


def representative(held: Sequence[Instance]) -> Instance:
    """Return the representative instance: the lowest InstanceNumber, then UID, whatever the order of arrival."""

    def order(item: Instance) -> tuple[float, str]:
        try:
            return float(item.header.get("InstanceNumber", "inf")), item.sop_instance_uid
        except ValueError:
            return float("inf"), item.sop_instance_uid

    return min(held, key=order)


def read_header(path: Path) -> Dataset:
    """Read a stored object's attributes without its pixels; raises `SeriesError` naming the file."""
    try:
        return dcmread(path, stop_before_pixels=True, defer_size=_DEFER)
    except OSError:
        raise  # the disk's trouble, not the object's: tried again
    except Exception as error:  # pydicom raises many kinds; the series is rejected with the reason
        raise SeriesError(f"cannot read {path.name}: {type(error).__name__}: {error}") from error


def _report(one: Series, queued: Sequence[int], verdicts: Sequence[Verdict], reject: str) -> None:
    extra = {"series_uid": one.series_uid, "jobs": list(queued), "matched": [v.rule for v in verdicts if v.matched]}
    if reject:
        logger.error("Series rejected", extra={"action": "series_rejected", "reason": reject, **extra})
    elif not queued and not any(verdict.matched for verdict in verdicts):
        logger.info("Series makes no job", extra={"action": "series_unrouted", **extra})
    else:
        logger.info("Series routed", extra={"action": "series_routed", **extra})
