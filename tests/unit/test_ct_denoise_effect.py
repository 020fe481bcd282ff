"""Denoising must not move what a detector finds: the measurement itself, on one head."""

import numpy as np
import pytest

from models.ct_denoise import bars, effect, evaluate
from models.ct_denoise.bundle import load
from models.hemorrhage import cases
from models.hemorrhage.cases import Study

HERE = effect.Path(evaluate.__file__).parent


def ball(bleeds: bool) -> Study:
    """A skull of 75 mm with brain in it, on planes of 5 mm; with a dense ball of 14 mm if it bleeds."""
    z, y, x = np.mgrid[0:24, 0:128, 0:128].astype(np.float32)
    place = ((z - 12.0) * 5.0, (y - 64.0) * 1.5, (x - 64.0) * 1.5)
    from_centre = np.sqrt(sum(axis**2 for axis in place))
    hu = np.where(from_centre < 75.0, 30.0, np.where(from_centre < 82.0, 1200.0, -1000.0))
    blood = (np.sqrt((place[0]) ** 2 + (place[1] - 20.0) ** 2 + (place[2] - 20.0) ** 2) < 14.0) & bleeds
    hu = np.where(blood, 68.0, hu) + np.random.default_rng(1).normal(0.0, 4.0, hu.shape)
    return Study(
        name="ball",
        hu=hu.astype(np.float32),
        pixel_spacing=(1.5, 1.5),
        positions=np.array([(-96.0, -96.0, -5.0 * k) for k in range(24)]),
        orientation=np.array([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]),
    )


def test_rows_compare_the_same_head_before_and_after(tmp_path, monkeypatch):
    monkeypatch.setattr(effect, "_studies", lambda *_: iter([ball(False), ball(True)]))
    rows = effect.on_hemorrhage(load(HERE), tmp_path, tmp_path)
    assert [row["name"] for row in rows] == ["ball", "ball"]
    for row in rows:
        assert row["shift_of_probability"] == pytest.approx(row["probability_denoised"] - row["probability"])
        assert row["shift_of_volume"] == pytest.approx((row["ml_denoised"] - row["ml"]) / max(row["ml"], 1.0))
    assert rows[1]["ml"] > 5.0, "the ball of 11 mL was not seen, so nothing was compared"


def test_denoising_for_the_comparison_is_the_pipelines(monkeypatch):
    study = ball(True)
    denoised = effect._denoised(load(HERE), study)
    flat = np.s_[10:14, 60:68, 40:50]
    assert denoised.hu[flat].std() < 0.8 * study.hu[flat].std()
    assert abs(denoised.hu[flat].mean() - study.hu[flat].mean()) < 0.5


def test_a_shift_beyond_the_bar_is_called_missed():
    rows = [
        {"shift_of_probability": 0.01, "shift_of_volume": -0.2},
        {"shift_of_probability": -0.04, "shift_of_volume": 0.0},
    ]
    met = {
        row["bar"].split(" of a hemorrhage's ")[1].split(" ")[0]: row["met"]
        for row in bars.verdicts({"hemorrhage": rows})
    }
    assert met == {"probability": True, "volume": False}


def test_without_data_only_simulated_heads_are_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(cases, "synthetic", lambda count, _cache: iter([f"head {k}" for k in range(count)]))
    assert list(effect._studies(tmp_path / "none", tmp_path, 3)) == ["head 0", "head 1", "head 2"]
