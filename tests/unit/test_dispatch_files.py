from __future__ import annotations

import hashlib

import pytest
from pydicom import dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicomnode.dispatch import files
from dicomnode.dispatch.convert import UNICODE, converted
from dicomnode.errors import DispatchError
from tests.factories import ct_series


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "one.dcm"
    ct_series(n=1)[0].save_as(path, enforce_file_format=True)
    return path


def test_the_body_is_the_data_set_byte_for_byte(path):
    found = files.read(path)
    assert path.read_bytes().endswith(bytes(found.body()))
    assert found.transfer_syntax_uid == ExplicitVRLittleEndian
    assert found.sop_instance_uid == dcmread(path).SOPInstanceUID


def test_a_large_body_is_mapped_and_the_same(tmp_path):
    path = tmp_path / "large.dcm"
    ct_series(n=1, rows=1024, columns=1024)[0].save_as(path, enforce_file_format=True)
    found = files.read(path)
    raw = path.read_bytes()
    assert hashlib.sha256(found.body()).digest() == hashlib.sha256(raw[found.offset :]).digest()


def test_conversion_keeps_every_value(path, tmp_path):
    raw = bytes(converted(path, ImplicitVRLittleEndian, UNICODE))
    again = tmp_path / "again.dcm"
    original = dcmread(path)
    original.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    original.save_as(again, implicit_vr=True, little_endian=True, enforce_file_format=True)
    assert raw == bytes(files.read(again).body())


def test_a_deflated_file_can_be_converted(tmp_path):
    path = tmp_path / "deflated.dcm"
    dataset = ct_series(n=1)[0]
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)
    plain = tmp_path / "plain.dcm"
    ct_series(n=1)[0].save_as(plain, enforce_file_format=True)
    assert bytes(converted(path, ExplicitVRLittleEndian, UNICODE)) == bytes(files.read(plain).body())


def test_a_head_without_group_length_is_read_all_the_same(path, tmp_path):
    raw = path.read_bytes()
    other = tmp_path / "other.dcm"
    other.write_bytes(raw[:132] + raw[144:])
    found = files.read(other)
    assert found.sop_instance_uid == files.read(path).sop_instance_uid
    assert bytes(found.body()) == bytes(files.read(path).body())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "No such file"),
        (b"", "cannot be read"),
        (b"not DICOM at all" * 100, "cannot be read"),
        (b"\0" * 128 + b"DICM\x02\x00\x00\x00UL\x04\x00\xff\xff\x00\x00", "does not name"),
    ],
)
def test_what_is_not_a_dicom_file_is_named_with_its_reason(tmp_path, content, says):
    path = tmp_path / "odd.dcm"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DispatchError, match=f"odd.dcm.*{says}"):
        files.read(path)


def test_a_file_that_ends_after_its_head_is_not_sent(path):
    found = files.read(path)
    path.write_bytes(path.read_bytes()[: found.offset])
    with pytest.raises(DispatchError, match="holds no data set"):
        files.read(path).body()
