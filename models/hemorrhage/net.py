"""The networks: a 2.5-D U-Net for slices, and a small recurrent head that reads a study from slice findings."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.hemorrhage.inputs import CHANNELS

#: Pixel logits: none and five classes, then cavity, ventricle and left hemisphere.
CLASS_LOGITS: Final = 6
PIXEL_LOGITS: Final = CLASS_LOGITS + 3
#: Slice and study logits: any blood, then the five classes.
FINDINGS: Final = 6
#: What the study head reads of every slice, see ``slice_features``.
FEATURES: Final = FINDINGS + 5 + 5 + 1
#: Channels of a normalisation group.
GROUP: Final = 8


@dataclass(frozen=True, slots=True)
class Findings:
    """What the slice network says about slices."""

    #: (slice, 9, row, column) logits.
    pixels: Tensor
    #: (slice, 6) logits.
    slices: Tensor


class Block(nn.Module):
    """Convolutions of 3 x 3, each normalised by groups and followed by SiLU."""

    def __init__(self, inputs: int, width: int, depth: int) -> None:
        super().__init__()
        sizes = [inputs] + [width] * depth
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in pairwise(sizes))
        self.norms = nn.ModuleList(nn.GroupNorm(width // GROUP, width) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """(slice, channel, row, column) to the same size in ``width`` channels."""
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = functional.silu(norm(convolution(x)))
        return x


class SliceNet(nn.Module):
    """Whole slices with their neighbours to pixel and slice findings (ml-ct 1.3, stage A)."""

    def __init__(self, widths: tuple[int, ...], depth: int, first_depth: int) -> None:
        super().__init__()
        self.widths = tuple(widths)
        sizes = (CHANNELS, *widths)
        depths = [first_depth] + [depth] * (len(widths) - 1)
        self.down = nn.ModuleList(Block(sizes[k], sizes[k + 1], depths[k]) for k in range(len(widths)))
        self.up = nn.ModuleList(Block(widths[k] + widths[k + 1], widths[k], depths[k]) for k in range(len(widths) - 1))
        self.out = nn.Conv2d(widths[0], PIXEL_LOGITS, 1)
        self.slice_hidden = nn.Linear(2 * widths[-1] + CLASS_LOGITS - 1, 64)
        self.slice_out = nn.Linear(64, FINDINGS)

    def forward(self, x: Tensor) -> Findings:
        """(slice, channel, row, column), rows and columns multiples of 16."""
        kept = []
        for level, block in enumerate(self.down):
            x = block(functional.max_pool2d(x, 2) if level else x)
            kept.append(x)
        deepest = x
        for level in range(len(self.up) - 1, -1, -1):
            x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
            x = self.up[level](torch.cat((x, kept[level]), 1))
        pixels = self.out(x)
        blood = functional.avg_pool2d(pixels[:, 1:CLASS_LOGITS], 4).amax((2, 3))
        pooled = torch.cat((deepest.mean((2, 3)), deepest.amax((2, 3)), blood.to(deepest.dtype)), 1)
        return Findings(pixels, self.slice_out(functional.silu(self.slice_hidden(pooled))))


def slice_features(findings: Findings, pixel_mm2: float, height_mm: Tensor) -> Tensor:
    """What the study head reads of each slice: (slice, FEATURES).

    Slice logits, the area of each class on a logarithmic scale, the peak probability of each class (of a 3 x 3 mean),
    and the height. No free embedding: with one, a head unlike the simulated ones moves the study score at will.
    """
    probability = findings.pixels[:, :CLASS_LOGITS].float().softmax(1)
    cavity = findings.pixels[:, CLASS_LOGITS : CLASS_LOGITS + 1].float().sigmoid()
    blood = probability[:, 1:] * cavity
    area = torch.log1p((blood * (blood > 0.2)).sum((2, 3)) * pixel_mm2 / 20.0)  # 20 mm^2: a speck of 5 mm
    peak = functional.avg_pool2d(blood, 3, 1).amax((2, 3))
    logits = findings.slices.float().clamp(-8.0, 8.0) / 4.0
    return torch.cat((logits, area, 4.0 * peak, height_mm.view(-1, 1) / 75.0 - 1.0), 1)


class StudyHead(nn.Module):
    """Slice features of a whole study to study logits: any and five classes (ml-ct 1.3, stage B)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.reader = nn.GRU(FEATURES, width, batch_first=True, bidirectional=True)
        self.out = nn.Linear(2 * width + FEATURES, FINDINGS)

    def forward(self, features: Tensor) -> Tensor:
        """(study, slice, FEATURES) to (study, FINDINGS); all slices count."""
        read, _ = self.reader(features)
        out: Tensor = self.out(torch.cat((read.amax(1), features.amax(1)), 1))
        return out


@dataclass(frozen=True, slots=True)
class Networks:
    """Both networks of one package."""

    slices: SliceNet
    study: StudyHead


def build(arguments: dict[str, Any]) -> Networks:
    """Untrained networks from the arguments that a manifest holds."""
    widths = tuple(int(w) for w in arguments["widths"])
    slices = SliceNet(widths, int(arguments["depth"]), int(arguments["first_depth"]))
    return Networks(slices, StudyHead(int(arguments["study_width"])))
