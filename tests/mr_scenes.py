"""Small multi-coil k-spaces with a known object, known maps and known noise, for tests of the reconstruction core."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.mr_recon import coils as coil_maps
from models.mr_recon.fft import fft2c
from models.mr_recon.linops import Sense


@dataclass(frozen=True, kw_only=True)
class Scene:
    """``object`` (row, column), ``maps`` (coil, row, column) of unit root sum of squares, whitened ``kspace``."""

    object: Tensor
    maps: Tensor
    kspace: Tensor
    sd: float

    @property
    def body(self) -> Tensor:
        """Where there is tissue."""
        return self.object.abs() > 0

    def acs(self, lines: int, columns: int | None = None) -> Tensor:
        return coil_maps.centre(self.kspace, (lines, columns or self.kspace.shape[-1]))

    def measured(self, mask: Tensor, maps: Tensor | None = None) -> tuple[Sense, Tensor]:
        return Sense(self.maps if maps is None else maps, mask), mask * self.kspace


def scene(
    rows: int = 96, columns: int = 96, coils: int = 8, snr: float = 50.0, seed: int = 0, beat: float = 0.0
) -> Scene:
    """An oval body with a rim, two dark and one bright oval in it; its brightest tissue is ``snr`` times the noise."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, rows), torch.linspace(-1, 1, columns), indexing="ij")

    def oval(cy: float, cx: float, ry: float, rx: float) -> Tensor:
        return (((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1).float()

    image = 0.7 * oval(0, 0, 0.8, 0.7) + 0.3 * (oval(0, 0, 0.8, 0.7) - oval(0, 0, 0.73, 0.63))
    image = image - 0.45 * oval(-0.1, -0.3, 0.35, 0.2) - 0.3 * oval(-0.15, 0.33, 0.3, 0.17)
    image = image + 0.3 * oval(0.4, 0.05, 0.14 * (1 + beat), 0.2 * (1 + beat))
    truth = image * torch.exp(1j * (0.5 * y + 0.8 * x + 0.4 * x * y))
    angle = 2 * torch.pi * torch.arange(coils) / coils
    near = (y - 1.3 * angle.sin()[:, None, None]) ** 2 + (x - 1.3 * angle.cos()[:, None, None]) ** 2
    turn = angle[:, None, None] + y * angle.cos()[:, None, None] - x * angle.sin()[:, None, None]
    maps = torch.exp(1j * turn) / (near + 0.4) if coils > 1 else torch.ones(1, rows, columns)
    maps = maps / torch.linalg.vector_norm(maps, dim=0)
    maps, truth = maps.to(torch.complex64), (snr * truth).to(torch.complex64)
    made = torch.Generator().manual_seed(seed)
    noise = torch.randn(coils, rows, columns, dtype=torch.complex64, generator=made)
    return Scene(object=truth, maps=maps, kspace=fft2c(maps * truth) + noise, sd=1.0)


def uniform(rows: int, acceleration: int, lines: int, first: int = 0) -> Tensor:
    """Real (1, row, 1): every ``acceleration``-th line and the centre."""
    mask = torch.zeros(rows)
    mask[first::acceleration] = 1
    mask[rows // 2 - lines // 2 : rows // 2 - lines // 2 + lines] = 1
    return mask[None, :, None]


def variable(rows: int, acceleration: float, lines: int, seed: int = 0) -> Tensor:
    """Real (1, row, 1): random lines, denser towards the centre, which is whole."""
    made = torch.Generator().manual_seed(seed)
    offset = (torch.arange(rows) - rows // 2).abs() / (rows / 2)
    chance = (1 - offset).clamp(min=0) ** 2 + 0.05
    mask = torch.zeros(rows)
    mask[rows // 2 - lines // 2 : rows // 2 - lines // 2 + lines] = 1
    chance[mask > 0] = 0
    left = max(1, round(rows / acceleration) - lines)
    mask[torch.multinomial(chance, left, generator=made)] = 1
    return mask[None, :, None]


def decibels(image: Tensor, reference: Tensor, scaled: bool = False) -> float:
    """Peak signal-to-noise ratio of magnitudes; ``scaled``: after one least-squares factor."""
    a, b = image.abs(), reference.abs()
    if scaled:
        a = a * ((a * b).sum() / (a * a).sum())
    return float(10 * torch.log10(b.max() ** 2 / ((a - b) ** 2).mean()))
