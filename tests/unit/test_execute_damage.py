"""Damaged inputs set aside: a file always has a name, the rows change together, and the UIDs are free again."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from sqlalchemy import select

from dicomnode import config
from dicomnode.domain import Band, Instance, JobState
from dicomnode.errors import UnreadableRawData
from dicomnode.execute import damage, executor
from dicomnode.execute.dispatcher import Dispatcher
from dicomnode.store import instances, jobs, schema
from dicomnode.store.quarantine import Quarantine
from dicomnode.volumes import raw
from tests.mrd_factory import Scan
from tests.raw_scans import wrapped

REASON = "part 1 is not what its SHA-256 says; send it again"


@pytest.fixture
def data(tmp_path):
    (tmp_path / "node" / "spool").mkdir(parents=True, exist_ok=True)
    return tmp_path / "node"


def received(database, data, clock, content=b"damaged", number=1, series_uid="1.2.3"):
    (data / "spool" / f"{number}.dcm").write_bytes(content)
    one = Instance(
        sop_instance_uid=f"{series_uid}.{number}", sop_class_uid="1", transfer_syntax_uid="1", study_uid="1.2",
        series_uid=series_uid, path=f"{number}.dcm", size=len(content),
        received_at=clock(), association_id=1, calling_ae="MR1", patient_key="p",
    )  # fmt: skip
    with database.write() as connection:
        instances.record(connection, [one])


def queued(database, clock, key="key"):
    new = jobs.NewJob(
        key=key, series_uid="1.2.3", study_uid="1.2", revision=0, rule="r", pipeline="p", version="1",
        weights_digest="", config_digest="", class_name="a:B", options={}, send_to=[], inputs=["1.2.3.1"],
        incomplete=False, completion="", band=Band.ROUTINE,
    )  # fmt: skip
    with database.write() as connection:
        job_id = jobs.enqueue(connection, new, clock())
        return None if job_id is None else jobs.get(connection, job_id)


def set_aside(database, data, clock, job):
    with database.read() as connection:
        kept = damage.keep(connection, data, ["1.2.3.1"], REASON, clock())
    assert (data / "spool" / "1.dcm").exists(), "it keeps its first name until everything is recorded"
    with database.write() as connection:
        damage.record(connection, job, kept)
    damage.clear(kept)
    return kept


def test_the_bytes_lie_in_quarantine_with_their_reason_and_nowhere_else(database, data, clock):
    received(database, data, clock)
    (one,) = set_aside(database, data, clock, queued(database, clock))
    (item,) = Quarantine(data).items()
    assert item == one.item and item.name.startswith("damaged-")
    assert item.sop_instance_uid == "1.2.3.1" and item.calling_ae == "MR1" and REASON in item.reason
    assert (data / "quarantine" / f"{item.name}.dcm").read_bytes() == b"damaged"
    assert not (data / "spool" / "1.dcm").exists()
    with database.read() as connection:
        assert instances.quarantined(connection) == [item]
        assert instances.of_series(connection, "1.2.3") == []
        assert connection.scalar(select(schema.series.c.instances)) == 0


def test_every_series_of_a_study_counts_the_images_that_it_has_left(database, data, clock):
    for number, series_uid in ((1, "1.2.3"), (2, "1.2.4"), (3, "1.2.4"), (4, "1.2.4")):
        received(database, data, clock, b"damaged %d" % number, number, series_uid)
    job = queued(database, clock)
    with database.write() as connection:
        kept = damage.keep(connection, data, ["1.2.3.1", "1.2.4.2", "1.2.4.3"], REASON, clock())
        damage.record(connection, job, kept)
        table = schema.series
        found = connection.execute(select(table.c.series_uid, table.c.instances))
        left = {row.series_uid: row.instances for row in found}
    assert left == {"1.2.3": 0, "1.2.4": 1}


def test_sound_data_under_the_same_uid_makes_a_job_again(database, data, clock):
    received(database, data, clock)
    first = queued(database, clock)
    assert queued(database, clock) is None, "the same input makes one job"
    set_aside(database, data, clock, first)
    received(database, data, clock, b"sound")
    second = queued(database, clock)
    assert second is not None and second.key == "key" and second.id != first.id


def test_the_same_damage_a_second_time_is_no_fault(database, data, clock):
    for _ in range(2):
        received(database, data, clock)
        set_aside(database, data, clock, queued(database, clock))
    assert len(list(Quarantine(data).items())) == 1


def test_a_crash_before_the_rows_changed_leaves_the_input_where_it_was(database, data, clock):
    received(database, data, clock)
    job = queued(database, clock)
    with database.read() as connection:
        damage.keep(connection, data, ["1.2.3.1"], REASON, clock())
    assert (data / "spool" / "1.dcm").read_bytes() == b"damaged"
    set_aside(database, data, clock, job)  # the job ran again
    assert len(list(Quarantine(data).items())) == 1


@pytest.mark.parametrize("place", ["payload", "private element"])
def test_what_is_at_fault_is_named_by_its_uid(tmp_path, place):
    paths = wrapped(tmp_path / "raw", Scan(slices=2).write(tmp_path / "scan.h5"), part_bytes=100_000)
    broken = paths[1]
    content = bytearray(broken.read_bytes())
    if place == "payload":
        content[-1000:-900] = bytes(100)
    else:
        at = content.index(b"application/x-ismrmrd")
        content[at : at + 5] = b"xxxxx"
    broken.write_bytes(content)
    with pytest.raises(UnreadableRawData) as caught:
        raw.unwrap(paths, tmp_path / "out.h5")
    assert caught.value.damaged == (str(raw.read_header(broken).SOPInstanceUID),)


def test_sound_data_that_came_while_a_second_job_read_the_damaged_file_is_not_set_aside(database, data, clock):
    """Another job set the damaged file aside first; the one that still runs must not take its successor for it."""
    received(database, data, clock)
    queued(database, clock)
    clock.advance(1)
    with database.write() as connection:
        running = jobs.claim(connection, clock(), 1, "slot", [])
    clock.advance(1)
    with database.write() as connection:
        instances.forget(connection, ["1.2.3.1"])
    received(database, data, clock, b"sound")
    settings = config.Config.model_validate({"node": {"data": str(data)}, "execute": {"slots": ["cpu"]}})
    dispatcher = Dispatcher(settings, database, SimpleNamespace(), clock=clock)
    dispatcher._end(running, executor.Refused("slot", running.id, REASON, ["1.2.3.1"]))
    assert (data / "spool" / "1.dcm").read_bytes() == b"sound" and list(Quarantine(data).items()) == []
    with database.read() as connection:
        assert len(instances.of_series(connection, "1.2.3")) == 1
        assert jobs.get(connection, running.id).state is JobState.QUEUED, "it runs again, on what came"
