"""A measurement from a magnitude image: phase, coils, noise, sampling and the maps a reconstruction would have.

Ranges: ml-mr 1.3. The reference of a measurement is what the same maps make of complete data without noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from models.mr_recon import coils as coil_maps
from models.mr_recon.fft import fft2c
from models.mr_recon.masks import Lines

#: Signal of the body over the noise's standard deviation of each of real and imaginary part, in the combined image.
SNR: Final = (15.0, 80.0)
#: Standard deviation of the smooth phase [rad], and the order of its Fourier series.
PHASE: Final = 1.5
ORDER: Final = 3
#: Correlation of neighbouring coils' noise that whitening left.
CORRELATION: Final = 0.4
#: Shares of how maps are made: from low-resolution images, by ESPIRiT where the block allows; the rest is true, and of
#: that a share is cut to the object as ESPIRiT cuts, at a fiftieth of its cost.
LOW_RESOLUTION, ESPIRIT = 0.5, 0.05
CUT: Final = 0.7
#: Part of the field of view that maps must cover.
LEAST_SUPPORT: Final = 0.05
#: Share of the 99th percentile above which a pixel is body.
BODY: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What a reconstruction gets, and what it should make of it."""

    #: complex64 (coil, row, column).
    maps: Tensor
    #: complex64 (coil, ky, kx), zero where nothing was measured.
    y: Tensor
    #: float32 (1, ky, 1).
    mask: Tensor
    #: complex64 (row, column).
    reference: Tensor
    #: Standard deviation of a complex sample's noise.
    noise: float


def smooth_phase(rng: np.random.Generator, shape: tuple[int, int], sd: float) -> NDArray[np.float64]:
    """(row, column) a random Fourier series of half periods [rad]."""
    phase = np.full(shape, rng.uniform(0, 2 * np.pi))
    sides = [np.linspace(0.0, np.pi, n) for n in shape]
    terms = [(p, q) for p in range(ORDER + 1) for q in range(ORDER + 1) if 0 < p + q <= ORDER]
    for p, q in terms:
        rows, columns = (
            np.cos(p * sides[0] + rng.uniform(0, 2 * np.pi)),
            np.cos(q * sides[1] + rng.uniform(0, 2 * np.pi)),
        )
        phase += sd * rng.normal() * 2.0 / len(terms) ** 0.5 * rows[:, None] * columns[None, :]
    return phase


def sensitivities(rng: np.random.Generator, number: int, shape: tuple[int, int]) -> NDArray[np.complex64]:
    """(coil, row, column) loops around the body that fall off as a dipole, each with a phase of its own."""
    y, x = (np.linspace(-0.5, 0.5, n, dtype=np.float32) for n in shape)
    angles = 2 * np.pi * (np.arange(number) + rng.uniform(-0.3, 0.3, number)) / number + rng.uniform(0, 2 * np.pi)
    radius = rng.uniform(0.5, 0.9) * (1.0 + rng.uniform(-0.15, 0.15, number))
    squeeze = rng.uniform(0.7, 1.0)
    width, height = rng.uniform(0.25, 0.6, number), rng.uniform(0.0, 0.3, number)
    turn = rng.uniform(0.5, 3.0)
    maps = np.empty((number, *shape), np.complex64)
    for k in range(number):
        dx = x[None, :] - radius[k] * np.cos(angles[k])
        dy = y[:, None] - squeeze * radius[k] * np.sin(angles[k])
        distance = dx**2 + dy**2 + height[k] ** 2
        strength = (distance + width[k] ** 2) ** -1.5
        maps[k] = strength * np.exp(1j * (np.arctan2(dy, dx) * 0.5 + turn * np.sqrt(distance) + angles[k]))
    return maps / np.sqrt((np.abs(maps) ** 2).sum(0)).mean()


def noise_like(rng: np.random.Generator, shape: tuple[int, ...], correlation: float) -> NDArray[np.complex64]:
    """(coil, ky, kx) complex noise of unit variance; neighbouring coils are correlated by ``correlation``."""
    drawn = rng.standard_normal((*shape, 2), np.float32).view(np.complex64)[..., 0] * np.float32(0.5**0.5)
    for k in range(1, shape[0]):
        drawn[k] = correlation * drawn[k - 1] + (1.0 - correlation**2) ** 0.5 * drawn[k]
    return drawn


def measure(
    rng: np.random.Generator, image: NDArray[np.float32], coils: int, lines: Lines, *, snr: float, method: str
) -> Measurement:
    """Measure ``image`` (row, column).

    Parameters
    ----------
    coils
        1 is a single channel whose map is one.
    method
        How the maps come about: ``low-resolution``, ``espirit``, ``true``, ``cut``: true where the object
        is, or ``choose``: as the node does.
    """
    shape = (image.shape[0], image.shape[1])
    body = image > BODY * np.quantile(image, 0.99)
    single = coils == 1
    sense = np.ones((1, *shape), np.complex64) if single else sensitivities(rng, coils, shape)
    complex_ = image * np.exp(1j * smooth_phase(rng, shape, rng.uniform(0.0, PHASE)))
    seen = torch.from_numpy((sense * complex_).astype(np.complex64))
    signal = float(np.sqrt((np.abs(seen.numpy()) ** 2).sum(0))[body].mean())
    noise = signal / snr * 2**0.5
    correlation = rng.uniform(0, CORRELATION) if rng.random() < 0.5 else 0.0
    full = fft2c(seen) + noise * torch.from_numpy(noise_like(rng, (len(sense), *shape), correlation))
    if single:
        maps = torch.from_numpy(sense)
    elif method in ("true", "cut"):
        support = near(rng, image) if method == "cut" else np.ones(shape, np.float32)
        maps = torch.from_numpy(support * sense / np.sqrt((np.abs(sense) ** 2).sum(0)))
    else:
        maps = estimate(full, lines, shape, method)
    mask = torch.from_numpy(lines.astype(np.float32))[None, :, None]
    reference = (maps.conj() * seen).sum(0)
    return Measurement(maps=maps, y=full * mask, mask=mask, reference=reference, noise=noise)


def near(rng: np.random.Generator, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 where (row, column) ``image`` has signal, or has it nearby; 0 elsewhere."""
    blurred = ndimage.gaussian_filter(image, rng.uniform(1.5, 4.0))
    return np.asarray(blurred > rng.uniform(0.02, 0.08) * blurred.max(), np.float32)


def estimate(full: Tensor, lines: Lines, shape: tuple[int, int], method: str) -> Tensor:
    """Maps from the block of measured lines around the centre."""
    first, last = calibration(lines)
    acs = coil_maps.centre(full, (2 * min(len(lines) // 2 - first, last - len(lines) // 2), full.shape[-1]))
    if method == "choose":
        return coil_maps.choose(acs, shape).maps
    if method == "espirit":
        maps = coil_maps.espirit(acs, shape)
        # where noise is strong no eigenvalue may be near one, and nothing would be left to see
        if float((maps.abs().sum(0) > 0).float().mean()) > LEAST_SUPPORT:
            return maps
    return coil_maps.low_resolution(acs, shape)


def calibration(lines: Lines) -> tuple[int, int]:
    """First and one past the last of the neighbouring lines around the centre."""
    first = last = len(lines) // 2
    while first > 0 and lines[first - 1]:
        first -= 1
    while last < len(lines) and lines[last]:
        last += 1
    return first, last


def draw_measurement(
    rng: np.random.Generator, image: NDArray[np.float32], coils: int, lines: Lines, *, espirit: bool
) -> Measurement:
    """``measure`` with noise and maps drawn as training wants them."""
    u, (first, last) = rng.random(), calibration(lines)
    true = "cut" if rng.random() < CUT else "true"
    method = "low-resolution" if u < LOW_RESOLUTION else "espirit" if u < LOW_RESOLUTION + ESPIRIT else true
    if method == "espirit" and not (espirit and last - first >= coil_maps.LEAST_FULL_KERNEL):
        method = "low-resolution"
    return measure(rng, image, coils, lines, snr=float(np.exp(rng.uniform(*np.log(SNR)))), method=method)
