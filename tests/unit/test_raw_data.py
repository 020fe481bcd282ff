"""Raw k-space in DICOM Raw Data Storage: what goes in comes out, and nothing else does."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    generate_uid,
)

from dicomnode.dicom import RAW_CREATOR, RAW_CREATOR_VERSION_UID, RAW_GROUP, RawElement
from dicomnode.encode.raw import wrap
from dicomnode.errors import EncodingError, MixedGeometry, UnreadableRawData, UnsupportedSOPClass
from dicomnode.rules import is_own_result
from dicomnode.volumes import raw
from tests import factories

WHEN = datetime(2026, 1, 5, 10, 20, 30, tzinfo=UTC)
SERIES = "2.25.1001"


def like() -> Dataset:
    return factories.mr_series(1)[0]


def payload(folder: Path, size: int) -> Path:
    path = folder / "scan.h5"
    path.write_bytes(random.Random(size).randbytes(size))
    return path


def wrapped(folder: Path, size: int = 1001, *, syntax: str = ExplicitVRLittleEndian, **options: object) -> list[Path]:
    paths = []
    file = payload(folder, size)
    for number, ds in enumerate(wrap(file, like(), series_uid=SERIES, series_number=1, when=WHEN, **options)):  # type: ignore[arg-type]
        path = folder / f"{number}.dcm"
        ds.file_meta.TransferSyntaxUID = syntax
        dcmwrite(path, ds, enforce_file_format=True)
        paths.append(path)
    return paths


@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian]
)
@pytest.mark.parametrize(("size", "part_bytes"), [(1000, 2**28), (1001, 2**28), (1001, 100), (1000, 500), (1, 2)])
def test_the_file_comes_back_as_it_was(tmp_path, syntax, size, part_bytes):
    paths = wrapped(tmp_path, size, syntax=syntax, part_bytes=part_bytes)
    assert len(paths) == -(-size // part_bytes)
    random.Random(1).shuffle(paths)
    made = raw.unwrap(paths, tmp_path / "again.h5")
    assert made.read_bytes() == (tmp_path / "scan.h5").read_bytes()


def test_the_object_says_whose_it_is_and_who_may_read_it(tmp_path):
    (path,) = wrapped(tmp_path)
    ds, source = dcmread(path), like()
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "StudyInstanceUID", "AccessionNumber", "StudyDate"):
        assert ds.get(keyword) == source.get(keyword), keyword
    assert ds.CreatorVersionUID == RAW_CREATOR_VERSION_UID and ds.Modality == "MR" and raw.is_ours(ds)
    assert "FrameOfReferenceUID" not in ds, "images of one examination need not share it"
    assert "AcquisitionDate" not in ds and "AcquisitionTime" not in ds
    assert len(ds.AcquisitionContextSequence) == 0
    assert not is_own_result([], ds), "the loop guard must let measurements in"
    assert all(element.VR != "UV" for element in ds.iterall())


def test_the_same_file_gives_the_same_bytes(tmp_path):
    first = [path.read_bytes() for path in wrapped(tmp_path, part_bytes=300)]
    assert first == [path.read_bytes() for path in wrapped(tmp_path, part_bytes=300)]


def test_a_wrapped_result_of_this_node_would_not_name_it_as_scanner(tmp_path):
    source = like()
    source.Manufacturer = "dicomnode"
    (ds,) = wrap(payload(tmp_path, 10), source, series_uid=SERIES, series_number=1, when=WHEN)
    assert not is_own_result([], ds)


def test_times_are_in_the_zone_that_the_object_names(tmp_path):
    source = like()
    source.TimezoneOffsetFromUTC = "+0530"
    (ds,) = wrap(payload(tmp_path, 10), source, series_uid=SERIES, series_number=1, when=WHEN)
    assert (ds.TimezoneOffsetFromUTC, ds.ContentDate, ds.ContentTime[:6]) == ("+0530", "20260105", "155030")


def test_incomplete_measurements_say_so(tmp_path):
    (path,) = wrapped(tmp_path, incomplete=True)
    assert not raw.part_of(raw.read_header(path)).complete
    (path,) = wrapped(tmp_path)
    part = raw.part_of(raw.read_header(path))
    assert part.complete and (part.number, part.parts, part.length, part.total) == (1, 1, 1001, 1001)


def test_missing_parts_are_named(tmp_path):
    paths = wrapped(tmp_path, part_bytes=200)
    with pytest.raises(UnreadableRawData, match=r"2 of 6 parts .* missing \(2, 5\)"):
        raw.unwrap([path for number, path in enumerate(paths, 1) if number not in (2, 5)], tmp_path / "again.h5")
    assert not (tmp_path / "again.h5").exists()


def test_a_part_that_comes_twice_counts_once(tmp_path):
    paths = wrapped(tmp_path, part_bytes=400)
    raw.unwrap([*paths, paths[1]], tmp_path / "again.h5")
    assert (tmp_path / "again.h5").read_bytes() == (tmp_path / "scan.h5").read_bytes()


def changed(path: Path, element: RawElement, value: object) -> Path:
    ds = dcmread(path)
    ds.private_block(RAW_GROUP, RAW_CREATOR)[element].value = value
    ds.save_as(path)
    return path


@pytest.mark.parametrize(
    ("element", "value", "said"),
    [
        (RawElement.PAYLOAD, b"\1" * 1002, "SHA-256"),
        (RawElement.PAYLOAD, b"\1" * 900, "holds 900 bytes and says 1001"),
        (RawElement.SHA256, "0" * 64, "SHA-256"),
        (RawElement.MIME_TYPE, "text/plain", "text/plain"),
        (RawElement.PART, 0, "part 0 of 1"),
        (RawElement.LENGTH, "many", "private block"),
        (RawElement.PARTS, 3, "2 of 3 parts"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path, element, value, said):
    (path,) = wrapped(tmp_path)
    with pytest.raises(UnreadableRawData, match=said):
        raw.unwrap([changed(path, element, value)], tmp_path / "again.h5")
    assert not (tmp_path / "again.h5").exists()


def test_a_file_that_ends_early_is_refused(tmp_path):
    (path,) = wrapped(tmp_path, 100_001)
    path.write_bytes(path.read_bytes()[:-50_000])
    with pytest.raises(UnreadableRawData, match=r"ends .* bytes early"):
        raw.unwrap([path], tmp_path / "again.h5")


def test_private_elements_dropped_on_the_way_are_named(tmp_path):
    (path,) = wrapped(tmp_path)
    ds = dcmread(path)
    ds.remove_private_tags()
    ds.save_as(path)
    with pytest.raises(UnreadableRawData, match="drops private elements"):
        raw.unwrap([path], tmp_path / "again.h5")


def test_raw_data_of_others_is_refused_politely(tmp_path):
    (path,) = wrapped(tmp_path)
    ds = dcmread(path)
    ds.CreatorVersionUID = generate_uid()
    ds.Manufacturer = "ACME"
    ds.save_as(path)
    with pytest.raises(UnsupportedSOPClass, match=r"Raw Data Storage of ACME.*dicomnode wrap"):
        raw.unwrap([path], tmp_path / "again.h5")


def test_parts_of_two_measurements_in_one_series_are_refused(tmp_path):
    first = wrapped(tmp_path, 1000, part_bytes=500)
    (tmp_path / "other").mkdir()
    second = wrapped(tmp_path / "other", 1002, part_bytes=502)
    with pytest.raises(UnreadableRawData, match="different measurements"):
        raw.unwrap([first[0], second[1]], tmp_path / "again.h5")


def test_parts_of_two_patients_are_refused(tmp_path):
    paths = wrapped(tmp_path, 1000, part_bytes=500)
    ds = dcmread(paths[1])
    ds.PatientID = "SOMEBODY-ELSE"
    ds.save_as(paths[1])
    with pytest.raises(MixedGeometry, match="PatientID differs"):
        raw.unwrap(paths, tmp_path / "again.h5")


@pytest.mark.parametrize("change", [{"StudyInstanceUID": ""}, {"StudyInstanceUID": "1.2.x"}, {"PatientID": "a\nb"}])
def test_an_identity_that_cannot_be_repeated_is_refused(tmp_path, change):
    source = like()
    for keyword, value in change.items():
        setattr(source, keyword, value)
    with pytest.raises(EncodingError):
        list(wrap(payload(tmp_path, 10), source, series_uid=SERIES, series_number=1, when=WHEN))


def test_an_empty_file_is_refused(tmp_path):
    with pytest.raises(EncodingError, match="empty"):
        list(wrap(payload(tmp_path, 0), like(), series_uid=SERIES, series_number=1, when=WHEN))
