"""Where the heart is: what moves once per cycle."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

#: Standard deviation of the belief that the heart is in the middle of the image [mm] (ml-mr 2.1, step 2).
PRIOR_MM: Final = 60.0
#: Power that makes the centroid follow the strongest motion; the same source.
POWER: Final = 3


def centre(images: NDArray[np.float32], spacing: tuple[float, float]) -> tuple[float, float]:
    """The heart's (row, column) [pixels] in (phase, slice, row, column) with (row, column) ``spacing`` [mm].

    The first temporal harmonic of every pixel, |sum_t x_t exp(-2 pi i t / T)|, summed over slices, times a prior
    around the middle of the image; of its cube, the centroid. An image without motion yields its middle.
    """
    phases, _, rows, columns = images.shape
    angle = 2.0 * np.pi * np.arange(phases) / phases
    real = np.tensordot(np.cos(angle).astype(np.float32), images, 1)
    imaginary = np.tensordot(np.sin(angle).astype(np.float32), images, 1)
    energy = np.hypot(real, imaginary).sum(0, dtype=np.float64)
    y, x = np.arange(rows)[:, None], np.arange(columns)[None, :]
    middle = (rows - 1) / 2, (columns - 1) / 2
    far = ((y - middle[0]) * spacing[0]) ** 2 + ((x - middle[1]) * spacing[1]) ** 2
    weight = (energy * np.exp(-far / (2.0 * PRIOR_MM**2))) ** POWER
    total = float(weight.sum())
    if total <= 0.0 or not np.isfinite(total):
        return middle
    return float((weight * y).sum() / total), float((weight * x).sum() / total)
