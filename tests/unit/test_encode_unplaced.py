"""A source without a frame of reference loses the overlays, and says so; the findings are told all the same."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from pydicom import dcmread

from dicomnode import pipeline as dn
from dicomnode.domain import Flavour, ObjectKind
from dicomnode.encode.result import encode_result
from dicomnode.errors import EncodingError
from dicomnode.execute.executor import PipelineSpec, Request
from dicomnode.execute.perform import perform
from dicomnode.volumes.series import load
from tests import factories, phantoms, toys
from tests.unit.test_encode_report import comments, groups, qualitative

SOURCES = {
    "ct": lambda: factories.ct_series(6, missing=["FrameOfReferenceUID"]),
    "ct with a frame that is no UID": lambda: factories.ct_series(6, values={"FrameOfReferenceUID": "scanner"}),
    "mr": lambda: factories.mr_series(6, missing=["FrameOfReferenceUID"]),
}


def written(tmp_path, series, says=phantoms.bleeding, **options):
    source = load(factories.write_series(tmp_path, series))
    result = says(source.images)
    return source, result, list(encode_result(source, result, phantoms.context(), **options))


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
@pytest.mark.parametrize("case", SOURCES)
def test_everything_that_needs_no_frame_of_reference_is_made(tmp_path, case):
    _, result, objects = written(tmp_path, SOURCES[case](), labelmap=True)
    kinds = Counter(one.kind for one in objects)
    assert kinds == {
        ObjectKind.REPORT: 1, ObjectKind.MARKS: 1, ObjectKind.KEY_IMAGES: 1, ObjectKind.SUMMARY: 1
    }  # fmt: skip
    assert {one.flavour for one in objects} == {Flavour.ANY}
    (report,) = [one.dataset for one in objects if one.kind is ObjectKind.REPORT]
    (why,) = [said for said in comments(report) if said.startswith("Left out: segmentation")]
    assert "FrameOfReferenceUID of" in why and "nothing can be laid over" in why
    values = [
        item.MeasuredValueSequence[0].NumericValue
        for group in groups(report)
        for item in group.ContentSequence
        if item.ValueType == "NUM" and item.ConceptNameCodeSequence[0].CodeMeaning == "Volume"
    ]
    assert sorted(map(float, values)) == [1.5, 3.0], "every volume, without a region"
    assert len(groups(report)) == len(result.findings)
    assert "112040" not in qualitative(report)


def test_an_explicit_negative_needs_no_frame_and_nothing_was_left_out(tmp_path):
    series = factories.ct_series(4, missing=["FrameOfReferenceUID"])
    _, _, objects = written(tmp_path, series, phantoms.not_bleeding)
    (report,) = [one.dataset for one in objects if one.kind is ObjectKind.REPORT]
    assert not [said for said in comments(report) if said.startswith("Left out")]


def test_a_derived_series_alone_fails_by_name_for_nothing_else_could_be_sent(tmp_path):
    series = factories.ct_series(4, missing=["FrameOfReferenceUID"])
    with pytest.raises(EncodingError, match=r"FrameOfReferenceUID of .* is absent"):
        written(tmp_path, series, phantoms.identity)


def test_derived_images_are_left_out_of_a_result_that_says_more(tmp_path):
    def both(images):
        return replace(phantoms.bleeding(images), images=phantoms.shifted(images, 1.0).images)

    _, _, objects = written(tmp_path, factories.ct_series(4, missing=["FrameOfReferenceUID"]), both)
    assert ObjectKind.IMAGE not in {one.kind for one in objects}
    (report,) = [one.dataset for one in objects if one.kind is ObjectKind.REPORT]
    assert any(said.startswith("Left out: segmentation, derived images.") for said in comments(report))


def test_what_nobody_takes_is_not_missed(tmp_path):
    series = factories.ct_series(4, missing=["FrameOfReferenceUID"])
    kinds = [ObjectKind.SUMMARY, ObjectKind.KEY_IMAGES]
    _, _, objects = written(tmp_path, series, phantoms.mapped, kinds=kinds)
    assert [one.kind for one in objects] == kinds
    everything = [*kinds, ObjectKind.REPORT]
    _, _, objects = written(tmp_path / "again", series, phantoms.mapped, kinds=everything)
    (report,) = [one.dataset for one in objects if one.kind is ObjectKind.REPORT]
    (why,) = [said for said in comments(report) if said.startswith("Left out")]
    assert why.startswith("Left out: segmentation. "), "maps are not, for nobody asked"


class Quiet(toys.Bleeding):
    algorithm = dn.Algorithm(name="toy-bleeding", version="1.0.0")


def test_the_jobs_record_and_the_log_say_why(tmp_path, caplog):
    paths = factories.write_series(tmp_path / "in", factories.ct_series(6, missing=["FrameOfReferenceUID"]))
    request = Request(
        job_id=1, key="a1" * 32, run="1", pipeline=PipelineSpec(name="t", class_name="t", weights=None, options={}),
        version="1.0.0", weights_digest="", paths=paths, incomplete=False, revision=0,
        created_at=datetime(2026, 1, 5, tzinfo=UTC), results=tmp_path / "results", series_number=9000,
        device_serial="node", default_charset="ISO_IR 100",
    )  # fmt: skip
    with caplog.at_level("WARNING"):
        performed = perform(Quiet(), request, "", lambda *_: None)
    (note,) = [note for note in performed.notes if note.startswith("Left out: segmentation")]
    uid = str(dcmread(paths[0]).SeriesInstanceUID)
    (line,) = [record for record in caplog.records if getattr(record, "action", "") == "result_unplaced"]
    assert line.series_uid == uid and line.reason == note
    assert {one.kind for one in performed.outputs} >= {ObjectKind.REPORT, ObjectKind.SUMMARY}
    assert len(performed.findings) == 3
