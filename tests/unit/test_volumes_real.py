"""Real scanners' series, from the project's shared data (skipped where it is not there)."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from dicomnode import errors
from dicomnode.encode.image import encode_images
from dicomnode.pipeline import HU, Geometry
from dicomnode.volumes.series import load
from tests import factories, phantoms

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(scope="session")
def unpack(tmp_path_factory):
    """Unpack an archive of the shared data once; give its files."""
    done: dict[str, list[Path]] = {}

    def unpacked(name: str) -> list[Path]:
        archive = DATA / name
        if not archive.exists():
            pytest.skip(f"shared data {name} is absent")
        if name not in done:
            folder = tmp_path_factory.mktemp("real")
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
            done[name] = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".md")
        return done[name]

    return unpacked


def derived(source):
    return list(encode_images(source, phantoms.shifted(source.images, 5.0), phantoms.context()))


def test_tilted_unevenly_spaced_head_is_named_and_derived(unpack):
    source = load(unpack("ct-head-ge/ct-head-ge.tar.xz"))
    images = source.images
    assert images.array.shape == (28, 512, 512)
    assert images.units == HU
    assert images.geometry is Geometry.TILTED
    assert "18.5 degrees" in images.geometry_note
    assert "1.08, 4.00, 7.00 mm" in images.geometry_note
    assert 0.1 < images.padding.mean() < 0.5
    assert (images.array[images.padding] == -1500).all()
    objects = derived(source)
    for index, (ds, header) in enumerate(zip(objects, source.headers, strict=True)):
        pixels = np.frombuffer(ds.PixelData, "<i2").reshape(512, 512)
        np.testing.assert_array_equal(pixels[images.padding[index]], source.stored[index][images.padding[index]])
        assert [str(v) for v in ds.ImagePositionPatient] == [str(v) for v in header.ImagePositionPatient]
        assert ds.GantryDetectorTilt.original_string == header.GantryDetectorTilt.original_string
        assert ds.PatientIdentityRemoved == "YES"
    assert len({ds.SOPInstanceUID for ds in objects}) == 28


def test_jpeg_2000_abdomen_with_empty_uids_is_refused(unpack):
    with pytest.raises(
        errors.MissingAttribute, match="SOPClassUID, SOPInstanceUID, StudyInstanceUID, SeriesInstanceUID"
    ):
        load(unpack("ct-body-siemens/ct-body-siemens.tar.xz"))


def test_jpeg_2000_abdomen_with_new_uids_is_a_regular_volume(unpack, tmp_path):
    datasets = []
    for path in unpack("ct-body-siemens/ct-body-siemens.tar.xz"):
        ds = dcmread(path)
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = factories.uid(path.name)
        ds.StudyInstanceUID, ds.SeriesInstanceUID = factories.uid("siemens"), factories.uid("siemens", "series")
        datasets.append(ds)
    source = load(factories.write_series(tmp_path, datasets))
    assert source.images.geometry is Geometry.REGULAR
    assert source.images.volume.spacing_between_slices == pytest.approx(2.0, abs=1e-3)
    reference = dcmread(tmp_path / "00000.dcm")
    plane = [header.SOPInstanceUID for header in source.headers].index(reference.SOPInstanceUID)
    expected = reference.pixel_array * float(reference.RescaleSlope) + float(reference.RescaleIntercept)
    np.testing.assert_array_equal(source.images.array[plane], expected)
    assert len(derived(source)) == 20


def test_mr_with_frames_in_many_fragments(unpack):
    source = load(unpack("mr-brain-t1-multifragment/t1-jpegll-fragmented.tar.xz"))
    assert source.images.geometry is Geometry.REGULAR
    assert source.images.array.shape == (96, 128, 128)
    assert source.images.volume.spacing == pytest.approx((2.0, 2.0, 2.0), abs=1e-3)
    assert len(derived(source)) == 96


def test_one_slice_in_fifteen_transfer_syntaxes(unpack):
    variants = [path for path in unpack("dicom-odd/dicom-odd.tar.xz") if path.name.startswith("CTImage.dcm_")]
    lossless = ("LittleEndian", "BigEndian", "RLE", "Process14", "JPEGLSLossless", "JPEG2000Lossless")
    reference = load([path for path in variants if "LittleEndianExplicit" in path.name and "Deflated" not in path.name])
    equal = 0
    for path in variants:
        if any(retired in path.name for retired in ("Process6_8", "Process10_12")):
            with pytest.raises(errors.UndecodablePixels, match="does not decode"):
                load([path])
            continue
        source = load([path])
        difference = int(np.abs(source.stored.astype(int) - reference.stored.astype(int)).max())
        if any(name in path.name for name in lossless):
            assert difference == 0, path.name
            equal += 1
        elif "JPEG2000Transfer" in path.name or "JPEGLSLossy" in path.name:
            assert difference <= 5, path.name
    assert equal == 9


def test_every_odd_file_is_read_or_refused_by_name_and_every_result_can_be_written(unpack, tmp_path):
    read = 0
    for path in unpack("dicom-odd/dicom-odd.tar.xz"):
        try:
            source = load([path])
            objects = derived(source)
        except (errors.SeriesError, errors.EncodingError):
            continue
        factories.write_series(tmp_path, objects)
        read += 1
    assert read >= 50


@pytest.mark.parametrize("phantom", ["std-brain-5mm", "std-brain-1mm-idose-ub"])
def test_head_phantom_is_a_regular_volume(unpack, phantom):
    images = load(unpack(f"ct-head-phantom-philips/{phantom}.tar.xz")).images
    assert images.geometry is Geometry.REGULAR
    assert images.acquisition["StudyDescription"] == "1A TRAUMA/PLAIN HEAD DM"


def test_cine_is_refused_by_name(unpack):
    paths = [path for path in unpack("mr-cardiac-scd/SCD0000301.tar.xz") if path.parent.name == "sax"]
    with pytest.raises((errors.DuplicatePositions, errors.MixedGeometry)):
        load(paths)
