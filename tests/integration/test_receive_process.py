"""The receiver as the node runs it: a process of its own, killed at every point and started again; nothing is lost."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import select

from dicomnode.errors import NodeError
from dicomnode.receive.process import ReceiverProcess
from dicomnode.store import schema
from dicomnode.store.db import Database, migrate, open_database
from tests import factories
from tests.conftest import REPOSITORY
from tests.peers.dcmtk import require
from tests.peers.parrot import Gone, Parrot, contexts_for, encoded, fragments, p_data, store_rq
from tests.peers.receiving import data_set_of, settings, until

#: Every place where the receiver can die with an object half taken in.
POINTS = [
    "mid-association",
    "after-rename",
    "after-fsync",
    "before-answer",
    "after-answer",
    "after-quarantine",
    "after-row",
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "node"
    database = open_database("sqlite", folder)
    migrate(database)
    database.close()
    return folder


def opened(data: Path) -> Database:
    return open_database("sqlite", data)


def rows(data: Path, table: str) -> list[dict[str, object]]:
    database = opened(data)
    try:
        with database.read() as connection:
            return [dict(row._mapping) for row in connection.execute(select(schema.metadata.tables[table]))]
    finally:
        database.close()


def spooled(data: Path) -> dict[str, Path]:
    return {path.stem: path for path in (data / "spool").glob("??/*.dcm")}


def test_it_starts_receives_wakes_the_node_and_stops(data: Path) -> None:
    images = factories.ct_series(n=5)
    with ReceiverProcess(settings(data)) as receiver:
        assert receiver.alive and receiver.port > 0
        until(lambda: receiver.wait(0.1), what="the wake after the first scan")
        with Parrot.associated(receiver.port, contexts_for(images)) as parrot:
            assert [parrot.store_dataset(3, ds) for ds in images] == [0] * 5
            assert receiver.wait(5)
            parrot.release()
        until(lambda: len(rows(data, "instance")) == 5)
        receiver.stop()
        assert receiver.exit_code == 0
    [association] = rows(data, "association")
    assert association["ended"] == "released"


def test_a_port_in_use_is_said_at_start(data: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        receiver = ReceiverProcess(settings(data, port=taken.getsockname()[1]))
        with pytest.raises(NodeError, match=r"cannot listen on 127\.0\.0\.1"):
            receiver.start()
        receiver.close()


def test_it_can_be_started_again_after_it_died(data: Path, free_port: Callable[[], int]) -> None:
    receiver = ReceiverProcess(settings(data, port=free_port()))
    receiver.start()
    assert receiver.pid is not None
    os.kill(receiver.pid, signal.SIGKILL)
    until(lambda: not receiver.alive)
    assert receiver.exit_code == -signal.SIGKILL
    receiver.start()
    assert Parrot.associated(receiver.port, contexts_for([])).echo(1) == 0
    receiver.close()


def test_it_does_not_outlive_the_node(data: Path) -> None:
    code = f"""
import sys, time
from tests.peers.receiving import settings
from dicomnode.receive.process import ReceiverProcess
from pathlib import Path
receiver = ReceiverProcess(settings(Path({str(data)!r})))
receiver.start()
print(receiver.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    until(lambda: _gone(pid), what="the end of the orphan")


def _gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


@pytest.mark.parametrize("durability", ["instance", "deferred"])
@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_any_point_loses_nothing_that_was_acknowledged(
    data: Path, point: str, durability: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = factories.ct_series(n=6, rows=128, columns=128)
    broken = factories.ct_series(n=1, series="broken")[0]
    batched = point in ("after-row", "after-quarantine") or (point, durability) == ("after-fsync", "deferred")
    monkeypatch.setenv("DICOMNODE_FAULT", f"{point}:{1 if batched else 3}")
    receiver = ReceiverProcess(settings(data, durability=durability))
    receiver.start()
    acknowledged = []
    try:
        with Parrot.associated(receiver.port, contexts_for(images)) as parrot:
            for number, ds in enumerate(images):
                if number == 4:
                    parrot.store(3, str(ds.SOPClassUID), str(broken.SOPInstanceUID), encoded(broken)[:-9])
                if parrot.store(3, str(ds.SOPClassUID), str(ds.SOPInstanceUID), encoded(ds), size=4000) == 0:
                    acknowledged.append(str(ds.SOPInstanceUID))
    except (Gone, OSError):
        pass
    until(lambda: not receiver.alive, what=f"death at {point}")
    assert receiver.exit_code == -signal.SIGKILL
    monkeypatch.delenv("DICOMNODE_FAULT")
    receiver.start()
    expected = {str(ds.SOPInstanceUID): encoded(ds) for ds in images}
    for uid in acknowledged:
        assert data_set_of(spooled(data)[uid]) == expected[uid]
    until(lambda: {row["sop_instance_uid"] for row in rows(data, "instance")} == set(spooled(data)))
    assert list((data / "spool").rglob("*.part")) == []
    until(lambda: all(row["ended"] for row in rows(data, "association")))
    kept = {path.stem for path in (data / "quarantine").glob("*.dcm")}
    assert kept == {path.stem for path in (data / "quarantine").glob("*.json")}
    until(lambda: {row["name"] for row in rows(data, "quarantine")} == kept)
    with Parrot.associated(receiver.port, contexts_for(images)) as parrot:
        assert {parrot.store_dataset(3, ds) for ds in images} == {0}, "sending everything again is harmless"
    until(lambda: len(rows(data, "instance")) == 6)
    receiver.close()


def test_files_and_quarantine_without_rows_are_adopted_and_broken_ones_set_aside(data: Path) -> None:
    images = factories.ct_series(n=3)
    with ReceiverProcess(settings(data)) as receiver:
        with Parrot.associated(receiver.port, contexts_for(images), calling="CT9") as parrot:
            assert [parrot.store_dataset(3, ds) for ds in images] == [0, 0, 0]
            parrot.store(3, str(images[0].SOPClassUID), "1.2.3", encoded(images[0]))
        until(lambda: len(rows(data, "instance")) == 3 and rows(data, "quarantine"))
        before = {row["sop_instance_uid"]: row for row in rows(data, "instance")}
    for name in ("node.db", "node.db-wal", "node.db-shm"):
        (data / name).unlink(missing_ok=True)
    database = opened(data)
    migrate(database)
    database.close()
    half = spooled(data)[str(images[2].SOPInstanceUID)]
    half.write_bytes(half.read_bytes()[:-700])
    with ReceiverProcess(settings(data)) as receiver:
        until(lambda: len(rows(data, "instance")) == 2)
        until(lambda: len(rows(data, "quarantine")) == 2)
        for row in rows(data, "instance"):
            earlier = before[row["sop_instance_uid"]]
            for same in ("series_uid", "study_uid", "path", "size", "calling_ae", "patient_key", "header"):
                assert row[same] == earlier[same]
        assert {row["code"] for row in rows(data, "quarantine")} == {"uid-mismatch", "unreadable-file"}
        with Parrot.associated(receiver.port, contexts_for(images)) as parrot:
            assert parrot.store_dataset(3, images[2]) == 0, "the half-written one may come again"


def test_a_half_written_file_does_not_stand_in_the_way_of_the_whole_one(data: Path) -> None:
    [ds] = factories.ct_series(n=1)
    with ReceiverProcess(settings(data)) as receiver:
        until(lambda: receiver.wait(0.1))
        with Parrot.associated(receiver.port, contexts_for([ds])) as parrot:
            assert parrot.store_dataset(3, ds) == 0
            path = spooled(data)[str(ds.SOPInstanceUID)]
            path.write_bytes(path.read_bytes()[:1500])
            assert parrot.store_dataset(3, ds) == 0
        assert data_set_of(path) == encoded(ds)


def test_a_locked_database_neither_delays_nor_loses_anything(data: Path) -> None:
    images = factories.ct_series(n=4)
    with ReceiverProcess(settings(data)) as receiver:
        until(lambda: receiver.wait(0.1))
        database = opened(data)
        with database.write(), Parrot.associated(receiver.port, contexts_for(images)) as parrot:
            began = time.monotonic()
            assert [parrot.store_dataset(3, ds) for ds in images] == [0] * 4
            assert time.monotonic() - began < 3
            assert len(spooled(data)) == 4
        database.close()
        until(lambda: len(rows(data, "instance")) == 4)


def test_stop_lets_an_object_on_its_way_finish(data: Path) -> None:
    images = factories.ct_series(n=1, rows=256, columns=256)
    receiver = ReceiverProcess(settings(data))
    receiver.start()
    idle = Parrot.associated(receiver.port, contexts_for(images), calling="IDLE")
    parrot = Parrot.associated(receiver.port, contexts_for(images))
    [ds] = images
    raw_parts = [
        p_data(one) for one in fragments(3, store_rq(1, str(ds.SOPClassUID), str(ds.SOPInstanceUID)), encoded(ds), 9000)
    ]
    for raw in raw_parts[:-1]:
        parrot.send(raw)
    time.sleep(0.2)
    assert receiver._process is not None and receiver._process.stdin is not None
    receiver._process.stdin.close()
    assert idle.ending(), "the idle association is aborted at once"
    parrot.send(raw_parts[-1])
    assert parrot.response().status == 0
    assert parrot.ending()
    receiver.close()
    assert receiver.exit_code == 0
    assert set(spooled(data)) == {str(ds.SOPInstanceUID)}
    assert len(rows(data, "instance")) == 1


def test_stop_does_not_wait_for_a_peer_that_does_not_go_on(data: Path) -> None:
    receiver = ReceiverProcess(settings(data))
    receiver.start()
    parrot = Parrot.associated(receiver.port, contexts_for(factories.ct_series(n=1)))
    parrot.send(b"\4\0\0\0\1\0")
    began = time.monotonic()
    receiver.close()
    assert time.monotonic() - began < 12 and receiver.exit_code == 0
    parrot.ending()


@pytest.mark.parametrize("program", ["dcmsend", "storescu"])
def test_dcmtk_sends_in_every_way_it_knows(data: Path, tmp_path: Path, program: str) -> None:
    path = require(program)
    images = factories.ct_series(n=4)
    factories.write_series(tmp_path / "in", images)
    with ReceiverProcess(settings(data)) as receiver:
        for options in ([], ["--max-pdu", "4096", "--max-send-pdu", "4096"]):
            done = subprocess.run(
                [path, "-aec", "NODE", *options, "+sd", "127.0.0.1", str(receiver.port), str(tmp_path / "in")],
                capture_output=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
        until(lambda: len(rows(data, "instance")) == 4)
        until(lambda: {row["ended"] for row in rows(data, "association")} == {"released"})
    for ds in images:
        assert data_set_of(spooled(data)[str(ds.SOPInstanceUID)]) == encoded(ds)


def test_echoscu_is_answered_and_leaves_no_row(data: Path) -> None:
    program = require("echoscu")
    with ReceiverProcess(settings(data)) as receiver:
        done = subprocess.run([program, "-aec", "NODE", "127.0.0.1", str(receiver.port)], check=False)
        assert done.returncode == 0
    assert rows(data, "association") == []
