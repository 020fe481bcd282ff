"""Copies of the segmented phases: the same pixels in the same places, and what lies on them lies on nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from highdicom.seg import Segmentation

from dicomnode import pipeline as dn
from dicomnode.domain import USUAL_KINDS, ObjectKind
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
