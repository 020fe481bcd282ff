"""Centred orthonormal Fourier transforms: the centre of image and k-space is index N // 2, for odd N too."""

from __future__ import annotations

import torch
from torch import Tensor


def fftc(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Image to k-space along ``dims``."""
    shifted = torch.fft.ifftshift(x, dims)
    return torch.fft.fftshift(torch.fft.fftn(shifted, dim=dims, norm="ortho"), dims)


def ifftc(k: Tensor, dims: tuple[int, ...]) -> Tensor:
    """K-space to image along ``dims``."""
    shifted = torch.fft.ifftshift(k, dims)
    return torch.fft.fftshift(torch.fft.ifftn(shifted, dim=dims, norm="ortho"), dims)


def fft2c(x: Tensor) -> Tensor:
    """(..., row, column) to (..., ky, kx)."""
    return fftc(x, (-2, -1))


def ifft2c(k: Tensor) -> Tensor:
    """(..., ky, kx) to (..., row, column)."""
    return ifftc(k, (-2, -1))
