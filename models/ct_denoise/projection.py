"""Parallel-beam projector, filtered backprojection and reconstruction kernels, in torch (CPU or GPU, batched).

Geometry: square images (batch, row, column) centred on the rotation axis; ``views`` angles over 180 degrees; a detector
of elements `DETECTOR_SPACING` pixels wide with a quarter-element offset. Filtered backprojection of a projection p:

    f(x, y) = pi/V * sum_v (p_v * h)(x cos(theta_v) + y sin(theta_v)),    h = band-limited ramp    (Kak 1988, 3.3)

A reconstruction kernel is an apodisation H(f) of the ramp. Because backprojection commutes with a radial filter, H is
applied to the *image* (`apply_kernel`): one backprojection serves every kernel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

#: Detector element [pixel].
DETECTOR_SPACING: Final = 0.95
#: Offset of the detector centre [element]: the quarter offset of real scanners.
QUARTER_OFFSET: Final = 0.25
#: Linear attenuation of water at the effective energy of a 120 kVp beam, 70 keV [1/mm] (NIST XCOM).
MU_WATER: Final = 0.0192
#: The filtered projection is resampled to 1/16 element, so that backprojection may look up the nearest value.
OVERSAMPLING: Final = 16
#: Width of the boost of a sharp kernel [lp/mm].
BUMP_WIDTH: Final = 0.12


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """Reconstruction kernel H(f) = exp(-(f/cutoff)^power) * (1 + boost * bump(f - boost_at)), f in lp/mm."""

    #: Frequency where H has fallen to 1/e [lp/mm].
    cutoff: float
    #: Steepness of the fall.
    power: float
    #: Height of the edge-enhancing bump.
    boost: float = 0.0
    #: Centre of the bump [lp/mm].
    boost_at: float = 0.4

    def response(self, frequency: Tensor) -> Tensor:
        """H at ``frequency`` [lp/mm], any shape."""
        fall = torch.exp(-((frequency / self.cutoff) ** self.power))
        return fall * (1.0 + self.boost * torch.exp(-0.5 * ((frequency - self.boost_at) / BUMP_WIDTH) ** 2))

    def scaled(self, factor: float) -> Kernel:
        """Return the same kernel on a frequency axis stretched by ``factor``."""
        return replace(self, cutoff=self.cutoff * factor, boost_at=self.boost_at * factor)


#: Families of kernels; the numbers give noise spectra that peak near 0.2, 0.33 and 0.6 lp/mm, as vendors' families do.
KERNELS: Final = {
    "soft": Kernel(cutoff=0.42, power=2.2),
    "std": Kernel(cutoff=0.55, power=2.5, boost=0.12, boost_at=0.32),
    "sharp": Kernel(cutoff=0.85, power=4.0, boost=1.1, boost_at=0.55),
}


def detector_count(size: int) -> int:
    """Elements that see every pixel of a ``size`` x ``size`` image."""
    return math.ceil(size * math.sqrt(2.0) / DETECTOR_SPACING) + 4


def _angles(views: int, device: torch.device) -> Tensor:
    return torch.arange(views, device=device, dtype=torch.float32) * (math.pi / views)


def _element_position(count: int, device: torch.device) -> Tensor:
    """Signed distance of each detector element from the rotation axis [pixel]."""
    index = torch.arange(count, device=device, dtype=torch.float32)
    return (index - (count - 1) / 2.0 + QUARTER_OFFSET) * DETECTOR_SPACING


def forward_project(image: Tensor, views: int, pixel_mm: float, chunk: int = 16) -> Tensor:
    """Line integrals of ``image`` (batch, row, column) [1/mm]: (batch, view, element), no unit."""
    batch, size = image.shape[0], image.shape[-1]
    s = _element_position(detector_count(size), image.device)
    t = torch.arange(-size * 0.71, size * 0.71, device=image.device)
    out = []
    for theta in torch.split(_angles(views, image.device), chunk):
        c, n = torch.cos(theta)[:, None, None], torch.sin(theta)[:, None, None]
        x = s[None, :, None] * c - t[None, None, :] * n
        y = s[None, :, None] * n + t[None, None, :] * c
        grid = torch.stack((x, y), -1).mul_(2.0 / size).reshape(1, -1, t.numel(), 2)
        rays = F.grid_sample(image[:, None], grid.expand(batch, -1, -1, -1), align_corners=False)
        out.append(rays.sum(-1).reshape(batch, len(theta), -1))
    return torch.cat(out, 1) * pixel_mm


def project_smooth(image: Tensor, views: int, pixel_mm: float) -> Tensor:
    """Like `forward_project`, at half resolution and a quarter of the views, interpolated.

    The variance of a measurement follows the smooth line integral, so the fine detail buys nothing.
    """
    size = image.shape[-1]
    coarse = forward_project(F.avg_pool2d(image[:, None], 2)[:, 0], views // 4, 2.0 * pixel_mm)
    fine = F.interpolate(coarse[:, None], (views, detector_count(size)), mode="bilinear", align_corners=False)
    return fine[:, 0]


def ramp(count: int, spacing_mm: float, device: torch.device) -> Tensor:
    """Spectrum (rfft of length ``count``) of the band-limited ramp times the sampling step (Kak 1988, eq. 61)."""
    n = torch.arange(count, device=device, dtype=torch.float64)
    n = torch.minimum(n, count - n)
    odd = n % 2 == 1
    h = torch.where(odd, -1.0 / (math.pi * n.clamp(min=1) * spacing_mm) ** 2, torch.zeros_like(n))
    h[0] = 1.0 / (4.0 * spacing_mm**2)
    spectrum: Tensor = torch.fft.rfft(h).real
    return (spectrum * spacing_mm).float()


def backproject_filtered(projection: Tensor, size: int, pixel_mm: float) -> Tensor:
    """Ramp-filtered backprojection of (batch, view, element): (batch, row, column) [1/mm]."""
    batch, views, count = projection.shape
    device = projection.device
    length = 1 << (2 * count - 1).bit_length()
    spectrum = torch.fft.rfft(projection, n=length) * ramp(length, DETECTOR_SPACING * pixel_mm, device)
    fine = torch.fft.irfft(spectrum, n=length * OVERSAMPLING)[..., : count * OVERSAMPLING] * OVERSAMPLING
    per_pixel = OVERSAMPLING / DETECTOR_SPACING
    centre = ((count - 1) / 2.0 - QUARTER_OFFSET) * OVERSAMPLING
    axis = (torch.arange(size, device=device, dtype=torch.float32) - (size - 1) / 2.0) * per_pixel
    theta = _angles(views, device)
    column = torch.round(axis[None] * torch.cos(theta)[:, None] + centre).long()
    row = torch.round(axis[None] * torch.sin(theta)[:, None]).long()
    image = torch.zeros(batch, size, size, device=device)
    for view in range(views):
        index = (row[view][:, None] + column[view][None, :]).clamp_(0, count * OVERSAMPLING - 1)
        for item in range(batch):
            image[item] += fine[item, view].take(index)
    return image * (math.pi / views)


def noise_gain(views: int, count: int, pixel_mm: float, kernel: Kernel, extra: Tensor | None = None) -> float:
    """Variance at the centre [1/mm^2] of the reconstruction of white noise of variance 1 in each measurement.

    (pi/V)^2 * V * sum_k g_k^2 with g the ramp x kernel, by Parseval's theorem. ``extra``: a further response, rfft of
    the same length, for example of the detector's cross-talk.
    """
    length = 1 << (2 * count - 1).bit_length()
    spacing = DETECTOR_SPACING * pixel_mm
    frequency = torch.fft.rfftfreq(length, spacing)
    gain = ramp(length, spacing, torch.device("cpu")) * kernel.response(frequency)
    if extra is not None:
        gain = gain * extra
    power = gain.double() ** 2
    total = (2.0 * power.sum() - power[0] - power[-1]) / length
    return float(math.pi**2 / views * total)


def radial_frequency(size: tuple[int, int], pixel_mm: float, device: torch.device) -> Tensor:
    """Radial frequency [lp/mm] of each element of ``rfft2`` of an image of ``size`` (row, column)."""
    fy = torch.fft.fftfreq(size[0], pixel_mm, device=device)
    fx = torch.fft.rfftfreq(size[1], pixel_mm, device=device)
    return torch.sqrt(fy[:, None] ** 2 + fx[None, :] ** 2)


def apply_kernel(image: Tensor, kernel: Kernel, pixel_mm: float) -> Tensor:
    """Apply H to images (..., row, column); periodic at the borders."""
    size = (image.shape[-2], image.shape[-1])
    response = kernel.response(radial_frequency(size, pixel_mm, image.device))
    filtered: Tensor = torch.fft.irfft2(torch.fft.rfft2(image) * response, s=size)
    return filtered
