"""Second rung of the ladder: the most probable slice among those that have a heart's shape by construction.

Around a centre c, the cavity reaches r(phi) = exp(sum_{k <= 6} ...), the wall is w(phi) = least + exp(sum_{k <= 4} ...)
thick, and the right ventricle h(phi) = H exp(sum_{k <= 2} ...) cos(pi/2 (phi - mu) / D) on one interval of angles. The
parameters maximise sum over pixels of sum_c s_c log p_c, with s the soft membership and p what the networks say
(ml-mr 2.6). Cavity and epicardium are then taken as their convex hulls, so neither can have a dent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.cardiac import shapes

#: Harmonics of the cavity's outline, of the wall and of the right ventricle.
CAVITY: Final = 6
WALL: Final = 4
RIGHT: Final = 2
#: Thinnest wall [mm] (ml-mr 2.6), and how many pixels it must be for no cavity to touch what is outside.
LEAST_WALL_MM: Final = 3.0
LEAST_WALL_PIXELS: Final = 1.6
#: Steps of Adam and their size (ml-mr 2.6: 100 steps).
STEPS: Final = 100
RATE: Final = 0.05
#: Weight of smoothness, per pixel of the cavity's outline.
STIFFNESS: Final = 0.5
#: Least probability: one pixel that the networks exclude must not move an outline alone.
FLOOR: Final = 1e-3
#: Softness of an edge [pixels], and how far around the heart pixels count [mm].
EDGE: Final = 0.7
MARGIN_MM: Final = 12.0
#: Angles of the outlines that are filled, and the area of right ventricle below which none is fitted [pixels].
OUTLINE: Final = 128
LEAST_RV: Final = 12.0


@dataclass(frozen=True, slots=True)
class Outline:
    """A fitted slice; radii are (angle,) in pixels around ``centre`` (row, column)."""

    centre: tuple[float, float]
    cavity: NDArray[np.float64]
    epicardium: NDArray[np.float64]
    #: Thickness of the right ventricle, zero outside its interval.
    right: NDArray[np.float64]

    def labels(self, shape: tuple[int, int], scale: tuple[float, float], offset: tuple[float, float]) -> shapes.Labels:
        """Fill the outlines on another grid of the same plane: its row r is row ``scale * r + offset`` of the fit's."""
        angle = np.arange(OUTLINE) * (2.0 * np.pi / OUTLINE)
        ring = np.stack((np.sin(angle), np.cos(angle)), 1)
        curves = [(self.centre + r[:, None] * ring - offset) / scale for r in (self.cavity, self.epicardium)]
        lv, epi = (shapes.inside(shapes.convex(curve), shape) for curve in curves)
        rows = np.arange(shape[0])[:, None] * scale[0] + offset[0] - self.centre[0]
        columns = np.arange(shape[1])[None, :] * scale[1] + offset[1] - self.centre[1]
        place = np.arctan2(rows, columns) % (2.0 * np.pi) * (OUTLINE / (2.0 * np.pi))
        reach = np.interp(place, np.arange(OUTLINE + 1), np.append(self.epicardium + self.right, self.epicardium[0]))
        thick = np.interp(place, np.arange(OUTLINE + 1), np.append(self.right, self.right[0]))
        rv = (np.hypot(rows, columns) < reach) & (thick > 0.5) & ~epi
        out = np.zeros(shape, np.uint8)
        out[shapes.fill_holes(shapes.largest_part(rv)) & ~epi] = shapes.RV
        out[epi] = shapes.MYO
        out[lv] = shapes.LV
        return out


def fit(probabilities: Tensor, pixel_mm: float) -> list[Outline]:
    """Fit (slice, class, row, column) probabilities; every slice must have some cavity."""
    p, corner = _window(probabilities.detach().float(), pixel_mm)
    rows, columns = (torch.arange(n, dtype=p.dtype) for n in p.shape[2:])
    mass = p[:, 3] ** 2
    total = mass.sum((1, 2)).clamp_min(1e-6)
    centre = torch.stack(((mass.sum(2) @ rows) / total, (mass.sum(1) @ columns) / total), 1)
    y, x = rows[None, :, None] - centre[:, :1, None], columns[None, None, :] - centre[:, 1:, None]
    r, phi = torch.sqrt(x * x + y * y + 1e-6).flatten(1), torch.atan2(y, x).flatten(1)
    values = _Parameters(p, phi, max(LEAST_WALL_MM / pixel_mm, LEAST_WALL_PIXELS))
    log_p, basis = p.clamp_min(FLOOR).log().flatten(2), _basis(phi)
    optimiser = torch.optim.Adam(values.free, lr=RATE)
    for _ in range(STEPS):
        cavity, thickness, ventricle = values.at(phi, basis)
        in_lv, in_epi = torch.sigmoid((cavity - r) / EDGE), torch.sigmoid((cavity + thickness - r) / EDGE)
        in_rv = torch.sigmoid((cavity + thickness + ventricle - r) / EDGE) * torch.tanh(ventricle) * (1.0 - in_epi)
        shares = torch.stack((1.0 - in_epi - in_rv, in_rv, in_epi - in_lv, in_lv), 1)
        loss = -(shares * log_p).sum() / values.size + STIFFNESS * values.roughness()
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
    with torch.no_grad():
        angle = (torch.arange(OUTLINE, dtype=p.dtype) * (2.0 * torch.pi / OUTLINE)).expand(len(p), OUTLINE)
        found = [part.double().numpy() for part in values.at(angle, _basis(angle))]
    return [
        Outline((float(c[0]) + corner[0], float(c[1]) + corner[1]), a, a + w, np.where(rv > 0.3, rv, 0.0))
        for c, a, w, rv in zip(centre.numpy(), *found, strict=True)
    ]


def _window(p: Tensor, pixel_mm: float) -> tuple[Tensor, tuple[int, int]]:
    """The part of the grid around what is not background, and the row and column where it begins."""
    seen = (p[:, 1:].sum(1) > 0.2).any(0)
    margin = round(MARGIN_MM / pixel_mm)
    cuts = []
    for axis in (1, 0):
        at = torch.nonzero(seen.any(axis)).flatten()
        first, last = (int(at[0]), int(at[-1])) if len(at) else (0, seen.shape[1 - axis] - 1)
        cuts.append((max(0, first - margin), min(seen.shape[1 - axis], last + margin + 1)))
    (top, bottom), (left, right) = cuts
    return p[:, :, top:bottom, left:right], (top, left)


def _basis(phi: Tensor) -> Tensor:
    """(slice, angle, 2 CAVITY + 1) of 1, cos phi, sin phi, cos 2 phi, ..."""
    waves = [part for k in range(1, CAVITY + 1) for part in (torch.cos(k * phi), torch.sin(k * phi))]
    return torch.stack([torch.ones_like(phi), *waves], -1)


class _Parameters:
    """What is fitted, for all slices at once: coefficients of logarithms in the harmonics of ``_basis``."""

    def __init__(self, p: Tensor, phi: Tensor, least: float) -> None:
        area = [(p[:, c] > 0.5).sum((1, 2)).float() for c in (1, 2, 3)]
        radius = (area[2].clamp_min(9) / torch.pi).sqrt()
        wall = ((area[2].clamp_min(9) + area[1]) / torch.pi).sqrt() - radius
        self.least, self.size = least, radius.sum()
        self.exists = (area[0] > LEAST_RV).float().view(-1, 1)
        self.cavity = _constant(radius, CAVITY)
        self.wall = _constant((wall - least).clamp_min(0.5), WALL)
        self.right = _constant((area[0] / (radius + wall) / 1.6).clamp_min(0.5), RIGHT)
        self.opening = torch.zeros(len(p))
        weight = p[:, 1].flatten(1)
        self.direction = torch.atan2((weight * phi.sin()).sum(1), (weight * phi.cos()).sum(1))
        self.free = [self.cavity, self.wall, self.right, self.opening, self.direction]
        for part in self.free:
            part.requires_grad_()

    def at(self, phi: Tensor, basis: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cavity radius, wall and right ventricle [pixels] at (slice, angle)."""
        half = (0.6 + 1.4 * torch.sigmoid(self.opening)).view(-1, 1)  # [rad]: 34 to 115 degrees
        away = torch.remainder(phi - self.direction.view(-1, 1) + torch.pi, 2.0 * torch.pi) - torch.pi
        window = torch.cos(0.5 * torch.pi * (away / half).clamp(-1.0, 1.0)).clamp_min(0.0)
        cavity, wall, right = (_series(part, basis) for part in (self.cavity, self.wall, self.right))
        return cavity, self.least + wall, self.exists * window * right

    def roughness(self) -> Tensor:
        """Mean over slices of the sum of squared harmonics, higher ones weighing more."""
        total = torch.zeros(())
        for part in (self.cavity, self.wall, self.right):
            k = torch.arange(1, part.shape[1] // 2 + 1).repeat_interleave(2)
            total = total + ((part[:, 1:] * k) ** 2).sum() / len(part)
        return total


def _constant(value: Tensor, harmonics: int) -> Tensor:
    return torch.cat((value.log().view(-1, 1), torch.zeros(len(value), 2 * harmonics)), 1)


def _series(coefficients: Tensor, basis: Tensor) -> Tensor:
    return torch.exp(torch.einsum("sak,sk->sa", basis[..., : coefficients.shape[1]], coefficients))
