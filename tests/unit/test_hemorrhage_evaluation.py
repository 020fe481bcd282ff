"""The evaluation of the hemorrhage detector: figures on known shapes, painted bleeds, other people's methods."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.hemorrhage import bars, baselines, card, cases, evaluate, intracranial, metrics, paint
from models.hemorrhage.cases import Study
from models.hemorrhage.detect import CLASSES, Detection
from tests.conftest import EVALUATION_DATA

PIXEL = 1.5
SIZE = (140, 120)
TILT = np.deg2rad(12.0)


def box(shape: tuple[int, ...], *ranges: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in ranges)] = True
    return mask


def made_head() -> Study:
    """A tilted, uneven head of ellipsoids with fluid in the middle and sulci at the rim."""
    along = np.concatenate([[0.0], np.cumsum([7.0] * 10 + [4.0] * 16)])
    orientation = np.array([1.0, 0.0, 0.0, 0.0, np.cos(TILT), -np.sin(TILT)])
    positions = np.array([-PIXEL * SIZE[1] / 2, -PIXEL * SIZE[0] / 2, 72.0]) - along[:, None] * np.array([0, 0, 1.0])
    r, c = (PIXEL * np.arange(n) for n in SIZE)
    where = positions[:, None, None] + r[:, None, None] * orientation[3:] + c[None, :, None] * orientation[:3]

    def inside(*radii: float) -> np.ndarray:
        return ((where / np.array(radii)) ** 2).sum(-1) < 1.0

    hu = np.full(where.shape[:-1], -1000.0)
    shells = ((76, 93, 82), 40.0), ((72, 88, 77), 1200.0), ((65, 81, 70), 32.0)
    for radii, value in shells:
        hu[inside(*radii)] = value
    sulcus = inside(62, 78, 66) & ~inside(50, 66, 60) & (np.sin(where[..., 0] / 3.0) > 0.8)
    hu[sulcus] = 8.0
    hu[inside(14, 32, 40)] = 6.0
    hu += np.random.default_rng(0).normal(0.0, 3.0, hu.shape)
    return Study(
        name="made",
        group="made",
        hu=hu.astype(np.float32),
        pixel_spacing=(PIXEL, PIXEL),
        positions=positions,
        orientation=orientation,
    )


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Many small operations: threads that wait for each other take most of the time on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def head(one_thread) -> paint.Head:
    return paint.Head.of(made_head())


# -- figures


def test_dice_of_boxes_that_share_half():
    a, b = box((4, 8, 8), (0, 4), (0, 4), (0, 8)), box((4, 8, 8), (0, 4), (2, 6), (0, 8))
    assert metrics.dice(a, b) == pytest.approx(0.5)
    assert metrics.dice(a, a) == 1.0
    assert metrics.dice(np.zeros_like(a), np.zeros_like(a)) == 1.0


def test_component_dice_forgives_what_does_not_touch():
    truth = box((3, 20, 20), (0, 3), (2, 6), (2, 6))
    found = truth | box((3, 20, 20), (0, 3), (12, 18), (12, 18))
    assert metrics.component_dice(truth, found) == 1.0
    assert metrics.dice(truth, found) < 0.7


def test_surface_distance_is_in_millimetres_and_knows_the_slice_distance():
    a = box((12, 30, 30), (3, 9), (5, 15), (5, 15))
    moved = box((12, 30, 30), (3, 9), (5, 15), (9, 19))
    assert metrics.hd95_mm(a, moved, (5.0, 0.5, 0.5)) == pytest.approx(2.0)
    assert metrics.hd95_mm(a, np.roll(a, 1, axis=0), (5.0, 0.5, 0.5)) == pytest.approx(5.0)
    assert metrics.hd95_mm(a, a, (5.0, 0.5, 0.5)) == 0.0
    assert np.isnan(metrics.hd95_mm(a, np.zeros_like(a), (5.0, 0.5, 0.5)))


def test_volume_similarity():
    assert metrics.volume_similarity(10.0, 10.0) == 1.0
    assert metrics.volume_similarity(10.0, 0.0) == 0.0
    assert metrics.volume_similarity(0.0, 0.0) == 1.0
    assert metrics.volume_similarity(10.0, 30.0) == pytest.approx(0.5)


def test_area_under_the_curve_and_its_interval():
    rng = np.random.default_rng(0)
    positive, negative = rng.normal(1.0, 1.0, 400), rng.normal(0.0, 1.0, 400)
    value, low, high = metrics.auc_interval(positive, negative)
    assert value == pytest.approx(0.76, abs=0.03) and low < value < high
    assert metrics.auc(np.ones(3), np.ones(4)) == 0.5
    assert metrics.auc(np.array([2.0]), np.array([1.0])) == 1.0
    assert np.isnan(metrics.auc(np.array([]), np.ones(2)))


def test_calibration_error_of_honest_and_of_boastful_scores():
    rng = np.random.default_rng(1)
    scores = rng.uniform(0, 1, 20_000)
    assert metrics.calibration_error(scores, rng.uniform(0, 1, 20_000) < scores) < 0.02
    assert metrics.calibration_error(np.full(100, 0.95), np.arange(100) < 50) == pytest.approx(0.45)


def test_lesions_are_counted_with_the_type_they_were_given():
    truth, found = np.zeros((4, 40, 40), np.uint8), np.zeros((4, 40, 40), np.uint8)
    truth[:, 2:12, 2:12], found[:, 2:12, 2:10] = 4, 4
    truth[:, 20:30, 2:12], found[:, 20:30, 2:12] = 2, 1
    truth[:, 2:12, 20:30] = 3
    truth[0, 35, 35] = 5  # too small to be a lesion
    listed = metrics.lesions(truth, found, np.full(4, 0.01))
    assert listed == [(2, pytest.approx(4.0), 1), (3, pytest.approx(4.0), 0), (4, pytest.approx(4.0), 4)]


def test_what_nobody_can_call_counts_neither_way():
    truth, found = np.zeros((3, 10, 10), np.uint8), np.zeros((3, 10, 10), np.uint8)
    truth[1, 2:5, 2:5], found[1, 2:8, 2:8] = 4, 4
    ignore = np.zeros(truth.shape, bool)
    ignore[1, 2:8, 2:8] = True
    ignore[1, 2:5, 2:5] = False
    study = replace(made_head(), hu=np.zeros(truth.shape, np.float32), truth=truth, ignore=ignore)
    want, got = evaluate.judged(study, found)
    assert metrics.dice(want > 0, got > 0) == 1.0


def test_a_row_holds_overlap_false_parts_and_flags(head):
    study = paint.intraparenchymal(head, 15.0, 0)
    labels = np.asarray(study.truth).copy()
    stray = head.inside & ~np.asarray(study.ignore) & (labels == 0)
    labels[2][stray[2]] = 2
    labels[3:5] = 0
    detection = Detection(
        labels=labels,
        probability=(labels > 0).astype(np.float16),
        cavity=head.inside,
        study=dict.fromkeys(("any", *CLASSES), 0.6),
        slice_any=np.zeros(len(labels), np.float32),
        midline_shift_mm=None,
        midline_note="",
        confidence_note="",
    )
    row = evaluate.row_of(study, detection, 1.0, {"triage": 0.5, "second-read": 0.9})
    assert row["flagged"] == {"triage": True, "second-read": False}
    assert row["component_dice"] > 0.9 and row["dice"] < row["component_dice"]
    assert row["false_components"] >= 1
    assert row["false_ml"] == pytest.approx(study.volume_ml(labels == 2), rel=0.01)
    assert row["classes"]["intraparenchymal"]["dice"] > 0.9 and not row["negative"]


# -- geometry and painting


def test_slice_weights_are_distances_along_the_normal():
    study = made_head()
    weights = study.steps_mm
    assert weights[0] == pytest.approx(7.0 * np.cos(TILT)) and weights[-1] == pytest.approx(4.0 * np.cos(TILT))
    assert weights[10] == pytest.approx(5.5 * np.cos(TILT))
    with pytest.raises(ValueError, match="one plane"):
        cases.slice_weights(study.positions[:1], study.orientation)


def test_the_inside_of_the_skull_is_found_without_a_network(head):
    ellipsoid = 4.0 / 3.0 * np.pi * 6.5 * 8.1 * 7.0
    assert head.study.volume_ml(head.inside) == pytest.approx(ellipsoid, rel=0.1)
    empty = np.full(head.study.hu.shape, 40.0, np.float32)
    assert not intracranial.mask(empty, head.study.pixel_spacing).any()


@pytest.mark.parametrize(("radius", "least"), [(9.0, 0.4), (16.0, 0.6)])
def test_a_painted_ball_has_about_its_volume_and_keeps_the_noise(head, radius, least):
    study = paint.intraparenchymal(head, radius, 1)
    truth = np.asarray(study.truth) > 0
    ball = 4.0 / 3.0 * np.pi * (radius / 10.0) ** 3
    assert least * ball < study.volume_ml(truth) < 2.2 * ball
    assert set(np.unique(study.truth)) == {0, paint.INTRAPARENCHYMAL}
    assert 50.0 < np.median(study.hu[truth]) < 85.0
    core = truth & ~np.asarray(study.ignore)
    assert (study.hu[core] - np.median(study.hu[core])).std() > 2.0
    untouched = ~truth & ~np.asarray(study.ignore) & ~head.inside
    assert np.array_equal(study.hu[untouched], head.study.hu[untouched])


def test_crescent_and_lens_lie_on_one_side_at_the_bone(head):
    for label in (paint.SUBDURAL, paint.EPIDURAL):
        study = paint.extra_axial(head, label, 10.0, 40.0, 3)
        truth = np.asarray(study.truth) == label
        assert study.volume_ml(truth) > 2.0
        assert np.percentile(head.depth[truth], 5) < 3.0 and head.depth[truth].max() < 12.0
        x = np.concatenate([paint.points(study, k, 0.0)[truth[k]][:, 0] for k in range(len(truth))])
        assert (x > 0).all() or (x < 0).all()


def test_ventricles_fill_from_below(head):
    little, much = paint.intraventricular(head, 0.2, 0), paint.intraventricular(head, 0.9, 0)
    a, b = (study.volume_ml(np.asarray(study.truth) > 0) for study in (little, much))
    assert 0 < a < 0.5 * b
    rows = np.nonzero(np.asarray(little.truth))[1]
    assert rows.min() > np.nonzero(np.asarray(much.truth))[1].min()


def test_blood_is_brighter_than_the_brain_round_it_by_what_was_painted(head):
    study = paint.intraparenchymal(head, 15.0, 0)
    blood = np.asarray(study.truth) > 0
    painted_hu = float(np.median(study.hu[blood]) - np.median(head.study.hu[blood]))
    assert evaluate._contrast_hu(study, blood, head.inside) == pytest.approx(painted_hu, abs=4.0)
    assert evaluate._contrast_hu(head.study, np.zeros_like(blood), head.inside) is None


def test_painting_is_the_same_every_time(head):
    a, b = (paint.intraparenchymal(head, 9.0, 2) for _ in range(2))
    assert np.array_equal(a.hu, b.hu) and np.array_equal(a.truth, b.truth)


# -- other people's methods


def test_the_threshold_finds_a_bright_ball_and_drops_specks(head):
    study = paint.intraparenchymal(head, 15.0, 0)
    found = baselines.threshold(study, head.inside & (head.depth > 4.0))
    assert metrics.component_dice(np.asarray(study.truth) > 0, found) > 0.8
    parts = metrics.components(found)
    assert metrics.component_ml(parts, study.voxel_ml)[1:].min() >= baselines.BASELINE_LEAST_ML


def test_the_grid_of_one_millimetre_goes_there_and_back(head):
    study = paint.intraparenchymal(head, 15.0, 0)
    grid = baselines.Grid(study)
    share = grid.resample((np.asarray(study.truth) > 0).astype(np.float32), 0.0)
    back = grid.back((share > 0.5).astype(np.uint8))
    assert metrics.dice(np.asarray(study.truth) > 0, back > 0) > 0.93
    assert share.sum() / 1000.0 == pytest.approx(study.volume_ml(np.asarray(study.truth) > 0), rel=0.06)


def test_the_adapter_has_the_published_network_s_field_of_view():
    net = baselines.DeepMedic().eval()
    assert sum(p.numel() for p in net.parameters()) == 1_030_033  # what is said of the published weights
    with torch.inference_mode():
        assert net(torch.zeros(1, 1, 95, 95, 95)).shape == (1, 5, 15, 15, 15)


def test_the_published_weights_load_strictly():
    files = sorted(EVALUATION_DATA.glob("**/weights-blastct-v1/model_1.pt"))
    if not files:
        pytest.skip("no evaluation data")
    assert len(baselines.BlastCT(files[0]).nets) == 1


# -- bars


def row(**changes: object) -> dict[str, object]:
    given = {
        "group": "synthetic",
        "name": "head",
        "truth_ml": 10.0,
        "found_ml": 10.5,
        "dice": 0.9,
        "component_dice": 0.95,
        "false_components": 0,
        "false_ml": 0.0,
        "negative": False,
        "score": 0.9,
        "cpu_s": 2.0,
        "shift_mm": 3.0,
        "true_shift_mm": 2.0,
        "volume_similarity": 0.97,
        "hd95_mm": 2.0,
        "lesions": [(4, 10.0, 4)],
        "scores": dict.fromkeys(CLASSES, 0.1) | {"intraparenchymal": 0.9},
        "flagged": {"triage": True, "second-read": True},
        "classes": {"intraparenchymal": {"truth_ml": 10.0, "found_ml": 10.5, "dice": 0.9}},
    }
    return given | changes


def negative(**changes: object) -> dict[str, object]:
    quiet = {"truth_ml": 0.0, "found_ml": 0.0, "negative": True, "score": 0.1, "lesions": [], "classes": {}}
    quiet |= {"flagged": {"triage": False, "second-read": False}, "true_shift_mm": 0.0, "shift_mm": None}
    return row(**(quiet | {"scores": dict.fromkeys(CLASSES, 0.05)} | changes))


def test_bars_are_met_by_good_figures_and_missed_by_bad_or_missing_ones():
    good = bars.summary({"synthetic": [row(), row(), negative(), negative()]})
    met = {entry["what"]: entry["met"] for entry in bars.table(good)}
    assert met["synthetic: study AUC, any"] and met["synthetic: Dice IPH, median"]
    assert met["synthetic: volume bias, absolute"] and met["synthetic: midline shift, mean error [mm]"]
    assert not met["synthetic: Dice EDH, median"]  # none was measured
    bad = bars.summary({"synthetic": [row(dice=0.2, score=0.05, found_ml=30.0), negative(score=0.5, cpu_s=60.0)]})
    met = {entry["what"]: entry["met"] for entry in bars.table(bad)}
    assert not met["synthetic: study AUC, any"] and not met["synthetic: volume bias, absolute"]


def test_the_real_negative_s_bar_is_a_millilitre_and_no_flag():
    rows = [negative(group="real negative", name="ct-head-ge", found_ml=1.4, note="")]
    rows[0]["flagged"] = {"triage": True, "second-read": False}
    table = bars.table(bars.summary({"negatives": rows}))
    assert [entry["met"] for entry in table] == [False, False]


def test_blood_too_little_to_see_counts_neither_way():
    made = bars.synthetic([row(), row(truth_ml=0.4), negative(), negative(negative=False)])
    assert (made["positive"], made["negative"]) == (1, 1)


def test_the_card_lists_extra_axial_heads_by_how_bright_their_blood_is():
    rows = [
        row(name=name, kind=kind, contrast_hu=hu, extra_axial_dice=dice, inside_dice=0.9)
        for name, kind, hu, dice in (
            ("faint", "subdural", 6.0, 0.1),
            ("bright", "epidural", 30.0, 0.8),
            ("clot", "intraparenchymal", 35.0, 0.0),
        )
    ]
    text = card.judge(bars.judge(rows), rows)
    assert "clot" not in text and text.index("bright") < text.index("faint")
    assert "| faint | 10.00 | 6.00 | 0.10 |" in text


def test_everything_that_is_written_is_json(tmp_path, monkeypatch):
    import json

    found = {"synthetic": [row(), negative()], "painted": [row(group="painted", name="IPH r 5 mm, seed 0")] * 2}
    found["painted"] += [row(group="painted", name="SDH 5 mm, seed 0")]
    made = bars.summary(found)
    text = json.dumps({"summary": made, "bars": bars.table(made)}, default=evaluate._plain)
    assert json.loads(text)["bars"]
