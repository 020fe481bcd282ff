"""Weird headers: what is clear is repaired with a note, what is not is emptied or refused."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.tag import Tag

from dicomnode.errors import MissingAttribute
from dicomnode.volumes import values
from dicomnode.volumes.normalise import Normaliser
from tests import factories


def normalised(tmp_path, **knobs):
    (path,) = factories.write_series(tmp_path, factories.ct_series(1, **knobs))
    normaliser = Normaliser()
    return normaliser.header(dcmread(path), path.name), " | ".join(normaliser.notes)


def read(vr, raw, keyword):
    element, note = values.element(Tag(keyword), vr, raw, ("",))
    return element, note


@pytest.mark.parametrize(
    ("vr", "keyword", "raw", "expected"),
    [
        ("IS", "InstanceNumber", b"1.0 ", "1"),
        ("DA", "StudyDate", b"2026-01-05", "20260105"),
        ("DA", "StudyDate", b"2026.01.05", "20260105"),
        ("TM", "StudyTime", b"10:20:30.5\0", "102030.5"),
        ("TM", "StudyTime", b"1020", "1020"),
        ("DS", "KVP", b" 120.0\0", "120.0"),
        ("DS", "KVP", b"0.4882812500000000000", "0.48828125"),
        ("UI", "StudyInstanceUID", b"1.2.3\0\0", "1.2.3"),
        ("CS", "BodyPartExamined", b"head", "HEAD"),
        ("AS", "PatientAge", b"74Y", "074Y"),
        ("LO", "SeriesDescription", b"a\\b", "a/b"),
    ],
)
def test_clear_values_are_repaired(vr, keyword, raw, expected):
    element, _ = read(vr, raw, keyword)
    assert str(element.value) == expected


@pytest.mark.parametrize(
    ("vr", "keyword", "raw"),
    [
        ("DS", "KVP", b"1.0e400"),
        ("DS", "KVP", b"nan"),
        ("DS", "KVP", b"1,0"),
        ("DS", "KVP", b"1_0"),
        ("IS", "InstanceNumber", b"99999999999"),
        ("IS", "InstanceNumber", b"1.5"),
        ("DA", "StudyDate", b"00000000"),
        ("DA", "StudyDate", b"20261301"),
        ("TM", "StudyTime", b"late"),
    ],
)
def test_unclear_values_have_no_value(vr, keyword, raw):
    with pytest.raises(values.Unreadable):
        read(vr, raw, keyword)


@pytest.mark.filterwarnings("ignore")  # lengths and syntax of what is copied are the encoder's business
@given(
    vr=st.sampled_from(sorted(values.TEXT | values.ASCII)),
    raw=st.one_of(st.binary(max_size=20), st.text("0123456789.-+eE:\\\\ ", max_size=20).map(str.encode)),
)
def test_any_bytes_give_a_value_that_can_be_written_or_a_named_refusal(vr, raw):
    try:
        element, _ = values.element(Tag(0x0009, 0x1001) if vr in {"LO", "SH"} else Tag("KVP"), vr, raw, ("ISO_IR 100",))
    except (values.Unreadable, UnicodeDecodeError):
        return
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.add(element)
    ds.save_as(io.BytesIO(), implicit_vr=False, little_endian=True)


def test_correct_ds_strings_stay_character_by_character(tmp_path):
    header, _ = normalised(tmp_path, values={"KVP": "+120.00", "ImagePositionPatient": ["-1.50", "2.0e+01", "0"]})
    assert str(header.KVP) == "+120.00"
    assert [str(value) for value in header.ImagePositionPatient] == ["-1.50", "2.0e+01", "0"]


def test_absent_type_2_attributes_are_added_empty_and_noted(tmp_path):
    absent = ["PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "KVP"]
    header, notes = normalised(tmp_path, missing=[*absent, "AccessionNumber", "ReferringPhysicianName"])
    for keyword in [*absent, "AccessionNumber", "ReferringPhysicianName"]:
        assert keyword in header
        assert not header[keyword].value
        assert keyword in notes


def test_private_elements_and_pixels_are_gone(tmp_path):
    (ds,) = factories.ct_series(1)
    ds.private_block(0x0019, "ACME", create=True).add_new(0x01, "LO", "secret")
    (path,) = factories.write_series(tmp_path, [ds])
    header = Normaliser().header(dcmread(path), path.name)
    assert not [element for element in header if element.tag.is_private]
    assert "PixelData" not in header


@pytest.mark.parametrize("keyword", ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"])
def test_empty_identifiers_are_refused_by_name(tmp_path, keyword):
    (ds,) = factories.ct_series(1)
    setattr(ds, keyword, "")
    (path,) = factories.write_series(tmp_path, [ds])
    with pytest.raises(MissingAttribute, match=keyword):
        Normaliser().header(dcmread(path), path.name)


def test_lossy_transfer_syntax_marks_the_header_even_if_the_scanner_forgot(tmp_path):
    (path,) = factories.write_series(tmp_path, factories.ct_series(1))
    ds = dcmread(path)
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.50"
    assert Normaliser().header(ds, path.name).LossyImageCompression == "01"


def test_repairing_one_header_leaves_the_elements_it_shares_alone(tmp_path):
    paths = factories.write_series(tmp_path, factories.ct_series(2, values={"LossyImageCompression": "00"}))
    normaliser = Normaliser()
    first = normaliser.header(dcmread(paths[0]), "0")
    lossy = dcmread(paths[1])
    lossy.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.50"
    second = normaliser.header(lossy, "1")
    assert (first.LossyImageCompression, second.LossyImageCompression) == ("00", "01")
