"""Series: the legal moves of their state machine, and what assembly needs to know of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from dicomnode.domain import SERIES_MOVES, Completion, SeriesState
from dicomnode.errors import IllegalMove
from dicomnode.store import schema
from dicomnode.store.events import note

#: How many of a source's gaps are remembered.
GAPS_KEPT = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One series as the table has it."""

    series_uid: str
    study_uid: str
    state: SeriesState
    revision: int
    calling_ae: str
    modality: str
    instances: int
    first_at: datetime
    last_at: datetime
    expected: int | None
    completion: Completion | None
    #: Why it counted as complete.
    proof: str
    #: Why it is in its state.
    reason: str
    incomplete: bool
    decided_at: datetime | None
    facts: Mapping[str, Any] | None
    verdicts: Sequence[Mapping[str, Any]] | None


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _series(row: Row[Any]) -> Series:
    return Series(
        series_uid=row.series_uid,
        study_uid=row.study_uid,
        state=SeriesState(row.state),
        revision=row.revision,
        calling_ae=row.calling_ae,
        modality=row.modality,
        instances=row.instances,
        first_at=datetime.fromtimestamp(row.first_at, UTC),
        last_at=datetime.fromtimestamp(row.last_at, UTC),
        expected=row.expected,
        completion=Completion(row.completion) if row.completion else None,
        proof=row.proof,
        reason=row.reason,
        incomplete=row.incomplete,
        decided_at=_time(row.decided_at),
        facts=row.facts,
        verdicts=row.verdicts,
    )


def get(connection: Connection, series_uid: str) -> Series | None:
    """One series, or None."""
    row = connection.execute(select(schema.series).where(schema.series.c.series_uid == series_uid)).first()
    return None if row is None else _series(row)


def in_states(connection: Connection, *states: SeriesState, limit: int = 1000) -> list[Series]:
    """Series in these states, the one that has waited longest first."""
    table = schema.series
    query = select(table).order_by(table.c.last_at).limit(limit)
    if states:
        query = query.where(table.c.state.in_([state.value for state in states]))
    return [_series(row) for row in connection.execute(query)]


def of_study(connection: Connection, study_uid: str) -> list[Series]:
    """Every series of a study."""
    table = schema.series
    return [_series(row) for row in connection.execute(select(table).where(table.c.study_uid == study_uid))]


def latest(connection: Connection, limit: int = 50) -> list[Series]:
    """The series that received something last."""
    table = schema.series
    return [_series(row) for row in connection.execute(select(table).order_by(table.c.last_at.desc()).limit(limit))]


def counts(connection: Connection) -> dict[str, int]:
    """How many series are in each state."""
    query = select(schema.series.c.state, func.count()).group_by(schema.series.c.state)
    return {row[0]: row[1] for row in connection.execute(query)}


def move(connection: Connection, series: Series, to: SeriesState, at: datetime, reason: str, **values: object) -> None:
    """Make one move; raises `IllegalMove` if the machine has no such arrow or the row moved meanwhile.

    The count of instances is part of the guard: an instance that arrives between a look and the decision undoes it.
    """
    if to not in SERIES_MOVES[series.state]:
        raise IllegalMove(f"series {series.series_uid}: {series.state} -> {to} is not a move")
    table = schema.series
    done = connection.execute(
        update(table)
        .where(
            table.c.series_uid == series.series_uid,
            table.c.state == series.state.value,
            table.c.revision == series.revision,
            table.c.instances == series.instances,
        )
        .values(state=to.value, reason=reason, **values)
    )
    if done.rowcount != 1:
        raise IllegalMove(f"series {series.series_uid} changed while it was looked at")
    if to is not SeriesState.ASSEMBLING:
        note(connection, at, f"series_{to}", reason, series_uid=series.series_uid)


def learn_gap(connection: Connection, calling_ae: str, seconds: float) -> None:
    """Remember the longest pause inside one complete series of this sender."""
    table = schema.gap
    connection.execute(insert(table).values(calling_ae=calling_ae, seconds=seconds))
    keep = select(table.c.id).where(table.c.calling_ae == calling_ae).order_by(table.c.id.desc()).limit(GAPS_KEPT)
    connection.execute(delete(table).where(table.c.calling_ae == calling_ae, table.c.id.not_in(keep)))


def gaps(connection: Connection, calling_ae: str) -> list[float]:
    """The remembered pauses of a sender [s]."""
    return list(connection.scalars(select(schema.gap.c.seconds).where(schema.gap.c.calling_ae == calling_ae)))


def reopened(connection: Connection, calling_ae: str, since: datetime) -> int:
    """How many series of this sender grew lately after they had been called complete: its releases prove little."""
    table, event = schema.series, schema.event
    # An operator who has a series decided again makes a new revision too: the sender is not to blame for that.
    late = select(event.c.id).where(event.c.series_uid == table.c.series_uid, event.c.action == "series_reopened")
    grown = (table.c.calling_ae == calling_ae, table.c.revision > 0, table.c.last_at >= since.timestamp())
    query = select(func.count()).select_from(table).where(*grown, late.exists())
    return int(connection.scalar(query) or 0)
