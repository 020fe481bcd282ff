"""Figures of merit of a CT denoiser. Images are (row, column) tensors in HU unless stated."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from models.ct_denoise.noise import gaussian_blur

#: PSNR and SSIM are taken in this window [HU]; its width is the data range.
WINDOW: Final = (-160.0, 240.0)
#: Channel widths of the Laguerre-Gauss channels [share of the insert's radius] and their number.
CHANNELS: Final = 6
CHANNEL_WIDTH: Final = 1.5
#: Distance on either side of an edge that its spread is measured over [mm]: longer than that of every kernel here.
EDGE_MM: Final = 5.0


def _windowed(image: Tensor) -> Tensor:
    return image.clamp(*WINDOW)


def rmse(reference: Tensor, image: Tensor, mask: Tensor) -> float:
    """Root mean square error in ``mask`` [HU], full range."""
    return float((reference - image)[mask].square().mean().sqrt())


def psnr(reference: Tensor, image: Tensor, mask: Tensor) -> float:
    """Peak signal to noise ratio in ``mask`` [dB] after clipping to `WINDOW`."""
    error = (_windowed(reference) - _windowed(image))[mask].square().mean().clamp(min=1e-12)
    return float(10.0 * torch.log10((WINDOW[1] - WINDOW[0]) ** 2 / error))


def snr(reference: Tensor, image: Tensor, mask: Tensor) -> float:
    """Signal to noise ratio in ``mask`` [dB]: variance of the reference over the mean square error, in `WINDOW`."""
    given, got = _windowed(reference)[mask], _windowed(image)[mask]
    return float(10.0 * torch.log10(given.var() / (given - got).square().mean().clamp(min=1e-12)))


def structure_share(removed: Tensor) -> float:
    """Share of the variance of what was removed (realisation, pixel) that all realisations have in common.

    Noise differs from scan to scan, so what two scans of one object lose alike is structure: their mean covariance over
    their mean variance, 0 for a denoiser that removes noise only.
    """
    centred = removed.double() - removed.double().mean(1, keepdim=True)
    covariance = centred @ centred.T / centred.shape[1]
    count = len(removed)
    between = (covariance.sum() - covariance.diagonal().sum()) / (count * (count - 1))
    return float(between / covariance.diagonal().mean())


def ssim(reference: Tensor, image: Tensor, mask: Tensor) -> float:
    """Mean structural similarity in ``mask``, Gaussian window of 1.5 pixels (Wang et al. 2004), in `WINDOW`."""
    x, y = _windowed(reference)[None, None].double(), _windowed(image)[None, None].double()
    span = WINDOW[1] - WINDOW[0]
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    mx, my = gaussian_blur(x, 1.5), gaussian_blur(y, 1.5)
    vx, vy = gaussian_blur(x * x, 1.5) - mx * mx, gaussian_blur(y * y, 1.5) - my * my
    cov = gaussian_blur(x * y, 1.5) - mx * my
    values = (2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return float(values[0, 0][mask].mean())


def _correlation(x: Tensor, y: Tensor) -> float:
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x.norm() * y.norm()).clamp(min=1e-12))


def edge_preservation(reference: Tensor, image: Tensor, mask: Tensor) -> float:
    """EPI: correlation of the Laplacians of reference and output in ``mask`` (Sattar et al. 1997)."""
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    pair = [F.conv2d(_windowed(part)[None, None], kernel, padding=1)[0, 0][mask] for part in (reference, image)]
    return _correlation(*pair)


def correlation(reference: Tensor, image: Tensor, mask: Tensor) -> float:
    """CoC: Pearson correlation of reference and output in ``mask``."""
    return _correlation(_windowed(reference)[mask], _windowed(image)[mask])


def noise_spectrum(noise: Tensor, pixel_mm: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Radial noise power of realisations (realisation, row, column): frequency [lp/mm] and power, 40 rings."""
    size = noise.shape[-1]
    noise = noise - noise.mean((-2, -1), keepdim=True)
    window = torch.outer(torch.hann_window(size), torch.hann_window(size))
    power = (torch.fft.rfft2(noise * window).abs() ** 2).mean(0).double().numpy()
    fy, fx = np.fft.fftfreq(size, pixel_mm), np.fft.rfftfreq(size, pixel_mm)
    radius = np.hypot(fy[:, None], fx[None])
    ring = np.minimum((radius * pixel_mm * 2.0 * 40).astype(int), 40)
    counts = np.bincount(ring.ravel(), minlength=41)[:40]
    sums = np.bincount(ring.ravel(), weights=power.ravel(), minlength=41)[:40]
    frequency = ((np.arange(40) + 0.5) / 80.0 / pixel_mm).astype(np.float64)
    return frequency, sums / np.maximum(counts, 1)


def mean_frequency(frequency: NDArray[np.float64], power: NDArray[np.float64]) -> float:
    """Mean frequency [lp/mm] of the two-dimensional noise power, from its radial profile."""
    weight = power * frequency
    return float((weight * frequency).sum() / weight.sum())


def ttf50(disc: Tensor, centre: tuple[float, float], radius_mm: float, pixel_mm: float) -> float:
    """Frequency [lp/mm] where the task transfer function of a disc's edge falls to one half (Richard et al. 2012).

    ``disc``: the disc alone (row, column) [HU], background 0; ``centre`` (row, column) [pixel]. NaN if it never does.
    """
    rows, columns = torch.meshgrid(*(torch.arange(n) for n in disc.shape), indexing="ij")
    radius = torch.sqrt((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2) * pixel_mm
    step = pixel_mm / 4.0
    reach = EDGE_MM
    near = (radius - radius_mm).abs() < reach
    edges = np.arange(radius_mm - reach, radius_mm + reach + step, step)
    which = np.digitize(radius[near].numpy(), edges) - 1
    counts = np.bincount(which, minlength=len(edges))[: len(edges) - 1]
    sums = np.bincount(which, weights=disc[near].double().numpy(), minlength=len(edges))[: len(edges) - 1]
    esf = np.interp(np.arange(len(counts)), np.flatnonzero(counts), (sums / np.maximum(counts, 1))[counts > 0])
    taper = np.clip(2.0 * (1.0 - np.abs(np.linspace(-1.0, 1.0, len(esf) - 1))), 0.0, 1.0)
    lsf = np.diff(esf) * np.sin(0.5 * np.pi * taper) ** 2  # flat over the middle half: a full Hann would sharpen it
    ttf = np.abs(np.fft.rfft(lsf, 8192))
    ttf = ttf / ttf[0]
    below = np.flatnonzero(ttf < 0.5)
    return float(np.fft.rfftfreq(8192, step)[below[0]]) if below.size else float("nan")


def disc_mask(shape: tuple[int, int], centre: tuple[float, float], radius: float) -> Tensor:
    """True inside a disc; all in pixels."""
    rows, columns = torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij")
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2


def npw_scores(images: Tensor, template: Tensor) -> Tensor:
    """Response of the non-prewhitening observer: inner product with the expected signal; (realisation,)."""
    return (images * template).flatten(1).sum(1)


def laguerre_gauss(size: int, width: float) -> Tensor:
    """Rotationally symmetric Laguerre-Gauss channels (channel, row, column) of ``width`` pixels (Gallas 2003)."""
    axis = torch.arange(size, dtype=torch.float64) - (size - 1) / 2.0
    g = 2.0 * torch.pi * (axis[:, None] ** 2 + axis[None] ** 2) / width**2
    previous, current = torch.zeros_like(g), torch.ones_like(g)
    channels = []
    for order in range(CHANNELS):
        channels.append((current * torch.exp(-g / 2.0)) / width)
        previous, current = current, ((2 * order + 1 - g) * current - order * previous) / (order + 1)
    return torch.stack(channels)


def detectability(present: Tensor, absent: Tensor) -> float:
    """d' of two sets of channel outputs or scores (realisation[, channel]), Hotelling observer."""
    present, absent = (part.double().reshape(len(part), -1) for part in (present, absent))
    difference = present.mean(0) - absent.mean(0)
    covariance = 0.5 * (_covariance(present) + _covariance(absent))
    return float(torch.sqrt((difference * torch.linalg.solve(covariance, difference)).sum().clamp(min=0.0)))


def _covariance(values: Tensor) -> Tensor:
    centred = values - values.mean(0)
    return centred.T @ centred / max(1, len(values) - 1)


def ratio_interval(before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor], draws: int = 1000) -> tuple[float, ...]:
    """d' after / d' before with its 95 % interval, bootstrapped over realisations that both share."""
    generator = torch.Generator().manual_seed(1)
    ratios = []
    for _ in range(draws):
        index = [torch.randint(len(part), (len(part),), generator=generator) for part in before]
        old = detectability(before[0][index[0]], before[1][index[1]])
        new = detectability(after[0][index[0]], after[1][index[1]])
        ratios.append(new / max(old, 1e-6))
    low, high = np.quantile(ratios, [0.025, 0.975])
    return detectability(*after) / max(detectability(*before), 1e-6), float(low), float(high)
