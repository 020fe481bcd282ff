"""The decision log: one line for everything the node decided about a series or a job."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection, insert, select

from dicomnode.store import schema


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One decision."""

    at: datetime
    action: str
    text: str
    series_uid: str
    job_id: int | None


def note(
    connection: Connection, at: datetime, action: str, text: str, *, series_uid: str = "", job_id: int | None = None
) -> None:
    """Write one line, in the transaction of the decision itself."""
    connection.execute(
        insert(schema.event).values(at=at.timestamp(), action=action, text=text, series_uid=series_uid, job_id=job_id)
    )


def of(connection: Connection, *, series_uid: str | None = None, job_id: int | None = None) -> list[Event]:
    """Everything decided about a series or a job, oldest first."""
    query = select(schema.event).order_by(schema.event.c.id)
    if series_uid is not None:
        query = query.where(schema.event.c.series_uid == series_uid)
    if job_id is not None:
        query = query.where(schema.event.c.job_id == job_id)
    return [
        Event(
            at=datetime.fromtimestamp(row.at, UTC),
            action=row.action,
            text=row.text,
            series_uid=row.series_uid,
            job_id=row.job_id,
        )
        for row in connection.execute(query)
    ]
