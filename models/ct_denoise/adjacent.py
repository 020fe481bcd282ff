"""What the slices beside a slice add to its denoising (2.5-D): the network's estimates of three slices, put together.

The network looks at every slice by itself. Where the slices before and after lie close enough, its two estimates of a
slice's noise are made better by what it found in those, without any weight of its own:

* least squares: the denoised image becomes the mean of the three denoised images, a neighbour's pixel weighted by how
  alike it is, w = exp(-(d / (`ALIKE_SIGMA` / sqrt(z)))^2), d the difference in sigma, z the spacing in mm. A bilateral
  filter through the plane, on images with little noise left: what differs stays as it is in its own slice.
* cautious: what was taken from all three slices alike is anatomy, as their noise differs. A part b of the mean of what
  was taken from the three (neighbours weighted by w) is given back, and the rest is taken k times, which leaves as much
  noise as before. The neighbours' images do not enter, so nothing of theirs can be seen in the slice.

With the share t of the noise taken from a slice alone, x = k t, and equal, independent noise in the three slices,
(1 - x (1 - b/3))^2 + 2 (x b/3)^2 of its variance is left; k is what makes that (1 - t)^2 (`repaid`).
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

#: Distances of slices at which neighbours are used [mm]: a real body gains at 2 mm and loses at 4 mm (CARD.md).
SPACING_MM: Final = (0.4, 2.0)
#: Thickness of slices / their distance, at most: beyond, two thirds of the neighbours' noise is the slice's own.
MOST_OVERLAP: Final = 3.0
#: A neighbour counts as alike within this many sigma, 1 mm away. Chosen on simulated slices apart from the tables'.
ALIKE_SIGMA: Final = 1.2
#: Share b of what the three slices lost alike that is given back to the cautious estimate.
GIVEN_BACK: Final = 0.2
#: Share of the noise that the cautious estimate takes at the default strength: where k is found.
TAKEN: Final = 0.45
#: k is this much smaller than for equal noise: what was to spare of the noise reduction's bar (CARD.md).
SPARED: Final = 0.996


class Adjacent(NamedTuple):
    """The slices before and after each slice of a batch."""

    #: (batch, 2, row, column) [HU].
    planes: Tensor
    #: Distance of the neighbours (batch,) [mm]; NaN where there are none that may be used.
    spacing_mm: Tensor


class Seen(NamedTuple):
    """What the network makes of slices by themselves; rows and columns padded."""

    #: (batch, 1, row, column) [HU]: clamped to the network's range, and the noise map.
    image: Tensor
    sigma: Tensor
    #: Noise, cautious and least-squares estimate (batch, 2, row, column) [HU].
    noise: Tensor

    def estimate(self) -> Tensor:
        """Denoised image by least squares and cautious noise (batch, 2, row, column) [HU]: what neighbours are told."""
        return torch.cat((self.image - self.noise[:, 1:], self.noise[:, :1]), 1)

    def at(self, chosen: Tensor | slice) -> Seen:
        """The ``chosen`` slices of the batch."""
        return Seen(*(part[chosen] for part in self))


def repaid(share: float) -> float:
    """k, by which the rest is taken where ``share`` is given back, so that as much noise is left as before."""
    own, other = 1.0 - share / 3.0, share / 3.0
    square = own**2 + 2.0 * other**2
    left = 2.0 * TAKEN - TAKEN**2
    return SPARED * (own - math.sqrt(own**2 - square * left)) / square / TAKEN


def beside(seen: Seen, around: Tensor, spacing_mm: Tensor) -> Tensor:
    """Both estimates of the noise, with what the neighbours say: (batch, 2, row, column) [HU].

    ``around``: `Seen.estimate` of the slices before and after (batch, 2, 2, row, column) [HU]; ``spacing_mm``: their
    distance (batch,).
    """
    images, taken = around.unbind(2)
    difference = (seen.image - seen.noise[:, 1:]) - images
    width = (ALIKE_SIGMA / spacing_mm.sqrt())[:, None, None, None] * seen.sigma
    # a mean over a few pixels: what noise is left would hide how alike two of them are
    far = F.avg_pool2d(difference.abs(), 3, 1, 1, count_include_pad=False) / width
    alike = torch.exp(-(far**2))
    every = alike.sum(1, keepdim=True)
    least = seen.noise[:, 1:] + (alike * difference).sum(1, keepdim=True) / (1.0 + every)
    both = 0.5 * every
    lost = (both * seen.noise[:, :1] + (alike * taken).sum(1, keepdim=True)) / 3.0
    cautious = (1.0 + (repaid(GIVEN_BACK) - 1.0) * both) * (seen.noise[:, :1] - GIVEN_BACK * lost)
    return torch.cat((cautious, least), 1)
