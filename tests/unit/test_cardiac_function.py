"""From probabilities to phases, slices and indices."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from models.cardiac import bundle, cycle, grid, indices, localise, losses, segment, shapes, simulate, study
from models.cardiac.net import Logits, UNet
from tests import cardiac_stacks


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Many small operations: threads that wait for each other take most of the time on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_what_beats_is_found_and_a_still_image_yields_its_middle() -> None:
    y, x = np.mgrid[:96, :96]
    beat = 1.0 + np.cos(2 * np.pi * np.arange(8) / 8)
    images = (beat[:, None, None, None] * (np.hypot(y - 40, x - 60) < 8)).astype(np.float32)
    assert localise.centre(images, (2.0, 2.0)) == pytest.approx((40.0, 60.0), abs=1.5)
    assert localise.centre(np.ones_like(images), (2.0, 2.0)) == pytest.approx((47.5, 47.5))


def bright_is_cavity(x: torch.Tensor) -> Logits:
    """A network that calls what is brightest the left cavity."""
    cavity = torch.where(x > 0.9, 20.0, -20.0)
    return Logits(
        torch.cat((torch.zeros_like(x), torch.full_like(x, -20.0).repeat(1, 2, 1, 1), cavity), 1), x[:, 0, :5, 0]
    )


def test_views_look_at_the_cavity_and_not_at_what_moves_most() -> None:
    y, x = np.mgrid[:96, :96]
    beat = 0.5 + 0.5 * np.cos(2 * np.pi * np.arange(8) / 8)
    images = 10.0 * (np.hypot(y - 40, x - 62) < 10) + beat[:, None, None] * (np.hypot(y - 50, x - 40) < 8)
    stack = images[:, None].astype(np.float32)
    assert localise.centre(stack, (2.0, 2.0)) == pytest.approx((50.0, 40.0), abs=1.5)
    views = tuple(bundle.View(net=bright_is_cavity, pixels=64, pixel_mm=mm) for mm in (3.0, 1.5))
    seen = segment.Segmenter(views, torch.device("cpu")).look(stack, (2.0, 2.0))
    assert seen.centre == pytest.approx((40.0, 62.0), abs=0.5)
    assert (seen.mean[0, 0, shapes.LV] > 0.5).sum() * 1.5**2 == pytest.approx(np.pi * 20**2, rel=0.1)
    still = np.ones((8, 1, 96, 96), np.float32)
    assert segment.Segmenter(views, torch.device("cpu")).look(still, (2.0, 2.0)).centre == pytest.approx((47.5, 47.5))


def test_what_only_the_wide_view_sees_is_its_word_alone() -> None:
    def right_ventricle(x: torch.Tensor) -> Logits:
        return Logits(
            torch.tensor([0.0, 9.0, 0.0, 0.0]).view(1, 4, 1, 1).expand(len(x), 4, *x.shape[2:]), x[:, 0, :5, 0]
        )

    views = tuple(bundle.View(net=right_ventricle, pixels=n, pixel_mm=2.0) for n in (96, 48))
    seen = segment.Segmenter(views, torch.device("cpu")).look(np.ones((2, 1, 96, 96), np.float32), (2.0, 2.0))
    assert seen.mean[:, :, shapes.RV].min() > 0.99


def test_resampling_keeps_place_and_mean() -> None:
    axis = np.arange(60) * 1.4 - 30.0
    source = torch.from_numpy(np.exp(-((axis[:, None] - 5) ** 2 + (axis[None] + 7) ** 2) / 200.0).astype(np.float32))
    places = grid.Grid(pixels=24, pixel_mm=2.5).places
    through = grid.weights(places, axis)
    out = grid.resample(source, through, through)
    expected = np.exp(-((places[:, None] - 5) ** 2 + (places[None] + 7) ** 2) / 200.0)
    assert np.abs(out.numpy() - expected).max() < 0.03
    assert grid.weights(np.array([500.0, 501.0]), axis).sum() == 0.0


def test_likelihood_is_that_of_the_set_of_classes() -> None:
    pixels = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1)
    p = torch.tensor([1.0, 2.0, 3.0, 4.0]).softmax(0)
    known = torch.tensor([losses.UNKNOWN_POSITION])
    for code, classes in ((losses.OUTSIDE, (0, 1)), (losses.NOT_LV, (0, 1, 2)), (3, (3,))):
        parts = losses.terms(Logits(pixels, torch.zeros(1, 5)), torch.full((1, 1, 1), code), known)
        assert float(parts["likelihood"]) == pytest.approx(-np.log(sum(float(p[c]) for c in classes)), rel=1e-5)
        assert float(parts["position"]) == 0.0


def test_end_systole_is_sought_after_end_diastole_around_the_cycle() -> None:
    volume = 100.0 - 40.0 * simulate.times_of(20)
    for shift in (0, 7, 18):
        beat = cycle.find(np.roll(volume, shift))
        assert min((beat.ed - shift) % 20, (shift - beat.ed) % 20) <= 1
        assert abs((beat.es - shift) % 20 - 7) <= 1
    with pytest.raises(cycle.UnsuitableStackError, match="no contraction"):
        cycle.find(np.full(20, 100.0))
    assert cycle.beat_share(volume) == pytest.approx(0.89, abs=0.01)
    flicker = 100.0 + 10.0 * np.random.default_rng(0).normal(size=20)
    with pytest.raises(cycle.UnsuitableStackError, match="once in the cycle"):
        cycle.find(flicker)


def test_slices_count_with_enough_ring_and_neither_a_slice_nor_a_phase_breaks_the_run() -> None:
    y, x = np.mgrid[:48, :48]
    r = np.hypot(y - 24, x - 24)
    one = np.where(r < 10, shapes.LV, np.where(r < 14, shapes.MYO, 0)).astype(np.uint8)
    assert cycle.ring(one) == 1.0
    third = np.where((one == shapes.MYO) & (x > 20), 0, one).astype(np.uint8)
    assert cycle.ring(third) < 0.5
    open_ = np.where((one == shapes.MYO) & (x > 14), 0, one).astype(np.uint8)
    small = np.where(r < 5, shapes.LV, np.where(r < 9, shapes.MYO, 0)).astype(np.uint8)
    empty = np.zeros_like(one)
    stack = np.stack([small, one, one, open_, one, one, small, empty, empty, one])
    phases = np.stack([stack] * 8)
    assert cycle.counted(phases, 2.0)[3].tolist() == [True] * 6 + [False] * 4
    phases[3, 5] = 0
    assert cycle.counted(phases, 2.0)[3].tolist() == [True] * 6 + [False] * 4
    with pytest.raises(cycle.UnsuitableStackError, match="not a short-axis"):
        cycle.require_short_axis(np.stack([one, one, open_, one, empty]), 2.0)
    cycle.require_short_axis(np.stack([one] * 3), 2.0)


def test_indices_use_true_steps() -> None:
    assert indices.widths(np.array([0.0, 10.0, 20.0])).tolist() == [10.0, 10.0, 10.0]
    assert indices.widths(np.array([0.0, -8.0, -24.0])).tolist() == [8.0, 12.0, 16.0]
    labels = np.full((3, 10, 10), shapes.LV, np.uint8)
    assert indices.volumes_ml(labels, 4.0, np.array([10.0, 10.0, 10.0]))[shapes.LV] == pytest.approx(12.0)
    found = indices.function(np.array([0, 160.0, 100.0, 150.0]), np.array([0, 80.0, 100.0, 60.0]))
    assert (found.lv_ef, found.rv_ef, found.lv_mass, found.lv_sv) == (60.0, 50.0, 105.0, 90.0)
    assert indices.body_surface_m2(1.8, 80.0) == pytest.approx(2.0)
    assert indices.body_surface_m2(18.0, 80.0) is None


def test_a_study_measures_what_the_labels_hold() -> None:
    stack = cardiac_stacks.stack()
    found = study.judge(cardiac_stacks.seen_of(stack), np.arange(stack.labels.shape[1]) * stack.step_mm)
    assert (found.ed.phase, found.es.phase) == (0, int(stack.times.argmax()))
    truth = [
        (stack.labels[p] == shapes.LV).sum() * stack.pixel_mm**2 * stack.step_mm / 1000 for p in (0, found.es.phase)
    ]
    assert found.function.lv_edv == pytest.approx(truth[0], rel=0.08)
    assert found.function.lv_esv == pytest.approx(truth[1], rel=0.1)
    assert found.base_last
    low, high = found.intervals["lv_ef"]
    assert low < found.function.lv_ef < high
    floors = {"esv": study.VOLUME_ERROR, "sv": study.STROKE_ERROR, "mass": study.MASS_ERROR}
    for name, least in (*((f"lv_{key}", value) for key, value in floors.items()), ("rv_ef", study.RV_ERROR)):
        value, (below, above) = getattr(found.function, name), found.intervals[name]
        assert above - value >= 0.999 * study.COVERAGE * least * value and below < value
    assert not any(found.ed.after.values()) and not any(found.es.after.values())
    assert found.ed.labels.shape == stack.labels.shape[1:]


def test_a_package_is_refused_when_its_weights_are_not_its_own(tmp_path: Path) -> None:
    net = UNet((8, 8, 8))
    members = {"only": {"arguments": {"widths": [8, 8, 8]}, "views": bundle.views_of(32, 4.0)}}
    bundle.save({"only": net.state_dict()}, {"members": members}, tmp_path)
    package, segmenter = segment.load(tmp_path, torch.device("cpu"))
    assert package.name == "cardiac-cine" and len(segmenter.views) == 2
    images = np.random.default_rng(0).random((2, 3, 40, 44)).astype(np.float32)
    seen = segmenter.look(images, (3.0, 3.0))
    assert seen.mean.shape == (2, 3, 4, segment.WORK.pixels, segment.WORK.pixels)
    assert np.abs(seen.mean.sum(2) - 1.0).max() < 1e-3
    p, corner = seen.native(0)
    assert p.shape[2:] == (40, 44) and corner == (0, 0)
    with (tmp_path / bundle.WEIGHTS).open("ab") as file:
        file.write(b"x")
    with pytest.raises(bundle.WeightsMismatchError):
        segment.load(tmp_path, torch.device("cpu"))
