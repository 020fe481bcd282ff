"""What goes out for a source without a frame of reference is as valid as what goes out for any other."""

from __future__ import annotations

import pytest

from dicomnode.domain import ObjectKind
from dicomnode.encode.result import encode_result
from dicomnode.volumes.series import load
from tests import factories, phantoms
from tests.integration.test_validators_seg import complaints, entity_errors
from tests.peers import pixelmed

CASES = {
    "ct": lambda: factories.ct_series(5, missing=["FrameOfReferenceUID"]),
    "mr": lambda: factories.mr_series(5, missing=["FrameOfReferenceUID"]),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Case -> files of the source, of its documents and of everything else."""
    found = {}
    for case, series in CASES.items():
        folder = tmp_path_factory.mktemp(case)
        sources = factories.write_series(folder / "source", series())
        source = load(sources)
        objects = list(encode_result(source, phantoms.bleeding(source.images), phantoms.context()))
        paths = factories.write_series(folder / "results", [one.dataset for one in objects])
        judged = (ObjectKind.REPORT, ObjectKind.MARKS, ObjectKind.KEY_IMAGES)
        documents = [path for path, one in zip(paths, objects, strict=True) if one.kind in judged]
        found[case] = sources, documents, paths
    return found


@pytest.mark.parametrize("case", CASES)
def test_dicom3tools_finds_no_error(written, case):
    sources, documents, paths = written[case]
    assert len(documents) == 3 and len(paths) == 4
    for path in paths:
        assert [line for line in complaints(path) if line.startswith("Error")] == []
    assert entity_errors([*sources, *paths]) == []


def test_pixelmed_finds_no_error(written):
    pixelmed.require()
    found = pixelmed.validate([path for _, documents, _ in written.values() for path in documents])
    assert {path.name: verdict.errors for path, verdict in found.items() if verdict.errors} == {}
