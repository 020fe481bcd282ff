"""Orthogonal wavelet transforms of images of any size, periodic, on torch.

Each level is one orthonormal matrix along each axis: at the sizes of MR images the products with dense matrices are
faster than strided convolutions, and the inverse is the transpose exactly. Where an axis is odd its last sample is
handed to the next level untouched, so that the transform stays square and orthogonal.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

#: Low-pass filters (Daubechies, Ten Lectures on Wavelets, 1992, table 6.1); "db4" has 4 vanishing moments, 8 taps.
FILTERS = {
    "haar": (0.7071067811865476, 0.7071067811865476),
    "db4": (
        0.23037781330885523, 0.7148465705525415, 0.6308807679295904, -0.02798376941698385,
        -0.18703481171888114, 0.030841381835986965, 0.032883011666982945, -0.010597401784997278,
    ),
}  # fmt: skip
#: The coarsest approximation is at least this long: shorter ones carry contrast, not detail.
COARSEST = 12


@lru_cache(maxsize=64)
def step(size: int, name: str) -> Tensor:
    """Real float32 (size, size), orthonormal: rows of averages first (a left-over sample last), then details."""
    low = FILTERS[name]
    half, even = size // 2, size - size % 2
    # Kept for later calls, which may want gradients: an inference tensor would refuse them.
    with torch.inference_mode(False):
        matrix = torch.zeros(size, size, dtype=torch.float64)
        for row in range(half):
            for tap, value in enumerate(low):
                column = (2 * row + tap) % even
                matrix[row, column] += value
                matrix[size - half + row, column] += (-1) ** tap * low[len(low) - 1 - tap]
        if size % 2:
            matrix[half, size - 1] = 1.0
        return matrix.float()


def levels(shape: tuple[int, int], name: str) -> list[tuple[int, int]]:
    """The sizes (row, column) that each level transforms, finest first."""
    shortest = max(COARSEST, len(FILTERS[name]))
    sizes = []
    rows, columns = shape
    while min(rows, columns) // 2 >= shortest:
        sizes.append((rows, columns))
        rows, columns = (rows + 1) // 2, (columns + 1) // 2
    return sizes


def forward(x: Tensor, name: str = "db4") -> Tensor:
    """Coefficients of (..., row, column), in the same shape, the approximation in the upper left corner."""
    parts = torch.stack((x.real, x.imag))
    for rows, columns in levels((x.shape[-2], x.shape[-1]), name):
        down, across = step(rows, name).to(x.device), step(columns, name).to(x.device)
        parts[..., :rows, :columns] = down @ parts[..., :rows, :columns] @ across.mT
    return torch.complex(parts[0], parts[1])


def inverse(coefficients: Tensor, name: str = "db4") -> Tensor:
    """The image of ``coefficients``: inverse and adjoint at once."""
    parts = torch.stack((coefficients.real, coefficients.imag))
    for rows, columns in reversed(levels((coefficients.shape[-2], coefficients.shape[-1]), name)):
        down, across = step(rows, name).to(parts.device), step(columns, name).to(parts.device)
        parts[..., :rows, :columns] = down.mT @ parts[..., :rows, :columns] @ across
    return torch.complex(parts[0], parts[1])


def approximation(shape: tuple[int, int], name: str = "db4") -> tuple[int, int]:
    """Size (row, column) of the approximation that `forward` leaves in the corner."""
    sizes = levels(shape, name)
    return ((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2) if sizes else shape


def shrink(x: Tensor, threshold: float, name: str = "db4", shift: tuple[int, int] = (0, 0)) -> Tensor:
    """Soft-threshold the details of ``x``, the transform shifted by ``shift`` (Figueiredo, TIP 2003, 12:906)."""
    coefficients = forward(torch.roll(x, shift, (-2, -1)), name)
    rows, columns = approximation((x.shape[-2], x.shape[-1]), name)
    kept = coefficients[..., :rows, :columns].clone()
    size = coefficients.abs()
    coefficients = coefficients * ((size - threshold).clamp(min=0) / size.clamp(min=torch.finfo(size.dtype).tiny))
    coefficients[..., :rows, :columns] = kept
    return torch.roll(inverse(coefficients, name), (-shift[0], -shift[1]), (-2, -1))
