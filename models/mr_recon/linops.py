"""Linear operators of the measurement: ``forward``, its exact ``adjoint``, and ``normal``, the one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from models.mr_recon.fft import fft2c, ifft2c


class Operator(Protocol):
    """From image to measurement."""

    def forward(self, x: Tensor) -> Tensor:
        """Image to measurement."""

    def adjoint(self, y: Tensor) -> Tensor:
        """Measurement to image."""

    def normal(self, x: Tensor) -> Tensor:
        """``adjoint(forward(x))``."""


@dataclass(frozen=True, slots=True, eq=False)
class Sense:
    """Cartesian measurement with coils (Pruessmann, Magn Reson Med 1999, 42:952); one coil of ones is single coil."""

    #: complex64 (..., coil, row, column).
    maps: Tensor
    #: Real (..., 1, ky, kx): 0 where nothing was measured; else 1, or the square root of the averages.
    mask: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(..., row, column) to (..., coil, ky, kx)."""
        return self.mask * fft2c(self.maps * x.unsqueeze(-3))

    def adjoint(self, y: Tensor) -> Tensor:
        """(..., coil, ky, kx) to (..., row, column)."""
        return (self.maps.conj() * ifft2c(self.mask * y)).sum(-3)

    def normal(self, x: Tensor) -> Tensor:
        """(..., row, column) to the same."""
        return self.adjoint(self.forward(x))


@dataclass(frozen=True, slots=True, eq=False)
class SoftSense:
    """Measurement of images that lie over each other, each with coil maps of its own (Uecker, Magn Reson Med 2014)."""

    #: complex64 (set, coil, row, column).
    maps: Tensor
    #: As ``Sense`` has it.
    mask: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(..., set, row, column) to (..., coil, ky, kx)."""
        return self.mask * fft2c((self.maps * x.unsqueeze(-3)).sum(-4))

    def adjoint(self, y: Tensor) -> Tensor:
        """(..., coil, ky, kx) to (..., set, row, column)."""
        return (self.maps.conj() * ifft2c(self.mask * y).unsqueeze(-4)).sum(-3)

    def normal(self, x: Tensor) -> Tensor:
        """(..., set, row, column) to the same."""
        return self.adjoint(self.forward(x))
