"""The objects jobs produced."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, select

from dicomnode.domain import Flavour, ObjectKind, Output
from dicomnode.store import schema


def of_job(connection: Connection, job_id: int) -> list[Output]:
    """What a job produced."""
    query = select(schema.output).where(schema.output.c.job_id == job_id).order_by(schema.output.c.id)
    return [
        Output(
            role=row.role,
            index=row.number,
            sop_class_uid=row.sop_class_uid,
            sop_instance_uid=row.sop_instance_uid,
            series_uid=row.series_uid,
            study_uid=row.study_uid,
            path=Path(row.path),
            size=row.size,
            sha256=row.sha256,
            kind=ObjectKind(row.kind),
            flavour=Flavour(row.flavour),
        )
        for row in connection.execute(query)
    ]


def is_own_result(connection: Connection, series_uid: str) -> bool:
    """Whether this node made that series (the loop guard)."""
    return (
        connection.scalar(select(schema.output.c.id).where(schema.output.c.series_uid == series_uid).limit(1))
        is not None
    )
