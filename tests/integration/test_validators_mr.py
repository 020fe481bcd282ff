"""dciodvfy and dcentvfy find no error in raw data objects, nor in the MR images that are made from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from dicomnode.execute.perform import perform
from tests import factories
from tests.integration.test_validators import entity_errors, errors_of, tools  # noqa: F401 - the fixture
from tests.mrd_factory import Scan
from tests.raw_scans import LearnedRSS, PlainRSS, like, point_scan, wrapped
from tests.unit.test_encode_mr import request

CASES = {
    "slices": (Scan(slices=3, coils=2), {}),
    "cine": (Scan(phases=4, slices=2, trigger_ticks=10), {}),
    "echoes and repetitions": (Scan(contrasts=2, repetitions=2), {}),
    "partitions": (Scan(partitions=4), {}),
    "oblique": (point_scan()[0], {}),
    "known frame of reference": (Scan(), {"frame_of_reference": "1.2.3.4"}),
    "in parts": (Scan(slices=2), {"part_bytes": 60_000}),
}


def made(folder: Path, scan: Scan, source, pipeline, **options) -> tuple[list[Path], list[Path]]:
    raws = wrapped(folder / "raw", scan.write(folder / "scan.h5"), source, **options)
    outputs = perform(pipeline, request(folder, raws), "", lambda *_: None).outputs
    return raws, [folder / "results" / one.path for one in outputs]


@pytest.mark.parametrize("case", CASES)
def test_raw_data_and_its_images_are_valid(tmp_path, case):
    scan, options = CASES[case]
    raws, images = made(tmp_path, scan, None, PlainRSS(), **options)
    assert images
    for path in [*raws, *images]:
        assert errors_of(path) == []
    (image,) = factories.write_series(tmp_path / "like", [like()])
    assert entity_errors([image, *raws, *images]) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"BodyPartExamined": "", "SeriesDescription": "", "ProtocolName": "", "StudyDescription": ""},
        {"PatientIdentityRemoved": "YES", "DeidentificationMethod": ""},
        {"SpecificCharacterSet": "ISO_IR 192", "PatientName": "Yamada^Tarou=山田^太郎"},
        {"Manufacturer": "", "StationName": ""},
    ],
)
def test_a_sloppy_examination_gives_valid_objects(tmp_path, changes):
    raws, images = made(tmp_path, Scan(), like(**changes), LearnedRSS())
    for path in [*raws, *images]:
        assert errors_of(path) == []
