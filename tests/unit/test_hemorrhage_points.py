"""Operating points: sensitive, but not at the price of flagging everybody; and the rim that is no blood."""

import numpy as np

from models.hemorrhage import study
from models.hemorrhage.data import rim


def test_triage_finds_what_can_be_told_apart():
    negative, positive = np.linspace(0.02, 0.2, 50), np.linspace(0.3, 1.0, 50)
    probability, truth = np.concatenate((negative, positive)), np.arange(100) >= 50
    points = study._operating_points(probability, truth)
    assert 0.2 < points["triage"] <= 0.33
    assert (positive >= points["triage"]).mean() >= study.TRIAGE_SENSITIVITY - 0.02
    assert points["second-read"] >= 0.5


def test_blood_that_nobody_can_see_does_not_flag_every_head():
    """Some positives score like negatives: below them lie the negatives, and a threshold there finds nothing more."""
    random = np.random.default_rng(2)
    negative = random.uniform(0.05, 0.2, 200)
    positive = np.concatenate((random.uniform(0.05, 0.2, 20), random.uniform(0.8, 1.0, 180)))
    probability, truth = np.concatenate((negative, positive)), np.arange(400) >= 200
    threshold = study._operating_points(probability, truth)["triage"]
    assert (negative < threshold).mean() >= study.TRIAGE_SPECIFICITY - 0.005
    assert (positive >= threshold).mean() >= 0.89


def test_a_rim_is_brightest_at_the_bone_and_differs_between_sides():
    rows, columns = np.mgrid[-88:88, -80:80]
    mm = np.clip(70.0 - np.hypot(rows, columns), 0.0, 60.0)
    depth = np.tile((mm * 4).astype(np.uint8), (3, 1, 1))
    random, near, far, sides = np.random.default_rng(0), [], [], []
    for _ in range(40):
        made = rim(depth, random)
        assert made.dtype == np.float32 and made.min() >= 0.0 and made.max() < 130.0
        near.append(made[1][(mm >= 2) & (mm < 3)].mean())
        far.append(made[1][(mm >= 20) & (mm < 30)].mean())
        left, right = (made[1][(mm >= 2) & (mm < 5) & half].mean() for half in (columns < 0, columns >= 0))
        sides.append(abs(left - right))
    assert np.mean(near) > 3.0 and np.mean(far) < 0.5
    assert np.mean(sides) > 1.0
