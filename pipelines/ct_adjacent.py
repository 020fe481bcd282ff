"""Which slices of a CT series may be denoised with the slices beside them: those that lie close enough and evenly."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from dicomnode import pipeline as dn
from models.ct_denoise.adjacent import MOST_OVERLAP, SPACING_MM
from pipelines import blocks

#: The distances to both neighbours are equal within this share: else a slice is missing or the spacing changes.
UNEVEN: Final = 0.05
#: A neighbour lies over its slice within this share of a pixel. A tilted gantry shifts it.
ASIDE: Final = 0.5


def spacings(series: dn.ImageSeries) -> NDArray[np.float32]:
    """Distance of the neighbours of each slice [mm]; NaN where they are not to be used: (slice,).

    Both neighbours are there, `SPACING_MM` away and equally far, over the slice and not beside it, and share no more
    noise with it than in training. The first slice and the last, and those at a gap, have none.
    """
    found = np.full(len(series.positions), np.nan, np.float32)
    normal = np.cross(series.orientation[:3], series.orientation[3:])
    normal = normal / np.linalg.norm(normal)
    steps = np.diff(series.positions, axis=0)
    along = steps @ normal
    aside = np.linalg.norm(steps - along[:, None] * normal, axis=1) <= ASIDE * min(series.pixel_spacing)
    along = np.abs(along)
    thickness = blocks.number(series, "SliceThickness") or 0.0
    low, high = SPACING_MM
    # positions are stored with few decimals
    near = (along >= low - 0.01) & (along <= high + 0.01) & (thickness <= MOST_OVERLAP * along + 0.01) & aside
    before, after = along[:-1], along[1:]
    even = np.abs(after - before) <= UNEVEN * 0.5 * (before + after) + 0.01
    usable = near[:-1] & near[1:] & even
    found[1:-1][usable] = 0.5 * (before + after)[usable]
    return found
