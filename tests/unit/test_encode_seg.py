"""Segmentations: every voxel where the pipeline put it, every frame on the plane it was made from."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from highdicom.color import CIELabColor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread

from dicomnode import pipeline as dn
from dicomnode.dicom import MANUFACTURER
from dicomnode.encode.gate import check_objects
from dicomnode.encode.order import referenced_requests
from dicomnode.encode.seg import encode_segmentation
from dicomnode.encode.tracking import tracking_uid
from dicomnode.errors import EncodingError
from dicomnode.volumes.series import load
from tests import factories, phantoms


def source_of(tmp_path, datasets):
    return load(factories.write_series(tmp_path, datasets))


def segmented(source, **changes):
    (segmentation,) = phantoms.bleeding(source.images).segmentations
    return encode_segmentation(source, segmentation, phantoms.context(), series_number=9020, **changes)


def bytes_of(ds) -> bytes:
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def read_back(ds):
    return dcmread(io.BytesIO(bytes_of(ds)))


def patient_points(indices, position, orientation, spacing):
    """(row, column) indices of one plane -> LPS [mm]."""
    row, column = np.asarray(orientation[:3], float), np.asarray(orientation[3:], float)
    return (
        np.asarray(position, float)
        + indices[:, 1:] * row * float(spacing[1])
        + indices[:, :1] * column * float(spacing[0])
    )


def points_of_file(ds) -> dict[int, np.ndarray]:
    """Segment number -> sorted LPS points of its voxels, read from the file by its own geometry alone."""
    ds = read_back(ds)
    frames = ds.pixel_array.reshape(-1, ds.Rows, ds.Columns)
    shared = ds.SharedFunctionalGroupsSequence[0]
    orientation = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    spacing = shared.PixelMeasuresSequence[0].PixelSpacing
    found: dict[int, list[np.ndarray]] = {}
    for frame, group in zip(frames, ds.PerFrameFunctionalGroupsSequence, strict=True):
        named = group.get("SegmentIdentificationSequence") or shared.get("SegmentIdentificationSequence")
        for value in np.unique(frame[frame > 0]):
            number = int(named[0].ReferencedSegmentNumber) if named else int(value)
            position = group.PlanePositionSequence[0].ImagePositionPatient
            points = patient_points(np.argwhere(frame == value), position, orientation, spacing)
            found.setdefault(number, []).append(points)
    return {number: ordered(np.concatenate(points)) for number, points in found.items()}


def points_of_labels(source, labels) -> dict[int, np.ndarray]:
    images = source.images
    found: dict[int, list[np.ndarray]] = {}
    for plane, values in enumerate(labels):
        for value in np.unique(values[values > 0]):
            indices = np.argwhere(values == value)
            points = patient_points(indices, images.positions[plane], images.orientation, images.pixel_spacing)
            found.setdefault(int(value), []).append(points)
    return {number: ordered(np.concatenate(points)) for number, points in found.items()}


def ordered(points):
    rounded = np.round(points, 4)
    return points[np.lexsort(rounded.T)]


ANGLES = st.floats(-80, 80, allow_nan=False)


@st.composite
def stacks(draw):
    """Knobs of any stack of planes a scanner may make."""
    n = draw(st.integers(2, 5))
    steps = draw(st.one_of(st.floats(0.4, 8), st.lists(st.floats(0.4, 8), min_size=n - 1, max_size=n - 1)))
    base = draw(st.sampled_from([factories.AXIAL, factories.CORONAL, factories.SAGITTAL]))
    knobs = {
        "n": n,
        "rows": draw(st.integers(5, 9)),
        "columns": draw(st.integers(5, 9)),
        "spacing": (round(draw(st.floats(0.2, 3)), 5), round(draw(st.floats(0.2, 3)), 5)),
        "step": [round(one, 4) for one in steps] if isinstance(steps, list) else round(steps, 4),
        "orientation": factories.tilted(base, draw(ANGLES)),
        "tilt": draw(st.sampled_from([0.0, 0.0, 12.5, -25.0])),
        "order": draw(st.sampled_from(["ascending", "descending", "shuffled"])),
    }
    return knobs, draw(st.booleans()), draw(st.booleans()), draw(st.integers(0, 2**31))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stacks())
def test_a_mask_survives_any_stack_voxel_by_voxel(tmp_path_factory, stack):
    knobs, multi_frame, labelmap, seed = stack
    n = knobs.pop("n")
    datasets = [factories.enhanced_ct(n, **knobs)] if multi_frame else factories.ct_series(n, **knobs)
    source = source_of(tmp_path_factory.mktemp("stack"), datasets)
    labels = np.random.default_rng(seed).integers(0, 3, source.images.array.shape, dtype=np.uint8)
    labels[0, 0, 0] = 1
    segmentation = dn.Segmentation(labels=labels, segments=(phantoms.IPH, phantoms.SDH))
    ds = encode_segmentation(source, segmentation, phantoms.context(), series_number=1, labelmap=labelmap)
    expected, found = points_of_labels(source, labels), points_of_file(ds)
    assert expected.keys() == found.keys()
    for number, points in expected.items():
        np.testing.assert_allclose(found[number], points, atol=1e-5)
    check_objects([ds], source, dn.Result(segmentations=(segmentation,)))


def test_every_frame_names_the_instance_of_its_plane(tmp_path):
    source = source_of(tmp_path, factories.ct_series(6, order="shuffled"))
    ds = segmented(source)
    assert int(ds.NumberOfFrames) == 3
    named = []
    for frame in ds.PerFrameFunctionalGroupsSequence:
        (image,) = frame.DerivationImageSequence[0].SourceImageSequence
        (header,) = [one for one in source.headers if one.SOPInstanceUID == image.ReferencedSOPInstanceUID]
        assert frame.PlanePositionSequence[0].ImagePositionPatient == header.ImagePositionPatient
        assert image.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
        assert image.SpatialLocationsPreserved == "YES"
        named.append(image.ReferencedSOPInstanceUID)
    assert len(set(named)) == 2
    (series,) = ds.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == source.headers[0].SeriesInstanceUID
    assert len(series.ReferencedInstanceSequence) == 6


def test_frames_of_an_enhanced_source_are_named_by_number(tmp_path):
    source = source_of(tmp_path, [factories.enhanced_ct(6)])
    ds = segmented(source)
    numbers = set()
    for frame in ds.PerFrameFunctionalGroupsSequence:
        (image,) = frame.DerivationImageSequence[0].SourceImageSequence
        header = source.headers[0].PerFrameFunctionalGroupsSequence[int(image.ReferencedFrameNumber) - 1]
        position = header.PlanePositionSequence[0].ImagePositionPatient
        assert frame.PlanePositionSequence[0].ImagePositionPatient == position
        numbers.add(int(image.ReferencedFrameNumber))
    assert numbers == {3, 4}  # planes 2 and 3 of 6, counted from the head: frames 4 and 3 of the ascending file


def test_orientation_may_stand_in_every_frame_of_the_source(tmp_path):
    enhanced = factories.enhanced_ct(4)
    shared = enhanced.SharedFunctionalGroupsSequence[0]
    for frame in enhanced.PerFrameFunctionalGroupsSequence:
        frame.PlaneOrientationSequence = shared.PlaneOrientationSequence
        frame.PixelMeasuresSequence = shared.PixelMeasuresSequence
    del shared.PlaneOrientationSequence, shared.PixelMeasuresSequence
    source = source_of(tmp_path, [enhanced])
    check_objects([segmented(source)], source, phantoms.bleeding(source.images))


def test_geometry_is_written_in_the_digits_of_the_source(tmp_path):
    spelt = {
        "PixelSpacing": ["0.4882810", "0.48828100"],
        "ImageOrientationPatient": ["1.0", "0", "0", "0", "1.000", "0"],
    }
    source = source_of(tmp_path, factories.ct_series(4, values=spelt))
    shared = segmented(source).SharedFunctionalGroupsSequence[0]
    assert [str(one) for one in shared.PixelMeasuresSequence[0].PixelSpacing] == spelt["PixelSpacing"]
    written = [str(one) for one in shared.PlaneOrientationSequence[0].ImageOrientationPatient]
    assert written == spelt["ImageOrientationPatient"]


def test_segments_say_what_they_are_and_who_found_them(tmp_path):
    ds = segmented(source_of(tmp_path, factories.ct_series(5)))
    first, second = ds.SegmentSequence
    assert (first.SegmentNumber, second.SegmentNumber) == (1, 2)
    assert first.SegmentLabel == "Intraparenchymal hemorrhage"
    assert first.SegmentAlgorithmType == "AUTOMATIC"
    assert first.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "49755003"
    assert first.SegmentedPropertyTypeCodeSequence[0].CodeValue == "50960005"
    (region,) = first.AnatomicRegionSequence
    assert region.CodeValue == "12738006"
    assert region.AnatomicRegionModifierSequence[0].CodeValue == "7771000"
    assert "AnatomicRegionSequence" not in second
    (algorithm,) = first.SegmentationAlgorithmIdentificationSequence
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("ct-denoising", "1.0.0")
    assert algorithm.AlgorithmFamilyCodeSequence[0].CodeValue == "123110"
    assert algorithm.AlgorithmParameters == f"weights_sha256={'b2' * 32}"
    assert first.TrackingUID == tracking_uid(phantoms.context(), "segmentation", "intraparenchymal")
    assert first.TrackingUID != second.TrackingUID


def test_tracking_is_the_same_in_both_encodings_and_another_per_role(tmp_path):
    source = source_of(tmp_path, factories.ct_series(5))
    binary, labelmap = segmented(source), segmented(source, labelmap=True)
    assert [one.TrackingUID for one in binary.SegmentSequence] == [
        one.TrackingUID for one in labelmap.SegmentSequence[1:]
    ]
    context = phantoms.context()
    assert tracking_uid(context, "diastole", "lv") != tracking_uid(context, "systole", "lv")
    assert binary.SOPInstanceUID != labelmap.SOPInstanceUID
    assert binary.SeriesInstanceUID != labelmap.SeriesInstanceUID


def test_colours_come_back_as_they_were_given(tmp_path):
    source = source_of(tmp_path, factories.ct_series(3))
    for labelmap in (False, True):
        described = segmented(source, labelmap=labelmap).SegmentSequence[-2:]
        for item, segment in zip(described, (phantoms.IPH, phantoms.SDH), strict=True):
            values = list(item.RecommendedDisplayCIELabValue)
            light, a, b = values[0] / 65535 * 100, values[1] / 65535 * 255 - 128, values[2] / 65535 * 255 - 128
            np.testing.assert_allclose(CIELabColor(light, a, b).to_rgb(), segment.colour, atol=1)


def test_pure_red_is_the_lab_colour_of_srgb_red(tmp_path):
    source = source_of(tmp_path, factories.ct_series(3))
    (segmentation,) = phantoms.bleeding(source.images).segmentations
    red = replace(segmentation, segments=(replace(phantoms.IPH, colour=(255, 0, 0)), phantoms.SDH))
    ds = encode_segmentation(source, red, phantoms.context(), series_number=1)
    light, a, b = ds.SegmentSequence[0].RecommendedDisplayCIELabValue
    # L* 53.24, a* 80.09, b* 67.20 (sRGB red, D65) or 54.29, 80.81, 69.89 (the same adapted to D50, PS3.3 C.10.7.1.1).
    assert light / 655.35 == pytest.approx(53.8, abs=1)
    assert a / 257 - 128 == pytest.approx(80.4, abs=1)
    assert b / 257 - 128 == pytest.approx(68.5, abs=2)


def test_the_object_is_the_patients_and_ours(tmp_path):
    source = source_of(tmp_path, factories.ct_series(3, charset="\\ISO 2022 IR 87"))
    ds = read_back(segmented(source))
    header = source.headers[0]
    for keyword in ("PatientID", "IssuerOfPatientID", "StudyInstanceUID", "AccessionNumber", "FrameOfReferenceUID"):
        assert ds[keyword].value == header[keyword].value
    assert str(ds.PatientName) == factories.NAMES["\\ISO 2022 IR 87"]
    assert ds.SpecificCharacterSet == "ISO_IR 192"
    assert (ds.Modality, ds.Manufacturer, ds.BodyPartExamined) == ("SEG", MANUFACTURER, "HEAD")
    assert ds.SeriesDescription == "AI hemorrhage, RUO"
    assert (ds.ContentLabel, ds.ContentDescription) == ("AI HEMORRHAGE", "AI hemorrhage")
    assert ds.ContentQualification == "RESEARCH"
    assert ds["ContentCreatorName"].is_empty
    assert ds.SeriesNumber == 9020
    assert [item.ManufacturerModelName for item in ds.ContributingEquipmentSequence] == ["Scanner 1", "AI ct-denoising"]


@pytest.mark.parametrize("labelmap", [False, True])
def test_the_same_job_gives_the_same_bytes(tmp_path, labelmap):
    source = source_of(tmp_path, factories.ct_series(4, rows=7, columns=5))
    assert bytes_of(segmented(source, labelmap=labelmap)) == bytes_of(segmented(source, labelmap=labelmap))


def test_a_header_without_type_2_attributes_is_no_obstacle(tmp_path):
    absent = ("AccessionNumber", "StudyID", "StudyDate", "StudyTime", "PatientSex", "PatientBirthDate")
    ds = segmented(source_of(tmp_path, factories.ct_series(3, missing=absent)))
    assert all(keyword in ds and ds[keyword].is_empty for keyword in absent)


@pytest.mark.parametrize(("ratio", "written"), [(None, None), ("12.5", 12.5)])
def test_once_lossy_always_lossy(tmp_path, ratio, written):
    values = {"LossyImageCompression": "01"} | ({"LossyImageCompressionRatio": ratio} if ratio else {})
    ds = segmented(source_of(tmp_path, factories.ct_series(3, values=values)))
    assert ds.LossyImageCompression == "01"
    assert ds.get("LossyImageCompressionRatio") == written


def test_a_segment_without_voxels_is_declared_beside_one_that_has_some(tmp_path):
    source = source_of(tmp_path, factories.ct_series(3))
    labels = np.zeros(source.images.array.shape, np.uint8)
    labels[1, 2:4, 2:4] = 2
    segmentation = dn.Segmentation(labels=labels, segments=(phantoms.IPH, phantoms.SDH))
    ds = encode_segmentation(source, segmentation, phantoms.context(), series_number=1)
    assert (len(ds.SegmentSequence), int(ds.NumberOfFrames)) == (2, 1)
    check_objects([ds], source, dn.Result(segmentations=(segmentation,)))


REFUSED = {
    "empty": (lambda one: replace(one, labels=np.zeros_like(one.labels)), "is empty: a negative is said by a finding"),
    "another shape": (lambda one: replace(one, labels=one.labels[:, ::2]), "labels are uint8 on the input's planes"),
    "another type": (lambda one: replace(one, labels=one.labels.astype(np.int16)), "labels are uint8"),
    "undeclared label": (lambda one: replace(one, segments=one.segments[:1]), "has the label 2 but 1 segments"),
    "same key": (lambda one: replace(one, segments=(phantoms.IPH, phantoms.IPH)), "two segments of the same key"),
    "long label": (
        lambda one: replace(one, segments=(replace(phantoms.IPH, label="x" * 65), phantoms.SDH)),
        "label of segment 'intraparenchymal'",
    ),
    "no colour": (
        lambda one: replace(one, segments=(replace(phantoms.IPH, colour=(256, 0, 0)), phantoms.SDH)),
        "not sRGB",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_labels_that_do_not_fit_are_refused(tmp_path, case):
    change, message = REFUSED[case]
    source = source_of(tmp_path, factories.ct_series(4))
    (segmentation,) = phantoms.bleeding(source.images).segmentations
    with pytest.raises(EncodingError, match=message):
        encode_segmentation(source, change(segmentation), phantoms.context(), series_number=1)


def test_without_a_frame_of_reference_there_is_no_segmentation(tmp_path):
    source = source_of(tmp_path, factories.ct_series(3, missing=["FrameOfReferenceUID"]))
    with pytest.raises(EncodingError, match="has no FrameOfReferenceUID: no segmentation can be laid over it"):
        segmented(source)


def test_the_order_is_said_in_the_words_of_the_source(tmp_path):
    request = Dataset()
    request.RequestedProcedureID, request.ScheduledProcedureStepID = "RP1", "SPS1"
    request.RequestedProcedureDescription = "CT head"
    values = {"RequestAttributesSequence": [request], "AccessionNumber": "A77"}
    source = source_of(tmp_path, factories.ct_series(3, values=values))
    assert segmented(source).RequestAttributesSequence[0].RequestedProcedureID == "RP1"
    (item,) = referenced_requests(source.headers[0])
    assert item.StudyInstanceUID == source.headers[0].StudyInstanceUID
    assert (item.AccessionNumber, item.RequestedProcedureID) == ("A77", "RP1")
    assert item.RequestedProcedureDescription == "CT head"
    assert item["PlacerOrderNumberImagingServiceRequest"].is_empty
    assert list(item.RequestedProcedureCodeSequence) == []
    assert referenced_requests(source_of(tmp_path / "plain", factories.ct_series(3)).headers[0]) == []
