"""Where pixels lie: from MRD's centre of the volume and direction cosines to the patient's coordinates, LPS mm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.mr_recon.fft import fftc

#: Departure from right angles and unit length that rounding in a header explains; more is a mistake in it.
TOLERANCE: Final = 1e-3
#: Fields of view and pixels agree if they differ by less than this part of a pixel over the whole image.
SAME: Final = 1e-4

Vector = tuple[float, float, float]


class GeometryError(ValueError):
    """The direction cosines of a readout say nothing usable."""


@dataclass(frozen=True, slots=True, eq=False)
class Plane:
    """Geometry of one image."""

    #: Centre of the first pixel, float64 (3,), LPS [mm].
    position: NDArray[np.float64]
    #: Direction of a row then of a column, float64 (6,).
    orientation: NDArray[np.float64]


def directions(read: Vector, phase: Vector, through: Vector) -> NDArray[np.float64]:
    """Unit vectors (3, 3): readout, phase encoding, slice; exactly at right angles.

    Raises
    ------
    GeometryError
        They are zero, not finite, or not at right angles.
    """
    x, y, z = (np.array(v, np.float64) for v in (read, phase, through))
    for name, vector in (("read_dir", x), ("phase_dir", y)):
        length = float(np.linalg.norm(vector))
        if not np.isfinite(length) or length < TOLERANCE:
            raise GeometryError(f"{name} is {tuple(vector.tolist())}: the header gives no direction")
        if abs(length - 1) > TOLERANCE:
            raise GeometryError(f"{name} has length {length:.4f}, not 1")
    if abs(float(x @ y)) > TOLERANCE:
        raise GeometryError(f"read_dir and phase_dir are not at right angles (cosine {float(x @ y):.4f})")
    x /= np.linalg.norm(x)
    y -= (x @ y) * x
    y /= np.linalg.norm(y)
    normal = np.cross(x, y)
    if not np.isfinite(z).all() or np.linalg.norm(z) < TOLERANCE:
        return np.stack((x, y, normal))
    if abs(abs(float(z @ normal)) - 1) > TOLERANCE:
        raise GeometryError(f"slice_dir {tuple(z.tolist())} is not at right angles to read_dir and phase_dir")
    return np.stack((x, y, normal * np.sign(z @ normal)))


def plane(
    position: Vector, axes: NDArray[np.float64], matrix: Vector, fov: Vector, partition: int | None = None
) -> Plane:
    """The plane of an image whose centre, index N // 2 of a centred Fourier transform, lies at ``position``.

    Parameters
    ----------
    position
        Centre of the excited volume [mm].
    axes
        Of `directions`.
    matrix, fov
        Of the image: columns, rows, partitions, and their extent [mm].
    partition
        Index of the partition of a volume; None: the slice is the volume.
    """
    middle = [int(matrix[0]) // 2, int(matrix[1]) // 2, 0.0]
    if partition is not None:
        middle[2] = int(matrix[2]) // 2 - partition
    size = np.array(fov, np.float64) / np.array(matrix, np.float64)
    first = np.array(position, np.float64) - (np.array(middle) * size) @ axes
    return Plane(first, np.concatenate((axes[0], axes[1])))


#: How planes are hung: by the axis nearest to their normal, where rows and columns point, LPS. Axial ones are seen from
#: the feet, coronal ones from the front, sagittal ones from the left.
HANGING: Final = (
    ((0.0, 1.0, 0.0), (0.0, 0.0, -1.0)),
    ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0)),
    ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)),
)


def lies(orientation: NDArray[np.float64]) -> bool:
    """Whether rows and columns of a plane must change places to be hung as readers expect."""
    along, down = orientation[:3], orientation[3:]
    row, _ = HANGING[int(np.abs(np.cross(along, down)).argmax())]
    return bool(abs(down @ np.array(row)) > abs(along @ np.array(row)) + TOLERANCE)


def hung(
    pixels: Tensor, where: Plane, spacing: tuple[float, float], *, transpose: bool
) -> tuple[Tensor, Plane, tuple[float, float]]:
    """The same plane as readers expect it: turned over, and transposed if asked; every voxel stays where it lies.

    Parameters
    ----------
    pixels
        (row, column).
    spacing
        Between rows, between columns [mm].
    """
    along, down, first = where.orientation[:3], where.orientation[3:], where.position
    if transpose:
        pixels, along, down, spacing = pixels.mT, down, along, (spacing[1], spacing[0])
    row, column = HANGING[int(np.abs(np.cross(along, down)).argmax())]
    if along @ np.array(row) < 0:
        first, along, pixels = first + (pixels.shape[1] - 1) * spacing[1] * along, -along, pixels.flip(1)
    if down @ np.array(column) < 0:
        first, down, pixels = first + (pixels.shape[0] - 1) * spacing[0] * down, -down, pixels.flip(0)
    return pixels, Plane(first, np.concatenate((along, down))), spacing


def resample(image: Tensor, dim: int, fov: float, size: int, new_fov: float) -> Tensor:
    """``image`` on ``size`` pixels over ``new_fov``, by its own Fourier series: exact, both centres at index N // 2.

    Finer pixels are zero filling of k-space, coarser ones crop it; beyond the old field of view there is nothing.
    """
    have = image.shape[dim]
    same_pixel = abs(new_fov / size * have / fov - 1) * max(have, size) < SAME
    if same_pixel and size == have:
        return image
    if same_pixel and size < have:
        return image.narrow(dim, have // 2 - size // 2, size)
    # x_m = N^-1/2 sum_k X_k exp(2 pi i k r_m / fov), with r_m the place of pixel m
    k = torch.arange(have, dtype=torch.float64) - have // 2
    place = (torch.arange(size, dtype=torch.float64) - size // 2) * (new_fov / size / fov)
    series = torch.exp(2j * torch.pi * place[:, None] * k[None, :]) / have**0.5
    highest = size * fov / new_fov / 2
    series[:, (k < -highest - 1e-9) | (k >= highest - 1e-9)] = 0
    series[(place < -0.5 - 1e-9) | (place > 0.5 + 1e-9)] = 0
    spectrum = fftc(image, (dim,)).movedim(dim, -1)
    return (spectrum @ series.mT.to(spectrum.dtype).to(spectrum.device)).movedim(-1, dim)
