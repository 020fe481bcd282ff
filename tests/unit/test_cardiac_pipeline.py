"""The cardiac pipeline: what it refuses, and that what it reports is what the masks hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dicomnode import pipeline as dn
from dicomnode.execute.contract import check_result
from models.cardiac import bundle, indices, ranges, segment, shapes, simulate, study
from pipelines.cardiac import INDICES, SHIPPED, STRUCTURES, CardiacCine, report, why_held
from tests.cardiac_stacks import seen_of, series, stack

WEIGHTS = Path(bundle.__file__).parent


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Many small operations: threads that wait for each other take most of the time on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def made() -> simulate.Stack:
    return stack()


def pipeline_that_sees(seen: segment.Seen) -> CardiacCine:
    pipeline = CardiacCine()
    pipeline.progress = lambda _phase, _share: None
    pipeline.origin, pipeline.ranges = SHIPPED, ranges.load(WEIGHTS)
    pipeline.segmenter = SimpleNamespace(look=lambda _images, _spacing: seen)  # type: ignore[assignment]
    return pipeline


@pytest.fixture(scope="module")
def result(made: simulate.Stack) -> dn.Result:
    return pipeline_that_sees(seen_of(made)).run(series(made))


def test_the_result_keeps_the_contract(made: simulate.Stack, result: dn.Result) -> None:
    check_result(result, series(made))
    assert [one.time_point for one in result.segmentations] == [dn.END_DIASTOLE, dn.END_SYSTOLE]
    assert [one.phase for one in result.segmentations] == [0, int(made.times.argmax())]
    assert {one.phase for one in result.key_planes} == {one.phase for one in result.segmentations}
    (curve,) = result.curves
    assert len(curve.y) == len(curve.x) and curve.y.argmax() == result.segmentations[0].phase
    assert [(x, name) for x, _, name in curve.points] == [
        (curve.x[one.phase], one.time_point.label) for one in result.segmentations
    ]


def test_numbers_are_those_of_the_masks(made: simulate.Stack, result: dn.Result) -> None:
    voxel = made.pixel_mm**2 * made.step_mm / 1000.0
    volume = {m.segment: m.value for m in result.measurements if m.segment}
    for segmentation in result.segmentations:
        for number, one in enumerate(segmentation.segments, start=1):
            assert volume[one.key] == pytest.approx((segmentation.labels == number).sum() * voxel, abs=0.06)
    value = {m.name.value: m.value for m in result.measurements if not m.segment}
    assert value["8821-1"] == volume["lv-ed"] and value["8823-7"] == volume["lv-es"]
    assert value["8811-2"] == pytest.approx(100.0 * (1.0 - volume["lv-es"] / volume["lv-ed"]), abs=0.1)
    assert value["122447"] == pytest.approx(1.05 * volume["myo-ed"], abs=0.1)
    rate = "8867-4"  # of which the header says one number
    bounded = [m for m in result.measurements if not m.segment and m.name.value != rate]
    assert all(m.interval and m.interval[0] <= m.value <= m.interval[1] for m in bounded)
    assert value[rate] == round(60000.0 / 320.0) and value["82799009"] == pytest.approx(
        (value["8821-1"] - value["8823-7"]) * 60.0 / 320.0, abs=0.02
    )
    assert len([m for m in result.measurements if not m.segment]) == len(INDICES) + 2
    assert {s.key for s in result.segmentations[0].segments} == {f"{key}-ed" for key, *_ in STRUCTURES}


def test_the_report_says_what_counted_and_what_it_was_indexed_by(result: dn.Result) -> None:
    text = " ".join(result.remarks)
    assert "end diastole, phase 1: slices" in text and "slice 1 lies at the apex" in text
    assert "body surface of 2.00 m²" in text and "Papillary muscles" in text and "1.05 g/mL" in text


def test_without_height_nothing_is_indexed(made: simulate.Stack, found: study.Study) -> None:
    implausible = {"Modality": "MR", "PatientSize": 180.0, "PatientWeight": "80"}
    assert "body surface of" not in remarks(made, found, acquisition=implausible)


@pytest.fixture(scope="module")
def found(made: simulate.Stack) -> study.Study:
    """Judged once: what a header says changes nothing of it."""
    return study.judge(seen_of(made), series(made).slice_positions)


def remarks(made: simulate.Stack, found: study.Study, **changes: object) -> str:
    return " ".join(report(series(made, **changes), found, SHIPPED, ranges.load(WEIGHTS)).remarks)


def test_ranges_are_shown_as_a_populations_and_only_to_whom_they_apply(
    made: simulate.Stack, found: study.Study
) -> None:
    body = {"Modality": "MR", "PatientSize": 1.8, "PatientWeight": 80.0, "PatientAge": "060Y"}
    shown = remarks(made, found, acquisition=body | {"PatientSex": "M"})
    assert "no judgement of this patient: LV EF 48 to 68 %; LV mass 35 to 71 g/m² (men of 45 to 74 years" in shown
    assert "Petersen 2017" in shown and "normal" not in shown.lower().replace("abnormal", "")
    women = remarks(made, found, acquisition=body | {"PatientSex": "F", "PatientSize": 18.0})
    assert "LV EF 51 to 71 %" in women and "g/m² (" not in women, "nothing is indexed: no range of an index"
    for other in (
        {"PatientSex": "O"},
        {},
        {"PatientSex": "M", "PatientAge": "012Y"},
        {"PatientSex": "F", "PatientAge": "008M"},
    ):
        assert "Reference ranges" not in remarks(made, found, acquisition=body | other)


def test_without_a_plausible_heartbeat_there_is_no_output(made: simulate.Stack, found: study.Study) -> None:
    slices = made.images.shape[1]
    for beats in (np.full(slices, np.nan), np.full(slices, 20.0), np.full(slices, 9000.0)):
        told = report(series(made, intervals=beats), found)
        assert not {"8867-4", "82799009"} & {m.name.value for m in told.measurements}
        assert "cardiac index" not in " ".join(told.remarks)
    uneven = np.linspace(700.0, 1100.0, slices)
    assert "different beats: of 700 to 1100 ms" in remarks(made, found, intervals=uneven)
    assert "cardiac index" in remarks(made, found) and "different beats" not in remarks(made, found)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("citation: ''", "citation"), ("ranges: {lv_fe: {M: {mean: 1, sd: 0.1}}}", "lv_fe of M"),
        ("ranges: {lv_ef: {M: {mean: 58}}}", "sd"), ("age_years: [74, 45]", "age_years"), ("ranges: [", "ParserError"),
        ("ranges: {lv_ef: {M: {mean: 8, sd: 5}}}", "lv_ef of M: sd"),
    ],
)  # fmt: skip
def test_mistyped_ranges_are_not_shown_to_anybody(tmp_path: Path, wrong: str, named: str) -> None:
    right = "citation: a\npopulation: b\nconvention: c\nage_years: [1, 2]\nranges: {lv_ef: {M: {mean: 58, sd: 5}}}\n"
    lines = [line for line in right.splitlines() if line.partition(":")[0] != wrong.partition(":")[0]]
    (tmp_path / ranges.FILE).write_text("\n".join([*lines, wrong]))
    with pytest.raises(ranges.RangesError, match=named):
        ranges.load(tmp_path)
    (tmp_path / ranges.FILE).write_text(right)
    assert ranges.load(tmp_path) is not None and ranges.load(tmp_path / "nowhere") is None


def test_what_must_be_judged_is_said(made: simulate.Stack) -> None:
    seen = seen_of(made)
    views = np.stack([seen.views[0], np.where(seen.views[0] == shapes.LV, shapes.MYO, seen.views[0])])
    found = pipeline_that_sees(replace(seen, views=views)).run(series(made))
    assert any("ejection fraction is uncertain" in remark for remark in found.remarks)
    assert found.quality["ef_interval_points"] > 8.0


def test_a_wide_interval_or_an_implausible_mask_waits_for_a_person(
    made: simulate.Stack, result: dn.Result, found: study.Study
) -> None:
    seen = seen_of(made)
    assert "wider than 8 points" in result.hold, "no weights are known to better"
    options, accepted = CardiacCine.Options(), CardiacCine.Options(hold_ef_points=20.0)
    clean = replace(found, violations=())
    assert "has the interval" in why_held(clean, options) and why_held(clean, accepted) == ""
    ef = found.function.lv_ef
    narrow = replace(clean, intervals=found.intervals | {"lv_ef": (ef - 3.9, ef + 3.9)})
    assert why_held(narrow, options) == ""
    jumps = seen.mean.copy()
    middle = jumps.shape[1] // 2
    jumps[:, middle] = np.roll(jumps[:, middle], 9, axis=-1)  # 13.5 mm to the side
    jumped = study.judge(replace(seen, mean=jumps), series(made).slice_positions)
    assert "the cavity jumps between slices" in why_held(jumped, accepted)
    assert why_held(jumped, CardiacCine.Options(hold_ef_points=20.0, hold_violations=False)) == ""


@pytest.mark.parametrize("lost", [shapes.RV, shapes.LV])
def test_a_ventricle_that_seems_to_grow_as_it_empties_waits_for_a_person(made: simulate.Stack, lost: int) -> None:
    """Segmented in too few slices at end diastole: a result that breaks off shows nobody."""
    seen = seen_of(made)
    whole = study.judge(seen, series(made).slice_positions)
    volumes = np.array(whole.ed.volumes)
    volumes[lost] = 0.5 * whole.es.volumes[lost]
    ed, function = replace(whole.ed, volumes=volumes), indices.function(volumes, whole.es.volumes)
    intervals = study._intervals(seen, ed, whole.es, np.full(made.labels.shape[1], made.step_mm), function)
    found = replace(whole, ed=ed, function=function, intervals=intervals)
    found = replace(found, violations=tuple(study._violations(found, seen.spacing)))
    check_result(report(series(made), found), series(made))
    assert why_held(found, CardiacCine.Options(hold_ef_points=100.0))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"acquisition": {"Modality": "CT"}}, "Modality is CT"),
        ({"acquisition": {"Modality": "MR", "ImageType": ("ORIGINAL", "PRIMARY", "VELOCITY MAP")}}, "magnitude"),
        ({"pixel_spacing": (4.0, 4.0)}, "made for 0.5 to 3 mm"),
    ],
)
def test_what_is_no_cine_is_refused(made: simulate.Stack, changes: dict[str, object], reason: str) -> None:
    with pytest.raises(dn.Unsuitable, match=reason):
        pipeline_that_sees(seen_of(made)).run(series(made, **changes))


def test_few_planes_are_a_long_axis_and_refused(made: simulate.Stack) -> None:
    few = simulate.Stack(
        images=made.images[:, :3],
        labels=made.labels[:, :3],
        positions=made.positions[:, :3],
        pixel_mm=made.pixel_mm,
        step_mm=made.step_mm,
        scene=made.scene,
        times=made.times,
    )
    with pytest.raises(dn.Unsuitable, match="needs 5 slices"):
        pipeline_that_sees(seen_of(made)).run(series(few))


def test_a_stack_without_ring_or_beat_is_refused(made: simulate.Stack) -> None:
    seen = seen_of(made)
    empty = np.zeros_like(seen.mean)
    empty[:, :, 0] = 1.0
    with pytest.raises(dn.Unsuitable, match="not a short-axis stack"):
        pipeline_that_sees(replace(seen, mean=empty)).run(series(made))
    still = np.repeat(seen.mean[:1], len(seen.mean), 0)
    with pytest.raises(dn.Unsuitable, match="no contraction"):
        pipeline_that_sees(replace(seen, mean=still)).run(series(made))


def test_the_shipped_weights_segment_a_simulated_heart_and_refuse_noise() -> None:
    made = simulate.simulate_stack(simulate.TEST_SEED + 5, phases=8, pixels=96, pixel_mm=2.0, step_mm=14.0)
    pipeline = CardiacCine()
    pipeline.setup(dn.Runtime(device="cpu", weights=Path(bundle.__file__).parent))
    found = pipeline.run(series(made))
    ed = found.segmentations[0]
    truth, called = made.labels[0] == shapes.LV, ed.labels == 1
    assert ed.segments[0].key == "lv-ed"
    assert 2 * (truth & called).sum() / (truth.sum() + called.sum()) > 0.8
    noise = np.abs(np.random.default_rng(0).normal(0.0, 50.0, made.images.shape)).astype(np.float32)
    with pytest.raises(dn.Unsuitable):
        pipeline.run(series(made, array=noise))
