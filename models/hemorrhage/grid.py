"""The simulator's grid: coordinates, band-limited noise, signed distances, and painting them into a fine volume.

Everything smooth is computed on a coarse grid and interpolated; axes are (slice, row, column) with slice 0 at the
vertex, rows from anterior to posterior and columns from the patient's right to the left, so a head seen here lies as
radiologists see it. Coordinates are millimetres in the head's own frame: x to the left, y to the back, z to the top.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float32]
Point = tuple[float, float, float]

#: Fine and coarse voxel [mm]; ml-ct 2.2 computes distances at twice the voxel too.
FINE_MM: Final = 1.25
COARSE_MM: Final = 2.5
#: Voxels of both grids (slice, row, column): 200 x 230 x 190 mm.
COARSE_SHAPE: Final = (81, 93, 77)
FINE_SHAPE: Final = (161, 185, 153)
#: Coordinates (z, y, x) of voxel (0, 0, 0) [mm].
ORIGIN: Final = (92.0, -115.0, -95.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Coordinates:
    """Coordinates of the coarse grid's voxels, each (slice, row, column) [mm]."""

    x: Array
    y: Array
    z: Array

    def mirrored(self) -> Coordinates:
        """The same with left and right exchanged, to write both sides of a pair with one formula."""
        return Coordinates(x=-self.x, y=self.y, z=self.z)


def coarse_coordinates() -> Coordinates:
    """The unwarped coordinates of the coarse grid."""
    axes = [ORIGIN[i] + (-1.0 if i == 0 else 1.0) * COARSE_MM * np.arange(COARSE_SHAPE[i]) for i in range(3)]
    z, y, x = np.meshgrid(*[axis.astype(np.float32) for axis in axes], indexing="ij")
    return Coordinates(x=x, y=y, z=z)


def noise(rng: np.random.Generator, wavelength_mm: float, octaves: float = 0.5, stretch: Point = (1, 1, 1)) -> Array:
    """Band-limited Gaussian noise of unit variance on the coarse grid, its band ``octaves`` wide.

    ``stretch`` multiplies the wavelength along (slice, row, column).
    """
    white = rng.standard_normal(COARSE_SHAPE, dtype=np.float32)
    spectrum = np.fft.rfftn(white)
    fz, fy = (np.fft.fftfreq(n, COARSE_MM).astype(np.float32) for n in COARSE_SHAPE[:2])
    fx = np.fft.rfftfreq(COARSE_SHAPE[2], COARSE_MM).astype(np.float32)
    f = np.sqrt(
        (fz * stretch[0])[:, None, None] ** 2 + (fy * stretch[1])[None, :, None] ** 2 + (fx * stretch[2]) ** 2 + 1e-9
    )
    spectrum *= np.exp(-0.5 * (np.log2(f * wavelength_mm) / octaves) ** 2)
    field = np.fft.irfftn(spectrum, s=COARSE_SHAPE, axes=(0, 1, 2)).astype(np.float32)
    return field / (float(field.std()) + 1e-9)


def ellipsoid(c: Coordinates, centre: Point, radii: Point) -> Array:
    """First-order signed distance to an ellipsoid [mm], negative inside."""
    dx, dy, dz = c.x - centre[0], c.y - centre[1], c.z - centre[2]
    k0 = np.sqrt((dx / radii[0]) ** 2 + (dy / radii[1]) ** 2 + (dz / radii[2]) ** 2)
    k1 = np.sqrt((dx / radii[0] ** 2) ** 2 + (dy / radii[1] ** 2) ** 2 + (dz / radii[2] ** 2) ** 2)
    distance: Array = k0 * (k0 - 1.0) / (k1 + 1e-6)
    return distance


def capsule(c: Coordinates, start: Point, end: Point, radius: float, end_radius: float | None = None) -> Array:
    """Signed distance to a capsule that tapers from ``radius`` to ``end_radius`` [mm]."""
    axis = np.array(end, np.float32) - np.array(start, np.float32)
    dx, dy, dz = c.x - start[0], c.y - start[1], c.z - start[2]
    along = np.clip((dx * axis[0] + dy * axis[1] + dz * axis[2]) / float(axis @ axis), 0.0, 1.0)
    away = np.sqrt((dx - along * axis[0]) ** 2 + (dy - along * axis[1]) ** 2 + (dz - along * axis[2]) ** 2)
    distance: Array = away - (radius + along * ((radius if end_radius is None else end_radius) - radius))
    return distance


def smooth_min(a: Array, b: Array, width: float) -> Array:
    """The union of two distances with a fillet of ``width`` [mm]."""
    h = np.clip(0.5 + 0.5 * (b - a) / width, 0.0, 1.0)
    union: Array = b + (a - b) * h - width * h * (1.0 - h)
    return union


def upsample(field: Array) -> Array:
    """A coarse block, interpolated to the fine voxels between its own: n becomes 2 n - 1 on every axis."""
    size = tuple(2 * n - 1 for n in field.shape)
    block = torch.from_numpy(np.ascontiguousarray(field))[None, None]
    fine = torch.nn.functional.interpolate(block, size=size, mode="trilinear", align_corners=True)
    return np.asarray(fine[0, 0].numpy())


def cover(distance: Array, soft_mm: float = FINE_MM) -> Array:
    """How much of a voxel lies inside, from its signed distance: a ramp ``soft_mm`` wide."""
    inside: Array = np.clip(0.5 - distance / soft_mm, 0.0, 1.0)
    return inside


def box_of(inside: NDArray[np.bool_]) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
    """The coarse box round the true voxels with a margin of one, and the fine box it becomes; None without any."""
    coarse, fine = [], []
    for axis in range(3):
        hit = np.flatnonzero(inside.any(axis=tuple(k for k in range(3) if k != axis)))
        if not hit.size:
            return None
        low, high = max(0, int(hit[0]) - 1), min(inside.shape[axis] - 1, int(hit[-1]) + 1)
        coarse.append(slice(low, high + 1))
        fine.append(slice(2 * low, 2 * high + 1))
    return tuple(coarse), tuple(fine)


def paint(volume: Array, distance: Array, value: float | Array, soft_mm: float = FINE_MM, share: float = 1.0) -> None:
    """Blend ``value`` into the fine ``volume`` where the coarse ``distance`` is negative; changes ``volume``.

    ``value`` may be a coarse field; ``share`` is the opacity.
    """
    boxes = box_of(distance < soft_mm)
    if boxes is None:
        return
    coarse, fine = boxes
    weight = cover(upsample(distance[coarse]), soft_mm) * share
    target = upsample(value[coarse]) if isinstance(value, np.ndarray) else np.float32(value)
    volume[fine] += weight * (target - volume[fine])
