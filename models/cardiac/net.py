"""The network: a 2-D U-Net with instance normalisation, and a head that says which part of the heart a slice is."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Background, right ventricle, myocardium, left cavity: the order of ACDC.
CLASSES: Final = 4
#: Above the base, basal, mid, apical, below the apex.
POSITIONS: Final = 5


@dataclass(frozen=True, slots=True)
class Logits:
    """What the network says of slices."""

    #: (slice, 4, row, column).
    pixels: Tensor
    #: (slice, 5).
    positions: Tensor


class Block(nn.Module):
    """Two convolutions of 3 x 3, each normalised by instance and followed by a leaky rectifier."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(a, width, 3, padding=1, bias=False) for a in (inputs, width))
        self.norms = nn.ModuleList(nn.InstanceNorm2d(width, affine=True) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """(slice, channel, row, column) to the same size in ``width`` channels."""
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = functional.leaky_relu(norm(convolution(x)), 0.1)
        return x


class UNet(nn.Module):
    """A slice to its classes and its position (ml-mr 2.1, step 3)."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.down = nn.ModuleList(Block(a, b) for a, b in pairwise((1, *widths)))
        self.up = nn.ModuleList(Block(a + b, a) for a, b in pairwise(widths))
        self.out = nn.Conv2d(widths[0], CLASSES, 1)
        self.position = nn.Linear(2 * widths[-1], POSITIONS)

    def forward(self, x: Tensor) -> Logits:
        """(slice, 1, row, column), rows and columns multiples of 2 ** (levels - 1)."""
        kept = []
        for level, block in enumerate(self.down):
            x = block(functional.max_pool2d(x, 2) if level else x)
            kept.append(x)
        deepest = x
        for level in range(len(self.up) - 1, -1, -1):
            x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
            x = self.up[level](torch.cat((x, kept[level]), 1))
        pooled = torch.cat((deepest.mean((2, 3)), deepest.amax((2, 3))), 1)
        return Logits(self.out(x), self.position(pooled))


def build(arguments: dict[str, Any]) -> UNet:
    """An untrained network from the arguments that a manifest holds."""
    return UNet(tuple(int(width) for width in arguments["widths"]))
