"""Patients of the Sunnybrook Cardiac Data: a folder with ``sax``, ``i-contours`` and ``o-contours`` for each of them.

File ``sax/N.dcm`` belongs to contour ``IM-0001-NNNN``. Inner contours are drawn at ED and ES, outer ones at ED only, in
pixels (x y). Slices are placed by ImagePositionPatient along the normal, phases by TriggerTime: this scanner's
SliceLocation is wrong by a third. CC0; Radau et al., MIDAS Journal 2009, hdl 10380/3070.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image, ImageDraw

#: Patients whose outer contours are shifted against their images and inner contours: never read (ml-mr 2.4).
WRONG_OUTER: Final = frozenset({"SCD0000501"})
#: Sub-pixels along each edge of a pixel when a contour is filled.
FINE: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """What an expert drew on one image; masks are (row, column) shares of each pixel."""

    phase: int
    slice: int
    inner: NDArray[np.float32]
    outer: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """One stack with its contours."""

    name: str
    #: (phase, slice, row, column), slices along the normal.
    images: NDArray[np.float32]
    pixel_mm: float
    step_mm: float
    drawn: tuple[Drawn, ...]
    #: Phases that the expert called ED and ES.
    ed: int
    es: int
    #: Whether outer contours may be believed.
    has_outer: bool

    def at(self, phase: int) -> dict[int, Drawn]:
        """Contours of one phase by slice."""
        return {one.slice: one for one in self.drawn if one.phase == phase}


def fill(points: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.float32]:
    """(point, x y) in pixels, whole numbers in the middle of pixels, to the share of each pixel inside."""
    image = Image.new("L", (shape[1] * FINE, shape[0] * FINE))
    ImageDraw.Draw(image).polygon([(float(x), float(y)) for x, y in (points + 0.5) * FINE - 0.5], fill=1)
    fine = np.asarray(image, np.float32).reshape(shape[0], FINE, shape[1], FINE)
    return np.asarray(fine.mean((1, 3)), np.float32)


def patients(folder: Path) -> list[Path]:
    """The patient folders below ``folder``."""
    return sorted(path.parent for path in folder.glob("*/sax"))


def read(folder: Path) -> Patient:
    """Read one patient."""
    files = {int(path.stem): pydicom.dcmread(path) for path in (folder / "sax").glob("*.dcm")}
    first = next(iter(files.values()))
    row, column = np.array(first.ImageOrientationPatient, float).reshape(2, 3)
    normal = np.cross(row, column)
    place = {n: round(float(normal @ np.array(one.ImagePositionPatient, float)), 1) for n, one in files.items()}
    heights = sorted(set(place.values()))
    order: dict[int, tuple[int, int]] = {}
    for k, height in enumerate(heights):
        here = sorted((n for n in files if place[n] == height), key=lambda n: float(files[n].TriggerTime))
        order |= {n: (phase, k) for phase, n in enumerate(here)}
    phases = 1 + max(phase for phase, _ in order.values())
    images = np.zeros((phases, len(heights), int(first.Rows), int(first.Columns)), np.float32)
    for n, (phase, k) in order.items():
        images[phase, k] = files[n].pixel_array
    believed = folder.name not in WRONG_OUTER
    inner, outer = _contours(folder / "i-contours"), _contours(folder / "o-contours") if believed else {}
    drawn = [
        Drawn(
            phase=order[n][0],
            slice=order[n][1],
            inner=fill(points, images.shape[2:]),
            outer=fill(outer[n], images.shape[2:]) if n in outer else None,
        )
        for n, points in inner.items()
    ]
    area: dict[int, float] = {}
    for one in drawn:
        area[one.phase] = area.get(one.phase, 0.0) + float(one.inner.sum())
    counts = {p: sum(one.phase == p for one in drawn) for p in area}
    usual = sorted(sorted(area, key=lambda p: -counts[p])[:2], key=lambda p: -area[p])
    return Patient(
        name=folder.name,
        images=images,
        pixel_mm=float(first.PixelSpacing[0]),
        step_mm=float(np.median(np.diff(heights))),
        drawn=tuple(drawn),
        ed=usual[0],
        es=usual[-1],
        has_outer=believed,
    )


def _contours(folder: Path) -> dict[int, NDArray[np.float64]]:
    found = {}
    for path in sorted(folder.glob("*.txt")):
        match = re.match(r"IM-0001-(\d+)-[io]contour", path.name)
        if match:
            found[int(match[1])] = np.loadtxt(path, ndmin=2)
    return found
