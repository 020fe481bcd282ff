"""The scale of intensities that networks see, in training and at work."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

#: Percentiles that become 0 and ``TOP`` (ml-mr 2.2, "normalisation").
PERCENTILES: Final = (1.0, 99.0)
TOP: Final = 1.2
#: The percentiles of an empty image are at least so far apart.
LEAST_RANGE: Final = 1e-6


def normalise(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """(..., row, column) of any units to 0 to ``TOP`` between its percentiles, each image for itself."""
    flat = image.reshape(*image.shape[:-2], -1)
    low, high = np.percentile(flat, PERCENTILES, axis=-1)[..., None, None]
    return np.asarray(np.clip((image - low) / np.maximum(high - low, LEAST_RANGE), 0.0, 1.0) * TOP, np.float32)
