"""A real CT series as it would have looked at a lower dose: noise measured, matched, and inserted in the projections.

The scanner's raw data is not needed. What is: the kernel, fitted to the noise the slices hold (`fit_kernel`), and the
photons N at the detector, found from that noise (`solve_photons`). Then the variance

    var(alpha N) - var(N),    var(N) = 1/N + electronic^2 / N^2

is added in the projections for dose fraction alpha, with tube-current modulation and bow-tie as in `simulate`. Not
modelled: the bias of the logarithm of few photons, the scanner's own adaptive filters, and scatter.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from models.ct_denoise import projection, simulate
from models.ct_denoise.noise import AIR_HU, BAND_GAIN, BLUR, SOFT_TISSUE, noise_map
from models.ct_denoise.projection import KERNELS, Kernel
from models.ct_denoise.simulate import Scan

#: Side of the squares the spectrum is measured on [pixel], their least number, and the share of the flattest kept.
SQUARE: Final = 24
FEWEST_SQUARES: Final = 24
FLATTEST: Final = 0.15
#: Frequencies below this are anatomy rather than noise [lp/mm].
ANATOMY_BELOW: Final = 0.12
#: Factors by which the kernel families' frequency axes are stretched in the fit.
STRETCHES: Final = tuple(0.5 * 1.06**k for k in range(24))
#: Slices are noisier by what their neighbours say too: flux is the median over this many.
NEIGHBOURS: Final = 5
#: Structure can only add to the noise a map shows, so the map is compared with the expected one at this quantile of
#: their ratio, which in uniform water is this much (0.96 to 0.985: every kernel, pixels of 0.5 to 1 mm).
FLAT_QUANTILE: Final = 0.15
FLAT_RATIO: Final = 0.976
#: A slice with less soft tissue than this takes its neighbours' flux [pixel].
LEAST_TISSUE: Final = 400
#: Photons are sought between one and this many, per measurement without an object.
MOST_PHOTONS: Final = 1e12
#: What scanners store at most and at least [HU]; a series that holds more keeps its own limits.
STORED: Final = (-1024.0, 3071.0)

#: What lies around a slice [HU].
AIR: Final = -1000.0

#: Names of kernels by vendor: GE, Siemens (number = sharpness), Philips, Canon. First match counts.
KERNEL_NAMES: Final = (
    ("sharp", re.compile(r"\b(BONE\w*|EDGE|LUNG|ULTRA|Y[A-D]|[DE]|FC[358]\d)\b|\b[BHDUTJIQ][a-z]{0,2}[5-9]\d", re.I)),
    ("soft", re.compile(r"\b(SOFT|SMOOTH|UA|A|FC(0[1-3]|1[01]|2[01]))\b|\b[BHDUTJIQ][a-z]{0,2}([12]\d|3[0-6])", re.I)),
)


def kernel_of_name(name: str) -> Kernel:
    """The family of a ConvolutionKernel value; "std" where the name says nothing."""
    return KERNELS[next((family for family, pattern in KERNEL_NAMES if pattern.search(name)), "std")]


def _flat_squares(image: Tensor) -> Tensor:
    """Squares (square, row, column) of soft tissue of (slice, row, column) [HU] with little structure, mean removed.

    Chosen by the blurred image, so that a square is not kept for having little noise.
    """
    step = SQUARE // 2
    tiles = image.unfold(1, SQUARE, step).unfold(2, SQUARE, step).reshape(-1, SQUARE, SQUARE)
    low, high = SOFT_TISSUE
    means = F.avg_pool2d(tiles[:, None], 6)[:, 0].flatten(1)
    tiles, means = (part[((means > low) & (means < high)).all(1)] for part in (tiles, means))
    if len(tiles) < FEWEST_SQUARES:
        return tiles[:0]
    spread = means.std(1)
    tiles = tiles[spread <= torch.quantile(spread[:: max(1, len(spread) // 100_000)], FLATTEST)]
    return tiles - tiles.mean((1, 2), keepdim=True)


def _shape(kernel: Kernel, frequency: Tensor, scan: Scan, pixel_mm: float) -> Tensor:
    """Noise power of a reconstruction up to a factor: f H(f)^2, with the detector's cross-talk."""
    element = projection.DETECTOR_SPACING * pixel_mm
    leak = 1.0 + 2.0 * scan.cross_talk * torch.cos(2.0 * torch.pi * frequency * element)
    return frequency * (leak * kernel.response(frequency)) ** 2


def fit_kernel(image: Tensor, pixel_mm: float, scan: Scan | None = None) -> Kernel | None:
    """The kernel whose noise spectrum is nearest to that of slices (slice, row, column) [HU]; None without flat tissue.

    Distance: of the square roots of the powers over the frequency grid above `ANATOMY_BELOW`, both of unit sum.
    """
    scan, squares = scan or Scan(), _flat_squares(image)
    if len(squares) < FEWEST_SQUARES // 4 or float(squares.std()) < 0.1:
        return None
    window = torch.outer(torch.hann_window(SQUARE), torch.hann_window(SQUARE)).to(image.device)
    power = (torch.fft.rfft2(squares * window).abs() ** 2).mean(0)
    frequency = projection.radial_frequency((SQUARE, SQUARE), pixel_mm, image.device)
    band = (frequency > ANATOMY_BELOW) & (frequency < 0.5 / pixel_mm)
    seen = (power[band] / power[band].sum()).sqrt()
    best, distance = None, torch.inf
    for kernel in (family.scaled(stretch) for family in KERNELS.values() for stretch in STRETCHES):
        expected = _shape(kernel, frequency, scan, pixel_mm)[band]
        found = float((seen - (expected / expected.sum()).sqrt()).square().sum())
        if found < distance:
            best, distance = kernel, found
    return best


def band_gain(kernel: Kernel, pixel_mm: float, scan: Scan | None = None) -> float:
    """Ratio sigma / std(x - blur(x)) for noise of ``kernel``: what the high-pass of `noise_map` does not see."""
    grid = projection.radial_frequency((128, 128), pixel_mm, torch.device("cpu"))
    power = _shape(kernel, grid, scan or Scan(), pixel_mm)
    passed = 1.0 - torch.exp(-2.0 * (torch.pi * BLUR * pixel_mm * grid) ** 2)
    return float((power.sum() / (power * passed**2).sum()).sqrt())


def own_noise(image: Tensor, kernel: Kernel, pixel_mm: float) -> Tensor:
    """Noise [HU] that slices (slice, row, column) hold, same shape; of use in tissue only."""
    return noise_map(image[:, None])[:, 0] * (band_gain(kernel, pixel_mm) / BAND_GAIN)


def variance_map(variance: Tensor, size: int, unit_hu: float) -> Tensor:
    """Variance of the reconstruction [HU^2] on an eighth of the grid: the mean over views of what each pixel sees.

    ``variance``: of the measurements (batch, view, element); ``unit_hu``: noise for measurements of variance 1.
    """
    batch, views, count = variance.shape
    few = variance[:, ::8]
    theta = torch.arange(0, views, 8, device=variance.device) * (torch.pi / views)
    axis = torch.arange(3.5, size, 8.0, device=variance.device) - (size - 1) / 2.0
    s = axis[None, None, :] * torch.cos(theta)[:, None, None] + axis[None, :, None] * torch.sin(theta)[:, None, None]
    element = (s / projection.DETECTOR_SPACING + (count - 1) / 2.0 - projection.QUARTER_OFFSET).round().long()
    picked = few.gather(2, element.clamp_(0, count - 1).flatten(1).expand(batch, -1, -1))
    return unit_hu**2 * picked.mean(1).reshape(batch, len(axis), len(axis))


def solve_photons(weights: Tensor, own_hu: Tensor, tissue: Tensor, unit_hu: float, scan: Scan) -> float:
    """N0 at which a slice of ``weights`` (1, view, element) has the noise ``own_hu`` where ``tissue``: bisection.

    ``own_hu``, ``tissue``: (row, column), square; compared on an eighth of the grid at `FLAT_QUANTILE`.
    """
    size = own_hu.shape[-1]
    keep = tissue[3::8, 3::8]
    wanted = (own_hu[3::8, 3::8][keep] / FLAT_RATIO).square().log()
    low, high = 1.0, MOST_PHOTONS
    for _ in range(40):
        middle = (low * high) ** 0.5
        made = variance_map(simulate.measurement_variance(middle * weights, scan), size, unit_hu)[0][keep].log()
        low, high = (middle, high) if float((wanted - made).quantile(FLAT_QUANTILE)) < 0.0 else (low, middle)
    return high


@dataclass(frozen=True, slots=True, kw_only=True)
class LowerDose:
    """A series at a lower dose and what was assumed for it."""

    #: Slices (slice, row, column) [HU].
    image: Tensor
    kernel: Kernel
    #: Median noise of the tissue before [HU].
    own_hu: float


def _square(image: Tensor, value: float) -> Tensor:
    """``image`` (..., row, column) set into a square of even side."""
    rows, columns = image.shape[-2:]
    side = 8 * -(-max(rows, columns) // 8)
    return F.pad(image, (0, side - columns, 0, side - rows), value=value)


def _white(seed: int, index: int, shape: torch.Size, overlap: float) -> Tensor:
    """White noise of unit variance of slice ``index``; slices that overlap share a part of it.

    A slice ``overlap`` steps thick is the mean of that many thin ones, so neighbours correlate by 1 - 1 / overlap.
    """
    shares, left = [], max(1.0, overlap)
    while left > 1e-3:
        shares.append(min(1.0, left))
        left -= 1.0
    total = torch.zeros(shape)
    norm: float = sum(share**2 for share in shares) ** 0.5
    for offset, share in enumerate(shares):
        generator = torch.Generator().manual_seed((seed + 1_000_003 * (index + offset)) % (1 << 63))
        total += share * torch.randn(shape, generator=generator)
    return total / norm


def lower_dose(
    image: Tensor,
    pixel_mm: float,
    fraction: float,
    *,
    seed: int,
    kernel: Kernel | None = None,
    overlap: float = 1.0,
    scan: Scan | None = None,
    progress: Callable[[float], None] = lambda _fraction: None,
) -> LowerDose:
    """Slices (slice, row, column) [HU] at ``fraction`` of their dose.

    ``kernel``: taken where the noise cannot say; ``overlap``: slice thickness / step.

    Raises
    ------
    ValueError
        If there is no soft tissue in which to measure the noise.
    """
    scan = scan or Scan()
    kernel = fit_kernel(image[:: max(1, len(image) // 12)], pixel_mm, scan) or kernel or KERNELS["std"]
    limits = min(STORED[0], float(image.min())), max(STORED[1], float(image.max()))
    rows, columns = image.shape[1:]
    unit = simulate.unit_noise(max(_square(image[0], 0.0).shape), pixel_mm, kernel, scan)
    flux, own = _photons(image, pixel_mm, kernel, unit, scan)
    out = torch.empty_like(image)
    for index, plane in enumerate(image):
        square = _square(plane[None], AIR)
        weights = simulate.relative_flux(simulate.line_integrals(square, pixel_mm, scan), scan)
        photons = weights * flux[index]
        added = (
            simulate.measurement_variance(fraction * photons, scan) - simulate.measurement_variance(photons, scan)
        ).clamp(min=0.0)
        white = _white(seed, index, added.shape, overlap).to(image.device)
        raw = simulate.raw_noise(added, square.shape[-1], pixel_mm, scan, white)
        noise = projection.apply_kernel(raw, kernel, pixel_mm)[0, :rows, :columns]
        out[index] = (plane + noise).clamp(*limits)
        progress((index + 1) / len(image))
    return LowerDose(image=out, kernel=kernel, own_hu=own)


def _photons(image: Tensor, pixel_mm: float, kernel: Kernel, unit: float, scan: Scan) -> tuple[Tensor, float]:
    """N0 of each slice (slice,), the running median over `NEIGHBOURS`, and the noise of the tissue [HU]."""
    low, high = SOFT_TISSUE
    found, levels = torch.full((len(image),), torch.nan), []
    for index, plane in enumerate(image):
        square = _square(plane[None], AIR)
        own = own_noise(square, kernel, pixel_mm)[0]
        smooth = F.avg_pool2d(square[None], 9, 1, 4)[0, 0]
        tissue = (smooth > low) & (smooth < high)
        if int(tissue.sum()) < LEAST_TISSUE or not bool((square > AIR_HU).any()):
            continue
        weights = simulate.relative_flux(simulate.line_integrals(square, pixel_mm, scan), scan)
        found[index] = solve_photons(weights, own, tissue, unit, scan)
        variance = variance_map(simulate.measurement_variance(found[index] * weights, scan), square.shape[-1], unit)
        levels.append(float(variance[0][tissue[3::8, 3::8]].median().sqrt()))
    if not levels:
        raise ValueError("no soft tissue in which to measure the noise")
    logs, reach = found.log(), NEIGHBOURS // 2
    medians = torch.stack([logs[max(0, i - reach) : i + reach + 1].nanmedian() for i in range(len(image))])
    medians = torch.where(medians.isnan(), logs.nanmedian(), medians)
    return medians.exp(), sorted(levels)[len(levels) // 2]
