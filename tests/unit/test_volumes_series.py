"""A series of files becomes an input, or is refused by the right name."""

from __future__ import annotations

import highdicom
import highdicom.legacy
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from dicomnode import errors
from dicomnode.pipeline import HU, Geometry, Unsuitable
from dicomnode.volumes.series import load
from tests import factories


def loaded(tmp_path, datasets, **options):
    return load(factories.write_series(tmp_path, datasets), **options)


def test_planes_are_ordered_as_highdicom_orders_them(tmp_path):
    datasets = factories.ct_series(9, order="shuffled", step=1.25)
    images = loaded(tmp_path, datasets).images
    reference = highdicom.get_volume_from_series(datasets)
    assert images.geometry is Geometry.REGULAR
    assert images.units == HU
    np.testing.assert_array_equal(images.array, reference.array)
    np.testing.assert_allclose(images.volume.affine, reference.affine, atol=1e-9)
    assert images.positions[0, 2] == max(ds.ImagePositionPatient[2] for ds in datasets)  # nearest the head


def test_arrival_order_does_not_matter(tmp_path):
    one = loaded(tmp_path / "a", factories.ct_series(7, order="ascending"))
    other = loaded(tmp_path / "b", factories.ct_series(7, order="shuffled"))
    np.testing.assert_array_equal(one.images.array, other.images.array)
    assert [h.SOPInstanceUID for h in one.headers] == [h.SOPInstanceUID for h in other.headers]
    for header, position in zip(one.headers, one.images.positions, strict=True):
        np.testing.assert_array_equal(np.asarray(header.ImagePositionPatient, float), position)


def test_gantry_tilt_is_told_from_a_gap(tmp_path):
    images = loaded(tmp_path, factories.ct_series(8, tilt=18.5)).images
    assert images.geometry is Geometry.TILTED
    assert "18.5 degrees" in images.geometry_note
    with pytest.raises(Unsuitable, match=r"18\.5 degrees"):
        _ = images.volume


def test_missing_plane_is_named_with_its_place(tmp_path):
    images = loaded(tmp_path, factories.ct_series(8, gap=[5])).images
    assert images.geometry is Geometry.GAPS
    assert "1 planes missing at steps of 2.50 mm: between planes 1 and 2 (5.00 mm)" in images.geometry_note


def test_uneven_steps_are_listed(tmp_path):
    images = loaded(tmp_path, factories.ct_series(6, step=[4.0, 4.0, 1.08, 7.0, 7.0])).images
    assert images.geometry is Geometry.UNEVEN
    assert "1.08, 4.00, 7.00 mm" in images.geometry_note


def test_tilt_with_uneven_steps_names_both(tmp_path):
    note = loaded(tmp_path, factories.ct_series(5, step=[4.0, 4.0, 7.0, 7.0], tilt=-10)).images.geometry_note
    assert "10.0 degrees" in note
    assert "not equal" in note


def test_single_plane(tmp_path):
    assert loaded(tmp_path, factories.ct_series(1)).images.geometry is Geometry.SINGLE


@pytest.mark.parametrize("attribute", ["AcquisitionNumber", "TemporalPositionIdentifier", "TriggerTime"])
def test_duplicate_positions_name_what_tells_them_apart(tmp_path, attribute):
    datasets = factories.ct_series(4, duplicate=[0, 1, 2, 3])
    for index, ds in enumerate(datasets):
        setattr(ds, attribute, str(1 + index % 2))
    with pytest.raises(errors.DuplicatePositions, match=rf"8 images at 4 positions.*{attribute} \(2 values\)"):
        loaded(tmp_path, datasets)


def test_localizer_is_mixed_geometry(tmp_path):
    with pytest.raises(errors.MixedGeometry, match=r"2 orientations.*90\.0 degrees"):
        loaded(tmp_path, factories.localizer())


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("FrameOfReferenceUID", factories.uid("elsewhere")),
        ("PixelSpacing", ["0.7", "0.7"]),
        ("PatientID", "SOMEBODY-ELSE"),
        ("StudyInstanceUID", factories.uid("other study")),
    ],
)
def test_mixed_attribute_is_named_and_never_its_value(tmp_path, keyword, value):
    datasets = factories.ct_series(3)
    setattr(datasets[1], keyword, value)
    with pytest.raises(errors.MixedGeometry, match=keyword) as refused:
        loaded(tmp_path, datasets)
    assert "SOMEBODY" not in str(refused.value)


def test_mixed_size_is_named(tmp_path):
    other = factories.ct_series(2, rows=16, study="study", series="series", seed=1)[1:]
    with pytest.raises(errors.MixedGeometry, match=r"Rows x Columns are 32 x 32 .* 16 x 32"):
        loaded(tmp_path, factories.ct_series(1) + other)


@pytest.mark.parametrize(
    "keyword", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "BitsStored"]
)
def test_absent_geometry_is_named(tmp_path, keyword):
    with pytest.raises(errors.MissingAttribute, match=keyword):
        loaded(tmp_path, factories.ct_series(3, missing=[keyword]))


def test_skewed_orientation_is_refused(tmp_path):
    with pytest.raises(errors.MissingAttribute, match="orthogonal"):
        loaded(tmp_path, factories.ct_series(3, values={"ImageOrientationPatient": ["1", "0", "0", "0.001", "1", "0"]}))


@pytest.mark.parametrize("thickness", [None, "0", "-1"])
def test_thickness_comes_from_the_positions_where_it_is_missing(tmp_path, thickness):
    source = loaded(tmp_path, factories.ct_series(5, thickness=thickness, step=1.25))
    assert {float(header.SliceThickness) for header in source.headers} == {1.25}
    assert source.images.acquisition["SliceThickness"] == 1.25
    assert any("SliceThickness" in note for note in source.notes)


@pytest.mark.parametrize(
    "knobs",
    [
        {"slope": None, "intercept": None},
        {"intercept": None},
        {"slope": "0"},
        {"slope": "1,0"},
        {"values": {"RescaleSlope": ["1", "2"]}},
        {"intercept": "1.0e400"},
    ],
)
def test_ct_without_a_usable_rescale_is_refused(tmp_path, knobs):
    with pytest.raises(errors.MissingAttribute, match="Rescale"):
        loaded(tmp_path, factories.ct_series(3, **knobs))


def test_rescale_may_differ_between_planes(tmp_path):
    slopes = ["1", "0.5", "2"]
    stored = np.full((3, 8, 8), 100)
    datasets = factories.ct_series(
        3, rows=8, columns=8, stored=stored, values={"RescaleSlope": lambda index: slopes[index]}
    )
    source = loaded(tmp_path, datasets)
    assert list(source.images.array[:, 0, 0]) == [100 * 2 - 1024, 100 * 0.5 - 1024, 100 - 1024]
    assert [plane.slope for plane in source.planes] == [2.0, 0.5, 1.0]


def test_mr_without_rescale_has_stored_values_and_no_units(tmp_path):
    source = loaded(tmp_path, factories.mr_series(4))
    np.testing.assert_array_equal(source.images.array, source.stored.astype(np.float32))
    assert source.images.units.value == "1"


def test_rescale_type_other_than_hu_has_no_hu(tmp_path):
    images = loaded(tmp_path, factories.ct_series(3, values={"RescaleType": "US"})).images
    assert images.units.value == "1"
    assert images.acquisition["RescaleType"] == "US"


@pytest.mark.parametrize(
    "syntax",
    [
        ImplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
        RLELossless,
        JPEGLSLossless,
        JPEG2000Lossless,
    ],
)
@pytest.mark.parametrize("knobs", [{}, {"bits_stored": 12, "signed": False}, {"bits_stored": 13}])
def test_every_transfer_syntax_decodes_to_the_same_values(tmp_path, syntax, knobs):
    plain = loaded(tmp_path / "plain", factories.ct_series(3, **knobs))
    other = loaded(tmp_path / "other", factories.ct_series(3, transfer_syntax=syntax, **knobs))
    np.testing.assert_array_equal(plain.stored, other.stored)


def test_one_frame_in_many_fragments(tmp_path):
    plain = loaded(tmp_path / "plain", factories.ct_series(3))
    other = loaded(tmp_path / "other", factories.ct_series(3, transfer_syntax=JPEG2000Lossless, fragments=4))
    np.testing.assert_array_equal(plain.stored, other.stored)


@pytest.mark.parametrize("bits", [8, 10, 12, 13, 16])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("high", [0, 2])
def test_odd_bit_depths_are_masked_and_sign_extended(tmp_path, bits, signed, high):
    high_bit = min(bits - 1 + high, 7 if bits == 8 else 15)
    low, top = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    stored = np.linspace(low, top, 2 * 8 * 8).round().reshape(2, 8, 8)
    datasets = factories.ct_series(
        2, rows=8, columns=8, stored=stored, bits_stored=bits, signed=signed, high_bit=high_bit
    )
    if bits < high_bit + 1 or (bits < 16 and bits > 8 and high_bit < 15):
        for ds in datasets:  # garbage above HighBit
            raw = np.frombuffer(ds.PixelData, f"<u{ds.BitsAllocated // 8}").copy()
            raw |= (0xFFFF << (high_bit + 1)) & ((1 << ds.BitsAllocated) - 1)
            ds.PixelData = raw.tobytes()
    np.testing.assert_array_equal(loaded(tmp_path, datasets).stored, stored[::-1])


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, RLELossless])
def test_padding_is_found(tmp_path, syntax):
    source = loaded(tmp_path, factories.ct_series(3, padding=-2000, transfer_syntax=syntax))
    np.testing.assert_array_equal(source.images.padding, source.stored == -2000)
    assert source.images.padding.any()


def test_padding_outside_the_stored_bits_is_found_and_kept(tmp_path):
    datasets = factories.ct_series(2, bits_stored=12, signed=False)
    for ds in datasets:
        raw = np.frombuffer(ds.PixelData, "<u2").copy()
        raw[:5] = 63536  # -2000 in a container of 16 bits
        ds.PixelData = raw.tobytes()
        ds.add_new(0x00280120, "SS", -2000)
    source = loaded(tmp_path, datasets)
    assert source.images.padding.sum() == 10
    assert (source.stored[:, 0, :5] == 63536).all()


def test_padding_range(tmp_path):
    stored = np.arange(64).reshape(1, 8, 8)
    values = {"PixelPaddingValue": 3, "PixelPaddingRangeLimit": 6}
    source = loaded(tmp_path, factories.ct_series(1, rows=8, columns=8, stored=stored, values=values))
    assert list(source.stored[source.images.padding]) == [3, 4, 5, 6]


def test_surplus_pixel_data_is_accepted_with_a_note(tmp_path):
    datasets = factories.ct_series(2)
    reference = loaded(tmp_path / "a", datasets)
    for ds in datasets:
        ds.PixelData += b"\0" * 512
    source = loaded(tmp_path / "b", datasets)
    np.testing.assert_array_equal(source.stored, reference.stored)
    assert any("longer" in note for note in source.notes)


def test_truncated_pixel_data_is_refused(tmp_path):
    datasets = factories.ct_series(2)
    datasets[1].PixelData = datasets[1].PixelData[:-100]
    with pytest.raises(errors.UndecodablePixels, match=rf"{datasets[1].SOPInstanceUID} is truncated"):
        loaded(tmp_path, datasets)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
@pytest.mark.parametrize("part", [40, 600])
def test_corrupt_frame_is_refused_by_uid(tmp_path, syntax, part):
    datasets = factories.ct_series(2, transfer_syntax=syntax)
    datasets[1].PixelData = datasets[1].PixelData[:part] + b"\xff\x13" * 8
    with pytest.raises(errors.UndecodablePixels, match=str(datasets[1].SOPInstanceUID)):
        loaded(tmp_path, datasets)


def test_no_pixel_data_is_refused(tmp_path):
    with pytest.raises(errors.UndecodablePixels, match="no PixelData"):
        loaded(tmp_path, factories.ct_series(1, missing=["PixelData"]))


def test_colour_is_refused_and_monochrome1_is_told(tmp_path):
    with pytest.raises(errors.UndecodablePixels, match="RGB"):
        loaded(
            tmp_path / "rgb", factories.ct_series(1, values={"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3})
        )
    inverse = loaded(tmp_path / "inverse", factories.ct_series(2, values={"PhotometricInterpretation": "MONOCHROME1"}))
    assert inverse.images.acquisition["PhotometricInterpretation"] == "MONOCHROME1"


def test_other_classes_are_refused_by_name(tmp_path):
    with pytest.raises(errors.UnsupportedSOPClass, match="Secondary Capture"):
        loaded(tmp_path, factories.ct_series(1, values={"SOPClassUID": SecondaryCaptureImageStorage}))


def test_identical_copy_is_left_out_and_another_content_refused(tmp_path):
    datasets = factories.ct_series(3)
    source = loaded(tmp_path / "same", [*datasets, datasets[0]])
    assert len(source.planes) == 3
    assert any("identical copy" in note for note in source.notes)
    other = dcmread(tmp_path / "same" / "00000.dcm")
    other.KVP = "80"
    with pytest.raises(errors.DuplicatePositions, match="two different files"):
        loaded(tmp_path / "other", [*datasets, other])


def test_not_dicom_is_refused(tmp_path):
    path = tmp_path / "1.2.3"
    path.write_bytes(b"garbage" * 100)
    with pytest.raises(errors.UndecodablePixels, match=r"1\.2\.3 does not read"):
        load([path])


def test_no_identity_reaches_the_pipeline(tmp_path):
    images = loaded(tmp_path, factories.ct_series(2, patient_id="SECRET-ID", name="Secret^Name")).images
    text = repr(dict(images.acquisition)) + images.geometry_note
    assert "SECRET" not in text.upper()
    assert not {"PatientID", "PatientName", "PatientBirthDate", "InstitutionName"} & set(images.acquisition)


@pytest.mark.parametrize(
    ("birth", "study", "given", "wanted"),
    [
        ("20190312", "20260105", None, "006Y"),
        ("20190105", "20260105", None, "007Y"),
        ("20251201", "20260105", "", "000Y"),
        ("19400101", "20260105", "085Y", "085Y"),
        ("1940", "20260105", None, None),
        ("20270101", "20260105", None, None),
        ("", "20260105", None, None),
        ("19400101", "", None, None),
    ],
)
def test_the_age_is_computed_where_the_header_does_not_say_it(tmp_path, birth, study, given, wanted):
    datasets = factories.ct_series(2)
    for ds in datasets:
        ds.PatientBirthDate, ds.StudyDate, ds.PatientAge = birth, study, given
    assert loaded(tmp_path, datasets).images.acquisition.get("PatientAge") == wanted


def test_one_plane_with_burned_in_text_speaks_for_the_series(tmp_path):
    datasets = factories.ct_series(3)
    datasets[1].BurnedInAnnotation = "YES"
    assert loaded(tmp_path, datasets).images.acquisition["BurnedInAnnotation"] == "YES"


def test_incomplete_is_handed_on(tmp_path):
    assert loaded(tmp_path, factories.ct_series(2), incomplete=True).images.incomplete


@pytest.mark.parametrize("order", ["ascending", "shuffled"])
def test_enhanced_ct_gives_the_same_input_as_single_frames(tmp_path, order):
    single = loaded(tmp_path / "s", factories.ct_series(6, order=order, tilt=5, padding=-2000))
    multi = loaded(tmp_path / "m", [factories.enhanced_ct(6, order=order, tilt=5, padding=-2000)])
    np.testing.assert_array_equal(single.images.array, multi.images.array)
    np.testing.assert_array_equal(single.images.padding, multi.images.padding)
    np.testing.assert_array_equal(single.images.positions, multi.images.positions)
    assert multi.images.geometry is Geometry.TILTED
    assert multi.images.acquisition["ConvolutionKernel"] == "H30s"
    assert len(multi.headers) == 1


def test_enhanced_mr(tmp_path):
    source = loaded(tmp_path, [factories.enhanced_mr(5, transfer_syntax=JPEG2000Lossless)])
    assert source.images.geometry is Geometry.REGULAR
    assert source.images.array.shape == (5, 32, 32)


def test_enhanced_frame_without_a_position_is_named(tmp_path):
    ds = factories.enhanced_ct(4)
    del ds.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence
    with pytest.raises(errors.MissingAttribute, match=r"ImagePositionPatient of .* frame 3"):
        loaded(tmp_path, [ds])


def test_fewer_frames_than_declared_is_refused(tmp_path):
    ds = factories.enhanced_ct(4)
    ds.NumberOfFrames = "5"
    with pytest.raises(errors.UndecodablePixels):
        loaded(tmp_path, [ds])


def test_legacy_converted_enhanced_ct(tmp_path):
    datasets = factories.ct_series(5, charset="ISO_IR 100", values={"PositionReferenceIndicator": ""})
    converted = highdicom.legacy.LegacyConvertedEnhancedCTImage(
        legacy_datasets=datasets,
        series_instance_uid=factories.uid("legacy"),
        series_number=5,
        sop_instance_uid=factories.uid("legacy", "instance"),
        instance_number=1,
    )
    single = loaded(tmp_path / "s", datasets)
    multi = loaded(tmp_path / "m", [converted])
    np.testing.assert_array_equal(single.images.array, multi.images.array)
    np.testing.assert_array_equal(single.images.positions, multi.images.positions)
    assert multi.images.geometry is Geometry.REGULAR


@pytest.mark.parametrize(
    ("keyword", "value"), [("Rows", 0), ("NumberOfFrames", "-3"), ("BitsStored", 17), ("HighBit", 3)]
)
def test_contradictory_pixel_attributes_are_refused(tmp_path, keyword, value):
    with pytest.raises(errors.SeriesError):
        loaded(tmp_path, factories.ct_series(1, values={keyword: value}))


def test_series_too_large_for_memory_is_refused_before_it_is_allocated(tmp_path):
    ds = factories.enhanced_ct(2)
    ds.NumberOfFrames = str(2**21)
    with pytest.raises(errors.UndecodablePixels, match="above the limit"):
        loaded(tmp_path, [ds])


def test_several_multi_frame_instances_are_refused(tmp_path):
    one, other = factories.enhanced_ct(2), factories.enhanced_ct(2)
    other.SOPInstanceUID = other.file_meta.MediaStorageSOPInstanceUID = factories.uid("second")
    with pytest.raises(errors.MixedGeometry, match="several multi-frame instances"):
        loaded(tmp_path, [one, other])


def test_planes_drifting_off_a_line_are_not_called_a_tilt(tmp_path):
    datasets = factories.ct_series(5)
    x, y, z = datasets[2].ImagePositionPatient
    datasets[2].ImagePositionPatient = [x + 3, y, z]
    images = loaded(tmp_path, datasets).images
    assert images.geometry is Geometry.TILTED
    assert "not along one line" in images.geometry_note
