"""Volumes, ejection fraction and mass from areas by Simpson's rule with the slices' true positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.cardiac import shapes

#: Density of myocardium [g/mL], the usual value (Schulz-Menger 2020, JCMR 22:19).
DENSITY: Final = 1.05
#: Heights [m] and weights [kg] that are believed (ml-mr 2.7).
HEIGHT_M: Final = (0.5, 2.3)
WEIGHT_KG: Final = (3.0, 350.0)
#: Heartbeats [ms] that are believed: 25 to 200 a minute.
INTERVAL_MS: Final = (300.0, 2400.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """What is measured; volumes in mL, mass in g, fractions in %."""

    lv_edv: float
    lv_esv: float
    rv_edv: float
    rv_esv: float
    #: At end diastole, papillary muscles not included.
    lv_mass: float

    @property
    def lv_sv(self) -> float:
        """Stroke volume of the left ventricle [mL]."""
        return self.lv_edv - self.lv_esv

    @property
    def rv_sv(self) -> float:
        """Stroke volume of the right ventricle [mL]."""
        return self.rv_edv - self.rv_esv

    @property
    def lv_ef(self) -> float:
        """Ejection fraction of the left ventricle [%]."""
        return 100.0 * self.lv_sv / self.lv_edv if self.lv_edv else 0.0

    @property
    def rv_ef(self) -> float:
        """Ejection fraction of the right ventricle [%]."""
        return 100.0 * self.rv_sv / self.rv_edv if self.rv_edv else 0.0


def widths(positions_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """(slice,) how much of the axis each slice stands for [mm]: half the way to both neighbours.

    The outermost slices stand for as much outwards as inwards.
    """
    if len(positions_mm) < 2:
        return np.zeros(len(positions_mm))
    steps = np.abs(np.diff(positions_mm))
    return np.asarray((np.append(steps[0], steps) + np.append(steps, steps[-1])) / 2.0, np.float64)


def volumes_ml(labels: shapes.Labels, pixel_mm2: float, width_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """(class,) volume of each class in (slice, row, column) [mL]."""
    areas = np.stack([(labels == c).sum((1, 2)) for c in range(4)])
    return np.asarray(areas @ width_mm * pixel_mm2 / 1000.0, np.float64)


def function(ed: NDArray[np.float64], es: NDArray[np.float64]) -> Function:
    """Indices from the volumes of the classes at ED and ES."""
    return Function(
        lv_edv=float(ed[shapes.LV]),
        lv_esv=float(es[shapes.LV]),
        rv_edv=float(ed[shapes.RV]),
        rv_esv=float(es[shapes.RV]),
        lv_mass=DENSITY * float(ed[shapes.MYO]),
    )


def interval_ms(intervals: NDArray[np.float64]) -> float | None:
    """Length of the heartbeat [ms], median of the (slice,) planes that say it; None if it is not plausible."""
    said = intervals[np.isfinite(intervals)]
    usual = float(np.median(said)) if len(said) else 0.0
    return usual if INTERVAL_MS[0] <= usual <= INTERVAL_MS[1] else None


def cardiac_output_l(stroke_ml: float, beat_ms: float) -> float:
    """Volume that the ventricle ejects [L/min]: stroke volume times beats a minute."""
    return stroke_ml * 60.0 / beat_ms


def body_surface_m2(height_m: float | None, weight_kg: float | None) -> float | None:
    """Body surface by Mosteller (NEJM 1987, 317:1098), sqrt(height [cm] weight [kg] / 3600); None if not plausible."""
    if height_m is None or weight_kg is None:
        return None
    if not (HEIGHT_M[0] <= height_m <= HEIGHT_M[1] and WEIGHT_KG[0] <= weight_kg <= WEIGHT_KG[1]):
        return None
    return float(np.sqrt(100.0 * height_m * weight_kg / 3600.0))
