"""The procedural heart: what its formulas promise is what its pixels show."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.cardiac import acquire, display, simulate
from models.cardiac.heart import MIX, draw_heart
from models.cardiac.scene import OPPOSED, draw_scene, paint

GOLDEN = Path(__file__).parents[1] / "golden" / "cardiac_simulator.json"
SEEDS = [(kind, seed) for kind in MIX for seed in range(6)]


def figures(kind: str, seed: int) -> list[float]:
    """What the regression fixture keeps of one heart: volumes at ED and ES [mL], and the mean of one picture."""
    heart = draw_heart(np.random.default_rng([seed, 11]), kind)
    volumes = [f(t) for f in (heart.lv_volume_ml, heart.rv_volume_ml, heart.myocardium_volume_ml) for t in (0.0, 1.0)]
    drawn = simulate.draw_slice(np.random.default_rng([seed, list(MIX).index(kind)]), 48, 3.0)
    return [round(v, 2) for v in volumes] + [round(float(drawn.image.mean()), 3)]


@pytest.mark.parametrize("t", [0.0, 1.0])
@pytest.mark.parametrize("kind", list(MIX))
def test_label_volume_is_the_integral_of_the_formula(kind: str, t: float) -> None:
    scene = draw_scene(np.random.default_rng(3), kind)
    plane = acquire.plane_of(acquire.upright(), (176, 176), 1.2)
    counts = np.zeros(4)
    length = scene.heart.length_at(t)
    for height in (np.arange(-4, 25) + 0.5) * 0.04 * length:  # the tip and the base lie between two planes
        counts += np.bincount(simulate.labels_of(paint(scene, plane, (height,), (t,))).ravel(), minlength=4)
    volume = counts * 1.2**2 * 0.04 * length / 1000.0
    assert volume[simulate.LV] == pytest.approx(scene.heart.lv_volume_ml(t), rel=0.02)
    assert volume[simulate.MYO] == pytest.approx(scene.heart.myocardium_volume_ml(t), rel=0.04)
    assert volume[simulate.RV] == pytest.approx(scene.heart.rv_volume_ml(t), rel=0.04)


def test_wall_keeps_its_volume_while_the_heart_contracts() -> None:
    for kind in MIX:
        heart = draw_heart(np.random.default_rng(5), kind)
        assert heart.myocardium_volume_ml(1.0) == pytest.approx(heart.myocardium_volume_ml(0.0), rel=0.001)
        assert heart.lv_volume_ml(1.0) < heart.lv_volume_ml(0.0)


def test_walls_without_load_are_as_thick_as_those_that_were_measured() -> None:
    hearts = [draw_heart(np.random.default_rng([k, 13]), "normal") for k in range(200)]
    walls = [float((one.epicardium(0.5, 0.0) - one.endocardium(0.5, 0.0)).mean()) for one in hearts]
    assert 5.3 <= np.mean(walls) <= 6.5, "women 5.3 mm, men 6.3 mm (Kawel 2012)"
    assert 0.9 <= np.std(walls) <= 1.5, "0.9 and 1.1 mm within each sex"


def test_fat_opposed_to_water_leaves_a_dark_line_where_they_meet() -> None:
    scenes = [draw_scene(np.random.default_rng([k, 17])) for k in range(60)]
    assert np.mean([one.tissue["fat"] < 0.0 for one in scenes]) == pytest.approx(OPPOSED, abs=0.15)
    scanner = replace(acquire.draw_scanner(np.random.default_rng(0)), shading=np.zeros((5, 5)), band=(0.0, 0.0, 0.0))
    scanner = replace(scanner, blur=0.3, sampled=(1.0, 1.0), ghost=0.0, noise=1e-4, gamma=1.0)
    image = np.full((32, 32), 0.3, np.float32)
    image[:, 16], image[:, 17:] = 0.75 * 0.3 - 0.25 * 0.9, -0.9
    seen = acquire.expose(image, scanner, 1.5, np.random.default_rng(1))[16]
    assert seen[16] < 0.1 < seen[10] < seen[22], "muscle, the line, fat"


def test_seeds_still_draw_the_hearts_they_drew() -> None:
    golden = json.loads(GOLDEN.read_text())
    for kind, seed in SEEDS:
        assert figures(kind, seed) == pytest.approx(golden[f"{kind}-{seed}"], abs=0.02)


def test_every_class_and_position_is_drawn() -> None:
    rng = np.random.default_rng(0)
    drawn = [simulate.draw_slice(rng, 48, 3.0) for _ in range(160)]
    assert {one.position for one in drawn} == set(range(5))
    assert set(np.unique(np.stack([one.labels for one in drawn]))) == set(range(4))
    for one in drawn:
        assert np.isfinite(one.image).all() and one.image.min() >= 0.0 and one.image.max() <= display.TOP
        if one.position in (simulate.ABOVE,):
            assert not (one.labels[20:28, 20:28] == simulate.MYO).all()


def test_stack_contracts_and_its_base_descends() -> None:
    stack = simulate.simulate_stack(simulate.TEST_SEED, phases=6, pixels=96, pixel_mm=2.4)
    volume = (stack.labels == simulate.LV).sum((1, 2, 3))
    assert volume.argmax() == 0
    assert stack.times.argmax() == volume.argmin()
    above = (stack.positions == simulate.ABOVE).sum(1)
    assert above[stack.times.argmax()] >= above[0]


def test_cycle_begins_at_end_diastole_and_reaches_end_systole_once() -> None:
    times = simulate.times_of(25)
    assert times[0] == 0.0 and times.max() > 0.98 and times.min() >= 0.0
    assert (np.diff(times[: times.argmax()]) > 0).all() and (np.diff(times[times.argmax() :]) <= 0).all()
