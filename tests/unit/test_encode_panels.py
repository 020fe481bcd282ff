"""What stands below the key planes of a summary page: every slice of a cine's segmented phases, and a curve."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dicomnode import pipeline as dn
from dicomnode.encode import page, panels
from dicomnode.encode.cine import counted_through
from dicomnode.errors import ResultInvalid
from dicomnode.execute.contract import check_result
from dicomnode.volumes.cine import load_cine
from dicomnode.volumes.series import load
from tests import cine, factories, phantoms

CONTEXT = phantoms.context()
CURVE = dn.Curve(
    title="Volume over the beat",
    x=np.linspace(0.0, 800.0, 9),
    y=100.0 + 40.0 * np.cos(np.linspace(0.0, 2 * np.pi, 9)),
    x_label="ms after the R wave",
    y_label="mL",
    points=((0.0, 141.0, "ED"), (400.0, 61.0, "ES")),
)
#: Of the page: right of the text, below the key planes of this size.
BELOW = np.s_[640:912, 500:1248]


@pytest.fixture(scope="module")
def heart(tmp_path_factory):
    source = load_cine(factories.write_series(tmp_path_factory.mktemp("cine"), cine.one_series(7, 8)))
    return source, counted_through(source, cine.beating(source.series))


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    source = load(factories.write_series(tmp_path_factory.mktemp("ct"), factories.ct_series(n=6)))
    return source, phantoms.bleeding(source.images)


def test_a_series_without_phases_and_curves_has_no_panels(head):
    assert panels.height(*head, 748.0) == 0.0


def test_a_curve_takes_its_place_below_the_planes_of_any_input(head):
    source, result = head
    with_curve = replace(result, curves=(CURVE,))
    assert panels.height(source, with_curve, 748.0) > 100.0
    drawn = page.draw(source, with_curve, CONTEXT)
    line = (drawn[770:905, 545:1240] > 200).all(-1)
    columns = np.flatnonzero(line.any(0))
    assert np.ptp(columns) > 600, "the line reaches from the first value to the last"
    heights = [np.flatnonzero(line[:, at]).mean() for at in (columns[3], columns[len(columns) // 2], columns[-3])]
    assert heights[1] > heights[0] + 40 and heights[1] > heights[2] + 40, "and is lowest in the middle"


def test_every_slice_of_both_phases_is_shown_with_its_outlines(heart):
    source, result = heart
    drawn = page.draw(source, result, CONTEXT)
    without = page.draw(source, replace(result, segmentations=(), key_planes=()), CONTEXT)
    assert panels.height(source, result, 748.0) > 2 * 80
    red, green, blue = (drawn[BELOW][..., k].astype(int) for k in range(3))
    wall = (green > 120) & (green > red + 40) & (green > blue + 40)
    groups = np.split(np.flatnonzero(wall.any(0)), np.flatnonzero(np.diff(np.flatnonzero(wall.any(0))) > 8) + 1)
    assert len(groups) == 7, "a tile a slice"
    assert not np.array_equal(drawn[BELOW], without[BELOW])


def test_each_row_shows_the_planes_of_its_own_phase(heart, monkeypatch):
    shown = []
    drawn = panels.Planes.plane

    def plane(self, axes, key, *, thin=False):
        if thin:
            shown.append(key.plane)
        drawn(self, axes, key, thin=thin)

    monkeypatch.setattr(panels.Planes, "plane", plane)
    page.draw(*heart, CONTEXT)
    ed, es = (one.phase * 7 for one in heart[1].segmentations)
    assert shown == [*range(ed, ed + 7), *range(es, es + 7)] and ed != es


def test_many_slices_are_thinned_out_evenly(heart):
    source, _ = heart

    class Tall:
        slices = 40

    assert panels._shown(Tall()) == [round(index * 3) for index in range(14)]  # type: ignore[arg-type]
    assert panels._shown(source) == list(range(7))


def test_the_same_result_gives_the_same_page(heart):
    source, result = heart
    result = replace(result, curves=(CURVE,))
    np.testing.assert_array_equal(page.draw(source, result, CONTEXT), page.draw(source, result, CONTEXT))


@pytest.mark.parametrize(
    "wrong",
    [
        {"y": CURVE.y[:-1]},
        {"x": CURVE.x[:1], "y": CURVE.y[:1]},
        {"x": CURVE.x[::-1]},
        {"y": np.where(CURVE.x == 0, np.nan, CURVE.y)},
        {"points": ((0.0, np.inf, "ED"),)},
        {"points": ((801.0, 100.0, "beyond the last value"),)},
    ],
)
def test_a_curve_that_cannot_be_drawn_breaks_the_contract(head, wrong):
    source, result = head
    check_result(replace(result, curves=(CURVE,)), source.images)
    with pytest.raises(ResultInvalid, match="curve 'Volume over the beat'"):
        check_result(replace(result, curves=(replace(CURVE, **wrong),)), source.images)
