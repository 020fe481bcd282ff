"""Key images: a note that leads to the planes, in the patient's study and in words."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from pydicom import Dataset, dcmread

from dicomnode import pipeline as dn
from dicomnode.encode.gate import check_objects
from dicomnode.encode.keys import encode_key_images
from dicomnode.encode.seg import encode_segmentation
from dicomnode.errors import EncodingError
from dicomnode.volumes.series import load
from tests import factories, phantoms


def source_of(tmp_path, datasets):
    return load(factories.write_series(tmp_path, datasets))


def noted(source, result=None, objects=(), **context):
    result = phantoms.bleeding(source.images) if result is None else result
    return encode_key_images(source, result, phantoms.context(**context), series_number=9070, objects=objects)


def segmented(source):
    (segmentation,) = phantoms.bleeding(source.images).segmentations
    return encode_segmentation(source, segmentation, phantoms.context(), series_number=9020)


def references(ds):
    return [item for item in ds.ContentSequence if item.ValueType in ("IMAGE", "COMPOSITE")]


def text(ds):
    (item,) = [item for item in ds.ContentSequence if item.ValueType == "TEXT" and item.RelationshipType == "CONTAINS"]
    return item.TextValue


def bytes_of(ds) -> bytes:
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def test_without_key_planes_there_is_no_note(tmp_path):
    source = source_of(tmp_path, factories.ct_series(3))
    assert noted(source, phantoms.not_bleeding(source.images)) is None


def test_planes_come_first_then_what_says_more_about_them(tmp_path):
    source = source_of(tmp_path, factories.ct_series(6))
    seg = segmented(source)
    ds = noted(source, objects=[seg])
    first, second, third = references(ds)
    assert first.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == source.headers[3].SOPInstanceUID
    assert second.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == source.headers[2].SOPInstanceUID
    assert third.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == seg.SOPInstanceUID
    assert not any("ConceptNameCodeSequence" in item for item in references(ds))
    assert ds.ConceptNameCodeSequence[0].CodeValue == "113000"
    (study,) = ds.CurrentRequestedProcedureEvidenceSequence
    assert study.StudyInstanceUID == source.headers[0].StudyInstanceUID
    listed = {
        one.ReferencedSOPInstanceUID
        for series in study.ReferencedSeriesSequence
        for one in series.ReferencedSOPSequence
    }
    assert listed == {item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in references(ds)}
    check_objects([seg, ds], source, phantoms.bleeding(source.images))


def test_frames_of_one_instance_are_named_by_number(tmp_path):
    source = source_of(tmp_path, [factories.enhanced_ct(6)])
    ds = noted(source)
    (image,) = references(ds)
    numbers = [int(number) for number in image.ReferencedSOPSequence[0].ReferencedFrameNumber]
    assert numbers == [source.planes[3].frame, source.planes[2].frame]
    assert f"frame {numbers[0]}: largest extent" in text(ds)
    check_objects([ds], source, phantoms.bleeding(source.images))


def test_one_plane_with_two_reasons_is_referred_to_once(tmp_path):
    source = source_of(tmp_path, factories.ct_series(4))
    keys = tuple(dn.KeyPlane(plane=1, reason=reason) for reason in ("largest extent", "midline shift", "midline shift"))
    ds = noted(source, dn.Result(key_planes=keys))
    assert len(references(ds)) == 1
    number = source.headers[1].InstanceNumber
    assert f"image {number}: largest extent, midline shift." in text(ds)


def test_the_description_says_that_an_algorithm_chose(tmp_path):
    said = text(noted(source_of(tmp_path, factories.ct_series(6)), incomplete=True))
    assert said.startswith("Chosen by an algorithm (ct-denoising 1.0.0).")
    assert "Research use only: not for diagnosis." in said
    assert "Instances of the input are missing." in said


def test_the_note_is_the_patients(tmp_path):
    request = Dataset()
    request.RequestedProcedureID, request.ScheduledProcedureStepID = "RP1", "SPS1"
    values = {"RequestAttributesSequence": [request]}
    source = source_of(tmp_path, factories.ct_series(6, charset="\\ISO 2022 IR 87", values=values))
    ds = dcmread(io.BytesIO(bytes_of(noted(source))))
    for keyword in ("PatientID", "IssuerOfPatientID", "PatientAge", "StudyInstanceUID", "StudyDescription", "StudyID"):
        assert ds[keyword].value == source.headers[0][keyword].value, keyword
    assert str(ds.PatientName) == factories.NAMES["\\ISO 2022 IR 87"]
    assert (ds.Modality, ds.ContentQualification, ds.SeriesDescription) == ("KO", "RESEARCH", "AI key images, RUO")
    assert ds.ReferencedRequestSequence[0].RequestedProcedureID == "RP1"
    assert "RequestAttributesSequence" not in ds


def test_the_same_job_gives_the_same_bytes(tmp_path):
    source = source_of(tmp_path, factories.ct_series(6))
    assert bytes_of(noted(source)) == bytes_of(noted(source))


@pytest.mark.parametrize("plane", [-1, 6])
def test_a_plane_that_does_not_exist_is_refused(tmp_path, plane):
    source = source_of(tmp_path, factories.ct_series(6))
    result = replace(phantoms.bleeding(source.images), key_planes=(dn.KeyPlane(plane=plane, reason=""),))
    with pytest.raises(EncodingError, match=f"key plane {plane} is none of the 6 planes"):
        noted(source, result)


def test_an_object_of_another_study_is_refused(tmp_path):
    source = source_of(tmp_path, factories.ct_series(6))
    seg = segmented(source)
    seg.StudyInstanceUID = factories.uid("another study")
    with pytest.raises(EncodingError, match="is of another study"):
        noted(source, objects=[seg])
