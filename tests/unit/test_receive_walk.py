from __future__ import annotations

import random
import struct
import zlib
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
)

from dicomnode.receive.walk import Walk
from tests import factories
from tests.peers.parrot import encoded

SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian]


def walked(
    data: bytes, syntax: str = ExplicitVRLittleEndian, sizes: list[int] | None = None, limit: int = 1 << 40
) -> Walk:
    walk = Walk(syntax, limit)
    view, position = memoryview(data), 0
    sizes = sizes or [len(data) or 1]
    turn = 0
    while position < len(data):
        size = sizes[turn % len(sizes)]
        walk.feed(view[position : position + size])
        position, turn = position + size, turn + 1
    walk.end()
    return walk


def image() -> Dataset:
    return factories.ct_series(n=1)[0]


def nested(depth: int, *, undefined: bool) -> Dataset:
    ds = Dataset()
    ds.CodeValue = "X"
    for _ in range(depth):
        outer = Dataset()
        outer.ReferencedSeriesSequence = Sequence([ds, ds])
        outer["ReferencedSeriesSequence"].is_undefined_length = undefined
        for one in outer.ReferencedSeriesSequence:
            one.is_undefined_length_sequence_item = undefined
        ds = outer
    return ds


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_whole_image_passes_and_its_header_is_read(syntax: str) -> None:
    ds = image()
    walk = walked(encoded(ds, syntax), syntax)
    assert walk.fault is None
    assert walk.text(0x00080018) == ds.SOPInstanceUID
    assert walk.text(0x00280010) == str(ds.Rows)
    assert walk.text(0x00200032).split("\\") == [str(part) for part in ds.ImagePositionPatient]
    assert walk.pixels == len(ds.PixelData)
    assert not walk.padded


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_every_cut_of_an_image_is_noticed(syntax: str) -> None:
    data = encoded(image(), syntax)
    whole = {len(data)}
    for cut in [*range(700), *range(len(data) - 50, len(data))]:
        walk = walked(data[:cut], syntax)
        if walk.fault is None:  # a cut between two elements leaves a shorter data set: the pixels are then missing
            assert walk.pixels is None or cut in whole
    assert walked(data, syntax).fault is None


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=8), st.sampled_from(SYNTAXES))
@settings(max_examples=60, deadline=None)
def test_how_the_bytes_are_cut_makes_no_difference(sizes: list[int], syntax: str) -> None:
    ds = image()
    ds.update(nested(3, undefined=True))
    data = encoded(ds, syntax) + bytes(20)
    one, many = walked(data, syntax), walked(data, syntax, sizes)
    assert (one.values, one.fault, one.pixels, one.padded) == (many.values, many.fault, many.pixels, many.padded)
    assert one.padded and one.fault is None


@pytest.mark.parametrize("undefined", [True, False])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_nested_sequences_are_stepped_over(syntax: str, undefined: bool) -> None:
    ds = image()
    ds.update(nested(5, undefined=undefined))
    walk = walked(encoded(ds, syntax), syntax, [7])
    assert walk.fault is None
    assert walk.text(0x0020000E) == ds.SeriesInstanceUID


def test_an_attribute_inside_a_sequence_is_not_taken_for_the_images_own() -> None:
    ds = image()
    inner = Dataset()
    inner.SOPInstanceUID = "1.2.3.4"
    inner.SeriesInstanceUID = "9.9"
    ds.ReferencedImageSequence = Sequence([inner])
    ds["ReferencedImageSequence"].is_undefined_length = True
    ds.ReferencedImageSequence[0].is_undefined_length_sequence_item = True
    walk = walked(encoded(ds))
    assert walk.text(0x00080018) == ds.SOPInstanceUID
    assert walk.text(0x0020000E) == ds.SeriesInstanceUID


@pytest.mark.parametrize("inside", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_an_unknown_sequence_of_undefined_length_may_be_written_either_way(inside: str) -> None:
    item = Dataset()
    item.CodeValue, item.CodeMeaning = "X", "Y"
    body = b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + encoded(item, inside) + b"\xfe\xff\x0d\xe0\0\0\0\0"
    unknown = b"\x09\x00\x10\x10UN\0\0\xff\xff\xff\xff" + body + b"\xfe\xff\xdd\xe0\0\0\0\0"
    data = encoded(image())
    at = data.index(b"\x10\x00\x10\x00PN")
    assert walked(data[:at] + unknown + data[at:]).fault is None


def test_encapsulated_pixel_data_must_reach_its_delimiter() -> None:
    head = encoded(image())
    at = head.index(b"\xe0\x7f\x10\x00OW")
    offset_table = b"\xfe\xff\x00\xe0\0\0\0\0"
    fragment = b"\xfe\xff\x00\xe0" + struct.pack("<L", 300) + bytes(300)
    pixels = b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff" + offset_table + fragment * 3
    whole = head[:at] + pixels + b"\xfe\xff\xdd\xe0\0\0\0\0"
    good = walked(whole, JPEG2000Lossless, [13])
    assert good.fault is None and good.pixels == -1
    for cut in (len(whole) - 1, len(whole) - 8, len(whole) - 9, len(whole) - 400):
        cut_off = walked(whole[:cut], JPEG2000Lossless)
        assert cut_off.fault is not None and cut_off.fault[0] == "truncated"
    garbage = head[:at] + pixels + b"\x01\x02\x03\x04\0\0\0\0"
    assert walked(garbage, JPEG2000Lossless).fault is not None


def test_deflated_data_is_followed_through_its_compression() -> None:
    ds = image()
    packer = zlib.compressobj(wbits=-15)
    data = packer.compress(encoded(ds)) + packer.flush()
    walk = walked(data + b"\0", DeflatedExplicitVRLittleEndian, [11])
    assert walk.fault is None
    assert walk.text(0x00080018) == ds.SOPInstanceUID
    cut = walked(data[: len(data) // 2], DeflatedExplicitVRLittleEndian)
    assert cut.fault is not None and cut.fault[0] == "truncated"
    broken = walked(b"\xff" * 100, DeflatedExplicitVRLittleEndian)
    assert broken.fault is not None and broken.fault[0] == "unreadable"


def test_a_deflated_bomb_is_bounded() -> None:
    packer = zlib.compressobj(9, wbits=-15)
    bomb = packer.compress(encoded(image())[:-8192]) + packer.compress(bytes(50_000_000)) + packer.flush()
    walk = walked(bomb, DeflatedExplicitVRLittleEndian, limit=1_000_000)
    assert walk.fault is not None and walk.fault[0] == "too-large"


@given(st.binary(min_size=1, max_size=900), st.sampled_from([*SYNTAXES, DeflatedExplicitVRLittleEndian]))
@settings(max_examples=300, deadline=None)
def test_no_bytes_whatever_break_the_walk(data: bytes, syntax: str) -> None:
    walk = walked(data, syntax, [3, 100])
    assert walk.fault is not None or walk.values is not None


@given(st.integers(0, 2**32), st.sampled_from(SYNTAXES))
@settings(max_examples=150, deadline=None)
def test_a_damaged_header_never_breaks_the_walk(seed: int, syntax: str) -> None:
    data = bytearray(encoded(image(), syntax))
    randomness = random.Random(seed)
    for _ in range(4):
        data[randomness.randrange(len(data) - 2048)] = randomness.randrange(256)
    walked(bytes(data), syntax, [1000])


def test_garbage_empty_and_zeros_are_told_apart_from_data_sets() -> None:
    for seed in range(50):
        noise = walked(random.Random(seed).randbytes(800)).fault
        assert noise is not None and noise[0] in ("unreadable", "truncated")
    assert (walked(b"").fault or ("",))[0] == "empty"
    assert (walked(bytes(800)).fault or ("",))[0] == "unreadable"
    assert (walked(encoded(image()) + b"\1\2\3").fault or ("",))[0] == "truncated"
    assert (walked(encoded(image()) + bytes(16) + b"more than zeros").fault or ("",))[0] == "unreadable"


def test_sequences_without_end_do_not_grow_without_end() -> None:
    opening = b"\x08\x00\x15\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    walk = walked(opening * 100_000)
    assert walk.fault is not None and walk.fault[0] == "unreadable"


def test_a_file_can_be_walked_without_reading_its_pixels() -> None:
    ds = image()
    data = encoded(ds)
    file, walk, read = BytesIO(data), Walk(ExplicitVRLittleEndian), 0
    while True:
        passed = walk.skip
        file.seek(passed, 1)
        walk.skipped(min(passed, len(data) - file.tell() + passed))
        piece = file.read(256)
        read += len(piece)
        walk.feed(piece)
        if not piece:
            break
    walk.end()
    assert walk.fault is None and read < len(data) - len(ds.PixelData) + 512
