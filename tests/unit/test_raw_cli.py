"""Words typed by a person about raw k-space: wrap, convert, run."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom import dcmread

from dicomnode.cli import main
from dicomnode.dicom import RAW_DATA_STORAGE
from dicomnode.volumes import raw
from tests.mrd_factory import Scan
from tests.raw_scans import like

SUBJECT = (
    "<subjectInformation><patientName>Doe^Jane</patientName><patientID>4711</patientID></subjectInformation>"
    "<studyInformation><studyID>7</studyID><studyInstanceUID>1.2.3.4</studyInstanceUID></studyInformation>"
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return Scan(slices=2).write(tmp_path / "scan.h5")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.dcm"
    like().save_as(path, enforce_file_format=True)
    return path


def wrapped(file: Path, folder: Path, *words: str) -> list:
    assert main(["wrap", str(file), "--out", str(folder), *words]) == 0
    return [dcmread(path) for path in sorted(folder.iterdir())]


def test_wrap_takes_patient_and_study_of_an_image(tmp_path, file, image, capsys):
    (ds,) = wrapped(file, tmp_path / "raw", "--like", str(image))
    assert ds.SOPClassUID == RAW_DATA_STORAGE and raw.is_ours(ds)
    assert (ds.PatientID, ds.StudyInstanceUID) == (like().PatientID, like().StudyInstanceUID)
    assert "FrameOfReferenceUID" not in ds
    shown = capsys.readouterr()
    assert str(ds.SeriesInstanceUID) in shown.out and str(like().PatientID) not in shown.out + shown.err
    again = wrapped(file, tmp_path / "again", "--like", str(image))
    first, second = ((tmp_path / name).iterdir() for name in ("raw", "again"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second], "wrapping twice is harmless"
    (framed,) = wrapped(file, tmp_path / "framed", "--like", str(image), "--same-frame")
    assert framed.FrameOfReferenceUID == like().FrameOfReferenceUID
    assert framed.SOPInstanceUID != again[0].SOPInstanceUID, "one UID, one content"


def test_wrap_takes_words_and_the_headers_own_identity(tmp_path, file):
    words = (
        "--patient-id",
        "0815",
        "--study-uid",
        "1.2.840.9",
        "--patient-name",
        "Doe^John",
        "--accession-number",
        "A7",
    )
    (ds,) = wrapped(file, tmp_path / "raw", *words)
    assert (ds.PatientID, ds.StudyInstanceUID, ds.AccessionNumber) == ("0815", "1.2.840.9", "A7")
    own = Scan().write(tmp_path / "own.h5", SUBJECT)
    (ds,) = wrapped(own, tmp_path / "own")
    assert (ds.PatientID, str(ds.PatientName), ds.StudyInstanceUID, ds.StudyID) == ("4711", "Doe^Jane", "1.2.3.4", "7")


def test_wrap_makes_parts(tmp_path, image):
    file = Scan(slices=4, coils=8).write(tmp_path / "large.h5")
    parts = wrapped(file, tmp_path / "raw", "--like", str(image), "--part-mb", "1")
    assert len(parts) == -(-file.stat().st_size // 2**20) > 1
    raw.unwrap(list((tmp_path / "raw").iterdir()), tmp_path / "again.h5")
    assert (tmp_path / "again.h5").read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "whose is it?"),
        (("--patient-id", "1"), "whose is it?"),
        (("--patient-id", "1", "--study-uid", "1.2.x"), "whose is it?"),
        (("--patient-id", "1", "--study-uid", "1.2.3", "--same-frame"), "--same-frame needs --like"),
        (("--patient-id", "1", "--study-uid", "1.2.3", "--part-mb", "0"), "--part-mb"),
        (("--like", "nowhere.dcm"), "nowhere.dcm"),
    ],
)
def test_wrap_guesses_nothing(tmp_path, file, words, said, capsys):
    assert main(["wrap", str(file), "--out", str(tmp_path / "raw"), *words]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "raw").exists() or not list((tmp_path / "raw").iterdir())


def test_wrap_refuses_what_is_no_mrd_file(tmp_path, image, capsys):
    (tmp_path / "no.h5").write_bytes(b"no")
    assert main(["wrap", str(tmp_path / "no.h5"), "--like", str(image), "--out", str(tmp_path / "raw")]) == 3
    assert "is no MRD file" in capsys.readouterr().err


def test_run_takes_an_mrd_file_or_a_folder_of_raw_data(tmp_path, file, image, capsys):
    pipeline = ("--pipeline", "tests.raw_scans:PlainRSS", "--device", "cpu")
    assert main(["run", str(file), "--like", str(image), *pipeline, "--out", str(tmp_path / "one")]) == 0
    assert "plain-rss 1.0.0 made 2 objects" in capsys.readouterr().out
    wrapped(file, tmp_path / "raw", "--like", str(image))
    assert main(["run", str(tmp_path / "raw"), *pipeline, "--out", str(tmp_path / "two")]) == 0
    one, two = ([dcmread(path) for path in sorted((tmp_path / name).rglob("*.dcm"))] for name in ("one", "two"))
    assert [ds.PixelData for ds in one] == [ds.PixelData for ds in two] and len(one) == 2
    assert {ds.PatientID for ds in one} == {like().PatientID}
    assert main(["run", str(file), *pipeline, "--out", str(tmp_path / "three")]) == 2
    assert "whose is it?" in capsys.readouterr().err


def test_convert_says_what_it_found_and_what_it_cannot(tmp_path, capsys):
    (tmp_path / "no.dat").write_bytes(bytes(3000))
    assert main(["mrd-convert", str(tmp_path / "no.dat"), str(tmp_path / "scan.h5")]) == 3
    assert "no Siemens raw data" in capsys.readouterr().err
    assert main(["mrd-convert", str(tmp_path / "nowhere.dat"), str(tmp_path / "scan.h5")]) == 2
