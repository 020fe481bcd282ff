"""Between an image's own pixels and the square grids that networks see: one weight matrix along each axis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A square of pixels around the heart."""

    pixels: int
    pixel_mm: float

    @property
    def places(self) -> NDArray[np.float64]:
        """(pixels,) places of its rows, or columns, from its middle [mm]."""
        return np.asarray((np.arange(self.pixels) - (self.pixels - 1) / 2) * self.pixel_mm, np.float64)


def weights(target: NDArray[np.float64], source: NDArray[np.float64]) -> Tensor:
    """(target, source) weights of a triangle as wide as the coarser of two regular axes [mm].

    That is linear interpolation towards a finer axis, and a mean over the neighbourhood towards a coarser one. A place
    outside the source has no weight.
    """
    width = max(abs(target[1] - target[0]), abs(source[1] - source[0]))
    triangle = np.maximum(0.0, 1.0 - np.abs(target[:, None] - source[None, :]) / width)
    total = triangle.sum(1, keepdims=True)
    edge = (target < source[0] - width / 2) | (target > source[-1] + width / 2)
    triangle = np.where((total > 1e-6) & ~edge[:, None], triangle / np.maximum(total, 1e-6), 0.0)
    return torch.from_numpy(triangle.astype(np.float32))


def axes_of(
    shape: tuple[int, int], spacing: tuple[float, float], centre: tuple[float, float]
) -> list[NDArray[np.float64]]:
    """Places [mm] of the rows and of the columns of an image from ``centre`` (row, column) [pixels]."""
    return [np.asarray((np.arange(n) - c) * s, np.float64) for n, s, c in zip(shape, spacing, centre, strict=True)]


def resample(fields: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(..., row, column) through the weights of both axes."""
    return rows @ fields @ columns.T
