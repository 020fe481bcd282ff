from __future__ import annotations

import json
import os
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydicom import dcmread

from dicomnode.errors import InstanceConflict, StoreError
from dicomnode.store import part10, spool
from dicomnode.store.quarantine import Quarantine, printable
from dicomnode.store.spool import Part, Spool, rename_new

UID = "1.2.826.0.1.3680043.10.9999.1"
CT, EXPLICIT, IMPLICIT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def received(folder: Spool, data: bytes = b"data", uid: str = UID, syntax: str = EXPLICIT, sender: str = "CT1") -> Part:
    part = folder.incoming(uid)
    part.write((part10.head(CT, uid, syntax, sender, "NODE"), data))
    return part


def keep(quarantine: Quarantine, part: Part, code: str = "truncated") -> str:
    return quarantine.keep(
        part,
        code=code,
        reason="because",
        status=0xC000,
        sop_instance_uid=UID,
        series_uid="1.2.3",
        calling_ae="CT1",
        at=AT,
    ).name


def test_head_reads_back_and_is_what_pydicom_expects(tmp_path: Path) -> None:
    raw = part10.head(CT, UID, EXPLICIT, "SCANNER", "NODE")
    head = part10.read_head(raw + b"rest")
    assert (head.sop_class_uid, head.sop_instance_uid, head.transfer_syntax_uid) == (CT, UID, EXPLICIT)
    assert head.sender == "SCANNER" and head.length == len(raw)
    file = tmp_path / "a.dcm"
    file.write_bytes(raw + b"\x08\x00\x60\x00CS\x02\x00CT")
    meta = dcmread(file).file_meta
    assert meta.SendingApplicationEntityTitle == "SCANNER" and meta.ReceivingApplicationEntityTitle == "NODE"
    assert meta.FileMetaInformationGroupLength == len(raw) - 144


@pytest.mark.parametrize("raw", [b"", bytes(200), bytes(128) + b"DICM", part10.head(CT, UID, EXPLICIT, "A", "B")[:-1]])
def test_bytes_that_are_no_head_are_refused(raw: bytes) -> None:
    with pytest.raises(StoreError):
        part10.read_head(raw)


def test_placed_file_has_its_uid_for_name_and_incoming_is_empty(tmp_path: Path) -> None:
    folder = Spool(tmp_path)
    part = received(folder)
    assert folder.place(part, UID)
    folder.sync(part)
    part.close()
    path = tmp_path / "spool" / Spool.name(UID)
    assert path.name == f"{UID}.dcm" and path.read_bytes().endswith(b"data")
    assert list((tmp_path / "spool").rglob("*.part")) == []
    assert list(folder.files()) == [Spool.name(UID)]


def test_second_identical_data_set_is_dropped_even_from_another_sender(tmp_path: Path) -> None:
    folder = Spool(tmp_path)
    folder.place(received(folder), UID)
    assert not folder.place(received(folder, sender="OTHER"), UID)
    assert list((tmp_path / "spool").rglob("*.part")) == []


@pytest.mark.parametrize(("data", "syntax"), [(b"atad", EXPLICIT), (b"data and more", EXPLICIT), (b"data", IMPLICIT)])
def test_same_uid_with_other_bytes_or_syntax_never_replaces(tmp_path: Path, data: bytes, syntax: str) -> None:
    folder = Spool(tmp_path)
    folder.place(received(folder), UID)
    part = received(folder, data, syntax=syntax)
    with pytest.raises(InstanceConflict):
        folder.place(part, UID)
    assert Path(part.path).exists()
    assert (tmp_path / "spool" / Spool.name(UID)).read_bytes().endswith(b"data")


def test_large_files_are_compared_to_their_last_byte(tmp_path: Path) -> None:
    folder, data = Spool(tmp_path), os.urandom(3_000_000)
    folder.place(received(folder, data), UID)
    assert not folder.place(received(folder, data), UID)
    with pytest.raises(InstanceConflict):
        folder.place(received(folder, data[:-1] + bytes([data[-1] ^ 1])), UID)


def test_many_threads_that_place_one_uid_leave_exactly_one_file(tmp_path: Path) -> None:
    folder, new, start = Spool(tmp_path), [], threading.Barrier(8)
    parts = [received(folder) for _ in range(8)]

    def place(part: Part) -> None:
        start.wait()
        new.append(folder.place(part, UID))

    threads = [threading.Thread(target=place, args=(part,)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(new) == [False] * 7 + [True]
    assert len(list(folder.files())) == 1


def test_rename_works_where_the_file_system_knows_no_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoFlag:
        def renameat2(self, *_: object) -> int:
            spool.ctypes.set_errno(spool.errno.EINVAL)
            return -1

    monkeypatch.setattr(spool, "_libc", NoFlag())
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    assert not rename_new(str(tmp_path / "a"), str(tmp_path / "b"))
    assert rename_new(str(tmp_path / "a"), str(tmp_path / "c"))
    assert not (tmp_path / "a").exists() and (tmp_path / "b").read_text() == "b"


def test_leftovers_are_removed_and_placed_files_are_not(tmp_path: Path) -> None:
    folder = Spool(tmp_path)
    folder.place(received(folder), UID)
    received(folder, uid="1.2.3")
    assert Spool(tmp_path).remove_leftovers() == 1
    assert list(folder.files()) == [Spool.name(UID)]


def test_a_thousand_buffers_are_written_in_order(tmp_path: Path) -> None:
    part = Spool(tmp_path).incoming(UID)
    part.write([bytes([n % 256]) for n in range(2500)])
    assert Path(part.path).read_bytes() == bytes(n % 256 for n in range(2500))


def test_quarantine_explains_each_object_beside_it(tmp_path: Path) -> None:
    folder, quarantine = Spool(tmp_path), Quarantine(tmp_path)
    name = keep(quarantine, received(folder))
    record = json.loads((tmp_path / "quarantine" / f"{name}.json").read_text())
    assert record["reason"] == "because" and record["status"] == "0xC000"
    [item] = quarantine.items()
    assert (item.name, item.sop_instance_uid, item.status, item.at) == (name, UID, 0xC000, AT)
    assert list((tmp_path / "spool").rglob("*.part")) == []


def test_the_same_refused_object_is_kept_once_for_each_reason(tmp_path: Path) -> None:
    folder, quarantine = Spool(tmp_path), Quarantine(tmp_path)
    assert keep(quarantine, received(folder)) == keep(quarantine, received(folder))
    keep(quarantine, received(folder), code="other")
    assert len(list(quarantine.items())) == 2


def test_a_crash_between_the_side_file_and_the_object_leaves_nothing_unexplained(tmp_path: Path) -> None:
    folder, quarantine = Spool(tmp_path), Quarantine(tmp_path)
    name = keep(quarantine, received(folder))
    (tmp_path / "quarantine" / "truncated-orphan.json").write_text("{}")
    (tmp_path / "quarantine" / "x.tmp").write_text("")
    quarantine.remove_leftovers()
    assert [item.name for item in quarantine.items()] == [name]
    (tmp_path / "quarantine" / f"{name}.json").unlink()
    assert [item.code for item in quarantine.items()] == ["unexplained"]


def test_text_from_the_network_is_made_printable() -> None:
    assert printable("1.2\0\n\x1b[3m" + "9" * 200) == ("1.2???[3m" + "9" * 200)[:128]
