"""Copies of the segmented phases: the same pixels in the same places, and what lies on them lies on nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from highdicom.seg import Segmentation

from dicomnode import pipeline as dn
from dicomnode.domain import USUAL_KINDS, Flavour, ObjectKind
from dicomnode.encode import phases
from dicomnode.encode.phases import encode_phases
from dicomnode.encode.result import encode_result
from dicomnode.volumes.cine import load_cine
from dicomnode.volumes.series import load
from tests import cine, factories, phantoms

SLICES, PHASES = 6, 8
ED, ES = 0, PHASES // 2
LAYOUTS = {
    "one series": lambda: cine.one_series(SLICES, PHASES),
    "a series per slice": lambda: cine.series_per_slice(SLICES, PHASES),
}
CONTEXT = phantoms.context(algorithm=dn.Algorithm(name="cardiac", version="1.0.0"))


@pytest.fixture(scope="module", params=LAYOUTS)
def case(request, tmp_path_factory):
    source = load_cine(factories.write_series(tmp_path_factory.mktemp("cine"), LAYOUTS[request.param]()))
    result = cine.beating(source.series)
    before = [header.to_json() for header in source.headers]
    made = list(encode_phases(source, result, CONTEXT, series_number=9110))
    assert [header.to_json() for header in source.headers] == before
    return source, result, made


def images_of(made, phase):
    return [ds for role, _, ds in made if role == f"phase-{phase + 1}"]


def test_each_segmented_phase_is_one_series_of_its_unchanged_images(case):
    source, _, made = case
    for phase in (ED, ES):
        images = images_of(made, phase)
        assert len(images) == SLICES and len({ds.SeriesInstanceUID for ds in images}) == 1
        for index, ds in enumerate(images):
            plane = phase * SLICES + index
            header = source.headers[source.planes[plane].header]
            np.testing.assert_array_equal(ds.pixel_array, source.stored[plane])
            assert ds.SOPInstanceUID != header.SOPInstanceUID and ds.SOPClassUID == header.SOPClassUID
            assert ds.ImagePositionPatient == header.ImagePositionPatient
            assert ds.TriggerTime == header.TriggerTime
            assert ds.SourceImageSequence[0].ReferencedSOPInstanceUID == header.SOPInstanceUID
            assert ds.ImageType[0] == "DERIVED" and "RUO" in ds.SeriesDescription
            assert "Laterality" in ds or ds.BodyPartExamined  # type 2C
    labels = [images_of(made, phase)[0].SeriesDescription for phase in (ED, ES)]
    assert "ED images" in labels[0] and "ES images" in labels[1]


def test_a_segmentation_lies_on_the_copies_of_its_phase_and_on_no_others(case):
    _, result, made = case
    segs = [ds for _, _, ds in made if ds.Modality == "SEG"]
    assert len(segs) == 2
    for ds, segmentation, phase in zip(segs, result.segmentations, (ED, ES), strict=True):
        copies = {str(one.SOPInstanceUID): one for one in images_of(made, phase)}
        (series,) = ds.ReferencedSeriesSequence
        assert series.SeriesInstanceUID == images_of(made, phase)[0].SeriesInstanceUID
        assert {str(one.ReferencedSOPInstanceUID) for one in series.ReferencedInstanceSequence} <= set(copies)
        read = Segmentation.from_dataset(ds)
        wanted = segmentation.labels
        uids = [str(one.SOPInstanceUID) for one in images_of(made, phase)]
        got = read.get_pixels_by_source_instance(uids, combine_segments=True, assert_missing_frames_are_empty=True)
        np.testing.assert_array_equal(got, wanted)


def test_what_refers_to_the_copies_sees_their_own_pixels_and_times(case):
    source, _, made = case
    images = [ds for phase in (ES, ED) for ds in images_of(made, phase)]
    copies = phases._copied(source, [ES, ED], images)
    for index, ds in enumerate(images):
        np.testing.assert_array_equal(copies.stored[index], ds.pixel_array)
        header = copies.headers[copies.planes[index].header]
        assert (header.SOPInstanceUID, header.TriggerTime) == (ds.SOPInstanceUID, ds.TriggerTime)
        assert header.ImagePositionPatient == ds.ImagePositionPatient
    assert copies.at_phase(1).headers[0].SOPInstanceUID == images_of(made, ED)[0].SOPInstanceUID


def test_marks_lie_on_the_copies(case):
    _, _, made = case
    (marks,) = [ds for _, _, ds in made if ds.Modality == "SR"]
    (study,) = marks.CurrentRequestedProcedureEvidenceSequence
    named = {str(one.SeriesInstanceUID) for one in study.ReferencedSeriesSequence}
    assert named == {str(images_of(made, phase)[0].SeriesInstanceUID) for phase in (ED, ES)}


def test_every_series_has_a_number_and_uids_of_its_own(case):
    _, _, made = case
    numbers = {str(ds.SeriesInstanceUID): int(ds.SeriesNumber) for _, _, ds in made}
    assert sorted(numbers.values()) == [9110, 9111, 9112, 9113, 9114]
    uids = [str(ds.SOPInstanceUID) for _, _, ds in made]
    assert len(set(uids)) == len(uids)
    assert len({(role, index) for role, index, _ in made}) == len(made)


def test_slices_of_several_series_become_one_series_in_order(tmp_path):
    datasets = cine.series_per_slice(SLICES, PHASES, numbers=lambda index, phase: phase + 1)  # as Siemens counts
    for index, ds in enumerate(datasets):
        ds.SeriesDescription, ds.ProtocolName = f"cine_sax_{index % SLICES}", f"sax {index % SLICES}"
    source = load_cine(factories.write_series(tmp_path, datasets))
    made = list(encode_phases(source, cine.beating(source.series), CONTEXT, series_number=9110))
    for phase in (ED, ES):
        images = images_of(made, phase)
        assert [ds.InstanceNumber for ds in images] == list(range(1, SLICES + 1))
        assert len({ds.SeriesDescription for ds in images}) == len({ds.ProtocolName for ds in images}) == 1
        assert images[0].SeriesDescription.startswith("cine_sax_")
    (marks,) = [ds for _, _, ds in made if ds.Modality == "SR"]
    middle = images_of(made, ED)[SLICES // 2]
    assert f"LV blood pool, ED, image {middle.InstanceNumber}" in marks.to_json()


def test_numbers_of_one_series_stay_those_of_the_source(tmp_path):
    source = load_cine(factories.write_series(tmp_path, cine.one_series(SLICES, PHASES)))
    made = list(encode_phases(source, cine.beating(source.series), CONTEXT, series_number=9110))
    at = source.at_phase(ES)
    numbers = [at.headers[plane.header].InstanceNumber for plane in at.planes]
    assert numbers == [ds.InstanceNumber for ds in images_of(made, ES)]


def tracked(objects):
    return {
        str(item.UID)
        for ds in objects
        if ds.Modality == "SR"
        for item in walk(ds)
        if item.get("ValueType") == "UIDREF" and item.ConceptNameCodeSequence[0].CodeValue == "112040"
    }


def walk(item):
    yield item
    for child in item.get("ContentSequence") or ():
        yield from walk(child)


def test_marks_on_copies_are_tracked_apart_from_those_on_the_source(case):
    source, result, made = case
    kinds = [ObjectKind.MARKS]
    usual = tracked(one.dataset for one in encode_result(source, result, CONTEXT, kinds=kinds))
    copied = tracked(ds for _, _, ds in made)
    assert len(usual) == len(copied) == 4
    assert not usual & copied


def test_new_marks_name_those_they_replace_and_nothing_else(case):
    source, result, _ = case
    sr, seg = "1.2.840.10008.5.1.4.1.1.88.34", "1.2.840.10008.5.1.4.1.1.66.4"
    replaces = {
        (ObjectKind.PHASES, Flavour.ANY): [("1.2", "1.2.8.1", seg, "1.2.9.1"), ("1.2", "1.2.8.2", sr, "1.2.9.2")],
        (ObjectKind.MARKS, Flavour.ANY): [("1.2", "1.2.8.3", sr, "1.2.9.3")],
    }
    kinds = [ObjectKind.MARKS, ObjectKind.PHASES]
    made = list(encode_result(source, result, replace(CONTEXT, revision=2), kinds=kinds, replaces=replaces))
    named = {}
    for one in made:
        if one.dataset.Modality == "SR":
            (study,) = one.dataset.PredecessorDocumentsSequence
            (series,) = study.ReferencedSeriesSequence
            (item,) = series.ReferencedSOPSequence
            named[one.kind] = item.ReferencedSOPInstanceUID
    assert named == {ObjectKind.MARKS: "1.2.9.3", ObjectKind.PHASES: "1.2.9.2"}


def test_two_segmentations_of_one_phase_share_its_copies(case):
    source, result, _ = case
    again = replace(
        result.segmentations[0],
        role="again",
        segments=tuple(replace(one, key=f"{one.key}-again") for one in result.segmentations[0].segments),
    )
    keys = (*result.key_planes, dn.KeyPlane(plane=1, reason="a phase that nobody segmented", phase=ES + 1))
    both = replace(result, segmentations=(*result.segmentations, again), key_planes=keys)
    made = list(encode_phases(source, both, CONTEXT, series_number=9110))
    assert {role for role, _, ds in made if ds.Modality == "MR"} == {f"phase-{ED + 1}", f"phase-{ES + 1}"}
    segs = [ds for _, _, ds in made if ds.Modality == "SEG"]
    ed = images_of(made, ED)[0].SeriesInstanceUID
    assert [ds.ReferencedSeriesSequence[0].SeriesInstanceUID == ed for ds in segs] == [True, False, True]
    uids = [str(ds.SOPInstanceUID) for _, _, ds in made]
    assert len(set(uids)) == len(uids)


def test_a_long_name_of_a_phase_leaves_room_for_the_research_marking(case):
    source, result, _ = case
    point = replace(dn.END_DIASTOLE, label="the phase of the greatest cavity of all that were looked at")
    named = replace(result, segmentations=(replace(result.segmentations[0], time_point=point),))
    made = list(encode_phases(source, named, replace(CONTEXT, incomplete=True), series_number=9110))
    said = images_of(made, ED)[0].SeriesDescription
    assert len(said) <= 64 and "the phase of the greatest" in said and said.endswith(", RUO, incomplete]")


def test_they_come_beside_the_usual_objects_and_only_when_asked_for(case):
    source, result, made = case
    assert ObjectKind.PHASES not in USUAL_KINDS
    usual = list(encode_result(source, result, CONTEXT))
    both = list(encode_result(source, result, CONTEXT, kinds=[*USUAL_KINDS, ObjectKind.PHASES]))
    extra = [one for one in both if one.kind is ObjectKind.PHASES]
    assert [one.dataset.SOPInstanceUID for one in both if one not in extra] == [
        one.dataset.SOPInstanceUID for one in usual
    ]
    assert len(extra) == len(made)
    assert not {str(one.dataset.SOPInstanceUID) for one in extra} & {str(one.dataset.SOPInstanceUID) for one in usual}


def test_nothing_of_a_multi_frame_cine_nor_of_a_series_without_phases(tmp_path):
    enhanced = [cine.enhanced(cine.one_series(SLICES, PHASES))]
    source = load_cine(factories.write_series(tmp_path / "enhanced", enhanced))
    assert list(encode_phases(source, cine.beating(source.series), CONTEXT, series_number=1)) == []
    still = load(factories.write_series(tmp_path / "ct", factories.ct_series(n=4)))
    assert list(encode_phases(still, phantoms.bleeding(still.images), CONTEXT, series_number=1)) == []
