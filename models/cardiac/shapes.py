"""Whether a slice looks like a heart: the sixteen anatomical metrics of Painchaud 2020, named one by one.

Painchaud et al., IEEE TMI 2020 (39:3703), thresholds as in the authors' public code and ml-mr 2.6. Every function works
on one slice of labels (row, column): 0 background, 1 right ventricle, 2 myocardium, 3 left cavity.
"""

from __future__ import annotations

from typing import Final, TypeVar

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Labels = NDArray[np.uint8]

RV, MYO, LV = 1, 2, 3
#: Depth that a dent may have [mm]; the myocardium is judged with its cavity filled. The paper allows the epicardium
#: none at all, which a contour on pixels of 1 to 2 mm cannot promise: a dent of one to two pixels is let pass.
LV_DENT_MM: Final = 4.0
RV_DENT_MM: Final = 30.0
MYO_DENT_MM: Final = 2.0
#: Least isoperimetric quotient 4 pi area / perimeter^2 of the cavity and of the filled epicardium.
LEAST_CIRCULARITY: Final = 0.2
#: Share by which an epicardium may grow to become its hull when it is cleaned.
HULL_GROWTH: Final = 0.05
#: Steps in which horns of the right ventricle are cut back [rad].
TRIM: Final = 0.1
#: Names of the metrics in the paper's order.
METRICS: Final = (
    "holes_in_lv",
    "holes_in_rv",
    "holes_in_myo",
    "parts_of_lv",
    "parts_of_rv",
    "parts_of_myo",
    "gap_between_lv_and_myo",
    "gap_between_rv_and_myo",
    "rv_away_from_myo",
    "lv_touches_rv",
    "lv_touches_background",
    "lv_dent",
    "rv_dent",
    "myo_dent",
    "lv_not_round",
    "myo_not_round",
)


def metrics(labels: Labels, spacing: tuple[float, float]) -> dict[str, float]:
    """The sixteen metrics of one slice with (row, column) ``spacing`` [mm]; see ``violations`` for what is allowed."""
    rv, myo, lv = labels == RV, labels == MYO, labels == LV
    heart, left = labels > 0, myo | lv
    filled = fill_holes(left)
    return {
        "holes_in_lv": _enclosed(lv),
        "holes_in_rv": _enclosed(rv),
        "holes_in_myo": float((fill_holes(myo) & ~myo & ~lv).sum()) if lv.any() else _enclosed(myo),
        "parts_of_lv": _further_parts(lv),
        "parts_of_rv": _further_parts(rv),
        "parts_of_myo": _further_parts(myo),
        "gap_between_lv_and_myo": float((filled & ~left & ~rv).sum()),
        "gap_between_rv_and_myo": max(0.0, _enclosed(heart) - _enclosed(left) - _enclosed(rv)),
        "rv_away_from_myo": _distance_mm(rv, left, spacing),
        "lv_touches_rv": _contact(lv, rv),
        "lv_touches_background": _contact(lv, ~heart) + _on_edge(lv),
        "lv_dent": dent_mm(lv, spacing),
        "rv_dent": dent_mm(rv, spacing),
        "myo_dent": dent_mm(filled, spacing),
        "lv_not_round": circularity(lv, spacing),
        "myo_not_round": circularity(filled, spacing),
    }


def violations(labels: Labels, spacing: tuple[float, float]) -> tuple[str, ...]:
    """Names of the metrics that this slice violates; empty for a slice without labels."""
    if not labels.any():
        return ()
    found = metrics(labels, spacing)
    limits = {"lv_dent": LV_DENT_MM, "rv_dent": RV_DENT_MM, "myo_dent": MYO_DENT_MM}
    bad = [name for name in METRICS[:14] if found[name] > limits.get(name, 0.0)]
    return tuple(bad + [name for name in METRICS[14:] if found[name] < LEAST_CIRCULARITY])


def fill_holes(mask: Mask) -> Mask:
    """The mask with everything that it encloses: what is not connected, by edges, with what surrounds it."""
    if not mask.any():
        return mask
    out, box = mask.copy(), _box(mask)
    outside = _parts(np.pad(~mask[box], 1, constant_values=True))
    out[box] |= outside[1:-1, 1:-1] != outside[0, 0]
    return out


def largest_part(mask: Mask) -> Mask:
    """The largest connected part, neighbours by edge."""
    if not mask.any():
        return mask
    out, box = np.zeros_like(mask), _box(mask)
    parts = _parts(mask[box])
    out[box] = parts == 1 + np.bincount(parts.ravel())[1:].argmax()
    return out


def hull(mask: Mask) -> Mask:
    """All pixels whose middle lies in the convex hull of the middles of the mask's pixels."""
    corners = hull_corners(mask)
    return inside(corners, mask.shape) if len(corners) > 2 else mask


def hull_corners(mask: Mask) -> NDArray[np.float64]:
    """(corner, row column) of the convex hull by Andrew's monotone chain, in order."""
    rows = np.flatnonzero(mask.any(1))
    ends = [(float(r), float(c)) for r in rows for c in (mask[r].argmax(), mask.shape[1] - 1 - mask[r, ::-1].argmax())]
    return convex(np.array(ends).reshape(-1, 2))


def convex(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """(corner, 2) of the convex hull of (point, 2)."""
    ordered = sorted({(float(a), float(b)) for a, b in points})
    if len(ordered) < 3:
        return np.array(ordered).reshape(-1, 2)
    chains = []
    for sequence in (ordered, ordered[::-1]):
        chain: list[tuple[float, float]] = []
        for p in sequence:
            while len(chain) > 1 and _turn(chain[-2], chain[-1], p) <= 0.0:
                chain.pop()
            chain.append(p)
        chains.append(chain[:-1])
    return np.array(chains[0] + chains[1])


def inside(corners: NDArray[np.float64], shape: tuple[int, ...]) -> Mask:
    """Pixels whose middle lies in, or on the outline of, a convex polygon of (corner, row column) in order."""
    rows, columns = np.arange(shape[0])[:, None], np.arange(shape[1])[None, :]
    out = np.ones(shape, bool)
    for a, b in zip(corners, np.roll(corners, -1, 0), strict=True):
        out &= (b[0] - a[0]) * (columns - a[1]) - (b[1] - a[1]) * (rows - a[0]) >= -1e-9
    return out


def dent_mm(mask: Mask, spacing: tuple[float, float]) -> float:
    """How deep the mask lies below its convex hull at most [mm]."""
    if not mask.any():
        return 0.0
    covered = hull(mask)
    missing = covered & ~mask
    if not missing.any():
        return 0.0
    return float(_distances(np.pad(~covered, 1, constant_values=True), spacing)[1:-1, 1:-1][missing].max())


def circularity(mask: Mask, spacing: tuple[float, float]) -> float:
    """4 pi area / perimeter^2, 1 for a disc; 1 for nothing, which is no violation."""
    if not mask.any():
        return 1.0
    padded = np.pad(mask, 1)
    across = float((padded[1:] != padded[:-1]).sum()) * spacing[1]
    down = float((padded[:, 1:] != padded[:, :-1]).sum()) * spacing[0]
    perimeter = (across + down) * np.pi / 4.0  # what a staircase is longer than the curve, on average over directions
    return float(4.0 * np.pi * mask.sum() * spacing[0] * spacing[1] / perimeter**2)


def clean(labels: Labels) -> Labels:
    """First rung of the ladder: largest parts, no holes, a cavity as round as its hull inside a filled epicardium.

    A right ventricle touches the epicardium, or is none: what networks take for one elsewhere is stomach or fat.
    """
    epi = fill_holes(largest_part(labels >= MYO))
    covered = hull(epi)
    if covered.sum() <= (1.0 + HULL_GROWTH) * epi.sum():
        epi = covered
    lv = largest_part((labels == LV) & epi)
    if lv.any():
        lv = hull(lv) & epi
    rv = fill_holes(_touching((labels == RV) & ~epi, epi)) & ~epi
    rv |= fill_holes(epi | rv) & ~epi
    out = np.zeros_like(labels)
    out[rv] = RV
    out[epi] = MYO
    out[lv] = LV
    return out


def _touching(mask: Mask, other: Mask) -> Mask:
    """The largest connected part of a mask that touches another one; nothing if none does."""
    if not mask.any():
        return mask
    parts = _parts(mask)
    beside = np.zeros_like(mask)
    for axis in (0, 1):
        beside |= np.roll(other, 1, axis) | np.roll(other, -1, axis)
    sizes = np.bincount(parts.ravel())
    near = np.unique(parts[mask & beside])
    return np.asarray(parts == near[sizes[near].argmax()]) if len(near) else np.zeros_like(mask)


def trim_rv(labels: Labels, spacing: tuple[float, float]) -> Labels:
    """Cut the right ventricle's horns back, as seen from the cavity, until its dent is allowed; none at the worst."""
    out, at = labels.copy(), np.argwhere(labels == RV)
    if not len(at) or not (labels == LV).any():
        return out
    middle = np.argwhere(labels == LV).mean(0)
    angle = np.arctan2(at[:, 0] - middle[0], at[:, 1] - middle[1])
    axis = np.arctan2(np.sin(angle).sum(), np.cos(angle).sum())
    away = np.abs((angle - axis + np.pi) % (2.0 * np.pi) - np.pi)
    for widest in np.arange(float(away.max()), 0.0, -TRIM):
        part = np.zeros(labels.shape, bool)
        part[tuple(at[away <= widest].T)] = True
        out[labels == RV] = 0
        out[largest_part(part)] = RV
        if dent_mm(out == RV, spacing) <= RV_DENT_MM:
            return out
    out[out == RV] = 0
    return out


def _box(mask: Mask) -> tuple[slice, slice]:
    """The smallest rectangle around a mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _turn(o: tuple[float, float], a: tuple[float, float], b: tuple[float, float]) -> float:
    return (a[0] - o[0]) * (b[1] - o[1]) - (a[1] - o[1]) * (b[0] - o[0])


def _to(mask: Mask, spacing: tuple[float, float] = (1.0, 1.0)) -> sitk.Image:
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    image.SetSpacing((spacing[1], spacing[0]))
    return image


Filter = TypeVar("Filter", bound=sitk.ImageFilter)


def _alone(operation: Filter) -> Filter:
    """A filter on one thread: a slice is so small that starting several takes most of the time."""
    operation.SetNumberOfThreads(1)
    operation.SetNumberOfWorkUnits(1)
    return operation


def _parts(mask: Mask) -> NDArray[np.uint32]:
    """Connected parts, neighbours by edge, numbered from 1."""
    return np.asarray(
        sitk.GetArrayFromImage(_alone(sitk.ConnectedComponentImageFilter()).Execute(_to(mask))), np.uint32
    )


def _distances(mask: Mask, spacing: tuple[float, float]) -> NDArray[np.float64]:
    """Distance of every pixel to the nearest one of the mask [mm]."""
    operation = _alone(sitk.SignedMaurerDistanceMapImageFilter())
    operation.SetInsideIsPositive(False)
    operation.SetSquaredDistance(False)
    operation.SetUseImageSpacing(True)
    return np.asarray(sitk.GetArrayFromImage(operation.Execute(_to(mask, spacing))), np.float64)


def _enclosed(mask: Mask) -> float:
    return float((fill_holes(mask) & ~mask).sum())


def _further_parts(mask: Mask) -> float:
    if not mask.any():
        return 0.0
    return float(_parts(mask[_box(mask)]).max() - 1)


def _contact(a: Mask, b: Mask) -> float:
    """Pairs of neighbouring pixels of which one is in ``a`` and the other in ``b``."""
    pairs = ((a[1:], b[:-1]), (a[:-1], b[1:]), (a[:, 1:], b[:, :-1]), (a[:, :-1], b[:, 1:]))
    return float(sum(int((p & q).sum()) for p, q in pairs))


def _on_edge(mask: Mask) -> float:
    return float(mask[0].sum() + mask[-1].sum() + mask[:, 0].sum() + mask[:, -1].sum())


def _distance_mm(a: Mask, b: Mask, spacing: tuple[float, float]) -> float:
    """Gap between two masks [mm]; 0 where they touch or one is empty."""
    if not a.any() or not b.any() or _contact(a, b) > 0:
        return 0.0
    return float(_distances(b, spacing)[a].min())
