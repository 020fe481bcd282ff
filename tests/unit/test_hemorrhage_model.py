"""The hemorrhage model's simulator, training and detection: seeds, labels, geometry, packages."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from models.hemorrhage import acquire, bleeds, bundle, detect, midline, placing, postprocess, scene, simulate, train
from models.hemorrhage.data import Pool
from models.hemorrhage.inputs import WORK_SIZE, channels, mirror
from models.hemorrhage.lesion import Fields
from models.hemorrhage.net import build
from models.hemorrhage.train import Config, Trainer

GOLDEN = Path(__file__).parent.parent / "golden" / "hemorrhage_simulator.json"
SEED = 900_001
TINY = {"widths": [8, 8, 8, 8, 8], "depth": 1, "first_depth": 1, "study_width": 4, "lesion_width": 4}
CALIBRATION = {
    "calibration": {
        "temperature": dict.fromkeys(("any", *detect.CLASSES), 1.0),
        "bias": dict.fromkeys(("any", *detect.CLASSES), 0.0),
    },
    "operating_points": {"triage": {"any": 0.3}, "second-read": {"any": 0.6}},
}


@pytest.fixture(scope="module")
def base():
    return scene.make_base(SEED)


def few_slices(base):
    """A bleeding head in eight slices, whatever its protocol says of their number."""
    rng = np.random.default_rng(SEED)
    shell, brain = base
    whole = scene.make_scene(shell, brain, bleeds.draw_bleeding(shell.frame, brain, rng), 18.0)
    heights = tuple(np.arange(75.0, -60.0, -18.0))
    protocol = acquire.draw_protocol(rng, simulate.FIELD, 1.25)
    protocol = dataclasses.replace(protocol, heights=heights, thickness=(5.0,) * len(heights))
    return scene.scan(whole, protocol, rng)


@pytest.fixture(scope="module")
def positive(base):
    return few_slices(base)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("package")
    torch.manual_seed(0)
    bundle.save(build(TINY), folder, TINY, CALIBRATION)
    return folder


@pytest.fixture(scope="module")
def stored(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cases")
    files = [simulate.case_file(folder, SEED, variant) for variant in (0, 1)]
    for variant, file in enumerate(files):
        simulate.store(simulate.to_case(SEED, variant, base), file)
    return files


def summary(scan):
    blocks = scan.hu[:, : simulate.FIELD[0] // 26 * 26, : simulate.FIELD[1] // 23 * 23]
    middle = blocks[len(blocks) // 2].reshape(8, 26, 8, 23).mean((1, 3))
    counts = {str(value): int((scan.labels == value).sum()) for value in np.unique(scan.labels)}
    return {"slices": len(scan.hu), "middle_hu": np.round(middle, 1).tolist(), "labels": counts}


def test_a_seed_gives_the_golden_scan(positive):
    golden, found = json.loads(GOLDEN.read_text()), summary(positive)
    assert found["slices"] == golden["slices"]
    np.testing.assert_allclose(found["middle_hu"], golden["middle_hu"], atol=2.0)
    assert found["labels"].keys() == golden["labels"].keys()
    for value, count in golden["labels"].items():
        assert found["labels"][value] == pytest.approx(count, rel=0.02, abs=10)


def test_a_seed_gives_the_same_scan_twice(base, positive):
    again = few_slices(base)
    np.testing.assert_array_equal(again.hu, positive.hu)
    np.testing.assert_array_equal(again.labels, positive.labels)


def test_tissues_of_a_simulated_head_have_their_densities(positive):
    hu, inside = positive.hu, positive.cavity
    assert 20 < np.median(hu[inside]) < 45
    assert np.median(hu[positive.ventricle & (positive.labels == 0)]) < 25
    assert -1024 <= hu.min() < -900
    assert 1000 < hu.max() < 3071
    assert 900 < inside.sum(axis=(1, 2)) @ placing.spacings(positive.positions[:, 2]) * 1.25**2 / 1000 < 2000


def test_a_negative_head_has_no_label(stored):
    assert not simulate.fetch(stored[0]).labels.any()
    assert simulate.fetch(stored[1]).labels.any()


def test_half_of_all_cases_are_negative():
    assert sum(simulate.bleeds_in(variant) for variant in range(simulate.VARIANTS)) * 2 == simulate.VARIANTS


def test_blood_that_cannot_be_seen_is_not_labelled():
    share = np.array([0.05, 0.2, 0.5, 0.9, 0.9], np.float32)
    contrast = np.array([20.0, 20.0, 20.0, 3.0, 30.0], np.float32)
    labels = scene.visible_labels({2: share, 4: 0.1 * share}, contrast)
    assert labels.tolist() == [0, scene.UNCLEAR, 2, scene.UNCLEAR, 2]


def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(stored, tmp_path):
    config = Config(steps=2, slices=2, widths=(8, 8, 8, 8, 8), depth=1, first_depth=1)
    device = torch.device("cpu")
    whole = Trainer(config, tmp_path / "whole", device, Pool(stored))
    for _ in range(2):
        whole.advance()
    first = Trainer(config, tmp_path / "parts", device, Pool(stored))
    first.advance()
    first.keep()
    second = Trainer(config, tmp_path / "parts", device, Pool(stored))
    second.advance()
    for name, value in whole.average.state_dict().items():
        torch.testing.assert_close(second.average.state_dict()[name], value, rtol=0, atol=0)
    np.testing.assert_array_equal(second.pool.weight, whole.pool.weight)


def test_a_refit_keeps_the_slice_network_and_makes_scores_and_points_anew(folder, stored, tmp_path, monkeypatch):
    asked = []

    def simulated(_folder, first, heads):
        asked.append((first, heads))
        return stored

    monkeypatch.setattr(train, "simulate", simulated)
    (folder / "training.json").write_text('{"steps": 7}')
    config = Config(widths=(8, 8, 8, 8, 8), depth=1, first_depth=1, study_width=4)
    torch.manual_seed(1)
    train.refit(config, tmp_path, tmp_path / "out", torch.device("cpu"), folder)
    assert asked == [(simulate.STUDY_SEED, 20), (simulate.CALIBRATION_SEED, 30)], "never the heads trained on"
    (_, before), (package, after) = (bundle.load(place, torch.device("cpu")) for place in (folder, tmp_path / "out"))
    for name in ("slices", "lesions"):
        for key, value in getattr(before, name).state_dict().items():
            torch.testing.assert_close(getattr(after, name).state_dict()[key], value, rtol=0, atol=0)
    assert not torch.equal(after.study.out.weight, before.study.out.weight)
    assert set(package.operating_points["triage"]) == {"any", *detect.CLASSES}
    log = json.loads((tmp_path / "out" / "training.json").read_text())
    assert log["started_from"]["steps"] == 7 and log["study"]["cases"] == len(stored)


def test_weights_that_are_not_the_manifests_are_refused(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    bundle.load(tmp_path, torch.device("cpu"))
    weights = tmp_path / bundle.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00\x01")
    with pytest.raises(bundle.WeightsMismatchError):
        bundle.load(tmp_path, torch.device("cpu"))


def test_weights_of_an_earlier_release_are_refused_before_anything_runs(folder, tmp_path):
    """A site may have kept them in a folder of its own: what they say nothing of would fail in the middle of a head."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    manifest = yaml.safe_load((tmp_path / bundle.MANIFEST).read_text())
    for key in ("wide_probability", "vertex_brain_hu"):
        del manifest["postprocessing"][key]
    (tmp_path / bundle.MANIFEST).write_text(yaml.safe_dump(manifest))
    with pytest.raises(bundle.WeightsMismatchError, match="vertex_brain_hu, wide_probability"):
        bundle.load(tmp_path, torch.device("cpu"))


def test_the_shipped_package_is_whole():
    folder = Path(bundle.__file__).parent
    package, _ = bundle.load(folder, torch.device("cpu"))
    manifest = yaml.safe_load((folder / bundle.MANIFEST).read_text())
    assert package.sha256 == manifest["files"][bundle.WEIGHTS]["sha256"]
    assert (folder / bundle.WEIGHTS).stat().st_size < 20e6
    for point in ("triage", "second-read"):
        assert set(package.operating_points[point]) == {"any", *detect.CLASSES}


def test_the_mirrored_input_is_the_input_of_the_mirrored_slice():
    generator = torch.Generator().manual_seed(1)
    hu = torch.randn(2, 3, 32, 32, generator=generator) * 100
    depth = torch.randint(0, 200, (2, 32, 32), generator=generator, dtype=torch.uint8)
    height, gap = torch.tensor([10.0, 60.0]), torch.tensor([5.0, 5.0])
    turned = channels(hu.roll(-1, 3).flip(3), depth.roll(-1, 2).flip(2), height, gap)
    torch.testing.assert_close(mirror(channels(hu, depth, height, gap)), turned)


def toy_head(slices=14, size=120, pixel=2.0, step=8.0):
    """An ellipsoid of brain in a skull, with a bright spot on the left, in the usual view."""
    rows = (np.arange(size) - size / 2) * pixel
    z = np.arange(slices)[:, None, None] * step - 20.0
    grow = np.sqrt(np.clip(1.0 - ((60.0 - z) / 90.0) ** 2, 0.0, 1.0))
    r = np.hypot(rows[None, :, None] / 90.0, rows[None, None, :] / 70.0) / np.maximum(grow, 1e-3)
    hu = np.select([r < 0.9, r < 1.0], [32.0, 1200.0], -1000.0).astype(np.float32)
    spot = np.hypot(rows[None, :, None], rows[None, None, :] - 30.0) < 14.0
    hu[6:8][np.broadcast_to(spot, (2, size, size))] = 70.0
    positions = np.zeros((slices, 3))
    positions[:, 0], positions[:, 1], positions[:, 2] = rows[0], rows[0], 500.0 - np.arange(slices) * step
    return hu, (pixel, pixel), positions, np.array([1.0, 0, 0, 0, 1.0, 0])


def turned_head(kind):
    """The same patient, stored otherwise; and how a result is brought back to the usual view."""
    hu, pixel, positions, _ = toy_head()
    reach = (hu.shape[1] - 1) * pixel[0]
    if kind == "mirrored":
        moved = positions + np.array([reach, 0, 0])
        return hu[:, :, ::-1].copy(), moved, np.array([-1.0, 0, 0, 0, 1.0, 0]), lambda a: a[:, :, ::-1]
    if kind == "prone":
        moved = positions + np.array([reach, reach, 0])
        return hu[:, ::-1, ::-1].copy(), moved, np.array([-1.0, 0, 0, 0, -1.0, 0]), lambda a: a[:, ::-1, ::-1]
    if kind == "transposed":
        return hu.swapaxes(1, 2).copy(), positions, np.array([0, 1.0, 0, 1.0, 0, 0]), lambda a: a.swapaxes(1, 2)
    return hu[::-1].copy(), positions[::-1].copy(), np.array([1.0, 0, 0, 0, 1.0, 0]), lambda a: a[::-1]


@pytest.mark.parametrize("kind", ["mirrored", "prone", "transposed", "feet first"])
def test_a_patient_who_lies_otherwise_gets_the_same_result(folder, kind):
    detector = detect.load(folder, torch.device("cpu"))
    hu, pixel, positions, orientation = toy_head()
    usual = detector.detect(hu, pixel, positions, orientation)
    stored, moved, axes, back = turned_head(kind)
    other = detector.detect(stored, pixel, moved, axes)
    assert other.labels.shape == stored.shape
    # the middle of a flipped box may fall between pixels: half a work pixel
    difference = np.abs(back(other.probability).astype(np.float32) - usual.probability.astype(np.float32))
    assert np.mean(difference) < 0.02
    assert np.mean(back(other.cavity) != usual.cavity) < 0.02
    assert other.study["any"] == pytest.approx(usual.study["any"], abs=0.05)


def test_thin_slices_are_averaged_and_results_written_to_each():
    hu, pixel, positions, orientation = toy_head(slices=100, step=1.0)
    placed = placing.place(hu, pixel, positions, orientation)
    assert len(placed.values) == 34
    assert placed.thickness_mm.sum() == pytest.approx(100.0)
    numbers = np.arange(34, dtype=np.float32)[:, None, None] * np.ones((1, 2, 2), np.float32)
    assert placed.restore(numbers)[:, 0, 0].tolist() == [k // 3 for k in range(100)]


def test_air_is_no_head(folder):
    _, pixel, positions, orientation = toy_head()
    found = detect.load(folder, torch.device("cpu")).detect(
        np.full((14, 64, 64), -1000.0, np.float32), pixel, positions, orientation
    )
    assert not found.labels.any()
    assert found.study["any"] == 0.0
    assert found.confidence_note


@pytest.mark.parametrize(("brighter_hu", "assessed"), [(0.0, True), (50.0, False)])
def test_what_is_no_brain_is_not_assessed(folder, monkeypatch, brighter_hu, assessed):
    """A body with dye holds what looks like a cavity; its scores say nothing and must not flag it."""
    detector = detect.load(folder, torch.device("cpu"))
    hu, pixel, positions, orientation = toy_head()

    def examine(hu, _depth, _thickness, _progress):
        content = ((hu > -100.0) & (hu < 300.0)).astype(np.float32)
        work = detect.Work(
            hu=hu,
            classes=np.full((5, *hu.shape), 0.15, np.float32),
            cavity=content,
            ventricle=0 * content,
            left=0 * content,
            slices=np.full((len(hu), 6), 9.0, np.float32),
        )
        return work, np.ones(hu.shape, np.uint8), np.full(6, 9.0, np.float32)

    monkeypatch.setattr(detector, "examine", examine)
    found = detector.detect(hu + brighter_hu, pixel, positions, orientation)
    assert (found.study["any"] > 0.9) == found.labels.any() == found.cavity.any() == assessed
    assert assessed or found.confidence_note == "not assessed: the brain's median is 82 HU"


def lesion_inputs():
    classes = np.zeros((5, 8, *WORK_SIZE), np.float32)
    hu = np.full((8, *WORK_SIZE), 30.0, np.float32)
    fields = Fields(
        hu=hu,
        near=np.full(hu.shape, 20.0, np.float32),
        ventricle=np.zeros_like(hu),
        depth_mm=40.0 + 5.0 * np.arange(8),
        thickness_mm=np.full(8, 5.0),
    )
    return classes, fields


def test_small_unsure_lesions_are_dropped_and_large_ones_kept():
    classes, fields = lesion_inputs()
    classes[3, 4, 40:43, 40:43] = 0.7
    classes[3, 2:6, 80:95, 80:95] = 0.8
    labels = postprocess.lesions(classes, fields, bundle.POSTPROCESSING)
    assert np.unique(labels).tolist() == [0, 4]
    assert not labels[4, 40:43, 40:43].any()
    assert labels[4, 85, 85] == 4


def test_intraventricular_blood_needs_a_ventricle():
    classes, fields = lesion_inputs()
    classes[4, 2:6, 80:95, 80:95] = 0.6
    classes[3, 2:6, 80:95, 80:95] = 0.3
    assert postprocess.lesions(classes, fields, bundle.POSTPROCESSING).max() == 4
    fields.ventricle[:] = 0.9
    assert postprocess.lesions(classes, fields, bundle.POSTPROCESSING).max() == 5


def test_blood_beside_slanted_bone_needs_asymmetry():
    classes, fields = lesion_inputs()
    classes[1, 2, 40:70, 30:50] = 0.8
    fields.hu[1, 40:70, 30:50] = 900.0
    fields.hu[2] = 60.0
    assert not postprocess.lesions(classes, fields, bundle.POSTPROCESSING).any()
    fields.hu[2] = 30.0
    fields.hu[2, 40:70, 30:50] = 65.0
    assert postprocess.lesions(classes, fields, bundle.POSTPROCESSING).any()


def test_bone_across_the_midline_hides_no_blood():
    """In a head that lies askew much of what is opposite a bleed is skull, which is brighter than any blood."""
    classes, fields = lesion_inputs()
    classes[1, 2, 40:70, 30:50] = 0.8
    fields.hu[1, 40:70, 30:50] = 900.0
    fields.hu[2, 40:70, 30:50] = 65.0
    fields.hu[2, 40:70, 115:130] = 900.0
    assert postprocess.lesions(classes, fields, bundle.POSTPROCESSING).any()


@pytest.mark.parametrize(("blood_hu", "kept"), [(65.0, True), (45.0, False)])
def test_with_only_bone_across_blood_is_compared_with_the_brain_of_its_slices(blood_hu, kept):
    """A bright rim is no blood, and a hematoma is none the less for lying opposite the skull."""
    classes, fields = lesion_inputs()
    classes[1, 2, 40:70, 30:50] = 0.8
    fields.hu[1, 40:70, 30:50] = 900.0
    fields.hu[2, 40:70, 30:50] = blood_hu
    fields.hu[2, 40:70, 105:135] = 900.0
    assert postprocess.lesions(classes, fields, bundle.POSTPROCESSING).any() == kept
    fields.near[2] = 5.0
    assert not postprocess.lesions(classes, fields, bundle.POSTPROCESSING).any(), "nothing to compare with"


def test_thin_blood_goes_on_where_only_its_own_class_is_likely():
    classes, fields = lesion_inputs()
    classes[2, 3, 80:95, 80:95] = 0.8
    classes[2, 3, 95:105, 80:95] = 0.15
    classes[2, 3, 120:130, 80:95] = 0.15
    rules = bundle.POSTPROCESSING | {"wide_probability": {"subarachnoid": 0.1}}
    labels = postprocess.lesions(classes, fields, rules)
    assert (labels[3, 80:105, 80:95] == 3).all()
    assert not labels[3, 120:130].any(), "nothing sure to go on from"
    classes[[2, 3]] = classes[[3, 2]]
    assert not postprocess.lesions(classes, fields, rules)[3, 95:105].any(), "other classes end where they did"


def test_pixels_that_agree_on_another_class_are_a_lesion_of_their_own():
    classes, fields = lesion_inputs()
    classes[3, 2:6, 80:95, 80:95], classes[2, 2:6, 80:95, 80:95] = 0.7, 0.2
    classes[3, 2:6, 60:80, 80:95], classes[2, 2:6, 60:80, 80:95] = 0.1, 0.8
    labels = postprocess.lesions(classes, fields, bundle.POSTPROCESSING)
    assert np.unique(labels).tolist() == [0, 3, 4]
    assert (labels[4, 60:80, 80:95] == 3).all() and (labels[4, 80:95, 80:95] == 4).all()


def test_a_clot_that_broke_into_a_ventricle_is_two_lesions():
    classes, fields = lesion_inputs()
    classes[3, 2:6, 80:95, 80:95] = 0.9
    classes[3, 2:6, 80:95, 95:110], classes[4, 2:6, 80:95, 95:110] = 0.2, 0.7
    fields.ventricle[2:6, 80:95, 95:110] = 0.9
    assert np.unique(postprocess.lesions(classes, fields, bundle.POSTPROCESSING)).tolist() == [0, 4, 5]


def hemispheres(shift_mm):
    rows, columns = (np.arange(n) for n in WORK_SIZE)
    cavity = np.hypot((rows[:, None] - 88) / 64, (columns[None] - 80) / 52) < 1
    bend = shift_mm / 1.25 * np.clip(1 - ((rows - 88) / 45) ** 2, 0, 1)
    left = (columns[None] > 79.5 + bend[:, None]).astype(np.float32)
    count = 8
    return np.repeat(left[None], count, 0), np.repeat(cavity[None], count, 0), 50 + 5.0 * np.arange(count)


@pytest.mark.parametrize("shift_mm", [0.0, 4.0, -9.0])
def test_midline_shift_is_the_bend_of_the_border(shift_mm):
    found, note = midline.shift_mm(*hemispheres(shift_mm))
    assert found == pytest.approx(abs(shift_mm), abs=1.0)
    assert note


def test_a_few_wild_slices_do_not_make_a_midline_shift():
    left, cavity, depth = hemispheres(0.0)
    bent, _, _ = hemispheres(15.0)
    left[2], left[4] = bent[2], bent[4]
    found, _ = midline.shift_mm(left, cavity, depth)
    assert found is None or found < 1.0


def test_midline_shift_is_not_given_without_a_clear_border():
    left, cavity, depth = hemispheres(5.0)
    found, note = midline.shift_mm(0.5 + 0.1 * (left - 0.5), cavity, depth)
    assert found is None
    assert "clear border" in note
