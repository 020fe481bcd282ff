"""Every anatomical metric is violated by what it names, and by nothing in a fitted slice."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from models.cardiac import fit, shapes

MM = (1.4, 1.4)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Many small operations: threads that wait for each other take most of the time on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def disc(row: float, column: float, radius: float, size: int = 80) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    return np.hypot(y - row, x - column) < radius


def heart() -> np.ndarray:
    """A slice that violates nothing."""
    out = np.zeros((80, 80), np.uint8)
    out[disc(40, 34, 20)] = shapes.RV
    out[disc(40, 45, 19)] = shapes.MYO
    out[disc(40, 45, 13)] = shapes.LV
    return out


def test_a_whole_heart_violates_nothing() -> None:
    assert shapes.violations(heart(), MM) == ()
    assert shapes.violations(np.zeros((20, 20), np.uint8), MM) == ()
    assert tuple(shapes.metrics(heart(), MM)) == shapes.METRICS


def _with(name: str) -> np.ndarray:
    out = heart()
    if name == "holes_in_lv":
        out[disc(40, 45, 2)] = shapes.MYO
    elif name == "holes_in_rv":
        out[disc(40, 20, 2)] = 0
    elif name == "holes_in_myo":
        out[40, 60] = 0
    elif name == "parts_of_lv":
        out[70:72, 70:72] = shapes.LV
    elif name == "parts_of_rv":
        out[5:8, 70:73] = shapes.RV
    elif name == "parts_of_myo":
        out[5:8, 5:8] = shapes.MYO
    elif name == "gap_between_lv_and_myo":
        out[disc(40, 45, 13) & ~disc(40, 44, 13)] = 0
    elif name == "gap_between_rv_and_myo":
        out[39:42, 26] = 0
    elif name == "rv_away_from_myo":
        out[out == shapes.RV] = 0
        out[disc(40, 8, 6)] = shapes.RV
    elif name == "lv_touches_rv":
        out[39:42, 24:34] = shapes.RV
    elif name == "lv_touches_background":
        out[39:42, 56:70] = 0
    elif name == "lv_dent":
        out[disc(28, 45, 8) & (out == shapes.LV)] = shapes.MYO
    elif name == "rv_dent":
        out[disc(40, 44, 30) & (out == 0) & (np.arange(80)[None, :] < 64)] = shapes.RV
    elif name == "myo_dent":
        out[disc(61, 45, 6)] = 0
    elif name == "lv_not_round":
        out[out == shapes.LV] = shapes.MYO
        out[40, 31:59] = shapes.LV
    else:
        out[:] = 0
        out[40, 5:75] = shapes.MYO
    return out


@pytest.mark.parametrize("name", shapes.METRICS)
def test_each_metric_finds_what_it_names(name: str) -> None:
    assert name in shapes.violations(_with(name), MM)


def test_cleaning_removes_specks_and_fills_the_cavity() -> None:
    out = heart()
    out[disc(40, 45, 2)] = shapes.MYO
    out[5:8, 5:8] = shapes.MYO
    out[70:72, 3:5] = shapes.RV
    assert shapes.violations(out, MM) != ()
    assert shapes.violations(shapes.clean(out), MM) == ()


def test_fitted_slices_violate_nothing_however_bad_the_probabilities() -> None:
    torch.manual_seed(0)
    truth = torch.nn.functional.one_hot(torch.from_numpy(heart().astype(int)), 4).movedim(-1, 0).float()
    fields = []
    for name in ("lv_touches_rv", "lv_touches_background", "lv_dent", "myo_dent"):
        bad = torch.nn.functional.one_hot(torch.from_numpy(_with(name).astype(int)), 4).movedim(-1, 0).float()
        fields.append((0.8 * bad + 0.2 * torch.rand(4, 80, 80)).softmax(0) if name == "myo_dent" else bad)
    outlines = fit.fit(torch.stack([truth, *fields]), MM[0])
    for one in outlines:
        labels = one.labels((80, 80), (1.0, 1.0), (0.0, 0.0))
        assert shapes.violations(labels, MM) == ()
    first = outlines[0].labels((80, 80), (1.0, 1.0), (0.0, 0.0))
    for c, least in ((shapes.LV, 0.95), (shapes.MYO, 0.88), (shapes.RV, 0.75)):
        a, b = first == c, heart() == c
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > least


def test_a_right_ventricle_that_wraps_the_heart_is_cut_back() -> None:
    out = _with("rv_dent")
    cut = shapes.trim_rv(out, MM)
    assert shapes.violations(cut, MM) == ()
    assert 0 < (cut == shapes.RV).sum() < (out == shapes.RV).sum()
    assert ((cut >= shapes.MYO) == (out >= shapes.MYO)).all()


def test_a_hull_of_a_disc_is_the_disc() -> None:
    mask = disc(30.3, 29.7, 11.4)
    assert (shapes.hull(mask) == mask).all()
    assert shapes.dent_mm(mask, MM) == 0.0
