"""What is made beside the objects of record never costs a result: it is left out, and the job's notes say so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from pydicom.uid import EnhancedMRImageStorage

from dicomnode.domain import USUAL_KINDS, Flavour, ObjectKind
from dicomnode.encode import phases, pm, presentation
from dicomnode.encode.beside import all_or_none
from dicomnode.encode.result import encode_result
from dicomnode.errors import EncodingError
from dicomnode.execute.perform import perform
from dicomnode.volumes.cine import load_cine
from dicomnode.volumes.series import load
from tests import cine, factories, phantoms
from tests.mrd_factory import Scan
from tests.raw_scans import PlainRSS, wrapped
from tests.unit.test_encode_mr import plane, request, series
from tests.unit.test_encode_mr_enhanced import source_of

CONTEXT = phantoms.context()


def broken(*_: object, **__: object) -> None:
    raise ValueError("a value that an encoder cannot take")


@pytest.fixture(scope="module")
def beating(tmp_path_factory):
    source = load_cine(factories.write_series(tmp_path_factory.mktemp("cine"), cine.one_series(6, 8)))
    return source, cine.beating(source.series)


def test_a_fault_in_the_copied_phases_loses_no_more_than_them(beating, monkeypatch, caplog):
    source, result = beating
    said: list[str] = []
    kinds = [*USUAL_KINDS, ObjectKind.PHASES]
    whole = list(encode_result(source, result, CONTEXT, kinds=kinds, say=said.append))
    assert said == [] and ObjectKind.PHASES in {one.kind for one in whole}
    monkeypatch.setattr(phases, "encode_marks", broken)  # the last of them: the images were written by then
    left = list(encode_result(source, result, CONTEXT, kinds=kinds, say=said.append))
    usual = [one for one in whole if one.kind is not ObjectKind.PHASES]
    assert [(one.kind, one.dataset.SOPInstanceUID) for one in left] == [
        (one.kind, one.dataset.SOPInstanceUID) for one in usual
    ]
    (note,) = said
    assert note.startswith("Left out: copies of the segmented phases. ValueError: a value")
    (line,) = [record for record in caplog.records if getattr(record, "action", "") == "result_reduced"]
    assert line.exc_info is not None and line.series_uid == source.headers[0].SeriesInstanceUID


@pytest.mark.parametrize(
    "fault", [RuntimeError("of highdicom"), AssertionError(), ZeroDivisionError(), EncodingError("x")]
)
def test_whatever_is_raised_costs_no_more_than_the_kind(fault):
    said: list[str] = []
    assert all_or_none(raising(fault), "maps", "1.2", said.append) is None
    assert len(said) == 1 and said[0].startswith("Left out: maps. ")


@pytest.mark.parametrize("fault", [OSError("no space"), MemoryError()])
def test_a_full_disk_is_not_taken_for_a_bad_object(fault):
    with pytest.raises(type(fault)):
        all_or_none(raising(fault), "maps", "1.2", pytest.fail)


def raising(fault):
    yield 1
    raise fault


@pytest.mark.parametrize(
    ("kind", "module", "encoder", "named"),
    [
        (ObjectKind.PARAMETRIC_MAP, pm, "HighdicomParametricMap", "parametric maps"),
        (ObjectKind.PRESENTATION, presentation, "GrayscaleSoftcopyPresentationState", "presentation states"),
    ],
)
def test_so_do_the_other_kinds_that_a_profile_must_name(tmp_path, monkeypatch, kind, module, encoder, named):
    source = load(factories.write_series(tmp_path, factories.ct_series(6)))
    result = phantoms.mapped(source.images)
    usual = [one.kind for one in encode_result(source, result, CONTEXT)]
    said: list[str] = []
    monkeypatch.setattr(module, encoder, broken)
    left = [one.kind for one in encode_result(source, result, CONTEXT, kinds=[*USUAL_KINDS, kind], say=said.append)]
    assert left == usual and len(said) == 1 and said[0].startswith(f"Left out: {named}. ")
    with pytest.raises(ValueError, match="cannot take"):  # nothing else would tell of the result
        list(encode_result(source, result, CONTEXT, kinds=[kind]))


@pytest.mark.parametrize(
    "encoder", ["encode_segmentation", "encode_reports", "encode_marks", "encode_key_images", "encode_summary"]
)
def test_a_fault_in_what_tells_of_the_result_is_never_passed_over(tmp_path, monkeypatch, encoder):
    source = load(factories.write_series(tmp_path, factories.ct_series(6)))
    monkeypatch.setattr(f"dicomnode.encode.result.{encoder}", broken)
    with pytest.raises(ValueError, match="cannot take"):
        list(encode_result(source, phantoms.mapped(source.images), CONTEXT, kinds=list(ObjectKind)))


def test_a_cine_that_gives_no_copies_says_why(tmp_path, beating):
    source, result = beating
    said: list[str] = []
    kinds = [ObjectKind.PHASES]
    assert not list(encode_result(source, replace(result, segmentations=()), CONTEXT, kinds=kinds, say=said.append))
    assert said == ["No copies of phases were made: nothing is segmented at a phase"]
    ct = load(factories.write_series(tmp_path, factories.ct_series(6)))
    assert phases.without_phases(ct, result) == "the input has no phases"
    assert not list(encode_result(ct, phantoms.mapped(ct.images), CONTEXT, kinds=kinds, say=said.append))
    assert len(said) == 1, "nobody expects phases of it"


# -- images from k-space


def alike():
    """Two planes at one place, that only an index tells apart."""
    return plane(), replace(plane(), slice=1)


def test_planes_that_an_enhanced_object_cannot_tell_apart_go_as_single_images(tmp_path):
    source = source_of(tmp_path, Scan())
    said: list[str] = []
    fine = replace(series(), role="other")
    result = phantoms.dn.Result(reconstructions=(series(*alike()), fine))
    made = list(encode_result(source, result, CONTEXT, enhanced=True, say=said.append))
    assert [(one.role, one.flavour) for one in made if one.flavour is not Flavour.ENHANCED] == [
        (series().role, Flavour.ANY), (series().role, Flavour.ANY), ("other", Flavour.SINGLE),
    ]  # fmt: skip
    assert [one.role for one in made if one.dataset.SOPClassUID == EnhancedMRImageStorage] == ["other"]
    (note,) = said
    assert note.startswith(f"Left out: Enhanced MR of {series().label}, sent as single images. ")
    assert "do not tell every frame apart" in note


def test_where_single_images_cannot_be_written_either_the_job_fails(tmp_path):
    source = source_of(tmp_path, Scan())
    degrees = series(plane(array=plane().array * 0 + 90.0), component="P", scale=100.0)
    with pytest.raises(EncodingError, match="beyond half a turn"):
        list(encode_result(source, phantoms.dn.Result(reconstructions=(degrees,)), CONTEXT, enhanced=True))


def test_the_note_is_in_the_jobs_record(tmp_path: Path):
    class Alike(PlainRSS):
        def run(self, measured):
            (made,) = super().run(measured).reconstructions
            return phantoms.dn.Result(reconstructions=(replace(made, planes=(made.planes[0], replace(
                made.planes[0], slice=1))),))  # fmt: skip

    paths = wrapped(tmp_path / "raw", Scan(slices=1).write(tmp_path / "scan.h5"))
    performed = perform(Alike(), request(tmp_path, paths, enhanced=True), "", lambda *_: None)
    assert [one.flavour for one in performed.outputs] == [Flavour.ANY] * 2
    assert [note for note in performed.notes if note.startswith("Left out: Enhanced MR")]
