"""dciodvfy of two editions and dcentvfy find no error in reconstructed series as multi-frame objects."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from pydicom import dcmwrite

from dicomnode.encode.enhanced_mr import encode_enhanced
from tests import factories, phantoms
from tests.integration.test_validators import entity_errors, errors_of, tools  # noqa: F401 - the fixture
from tests.integration.test_validators_seg import complaints
from tests.mrd_factory import Scan
from tests.raw_scans import LearnedRSS, PlainRSS, like, point_scan
from tests.unit.test_encode_mr_enhanced import source_of

CASES = {
    "slices": Scan(slices=3, coils=2),
    "gated cine": Scan(phases=4, slices=2, trigger_ticks=10),
    "echoes and repetitions": Scan(contrasts=2, repetitions=2),
    "partitions": Scan(partitions=4),
    "oblique": point_scan()[0],
}
#: What makes it a Standard Extended SOP Class is said, and value 3 of the image type is that of single-frame images.
EXPECTED = ("not present in standard DICOM IOD", "<M> for value 3", "<P> for value 3", "Safety Standard Agency")


def written(folder: Path, scan: Scan, pipeline=None, like_this=None, **options) -> tuple[list[Path], list[Path]]:
    source = source_of(folder, scan, source=like_this)
    (made,) = (pipeline or PlainRSS()).run(source.kspace).reconstructions
    if scan.phases > 1:
        made = replace(made, planes=tuple(replace(one, trigger_time=30.0 * one.phase) for one in made.planes))
    if options.pop("phase", False):
        made = replace(made, component="P", role="phase")
    paths = []
    for number, ds in enumerate(encode_enhanced(source, made, phantoms.context(variant="enhanced"), **options)):
        paths.append(folder / f"enhanced-{number}.dcm")
        dcmwrite(paths[-1], ds, enforce_file_format=True)
    return sorted((folder / "raw").iterdir()), paths


def valid(folder: Path, raws: list[Path], paths: list[Path]) -> None:
    for path in paths:
        assert errors_of(path) == []
        assert [one for one in complaints(path) if not any(word in one for word in EXPECTED)] == []
    (image,) = factories.write_series(folder / "like", [like()])
    assert entity_errors([image, *raws, *paths]) == []


@pytest.mark.parametrize("case", CASES)
def test_multi_frame_series_are_valid(tmp_path, case):
    valid(tmp_path, *written(tmp_path, CASES[case]))


def test_a_concatenation_is_valid(tmp_path):
    raws, paths = written(tmp_path, Scan(slices=3), most_bytes=2 * 64 * 64)
    assert len(paths) == 3
    valid(tmp_path, raws, paths)


def test_phase_and_learned_series_are_valid(tmp_path):
    valid(tmp_path, *written(tmp_path, Scan(), LearnedRSS(), phase=True))


@pytest.mark.parametrize(
    "changes",
    [
        {"BodyPartExamined": "", "SeriesDescription": "", "ProtocolName": "", "StudyDescription": ""},
        {"PatientIdentityRemoved": "YES", "DeidentificationMethod": ""},
        {"SpecificCharacterSet": "ISO_IR 192", "PatientName": "Yamada^Tarou=山田^太郎"},
        {"Manufacturer": "", "StationName": ""},
        {"BodyPartExamined": "KNEE", "Laterality": ""},
        {"BodyPartExamined": "KNEE", "Laterality": "L"},
    ],
)
def test_a_sloppy_examination_gives_valid_objects(tmp_path, changes):
    _, paths = written(tmp_path, Scan(), like_this=like(**changes))
    for path in paths:
        assert errors_of(path) == []
        assert [one for one in complaints(path) if not any(word in one for word in EXPECTED)] == []
