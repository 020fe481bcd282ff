"""Midline shift from the predicted hemispheres: how far their border leaves the straight line between its ends.

A median, because the largest of many noisy numbers is never small. A falx that is bent by itself counts as shift here:
simulated heads have ones bent by 2 to 5 mm, more than their bleeds push, which is why no report tells the figure.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.hemorrhage.inputs import WORK_MM

#: Slices this far below the vertex are at the level of the septum, whatever the tilt; lower ones show skull base, where
#: ridges of bone bend the border [mm].
LEVELS_MM: Final = (45.0, 75.0)
#: Rows of a slice that must show both hemispheres with a clear border between them.
ROWS: Final = 50
#: The ends of the falx are taken from this share of the cavity's length at each end.
END_SHARE: Final = 0.15
#: The border is smoothed over this many rows (11 mm), and the septum lies within this middle share.
SMOOTH_ROWS: Final = 9
MIDDLE_SHARE: Final = (0.38, 0.62)
#: Slices that must pass, and how far the middle half of them may differ [mm].
SLICES: Final = 3
SPREAD_MM: Final = 3.0
#: The side is decided where its probability is farther than this from a half, on average.
CLEAR: Final = 0.38


def _slice_shift(left: NDArray[np.float32], cavity: NDArray[np.bool_]) -> float | None:
    """Signed shift of one slice [mm], positive to the patient's left; None if the border is not clear."""
    wide = cavity & (cavity.sum(1, keepdims=True) * WORK_MM > 50.0)
    rows = np.flatnonzero(wide.any(1))
    if len(rows) < ROWS or float(np.abs(left[wide] - 0.5).mean()) < CLEAR:
        return None
    # the border's column: where as much of the row lies on its right side as is called right
    first = np.array([np.flatnonzero(wide[r])[0] for r in rows])
    border = first + ((1.0 - left) * wide)[rows].sum(1) - 0.5
    taps = np.ones(SMOOTH_ROWS) / SMOOTH_ROWS
    border = np.convolve(np.pad(border, SMOOTH_ROWS // 2, mode="edge"), taps, mode="valid")
    end = max(3, int(END_SHARE * len(rows)))
    ends = np.r_[0:end, len(rows) - end : len(rows)]
    line = np.polyval(np.polyfit(rows[ends], border[ends], 1), rows)
    low, high = (int(share * len(rows)) for share in MIDDLE_SHARE)
    return float((border - line)[low:high].mean()) * WORK_MM


def shift_mm(
    left: NDArray[np.float32], cavity: NDArray[np.bool_], depth_mm: NDArray[np.float64]
) -> tuple[float | None, str]:
    """Midline shift [mm] (without sign) and how it was measured, or None and why not.

    Parameters
    ----------
    left
        Probability of the left hemisphere (slice, row, column) on the work grid.
    cavity
        Intracranial cavity.
    depth_mm
        Distance of each slice below the vertex.
    """
    levels = np.flatnonzero((depth_mm >= LEVELS_MM[0]) & (depth_mm <= LEVELS_MM[1]))
    found = [shift for k in levels if (shift := _slice_shift(left[k], cavity[k])) is not None]
    if len(found) < SLICES:
        return None, f"only {len(found)} slices show a clear border between the hemispheres, {SLICES} are needed"
    low, high = np.quantile(found, [0.25, 0.75])
    if high - low > SPREAD_MM:
        return None, f"the slices disagree: {min(found):.1f} to {max(found):.1f} mm"
    return abs(float(np.median(found))), f"median of {len(found)} slices at the level of the septum"
