"""What a learned image must pass before it may leave: it explains the data, and agrees with the linear image.

The second to fourth of ml-mr 1.2. The residual may reach the noise floor even where CG-SENSE goes below it: with one
coil CG-SENSE fits the noise to nothing, and the true image itself would fail a comparison with that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from models.mr_recon.fft import fft2c
from models.mr_recon.linops import Sense
from models.mr_recon.net import START_DAMPING
from models.mr_recon.solvers import conjugate_gradient

#: Residual over that of CG-SENSE, and over the noise floor (ml-mr 1.2, check 2).
RESIDUAL: Final = 1.15
FLOOR: Final = 1.3
#: Part of k-space around its centre, as far as it was measured, and the NRMSE there (check 3).
CENTRE: Final = 0.12
CENTRE_NRMSE: Final = 0.02
#: Differences from CG-SENSE beyond this many standard deviations of its noise, and their share of the body (check 4).
SIGMAS: Final = 5.0
BODY_SHARE: Final = 0.01
#: The body: pixels above this share of the 99th percentile of CG-SENSE.
BODY: Final = 0.1
#: Pseudo-replicas that measure the noise of CG-SENSE, and its iterations (Robson, Magn Reson Med 2008, 60:895).
REPLICAS: Final = 6
ITERATIONS: Final = 10
#: Share of readout samples, at either end, whose spread is taken for noise where none was measured (ml-mr 1.4).
EDGE: Final = 0.05
#: Part of the lines, those farthest from the centre, that this is taken from: signal is least there.
OUTER: Final = 0.25


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison."""

    name: str
    value: float
    limit: float
    passed: bool
    #: Whether failing refuses the image; else the image leaves with a mark, "strong prior influence".
    refuses: bool = True


def refusal(checks: tuple[Check, ...]) -> str:
    """Why the image may not leave as it is; empty when it may."""
    failed = [check for check in checks if not check.passed and check.refuses]
    return "; ".join(f"{check.name} {check.value:.3g} is above {check.limit:.3g}" for check in failed)


def noise_of(y: Tensor, mask: Tensor, outer: float = 1.0) -> float:
    """Standard deviation of one complex sample, from the ends of the readouts.

    Parameters
    ----------
    outer
        Part of the lines, those farthest from the centre, that count.
    """
    width = max(1, round(y.shape[-1] * EDGE))
    ends = torch.cat((y[..., :width], y[..., -width:]), -1)
    there = mask[..., :1] > 0
    if outer < 1.0:
        lines = there.reshape(-1, there.shape[-2]).any(0).nonzero().flatten()
        distance = (lines - y.shape[-2] // 2).abs()
        chosen = torch.zeros(y.shape[-2], 1, dtype=torch.bool, device=y.device)
        chosen[lines[distance.argsort(descending=True)[: max(1, round(outer * len(lines)))]]] = True
        there = there & chosen
    kept = ends[there.expand(ends.shape)]
    # median of a Rayleigh variable over its root mean square, sqrt(ln 2): signal in the ends moves the median little
    return float(kept.abs().median() / 0.8326)


def judge(image: Tensor, reference: Tensor, operator: Sense, y: Tensor, noise: float | None) -> tuple[Check, ...]:
    """Compare a learned image with the data and with the linear image.

    Parameters
    ----------
    image, reference
        (row, column): the learned image and CG-SENSE's, of the same operator.
    operator, y
        The measurement, and what was measured, (coil, ky, kx).
    noise
        Standard deviation of a complex sample of ``y``; None where it was not measured.
    """
    sd = noise_of(y, operator.mask, OUTER) if noise is None else noise
    size = float(torch.linalg.vector_norm(y).clamp(min=torch.finfo(torch.float32).tiny))
    samples = float((operator.mask.expand(y.shape) > 0).sum())
    residual = [
        float(torch.linalg.vector_norm(operator.forward(x) - operator.mask * y)) / size for x in (image, reference)
    ]
    limit = max(RESIDUAL * residual[1], FLOOR * sd * samples**0.5 / size)
    checks = [Check("data residual", residual[0], limit, residual[0] <= limit)]
    difference, linear = (_centre(fft2c(x), operator.mask) for x in (image - reference, reference))
    apart = float(torch.linalg.vector_norm(difference) / torch.linalg.vector_norm(linear))
    checks.append(Check("low-frequency difference", apart, CENTRE_NRMSE, apart <= CENTRE_NRMSE))
    body = reference.abs() > BODY * torch.quantile(reference.abs().flatten(), 0.99)
    beyond = (image - reference).abs() > SIGMAS * noise_map(operator, sd)
    share = float((beyond & body).sum() / body.sum().clamp(min=1))
    # with regular lines CG-SENSE is right but for its noise; with irregular ones it is itself full of aliasing, and
    # differing from it is what a network is for
    checks.append(Check("prior influence", share, BODY_SHARE, share <= BODY_SHARE, refuses=regular(operator.mask)))
    return tuple(checks)


def regular(mask: Tensor) -> bool:
    """Whether the measured lines outside the block around the centre lie at one distance."""
    lines = (mask.reshape(-1, *mask.shape[-2:]) > 0).any(0).any(-1).nonzero().flatten()
    gaps = lines.diff()
    # every distance but the usual one is of neighbours, in the block, or where the block meets the pattern
    usual = int(gaps[gaps > 1].mode().values) if bool((gaps > 1).any()) else 1
    return int((gaps > usual).sum()) == 0 and int(((gaps > 1) & (gaps < usual)).sum()) <= 2


def linear(operator: Sense, y: Tensor) -> Tensor:
    """(row, column): CG-SENSE as its noise is measured."""
    return _solved(operator, operator.adjoint(y))


def _solved(operator: Sense, right: Tensor) -> Tensor:
    return conjugate_gradient(operator.normal, right, iterations=ITERATIONS, damping=START_DAMPING)


def noise_map(operator: Sense, noise: float) -> Tensor:
    """(row, column) standard deviation of CG-SENSE's noise, from pseudo-replicas averaged over 9 by 9 pixels."""
    generator = torch.Generator().manual_seed(0)
    shape = (REPLICAS, *operator.maps.shape[:-2], *operator.mask.shape[-2:])
    drawn = torch.randn(shape, dtype=torch.complex64, generator=generator).to(operator.maps.device)
    right = operator.adjoint((operator.mask > 0) * drawn * noise)
    power = _solved(operator, right).abs().square().mean(0)
    return torch.nn.functional.avg_pool2d(power[None], 9, 1, 4, count_include_pad=False)[0].sqrt()


def _centre(k: Tensor, mask: Tensor) -> Tensor:
    """The low frequencies that were measured: beyond the calibration block CG-SENSE guesses too."""
    rows, columns = (max(1, round(CENTRE * size / 2)) for size in k.shape[-2:])
    row, column = k.shape[-2] // 2, k.shape[-1] // 2
    missing = (mask.reshape(-1, *mask.shape[-2:]) > 0).any(0).any(-1).logical_not().nonzero().flatten()
    if missing.numel():
        rows = max(0, min(rows, int((missing - row).abs().min()) - 1))
    return k[..., row - rows : row + rows + 1, column - columns : column + columns + 1]
