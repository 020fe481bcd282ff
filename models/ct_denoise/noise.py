"""Noise of a CT slice, measured on the slice itself: a map for the network, and a level in HU for the record."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

#: Standard deviation of the Gaussian that separates noise from structure [pixel].
BLUR: Final = 1.2
#: sigma / std(x - blur(x)) for the simulator's "std" kernel at 0.65 mm pixels: the high-pass loses the low frequencies
#: of correlated noise. Measured by ``tests/unit/test_ct_simulate.py``; smoother kernels are underestimated, which the
#: network has seen in training.
BAND_GAIN: Final = 1.15
#: Below this HU a pixel is air: scanners clip there, so the noise is not the body's.
AIR_HU: Final = -900.0
#: Pixels whose smoothed gradient exceeds this many sigma are edges, not noise.
EDGE_SIGMA: Final = 1.0
#: Side of the tiles that the maps are made of [pixel].
TILE: Final = 8
#: `flattest_noise_map`: the tiles around a tile, a square of this side; the quantile of their variances that is taken;
#: the share of a tile's pixels outside air and edges below which it says nothing.
NEIGHBOURHOOD: Final = 5
FLATTEST: Final = 0.25
LEAST_USABLE: Final = 0.25
#: As `BAND_GAIN`, on the root of that quantile: in pure noise both maps are equal, within 5 % for every kernel family
#: and pixels of 0.45 to 0.9 mm (``tests/unit/test_ct_simulate.py``).
FLAT_GAIN: Final = 1.25
#: Side of the squares in which `noise_level` looks for flat tissue [pixel].
WINDOW: Final = 12
#: HU range of soft tissue.
SOFT_TISSUE: Final = (-150.0, 250.0)


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian of (batch, 1, row, column), mirrored at the borders; ``sigma`` in pixels."""
    reach = max(1, math.ceil(3.0 * sigma))
    x = torch.arange(-reach, reach + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (x / sigma) ** 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(image, (reach, reach, reach, reach), mode="replicate")
    rows = F.conv2d(padded, kernel.reshape(1, 1, -1, 1))
    return F.conv2d(rows, kernel.reshape(1, 1, 1, -1))


def _masked_median(values: Tensor, mask: Tensor) -> Tensor:
    """Median per item of ``values`` (batch, 1, row, column) where ``mask``; 0 where the mask is empty."""
    flat = torch.where(mask, values, torch.full_like(values, float("nan"))).flatten(1)[:, ::4]
    return torch.nan_to_num(torch.nanmedian(flat, dim=1).values)[:, None, None, None]


def _tiles(image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Noise of ``image`` (batch, 1, row, column) [HU] in tiles of `TILE` pixels, air and edges left out.

    Returns the sum of squares of the high-pass residual over a tile's pixels, the share of its pixels in use, both
    (batch, 1, row, column) of tiles, and the spread of the residual in the whole slice (batch, 1, 1, 1) [HU].
    """
    residual = image - gaussian_blur(image, BLUR)
    body = image > AIR_HU
    spread = (1.4826 * _masked_median(residual.abs(), body)).clamp(min=0.3)  # MAD of a Gaussian
    smooth = gaussian_blur(image, 2.0 * BLUR)
    gradient = (smooth - smooth.roll(1, -1)).abs() + (smooth - smooth.roll(1, -2)).abs()
    keep = (body & (gradient < EDGE_SIGMA * spread)).to(image.dtype)
    squared = torch.minimum(residual.abs(), 4.0 * spread) ** 2
    pad = (-image.shape[-1] % TILE, -image.shape[-2] % TILE)
    sums = torch.cat((squared * keep, keep), 1)
    coarse = F.avg_pool2d(F.pad(sums, (0, pad[0], 0, pad[1]), mode="replicate"), TILE)
    return coarse[:, :1], coarse[:, 1:], spread


def _spread_out(variance: Tensor, image: Tensor, gain: float) -> Tensor:
    """``gain`` times the root of ``variance`` per tile, on the pixels of ``image``; never below 0.5 HU."""
    full = F.interpolate(variance, scale_factor=float(TILE), mode="bilinear", align_corners=False)
    return gain * full[..., : image.shape[-2], : image.shape[-1]].sqrt().clamp(min=0.5 / gain)


def noise_map(image: Tensor) -> Tensor:
    """Local noise standard deviation [HU] of ``image`` [HU]: both (batch, 1, row, column).

    Robust second moment of the high-pass residual outside air and edges, over about 50 pixels. Never below 0.5 HU.
    """
    squared, weight, spread = _tiles(image)
    squared, weight = gaussian_blur(squared, 2.0), gaussian_blur(weight, 2.0)
    prior = 0.05  # weight of the slice's own level where the neighbourhood holds no usable pixel
    return _spread_out((squared + prior * spread**2) / (weight + prior), image, BAND_GAIN)


def flattest_noise_map(image: Tensor) -> Tensor:
    """As `noise_map`, from the flattest quarter of the neighbourhood: texture and fine anatomy only ever add to noise.

    The `FLATTEST` quantile of the variances of the tiles around each, which in pure noise lies below their mean by what
    `FLAT_GAIN` makes good.
    """
    squared, weight, spread = _tiles(image)
    usable = weight >= LEAST_USABLE
    each = torch.where(usable, squared / weight.clamp(min=LEAST_USABLE), torch.inf)
    reach = NEIGHBOURHOOD // 2
    around = F.pad(each, (reach, reach, reach, reach), value=torch.inf)
    around = around.unfold(2, NEIGHBOURHOOD, 1).unfold(3, NEIGHBOURHOOD, 1).flatten(4).sort(-1).values
    count = torch.isfinite(around).sum(-1, keepdim=True)
    place = FLATTEST * (count - 1).clamp(min=0)
    below = place.floor().long()
    low, high = around.gather(-1, below), around.gather(-1, below + 1)  # FLATTEST < 1: there is one above
    quantile = torch.where(count > 1, low + (place - below) * (high - low), low)[..., 0]
    own = spread**2 / (FLAT_GAIN / BAND_GAIN) ** 2  # the slice's level, as a quantile
    prior, many = 1.0, count[..., 0].to(image.dtype)  # the slice's own level counts as one tile
    variance = (torch.where(many > 0.0, quantile, 0.0) * many + prior * own) / (many + prior)
    return _spread_out(gaussian_blur(variance, 1.0), image, FLAT_GAIN)


#: Noise maps that a network may have been trained with, by the name in its manifest.
NOISE_MAPS: Final[dict[str, Callable[[Tensor], Tensor]]] = {"mean": noise_map, "flattest": flattest_noise_map}


def _windows(image: Tensor) -> Tensor:
    """Squares (square, pixel) of (row, column), each less its own plane, so that a smooth gradient is not noise."""
    tiles = image.unfold(0, WINDOW, WINDOW // 2).unfold(1, WINDOW, WINDOW // 2).reshape(-1, WINDOW, WINDOW)
    axis = torch.arange(WINDOW, device=image.device, dtype=image.dtype) - (WINDOW - 1) / 2.0
    power = (axis**2).sum() * WINDOW
    tiles = tiles - tiles.mean((1, 2), keepdim=True)
    slope_row = (tiles * axis[:, None]).sum((1, 2)) / power
    slope_column = (tiles * axis[None, :]).sum((1, 2)) / power
    tiles = tiles - slope_row[:, None, None] * axis[:, None] - slope_column[:, None, None] * axis[None, :]
    return tiles.flatten(1)


class Level(NamedTuple):
    """What `noise_level` found in flat soft tissue [HU]; NaN where there is none."""

    before: float
    after: float
    #: Mean of after less mean of before.
    mean_shift: float


def noise_level(before: Tensor, after: Tensor) -> Level:
    """Noise of ``before`` and ``after`` (row, column) [HU], in the same flat squares of soft tissue.

    The squares are the flattest quarter *of the input* among those wholly of soft tissue, so both values are a little
    low and their ratio is fair.
    """
    low, high = SOFT_TISSUE
    mean, mean_after = _means(before), _means(after)
    flat = _windows(before).std(1)
    tissue = (mean > low) & (mean < high) & (flat > 0.0)
    if int(tissue.sum()) < 8:
        return Level(float("nan"), float("nan"), float("nan"))
    chosen = tissue & (flat <= torch.quantile(flat[tissue], 0.25))
    return Level(
        before=float(flat[chosen].median()),
        after=float(_windows(after).std(1)[chosen].median()),
        mean_shift=float((mean_after - mean)[chosen].mean()),
    )


def _means(image: Tensor) -> Tensor:
    """Mean of each square of `_windows`, (square,)."""
    return image.unfold(0, WINDOW, WINDOW // 2).unfold(1, WINDOW, WINDOW // 2).reshape(-1, WINDOW * WINDOW).mean(1)
