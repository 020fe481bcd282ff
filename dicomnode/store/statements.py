"""What the newest results of a study say: the ground of every message about its urgent findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection, Row, select

from dicomnode.domain import JobState
from dicomnode.store import schema

if TYPE_CHECKING:
    from dicomnode.store.jobs import Job

#: One finding as a job's record has it: code (value, scheme, meaning), presence, probability, urgency.
Finding = Mapping[str, Any]

PRESENT: Final = "present"
_URGENCIES: Final = ("minutes", "hours", "days", None)
#: Jobs in these states will say something, and until then what the rule said before stands.
_COMING: Final = (JobState.QUEUED.value, JobState.RUNNING.value, JobState.HELD.value)


@dataclass(frozen=True, slots=True)
class Statement:
    """The newest result of one series by one rule."""

    version: str
    findings: Sequence[Finding]


def newest(connection: Connection, job: Job, findings: Sequence[Finding], pipelines: Sequence[str]) -> list[Statement]:
    """What the newest result of every series of the study of ``job`` says, ``job`` itself saying ``findings``."""
    table = schema.job
    query = select(table).where(table.c.study_uid == job.study_uid, table.c.pipeline.in_(pipelines))
    latest: dict[tuple[str, ...], tuple[Row[Any], Statement]] = {}
    last, coming = dict[str, int](), set[tuple[str, ...]]()
    for row in connection.execute(query.order_by(table.c.revision, table.c.id)):
        place, said = (row.series_uid, row.pipeline, row.rule), findings if row.id == job.id else row.findings
        if row.hold and row.released_at is None and row.id != job.id:
            said = None  # nobody has let it go: it says nothing yet, or never
        elif said is None and row.state == JobState.UNSUITABLE.value:
            said = []
        if said is not None:
            latest[place], last[row.series_uid] = (row, Statement(row.version, said)), row.revision
        elif row.state in _COMING:
            coming.add(place)
    return [
        statement
        for place, (row, statement) in latest.items()
        # What is superseded counts no more once other rules took a newer revision.
        if row.state != JobState.SUPERSEDED.value or row.revision == last[row.series_uid] or place in coming
    ]


def code_of(finding: Finding) -> tuple[str, str]:
    """Value and scheme of what was found."""
    return finding["code"][0], finding["code"][1]


def present(statements: Sequence[Statement]) -> dict[tuple[str, str], Finding]:
    """Findings that are present, one for each code: the most urgent."""
    found: dict[tuple[str, str], Finding] = {}
    for statement in statements:
        for one in statement.findings:
            known = found.get(code_of(one))
            if one["presence"] == PRESENT and (known is None or _rank(one) < _rank(known)):
                found[code_of(one)] = one
    return dict(sorted(found.items(), key=lambda item: (_rank(item[1]), item[0])))


def _rank(finding: Finding) -> int:
    return _URGENCIES.index(finding["urgency"])


def presence_now(finding: Finding, statements: Sequence[Statement]) -> str:
    """Presence of something that is no longer called present: absent only if every newest result says so."""
    now = {one["presence"] for part in statements for one in part.findings if code_of(one) == code_of(finding)}
    return "absent" if now == {"absent"} else "undetermined"
