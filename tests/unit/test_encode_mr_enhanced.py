"""The multi-frame form of reconstructed series: the same pixels in the same places as one object a plane."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pytest
import SimpleITK
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.sr.codedict import codes
from pydicom.uid import EnhancedMRImageStorage

from dicomnode import pipeline as dn
from dicomnode.dicom import RAW_DATA_STORAGE
from dicomnode.encode import anatomy, enhanced_groups
from dicomnode.encode.enhanced_mr import encode_enhanced
from dicomnode.encode.gate import check_objects
from dicomnode.encode.mr import encode_reconstruction
from dicomnode.errors import EncodingError
from dicomnode.volumes import measurement
from dicomnode.volumes.series import load
from tests import factories, phantoms
from tests.mrd_factory import Scan
from tests.raw_scans import LearnedRSS, PlainRSS, like, point_scan, wrapped
from tests.unit.test_encode_mr import plane, series

CASES = {
    "slices": Scan(slices=3, coils=2),
    "cine": Scan(phases=4, slices=2, trigger_ticks=10),
    "echoes and repetitions": Scan(contrasts=2, repetitions=2),
    "partitions": Scan(partitions=4),
    "oblique": point_scan(matrix=(61, 45))[0],
}


def source_of(folder: Path, scan: Scan, **options: Any) -> measurement.SourceMeasurement:
    return measurement.load(wrapped(folder / "raw", scan.write(folder / "scan.h5"), **options), folder / "again.h5")


@pytest.fixture
def source(tmp_path: Path) -> measurement.SourceMeasurement:
    return source_of(tmp_path, Scan())


def both(source: measurement.SourceMeasurement, made: dn.Reconstruction, **options: Any) -> tuple[list[Dataset], ...]:
    """Single-frame objects, multi-frame objects."""
    singles = list(encode_reconstruction(source, made, phantoms.context()))
    return singles, list(encode_enhanced(source, made, phantoms.context(variant="enhanced"), **options))


def group(ds: Dataset, frame: int, sequence: str) -> Dataset:
    own, shared = ds.PerFrameFunctionalGroupsSequence[frame], ds.SharedFunctionalGroupsSequence[0]
    return (own if sequence in own else shared)[sequence][0]


def frames_of(ds: Dataset) -> np.ndarray:
    return ds.pixel_array.reshape(int(ds.NumberOfFrames), ds.Rows, ds.Columns)


@pytest.mark.parametrize("case", CASES)
def test_every_frame_is_the_single_frame_image_of_its_number(tmp_path, case):
    source = source_of(tmp_path, CASES[case])
    (made,) = PlainRSS().run(source.kspace).reconstructions
    singles, (whole,) = both(source, made)
    assert whole.SOPClassUID == EnhancedMRImageStorage and int(whole.NumberOfFrames) == len(singles)
    assert whole.SeriesInstanceUID != singles[0].SeriesInstanceUID, "the same archive may get both"
    for index, (single, pixels) in enumerate(zip(singles, frames_of(whole), strict=True)):
        assert np.array_equal(single.pixel_array, pixels)
        for keyword, sequence in (
            ("ImagePositionPatient", "PlanePositionSequence"),
            ("ImageOrientationPatient", "PlaneOrientationSequence"),
            ("PixelSpacing", "PixelMeasuresSequence"),
            ("SliceThickness", "PixelMeasuresSequence"),
            ("WindowWidth", "FrameVOILUTSequence"),
            ("RealWorldValueMappingSequence", ""),
        ):
            holder = group(whole, index, sequence) if sequence else whole.SharedFunctionalGroupsSequence[0]
            assert holder[keyword].value == single[keyword].value, keyword
        if "EchoTime" in single:
            assert group(whole, index, "MREchoSequence").EffectiveEchoTime == float(single.EchoTime)
    for keyword in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID", "PatientPosition", "SeriesDescription",
                    "ContentQualification", "SoftwareVersions", "RepetitionTime", "FlipAngle"):  # fmt: skip
        assert whole[keyword].value == singles[0][keyword].value, keyword
    check_objects([whole], source, dn.Result(reconstructions=(made,)))


def test_it_says_what_it_was_made_of_and_how(source):
    (made,) = LearnedRSS().run(source.kspace).reconstructions
    _, (ds,) = both(source, made)
    (study,) = ds.ReferencedRawDataSequence
    (raw,) = study.ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert raw.ReferencedSOPClassUID == RAW_DATA_STORAGE
    assert raw.ReferencedSOPInstanceUID == source.headers[0].SOPInstanceUID
    assert list(ds.ImageType) == ["DERIVED", "PRIMARY", "M", "NONE"] and ds.ImageComments == made.description
    assert ds.SeriesDescription.endswith("[AI plain RSS, RUO]") and ds.ContentQualification == "RESEARCH"
    _, (linear,) = both(source, replace(made, learned=False))
    assert "ORIGINAL" in linear.ImageComments, "why a linear image says DERIVED"


def test_a_cine_has_dimensions_of_place_and_trigger_delay(tmp_path):
    source = source_of(tmp_path, CASES["cine"])
    (made,) = PlainRSS().run(source.kspace).reconstructions
    gated = replace(made, planes=tuple(replace(one, trigger_time=25.0 * one.phase) for one in made.planes))
    _, (ds,) = both(source, gated)
    assert [one.DimensionDescriptionLabel for one in ds.DimensionIndexSequence] == ["Stack", "Position", "Phase"]
    seen = [tuple(group(ds, n, "FrameContentSequence").DimensionIndexValues) for n in range(8)]
    assert seen == [(1, level, phase) for level in (1, 2) for phase in (1, 2, 3, 4)]
    delays = [group(ds, n, "CardiacSynchronizationSequence").NominalCardiacTriggerDelayTime for n in range(4)]
    assert delays == [0.0, 25.0, 50.0, 75.0]
    _, (untimed,) = both(source, made)
    assert [one.DimensionDescriptionLabel for one in untimed.DimensionIndexSequence] == ["Time", "Stack", "Position"]
    assert [group(untimed, n, "FrameContentSequence").TemporalPositionIndex for n in range(4)] == [1, 2, 3, 4]


def test_echoes_repetitions_sets_and_stacks_tell_frames_apart(tmp_path):
    source = source_of(tmp_path, CASES["echoes and repetitions"])
    (made,) = PlainRSS().run(source.kspace).reconstructions
    _, (ds,) = both(source, made)
    labels = [one.DimensionDescriptionLabel for one in ds.DimensionIndexSequence]
    assert labels == ["Echo time", "Time", "Stack", "Position"]
    assert tuple(group(ds, 3, "FrameContentSequence").DimensionIndexValues) == (2, 2, 1, 1)
    coronal = np.array([1.0, 0, 0, 0, 0, -1.0])
    planes = (
        plane(set=0),
        plane(set=1),
        plane(slice=1, orientation=coronal),
        plane(slice=1, set=1, orientation=coronal),
    )
    _, (ds,) = both(source, series(*planes))
    assert [one.DimensionDescriptionLabel for one in ds.DimensionIndexSequence] == ["Set", "Stack", "Position"]
    content = [group(ds, n, "FrameContentSequence") for n in range(4)]
    assert [(one.FrameLabel, one.StackID) for one in content] == [
        ("set 1, echo 1", "1"), ("set 1, echo 1", "2"), ("set 2, echo 1", "1"), ("set 2, echo 1", "2"),
    ]  # fmt: skip


def test_a_large_series_becomes_a_concatenation(tmp_path):
    source = source_of(tmp_path, Scan(slices=5))
    (made,) = PlainRSS().run(source.kspace).reconstructions
    size = 2 * made.planes[0].array.size
    singles, parts = both(source, made, most_bytes=2 * size + 1)
    assert [int(ds.NumberOfFrames) for ds in parts] == [2, 2, 1]
    assert len({ds.ConcatenationUID for ds in parts}) == len({ds.SeriesInstanceUID for ds in parts}) == 1
    assert len({ds.SOPInstanceUID for ds in parts}) == 3 and {ds.InstanceNumber for ds in parts} == {1}
    assert [(ds.InConcatenationNumber, ds.InConcatenationTotalNumber) for ds in parts] == [(1, 3), (2, 3), (3, 3)]
    assert [ds.ConcatenationFrameOffsetNumber for ds in parts] == [0, 2, 4]
    assert len({ds.SharedFunctionalGroupsSequence[0].to_json() for ds in parts}) == 1
    together = np.concatenate([frames_of(ds) for ds in parts])
    assert np.array_equal(together, np.stack([ds.pixel_array for ds in singles]))
    _, whole = both(source, made)
    assert len(whole) == 1 and "ConcatenationUID" not in whole[0]


def test_phase_is_mapped_to_radians_and_the_window_shows_all_of_it(source):
    values = np.linspace(-math.pi, math.pi, 24, dtype=np.float32).reshape(4, 6)
    singles, (whole,) = both(source, series(plane(array=values), component="P", scale=4096 / math.pi))
    for ds, mapping, window in (
        (singles[0], singles[0].RealWorldValueMappingSequence[0], singles[0]),
        (whole, group(whole, 0, "RealWorldValueMappingSequence"), group(whole, 0, "FrameVOILUTSequence")),
    ):
        assert (float(window.WindowCenter), float(window.WindowWidth)) == (0.0, 8192.0)
        assert ds.ImageType[2] == "P" and ds.PixelRepresentation == 1
        unit = mapping.MeasurementUnitsCodeSequence[0]
        assert (unit.CodeValue, unit.CodingSchemeDesignator) == ("rad", "UCUM")
        assert np.allclose(ds.pixel_array * mapping.RealWorldValueSlope, values, atol=math.pi / 8192 + 1e-6)
    assert whole.ComplexImageComponent == "PHASE"


def test_degrees_are_not_sent_as_radians(source):
    degrees = series(plane(array=np.full((4, 6), 90.0, np.float32)), component="P", scale=100.0)
    for encode in (encode_reconstruction, encode_enhanced):
        with pytest.raises(EncodingError, match="beyond half a turn"):
            list(encode(source, degrees, phantoms.context()))


def test_signal_to_noise_says_that_it_is_and_has_no_unit(source):
    singles, (whole,) = both(source, series(snr=True, scale=10.0))
    for mapping in (singles[0].RealWorldValueMappingSequence[0], group(whole, 0, "RealWorldValueMappingSequence")):
        assert mapping.LUTLabel == "SNR" and mapping.RealWorldValueSlope == 0.1
        assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "1"


def test_real_and_imaginary_parts_are_windowed_around_zero(source):
    values = np.linspace(-20, 5, 24, dtype=np.float32).reshape(4, 6)
    singles, (whole,) = both(source, series(plane(array=values), component="R", scale=10.0))
    assert float(singles[0].WindowCenter) == 0.0 and float(singles[0].WindowWidth) > 300
    assert whole.ComplexImageComponent == "REAL" and whole.pixel_array.min() == -200


# -- what others read


@pytest.mark.parametrize("case", ["slices", "oblique", "partitions"])
def test_other_readers_see_the_same_values_in_the_same_places(tmp_path, case):
    scan = replace(CASES[case], slices=3) if case == "oblique" else CASES[case]
    source = source_of(tmp_path, scan)
    (made,) = PlainRSS().run(source.kspace).reconstructions
    singles, (whole,) = both(source, made)
    path = tmp_path / "whole.dcm"
    dcmwrite(path, whole, enforce_file_format=True)
    ours = load([path])
    theirs = load(factories.write_series(tmp_path / "singles", singles))
    assert np.array_equal(ours.images.array, theirs.images.array)
    assert np.allclose(ours.images.positions, theirs.images.positions, atol=1e-6)
    assert ours.images.geometry is theirs.images.geometry is dn.Geometry.REGULAR
    volume = highdicom.imread(path).get_volume(apply_real_world_transform=False, apply_modality_transform=False)
    first = np.asarray(singles[0].ImagePositionPatient, float)
    at = [round(float(v)) for v in volume.map_reference_to_indices(first[None])[0]]
    assert np.allclose(volume.map_indices_to_reference(np.asarray([at])), first, atol=0.01)
    assert np.array_equal(volume.array[at[0]], singles[0].pixel_array)
    image = SimpleITK.ReadImage(str(path))
    assert np.array_equal(SimpleITK.GetArrayFromImage(image), frames_of(dcmread(path)))
    assert np.allclose(image.GetSpacing()[:2], [float(v) for v in reversed(singles[0].PixelSpacing)])
    assert np.allclose(image.GetOrigin(), first, atol=0.01)


# -- what the gate refuses


def test_no_frame_leaves_that_a_viewer_would_see_elsewhere(source, monkeypatch):
    monkeypatch.setattr(enhanced_groups, "numbers", lambda values: [str(round(float(v) + 0.001, 3)) for v in values])
    with pytest.raises(EncodingError, match=r"frame 1 ImagePositionPatient is not the plane's.*PixelSpacing"):
        list(encode_enhanced(source, series(), phantoms.context()))


def test_planes_that_nothing_tells_apart_are_refused(source):
    turned = plane(phase=1, position=np.array([0.0, 0.0, 1e-5]))
    made = series(
        plane(trigger_time=0.0), replace(turned, trigger_time=1.0), replace(turned, slice=2, trigger_time=1.0)
    )
    with pytest.raises(EncodingError, match="do not tell every frame apart"):
        list(encode_enhanced(source, made, phantoms.context()))


def test_a_group_that_is_missing_or_twice_is_named(source, monkeypatch):
    whole = enhanced_groups.shared
    monkeypatch.setattr(
        "dicomnode.encode.enhanced_mr.groups.shared", lambda one: _without(whole(one), "FrameVOILUTSequence")
    )
    with pytest.raises(EncodingError, match="frame 1 has FrameVOILUTSequence twice or not at all"):
        list(encode_enhanced(source, series(), phantoms.context()))


def _without(ds: Dataset, keyword: str) -> Dataset:
    del ds[keyword]
    return ds


def test_regions_are_codes_that_exist(tmp_path):
    found = (getattr(codes.SCT, name) for name in dir(codes.SCT) if name[0].isupper())
    known = {code.value for code in found}
    assert {value for value, _ in anatomy._REGIONS.values()} <= known
    source = source_of(tmp_path, Scan(), source=like(BodyPartExamined="HEART"))
    _, (ds,) = both(source, series())
    seen = ds.SharedFunctionalGroupsSequence[0].FrameAnatomySequence[0]
    assert seen.AnatomicRegionSequence[0].CodeMeaning == "Heart" and seen.FrameLaterality == "U"


def test_the_longest_label_leaves_room_for_what_must_be_said(source):
    made = series(label="x" * 48, learned=True)
    for encode in (encode_reconstruction, encode_enhanced):
        (ds,) = encode(source, made, phantoms.context(incomplete=True))
        assert len(ds.SeriesDescription) <= 64 and ds.SeriesDescription.endswith(", RUO, incomplete]")
        check_objects([ds], source, dn.Result(reconstructions=(made,)))
