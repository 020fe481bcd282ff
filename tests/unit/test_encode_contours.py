"""Outlines follow the edges of the pixels they stand for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from dicomnode.encode.contours import MAX_POINTS, area, is_simple, largest_component, outline


def filled(mask):
    """The largest component without its holes, as outside is connected across corners."""
    part = largest_component(mask)
    outside = ndimage.label(~np.pad(part, 1), np.ones((3, 3)))[0] == 1
    return ~outside[1:-1, 1:-1]


def edge_points(part):
    """Points along the outer pixel edges, some per pixel."""
    padded = np.pad(part, 1)
    points = []
    share = np.linspace(0, 1, 5)
    for row, column in np.argwhere(padded):
        y, x = row - 1, column - 1
        if not padded[row - 1, column]:
            points += [(x + t, y) for t in share]
        if not padded[row + 1, column]:
            points += [(x + t, y + 1) for t in share]
        if not padded[row, column - 1]:
            points += [(x, y + t) for t in share]
        if not padded[row, column + 1]:
            points += [(x + 1, y + t) for t in share]
    return np.array(points, float)


def distance_to(points, polygon):
    start, end = polygon[:-1], polygon[1:]
    along = end - start
    length = (along**2).sum(axis=1)
    share = np.clip(((points[:, None] - start) * along).sum(axis=2) / length, 0, 1)
    return np.hypot(*np.moveaxis(points[:, None] - start - share[..., None] * along, 2, 0)).min(axis=1)


def disc(radius, size=None):
    size = size or int(2 * radius + 6)
    y, x = np.indices((size, size)) - (size - 1) / 2
    return x**2 + y**2 <= radius**2


def test_square_lies_on_pixel_edges():
    mask = np.zeros((12, 12), bool)
    mask[3:9, 2:8] = True
    line = outline(mask)
    assert line.dtype == np.float32
    assert (line[0] == line[-1]).all()
    assert abs(area(line) - 36) <= 1  # corners are cut by less than half a pixel
    assert line.min(axis=0).tolist() == [2, 3] and line.max(axis=0).tolist() == [8, 9]


def test_single_pixel_is_its_own_square():
    mask = np.zeros((5, 5), bool)
    mask[4, 0] = True
    assert sorted(map(tuple, outline(mask)[:-1].tolist())) == [(0, 4), (0, 5), (1, 4), (1, 5)]


@pytest.mark.parametrize("radius", [3, 10, 40, 120])
def test_disc_has_its_area_and_few_points(radius):
    line = outline(disc(radius))
    assert abs(area(line) - disc(radius).sum()) / disc(radius).sum() < 0.02 if radius > 3 else True
    assert len(line) <= min(MAX_POINTS, 4 * radius + 9)


def test_only_the_largest_part_is_outlined_and_holes_are_not():
    mask = np.zeros((20, 20), bool)
    mask[2:5, 2:5] = True
    mask[8:18, 8:18] = True
    mask[11:14, 11:14] = False
    line = outline(mask)
    assert line.min() >= 8
    assert abs(area(line) - 100) <= 2


def test_parts_that_touch_at_a_corner_are_two():
    mask = np.zeros((8, 8), bool)
    mask[1:3, 1:3] = mask[3:7, 3:7] = True
    assert outline(mask).min() >= 3


def test_mask_that_fills_the_plane_stays_inside_the_image():
    line = outline(np.ones((7, 9), bool))
    assert line.min(axis=0).tolist() == [0, 0] and line.max(axis=0).tolist() == [9, 7]


def test_many_points_are_thinned_out():
    teeth = np.zeros((60, 900), bool)
    teeth[30:] = True
    teeth[::, ::2] |= np.indices((60, 900))[0][:, ::2] >= 28
    assert len(outline(teeth)) <= MAX_POINTS


def test_empty_mask_is_refused():
    with pytest.raises(ValueError, match="empty"):
        outline(np.zeros((4, 4), bool))


masks = arrays.arrays(bool, st.tuples(st.integers(1, 14), st.integers(1, 14))).filter(np.any)
blobs = st.integers(0, 10_000).map(
    lambda seed: ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((40, 40)), 3) > 0
)


@settings(max_examples=150, deadline=None)
@given(masks | blobs)
@example(np.eye(5, dtype=bool))
@example(np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]], bool))
def test_outline_is_simple_and_stays_within_half_a_pixel_of_the_edge(mask):
    line = outline(mask).astype(float)
    part = filled(mask)
    assert len(np.unique(line, axis=0)) == len(line) - 1 >= 3
    assert is_simple(line[:-1])
    assert (line >= 0).all() and (line <= mask.shape[::-1]).all()
    edge = edge_points(part)
    if len(line) < MAX_POINTS:
        assert distance_to(edge, line).max() <= 0.5 + 1e-6
    exterior = 0.5 * (len(edge) / 5)
    assert abs(area(line[:-1]) - part.sum()) <= exterior


def test_crossing_polygons_are_not_simple():
    bow = np.array([[0, 0], [2, 2], [2, 0], [0, 2]], float)
    assert not is_simple(bow)
    assert is_simple(bow[[0, 2, 1, 3]])
