"""What goes wrong on the way in, through a real socket: the status answered, what is kept, and who else notices.

Row numbers are those of the nasty-input catalogue of the output specification.
"""

from __future__ import annotations

import logging
import os
import random
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydicom import Dataset

from dicomnode.receive import watermark
from tests import factories
from tests.peers.parrot import (
    EXPLICIT,
    IMPLICIT,
    VERIFICATION,
    Gone,
    Parrot,
    Rejected,
    associate_rq,
    contexts_for,
    encoded,
    fragments,
    p_data,
    pdv,
    store_rq,
)
from tests.peers.receiving import Receiving, data_set_of, until

SUCCESS, DUPLICATE, OUT_OF_RESOURCES, MISMATCH, NOT_UNDERSTOOD = 0x0000, 0x0111, 0xA700, 0xA900, 0xC000
CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"


@pytest.fixture(params=["streaming", "stock"])
def node(request: pytest.FixtureRequest, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Receiving]:
    caplog.set_level(logging.INFO)
    with Receiving(tmp_path / "node", engine=request.param) as receiving:
        yield receiving


@pytest.fixture
def streaming(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Receiving]:
    caplog.set_level(logging.INFO)
    with Receiving(tmp_path / "node") as receiving:
        yield receiving


def image(**knobs: object) -> Dataset:
    return factories.ct_series(n=1, **knobs)[0]  # type: ignore[arg-type]


def logged(caplog: pytest.LogCaptureFixture, action: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if getattr(record, "action", "") == action]


def quarantine_line(caplog: pytest.LogCaptureFixture, code: str) -> logging.LogRecord:
    """The one log line of a quarantined object; the reason is in it."""
    lines = [record for record in logged(caplog, "instance_quarantined") if record.code == code]  # type: ignore[attr-defined]
    assert len(lines) == 1
    return lines[0]


def send(node: Receiving, ds: Dataset, data: bytes | None = None, **command: str) -> int:
    """Send one object between two good ones on the same association, which must not be disturbed."""
    before, after = factories.ct_series(n=2, series="neighbours", study="neighbours")
    transfer = command.pop("transfer_syntax", EXPLICIT)
    contexts = {**contexts_for([ds], transfer), 101: (CT, [EXPLICIT])}
    parrot = Parrot.associated(node.port, contexts)
    assert parrot.store_dataset(101, before) in (SUCCESS,)
    sop_class = command.get("sop_class", str(ds.get("SOPClassUID", CT)))
    sop_instance = command.get("sop_instance", str(ds.get("SOPInstanceUID", "")))
    status = parrot.store(3, sop_class, sop_instance, encoded(ds, transfer) if data is None else data)
    assert parrot.store_dataset(101, after) == SUCCESS
    assert parrot.echo(1) == SUCCESS
    parrot.release()
    for neighbour in (before, after):
        assert data_set_of(node.stored()[neighbour.SOPInstanceUID]) == encoded(neighbour)
    node.wait_rows("instance", 2)
    node.idle()
    assert node.incoming() == []
    return status


# Rows 1-6: the object is not what it claims


def test_row_1_command_and_data_set_name_different_instances(node: Receiving, caplog: pytest.LogCaptureFixture) -> None:
    ds = image()
    assert send(node, ds, sop_instance="1.2.3.4.5") == MISMATCH
    assert node.quarantined() == ["uid-mismatch"]
    line = quarantine_line(caplog, "uid-mismatch")
    assert "1.2.3.4.5" in line.getMessage() and ds.SOPInstanceUID in line.getMessage()
    [row] = node.wait_rows("quarantine", 1)
    assert row["status"] == MISMATCH and row["calling_ae"] == "CT1" and row["series_uid"] == ds.SeriesInstanceUID
    [kept] = (node.data / "quarantine").glob("*.dcm")
    assert data_set_of(kept) == encoded(ds)


def test_row_2_command_and_data_set_name_different_classes(node: Receiving, caplog: pytest.LogCaptureFixture) -> None:
    assert send(node, image(), sop_class=MR) == MISMATCH
    assert node.quarantined() == ["class-mismatch"]
    quarantine_line(caplog, "class-mismatch")


def test_row_2b_the_class_is_not_that_of_the_presentation_context(node: Receiving) -> None:
    ds = image()
    with Parrot.associated(node.port, {3: (MR, [EXPLICIT])}) as parrot:
        assert parrot.store(3, CT, ds.SOPInstanceUID, encoded(ds)) == MISMATCH
    assert node.quarantined() == ["class-mismatch"]


def test_row_3_garbage_is_kept_but_not_accepted(node: Receiving, caplog: pytest.LogCaptureFixture) -> None:
    noise = random.Random(7).randbytes(800)
    assert send(node, image(), noise) == NOT_UNDERSTOOD
    assert node.quarantined() == ["unreadable"]
    quarantine_line(caplog, "unreadable")
    [kept] = (node.data / "quarantine").glob("*.dcm")
    assert data_set_of(kept) == noise


@pytest.mark.parametrize("missing", [1, 1000, 2048])
def test_row_4_a_cut_data_set_is_not_an_image(node: Receiving, missing: int, caplog: pytest.LogCaptureFixture) -> None:
    ds = image()
    assert send(node, ds, encoded(ds)[:-missing]) == NOT_UNDERSTOOD
    quarantine_line(caplog, "truncated")


def test_row_4b_pixel_data_that_says_it_is_short_is_short(node: Receiving, caplog: pytest.LogCaptureFixture) -> None:
    ds = image()
    ds.PixelData = ds.PixelData[:-2]
    assert send(node, ds) == NOT_UNDERSTOOD
    assert "2048 bytes" in quarantine_line(caplog, "truncated").getMessage()
    whole = image(series="b")
    del whole.PixelData
    assert send(node, whole) == NOT_UNDERSTOOD


def test_row_5_an_empty_data_set_is_refused(node: Receiving, caplog: pytest.LogCaptureFixture) -> None:
    assert send(node, image(), b"") == NOT_UNDERSTOOD
    quarantine_line(caplog, "empty")


def test_row_5b_a_request_without_data_set_is_refused(streaming: Receiving) -> None:
    with Parrot.associated(streaming.port, {3: (CT, [EXPLICIT])}) as parrot:
        parrot.send(p_data(pdv(3, 3, store_rq(1, CT, "1.2.3", data_set=0x0101))))
        assert parrot.response().status == NOT_UNDERSTOOD
        assert parrot.store_dataset(3, image()) == SUCCESS


def test_row_6_padding_is_accepted_with_a_warning(node: Receiving, caplog: pytest.LogCaptureFixture) -> None:
    ds = image()
    ds.PixelData += bytes(512)
    assert send(node, ds) == SUCCESS
    assert "512 bytes more" in until(lambda: logged(caplog, "instance_padded"))[0].getMessage()
    behind = image(series="behind")
    assert send(node, behind, encoded(behind) + bytes(100)) == SUCCESS
    assert data_set_of(node.stored()[behind.SOPInstanceUID]) == encoded(behind) + bytes(100)
    until(lambda: len(logged(caplog, "instance_padded")) == 2)


# Rows 7-12: the connection


def test_row_7_an_abort_in_mid_instance_leaves_nothing(node: Receiving) -> None:
    ds = image(rows=64, columns=64)
    raw = b"".join(p_data(one) for one in fragments(3, store_rq(1, CT, ds.SOPInstanceUID), encoded(ds), 500))
    parrot = Parrot.associated(node.port, contexts_for([ds]))
    parrot.send(raw[: len(raw) // 2])
    parrot.abort()
    node.idle()
    assert node.stored() == {} and node.incoming() == [] and node.quarantined() == []
    [row] = until(lambda: [row for row in node.rows("association") if row["ended"]])
    assert row["ended"] == "aborted"
    assert send(node, ds) == SUCCESS


def test_row_8_an_abort_in_mid_series_keeps_what_was_acknowledged(node: Receiving) -> None:
    [first] = factories.ct_series(n=1)
    parrot = Parrot.associated(node.port, contexts_for([first]))
    assert parrot.store_dataset(3, first) == SUCCESS
    parrot.abort()
    node.idle()
    assert set(node.stored()) == {first.SOPInstanceUID}
    [row] = until(lambda: [row for row in node.rows("association") if row["ended"]])
    assert row["ended"] == "aborted"


@pytest.mark.parametrize("engine", ["streaming", "stock"])
@pytest.mark.parametrize("length", [0xFFFFFFFF, 1 << 24])
def test_row_9_a_pdu_of_gigabytes_is_not_waited_for(tmp_path: Path, engine: str, length: int) -> None:
    with Receiving(tmp_path, engine=engine) as node:
        parrot = Parrot.associated(node.port, {3: (CT, [EXPLICIT])})
        began = time.monotonic()
        parrot.send(struct.pack(">BxL", 4, length) + b"abc")
        assert parrot.ending() or engine == "stock"
        assert time.monotonic() - began < 3
        node.idle()


@pytest.mark.parametrize("engine", ["streaming", "stock"])
def test_row_9_a_pdu_that_does_not_go_on_is_given_up(tmp_path: Path, engine: str) -> None:
    with Receiving(tmp_path, engine=engine, pdu_timeout=0.6, idle_timeout=30) as node:
        ds = image()
        raw = b"".join(p_data(one) for one in fragments(3, store_rq(1, CT, ds.SOPInstanceUID), encoded(ds)))
        parrot = Parrot.associated(node.port, contexts_for([ds]))
        parrot.send(raw[:-10])
        began = time.monotonic()
        try:
            for byte in raw[-10:-1]:  # drop by drop does not help
                time.sleep(0.2)
                parrot.send(bytes([byte]))
        except OSError:
            pass
        parrot.ending()
        assert time.monotonic() - began < 3
        node.idle()
        assert node.stored() == {} and node.incoming() == []


@pytest.mark.parametrize(
    "noise", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\4\0\0\0\0\0"]
)
def test_row_10_http_or_tls_on_the_port_is_aborted_and_logged_once(
    streaming: Receiving, caplog: pytest.LogCaptureFixture, noise: bytes
) -> None:
    for _ in range(3):
        parrot = Parrot(streaming.port)
        parrot.send(noise)
        assert parrot.ending()
    assert len(logged(caplog, "not_dicom")) == 1
    assert send(streaming, image()) == SUCCESS


def test_row_11_a_silent_connection_is_closed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with Receiving(tmp_path, acse_timeout=0.5) as node:
        silent, dripping = Parrot(node.port), Parrot(node.port)
        dripping.send(associate_rq("NODE", "CT1", {3: (CT, [EXPLICIT])})[:20])
        for parrot in (silent, dripping):
            with pytest.raises(Gone):
                parrot.pdu()
        assert until(lambda: len(logged(caplog, "connection_silent")) == 2)


@pytest.mark.parametrize("engine", ["streaming", "stock"])
def test_row_12_an_idle_association_is_aborted_and_its_files_stay(tmp_path: Path, engine: str) -> None:
    with Receiving(tmp_path, engine=engine, idle_timeout=0.6) as node:
        ds = image()
        parrot = Parrot.associated(node.port, contexts_for([ds]))
        assert parrot.store_dataset(3, ds) == SUCCESS
        assert parrot.ending()
        node.idle()
        assert set(node.stored()) == {ds.SOPInstanceUID}


# Rows 13-18: who may come in, and how


def test_row_13_one_association_too_many_is_told_to_come_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Receiving(tmp_path, max_associations=3) as node:
        contexts = {1: (VERIFICATION, [IMPLICIT])}
        inside = [Parrot.associated(node.port, contexts) for _ in range(3)]
        for _ in range(5):
            with pytest.raises(Rejected) as rejected:
                Parrot(node.port).associate(contexts)
            assert rejected.value.parameters == (2, 3, 2)
        assert [parrot.echo(1) for parrot in inside] == [SUCCESS] * 3
        assert logged(caplog, "association_rejected")[0].code == "too-many-associations"  # type: ignore[attr-defined]
        inside[0].release()
        until(lambda: len(node.receiver.server.associations) < 3)
        assert Parrot.associated(node.port, contexts).echo(1) == SUCCESS


def test_row_13b_connections_that_say_nothing_take_no_place(tmp_path: Path) -> None:
    with Receiving(tmp_path, max_associations=1, acse_timeout=5) as node:
        silent = [Parrot(node.port) for _ in range(20)]
        assert Parrot.associated(node.port, {1: (VERIFICATION, [IMPLICIT])}).echo(1) == SUCCESS
        assert len(silent) == 20


@pytest.mark.parametrize("engine", ["streaming", "stock"])
def test_rows_14_and_15_only_listed_peers_come_in(
    tmp_path: Path, engine: str, caplog: pytest.LogCaptureFixture
) -> None:
    sources = {"CT1": ("127.0.0.0/8",), "CT2": ("10.1.2.3",), "ANYWHERE": ()}
    with Receiving(
        tmp_path, engine=engine, sources=sources, accept_unknown_sources=False, ae_titles=("NODE", "OTHER")
    ) as node:
        contexts = {1: (VERIFICATION, [IMPLICIT])}
        for calling, called in (("CT1", "NODE"), ("ANYWHERE", "OTHER")):
            assert Parrot.associated(node.port, contexts, calling=calling, called=called).echo(1) == SUCCESS
        for calling, called, expected, code in (
            ("CT1", "WRONG", (1, 1, 7), "called-ae-unknown"),
            ("STRANGER", "NODE", (1, 1, 3), "calling-ae-unknown"),
            ("CT2", "NODE", (1, 1, 3), "address-not-allowed"),
        ):
            with pytest.raises(Rejected) as rejected:
                Parrot(node.port).associate(contexts, calling=calling, called=called)
            assert rejected.value.parameters == expected
            line = logged(caplog, "association_rejected")[-1]
            assert (line.code, line.calling_ae, line.address) == (code, calling, "127.0.0.1")  # type: ignore[attr-defined]


def test_row_16_many_and_repeated_presentation_contexts_are_each_answered(streaming: Receiving) -> None:
    ds = image()
    contexts = {number: (CT, [EXPLICIT if number % 4 == 1 else IMPLICIT]) for number in range(1, 256, 2)}
    with Parrot.associated(streaming.port, contexts) as parrot:
        assert parrot.store_dataset(255, ds, IMPLICIT) == SUCCESS
        assert parrot.store(1, CT, ds.SOPInstanceUID, encoded(ds)) == DUPLICATE, "other bytes: another syntax"


def test_row_17_compressed_syntaxes_alone_are_accepted_if_they_can_be_decoded(streaming: Receiving) -> None:
    unknown, j2k = "1.2.840.10008.1.2.4.999", "1.2.840.10008.1.2.4.90"
    with Parrot(streaming.port) as parrot:
        accepted = parrot.associate({3: (CT, [j2k]), 5: (CT, [unknown]), 7: (CT, [unknown, j2k])})
    assert accepted == {3: j2k, 7: j2k}


def test_row_41_unknown_classes_are_refused_context_by_context(streaming: Receiving) -> None:
    with Parrot(streaming.port) as parrot:
        accepted = parrot.associate({1: ("1.3.12.2.1107.5.9.1", [EXPLICIT]), 3: (CT, [EXPLICIT])})
        assert set(accepted) == {3}
        assert parrot.store_dataset(3, image()) == SUCCESS


@pytest.mark.parametrize("size", [1, 2, 100, 4084, 131000])
def test_row_18_pdus_of_any_size_work(node: Receiving, size: int) -> None:
    ds = image()
    data = encoded(ds)[:-2048] + bytes(2048)
    with Parrot.associated(node.port, contexts_for([ds])) as parrot:
        assert parrot.store(3, CT, ds.SOPInstanceUID, data, size=size, together=size == 100) == SUCCESS
    assert data_set_of(node.stored()[ds.SOPInstanceUID]) == data


# Rows 19-21: the same again


def test_row_19_a_second_identical_instance_is_acknowledged_and_not_stored_twice(node: Receiving) -> None:
    ds = image()
    assert send(node, ds) == SUCCESS
    assert send(node, ds) == SUCCESS
    assert len(node.stored()) == 3 and node.quarantined() == []
    assert len(node.rows("instance")) == 3


@pytest.mark.parametrize("refuse", [True, False])
def test_row_20_the_same_uid_with_other_bytes_never_replaces_the_first(
    tmp_path: Path, refuse: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with Receiving(tmp_path, refuse_changed_duplicates=refuse) as node:
        ds = image()
        assert send(node, ds) == SUCCESS
        original = encoded(ds)
        ds.PixelData = bytes(len(ds.PixelData))
        for _ in range(2):
            assert send(node, ds) == (DUPLICATE if refuse else SUCCESS)
        assert data_set_of(node.stored()[ds.SOPInstanceUID]) == original
        assert node.quarantined() == ["changed-duplicate"], "kept once, however often it comes"
        assert ds.SOPInstanceUID in logged(caplog, "instance_quarantined")[0].getMessage()
        assert len(node.wait_rows("quarantine", 1)) == 1


def test_row_20b_two_associations_that_race_for_one_uid_leave_one_file(streaming: Receiving) -> None:
    ds = image()
    other = encoded(ds)[:-2048] + b"\1" * 2048

    def one(number: int) -> int:
        with Parrot.associated(streaming.port, contexts_for([ds]), calling=f"CT{number}") as parrot:
            return parrot.store(3, CT, ds.SOPInstanceUID, other if number % 2 else encoded(ds), size=50)

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(one, range(8)))
    winner = data_set_of(streaming.stored()[ds.SOPInstanceUID])
    assert winner in (encoded(ds), other)
    for number, status in enumerate(statuses):
        same = winner == (other if number % 2 else encoded(ds))
        assert status == (SUCCESS if same else DUPLICATE)


def test_row_21_interleaved_series_are_kept_apart_by_uid(node: Receiving) -> None:
    first, second = factories.ct_series(n=3, series="a"), factories.ct_series(n=3, series="b")
    with Parrot.associated(node.port, contexts_for(first)) as parrot:
        for pair in zip(first, second, strict=True):
            assert [parrot.store_dataset(3, ds) for ds in pair] == [SUCCESS, SUCCESS]
    node.wait_rows("instance", 6)
    assert {row["series_uid"]: row["instances"] for row in node.rows("series")} == {
        first[0].SeriesInstanceUID: 3,
        second[0].SeriesInstanceUID: 3,
    }


# Rows 36-46: what is in the header


def test_rows_37_and_38_odd_patient_identifiers_are_stored_and_never_written_in_clear(
    node: Receiving, caplog: pytest.LogCaptureFixture
) -> None:
    odd = [image(patient_id=value, series=str(n)) for n, value in enumerate(["SECRET-" + "9" * 80, "", "A\x07B"])]
    for ds in odd:
        assert send(node, ds) == SUCCESS
    node.wait_rows("instance", 5)
    node.receiver.stop(1)
    assert "SECRET" not in caplog.text
    for file in node.data.glob("node.db*"):
        assert b"SECRET" not in file.read_bytes()


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("SeriesInstanceUID", "1.2.03.4"),
        ("StudyInstanceUID", "1.2.abc"),
        ("SeriesInstanceUID", "1." + "2" * 70),
        ("SOPInstanceUID", "1.2.00.5"),
        ("SOPInstanceUID", "../../../etc/passwd"),
        ("SOPInstanceUID", "x" * 200),
        ("SOPInstanceUID", "1.2/3"),
        ("SOPInstanceUID", "..."),
    ],
)
def test_row_40_an_invalid_uid_is_kept_but_goes_no_further(
    streaming: Receiving, keyword: str, value: str, caplog: pytest.LogCaptureFixture
) -> None:
    ds = image()
    factories.set_raw(ds, keyword, value.encode())
    assert (
        send(streaming, ds, encoded(ds), sop_instance=value if keyword == "SOPInstanceUID" else ds.SOPInstanceUID)
        == SUCCESS
    )
    assert streaming.quarantined() == ["invalid-uid"]
    assert len(streaming.stored()) == 2, "the neighbours"
    quarantine_line(caplog, "invalid-uid")
    assert streaming.wait_rows("quarantine", 1)[0]["status"] == SUCCESS
    outside = [path for path in streaming.data.rglob("*") if "passwd" in path.name]
    assert outside == []


def test_row_40b_leading_zeros_are_taken_where_configured(tmp_path: Path) -> None:
    with Receiving(tmp_path, accept_leading_zeros=True) as node:
        ds = image()
        factories.set_raw(ds, "SOPInstanceUID", b"1.2.00.5")
        assert send(node, ds, sop_instance="1.2.00.5") == SUCCESS
        assert "1.2.00.5" in node.stored()


@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "SOPClassUID", "StudyInstanceUID", "SeriesInstanceUID"])
@pytest.mark.parametrize("how", ["missing", "empty"])
def test_empty_and_missing_uids_are_refused_with_a_clear_reason(
    node: Receiving, keyword: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    ds = image()
    uid, sop_class = str(ds.SOPInstanceUID), str(ds.SOPClassUID)
    if how == "missing":
        del ds[keyword]
    else:
        factories.set_raw(ds, keyword, b"")
    with Parrot.associated(node.port, {3: (CT, [EXPLICIT])}) as parrot:
        assert parrot.store(3, sop_class, uid, encoded(ds)) == MISMATCH
    assert node.quarantined() == ["missing-uid"]
    assert how in quarantine_line(caplog, "missing-uid").getMessage()


def test_row_42_objects_that_are_no_images_are_stored(node: Receiving) -> None:
    report = "1.2.840.10008.5.1.4.1.1.88.11"
    ds = image()
    for keyword in ("PixelData", "Rows", "Columns", "BitsAllocated"):
        del ds[keyword]
    ds.SOPClassUID = report
    assert send(node, ds) == SUCCESS


@pytest.mark.parametrize(
    "syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1"], ids=["implicit", "big", "little"]
)
def test_row_44_every_plain_syntax_is_stored_as_it_came(node: Receiving, syntax: str) -> None:
    ds = image()
    if syntax == "1.2.840.10008.1.2.2":
        [ds] = factories.ct_series(n=1, transfer_syntax=syntax)
    assert send(node, ds, transfer_syntax=syntax) == SUCCESS
    assert data_set_of(node.stored()[ds.SOPInstanceUID]) == encoded(ds, syntax)
    row = next(row for row in node.wait_rows("instance", 3) if row["sop_instance_uid"] == ds.SOPInstanceUID)
    assert row["transfer_syntax_uid"] == syntax and row["header"]["Rows"] == str(ds.Rows)


# Rows 58, 67, 68, 77, 78: size, disk, crash, weird values, load


def test_row_58_an_object_beyond_the_limit_is_refused_and_its_start_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Receiving(tmp_path, max_object=3_000_000) as node:
        ds = image(rows=2048, columns=1024)
        assert send(node, ds) == NOT_UNDERSTOOD
        [kept] = (node.data / "quarantine").glob("*.dcm")
        assert kept.stat().st_size == 1 << 20
        quarantine_line(caplog, "too-large")


def test_row_67_a_filling_disk_refuses_before_accepting_and_recovers_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(watermark, "_LOOK_EVERY", 0.0)
    with Receiving(tmp_path, refuse_below_mb=100, accept_above_mb=200) as node:
        free = {"mb": 500}
        monkeypatch.setattr(node.receiver.watermark, "_free", lambda _: free["mb"] * 1_000_000)
        images = factories.ct_series(n=4)
        with Parrot.associated(node.port, contexts_for(images)) as parrot:
            assert parrot.store_dataset(3, images[0]) == SUCCESS
            free["mb"] = 99
            assert parrot.store_dataset(3, images[1]) == OUT_OF_RESOURCES
            free["mb"] = 150  # between the marks: still closed
            assert parrot.store_dataset(3, images[1]) == OUT_OF_RESOURCES
            assert parrot.echo(1) == SUCCESS
            free["mb"] = 200
            assert parrot.store_dataset(3, images[1]) == SUCCESS
            free["mb"] = 150
            assert parrot.store_dataset(3, images[2]) == SUCCESS
        assert len(logged(caplog, "disk_low")) == 1 and len(logged(caplog, "disk_recovered")) == 1
        assert {record.code for record in logged(caplog, "instance_refused")} == {"disk-low"}  # type: ignore[attr-defined]
        assert set(node.stored()) == {ds.SOPInstanceUID for ds in images[:3]} and node.incoming() == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.skipif(os.name != "posix", reason="needs mount")
def test_row_67b_a_full_disk_answers_out_of_resources_and_recovers(small_disk: Path, tmp_path: Path) -> None:
    with Receiving(tmp_path / "node") as roomy:
        database = roomy.data / "node.db"
        assert database.exists()
    with Receiving(small_disk / "node") as node:
        images = factories.ct_series(n=12, rows=512, columns=512)
        with Parrot.associated(node.port, contexts_for(images)) as parrot:
            statuses = [parrot.store_dataset(3, ds) for ds in images]
            assert set(statuses) == {SUCCESS, OUT_OF_RESOURCES}
            kept = {ds.SOPInstanceUID for ds, status in zip(images, statuses, strict=True) if status == SUCCESS}
            assert set(node.stored()) == kept and node.incoming() == []
            for path in node.stored().values():
                path.unlink()
            assert parrot.store_dataset(3, images[-1]) == SUCCESS
        assert data_set_of(node.stored()[images[-1].SOPInstanceUID]) == encoded(images[-1])


def test_row_77_weird_values_are_read_leniently(node: Receiving) -> None:
    ds = image()
    for keyword, value in (
        ("SliceThickness", b"1.0e400 "),
        ("InstanceNumber", b"1.0 "),
        ("Manufacturer", b"A\\B\0\0"),
        ("StudyTime", b"10:11:12"),
        ("NumberOfFrames", b"1.0 "),
    ):
        factories.set_raw(ds, keyword, value)
    assert send(node, ds) == SUCCESS
    header = next(r for r in node.wait_rows("instance", 3) if r["sop_instance_uid"] == ds.SOPInstanceUID)["header"]
    assert header["SliceThickness"] == "1.0e400" and header["Manufacturer"] == "A\\B"


def test_row_78_many_small_series_from_many_senders(streaming: Receiving) -> None:
    def sender(number: int) -> int:
        images = [ds for k in range(10) for ds in factories.ct_series(n=1, rows=8, columns=8, series=f"{number}-{k}")]
        with Parrot.associated(streaming.port, contexts_for(images), calling=f"CT{number}") as parrot:
            statuses = [parrot.store_dataset(3, ds) for ds in images]
            parrot.release()
        return statuses.count(SUCCESS)

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(sender, range(16))) == 160
    streaming.wait_rows("instance", 160)
    assert len(streaming.rows("series")) == 160
    until(lambda: {row["ended"] for row in streaming.rows("association")} == {"released"})


# Protocol errors that no row names


@pytest.mark.parametrize(
    "nonsense",
    [
        p_data(pdv(3, 0, b"data without a command")),
        p_data(pdv(3, 3, b"\0\0\0\0\4\0\0\0\1")),
        p_data(pdv(3, 3, b"no command set at all")),
        struct.pack(">BxL", 4, 10) + struct.pack(">LBB", 100, 3, 3) + bytes(4),
        struct.pack(">BxL", 4, 6) + struct.pack(">LBB", 1, 3, 3),
        b"\x09\0\0\0\0\4\0\0\0\0",
        p_data(pdv(3, 1, bytes(9000))) * 4,
    ],
    ids=["data", "short", "words", "too-long", "too-short", "unknown-pdu", "endless-command"],
)
def test_nonsense_inside_an_association_ends_it_and_nothing_else(streaming: Receiving, nonsense: bytes) -> None:
    ds = image()
    other = Parrot.associated(streaming.port, contexts_for([ds]), calling="CT2")
    parrot = Parrot.associated(streaming.port, contexts_for([ds]))
    parrot.send(nonsense)
    assert parrot.ending()
    assert other.store_dataset(3, ds) == SUCCESS
    other.release()
    streaming.idle()


def test_a_command_in_the_middle_of_a_data_set_ends_the_association(streaming: Receiving) -> None:
    ds = image()
    parrot = Parrot.associated(streaming.port, contexts_for([ds]))
    command = store_rq(1, CT, ds.SOPInstanceUID)
    parrot.send(p_data(pdv(3, 3, command)) + p_data(pdv(3, 0, encoded(ds)[:500])) + p_data(pdv(3, 3, command)))
    assert parrot.ending()
    streaming.idle()
    assert streaming.stored() == {} and streaming.incoming() == []


def test_a_service_that_is_not_offered_is_answered_by_the_library_and_storing_goes_on(streaming: Receiving) -> None:
    ds = image()
    parrot = Parrot.associated(streaming.port, contexts_for([ds]))
    assert parrot.store_dataset(3, ds) == SUCCESS
    find = store_rq(9, CT, "").replace(b"\0\0\0\1\2\0\0\0\1\0", b"\0\0\0\1\2\0\0\0\x20\0")
    parrot.send(b"".join(p_data(one) for one in fragments(3, find, encoded(Dataset()))))
    try:
        assert parrot.response().status != SUCCESS
        assert parrot.store_dataset(3, image(series="later")) == SUCCESS
    except Gone as gone:
        assert gone.abort
    streaming.idle() if parrot.sock.fileno() < 0 else parrot.sock.close()
    streaming.idle()
    assert ds.SOPInstanceUID in streaming.stored()


def test_a_peer_that_vanishes_is_noticed(node: Receiving) -> None:
    ds = image()
    parrot = Parrot.associated(node.port, contexts_for([ds]))
    assert parrot.store_dataset(3, ds) == SUCCESS
    parrot.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    parrot.sock.close()
    node.idle()
    assert len(node.stored()) == 1
