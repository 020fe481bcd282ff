"""What is found on a phase of a cine is written on that phase's images, and on no others."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
from highdicom.seg import Segmentation

from dicomnode import pipeline as dn
from dicomnode.domain import USUAL_KINDS, ObjectKind
from dicomnode.encode.cine import at_phase, counted_through
from dicomnode.encode.gate import check_objects
from dicomnode.encode.result import encode_result
from dicomnode.encode.seg import encode_segmentation
from dicomnode.errors import EncodingError
from dicomnode.execute.contract import check_result
from dicomnode.volumes.cine import load_cine
from dicomnode.volumes.series import load
from tests import cine, factories, phantoms

LAYOUTS = {
    "one series": lambda: cine.one_series(7, 8),
    "a series per slice": lambda: cine.series_per_slice(7, 8),
    "interleaved": lambda: cine.interleaved(7, 8),
    "one Enhanced instance": lambda: [cine.enhanced(cine.one_series(7, 8))],
    "an Enhanced instance per slice": lambda: cine.enhanced_per_slice(7, 8),
    "Enhanced instances that interleave": lambda: [
        cine.enhanced([ds for index, ds in enumerate(cine.one_series(7, 8)) if index % 7 % 2 == odd], str(odd))
        for odd in (0, 1)
    ],
}
CONTEXT = phantoms.context(algorithm=dn.Algorithm(name="cardiac", version="1.0.0"))


@pytest.fixture(scope="module", params=LAYOUTS)
def case(request, tmp_path_factory):
    """A cine in a layout, a result, and what is written of it."""
    datasets = LAYOUTS[request.param]()
    source = load_cine(factories.write_series(tmp_path_factory.mktemp("cine"), datasets))
    result = cine.beating(source.series)
    check_result(result, source.series)
    before = [header.to_json() for header in source.headers]
    objects = list(encode_result(source, result, CONTEXT, labelmap=True))
    assert [header.to_json() for header in source.headers] == before
    assert {ds.SeriesInstanceUID for ds in datasets} == {header.SeriesInstanceUID for header in source.headers}
    return source, result, objects


def of_kind(objects, kind):
    return [one.dataset for one in objects if one.kind is kind]


def test_everything_is_written_and_passes_the_gate(case):
    _, _, objects = case
    kinds = [one.kind for one in objects if one.flavour.value != "labelmap"]
    assert kinds.count(ObjectKind.SEGMENTATION) == 2
    assert set(kinds) == set(USUAL_KINDS) - {ObjectKind.IMAGE}
    assert len({ds.dataset.SeriesInstanceUID for ds in objects}) == len(objects)


def test_each_segmentation_lies_on_the_images_of_its_phase_and_nowhere_else(case):
    source, result, objects = case
    for ds, segmentation in zip(of_kind(objects, ObjectKind.SEGMENTATION)[:2], result.segmentations, strict=True):
        named = {
            (image.ReferencedSOPInstanceUID, int(image.get("ReferencedFrameNumber") or 0))
            for frame in ds.PerFrameFunctionalGroupsSequence
            for image in frame.DerivationImageSequence[0].SourceImageSequence
        }
        at = source.at_phase(segmentation.phase)
        own = {(at.headers[plane.header].SOPInstanceUID, plane.frame) for plane in at.planes}
        assert named <= own
        assert len(named) == segmentation.labels.any(axis=(1, 2)).sum()
        series = ds.ReferencedSeriesSequence
        listed = {one.ReferencedSOPInstanceUID for item in series for one in item.ReferencedInstanceSequence}
        assert listed == {header.SOPInstanceUID for header in at.headers}
        assert {item.SeriesInstanceUID for item in series} == {header.SeriesInstanceUID for header in source.headers}


def test_highdicom_reads_the_masks_back_on_the_images_of_their_phase(case):
    source, result, objects = case
    if source.planes[0].frame and len(source.headers) > 1:
        pytest.skip("highdicom reads by frame of one instance only")
    for ds, segmentation in zip(of_kind(objects, ObjectKind.SEGMENTATION)[:2], result.segmentations, strict=True):
        seg = Segmentation.from_dataset(ds)
        at = source.at_phase(segmentation.phase)
        how = {"combine_segments": True, "relabel": True, "assert_missing_frames_are_empty": True}
        if at.planes[0].frame:
            uid, frames = at.headers[0].SOPInstanceUID, [plane.frame for plane in at.planes]
            pixels = seg.get_pixels_by_source_frame(uid, frames, **how)
        else:
            pixels = seg.get_pixels_by_source_instance([header.SOPInstanceUID for header in at.headers], **how)
        np.testing.assert_array_equal(pixels, segmentation.labels)


def test_a_mask_on_another_phase_is_refused(case):
    source, result, objects = case
    _, es = of_kind(objects, ObjectKind.SEGMENTATION)[:2]
    ed_phase = source.at_phase(0)
    moved = deepcopy(es)
    for frame in moved.PerFrameFunctionalGroupsSequence:
        (image,) = frame.DerivationImageSequence[0].SourceImageSequence
        plane = ed_phase.planes[3]
        image.ReferencedSOPInstanceUID = ed_phase.headers[plane.header].SOPInstanceUID
        if plane.frame:
            image.ReferencedFrameNumber = str(plane.frame)
    with pytest.raises(EncodingError, match="is not of the source"):
        check_objects([moved], source, result)
    swapped = replace(result, segmentations=tuple(replace(one, phase=4 - one.phase) for one in result.segmentations))
    with pytest.raises(EncodingError, match=r"ReferencedSeriesSequence|is not of the source"):
        check_objects([es], source, swapped)


def test_reports_refer_to_both_phases_and_name_them(case):
    _, _, objects = case
    segs = of_kind(objects, ObjectKind.SEGMENTATION)[:2]
    report = next(one.dataset for one in objects if one.role == "report")
    groups = [item for item in walk(report) if name(item) == "125007"]
    assert len(groups) == 4  # cavity and wall, twice
    said = [
        (
            next(item.TextValue for item in group.ContentSequence if name(item) == "C2348792"),
            next(item.ConceptCodeSequence[0].CodeValue for item in group.ContentSequence if name(item) == "126072"),
            next(
                item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
                for item in group.ContentSequence
                if name(item) == "121191"
            ),
        )
        for group in groups
    ]
    assert sorted(set(said)) == sorted(
        [("ED", "416190007", segs[0].SOPInstanceUID), ("ES", "416430001", segs[1].SOPInstanceUID)]
    )
    values = next(one.dataset for one in objects if one.role == "values")
    numbers = [item for item in walk(values) if item.get("ValueType") == "NUM"]
    assert any(name(item) == "8811-2" for item in numbers)


def test_marks_and_key_images_lie_on_their_phase(case):
    source, result, objects = case
    marked = {
        (reference.ReferencedSOPInstanceUID, int(reference.get("ReferencedFrameNumber") or 0))
        for item in walk(of_kind(objects, ObjectKind.MARKS)[0])
        if item.get("ValueType") == "SCOORD"
        for child in item.ContentSequence
        for reference in child.ReferencedSOPSequence
    }
    expected = set()
    for key in result.key_planes:
        at = source.at_phase(key.phase)
        plane = at.planes[key.plane]
        expected.add((at.headers[plane.header].SOPInstanceUID, plane.frame))
    assert marked == expected
    keys = of_kind(objects, ObjectKind.KEY_IMAGES)[0]
    pointed = {
        item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        for item in walk(keys)
        if item.get("ValueType") == "IMAGE"
    }
    assert {uid for uid, _ in expected} <= pointed


def test_the_same_result_gives_the_same_bytes(case):
    source, result, objects = case
    again = list(encode_result(source, result, CONTEXT, kinds=[ObjectKind.SEGMENTATION]))
    first = of_kind(objects, ObjectKind.SEGMENTATION)
    assert [one.dataset.to_json() for one in again] == [ds.to_json() for ds in first[: len(again)]]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return load_cine(factories.write_series(tmp_path_factory.mktemp("cine"), cine.one_series(6, 8, step=9.0)))


def test_phases_that_do_not_exist_are_refused(source, tmp_path):
    result = cine.beating(source.series)
    for phase in (None, 8, -1):
        wrong = replace(result, segmentations=(replace(result.segmentations[0], phase=phase),))
        with pytest.raises(EncodingError, match=f"phase {phase} is none of the 8 phases"):
            counted_through(source, wrong)
    with pytest.raises(EncodingError, match="key plane 6 is none of the 6 planes"):
        counted_through(source, replace(result, key_planes=(dn.KeyPlane(plane=6, reason="", phase=0),)))
    images = load(factories.write_series(tmp_path, factories.ct_series(3)))
    with pytest.raises(EncodingError, match="phase 0 of a series without phases"):
        at_phase(images, 0)
    assert counted_through(images, result) is result


def leading_zeros(index):
    return f"1.2.840.0{index + 1}"


@pytest.fixture(scope="module")
def zeros(tmp_path_factory):
    """As one real anonymiser writes UIDs."""
    datasets = cine.changed(
        cine.one_series(6, 8, step=9.0),
        lambda _: True,
        SOPInstanceUID=leading_zeros,
        StudyInstanceUID="1.2.840.007",
        SeriesInstanceUID="1.2.840.08",
        FrameOfReferenceUID="1.2.840.09",
    )
    for ds in datasets:
        factories.set_raw(ds.file_meta, "MediaStorageSOPInstanceUID", ds.SOPInstanceUID)
    return load_cine(factories.write_series(tmp_path_factory.mktemp("zeros"), datasets))


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_uids_with_leading_zeros_are_repeated_where_the_site_accepts_them(zeros):
    result = cine.beating(zeros.series)
    with pytest.raises(EncodingError, match="not a valid UID"):
        list(encode_result(zeros, result, CONTEXT))
    objects = list(encode_result(zeros, result, replace(CONTEXT, leading_zero_uids=True)))
    assert {one.dataset.StudyInstanceUID for one in objects} == {"1.2.840.007"}
    for ds in of_kind(objects, ObjectKind.SEGMENTATION):
        assert ds.FrameOfReferenceUID == "1.2.840.09"
        assert ds.ReferencedSeriesSequence[0].SeriesInstanceUID == "1.2.840.08"
    made = [one.dataset for one in objects]
    assert not any(".0" in f"{ds.SOPInstanceUID} {ds.SeriesInstanceUID}" for ds in made)


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_invalid_uids_that_are_not_the_sources_never_leave(zeros):
    result = cine.beating(zeros.series)
    context = replace(CONTEXT, leading_zero_uids=True)
    at = zeros.at_phase(0)
    ds = encode_segmentation(at, result.segmentations[0], context, series_number=1)
    check_objects([ds], zeros, result)
    factories.set_raw(ds.DimensionOrganizationSequence[0], "DimensionOrganizationUID", "1.2.03")
    with pytest.raises(EncodingError, match="DimensionOrganizationUID is not a valid UID"):
        check_objects([ds], zeros, result)


def walk(ds):
    for item in ds.get("ContentSequence") or ():
        yield item
        yield from walk(item)


def name(item):
    names = item.get("ConceptNameCodeSequence")
    return str(names[0].CodeValue) if names else ""
