"""The networks: a 2.5-D U-Net for slices, and a small recurrent head that reads a study from slice findings."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.hemorrhage.inputs import CHANNELS
from models.hemorrhage.lesion import LesionNet

#: Pixel logits: none and five classes, then cavity, ventricle and left hemisphere.
CLASS_LOGITS: Final = 6
PIXEL_LOGITS: Final = CLASS_LOGITS + 3
#: Slice and study logits: any blood, then the five classes.
FINDINGS: Final = 6
#: What the study head reads of every slice, see ``slice_features``.
FEATURES: Final = FINDINGS + 5 + 2 + 1
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
        # narrowed before it is enlarged: a third less work than to join all channels at the finer level
        self.narrow = nn.ModuleList(nn.Conv2d(b, a, 1, bias=False) for a, b in pairwise(widths))
        self.up = nn.ModuleList(Block(2 * width, width, 1) for width in widths[:-1])
        self.out = nn.Conv2d(widths[0], PIXEL_LOGITS, 1)
        self.slice_hidden = nn.Linear(2 * widths[-1] + CLASS_LOGITS - 1, 64)
        self.slice_out = nn.Linear(64, FINDINGS)
        bias = self.out.bias
        assert bias is not None  # it was asked for
        with torch.no_grad():  # most pixels are neither blood nor ventricle
            bias[0] = 3.0
            bias[CLASS_LOGITS + 1] = -3.0

    def forward(self, x: Tensor) -> Findings:
        """(slice, channel, row, column), rows and columns multiples of 16."""
        kept = []
        for level, block in enumerate(self.down):
            x = block(functional.max_pool2d(x, 2) if level else x)
            kept.append(x)
        deepest = x
        for level in range(len(self.up) - 1, -1, -1):
            x = functional.interpolate(self.narrow[level](x), scale_factor=2.0, mode="nearest")
            x = self.up[level](torch.cat((x, kept[level]), 1))
        pixels = self.out(x)
        blood = functional.avg_pool2d(pixels[:, 1:CLASS_LOGITS], 4).amax((2, 3))
        pooled = torch.cat((deepest.mean((2, 3)), deepest.amax((2, 3)), blood.to(deepest.dtype)), 1)
        return Findings(pixels, self.slice_out(functional.silu(self.slice_hidden(pooled))))


def slice_features(slices: Tensor, blood: Tensor, labels: Tensor, pixel_mm2: float, height_mm: Tensor) -> Tensor:
    """What the study head reads of each slice: (slice, FEATURES).

    Slice logits, the area of each class after post-processing on a logarithmic scale, the peak probability of blood
    (of a 3 x 3 mean) everywhere and within lesions, and the height. No free embedding: with one, a head unlike the
    simulated ones moves the study score at will.

    ``slices`` (slice, 6) logits; ``blood`` and ``labels`` (slice, row, column); ``height_mm`` (slice,).
    """
    area = torch.stack([(labels == k).sum((1, 2)) for k in range(1, CLASS_LOGITS)], 1) * (pixel_mm2 / 20.0)
    smooth = functional.avg_pool2d(blood[:, None].float(), 3, 1, 1)[:, 0]
    peaks = torch.stack((smooth.amax((1, 2)), (smooth * (labels > 0)).amax((1, 2))), 1)
    logits = slices.float().clamp(-8.0, 8.0) / 4.0
    return torch.cat((logits, torch.log1p(area.float()), 4.0 * peaks, height_mm.float().view(-1, 1) / 75.0 - 1.0), 1)


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
    """The networks of one package."""

    slices: SliceNet
    study: StudyHead
    lesions: LesionNet


def build(arguments: dict[str, Any]) -> Networks:
    """Untrained networks from the arguments that a manifest holds."""
    widths = tuple(int(w) for w in arguments["widths"])
    slices = SliceNet(widths, int(arguments["depth"]), int(arguments["first_depth"]))
    return Networks(slices, StudyHead(int(arguments["study_width"])), LesionNet(int(arguments["lesion_width"])))
