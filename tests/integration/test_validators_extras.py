"""Presentation states and parametric maps before other people's tools: dciodvfy, dcentvfy, and dcmqi's reader."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from dicomnode.domain import ObjectKind
from dicomnode.encode.result import encode_result
from dicomnode.volumes.series import load
from tests import factories, phantoms
from tests.integration.test_validators_seg import CASES, OTHER_BYTES, complaints, entity_errors, tool

EXTRAS = [ObjectKind.PRESENTATION, ObjectKind.PARAMETRIC_MAP]
#: The scheme of the quantity is the test's own.
OWN_SCHEME = "Unrecognized defined term <99TEST>"


@pytest.mark.parametrize("case", CASES)
def test_both_are_valid_beside_their_source(tmp_path, case):
    sources = factories.write_series(tmp_path / "source", CASES[case]())
    source = load(sources)
    objects = list(encode_result(source, phantoms.mapped(source.images), phantoms.context(), kinds=EXTRAS))
    assert [one.kind for one in objects] == [ObjectKind.PARAMETRIC_MAP, ObjectKind.PRESENTATION]
    results = factories.write_series(tmp_path / "results", [one.dataset for one in objects])
    for path in results:
        assert [line for line in complaints(path) if OWN_SCHEME not in line] == []
    found = entity_errors([*sources, *results])
    if case in OTHER_BYTES:  # dcentvfy compares bytes, and the same name has others in Unicode
        found = [line for line in found if "Element=<PatientName>" not in line]
    assert found == []


READABLE = {
    "ct": lambda: factories.ct_series(6, rows=16, columns=12, spacing=(0.5, 0.7)),
    "ct oblique": lambda: factories.ct_series(6, orientation=factories.tilted(factories.CORONAL, 20.0)),
    "enhanced ct": lambda: [factories.enhanced_ct(6)],
}


@pytest.mark.parametrize("case", READABLE)
def test_dcmqi_reads_every_value_back_in_its_place(tmp_path, case):
    """The reader of 3D Slicer. Regular stacks only, as for segmentations."""
    source = load(factories.write_series(tmp_path / "source", READABLE[case]()))
    result = phantoms.mapped(source.images)
    (one,) = encode_result(source, result, phantoms.context(), kinds=[ObjectKind.PARAMETRIC_MAP])
    (path,) = factories.write_series(tmp_path / "map", [one.dataset])
    image = read_by_dcmqi(path, tmp_path / "out")
    values, images = sitk.GetArrayFromImage(image), source.images
    wanted = result.parametric_maps[0].values
    assert values.shape == wanted.shape
    across, down = images.orientation[:3], images.orientation[3:]
    spacing = images.pixel_spacing
    for plane, row, column in np.random.default_rng(0).integers(0, wanted.shape, (50, 3)):
        point = images.positions[plane] + row * spacing[0] * down + column * spacing[1] * across
        index = image.TransformPhysicalPointToContinuousIndex([float(one) for one in point])
        nearest = [round(one) for one in index]
        assert np.abs(np.array(index) - nearest).max() < 1e-3
        assert values[tuple(nearest[::-1])] == pytest.approx(wanted[plane, row, column], abs=1e-6)


def read_by_dcmqi(path: Path, folder: Path) -> sitk.Image:
    folder.mkdir()
    program = [tool("paramap2itkimage"), "--inputDICOM", path, "--outputDirectory", folder, "-t", "nrrd"]
    run = subprocess.run(program, capture_output=True, check=False, timeout=120)
    assert run.returncode == 0, run.stderr.decode(errors="replace")
    (written,) = folder.glob("*.nrrd")
    return sitk.ReadImage(str(written))
