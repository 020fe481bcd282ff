"""A procedural beating heart: closed formulas for endocardium, epicardium and right ventricle.

The frame has the left ventricle's axis as origin of every plane, x towards the patient's left side of the image and y
up; angles run from x to y. The height of a plane is z, 0 at the tip of the cavity and 1 at the valve plane; the time is
t, 0 at end diastole and 1 at end systole. Formulas and ranges: ml-mr 2.2. All contours are tables of radii over
``ANGLES``, so that a plane is a few hundred numbers until someone paints it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.float64]

#: Planes of the midpoint rule for volumes.
INTEGRAL: Final = 112
#: Angles of every contour table.
STEPS: Final = 128
ANGLES: Final = np.arange(STEPS) * (2.0 * np.pi / STEPS)
#: Share of the wall's thickness at the tip and at the base: 0.75 and 1 in ml-mr 2.2; failing hearts thin out there, the
#: three patients of the tuning (outer contours of two) to 0.5 to 0.7 at the tip and 0.8 at the base.
APEX_WALL: Final = (0.5, 0.9)
BASE_WALL: Final = (0.75, 1.05)
#: Share of hearts whose outflow tract opens the basal planes.
OUTFLOW: Final = 0.45
#: Height below the cavity's tip at which the apical cap of muscle ends.
CAP: Final = 0.12
#: Pathologies and how often each is drawn (ml-mr 2.2).
MIX: Final = {"normal": 0.3, "dilated": 0.2, "hypertrophic": 0.2, "infarct": 0.15, "rv_dilated": 0.15}
#: Endocardial radius at the base [mm], wall at end diastole [mm], radial contraction; the same source but for walls of
#: no load: those are 5.3 +- 0.9 mm thick in women's short axes and 6.3 +- 1.1 mm in men's (Kawel 2012, Circ Cardiovasc
#: Imaging 5:500), not 6 to 10; and what an infarct leaves is no thicker than a dilated heart's.
RADIUS: Final = {
    "normal": (20.0, 27.0),
    "dilated": (27.0, 39.0),
    "hypertrophic": (16.0, 24.0),
    "infarct": (22.0, 34.0),
    "rv_dilated": (18.0, 26.0),
}
WALL: Final = {
    "normal": (4.0, 8.5),
    "dilated": (4.5, 9.0),
    "hypertrophic": (11.0, 21.0),
    "infarct": (4.5, 9.0),
    "rv_dilated": (4.0, 8.5),
}
CONTRACTION: Final = {
    "normal": (0.25, 0.42),
    "dilated": (0.04, 0.20),
    "hypertrophic": (0.3, 0.6),
    "infarct": (0.05, 0.25),
    "rv_dilated": (0.2, 0.4),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Heart:
    """One heart; lengths in mm, angles in radians."""

    pathology: str
    #: Endocardial radius at the base at end diastole.
    radius_mm: float
    #: Length of the cavity at end diastole.
    length_mm: float
    wall_mm: float
    #: Share by which the endocardial radius shrinks until end systole.
    contraction: float
    #: Share by which the cavity becomes shorter.
    shortening: float
    #: Middle of the septum.
    septum: float
    #: (4, 2) amplitude and phase of harmonics 2 to 5 of the contour.
    shape: Table
    #: (STEPS,) wall thickness by angle over ``wall_mm``, and share of it that is left at the tip and at the base.
    wall_gain: Table
    apex_wall: float
    base_wall: float
    #: (STEPS,) contraction by angle over ``contraction``.
    motion_gain: Table
    #: Height of the right ventricle over the epicardium, half its opening, flatness, skew, contraction.
    rv_height_mm: float
    rv_opening: float
    rv_power: float
    rv_skew: float
    rv_contraction: float
    #: Sector of the outflow tract in basal planes: middle and half width, 0 where there is none.
    outflow: float
    outflow_width: float

    def length_at(self, t: float) -> float:
        """Length of the cavity at time ``t`` [mm]; the tip stays where it is and the base descends."""
        return self.length_mm * (1.0 - self.shortening * t)

    def endocardium(self, z: float, t: float) -> Table:
        """(STEPS,) radius [mm]; zero outside the cavity's height."""
        if not 0.0 < z <= 1.0:
            return np.zeros(STEPS)
        profile = np.sqrt(1.0 - (1.0 - z) ** 2.2) * (1.0 - 0.06 * max(0.0, (z - 0.75) / 0.25))
        return self.radius_mm * profile * self._contour() * (1.0 - self.contraction * self.motion_gain * t)

    def epicardium(self, z: float, t: float) -> Table:
        """(STEPS,) radius [mm]; the area of the wall grows as the heart gets shorter, so that its volume stays."""
        if not -CAP < z <= 1.0:
            return np.zeros(STEPS)
        cap = np.sqrt(max(0.0, 1.0 - (min(z, 0.0) / CAP) ** 2))
        taper = np.interp(z, (0.0, 0.5, 0.8, 1.0), (self.apex_wall, 1.0, 1.0, self.base_wall))
        wall = self.wall_mm * self.wall_gain * taper * cap
        if self.outflow_width and z > 0.85:
            wall = wall * (1.0 - 0.7 * _bump(self.outflow, self.outflow_width))
        rest = self.endocardium(z, 0.0)
        area = (rest + wall) ** 2 - rest**2
        return np.sqrt(self.endocardium(z, t) ** 2 + area / (1.0 - self.shortening * t))

    def right_ventricle(self, z: float, t: float) -> Table:
        """(STEPS,) thickness of the right ventricle outside the epicardium [mm]."""
        if not 0.1 < z <= 1.0:
            return np.zeros(STEPS)
        height = self.rv_height_mm * min(1.0, (z - 0.1) / 0.5) ** 0.7 * (1.0 - self.rv_contraction * t)
        delta = _wrapped(ANGLES - self.septum)
        bent = np.clip(delta / self.rv_opening + self.rv_skew * np.cos(delta), -1.0, 1.0)
        return height * np.maximum(0.0, np.cos(0.5 * np.pi * bent)) ** self.rv_power

    def lv_volume_ml(self, t: float) -> float:
        """Volume of the left cavity by integration of the formulas [mL]."""
        return self._integral(0.0, 1.0, t, lambda z: self.endocardium(z, t) ** 2)

    def myocardium_volume_ml(self, t: float) -> float:
        """Volume of the left wall with its apical cap [mL]."""
        return self._integral(-CAP, 1.0, t, lambda z: self.epicardium(z, t) ** 2 - self.endocardium(z, t) ** 2)

    def rv_volume_ml(self, t: float) -> float:
        """Volume of the right cavity [mL]."""
        return self._integral(
            0.1,
            1.0,
            t,
            lambda z: (self.epicardium(z, t) + self.right_ventricle(z, t)) ** 2 - self.epicardium(z, t) ** 2,
        )

    def _integral(self, low: float, high: float, t: float, squared: Callable[[float], Table]) -> float:
        heights = low + (np.arange(INTEGRAL) + 0.5) * (high - low) / INTEGRAL
        area = np.mean([np.pi * np.mean(squared(z)) for z in heights])  # 1/2 integral of r^2 over 2 pi
        return float(area * (high - low) * self.length_at(t) / 1000.0)

    def _contour(self) -> Table:
        amplitude, phase = self.shape[:, :1], self.shape[:, 1:]
        waves: Table = amplitude * np.cos(np.arange(2, 6)[:, None] * ANGLES + phase)
        return 1.0 + waves.sum(0)


def draw_heart(rng: np.random.Generator, pathology: str | None = None) -> Heart:
    """Draw one heart, of a pathology of ``MIX`` unless one is named."""
    kind = pathology or str(rng.choice(list(MIX), p=list(MIX.values())))
    radius = rng.uniform(*RADIUS[kind])
    wall, motion = np.ones(STEPS), np.ones(STEPS)
    if kind == "hypertrophic":
        wall = 1.0 + rng.uniform(0.0, 0.7) * np.cos((ANGLES - rng.uniform(0, 2 * np.pi)) / 2.0) ** 2
    elif kind == "infarct":
        scar = _bump(rng.uniform(0, 2 * np.pi), rng.uniform(0.4, 1.0))
        wall, motion = 1.0 - rng.uniform(0.2, 0.5) * scar, 1.0 - rng.uniform(0.4, 1.0) * scar
    outflow = rng.random() < OUTFLOW
    septum = np.pi + np.deg2rad(rng.uniform(-25.0, 25.0))
    return Heart(
        pathology=kind,
        radius_mm=radius,
        length_mm=rng.uniform(75.0, 105.0) * (radius / 24.0) ** 0.35,
        wall_mm=rng.uniform(*WALL[kind]),
        contraction=rng.uniform(*CONTRACTION[kind]),
        shortening=rng.uniform(0.05, 0.18),
        septum=septum,
        shape=np.stack((rng.uniform(0, 0.05, 4) / np.sqrt(np.arange(2, 6)), rng.uniform(0, 2 * np.pi, 4)), 1),
        wall_gain=wall,
        apex_wall=rng.uniform(*APEX_WALL),
        base_wall=rng.uniform(*BASE_WALL),
        motion_gain=motion,
        rv_height_mm=rng.uniform(22.0, 42.0) * (1.35 if kind == "rv_dilated" else 1.0),
        rv_opening=np.deg2rad(rng.uniform(62.0, 100.0)),
        rv_power=rng.uniform(0.45, 1.0),
        rv_skew=rng.uniform(-0.25, 0.25),
        rv_contraction=rng.uniform(0.12, 0.4),
        outflow=septum - np.deg2rad(rng.uniform(30.0, 70.0)),
        outflow_width=np.deg2rad(rng.uniform(60.0, 90.0)) / 2 if outflow else 0.0,
    )


def _wrapped(angle: Table) -> Table:
    return (angle + np.pi) % (2.0 * np.pi) - np.pi


def _bump(middle: float, half_width: float) -> Table:
    """(STEPS,) 1 in a sector with smooth ends, 0 elsewhere."""
    off = np.abs(_wrapped(ANGLES - middle)) / half_width
    return np.asarray(np.clip(1.5 - off, 0.0, 1.0) ** 2 * (3.0 - 2.0 * np.clip(1.5 - off, 0.0, 1.0)))
