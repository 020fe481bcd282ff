"""Retention: what is old and done goes, what is unsent, running, dead or undecided stays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from dicomnode import config
from dicomnode.domain import Association, AssociationEnd, DeliveryState, JobState, SeriesState
from dicomnode.housekeep import Housekeeper
from dicomnode.store import deliveries, instances, jobs, schema
from dicomnode.store.db import Database
from tests.conftest import Clock
from tests.unit.test_store_db import instance
from tests.unit.test_store_jobs import new, output


class Site:
    def __init__(self, database: Database, clock: Clock, folder: Path) -> None:
        self.database, self.clock, self.data = database, clock, folder
        settings = {"node": {"data": str(folder)}, "destinations": {"PACS": {"ae_title": "P", "host": "127.0.0.1"}}}
        self.said: dict[str, str] = {}
        self.housekeeper = Housekeeper(
            config.Config.model_validate(settings), database, echo=lambda d: self.said.get(d.ae_title, ""), clock=clock
        )

    def series(self, number: int, state: SeriesState) -> Path:
        uid = f"1.2.{number}"
        file = self.data / "spool" / "aa" / f"{number}.dcm"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
        with self.database.write() as connection:
            instances.record(connection, [instance(number, self.clock(), uid)])
            table = schema.series
            connection.execute(update(table).where(table.c.series_uid == uid).values(state=state.value))
        return file

    def job(self, number: int, state: JobState, delivery: DeliveryState = DeliveryState.DELIVERED) -> Path:
        with self.database.write() as connection:
            job_id = jobs.enqueue(connection, new(f"k{number}", series=f"1.2.{number}"), self.clock())
            claimed = jobs.claim(connection, self.clock(), 1, "s", [])
            assert claimed is not None and job_id == claimed.id
            jobs.finish(connection, claimed, [replace(output(job_id))], self.clock(), quality={}, notes=[])
            connection.execute(update(schema.job).where(schema.job.c.id == job_id).values(state=state.value))
            table = schema.delivery
            connection.execute(update(table).where(table.c.job_id == job_id).values(state=delivery.value))
        folder = self.data / "results" / str(job_id)
        folder.mkdir(parents=True)
        return folder


@pytest.fixture
def site(database: Database, clock: Clock, tmp_path: Path) -> Iterator[Site]:
    yield Site(database, clock, tmp_path / "data")


def test_images_of_decided_series_go_and_all_others_stay(site: Site) -> None:
    unrouted = site.series(1, SeriesState.UNROUTED)
    receiving = site.series(2, SeriesState.RECEIVING)
    done, busy, dead = (site.series(number, SeriesState.ROUTED) for number in (3, 4, 5))
    site.job(3, JobState.CLOSED)
    site.job(4, JobState.STORED, DeliveryState.PENDING)
    site.job(5, JobState.DEAD)
    site.housekeeper.retain()
    assert all(file.exists() for file in (unrouted, receiving, done, busy, dead)), "nothing is old yet"
    site.clock.advance(8 * 86400)
    site.housekeeper.retain()
    assert not unrouted.exists() and not done.exists()
    assert receiving.exists() and busy.exists() and dead.exists()
    with site.database.read() as connection:
        assert instances.of_series(connection, "1.2.1") == [] and instances.of_series(connection, "1.2.4")


def test_results_that_are_not_delivered_are_never_deleted(site: Site) -> None:
    for number in (1, 2, 3):
        site.series(number, SeriesState.ROUTED)
    sent = site.job(1, JobState.CLOSED)
    waiting = site.job(2, JobState.STORED, DeliveryState.PENDING)
    refused = site.job(3, JobState.STORED, DeliveryState.DEAD)
    site.clock.advance(365 * 86400)
    site.housekeeper.retain()
    assert not sent.exists() and waiting.exists() and refused.exists()
    with site.database.read() as connection:
        assert deliveries.of_job(connection, 2), "rows of what waits stay"


def test_quarantine_and_old_associations_go_after_their_time(site: Site) -> None:
    with site.database.write() as connection:
        for number in (1, 2):
            instances.open_association(connection, Association(
                id=number, calling_ae="A", called_ae="B", address="127.0.0.1", opened_at=site.clock(),
            ))  # fmt: skip
        instances.close_association(connection, 1, AssociationEnd.RELEASED, site.clock())
    site.clock.advance(timedelta(days=40).total_seconds())
    site.housekeeper.retain()
    with site.database.read() as connection:
        assert instances.association_end(connection, 1) is None
        assert instances.connected_senders(connection) == {"A"}, "one that is open is never forgotten"


def test_a_destination_is_reported_when_it_goes_and_when_it_comes_back(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for problem in ("", "connection refused", "connection refused", ""):
        site.said["P"] = problem
        site.housekeeper.verify_destinations()
    actions = [record.action for record in caplog.records if hasattr(record, "action")]  # type: ignore[attr-defined]
    assert actions == ["destination_up", "destination_down", "destination_up"]


def test_a_stop_does_not_wait_for_every_destination(database: Database, tmp_path: Path) -> None:
    peers = {name: {"ae_title": name, "host": "127.0.0.1"} for name in ("ONE", "TWO", "THREE")}
    asked: list[str] = []

    def echo(destination: config.Destination) -> str:
        asked.append(destination.ae_title)
        if destination.ae_title == "TWO":
            housekeeper.stop()
        return ""

    settings = {"node": {"data": str(tmp_path)}, "destinations": peers}
    housekeeper = Housekeeper(config.Config.model_validate(settings), database, echo=echo)
    housekeeper.verify_destinations()
    assert asked == ["ONE", "TWO"]
