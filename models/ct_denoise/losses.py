"""The terms of the training loss: one number per batch each, lower is better, errors in multiples of sigma."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from models.ct_denoise.noise import SOFT_TISSUE

#: Where the Charbonnier loss turns from quadratic to linear [sigma].
CHARBONNIER_EPSILON: Final = 0.05
#: Weight of air in the pixel loss: its noise is clipped and nobody reads it.
AIR_WEIGHT: Final = 0.3
#: The window in which soft tissue is read, and PSNR is taken [HU].
READ: Final = (-160.0, 240.0)
#: Bins of the radial noise spectrum.
SPECTRUM_BINS: Final = 16


def charbonnier(error: Tensor, clean: Tensor, epsilon: float = CHARBONNIER_EPSILON, outside: float = 1.0) -> Tensor:
    """Mean of sqrt(e^2 + eps^2) of ``error`` [sigma], air counted less; both (batch, 1, row, column).

    ``outside``: weight of what lies outside the window in which soft tissue is read; air never counts more than that.
    """
    weight = torch.where((clean > READ[0]) & (clean < READ[1]), 1.0, outside)
    weight = torch.where(clean > -900.0, weight, min(AIR_WEIGHT, outside))
    return (weight * torch.sqrt(error**2 + epsilon**2)).sum() / weight.sum()


def gradient_l1(error: Tensor, clean: Tensor) -> Tensor:
    """Mean absolute gradient of ``error`` [sigma] in soft tissue: keeps small edges where contrast is low."""
    soft = ((clean > SOFT_TISSUE[0]) & (clean < SOFT_TISSUE[1])).to(error.dtype)
    along_row = (error[..., :, 1:] - error[..., :, :-1]).abs() * soft[..., :, 1:]
    along_column = (error[..., 1:, :] - error[..., :-1, :]).abs() * soft[..., 1:, :]
    return (along_row.sum() + along_column.sum()) / (2.0 * soft.sum() + 1.0)


def radial_spectrum(image: Tensor) -> Tensor:
    """Mean power in `SPECTRUM_BINS` rings up to Nyquist of Hann-windowed images (batch, row, column): (batch, bin)."""
    rows, columns = image.shape[-2:]
    window = torch.outer(torch.hann_window(rows, device=image.device), torch.hann_window(columns, device=image.device))
    power = torch.fft.rfft2(image * window).abs() ** 2
    fy = torch.fft.fftfreq(rows, device=image.device)
    fx = torch.fft.rfftfreq(columns, device=image.device)
    ring = (torch.sqrt(fy[:, None] ** 2 + fx[None] ** 2) * 2.0 * SPECTRUM_BINS).long().clamp(max=SPECTRUM_BINS)
    membership = torch.nn.functional.one_hot(ring.flatten(), SPECTRUM_BINS + 1)[:, :SPECTRUM_BINS].to(image.dtype)
    return power.flatten(1) @ membership / membership.sum(0).clamp(min=1.0)


def spectrum_shape(noise_in: Tensor, noise_out: Tensor) -> Tensor:
    """How far the spectrum of ``noise_out`` is from being proportional to that of ``noise_in`` (batch, row, column).

    Variance over the rings of log(P_out / P_in), each ring weighted by its share of the input's power: 0 for a
    denoiser that only turns the noise down and leaves its texture.
    """
    power_in = radial_spectrum(noise_in.float())
    power_out = radial_spectrum(noise_out.float())
    frequency = torch.arange(SPECTRUM_BINS, device=noise_in.device) + 0.5
    share = power_in * frequency  # rings hold pixels in proportion to their radius
    share = share / share.sum(1, keepdim=True).clamp(min=1e-12)
    floor = 1e-4 * power_in.amax(1, keepdim=True)
    ratio = torch.log((power_out + floor) / (power_in + floor))
    mean = (share * ratio).sum(1, keepdim=True)
    return (share * (ratio - mean) ** 2).sum(1).mean()


def insert_loss(response: Tensor, insert: Tensor) -> Tensor:
    """Share of a low-contrast insert that the network takes for noise: mean of its area's share and its edge's.

    ``response``: predicted noise with the insert less without it, same noise [HU]; ``insert`` [HU]; (batch, 1, row,
    column). 0 when the insert passes whole, 1 when it is removed.
    """
    return 0.5 * (
        _share(response, insert) + 0.5 * sum(_share(response.diff(dim=d), insert.diff(dim=d)) for d in (2, 3))
    )


def _share(lost: Tensor, given: Tensor) -> Tensor:
    """Mean of |lost| / max |given| where ``given`` is, weighted by |given|; (batch, 1, row, column)."""
    peak = given.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-3)
    weight = given.abs() / peak
    return ((lost.abs() / peak * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3)).clamp(min=1e-3)).mean()
