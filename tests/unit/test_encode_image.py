"""The derived series: everything of the source but the pixels, and every change said."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset

from dicomnode.dicom import IMPLEMENTATION_CLASS_UID, MANUFACTURER, valid_uid
from dicomnode.encode.check import check
from dicomnode.encode.image import encode_images
from dicomnode.errors import EncodingError
from dicomnode.pipeline import Geometry, Image, Result
from dicomnode.volumes.series import load
from tests import factories, phantoms

GEOMETRY = (
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    "GantryDetectorTilt",
    "PatientPosition",
    "FrameOfReferenceUID",
)


def source_of(tmp_path, datasets):
    return load(factories.write_series(tmp_path, datasets))


def derived(source, result=None, **context):
    result = phantoms.shifted(source.images, -10.0) if result is None else result
    return list(encode_images(source, result, phantoms.context(**context)))


def bytes_of(ds) -> bytes:
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def stored(ds) -> np.ndarray:
    return dcmread(io.BytesIO(bytes_of(ds))).pixel_array


def text(ds, keyword):
    """Value as written in the file."""
    element = ds.get(keyword)
    if element is None:
        return None
    return (
        "\\".join(map(str, element)) if not isinstance(element, str) and hasattr(element, "__iter__") else str(element)
    )


def test_one_object_per_plane_with_the_identity_of_the_source(tmp_path):
    source = source_of(tmp_path, factories.ct_series(4, charset="\\ISO 2022 IR 87"))
    objects = derived(source)
    assert len(objects) == 4
    for ds, header in zip(objects, source.headers, strict=True):
        for keyword in (
            "PatientName",
            "PatientID",
            "IssuerOfPatientID",
            "PatientBirthDate",
            "PatientSex",
            "StudyInstanceUID",
            "StudyDate",
            "StudyTime",
            "StudyID",
            "StudyDescription",
            "AccessionNumber",
            "FrameOfReferenceUID",
            "SOPClassUID",
            "InstanceNumber",
            "AcquisitionNumber",
            "AcquisitionDate",
            "KVP",
            "ConvolutionKernel",
            "BodyPartExamined",
            "WindowCenter",
            "WindowWidth",
            "RescaleType",
        ):
            assert text(ds, keyword) == text(header, keyword), keyword
        back = dcmread(io.BytesIO(bytes_of(ds)))
        assert str(back.PatientName) == factories.NAMES["\\ISO 2022 IR 87"]
        assert back.SpecificCharacterSet == "ISO_IR 192"


def test_what_is_said_about_the_derivation(tmp_path):
    source = source_of(tmp_path, factories.ct_series(3))
    for index, (ds, header) in enumerate(zip(derived(source), source.headers, strict=True)):
        assert list(ds.ImageType) == ["DERIVED", "SECONDARY", "AXIAL"]
        assert ds.ContentQualification == "RESEARCH"
        assert ds.SeriesDescription == "Head 2.5mm [AI denoised, RUO]"
        assert ds.DerivationDescription == "AI noise reduction (ct-denoising 1.0.0, strength 0.6)"
        assert ds.DerivationCodeSequence[0].CodeValue == "113087"
        (image,) = ds.SourceImageSequence
        assert image.ReferencedSOPInstanceUID == header.SOPInstanceUID
        assert image.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
        assert image.SpatialLocationsPreserved == "YES"
        (series,) = ds.ReferencedSeriesSequence
        assert series.SeriesInstanceUID == header.SeriesInstanceUID
        assert series.ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == header.SOPInstanceUID
        assert ds.SOPInstanceUID == phantoms.context().instance_uid("denoised", index)
        assert ds.SeriesInstanceUID == phantoms.context().series_uid("denoised")
        assert ds.SeriesNumber == 9000


def test_the_node_is_the_equipment_and_the_scanner_a_contributor(tmp_path):
    (ds,) = derived(source_of(tmp_path, factories.ct_series(1)))
    assert (ds.Manufacturer, ds.DeviceSerialNumber) == (MANUFACTURER, "node-1")
    assert "ct-denoising" in ds.ManufacturerModelName
    assert len(ds.SoftwareVersions) == 2
    scanner, node = ds.ContributingEquipmentSequence
    assert scanner.PurposeOfReferenceCodeSequence[0].CodeValue == "109101"
    assert (scanner.Manufacturer, scanner.ManufacturerModelName, scanner.SoftwareVersions) == (
        "ACME",
        "Scanner 1",
        "1.2",
    )
    assert node.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
    assert node.ContributionDescription.startswith("ct-denoising 1.0.0")
    assert node.ContributionDateTime == "20260105102030.123456+0000"


def test_file_meta_is_ours(tmp_path):
    (ds,) = derived(source_of(tmp_path, factories.ct_series(1)))
    back = dcmread(io.BytesIO(bytes_of(ds)))
    assert back.file_meta.ImplementationClassUID == IMPLEMENTATION_CLASS_UID
    assert back.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    assert back.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
    assert "SourceApplicationEntityTitle" not in back.file_meta


def test_second_run_of_a_job_gives_the_same_bytes(tmp_path):
    paths = factories.write_series(tmp_path, factories.ct_series(3, padding=-2000))
    first = [bytes_of(ds) for ds in derived(load(paths))]
    second = [bytes_of(ds) for ds in derived(load(paths[::-1]))]
    assert first == second
    other = derived(load(paths), job_key="c3" * 32)
    assert {ds.SOPInstanceUID for ds in other}.isdisjoint(dcmread(io.BytesIO(raw)).SOPInstanceUID for raw in first)


def test_what_must_not_be_copied_is_not(tmp_path):
    junk = {
        "SmallestImagePixelValue": 1,
        "LargestImagePixelValue": 2,
        "SmallestPixelValueInSeries": 1,
        "PerformedProcedureStepID": "P1",
        "PerformedProcedureStepStartDate": "20240101",
        "SOPInstanceStatus": "AO",
        "PixelDataProviderURL": "http://example.invalid/",
        "StationName": "CT1",
        "InstanceCreatorUID": "1.2.3",
    }
    sequences = (
        "IconImageSequence",
        "OriginalAttributesSequence",
        "DigitalSignaturesSequence",
        "MACParametersSequence",
        "ReferencedPerformedProcedureStepSequence",
    )
    datasets = factories.ct_series(1, values=junk)
    for keyword in sequences:
        setattr(datasets[0], keyword, [Dataset()])
    datasets[0].private_block(0x0019, "ACME", create=True).add_new(0x01, "LO", "secret")
    datasets[0].add_new(0x60000010, "US", 8)
    datasets[0].add_new(0x50000005, "US", 8)
    (ds,) = derived(source_of(tmp_path, datasets))
    assert not [keyword for keyword in (*junk, *sequences) if keyword in ds]
    assert not [e for e in ds if e.tag.is_private or e.tag.group & 0xFF00 in {0x5000, 0x6000}]


def test_request_context_is_copied(tmp_path):
    request = Dataset()
    request.RequestedProcedureID = "R1"
    (ds,) = derived(source_of(tmp_path, factories.ct_series(1, values={"RequestAttributesSequence": [request]})))
    assert ds.RequestAttributesSequence[0].RequestedProcedureID == "R1"


@pytest.mark.parametrize("ratio", [None, "12.5"])
def test_once_lossy_always_lossy_and_no_invented_ratio(tmp_path, ratio):
    values = {"LossyImageCompression": "01"} | ({"LossyImageCompressionRatio": ratio} if ratio else {})
    (ds,) = derived(source_of(tmp_path, factories.ct_series(1, values=values)))
    assert ds.LossyImageCompression == "01"
    assert text(ds, "LossyImageCompressionRatio") == ratio


def test_long_description_is_cut_for_the_label(tmp_path):
    (ds,) = derived(source_of(tmp_path, factories.ct_series(1, values={"SeriesDescription": "x" * 64})))
    assert len(ds.SeriesDescription) == 64
    assert ds.SeriesDescription.endswith("x [AI denoised, RUO]")


def test_series_without_a_description_is_named_by_its_protocol(tmp_path):
    (ds,) = derived(source_of(tmp_path, factories.ct_series(1, missing=["SeriesDescription"])))
    assert ds.SeriesDescription == "Head [AI denoised, RUO]"


def test_incomplete_revision_and_predecessor_are_said(tmp_path):
    source = source_of(tmp_path, factories.ct_series(1))
    (ds,) = derived(source, incomplete=True, revision=2, predecessor="1.2.3")
    assert ds.SeriesDescription.endswith("[AI denoised, RUO, incomplete]")
    assert "input incomplete" in ds.DerivationDescription
    assert "replaces series 1.2.3" in ds.DerivationDescription


def test_body_part_comes_from_the_descriptions(tmp_path):
    absent = ["BodyPartExamined", "SeriesDescription", "ProtocolName"]
    (ds,) = derived(source_of(tmp_path, factories.ct_series(1, missing=absent)))
    assert ds.BodyPartExamined == "HEAD"


def test_unknown_body_part_is_an_empty_laterality_and_no_guess(tmp_path):
    absent = ["BodyPartExamined", "SeriesDescription", "ProtocolName", "StudyDescription"]
    (ds,) = derived(source_of(tmp_path, factories.ct_series(1, missing=absent)))
    assert "BodyPartExamined" not in ds
    assert ds["Laterality"].is_empty


def test_values_that_their_vr_forbids_are_not_written(tmp_path):
    values = {"ImageComments": "fine", "FilterType": "x" * 40, "InstitutionName": "y" * 70, "PatientSex": "no sex!"}
    (ds,) = derived(source_of(tmp_path, factories.ct_series(1, values=values)))
    assert ds.ImageComments == "fine"
    assert "FilterType" not in ds
    assert len(ds.InstitutionName) == 64
    assert ds["PatientSex"].is_empty


@pytest.mark.parametrize("patient_id", ["x" * 65, "a\x07b", "a\\b"])
def test_identity_that_cannot_be_repeated_is_refused_without_being_told(tmp_path, patient_id):
    source = source_of(tmp_path, factories.ct_series(1, patient_id=patient_id))
    with pytest.raises(EncodingError, match="PatientID of 1") as refused:
        derived(source)
    assert patient_id not in str(refused.value)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("StudyInstanceUID", "1.2.03"),
        ("SOPInstanceUID", "1.2.x"),
        ("FrameOfReferenceUID", ""),
        ("SeriesInstanceUID", "1" * 65),
    ],
)
def test_invalid_identifiers_are_refused_by_name(tmp_path, keyword, value):
    datasets = factories.ct_series(1)
    factories.set_raw(datasets[0], keyword, value)
    with pytest.raises(EncodingError, match=keyword):
        derived(source_of(tmp_path, datasets))


def test_times_follow_the_zone_of_the_source(tmp_path):
    (ds,) = derived(source_of(tmp_path, factories.ct_series(1, values={"TimezoneOffsetFromUTC": "-0330"})))
    assert (ds.ContentDate, ds.ContentTime, ds.TimezoneOffsetFromUTC) == ("20260105", "065030.123456", "-0330")


def test_times_without_a_zone_are_those_of_the_context(tmp_path):
    when = datetime(2026, 1, 5, 23, 30, tzinfo=timezone(timedelta(hours=1)))
    (ds,) = derived(source_of(tmp_path, factories.ct_series(1)), when=when)
    assert (ds.SeriesDate, ds.SeriesTime) == ("20260105", "233000.000000")
    assert "TimezoneOffsetFromUTC" not in ds


def test_context_without_a_time_zone_is_refused():
    with pytest.raises(ValueError, match="time zone"):
        phantoms.context(when=datetime(2026, 1, 5))


def test_unchanged_voxels_and_padding_keep_their_bits(tmp_path):
    source = source_of(tmp_path, factories.ct_series(3, padding=-2000, slope="0.37", intercept="-1023.7"))
    array = source.images.array.copy()
    array[:, 10:20] += 50
    array[source.images.padding] = 12345.0
    for index, ds in enumerate(derived(source, phantoms.result(array))):
        pixels = stored(ds)
        kept = source.images.padding[index].copy()
        kept[:10], kept[20:] = True, True
        np.testing.assert_array_equal(pixels[kept], source.stored[index][kept])
        assert (pixels[~kept] != source.stored[index][~kept]).all()


def test_non_finite_padding_is_harmless_and_elsewhere_refused(tmp_path):
    source = source_of(tmp_path, factories.ct_series(2, padding=-2000))
    array = source.images.array.copy()
    array[source.images.padding] = np.nan
    np.testing.assert_array_equal(stored(derived(source, phantoms.result(array))[0]), source.stored[0])
    array[1, 16, 16] = np.inf
    with pytest.raises(EncodingError, match="not finite in plane 1"):
        derived(source, phantoms.result(array))


def test_values_round_half_to_even_and_are_clipped(tmp_path):
    source = source_of(tmp_path, factories.ct_series(1, bits_stored=12, signed=False))
    array = source.images.array.copy()
    array[0, 0, :6] = [-1021.5, -1020.5, 1e9, -1e9, 0.25, -1022.5]
    (ds,) = derived(source, phantoms.result(array))
    assert list(stored(ds)[0, :6]) == [2, 4, 4095, 0, 1024, 2]
    assert (ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation) == (16, 12, 11, 0)


def test_no_computed_voxel_becomes_padding(tmp_path):
    source = source_of(tmp_path, factories.ct_series(1, padding=-1000, intercept="0"))
    array = np.where(source.images.padding, source.images.array, np.float32(-1000))
    pixels = stored(derived(source, phantoms.result(array))[0])
    np.testing.assert_array_equal(pixels == -1000, source.images.padding[0] | (source.stored[0] == -1000))
    assert (pixels[~source.images.padding[0]] == -999).all()


def test_array_off_the_planes_and_roles_that_collide_are_refused(tmp_path):
    source = source_of(tmp_path, factories.ct_series(2))
    with pytest.raises(EncodingError, match="not on its planes"):
        derived(source, phantoms.result(source.images.array[:1]))
    (image,) = phantoms.identity(source.images).images
    with pytest.raises(EncodingError, match="same role"):
        derived(source, Result(images=(image, image)))


def test_two_images_make_two_series(tmp_path):
    source = source_of(tmp_path, factories.ct_series(2))
    (one,) = phantoms.identity(source.images).images
    other = Image(array=one.array, role="noise", label="AI noise", description="n", code=one.code)
    objects = derived(source, Result(images=(one, other)))
    assert len({ds.SeriesInstanceUID for ds in objects}) == 2
    assert {int(ds.SeriesNumber) for ds in objects} == {9000, 9001}


@pytest.mark.parametrize("make", [factories.enhanced_ct, factories.enhanced_mr])
def test_enhanced_stays_one_instance_in_the_order_of_the_source(tmp_path, make):
    original = make(5, order="shuffled")
    source = source_of(tmp_path, [original])
    (ds,) = derived(source, phantoms.shifted(source.images, 7))
    np.testing.assert_array_equal(stored(ds), original.pixel_array + 7)
    assert list(ds.ImageType)[:2] == ["DERIVED", "PRIMARY"]
    for number, group in enumerate(ds.PerFrameFunctionalGroupsSequence, 1):
        (item,) = group.DerivationImageSequence
        assert item.SourceImageSequence[0].ReferencedFrameNumber == number
        assert item.DerivationCodeSequence[0].CodeValue == "113087"
        ours, theirs = group.PlanePositionSequence, original.PerFrameFunctionalGroupsSequence[number - 1]
        assert text(ours[0], "ImagePositionPatient") == text(theirs.PlanePositionSequence[0], "ImagePositionPatient")
    shared = ds.SharedFunctionalGroupsSequence[0]
    frame_type = shared.get("CTImageFrameTypeSequence") or shared.MRImageFrameTypeSequence
    assert frame_type[0].FrameType[0] == "DERIVED"
    (evidence,) = ds.SourceImageEvidenceSequence
    assert (
        evidence.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        == original.SOPInstanceUID
    )


def test_mr_is_written_as_mr(tmp_path):
    source = source_of(tmp_path, factories.mr_series(3))
    for ds, header in zip(derived(source), source.headers, strict=True):
        assert ds.SOPClassUID == header.SOPClassUID
        assert list(ds.ImageType) == ["DERIVED", "SECONDARY", "OTHER"]
        assert "RescaleSlope" not in ds


def faulty(ds, fault):
    copy = dcmread(io.BytesIO(bytes_of(ds)))
    fault(copy)
    return copy


@pytest.mark.parametrize(
    ("named", "fault"),
    [
        ("ImageType", lambda ds: setattr(ds, "ImageType", ["ORIGINAL", "PRIMARY", "AXIAL"])),
        ("ContentQualification", lambda ds: delattr(ds, "ContentQualification")),
        ("SourceImageSequence", lambda ds: delattr(ds, "SourceImageSequence")),
        ("DerivationCodeSequence", lambda ds: delattr(ds, "DerivationCodeSequence")),
        ("PurposeOfReference", lambda ds: delattr(ds.SourceImageSequence[0], "PurposeOfReferenceCodeSequence")),
        ("FrameOfReferenceUID", lambda ds: setattr(ds, "FrameOfReferenceUID", "1.2.3")),
        ("ImagePositionPatient", lambda ds: setattr(ds, "ImagePositionPatient", ["-64", "-80", "30.0"])),
        ("CTDIvol is not finite", lambda ds: setattr(ds, "CTDIvol", float("nan"))),
        ("not a valid UID", lambda ds: ds.SourceImageSequence[0].__setattr__("ReferencedSOPInstanceUID", "1.02")),
        ("PixelData has", lambda ds: setattr(ds, "PixelData", b"\0\0")),
        ("SeriesInstanceUID is still", lambda ds: setattr(ds, "SeriesInstanceUID", factories.uid("study", "series"))),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_self_check_finds_what_validators_do_not(tmp_path, named, fault):
    source = source_of(tmp_path, factories.ct_series(1))
    (ds,) = derived(source)
    check(ds, source.headers[0])
    with pytest.raises(EncodingError, match=named):
        check(faulty(ds, fault), source.headers[0])


directions = st.tuples(*[st.floats(-1, 1) for _ in range(6)])


@st.composite
def orientations(draw):
    row, column = np.array(draw(directions)[:3]), np.array(draw(directions)[3:])
    if np.linalg.norm(row) < 0.1 or np.linalg.norm(np.cross(row, column)) < 0.1:
        return factories.AXIAL
    row /= np.linalg.norm(row)
    column -= (column @ row) * row
    return (*row, *(column / np.linalg.norm(column)))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    orientation=orientations(),
    tilt=st.sampled_from([0.0, 0.0, -20.0, 7.5, 25.0]),
    steps=st.one_of(st.floats(0.3, 10.0), st.lists(st.floats(0.3, 10.0), min_size=4, max_size=4)),
    spacing=st.tuples(st.floats(0.1, 3.0), st.floats(0.1, 3.0)),
    order=st.sampled_from(["ascending", "descending", "shuffled"]),
    slope=st.sampled_from(["1", "0.5", "2.44140625e-4", "1.75381e-1"]),
    intercept=st.sampled_from(["-1024", "0", "-0.5", "-8192"]),
    signed=st.booleans(),
    multi_frame=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_geometry_survives_series_to_input_to_derived_series(
    tmp_path_factory, orientation, tilt, steps, spacing, order, slope, intercept, signed, multi_frame, seed
):
    rng = np.random.default_rng(seed)
    low = -32768 if signed else 0
    knobs = {
        "orientation": orientation,
        "tilt": tilt,
        "step": steps,
        "spacing": spacing,
        "order": order,
        "slope": slope,
        "intercept": intercept,
        "signed": signed,
        "seed": seed,
    }
    values = rng.integers(low, low + 65536, (5, 6, 4))
    originals = factories.ct_series(5, rows=6, columns=4, stored=values, **knobs)
    given_series = [factories.enhanced_ct(5, rows=6, columns=4, stored=values, **knobs)] if multi_frame else originals
    source = load(factories.write_series(tmp_path_factory.mktemp("any"), given_series))
    images = source.images
    assert (images.geometry is Geometry.TILTED) == (tilt != 0.0)
    normal = np.cross(images.orientation[:3], images.orientation[3:])
    assert (np.diff(images.positions @ normal) < 0).all()  # (slice, row, column) right-handed
    if images.geometry is Geometry.REGULAR:
        volume = images.volume
        for index in range(5):
            np.testing.assert_allclose(volume.affine @ [index, 0, 0, 1], [*images.positions[index], 1], atol=0.1)
    objects = derived(source, phantoms.identity(images))
    by_position = {text(ds, "ImagePositionPatient"): ds for ds in originals}
    if multi_frame:
        ds = dcmread(io.BytesIO(bytes_of(objects[0])))
        np.testing.assert_array_equal(ds.pixel_array, given_series[0].pixel_array)
        for group, original in zip(ds.PerFrameFunctionalGroupsSequence, originals, strict=True):
            position = text(group.PlanePositionSequence[0], "ImagePositionPatient")
            assert position == text(original, "ImagePositionPatient")
        return
    for ds in [dcmread(io.BytesIO(bytes_of(ds))) for ds in objects]:
        original = by_position.pop(text(ds, "ImagePositionPatient"))
        np.testing.assert_array_equal(ds.pixel_array, original.pixel_array)
        for keyword in GEOMETRY:
            assert text(ds, keyword) == text(original, keyword)
        assert valid_uid(ds.SOPInstanceUID)
    assert not by_position


def test_encoder_depends_on_the_shape_of_a_source_alone(tmp_path):
    """Whoever has headers, images, stored values and planes can be encoded."""
    source = source_of(tmp_path, factories.ct_series(2))

    class Other:
        headers, images, stored, planes = source.headers, source.images, source.stored, source.planes

    assert len(list(encode_images(Other(), phantoms.identity(source.images), phantoms.context()))) == 2
    assert isinstance(derived(source)[0].file_meta, FileMetaDataset)
    assert phantoms.context().when.tzinfo is UTC
