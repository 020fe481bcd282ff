"""A curve for the reader: what a pipeline gives to be drawn on the summary page. Exported by `dicomnode.pipeline`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """Values along one axis, for example a volume over the heartbeat."""

    #: For example ``Left ventricular volume``.
    title: str
    #: float64 (n,), rising, finite; n is 2 or more.
    x: NDArray[np.float64]
    #: float64 (n,), finite.
    y: NDArray[np.float64]
    #: Name and unit, for example ``ms after the R wave``.
    x_label: str
    #: Unit, for example ``mL``.
    y_label: str
    #: Points that are named: x (not beside the curve), y and what they are.
    points: tuple[tuple[float, float, str], ...] = ()
    #: Another line over the same x, drawn fainter, for example what was before: float64 (n,), finite.
    other: NDArray[np.float64] | None = None
