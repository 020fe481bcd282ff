"""The MRD listener through real sockets: every way a stream may go wrong, and what is answered and kept."""

from __future__ import annotations

import random
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import ismrmrd
import numpy as np
import pytest

from dicomnode.kspace import Flag
from dicomnode.receive.mrd.journal import Converter, Journal
from dicomnode.receive.mrd.storing import recover
from dicomnode.store.raw import RawStore
from dicomnode.volumes import wire
from dicomnode.volumes.mrd import open_mrd, xml_of
from dicomnode.volumes.wire import CLOSE, Cutter, Kind
from tests.mrd_factory import Ellipse, Scan, bits
from tests.peers.scanner import SMALL, SUBJECT, Listener, opening, readouts, session, until

#: A name that is taken for a path, a module or a class somewhere in the world.
HOSTILE = ["../../etc/passwd", "os.system", "tests.mrd_evil:Evil", "default\n", "a/b", "", "./default", "x" * 1000]
BOMB = (
    '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    '<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">&b;</ismrmrdHeader>'
)
#: Where the acquisition header has kspace_encode_step_1.
STEP_1 = ismrmrd.AcquisitionHeader.idx.offset
HEADERS = {
    "not XML": b"this is no header",
    "entity bomb": BOMB.encode(),
    "no namespace": SMALL.xml().replace(b' xmlns="http://www.ismrm.org/ISMRMRD"', b""),
    "no matrix": SMALL.xml().replace(b"<matrixSize>", b"<matrix>").replace(b"</matrixSize>", b"</matrix>"),
    "empty": b"",
}


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    """Without workers: every image is the plain reconstruction, at once."""
    with Listener(tmp_path / "data", workers=False) as made:
        yield made


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listener]:
    """With workers, warm ones."""
    with Listener(tmp_path_factory.mktemp("live"), deadline_s=120) as made:
        made.play(session(), timeout_s=150)
        yield made


def image_of(answer: object) -> np.ndarray:
    return answer.images[0].data[0, 0]  # type: ignore[attr-defined, no-any-return]


# -- what should work


def test_images_come_back_with_place_scale_and_method(live: Listener) -> None:
    scan = Scan(
        matrix=(48, 32), fov=(240.0, 160.0), coils=3, slices=2, position=(12.0, -8.0, 40.0), read_dir=(0.0, 1.0, 0.0),
        phase_dir=(0.0, 0.0, -1.0), slice_dir=(-1.0, 0.0, 0.0),
    )  # fmt: skip
    answer = live.play(session(scan), timeout_s=150)
    assert answer.closed and not answer.texts
    assert [image.slice for image in answer.images] == [0, 1]
    first = answer.images[0]
    head, meta = first.getHead(), first.meta
    assert tuple(head.matrix_size) == (48, 32, 1) and first.data.dtype == np.uint16
    assert tuple(head.field_of_view) == (240.0, 160.0, 5.0)
    # MRD's position is the centre of the image: that of the slice, whatever the matrix.
    assert np.allclose(head.position, np.array(scan.position) - 8.0 * np.array(scan.slice_dir), atol=1e-3)
    assert tuple(head.read_dir) == scan.read_dir and tuple(head.phase_dir) == scan.phase_dir
    assert meta["DataRole"] == "Image" and meta["ReconstructionMethod"] == "toy Fourier"
    assert meta["ReconstructionLearned"] == "no" and "Warning" not in meta
    assert [float(value) for value in meta["ImageRowDir"]] == list(scan.read_dir)
    truth = scan.truth(48, 32) * np.sqrt((np.abs(scan.maps(48, 32)) ** 2).sum(0))
    values = image_of(answer) / float(meta["ImageScaleRatio"])
    assert np.corrcoef(values.ravel(), truth.ravel())[0, 1] > 0.97
    # One scale for the series: the brighter second slice (by a fifth) stays brighter.
    assert answer.images[1].data.max() / first.data.max() == pytest.approx(1.2, rel=0.01)


def test_what_came_is_in_the_file_before_close_is_answered(listener: Listener) -> None:
    sent = readouts()
    waveform = bytearray(40 + 4 * 2 * 3)
    struct.pack_into("<HH", waveform, 28, 3, 2)
    extra = struct.pack("<H", Kind.WAVEFORM) + bytes(waveform) + wire.text(Kind.TEXT, '{"parameters": {}}')
    player = listener.player()
    player.send(opening() + b"".join(sent[:7]) + extra + b"".join(sent[7:]) + CLOSE)
    assert player.wait().closed
    [item] = listener.kept()  # at this moment, not some time later
    assert item.readouts == len(sent) and not item.incomplete and item.config == "default"
    path = listener.store.payload(item.name)
    assert xml_of(path) == SMALL.xml(SUBJECT)
    back = list(open_mrd(path).readouts)
    for one, wanted in zip(back, SMALL.readouts(), strict=True):
        assert np.array_equal(one.data, wanted.data) and one.flags == wanted.flags and one.step_1 == wanted.step_1
    assert not listener.store.journals() and listener.pokes == 1
    player.close()


def test_a_client_that_reads_only_at_the_end_does_not_block_anything(live: Listener) -> None:
    scan = Scan(matrix=(160, 16), coils=1, slices=24)
    with socket.create_connection(("127.0.0.1", live.port), 60) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(150)
        connection.sendall(session(scan))
        time.sleep(0.5)
        cutter, seen = Cutter(2**30), []
        while not seen or seen[-1].kind is not Kind.CLOSE:
            data = connection.recv(65536)
            assert data, "the connection ended without CLOSE"
            cutter.feed(data)
            while (message := cutter.next()) is not None:
                seen.append(message)
    assert sum(message.kind is Kind.IMAGE for message in seen) == 24


def test_images_of_the_scanner_pass_through(listener: Listener) -> None:
    first = listener.play(session())
    packed = struct.pack("<H", Kind.IMAGE) + first.images[0].to_bytes()
    answer = listener.play(opening() + packed + packed + CLOSE)
    assert answer.closed and len(answer.images) == 2
    assert all(image == first.images[0] for image in answer.images)
    assert len(listener.kept()) == 1, "images alone are nothing to reconstruct"


def test_connect_and_close_and_a_question_for_a_config_are_normal(listener: Listener) -> None:
    listener.player().close()
    answer = listener.play(CLOSE)
    assert answer.closed and not answer.texts
    answer = listener.play(wire.config_file("default") + CLOSE)
    assert answer.closed and not answer.texts
    listener.until_idle()
    assert not listener.kept()


def test_a_config_may_come_as_text(listener: Listener) -> None:
    data = session().replace(wire.config_file("default"), wire.text(Kind.CONFIG_TEXT, "default"))
    assert len(listener.play(data).images) == 1


# -- configs


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("fallback", [None, "default"])
def test_nothing_but_listed_names_is_taken_for_a_config(tmp_path: Path, name: str, fallback: str | None) -> None:
    more = {"default": fallback} if fallback else {}
    with Listener(tmp_path / "data", workers=False, **more) as listener:
        before = set(sys.modules)
        answer = listener.play(session(config=name))
        assert not {one for one in set(sys.modules) - before if "evil" in one}
        if name == "default\n" or (name == "os.system" and fallback):
            assert answer.images, "white space around a name means nothing; a mere unknown name is the default's"
            return
        assert answer.closed and not answer.images
        assert any("not one of this node's" in text for text in answer.texts)
        assert not listener.kept()


def test_other_names_mean_the_default_where_there_is_one(tmp_path: Path) -> None:
    with Listener(tmp_path / "data", workers=False, default="default") as listener:
        answer = listener.play(session(config="invertcontrast"))
    assert answer.closed and len(answer.images) == 1
    assert "'default' is used instead" in answer.texts[0]


# -- headers and order


@pytest.mark.parametrize("xml", HEADERS.values(), ids=HEADERS)
def test_a_header_that_is_none_is_said_so(listener: Listener, xml: bytes) -> None:
    began = time.monotonic()
    rest = b"".join(readouts()) + CLOSE
    answer = listener.play(wire.config_file("default") + wire.text(Kind.HEADER, xml) + rest)
    assert answer.closed and not answer.images and "header" in answer.texts[-1]
    assert time.monotonic() - began < 10 and not listener.kept()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (wire.text(Kind.HEADER, SMALL.xml()), "before a config"),
        (wire.config_file("default") + readouts()[0], "before the header"),
        (wire.config_file("default") * 2, "second config"),
        (opening() + wire.text(Kind.HEADER, SMALL.xml()), "second header"),
        (opening() + struct.pack("<H", 1009), "no longer part of MRD"),
        (opening() + struct.pack("<H", 1030), "is not one of MRD's"),
        (b"GET / HTTP/1.1\r\n\r\n", "is not one of MRD's"),
        (opening() + struct.pack("<HL", Kind.TEXT, 0xFFFFFFFF), "max_message_mb allows"),
        (opening() + struct.pack("<H", Kind.IMAGE) + b"\xff" * 206, "unknown data type"),
    ],
)  # fmt: skip
def test_what_breaks_the_protocol_is_answered_with_the_reason_and_close(
    listener: Listener, data: bytes, said: str
) -> None:
    answer = listener.play(data)
    assert answer.closed and said in answer.texts[-1], answer.texts


def test_lines_before_a_broken_message_are_kept_and_marked(listener: Listener) -> None:
    answer = listener.play(opening() + b"".join(readouts()[:10]) + struct.pack("<H", 1012))
    assert answer.closed and len(answer.images) == 1, "ten lines are an image of a kind"
    [item] = listener.kept()
    assert item.readouts == 10 and "1012" in item.incomplete


def test_a_session_beyond_the_limit_ends(tmp_path: Path) -> None:
    scan = Scan(matrix=(128, 128), coils=8)  # 2.1 MB
    with Listener(tmp_path / "data", workers=False, max_session_mb=1, max_message_mb=1) as listener:
        answer = listener.play(session(scan))
    assert answer.closed and "max_session_mb" in " ".join(answer.texts)


# -- lines that are not what they should be


def test_bad_lines_are_left_out_and_the_rest_is_reconstructed(live: Listener) -> None:
    clean = live.play(session(), timeout_s=150)
    lines = readouts()
    bad = bytearray(lines[3])
    bad[2 + 340 : 2 + 348] = struct.pack("<ff", float("nan"), float("inf"))
    outside = bytearray(lines[4])
    struct.pack_into("<H", outside, 2 + STEP_1, 60000)
    assert struct.unpack_from("<H", lines[4], 2 + STEP_1)[0] == SMALL.readouts()[4].step_1
    empty = bytearray(lines[5][:342])
    struct.pack_into("<HHH", empty, 2 + 34, 64, 0, 0)
    answer = live.play(opening() + bytes(bad) + bytes(outside) + bytes(empty) + b"".join(lines) + CLOSE, timeout_s=150)
    assert answer.closed and np.array_equal(image_of(answer), image_of(clean))


@pytest.mark.parametrize("kind", ["plain", "live"])
def test_a_noise_scan_alone_makes_no_image_and_a_sentence(request: pytest.FixtureRequest, kind: str) -> None:
    where: Listener = request.getfixturevalue("live" if kind == "live" else "listener")
    scan = Scan(matrix=(32, 24), noise=0.01, noise_lines=8)
    answer = where.play(opening(scan) + b"".join(readouts(scan)[:8]) + CLOSE, timeout_s=150)
    assert answer.closed and not answer.images
    assert "no image can be made" in answer.texts[-1]


# -- ends


def test_a_client_that_is_gone_leaves_an_incomplete_measurement(listener: Listener) -> None:
    player = listener.player()
    player.send(opening() + b"".join(readouts()[:11]))
    time.sleep(0.3)
    player.cut()
    [item] = until(listener.kept)
    assert item.readouts == 11 and "after 11 readouts" in item.incomplete


def test_a_client_that_is_gone_after_the_last_line_leaves_a_whole_one(listener: Listener) -> None:
    player = listener.player()
    player.send(session()[:-2])
    time.sleep(0.3)
    player.cut()
    [item] = until(listener.kept)
    assert item.readouts == 24 and not item.incomplete


def test_a_client_that_closes_its_half_still_gets_its_images(listener: Listener) -> None:
    player = listener.player()
    player.send(session()[:-2])
    player.socket.shutdown(socket.SHUT_WR)
    answer = player.wait()
    assert answer.closed and len(answer.images) == 1 and not listener.kept()[0].incomplete


def test_a_missing_last_flag_does_not_matter_when_close_came(listener: Listener) -> None:
    scan = Scan(matrix=(32, 24), coils=2, last_flags=False)
    answer = listener.play(session(scan))
    assert answer.closed and len(answer.images) == 1 and not listener.kept()[0].incomplete


def test_two_goodbyes_are_one(listener: Listener) -> None:
    answer = listener.play(session() + CLOSE + CLOSE)
    assert answer.closed and len(answer.images) == 1
    listener.until_idle()
    assert len(listener.kept()) == 1


@pytest.mark.parametrize(
    ("timeouts", "data", "said"),
    [
        ({"first": 0.3}, b"", "timeouts.first"),
        ({"idle": 0.3}, opening() + readouts()[0], "timeouts.idle"),
        ({"session": 0.6}, opening(), "timeouts.session"),
    ],
)
def test_silence_ends_a_session(tmp_path: Path, timeouts: dict[str, float], data: bytes, said: str) -> None:
    with Listener(tmp_path / "data", workers=False, timeouts=timeouts) as listener:
        answer = listener.play(data, timeout_s=20)
    assert answer.closed and said in " ".join(answer.texts)


def test_who_is_not_on_the_list_is_not_heard(tmp_path: Path) -> None:
    with Listener(tmp_path / "data", workers=False, allow=["10.0.0.0/8"]) as listener:
        answer = listener.play(session(), timeout_s=10)
        assert not answer.closed and not answer.images and not listener.kept()


def test_one_session_too_many_is_told_to_come_again(tmp_path: Path) -> None:
    with Listener(tmp_path / "data", workers=False, max_sessions=1) as listener:
        player = listener.player()
        player.send(opening())
        until(lambda: listener.server.sessions == 1)
        busy = listener.play(b"")
        assert busy.closed and "try again" in busy.texts[0]
        player.send(b"".join(readouts()) + CLOSE)
        assert len(player.wait().images) == 1
        player.close()


def test_a_stopping_listener_says_so_and_keeps_what_came(tmp_path: Path) -> None:
    with Listener(tmp_path / "data", workers=False) as listener:
        player = listener.player()
        player.send(opening() + b"".join(readouts()[:5]))
        until(lambda: listener.store.journals() and listener.store.journals()[0].stat().st_size > 5000)
    assert "the node stops" in " ".join(player.wait().texts)
    assert [item.readouts for item in listener.kept()] == [5]


# -- fail-open


@pytest.mark.parametrize(
    ("config", "said"),
    [("raise", "RuntimeError: broken on purpose"), ("die", "process died"), ("refuse", "does not like the header")],
)
def test_a_failing_pipeline_is_stood_in_for_by_the_plain_reconstruction(live: Listener, config: str, said: str) -> None:
    answer = live.play(session(config=config), timeout_s=150)
    assert answer.closed and len(answer.images) == 1
    assert said in answer.texts[0] and "plain reconstruction" in answer.texts[0]
    meta = answer.images[0].meta
    assert said in meta["Warning"] and meta["ReconstructionMethod"] == "Plain Fourier transform"
    good = live.play(session(), timeout_s=150)
    both = (image_of(answer).ravel().astype(float), image_of(good).ravel().astype(float))
    assert np.corrcoef(*both)[0, 1] > 0.999, "the same picture, in the same place"
    assert list(answer.images[0].position) == list(good.images[0].position)


def test_a_pipeline_that_hangs_is_given_up_at_the_deadline(tmp_path: Path) -> None:
    with Listener(tmp_path / "data", deadline_s=1, spare=0) as listener:
        began = time.monotonic()
        answer = listener.play(session(config="hang"))
        assert time.monotonic() - began < 15
    assert answer.closed and len(answer.images) == 1 and "mrd.deadline_s" in answer.texts[0]


def test_the_plain_reconstruction_keeps_off_centre_points_in_place(listener: Listener) -> None:
    scan = Scan(matrix=(64, 48), fov=(256.0, 192.0), coils=1, ellipses=(Ellipse(x=40.0, y=-24.0),))
    answer = listener.play(session(scan))
    image, head = image_of(answer), answer.images[0].getHead()
    row, column = np.unravel_index(int(image.argmax()), image.shape)
    spacing = head.field_of_view[0] / head.matrix_size[0], head.field_of_view[1] / head.matrix_size[1]
    x = head.position[0] + (column - head.matrix_size[0] // 2) * spacing[0]
    y = head.position[1] + (row - head.matrix_size[1] // 2) * spacing[1]
    assert (x, y) == pytest.approx((40.0, -24.0), abs=1e-3)


# -- what a crash leaves


def left_behind(store: RawStore, data: bytes) -> str:
    """A journal as a killed listener leaves it."""
    name = store.new_name(datetime.now(UTC))
    store.journal(name).write_bytes(data)
    return name


@pytest.mark.parametrize(
    ("data", "kept", "whole"),
    [
        (session(), 24, True),
        (session()[:-2], 24, True),
        (opening() + b"".join(readouts()[:9]), 9, False),
        (opening() + b"".join(readouts()[:9])[:-100], 8, False),
        (opening(), 0, False),
        (b"", 0, False),
        (b"\xff\xff\xff", 0, False),
    ],
)
def test_journals_of_a_dead_listener_become_measurements(tmp_path: Path, data: bytes, kept: int, whole: bool) -> None:
    store = RawStore(tmp_path)
    name = left_behind(store, data)
    recover(store, archive=True)
    assert not store.journals() and not list(store.folder.glob("*.part"))
    if not kept:
        assert not list(store.items())
        return
    item = store.get(name)
    assert item.readouts == kept and bool(item.incomplete) is not whole
    assert len(list(open_mrd(store.payload(name)).readouts)) == kept


def test_a_journal_and_its_file_hold_the_same(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "one.stream")
    cutter = Cutter(2**30)
    cutter.feed(session(Scan(matrix=(64, 300), coils=2)))
    while (message := cutter.next()) is not None:
        journal.add(message)
        journal.flush()
    journal.close()
    converter = Converter(journal.path, tmp_path / "one.h5")
    for size in range(0, journal.size, 100_003):
        converter.advance(size)
    converter.advance(journal.size)
    converter.finish()
    assert len(list(open_mrd(tmp_path / "one.h5").readouts)) == journal.readouts == 300


# -- fuzz


def mutated(chance: random.Random, data: bytes) -> bytes:
    """A session with some bytes changed, lost, repeated or moved."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5, 40))):
        at, length = chance.randrange(len(changed)), chance.choice((1, 2, 4, 64, 2000))
        match chance.randrange(5):
            case 0:
                changed[at : at + length] = chance.randbytes(length)
            case 1:
                del changed[at : at + length]
            case 2:
                changed[at:at] = changed[at : at + length]
            case 3:
                changed[at : at + 4] = b"\xff\xff\xff\xff"
            case _:
                del changed[max(at, 2) :]
        if len(changed) < 4:
            break
    return bytes(changed)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_two_hundred_mutated_streams_leave_nothing_behind(tmp_path: Path) -> None:
    chance, whole = random.Random(20260102), session(Scan(matrix=(16, 12), coils=1, slices=2))
    with Listener(
        tmp_path / "data", workers=False, max_sessions=8, timeouts={"first": 1, "idle": 1, "session": 5}
    ) as listener:
        listener.play(whole)
        listener.until_idle()
        threads, descriptors = threading.active_count(), open_descriptors()
        for _ in range(200):
            player = listener.player(5)
            player.send(mutated(chance, whole))
            if chance.random() < 0.2:
                player.cut()
                continue
            player.socket.shutdown(socket.SHUT_WR) if chance.random() < 0.9 else None
            assert player.wait().closed, "CLOSE whatever came"
            player.close()
        listener.until_idle(20)
        until(lambda: threading.active_count() <= threads, what="threads")
        until(lambda: open_descriptors() <= descriptors, what="descriptors")
        assert not listener.store.journals() and not list(listener.store.folder.glob("*.part"))
        for item in listener.kept():
            assert item.readouts > 0 and listener.store.payload(item.name).is_file()
        answer = listener.play(whole)
        assert answer.closed and len(answer.images) == 2 and not answer.texts[1:]


def test_sessions_end_their_workers(live: Listener) -> None:
    def workers() -> int:
        everybody = [Path(f"/proc/{pid}/cmdline") for pid in _children()]
        return sum(b"dicomnode.execute.stream" in path.read_bytes() for path in everybody if path.exists())

    for config in ("default", "raise", "die"):
        live.play(session(config=config), timeout_s=150)
    player = live.player()
    player.send(opening() + b"".join(readouts()[:6]))
    time.sleep(0.3)
    player.cut()
    live.until_idle()
    until(lambda: workers() <= 1, what="only the spare runs")


def _children() -> list[int]:
    found = []
    for task in Path("/proc/self/task").iterdir():
        found += [int(pid) for pid in (task / "children").read_text().split()]
    return found


def test_flags_are_where_the_standard_has_them() -> None:
    message = wire.Message(Kind.ACQUISITION, readouts()[-1][2:])
    assert message.flags == SMALL.readouts()[-1].flags and message.flags & bits(Flag.LAST_IN_MEASUREMENT)
    assert message.channels == 2
