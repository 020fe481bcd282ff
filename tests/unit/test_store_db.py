"""The database: schema and migrations agree, copies before migration, refuses network disks, survives crashes."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text

from dicomnode.domain import SERIES_MOVES, Instance, SeriesState
from dicomnode.errors import IllegalMove, StoreError
from dicomnode.store import db, events, instances, schema, series
from dicomnode.store.db import Database
from tests.conftest import Clock


def instance(number: int, at: datetime, series_uid: str = "1.2", patient: str = "p") -> Instance:
    return Instance(
        sop_instance_uid=f"1.2.3.{number}", sop_class_uid="1", transfer_syntax_uid="1", study_uid="1",
        series_uid=series_uid, path=f"aa/{number}.dcm", size=1, received_at=at, association_id=1, calling_ae="CT1",
        patient_key=patient, header={"Modality": "CT"},
    )  # fmt: skip


def test_migrations_make_exactly_the_schema(database: Database) -> None:
    with database.engine.connect() as connection:
        difference = compare_metadata(MigrationContext.configure(connection), schema.metadata)
    assert difference == []


def test_the_file_is_copied_before_a_migration(tmp_path: Path) -> None:
    database = db.open_database("sqlite", tmp_path)
    db.migrate(database)
    with database.write() as connection:
        connection.execute(text("update alembic_version set version_num = '0000'"))
        for table in reversed(schema.metadata.sorted_tables):
            connection.execute(text(f"drop table {table.name}"))
    with pytest.raises(Exception, match="0000"):  # an unknown revision is not silently overwritten
        db.migrate(database)
    assert list(tmp_path.glob("node.db.before-*"))
    database.close()


def test_an_instance_that_the_rescan_saw_first_belongs_to_the_association_that_brought_it(
    database: Database, clock: Clock
) -> None:
    found = instance(1, clock())
    with database.write() as connection:
        assert instances.record(connection, [replace(found, association_id=0)]) == 1
        assert instances.record(connection, [replace(found, association_id=7)]) == 0
        assert instances.record(connection, [replace(found, association_id=8)]) == 0, "the first keeps it"
        assert [one.association_id for one in instances.of_series(connection, "1.2")] == [7]


def test_sqlite_waits_for_the_disk_except_where_the_spool_is_the_log(tmp_path: Path) -> None:
    for durable, wanted in ((True, 2), (False, 1)):  # 2 FULL, 1 NORMAL (sqlite.org/pragma.html)
        database = db.open_database("sqlite", tmp_path, durable=durable)
        with database.read() as connection:
            assert connection.exec_driver_sql("pragma synchronous").scalar() == wanted
            assert connection.exec_driver_sql("pragma journal_mode").scalar() == "wal"
        database.close()


def test_a_network_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(db, "file_system", lambda _: "nfs4")
    with pytest.raises(StoreError, match="local disk"):
        db.open_database("sqlite", tmp_path)


def test_writers_wait_for_each_other(database: Database, clock: Clock) -> None:
    def write(number: int) -> None:
        for one in range(20):
            with database.write() as connection:
                instances.record(connection, [instance(number * 100 + one, clock())])

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as connection:
        found = series.get(connection, "1.2")
    assert found is not None and found.instances == 80


def test_an_instance_recorded_twice_is_one_and_reopens_nothing(database: Database, clock: Clock) -> None:
    with database.write() as connection:
        assert instances.record(connection, [instance(1, clock())]) == 1
        one = series.get(connection, "1.2")
        assert one is not None
        series.move(connection, one, SeriesState.ASSEMBLING, clock(), "")
    with database.write() as connection:
        assert instances.record(connection, [instance(1, clock())]) == 0
        again = series.get(connection, "1.2")
    assert again is not None and again.state is SeriesState.ASSEMBLING and again.instances == 1


def test_a_late_instance_reopens_a_decided_series_as_a_new_revision(database: Database, clock: Clock) -> None:
    with database.write() as connection:
        instances.record(connection, [instance(1, clock())])
        for state in (SeriesState.ASSEMBLING, SeriesState.COMPLETE, SeriesState.UNROUTED):
            one = series.get(connection, "1.2")
            assert one is not None
            series.move(connection, one, state, clock(), "because")
        clock.advance(60)
        instances.record(connection, [instance(2, clock()), instance(3, clock())])
        late = series.get(connection, "1.2")
        assert late is not None
        assert (late.state, late.revision, late.instances) == (SeriesState.RECEIVING, 1, 3)
        assert late.first_at == clock(), "the cap counts from the first image of the revision"
        assert "late" in events.of(connection, series_uid="1.2")[-1].text
        assert series.reopened(connection, "CT1", clock()) == 1


def test_a_decision_is_undone_by_an_instance_that_arrived_meanwhile(database: Database, clock: Clock) -> None:
    with database.write() as connection:
        instances.record(connection, [instance(1, clock())])
        looked = series.get(connection, "1.2")
        assert looked is not None
        instances.record(connection, [instance(2, clock())])
        with pytest.raises(IllegalMove, match="changed"):
            series.move(connection, looked, SeriesState.ASSEMBLING, clock(), "")


@pytest.mark.parametrize("old", list(SeriesState))
def test_a_series_makes_only_the_moves_of_its_machine(database: Database, clock: Clock, old: SeriesState) -> None:
    for to in SeriesState:
        with database.write() as connection:
            instances.record(connection, [instance(1, clock())])
            connection.execute(schema.series.update().values(state=old.value))
            one = series.get(connection, "1.2")
            assert one is not None
            if to in SERIES_MOVES[old]:
                series.move(connection, one, to, clock(), "")
            else:
                with pytest.raises(IllegalMove):
                    series.move(connection, one, to, clock(), "")


def test_two_patients_of_one_study_are_counted(database: Database, clock: Clock) -> None:
    with database.write() as connection:
        instances.record(connection, [instance(1, clock()), instance(2, clock(), "1.9", "q")])
        assert instances.patients_of_study(connection, "1") == 2


def test_learned_gaps_forget_the_oldest(database: Database) -> None:
    with database.write() as connection:
        for number in range(series.GAPS_KEPT + 5):
            series.learn_gap(connection, "CT1", float(number))
        assert min(series.gaps(connection, "CT1")) == 5


def test_times_come_back_as_utc(database: Database) -> None:
    at = datetime(2026, 3, 29, 1, 30, 0, 123000, tzinfo=UTC)
    with database.write() as connection:
        instances.record(connection, [instance(1, at)])
        assert instances.of_series(connection, "1.2")[0].received_at == at
