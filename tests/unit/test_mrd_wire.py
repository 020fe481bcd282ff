"""The MRD stream cut into messages: at every byte, and never beyond what is allowed."""

from __future__ import annotations

import random
import struct
import tracemalloc

import pytest

from dicomnode.volumes import wire
from dicomnode.volumes.wire import CLOSE, DEPRECATED, Cutter, Kind, ProtocolError
from tests.mrd_factory import Scan
from tests.peers.scanner import opening, readouts

SMALL = Scan(matrix=(8, 4), coils=1)


def cut(cutter: Cutter) -> list[wire.Message]:
    found = []
    while (message := cutter.next()) is not None:
        found.append(message)
    return found


def test_messages_come_out_the_same_however_the_bytes_come_in() -> None:
    data = opening(SMALL) + b"".join(readouts(SMALL)) + wire.text(Kind.TEXT, "grüß dich") + CLOSE
    whole = Cutter(2**20)
    whole.feed(data)
    wanted = cut(whole)
    kinds = [message.kind for message in wanted]
    assert kinds == [Kind.CONFIG_FILE, Kind.HEADER, *[Kind.ACQUISITION] * 4, Kind.TEXT, Kind.CLOSE]
    assert b"".join(message.packed() for message in wanted) == data
    assert wanted[0].text == "default" and wanted[-2].text == "grüß dich"
    chance = random.Random(1)
    for most in (1, 3, 700):
        cutter, found, at = Cutter(2**20), [], 0
        while at < len(data):
            step = chance.randint(1, most)
            cutter.feed(data[at : at + step])
            found += cut(cutter)
            at += step
        assert found == wanted and cutter.pending == 0


@pytest.mark.parametrize(
    "start",
    [
        struct.pack("<HL", Kind.HEADER, 0xFFFFFFFF),
        struct.pack("<HL", Kind.TEXT, 0x7FFFFFFF),
        struct.pack("<H", Kind.ACQUISITION) + b"\xff" * 340,
        struct.pack("<H", Kind.WAVEFORM) + b"\xff" * 40,
        struct.pack("<HHH", Kind.IMAGE, 1, 8) + b"\xff" * 202,
    ],
)
def test_a_length_is_judged_before_anything_is_allocated(start: bytes) -> None:
    cutter = Cutter(64_000_000)
    tracemalloc.start()
    cutter.feed(start)
    with pytest.raises(ProtocolError, match=r"max_message_mb|texts have at most"):
        cutter.next()
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


@pytest.mark.parametrize("number", [0, 6, 1000, *sorted(DEPRECATED), 1024, 1030, 65535])
def test_other_ids_are_refused(number: int) -> None:
    cutter = Cutter(2**20)
    cutter.feed(struct.pack("<H", number))
    with pytest.raises(ProtocolError, match=str(number)):
        cutter.next()


def test_long_sessions_do_not_pile_up_in_memory() -> None:
    cutter, one = Cutter(2**20), readouts(Scan(matrix=(512, 2), coils=4))[0]
    for _ in range(2000):
        cutter.feed(one)
        assert cutter.next() is not None
    assert cutter.pending == 0 and len(cutter._buffer) == 0


def test_a_config_name_fits_its_field() -> None:
    with pytest.raises(ProtocolError, match="fewer than 1024"):
        wire.config_file("x" * 1024)
