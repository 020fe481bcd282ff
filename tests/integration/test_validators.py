"""dciodvfy and dcentvfy find no error in what goes out, nor between it and what came in."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from dicomnode.encode.image import encode_images
from dicomnode.volumes.series import load
from tests import factories, phantoms


@pytest.fixture(scope="module", autouse=True)
def tools():
    missing = [tool for tool in ("dciodvfy", "dcentvfy") if shutil.which(tool) is None]
    if missing and os.environ.get("CI"):
        pytest.fail(f"{', '.join(missing)} must be installed in CI (Debian package dicom3tools)")
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed (Debian package dicom3tools)")


def errors_of(path: Path) -> list[str]:
    run = subprocess.run(["dciodvfy", path], capture_output=True, check=False, timeout=60)
    return [line for line in run.stderr.decode(errors="replace").splitlines() if line.startswith("Error")]


def entity_errors(paths: list[Path]) -> list[str]:
    run = subprocess.run(["dcentvfy", *paths], capture_output=True, check=False, timeout=120)
    lines = run.stderr.decode(errors="replace").splitlines()
    return [line for line in lines if line.startswith("Error")]


def written(tmp_path: Path, paths: list[Path]) -> list[Path]:
    source = load(paths)
    objects = encode_images(source, phantoms.shifted(source.images, -3.0), phantoms.context())
    return factories.write_series(tmp_path / "derived", objects)


CASES = {
    "ct": lambda: factories.ct_series(5),
    "ct padded": lambda: factories.ct_series(3, padding=-2000),
    "ct 12 bits unsigned": lambda: factories.ct_series(3, bits_stored=12, signed=False),
    "ct japanese": lambda: factories.ct_series(3, charset="\\ISO 2022 IR 87"),
    "ct korean": lambda: factories.ct_series(3, charset="\\ISO 2022 IR 149"),
    "ct chinese": lambda: factories.ct_series(3, charset="GB18030"),
    "ct tilted": lambda: factories.ct_series(4, tilt=18.5),
    "ct lossy without ratio": lambda: factories.ct_series(3, values={"LossyImageCompression": "01"}),
    "ct from east of Greenwich": lambda: factories.ct_series(3, values={"TimezoneOffsetFromUTC": "+0530"}),
    "mr": lambda: factories.mr_series(4),
    "enhanced ct": lambda: [factories.enhanced_ct(5)],
}


OTHER_BYTES = {"ct japanese", "ct korean", "ct chinese"}


@pytest.mark.parametrize("case", CASES)
def test_derived_series_and_its_source_are_valid(tmp_path, case):
    sources = factories.write_series(tmp_path / "source", CASES[case]())
    results = written(tmp_path, sources)
    for path in [*sources, *results]:
        assert errors_of(path) == []
    found = entity_errors([*sources, *results])
    if case in OTHER_BYTES:  # dcentvfy compares bytes, and the same name has others in Unicode
        found = [line for line in found if "Element=<PatientName>" not in line]
    assert found == []


SLOPPY = {
    "no body part": {"missing": ["BodyPartExamined"]},
    "no body part and no description": {
        "missing": ["BodyPartExamined", "SeriesDescription", "ProtocolName", "StudyDescription"]
    },
    "type 2 attributes absent": {
        "missing": ["PatientBirthDate", "PatientSex", "StudyID", "AccessionNumber", "ReferringPhysicianName", "KVP"]
    },
    "no thickness": {"thickness": None},
    "knee": {"values": {"BodyPartExamined": "KNEE"}},
    "de-identified without a method": {"values": {"PatientIdentityRemoved": "YES", "DeidentificationMethod": ""}},
    "image type of two values": {"values": {"ImageType": ["ORIGINAL", "PRIMARY"]}},
    "odd values": {
        "values": {"StudyDate": "2026-01-05", "InstanceNumber": lambda index: f"{index}.0", "StudyTime": "10:20:30"}
    },
    "high bit above": {"bits_stored": 12, "signed": False, "high_bit": 15},
    "icon and private elements": {"values": {"SmallestImagePixelValue": 0, "LargestPixelValueInSeries": 9}},
}


@pytest.mark.parametrize("case", SLOPPY)
def test_derived_series_of_a_sloppy_scanner_is_valid(tmp_path, case):
    sources = factories.write_series(tmp_path / "source", factories.ct_series(3, **SLOPPY[case]))
    for path in written(tmp_path, sources):
        assert errors_of(path) == []


def test_enhanced_mr_adds_no_error_to_those_of_its_source(tmp_path):
    sources = factories.write_series(tmp_path / "source", [factories.enhanced_mr(3)])
    (result,) = written(tmp_path, sources)
    assert set(errors_of(result)) <= set(errors_of(sources[0]))


DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.mark.parametrize("name", ["ct-head-ge/ct-head-ge", "ct-head-phantom-philips/std-brain-5mm"])
def test_derived_series_of_a_real_scanner_is_valid(tmp_path, name):
    archive = DATA / f"{name}.tar.xz"
    if not archive.exists():
        pytest.skip(f"shared data {name} is absent")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "source", filter="data")
    sources = [path for path in (tmp_path / "source").rglob("*") if path.is_file() and path.suffix != ".md"]
    results = written(tmp_path, sources)
    assert [error for path in results for error in errors_of(path)] == []
    assert entity_errors([*sources, *results]) == []
