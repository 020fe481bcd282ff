"""Low-dose CT: noise inserted in the projections, reconstructed alone, and added to a clean or a real image.

Noise is additive in the log-projections, so only the noise is reconstructed (Zeng et al., IEEE TNS 2015, PMC4629802;
image-based variant: Radiol Phys Technol 2024;17:112):

    N = N0 * modulation(view) * bow-tie(element) * exp(-p)        photons at the detector
    var(p) = 1/N + electronic^2 / N^2                             of a full scan
    var(p) = var(alpha N) - var(N)                                to add to a real scan for dose fraction alpha
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from models.ct_denoise import projection
from models.ct_denoise.phantoms import Draw, clean_image, thick_image
from models.ct_denoise.projection import KERNELS, MU_WATER, Kernel

#: Seeds below this train; evaluation draws from it upwards.
EVALUATION_SEED: Final = 1_000_000
#: Noise of what lies beside a slice is drawn from this seed on.
BESIDE_SEED: Final = 17_000_000_000
#: Slices of the training pool: side [pixel] and noise realisations.
POOL_SIZE: Final = 448
REALISATIONS: Final = 2
#: Range of the noise at the centre after the "std" kernel [HU].
NOISE_RANGE: Final = (3.0, 45.0)
#: Range of pixel sizes [mm].
PIXEL_RANGE: Final = (0.40, 0.98)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What shapes the noise besides the object."""

    #: Views over 180 degrees.
    views: int = 360
    #: Electronic noise [photons]; 5-15 is the range of ordinary detectors.
    electronic: float = 8.0
    #: Strength of tube-current modulation: m ~ exp(modulation * (max p of the view - mean)).
    modulation: float = 0.6
    #: Bow-tie filter: path difference between the centre and the edge of the field [water line integral].
    bow_tie: float = 1.8
    #: Share of a measurement that leaks into each neighbour element.
    cross_talk: float = 0.12
    #: Largest variance of one measurement: the scanner's own low-signal correction.
    variance_limit: float = 4.0


def relative_flux(line_integrals: Tensor, scan: Scan) -> Tensor:
    """N / N0 of each measurement, (batch, view, element)."""
    peak = line_integrals.amax(-1, keepdim=True)
    modulation = torch.exp(scan.modulation * (peak - peak.mean(1, keepdim=True)).clamp(-2.5, 2.5))
    modulation = modulation / modulation.mean(1, keepdim=True)
    s = torch.linspace(-1.0, 1.0, line_integrals.shape[-1], device=line_integrals.device)
    return modulation * torch.exp(-scan.bow_tie * s**2) * torch.exp(-line_integrals)


def measurement_variance(photons: Tensor, scan: Scan) -> Tensor:
    """Variance of log-projections of ``photons`` at the detector, any shape."""
    n = photons.clamp(min=1.0)
    return (1.0 / n + (scan.electronic / n) ** 2).clamp(max=scan.variance_limit)


def _cross_talk(noise: Tensor, share: float) -> Tensor:
    """Leak between neighbour elements, variance kept."""
    taps = torch.tensor([share, 1.0, share], device=noise.device)
    taps = taps / taps.square().sum().sqrt()
    return F.conv1d(noise.flatten(0, 1)[:, None], taps[None, None], padding=1)[:, 0].reshape(noise.shape)


def unit_noise(size: int, pixel_mm: float, kernel: Kernel, scan: Scan) -> float:
    """Noise at the centre [HU] for measurements of variance 1."""
    count = projection.detector_count(size)
    length = 1 << (2 * count - 1).bit_length()
    cycles = torch.fft.rfftfreq(length)  # per element
    leak = 1.0 + 2.0 * scan.cross_talk * torch.cos(2.0 * torch.pi * cycles)
    leak = leak / (1.0 + 2.0 * scan.cross_talk**2) ** 0.5
    gain = projection.noise_gain(scan.views, count, pixel_mm, kernel, leak)
    return float(gain**0.5 * 1000.0 / MU_WATER)


def _centre_variance(weights: Tensor, flux: float, scan: Scan) -> float:
    middle = weights.shape[-1] // 2
    return float(measurement_variance(flux * weights[..., middle - 1 : middle + 2], scan).mean())


def solve_flux(weights: Tensor, sigma_hu: float, unit_hu: float, scan: Scan) -> float:
    """N0 that gives ``sigma_hu`` at the centre of the image; bisection on a monotone function."""
    wanted = (sigma_hu / unit_hu) ** 2
    low, high = 1.0, 18.0  # log10 is never needed beyond: from one photon to none missing
    for _ in range(50):
        middle = 0.5 * (low + high)
        if _centre_variance(weights, 10.0**middle, scan) > wanted:
            low = middle
        else:
            high = middle
    return float(10.0**high)


def raw_noise(variance: Tensor, size: int, pixel_mm: float, scan: Scan, white: Tensor) -> Tensor:
    """Noise images (batch, row, column) [HU] before any kernel, for measurement variances (batch, view, element).

    ``white``: normal numbers of the same shape.
    """
    measured = _cross_talk(white * variance.sqrt(), scan.cross_talk)
    return projection.backproject_filtered(measured, size, pixel_mm) * (1000.0 / MU_WATER)


def line_integrals(image_hu: Tensor, pixel_mm: float, scan: Scan) -> Tensor:
    """Smooth line integrals (batch, view, element) of images (batch, row, column) [HU]."""
    mu = (image_hu.clamp(min=-1000.0) + 1000.0) * (MU_WATER / 1000.0)
    return projection.project_smooth(mu, scan.views, pixel_mm)


def insert_noise(
    image_hu: Tensor,
    pixel_mm: float,
    *,
    sigma_hu: float,
    seed: int,
    kernel: Kernel = KERNELS["std"],
    own_sigma_hu: float = 0.0,
    scan: Scan | None = None,
) -> Tensor:
    """Noise [HU] that brings slices (batch, row, column) to ``sigma_hu`` at the centre: same shape, to be added.

    ``own_sigma_hu``: noise that the slices hold already; then the inserted variance is the difference, so that a real
    scan at that noise becomes the same scan at dose fraction (own / wanted)^2.
    """
    scan = scan or Scan()
    size = image_hu.shape[-1]
    weights = relative_flux(line_integrals(image_hu, pixel_mm, scan), scan)
    unit = unit_noise(size, pixel_mm, kernel, scan)
    variance = measurement_variance(solve_flux(weights, sigma_hu, unit, scan) * weights, scan)
    if own_sigma_hu > 0.0:
        own = measurement_variance(solve_flux(weights, own_sigma_hu, unit, scan) * weights, scan)
        variance = (variance - own).clamp(min=0.0)
    white = torch.randn(variance.shape, generator=torch.Generator().manual_seed(seed)).to(variance.device)
    return projection.apply_kernel(raw_noise(variance, size, pixel_mm, scan, white), kernel, pixel_mm)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """One training slice: no kernel applied yet, so that each use can draw its own."""

    #: Clean image (row, column) [HU].
    clean: Tensor
    #: Independent noise images (realisation, row, column) [HU].
    noise: Tensor
    #: Pixel size [mm].
    pixel_mm: float
    #: Noise at the centre after the "std" kernel [HU].
    sigma_hu: float
    #: The slice is of a scanner: a kernel has been applied, and its noise is as it is in ``sigma_hu``.
    rendered: bool = False


def simulate_slice(
    seed: int,
    size: int = POOL_SIZE,
    device: torch.device | None = None,
    realisations: int = REALISATIONS,
    z_mm: float = 0.0,
    thick: bool = False,
) -> Slice:
    """The training slice of ``seed``, or what lies ``z_mm`` beside it in the same scan, with noise of its own.

    ``thick``: a slice of clinical thickness (`thick_image`) in place of a plane; it has nothing beside it.

    The same on every machine up to rounding.
    """
    device = device or torch.device("cpu")
    draw = Draw(seed + 7_000_000_000, 1, 1.0, torch.device("cpu"))
    pixel_mm = draw.uniform(*PIXEL_RANGE)
    sigma = draw.log_uniform(*NOISE_RANGE)
    scan = Scan(
        electronic=draw.uniform(5.0, 15.0),
        modulation=draw.uniform(0.0, 0.8),
        bow_tie=draw.uniform(0.0, 2.4),
        cross_talk=draw.uniform(0.0, 0.2),
    )
    if z_mm:
        draw.generator.manual_seed(seed + BESIDE_SEED + (1_000_000 if z_mm > 0.0 else 0))
    clean = thick_image(seed, size, pixel_mm, device) if thick else clean_image(seed, size, pixel_mm, device, z_mm)
    weights = relative_flux(line_integrals(clean[None], pixel_mm, scan), scan)
    unit = unit_noise(size, pixel_mm, KERNELS["std"], scan)
    variance = measurement_variance(solve_flux(weights, sigma, unit, scan) * weights, scan)
    white = torch.randn((realisations, *variance.shape[1:]), generator=draw.generator).to(device)
    noise = raw_noise(variance.expand(realisations, -1, -1), size, pixel_mm, scan, white)
    return Slice(clean=clean, noise=noise, pixel_mm=pixel_mm, sigma_hu=sigma)
