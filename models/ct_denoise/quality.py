"""What denoising did to a series, for a person to look at: spectra of its noise, and where structure went with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from models.ct_denoise import metrics
from models.ct_denoise.net import HU_RANGE
from models.ct_denoise.noise import AIR_HU, SOFT_TISSUE, flattest_noise_map, gaussian_blur

#: Side of the squares of flat soft tissue that spectra are measured on [pixel]; their least number; the share kept.
SQUARE: Final = 24
FEWEST_SQUARES: Final = 12
FLATTEST: Final = 0.25
#: Bands of a spectrum, shares of the Nyquist frequency. The lowest holds more anatomy than noise and is left out.
BANDS: Final = ((0.15, 0.35), (0.35, 0.55), (0.55, 0.75), (0.75, 1.0))
#: Blur that hides the noise of what was removed and shows what is common to neighbours [pixel].
BLUR: Final = 2.0
#: A pixel lies in the body if the mean this far round it is no air either [pixel].
REACH: Final = 10
#: What exceeds this many spreads of the blurred removed part is no noise; spots without a square of this side are not
#: shown [mm].
SPREADS: Final = 5.0
LEAST_MM: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Spectra:
    """Noise power of the same flat squares before and after, by radial frequency [lp/mm]."""

    frequency: NDArray[np.float64]
    before: NDArray[np.float64]
    after: NDArray[np.float64]
    #: Highest frequency of the pixels [lp/mm].
    nyquist: float

    @property
    def means(self) -> tuple[float, float]:
        """Mean frequency before and after [lp/mm]."""
        return (
            metrics.mean_frequency(self.frequency, self.before),
            metrics.mean_frequency(self.frequency, self.after),
        )

    def left(self) -> list[tuple[float, float, float]]:
        """Lower and upper edge of each of `BANDS`, and the share of the noise that is left in it."""
        nyquist, rows = self.nyquist, []
        for low, high in BANDS:
            band = (self.frequency >= low * nyquist) & (self.frequency < high * nyquist)
            powers = [float((power * self.frequency)[band].sum()) for power in (self.after, self.before)]
            rows.append((low, high, float(np.sqrt(powers[0] / max(powers[1], 1e-12)))))
        return rows


def spectra(before: Tensor, after: Tensor, pixel_mm: float) -> Spectra | None:
    """Spectra of the noise of slices (slice, row, column) [HU] in flat soft tissue; None where there is too little.

    The squares are chosen on the blurred input, so that none is kept for having little noise.
    """
    pair = [part.unfold(1, SQUARE, SQUARE // 2).unfold(2, SQUARE, SQUARE // 2) for part in (before, after)]
    first, second = (part.reshape(-1, SQUARE, SQUARE) for part in pair)
    means = F.avg_pool2d(first[:, None], 6).flatten(1)
    low, high = SOFT_TISSUE
    tissue = ((means > low) & (means < high)).all(1)
    if int(tissue.sum()) < FEWEST_SQUARES:
        return None
    spread = means.std(1)
    flat = tissue & (spread <= torch.quantile(spread[tissue], FLATTEST))
    frequency, given = metrics.noise_spectrum(first[flat], pixel_mm)
    _, left = metrics.noise_spectrum(second[flat], pixel_mm)
    seen = (given > 0.0) & (frequency > BANDS[0][0] * 0.5 / pixel_mm)  # rings between the grid's points are empty
    return Spectra(frequency=frequency[seen], before=given[seen], after=left[seen], nyquist=0.5 / pixel_mm)


def structure(before: Tensor, after: Tensor) -> Tensor:
    """What was removed from a slice (row, column) [HU] and is no noise: in spreads of its blurred noise, 0 outside.

    Each pixel of the removed part is divided by the noise there and blurred. What is left of noise then has one spread
    everywhere, found robustly; structure is common to neighbours and stays.
    """
    image = before.clamp(*HU_RANGE)[None, None]
    around = F.avg_pool2d(image, 2 * REACH + 1, 1, REACH, count_include_pad=False)
    body = (image > AIR_HU) & (around > AIR_HU)  # not clothes and tubes in the air beside it
    if not bool(body.any()):
        return torch.zeros_like(before)
    unit = (before - after)[None, None] / flattest_noise_map(image) * body
    smooth = gaussian_blur(unit, BLUR)
    spread = 1.4826 * float(smooth[body].abs().median())
    return (smooth / max(spread, 1e-6) * body)[0, 0]


def structure_mask(levels: Tensor, pixel_mm: float) -> Tensor:
    """Spots of `structure` (row, column) beyond `SPREADS`, opened by a square of `LEAST_MM`."""
    strong = (levels.abs() > SPREADS).float()[None, None]
    side = 2 * max(1, round(0.5 * LEAST_MM / pixel_mm)) + 1
    eroded = 1.0 - F.max_pool2d(1.0 - strong, side, 1, side // 2)
    return F.max_pool2d(eroded, side, 1, side // 2)[0, 0] > 0.5
