"""Results that a job has stored and that wait in the outbox: what dispatch finds when its turn comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from pydicom import Dataset
from sqlalchemy import select, update

from dicomnode.domain import Band, Flavour, ObjectKind, Output
from dicomnode.store import deliveries, jobs, schema
from dicomnode.store.db import Database, migrate, open_database
from dicomnode.store.deliveries import Delivery
from dicomnode.store.results import ResultFolder

START = datetime(2020, 1, 1, tzinfo=UTC)


def open_migrated(data: Path) -> Database:
    """An embedded database under ``data``, with its tables."""
    database = open_database("sqlite", data)
    migrate(database)
    return database


def store_job(
    database: Database,
    data: Path,
    datasets: Sequence[Dataset],
    send_to: Sequence[str],
    at: datetime | None = None,
    kinds: Sequence[tuple[ObjectKind, Flavour]] = (),
    takes: Callable[[str, Output], bool] | None = None,
) -> int:
    """Make one job whose results are these data sets, as the dispatcher would. Return its id.

    ``kinds`` says what each is; destinations get what ``takes`` says, else everything but the BINARY flavour.
    """
    at = at or START
    first = datasets[0]
    new = jobs.NewJob(
        key=f"key-{first.SOPInstanceUID}",
        series_uid=str(first.SeriesInstanceUID),
        study_uid=str(first.StudyInstanceUID),
        revision=0,
        rule="test",
        pipeline="test",
        version="1",
        weights_digest="",
        config_digest="",
        class_name="tests:Test",
        options={},
        send_to=list(send_to),
        inputs=[],
        incomplete=False,
        completion="counted",
        band=Band.ROUTINE,
    )
    with database.write() as connection:
        job_id = jobs.enqueue(connection, new, at)
        assert job_id is not None
        # Straight to running: which jobs run when is another room's matter.
        connection.execute(
            update(schema.job).where(schema.job.c.id == job_id).values(state="running", attempt=1, started_at=0.0)
        )
        job = jobs.get(connection, job_id)
        assert job is not None
    with ResultFolder(data / "results", job_id, "1") as folder:
        for index, dataset in enumerate(datasets):
            kind, flavour = kinds[index] if kinds else (ObjectKind.IMAGE, Flavour.ANY)
            folder.add(dataset, role="image", index=index, kind=kind, flavour=flavour)
        # Absolute, because these tests configure no data folder that relative paths could start from.
        outputs = [replace(one, path=data / "results" / one.path) for one in folder.commit()]
    with database.write() as connection:
        takes = takes or (lambda _, output: output.flavour is not Flavour.BINARY)
        assert jobs.finish(connection, job, outputs, at, quality={}, notes=[], takes=takes)
    return job_id


def states(database: Database, destination: str | None = None) -> list[str]:
    """State of every delivery, in order."""
    return [one.state.value for one in rows(database, destination)]


def rows(database: Database, destination: str | None = None) -> list[Delivery]:
    """Every delivery, in order."""
    with database.read() as connection:
        ids = connection.scalars(select(schema.job.c.id).order_by(schema.job.c.id)).all()
        found = [one for job_id in ids for one in deliveries.of_job(connection, job_id)]
    return [one for one in found if destination in (None, one.destination)]


def job_state(database: Database, job_id: int) -> str:
    """State of a job."""
    with database.read() as connection:
        job = jobs.get(connection, job_id)
    assert job is not None
    return str(job.state.value)
