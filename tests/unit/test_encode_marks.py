"""Outlines a common viewer can draw, each with the values of what it outlines."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest

from dicomnode import pipeline as dn
from dicomnode.encode.contours import area
from dicomnode.encode.marks import encode_marks
from dicomnode.volumes.series import load
from tests import factories, phantoms, reports


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return load(factories.write_series(tmp_path_factory.mktemp("ct"), factories.ct_series(6)))


def marks(source, result, **context):
    return encode_marks(source, result, phantoms.context(**context), series_number=9060)


def groups(ds):
    (container,) = (i for i in ds.ContentSequence if i.ConceptNameCodeSequence[0].CodeValue == "126010")
    return list(container.ContentSequence)


def region(group):
    (item,) = (i for i in group.ContentSequence if i.ValueType == "SCOORD")
    return item


def polygon(group):
    return np.array(region(group).GraphicData, float).reshape(-1, 2)


def identifiers(ds):
    return [group.ContentSequence[0].TextValue for group in groups(ds)]


def test_each_segment_is_outlined_on_each_key_plane_it_lies_on(source):
    result = phantoms.bleeding(source.images)
    ds = marks(source, result)
    number = [int(header.InstanceNumber) for header in source.headers]
    assert identifiers(ds) == [
        f"Intraparenchymal hemorrhage, image {number[2]}",
        f"Intraparenchymal hemorrhage, image {number[3]}",
        f"Subdural hemorrhage, image {number[3]}",
    ]
    labels = result.segmentations[0].labels
    for group, plane, label in zip(groups(ds), (2, 3, 3), (1, 1, 2), strict=True):
        (image,) = region(group).ContentSequence
        assert image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == source.headers[plane].SOPInstanceUID
        assert image.RelationshipType == "SELECTED FROM"
        rows, columns = np.nonzero(labels[plane] == label)
        assert polygon(group).min(axis=0).tolist() == [columns.min(), rows.min()]
        assert polygon(group).max(axis=0).tolist() == [columns.max() + 1, rows.max() + 1]
        assert abs(area(polygon(group)[:-1]) - len(rows)) <= 1


def test_outline_is_a_closed_line_inside_the_image(source):
    for group in groups(marks(source, phantoms.bleeding(source.images))):
        item, points = region(group), polygon(group)
        assert item.GraphicType == "POLYLINE"
        assert (points[0] == points[-1]).all() and len(np.unique(points, axis=0)) >= 3
        assert (points >= 0).all() and (points <= [source.headers[0].Columns, source.headers[0].Rows]).all()


def test_group_is_as_viewers_need_it(source):
    ds = marks(source, phantoms.bleeding(source.images))
    uids = []
    for group in groups(ds):
        assert group.ContentTemplateSequence[0].TemplateIdentifier == "1410"
        assert all(item.get("ConceptNameCodeSequence") for item in group.ContentSequence)
        references = [item for item in group.ContentSequence if item.ValueType == "UIDREF"]
        assert references[0].ConceptNameCodeSequence[0].CodeValue == "112040"
        uids.append(references[0].UID)
    assert len(set(uids)) == len(uids)


def test_group_carries_all_values_of_its_segment(source):
    thickness = dn.Measurement(
        name=dn.Code("118512005", "SCT", "Thickness"), value=7.5, unit=dn.MM, segment=phantoms.SDH.key
    )
    result = phantoms.bleeding(source.images)
    result = dataclasses.replace(result, measurements=(*result.measurements, thickness))
    values = {
        i.ConceptNameCodeSequence[0].CodeMeaning: float(i.MeasuredValueSequence[0].NumericValue)
        for i in groups(marks(source, result))[-1].ContentSequence
        if i.ValueType == "NUM"
    }
    assert values == {"Volume": 3.0, "Thickness": 7.5, "AI score, not calibrated": 0.71}


def test_plane_named_twice_is_outlined_once(source):
    result = phantoms.bleeding(source.images)
    twice = (*result.key_planes, dn.KeyPlane(plane=3, reason="again", segments=(phantoms.SDH.key,)))
    ds = marks(source, dataclasses.replace(result, key_planes=twice))
    assert len(groups(ds)) == 3


def test_nothing_to_mark_gives_nothing(source):
    assert marks(source, phantoms.not_bleeding(source.images)) is None
    result = phantoms.bleeding(source.images)
    assert marks(source, dataclasses.replace(result, key_planes=())) is None
    assert marks(source, dataclasses.replace(result, key_planes=(dn.KeyPlane(plane=0, reason="empty"),))) is None


def test_frames_of_an_enhanced_source_are_named(tmp_path):
    source = load(factories.write_series(tmp_path, [factories.enhanced_ct(5)]))
    result = phantoms.bleeding(source.images)
    ds = marks(source, result)
    planes = [1, 2, 2]
    found = [region(g).ContentSequence[0].ReferencedSOPSequence[0].ReferencedFrameNumber for g in groups(ds)]
    assert found == [source.planes[plane].frame for plane in planes]
    assert identifiers(ds)[0] == f"Intraparenchymal hemorrhage, frame {source.planes[1].frame}"


def test_marks_say_what_they_are(source):
    ds = marks(source, phantoms.bleeding(source.images))
    assert ds.SeriesDescription == "AI marks, ct-denoising, RUO"
    assert ds.SeriesNumber == 9060
    (remarks,) = (i for i in ds.ContentSequence if i.ConceptNameCodeSequence[0].CodeValue == "C0034375")
    assert any("Research use only" in item.TextValue for item in remarks.ContentSequence)


def test_equal_jobs_give_equal_bytes(source):
    def written():
        buffer = io.BytesIO()
        marks(source, reports.many_segments(source.images, 4)).save_as(buffer, enforce_file_format=True)
        return buffer.getvalue()

    assert written() == written()
