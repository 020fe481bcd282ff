"""The unrolled network: small residual U-Nets between exact data consistency by conjugate gradients.

MoDL (Aggarwal, IEEE Trans Med Imaging 2019, 38:394) started from CG-SENSE: with ``A`` the measurement,

    x = CG_4[(A^H A + 0.002) x = A^H y]                              (from zero)
    z = x + U_k(x),  x = CG_4[(A^H A + mu_k) x = A^H y + mu_k z]     (k = 1 .. blocks, from z)
    x = CG_4[(A^H A + lambda) x = A^H y + lambda x]                  (from x)

One coil whose map is one makes it the deep cascade (Schlemper, IEEE Trans Med Imaging 2018, 37:491). The network sees
the measurement only as ``A^H A`` and ``A^H y``, so that any operator serves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.mr_recon.precision import precision
from models.mr_recon.solvers import conjugate_gradient

SLOPE: Final = 0.1  # of LeakyReLU, ml-mr 1.3
LAST: Final = 0.1  # first scale of each U-Net's last layer: training begins near CG-SENSE, ml-mr 1.3
#: First weights of the U-Nets' image and of the network's image against the data; A^H A has eigenvalues 0 to 1.
FIRST_MU: Final = 0.1
FIRST_LAMBDA: Final = 0.02
#: Damping of the start, as CG-SENSE has it (ml-mr 1.2). Without it one coil, whose A^H A is a projection and solved
#: after one iteration, goes on dividing rounding errors by nothing.
START_DAMPING: Final = 2e-3
#: The image is divided by this percentile of |A^H y| before, and multiplied after.
PERCENTILE: Final = 0.99


def _convolutions(from_: int, to: int) -> nn.Sequential:
    layers = (nn.Conv2d(from_, to, 3, padding=1), nn.Conv2d(to, to, 3, padding=1))
    return nn.Sequential(layers[0], nn.LeakyReLU(SLOPE), layers[1], nn.LeakyReLU(SLOPE))


class UNet(nn.Module):
    """Two channels (real, imaginary) to two; any matrix size, padded here and nowhere else."""

    def __init__(self, width: int, levels: int) -> None:
        super().__init__()
        widths = [width * 2**k for k in range(levels)]
        self.down = nn.ModuleList(_convolutions(a, b) for a, b in zip([2, *widths], widths, strict=False))
        self.up = nn.ModuleList(_convolutions(3 * w, w) for w in reversed(widths[:-1]))
        self.last = nn.Conv2d(width, 2, 1)
        with torch.no_grad():
            self.last.weight.mul_(LAST)
            self.last.bias.zero_()  # type: ignore[union-attr]  # it has a bias
        self.multiple = 2 ** (levels - 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 2, row, column) to the same."""
        rows, columns = x.shape[-2:]
        x = functional.pad(x, (0, -columns % self.multiple, 0, -rows % self.multiple))
        x = x.contiguous(memory_format=torch.channels_last)
        kept: list[Tensor] = []
        for k, level in enumerate(self.down):
            x = level(x if k == 0 else functional.avg_pool2d(x, 2))
            kept.append(x)
        kept.pop()
        for level in self.up:
            x = level(torch.cat((functional.interpolate(x, scale_factor=2.0, mode="nearest"), kept.pop()), 1))
        added: Tensor = self.last(x)
        return added[..., :rows, :columns]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Arguments of the network, as a manifest holds them."""

    blocks: int = 6
    width: int = 12
    levels: int = 3
    #: Neighbouring blocks that share one U-Net.
    shared: int = 1
    #: Conjugate gradient iterations of the start and of each block.
    iterations: int = 4


class Unrolled(nn.Module):
    """Blocks of U-Net and data consistency."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.nets = nn.ModuleList(UNet(shape.width, shape.levels) for _ in range(-(-shape.blocks // shape.shared)))
        first = torch.tensor([FIRST_MU] * shape.blocks + [FIRST_LAMBDA])
        self.weight = nn.Parameter(torch.log(torch.expm1(first)))  # softplus gives the first weights

    def forward(self, normal: Callable[[Tensor], Tensor], right: Tensor) -> Tensor:
        """Reconstruct.

        Parameters
        ----------
        normal
            ``A^H A``, its largest eigenvalue near 1.
        right
            ``A^H y``, complex (batch, row, column).
        """
        scale = torch.quantile(right.abs().flatten(1), PERCENTILE, dim=1).clamp(min=torch.finfo(torch.float32).tiny)
        right = right / scale[:, None, None]
        mu, steps = functional.softplus(self.weight), self.shape.iterations
        x = conjugate_gradient(normal, right, iterations=steps, damping=START_DAMPING)
        for k in range(self.shape.blocks):
            z = x + self.prior(k, x)
            x = conjugate_gradient(normal, right + mu[k] * z, z, iterations=steps, damping=mu[k])
        x = conjugate_gradient(normal, right + mu[-1] * x, x, iterations=steps, damping=mu[-1])
        return x * scale[:, None, None]

    def prior(self, k: int, x: Tensor) -> Tensor:
        """What the k-th U-Net adds to (batch, row, column)."""
        channels = torch.view_as_real(x).movedim(-1, 1)
        with precision(x.device):
            added = self.nets[k // self.shape.shared](channels)
        return torch.view_as_complex(added.float().movedim(1, -1).contiguous())
