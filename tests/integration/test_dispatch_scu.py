"""The Storage SCU against the in-process PACS: both engines must do the same, and no peer may hang or break it."""

from __future__ import annotations

import multiprocessing
import os
import struct
import threading
import time

import pytest
from pydicom import dcmread
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    RLELossless,
)
from pynetdicom.association import Association
from pynetdicom.transport import AssociationSocket

from dicomnode.config import Destination, Query
from dicomnode.dispatch import count_instances, echo, send_files
from dicomnode.dispatch.association import associate
from dicomnode.dispatch.contexts import propose
from dicomnode.dispatch.files import read
from dicomnode.dispatch.scu import Engine, connect
from dicomnode.errors import AssociationAborted, ContextNotAccepted, StoreRefused
from tests.factories import ct_series, write_series
from tests.peers.pacs import Pacs

ENGINES: tuple[Engine, ...] = ("streaming", "stock")


@pytest.fixture
def pacs(tmp_path):
    with Pacs(tmp_path / "pacs") as pacs:
        yield pacs
    leftover = [thread for thread in threading.enumerate() if isinstance(thread, Association) and thread.is_requestor]
    assert not leftover, "an association of ours was left open"


def peer(pacs, timeout=5.0):
    return Destination(ae_title=pacs.ae_title, host="127.0.0.1", port=pacs.port, timeout=timeout)


def query(pacs, timeout=5.0):
    return Query(ae_title=pacs.ae_title, host="127.0.0.1", port=pacs.port, timeout=timeout)


def restart(pacs, **knobs):
    pacs.stop()
    for name, value in knobs.items():
        setattr(pacs, name, value)
    pacs.start()


@pytest.fixture
def series(tmp_path):
    return ct_series(n=6)


@pytest.fixture
def paths(tmp_path, series):
    return sorted(write_series(tmp_path / "series", series))


# -- both engines


@pytest.mark.parametrize("engine", ENGINES)
def test_every_object_arrives_unchanged_on_one_association(pacs, series, paths, engine):
    seen = []
    outcomes = send_files(peer(pacs), "NODE", paths, seen.append, engine=engine)
    assert outcomes == seen
    assert all(one.delivered and one.status == 0 for one in outcomes)
    assert sorted(pacs.uids) == sorted(ds.SOPInstanceUID for ds in series)
    assert (pacs.associations, pacs.releases, pacs.aborts) == (1, 1, 0)
    assert {item.calling_ae for item in pacs.stored} == {"NODE"}
    sent = {ds.SOPInstanceUID: ds for ds in map(dcmread, paths)}
    for dataset in pacs.datasets():
        assert dataset == sent[dataset.SOPInstanceUID]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("status", "delivered"),
    [(0x0000, True), (0xB000, True), (0xB006, True), (0xB007, True), (0x0111, True), (0xA700, False), (0xA900, False),
     (0xC123, False), (0x0122, False), (0x0124, False), (0xFFFF, False)],
)  # fmt: skip
def test_each_status_is_an_outcome_and_the_next_object_goes_on(pacs, paths, engine, status, delivered):
    pacs.script(0x0000, status)
    outcomes = send_files(peer(pacs), "NODE", paths[:3], engine=engine)
    assert [one.delivered for one in outcomes] == [True, delivered, True]
    assert outcomes[1].status == status
    assert delivered or isinstance(outcomes[1].error, StoreRefused)
    assert f"0x{status:04X}" in outcomes[1].problem + outcomes[1].note or status == 0
    assert pacs.associations == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_a_refused_class_does_not_stop_the_others(pacs, tmp_path, engine):
    series = ct_series(n=3)
    series[1].SOPClassUID = series[1].file_meta.MediaStorageSOPClassUID = MRImageStorage
    paths = sorted(write_series(tmp_path / "mixed", series))
    restart(pacs, refuse=[MRImageStorage])
    outcomes = send_files(peer(pacs), "NODE", paths, engine=engine)
    assert sum(one.delivered for one in outcomes) == 2
    assert [type(one.error) for one in outcomes if one.error] == [ContextNotAccepted]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_peer_that_knows_implicit_only_gets_the_same_values(pacs, series, paths, engine):
    restart(pacs, syntaxes=[ImplicitVRLittleEndian])
    outcomes = send_files(peer(pacs), "NODE", paths, engine=engine)
    assert all(one.delivered for one in outcomes), outcomes
    assert {item.transfer_syntax_uid for item in pacs.stored} == {ImplicitVRLittleEndian}
    original = {ds.SOPInstanceUID: ds for ds in series}
    for dataset in pacs.datasets():
        assert dataset.PixelData == original[dataset.SOPInstanceUID].PixelData


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, RLELossless])
def test_each_file_goes_in_its_own_syntax(pacs, tmp_path, engine, syntax):
    paths = sorted(write_series(tmp_path / "own", ct_series(n=2, transfer_syntax=syntax)))
    assert all(one.delivered for one in send_files(peer(pacs), "NODE", paths, engine=engine))
    assert {item.transfer_syntax_uid for item in pacs.stored} == {syntax}


@pytest.mark.parametrize("max_pdu", [0, 8, 9, 64, 1 << 20], ids=str)
def test_any_pdu_length_of_the_peer_is_kept_to(pacs, series, paths, max_pdu):
    restart(pacs, max_pdu=max_pdu)
    outcomes = send_files(peer(pacs), "NODE", paths[:2])
    assert all(one.delivered for one in outcomes), outcomes
    sent = {ds.SOPInstanceUID: ds for ds in series}
    assert all(dataset.PixelData == sent[dataset.SOPInstanceUID].PixelData for dataset in pacs.datasets())


def test_a_large_object_is_sent_without_reading_it_into_memory(pacs, tmp_path):
    paths = write_series(tmp_path / "large", ct_series(n=1, rows=2048, columns=2048))
    assert send_files(peer(pacs), "NODE", list(paths))[0].delivered
    assert pacs.datasets()[0].PixelData == dcmread(next(iter(paths))).PixelData


def test_more_kinds_of_objects_than_one_association_can_propose(pacs, tmp_path):
    from pynetdicom import AllStoragePresentationContexts

    classes = [str(context.abstract_syntax) for context in AllStoragePresentationContexts][:100]
    series = ct_series(n=100, rows=2, columns=2)
    for dataset, sop_class in zip(series, classes, strict=True):
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = sop_class
    outcomes = send_files(peer(pacs), "NODE", sorted(write_series(tmp_path / "many", series)))
    assert all(one.delivered for one in outcomes)
    assert pacs.associations == 2


def test_deflated_files_are_sent_deflated_or_plain(pacs, tmp_path):
    dataset = ct_series(n=1)[0]
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    paths = list(write_series(tmp_path / "deflated", [dataset]))
    assert send_files(peer(pacs), "NODE", paths)[0].delivered
    restart(pacs, syntaxes=[ExplicitVRLittleEndian])
    assert send_files(peer(pacs), "NODE", paths)[0].delivered
    assert [i.transfer_syntax_uid for i in pacs.stored] == [DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian]


# -- peers that misbehave


def test_an_abort_in_the_middle_is_retried_for_what_was_not_sent(pacs, series, paths):
    pacs.abort_after = 3
    outcomes = send_files(peer(pacs), "NODE", paths)
    assert all(one.delivered for one in outcomes), outcomes
    assert len(set(pacs.uids)) == len(series)


def test_a_peer_that_aborts_every_time_is_given_up_with_the_reason(pacs, paths):
    pacs.abort_after = 1
    outcomes = send_files(peer(pacs), "NODE", paths)
    assert {type(one.error) for one in outcomes} == {AssociationAborted}
    assert pacs.associations == 3


def answer(**changes: int) -> bytes:
    """A C-STORE-RSP, broken as asked."""
    fields = {0x0100: 0x8001, 0x0120: 1, 0x0800: 0x0101, 0x0900: 0} | {int(k[1:], 16): v for k, v in changes.items()}
    body = b"".join(struct.pack("<HHLH", 0, tag, 2, value) for tag, value in sorted(fields.items()))
    body = struct.pack("<HHLL", 0, 0, 4, len(body)) + body
    return struct.pack(">BxL", 4, len(body) + 6) + struct.pack(">LBB", len(body) + 2, 1, 3) + body


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff" * 32,
        b"\x04\x00\x00\x00\x00\x00",
        b"\x04\x00\x7f\xff\xff\xff",
        b"\x04\x00\x00\x00\x00\x08\x00\x00\x00\x7f\x01\x03\x00\x00",
        b"\x05\x00\x00\x00\x00\x04\x00\x00\x00\x00",
        b"\x07\x00\x00\x00\x00\x04\x00\x00\x02\x00",
        answer(x0120=7),
        answer(x0100=0x8030),
        answer().replace(b"\x00\x09\x02\x00", b"\x00\x09\x00\x00"),
        answer(x0800=1) + b"\x05\x00\x00\x00\x00\x04\x00\x00\x00\x00",
        answer().replace(b"\x01\x03\x00", b"\x09\x03\x00", 1),
    ],
    ids=[
        "closed", "garbage", "empty PDU", "huge PDU", "PDV beyond PDU", "release", "abort", "other message",
        "other command", "no status", "data set promised", "other context",
    ],
)  # fmt: skip
def test_whatever_comes_instead_of_an_answer_ends_the_association_at_once(pacs, paths, raw):
    pacs.raw_answer = raw
    began = time.monotonic()
    with pytest.raises(AssociationAborted), connect(peer(pacs), "NODE", [read(paths[0])]) as link:
        link.send(read(paths[0]))
    assert time.monotonic() - began < 3
    pacs.raw_answer = None
    assert all(one.delivered for one in send_files(peer(pacs), "NODE", paths))


def test_an_answer_in_pieces_is_put_together(pacs, paths):
    whole = answer()
    command = whole[12:]
    pacs.raw_answer = b"".join(
        struct.pack(">BxL", 4, 7) + struct.pack(">LBB", 3, 1, 3 if at == len(command) - 1 else 1) + command[at : at + 1]
        for at in range(len(command))
    )
    with connect(peer(pacs), "NODE", [read(paths[0])]) as link:
        assert link.send(read(paths[0])).status == 0


@pytest.mark.parametrize("raw", [None, b"\x04\x00\x00\x00"], ids=["silence", "half a PDU"])
def test_a_peer_that_does_not_answer_in_time_is_left(pacs, paths, raw):
    pacs.raw_answer, pacs.sleep = raw, 30
    began = time.monotonic()
    outcomes = send_files(peer(pacs, timeout=1), "NODE", paths[:2])
    assert all("no answer" in one.problem for one in outcomes)
    assert time.monotonic() - began < 5


def test_a_peer_that_stops_reading_is_left(tmp_path, paths):
    """It accepts the association and then takes nothing in: only a timeout of the sending side helps."""
    with Pacs(tmp_path / "pacs") as pacs:
        large = list(write_series(tmp_path / "large", ct_series(n=1, rows=4096, columns=4096)))
        hold = threading.Event()
        recv = AssociationSocket.recv

        def stuck(self, nr_bytes):
            if self.assoc.is_acceptor and self.assoc.is_established:
                hold.wait(8)
                return bytearray()
            return recv(self, nr_bytes)

        AssociationSocket.recv = stuck
        try:
            began = time.monotonic()
            outcome = send_files(peer(pacs, timeout=1), "NODE", large)[0]
            assert not outcome.delivered
            assert time.monotonic() - began < 7
        finally:
            AssociationSocket.recv = recv
            hold.set()


# -- opening


def test_each_way_of_not_being_let_in_says_what_to_do(pacs, paths):
    pacs.reject = True
    assert "rejected the association of NODE" in send_files(peer(pacs), "NODE", paths)[0].problem
    pacs.reject = False
    wrong = peer(pacs).model_copy(update={"ae_title": "OTHER"})
    assert "Called AE title not recognised" in echo(wrong, "NODE")
    assert echo(peer(pacs), "NODE") == ""
    pacs.stop()
    assert "Connection refused" in echo(peer(pacs), "NODE")
    assert {one.problem for one in send_files(peer(pacs), "NODE", paths)} == {echo(peer(pacs), "NODE")}
    pacs.start()
    nowhere = Destination(ae_title="X", host="no-such-host.invalid", timeout=2)
    assert "not reachable" in echo(nowhere, "NODE")


def test_a_file_that_is_no_dicom_is_one_outcome_among_the_others(pacs, paths, tmp_path):
    odd = tmp_path / "series" / "odd.dcm"
    odd.write_bytes(b"no")
    outcomes = send_files(peer(pacs), "NODE", [odd, *paths])
    assert [one.delivered for one in outcomes] == [False] + [True] * 6
    assert "odd.dcm" in outcomes[0].problem


# -- counting


def test_an_archive_is_counted_at_series_or_image_level(pacs, series, paths):
    send_files(peer(pacs), "NODE", paths)
    study, uid = series[0].StudyInstanceUID, series[0].SeriesInstanceUID
    assert count_instances(query(pacs), "NODE", study, uid) == 6
    assert [str(keys.QueryRetrieveLevel) for keys in pacs.queries] == ["SERIES"]
    pacs.find = "images"
    assert count_instances(query(pacs), "NODE", study, uid) == 6
    assert [str(keys.QueryRetrieveLevel) for keys in pacs.queries][1:] == ["SERIES", "IMAGE"]


def test_a_series_the_archive_does_not_know_is_not_counted_as_zero(pacs):
    assert count_instances(query(pacs), "NODE", "1.2.3", "1.2.3.4") is None


@pytest.mark.parametrize("find", ["fail", "silent"])
def test_no_usable_answer_is_none_and_comes_soon(pacs, find, caplog):
    pacs.find = find
    began = time.monotonic()
    assert count_instances(query(pacs, timeout=1), "NODE", "1.2.3", "1.2.3.4") is None
    assert time.monotonic() - began < 4
    assert "count_failed" in [getattr(record, "action", "") for record in caplog.records]


# -- what we rely on in pynetdicom


def test_the_private_names_we_rely_on_are_there(pacs, paths):
    with associate(peer(pacs), "NODE", propose([read(paths[0])])) as assoc:
        assert isinstance(assoc._reactor_checkpoint, threading.Event)
        assert assoc.is_alive()
        assert assoc.dul.is_alive()
        assert callable(assoc.kill)
        assert {"_create_socket", "ready", "recv"} <= set(dir(AssociationSocket))


def _burn(end):
    while time.monotonic() < end:
        sum(range(10000))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_no_answer_is_lost_to_pynetdicoms_own_thread_under_load(pacs, tmp_path, engine):
    """`send_c_store` alone loses this race every few hundred objects on a busy machine."""
    paths = sorted(write_series(tmp_path / "many", ct_series(n=200, rows=4, columns=4)))
    end = time.monotonic() + 20
    context = multiprocessing.get_context("spawn")
    burners = [context.Process(target=_burn, args=(end,)) for _ in range(2 * (os.cpu_count() or 1))]
    for burner in burners:
        burner.start()
    try:
        for _ in range(3):
            assert all(one.delivered for one in send_files(peer(pacs, timeout=10), "NODE", paths, engine=engine))
    finally:
        for burner in burners:
            burner.terminate()
            burner.join()
    assert pacs.associations == pacs.releases == 3
