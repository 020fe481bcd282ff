"""What the workers found when they loaded the configured pipelines: assembly needs versions without importing torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, delete, insert, select

from dicomnode.store import schema


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineInfo:
    """What a worker found when it loaded a configured pipeline."""

    name: str
    class_name: str
    algorithm: str
    version: str
    weights_digest: str
    accepts_incomplete: bool
    #: Why it could not be loaded; empty if it was.
    error: str = ""


def describe(connection: Connection, infos: Sequence[PipelineInfo], at: datetime) -> None:
    """Replace the table of pipelines by what the workers loaded."""
    connection.execute(delete(schema.pipeline))
    for info in infos:
        values = {name: getattr(info, name) for name in PipelineInfo.__dataclass_fields__}
        connection.execute(insert(schema.pipeline).values(**values, at=at.timestamp()))


def described(connection: Connection) -> dict[str, PipelineInfo]:
    """The pipelines by name, as the workers loaded them; empty until the first slot is ready."""
    names = PipelineInfo.__dataclass_fields__
    rows = connection.execute(select(schema.pipeline))
    return {row.name: PipelineInfo(**{name: getattr(row, name) for name in names}) for row in rows}
