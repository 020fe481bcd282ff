"""The class of a whole lesion from its shape and place: a small network beside the pixels' own opinion.

The pixel classes of the U-Net are the slowest thing to learn on few steps; shape, contact with bone and overlap with a
ventricle tell the five classes apart with a handful of numbers that simulated lesions give in any quantity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from models.hemorrhage.inputs import HEIGHT_MM, WORK_MM, WORK_SIZE

CLASSES: Final = 5
#: Length of ``features``.
FEATURES: Final = 20
#: Hidden units.
WIDTH: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """What lesions are measured in, (slice, row, column) on the work grid unless said otherwise."""

    hu: NDArray[np.float32]
    #: In-plane distance to bone [mm].
    near: NDArray[np.float32]
    #: Probability of ventricle.
    ventricle: NDArray[np.float32]
    #: Distance of each slice below the vertex, and what it stands for (slice,) [mm].
    depth_mm: NDArray[np.float64]
    thickness_mm: NDArray[np.float64]


def _shape(rows: NDArray[np.float64], columns: NDArray[np.float64]) -> tuple[float, float]:
    """Length and width [mm] of a cloud of in-plane points: four standard deviations along its main axes."""
    if len(rows) < 3:
        return WORK_MM, WORK_MM
    values = np.linalg.eigvalsh(np.cov(np.stack((rows, columns)))) * WORK_MM**2
    return float(4.0 * np.sqrt(max(values[1], 0.1))), float(4.0 * np.sqrt(max(values[0], 0.1)))


def features(at: NDArray[np.int64], fields: Fields) -> NDArray[np.float32]:
    """Numbers that describe the lesion made of the flat voxel indices ``at``: (FEATURES,)."""
    k, row, column = np.unravel_index(at, fields.hu.shape)
    ml = fields.thickness_mm[k] * WORK_MM**2 / 1000.0
    volume = float(ml.sum())
    near, hu = fields.near.ravel()[at], fields.hu.ravel()[at]
    largest = int(np.bincount(k).argmax())
    mine = k == largest
    length, width = _shape(row[mine].astype(np.float64), column[mine].astype(np.float64))
    area = float(mine.sum()) * WORK_MM**2
    box = float(np.ptp(row[mine]) + 1) * float(np.ptp(column[mine]) + 1) * WORK_MM**2
    aside = np.abs(column - WORK_SIZE[1] // 2) * WORK_MM
    back = (row - WORK_SIZE[0] // 2) * WORK_MM
    low = fields.depth_mm[k]
    return np.array(
        [
            np.log(volume + 0.05),
            (near < 3.0).mean(),
            (near < 6.0).mean(),
            np.quantile(near, 0.5) / 20.0,
            np.quantile(near, 0.95) / 20.0,
            near[mine].max() / 20.0,
            (fields.ventricle.ravel()[at] > 0.5).mean(),
            length / 50.0,
            width / 30.0,
            width / length,
            area / (length * width),
            area / box,
            np.sqrt(area) / 30.0,
            float(len(np.unique(k))) * float(fields.thickness_mm[largest]) / 50.0,
            (hu.mean() - 50.0) / 15.0,
            hu.std() / 10.0,
            aside.mean() / 50.0,
            aside.min() / 20.0,
            back.mean() / 80.0,
            low.mean() / HEIGHT_MM,
        ],
        np.float32,
    )


class LesionNet(nn.Module):
    """Features of lesions to class logits."""

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("scale", torch.ones(FEATURES))
        self.hidden = nn.Linear(FEATURES, width)
        self.out = nn.Linear(width, CLASSES)

    def forward(self, features: Tensor) -> Tensor:
        """(lesion, FEATURES) to (lesion, 5)."""
        standard = ((features - self.mean) / self.scale).clamp(-4.0, 4.0)
        out: Tensor = self.out(functional.silu(self.hidden(standard)))
        return out
