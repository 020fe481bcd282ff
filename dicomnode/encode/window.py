"""Which values a reader should tell apart: the window in which planes are shown."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from pydicom.multival import MultiValue

from dicomnode.encode.source import Source
from dicomnode.pipeline import Result

#: Values shown where neither the result nor the header has a window [percentile].
_PERCENTILES: Final = (1.0, 99.5)


def window(source: Source, result: Result, plane: int) -> tuple[float, float]:
    """Least and greatest value that are told apart: the result's window, else the source's own, else most values."""
    chosen = result.window or _own_window(source, plane)
    if chosen is None:
        values = source.images.array[plane][~source.images.padding[plane]]
        if values.size == 0:
            return 0.0, 1.0
        low, high = (float(value) for value in np.percentile(values, _PERCENTILES))
        return low, max(high, low + 1e-6)
    center, width = chosen
    return center - width / 2, center + width / 2


def _own_window(source: Source, plane: int) -> tuple[float, float] | None:
    header = source.headers[source.planes[plane].header]
    found = []
    for keyword in ("WindowCenter", "WindowWidth"):
        value = header.get(keyword)
        first = value[0] if isinstance(value, MultiValue | list) and value else value
        try:
            found.append(float(first))
        except (TypeError, ValueError):
            return None
    center, width = found
    return (center, width) if math.isfinite(center) and math.isfinite(width) and width > 0 else None
