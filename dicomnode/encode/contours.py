"""Outlines of masks in image coordinates, as SCOORD graphic data wants them (PS3.3 C.18.6.1.2).

The top-left corner of the top-left pixel is (0, 0), so that the centre of a pixel lies at + 0.5.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import SimpleITK
from numpy.typing import NDArray

#: How far an outline may leave the edges of the pixels, tried in turn until it has few points [pixel]. The first joins
#: straight lines and even stairs only, since cutting a corner leaves it by sqrt(2) / 4; more would shrink a square.
_TOLERANCES: Final = (0.36, 0.42, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
#: Viewers redraw an outline with every turn of the wheel, and a person sees no more corners than these.
MAX_POINTS: Final = 200
#: Up to this many pixels the exact edges are drawn: a simplified outline of so few would be another shape.
_TINY: Final = 4

#: (row, column) that a step along an edge goes, by heading: east, south, west, north; the mask is on the right.
_STEPS: Final = ((0, 1), (1, 0), (0, -1), (-1, 0))
#: Pixel that is ahead on the left and ahead on the right of a corner, by heading, relative to (row, column).
_AHEAD: Final = (((-1, 0), (0, 0)), ((0, 0), (0, -1)), ((0, -1), (-1, -1)), ((-1, -1), (-1, 0)))


def largest_component(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest part of a plane whose pixels share edges; of equal ones the first in reading order.

    Parameters
    ----------
    mask
        Axes (row, column).
    """
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(mask, np.uint8))
    labelled = SimpleITK.ConnectedComponent(image)
    parts = SimpleITK.GetArrayFromImage(labelled)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    found: NDArray[np.bool_] = (parts == sizes.argmax()) & mask
    return found


def outline(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Outer outline of the largest component of a plane: float32 (point, 2), (column, row), first point = last.

    The polygon is simple (touches itself nowhere) and has at least 3 distinct points. Holes are not outlined.

    Parameters
    ----------
    mask
        Axes (row, column); with at least one pixel.
    """
    part = largest_component(mask)
    if not part.any():
        raise ValueError("an empty mask has no outline")
    corners = _corners(part)
    if part.sum() <= _TINY:
        return _closed(corners[_turns(corners)])
    middles = (corners + np.roll(corners, -1, axis=0)) / 2  # cuts every corner, so that nothing touches itself
    best = middles[_turns(middles)]
    for tolerance in _TOLERANCES:
        kept = _simplified(middles, corners, tolerance)
        if len(kept) < 3 or not is_simple(kept):
            break  # thin shapes cross themselves when simplified further
        best = kept
        if len(best) < MAX_POINTS:
            break
    return _closed(best)


def is_simple(polygon: NDArray[np.floating]) -> bool:
    """Whether no two edges of a polygon (point, 2), given without its last point again, cross or touch."""
    count = len(polygon)
    start, end = polygon, np.roll(polygon, -1, axis=0)
    for index in range(count - 1):
        others = np.arange(index + 2, count - (index == 0))
        if len(others) == 0:
            continue
        a, b, c, d = start[index], end[index], start[others], end[others]
        if (
            (_side(a, b, c) * _side(a, b, d) <= 0)
            & (_side(c, d, a[None]) * _side(c, d, b[None]) <= 0)
            & _overlap(a, b, c, d)
        ).any():
            return False
    return True


def area(polygon: NDArray[np.floating]) -> float:
    """Area inside a polygon (point, 2) [pixel]."""
    x, y = polygon[:, 0].astype(float), polygon[:, 1].astype(float)
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def _corners(part: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Pixel corners (column, row) along the outer edge, one step each, clockwise; diagonal neighbours are apart."""
    padded = np.pad(part, 1)
    row, column = (int(first) for first in np.argwhere(padded)[0])  # top row, leftmost there: a corner of the edge
    start = row, column, 0
    heading, found = 0, []
    while True:
        found.append((column - 1, row - 1))
        row, column = row + _STEPS[heading][0], column + _STEPS[heading][1]
        (left_row, left_column), (right_row, right_column) = _AHEAD[heading]
        if not padded[row + right_row, column + right_column]:
            heading = (heading + 1) % 4  # round the same pixel, also where another one touches its corner
        elif padded[row + left_row, column + left_column]:
            heading = (heading - 1) % 4
        if (row, column, heading) == start:
            return np.array(found, float)


def _turns(polygon: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which points of a polygon are not in the middle of a straight line."""
    before, after = polygon - np.roll(polygon, 1, axis=0), np.roll(polygon, -1, axis=0) - polygon
    turns: NDArray[np.bool_] = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    return turns


def _simplified(middles: NDArray[np.float64], corners: NDArray[np.float64], tolerance: float) -> NDArray[np.float64]:
    """Fewer of ``middles``, so that every corner is within ``tolerance`` of the line that replaces it.

    Douglas and Peucker 1973 (Cartographica 10:112), but measured at the pixel corners themselves: corner i + 1 lies
    between middle i and middle i + 1.
    """
    count = len(middles)
    far = int(np.argmax(((middles - middles[0]) ** 2).sum(axis=1)))
    kept = np.zeros(count, bool)
    kept[[0, far]] = True
    open_ = [(0, far), (far, count)]
    while open_:
        first, last = open_.pop()
        if last - first < 2:
            continue
        between = corners[np.arange(first + 1, last + 1) % count]
        distances = _distances(between, middles[first], middles[last % count])
        worst = int(distances.argmax())
        if distances[worst] > tolerance:
            # Split at the middle beside the worst corner that lies inside the open part.
            split = min(max(first + worst + (worst == 0), first + 1), last - 1)
            kept[split] = True
            open_ += [(first, split), (split, last)]
    chosen = middles[kept]
    return chosen[_turns(chosen)]


def _distances(
    points: NDArray[np.float64], start: NDArray[np.float64], end: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Distance of ``points`` from the segment between ``start`` and ``end``."""
    along = end - start
    length = float(along @ along)
    share = np.clip((points - start) @ along / length, 0, 1) if length else np.zeros(len(points))
    found: NDArray[np.float64] = np.hypot(*(points - start - share[:, None] * along).T)
    return found


def _side(a: NDArray[np.floating], b: NDArray[np.floating], p: NDArray[np.floating]) -> NDArray[np.float64]:
    """On which side of the line from a to b the points p lie."""
    along, to = np.asarray(b - a, float), np.asarray(p - a, float)
    found: NDArray[np.float64] = np.sign(along[..., 0] * to[..., 1] - along[..., 1] * to[..., 0])
    return found


def _overlap(
    a: NDArray[np.floating], b: NDArray[np.floating], c: NDArray[np.floating], d: NDArray[np.floating]
) -> NDArray[np.bool_]:
    """Whether the boxes around segments overlap (which tells collinear ones apart)."""
    low = np.maximum(np.minimum(a, b), np.minimum(c, d))
    high = np.minimum(np.maximum(a, b), np.maximum(c, d))
    found: NDArray[np.bool_] = (low <= high).all(axis=-1)
    return found


def _closed(polygon: NDArray[np.floating]) -> NDArray[np.float32]:
    """The polygon with its first point again at its end, as a closed POLYLINE is written."""
    return np.concatenate([polygon, polygon[:1]]).astype(np.float32)
