"""Measurement along any trajectory (radial, spiral), with exact adjoint, on FINUFFT (Barnett, SISC 2019, 41:C479)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from pytorch_finufft.functional import finufft_type1, finufft_type2
from torch import Tensor

from models.mr_recon.coils import centre
from models.mr_recon.fft import fft2c

#: Relative error of the transform: below the rounding of complex64 sums over a trajectory.
PRECISION = 1e-6


def _points(trajectory: Tensor, shape: tuple[int, int]) -> Tensor:
    """(2, sample) in radians per pixel."""
    size = torch.tensor(shape, dtype=trajectory.dtype, device=trajectory.device)
    return (2 * torch.pi * trajectory / size).mT.contiguous()


def _to_samples(points: Tensor, images: Tensor) -> Tensor:
    scale = (images.shape[-2] * images.shape[-1]) ** -0.5
    return scale * finufft_type2(points, images.contiguous(), isign=-1, modeord=0, eps=PRECISION)


def _to_image(points: Tensor, samples: Tensor, shape: tuple[int, int]) -> Tensor:
    scale = (shape[0] * shape[1]) ** -0.5
    return scale * finufft_type1(points, samples.contiguous(), shape, isign=1, modeord=0, eps=PRECISION)


@dataclass(frozen=True, slots=True, eq=False)
class NonUniform:
    """SENSE along a trajectory (Pruessmann, Magn Reson Med 2001, 46:638).

    Orthonormal as `models.mr_recon.fft.fft2c` is: at whole numbers of the trajectory both give the same samples.
    """

    #: float32 (sample, 2): (ky, kx) in cycles per field of view, from -N/2 to N/2.
    trajectory: Tensor
    #: (row, column).
    shape: tuple[int, int]
    #: complex64 (..., coil, row, column).
    maps: Tensor
    #: Real (sample,), or None for ones: multiplies every sample, as the square root of its weight in the least squares.
    weights: Tensor | None = None
    #: Spectrum of the point spread on the grid twice as large, by which `normal` is a convolution (Wajer and
    #: Pruessmann, ISMRM 2001, 767).
    spectrum: Tensor = field(init=False)

    def __post_init__(self) -> None:
        double = (2 * self.shape[0], 2 * self.shape[1])
        power = torch.ones(len(self.trajectory)) if self.weights is None else self.weights**2
        power = power.to(self.trajectory.device).to(torch.complex64)
        # On the doubled field of view the same frequency is twice as many cycles.
        points = _points(self.trajectory, self.shape)
        scale = 1 / (self.shape[0] * self.shape[1])
        spread = scale * finufft_type1(points, power, double, isign=1, modeord=0, eps=PRECISION)
        # The true spread is Hermitian, so its spectrum is real; index -N has no counterpart and is never used.
        object.__setattr__(self, "spectrum", fft2c(spread).real * (double[0] * double[1]) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(..., row, column) to (..., coil, sample)."""
        y = _to_samples(_points(self.trajectory, self.shape), self.maps * x.unsqueeze(-3))
        return y if self.weights is None else self.weights * y

    def adjoint(self, y: Tensor) -> Tensor:
        """(..., coil, sample) to (..., row, column)."""
        weighted = y if self.weights is None else self.weights * y
        images = _to_image(_points(self.trajectory, self.shape), weighted, self.shape)
        return (self.maps.conj() * images).sum(-3)

    def normal(self, x: Tensor) -> Tensor:
        """``adjoint(forward(x))``, without leaving the grid."""
        double = (2 * self.shape[0], 2 * self.shape[1])
        padded = centre(self.maps * x.unsqueeze(-3), double)
        spectrum = torch.fft.ifftshift(self.spectrum, (-2, -1))
        spread = torch.fft.ifft2(spectrum * torch.fft.fft2(padded))
        return (self.maps.conj() * centre(spread, self.shape)).sum(-3)


def density(trajectory: Tensor, shape: tuple[int, int], iterations: int = 20) -> Tensor:
    """Weights that make ``adjoint(weights * samples)`` the image (Pipe and Menon, Magn Reson Med 1999, 41:179).

    Parameters
    ----------
    trajectory
        float32 (sample, 2): (ky, kx) in cycles per field of view.

    Returns
    -------
    float32 (sample,).
    """
    corners, shares = _neighbours(trajectory, shape)
    cells = 4 * (shape[0] + 8) * (shape[1] + 8)
    weights = torch.ones(len(trajectory), device=trajectory.device)
    for _ in range(iterations):
        grid = torch.zeros(cells, device=trajectory.device)
        grid.index_add_(0, corners.flatten(), (shares * weights[:, None]).flatten())
        weights = weights / (grid[corners] * shares).sum(-1).clamp(min=torch.finfo(torch.float32).tiny)
    return weights * _scale(trajectory, shape, weights)


def _neighbours(trajectory: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Cells (sample, neighbour) of the grid twice as fine around every sample, and the kernel's values there."""
    radius = 2  # cells: the kernel is one cycle per field of view wide to both sides
    place = 2 * trajectory + torch.tensor(shape, device=trajectory.device) + 8
    offsets = torch.arange(-radius + 1, radius + 1, device=trajectory.device)
    cells, shares = [], []
    for dim in range(2):
        base = place[:, dim].floor()
        near = base[:, None] + offsets
        shares.append((1 - (near - place[:, dim, None]).abs() / radius).clamp(min=0))
        cells.append(near.long().clamp(0, 2 * (shape[dim] + 8) - 1))
    index = cells[0][:, :, None] * (2 * (shape[1] + 8)) + cells[1][:, None, :]
    share = shares[0][:, :, None] * shares[1][:, None, :]
    return index.flatten(1), share.flatten(1)


def _scale(trajectory: Tensor, shape: tuple[int, int], weights: Tensor) -> float:
    """The factor that gives a smooth object back at its own size."""
    sides = [torch.arange(size, device=trajectory.device) - size // 2 for size in shape]
    width = min(shape) / 16
    blob = torch.exp(-(sides[0][:, None] ** 2 + sides[1][None] ** 2) / (2 * width**2)).to(torch.complex64)
    points = _points(trajectory, shape)
    again = _to_image(points, weights * _to_samples(points, blob), shape)
    return float((blob.abs() ** 2).sum() / (again * blob.conj()).real.sum())
