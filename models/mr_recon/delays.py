"""Gradient delays of radial measurements: how far spokes miss the centre of k-space, from where they cross.

RING (Rosenzweig, Magn Reson Med 2019, 81:1898): a delay shifts a spoke of direction n by S n, with S symmetric. Two
spokes then cross beside the centre, where their samples are alike; the places along both give S by least squares.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.mr_recon.fft import ifftc

#: Samples around the centre that a crossing is looked for in, and places between two of them.
REACH, FINE = 6, 16
#: Spokes cross sharply enough when the sine of their angle is above this.
LEAST_SINE = 0.5
#: Crossings that are used at most.
PAIRS = 60
#: Unknowns of S; fewer crossings than twice as many would fit noise.
UNKNOWNS = 3
#: Crossings that lie further from the fitted ones in the median [cycles per field of view] are not crossings: noise.
MOST_MISFIT = 0.5


def _near(spokes: Tensor, centre: int) -> tuple[Tensor, Tensor]:
    """Values (spoke, coil, place) between the samples around ``centre``, and the places [samples] from it."""
    count = spokes.shape[-1]
    place = torch.arange(-REACH * FINE, REACH * FINE + 1, device=spokes.device) / FINE
    profile = ifftc(spokes, (-1,))
    x = torch.arange(count, device=spokes.device) - count // 2
    wave = torch.exp(-2j * torch.pi * torch.outer(x, place + centre - count // 2) / count) / count**0.5
    return profile @ wave.to(spokes.dtype), place


def shift(spokes: Tensor, trajectory: Tensor) -> Tensor:
    """The matrix S by which every spoke is shifted along its own direction's image.

    Parameters
    ----------
    spokes
        complex64 (spoke, coil, sample).
    trajectory
        float32 (spoke, sample, 2), as it was meant; straight lines through the centre.

    Returns
    -------
    float32 (2, 2) in the units of ``trajectory``: the true trajectory is ``trajectory + S @ direction``. Zero where too
    few spokes cross, or where their crossings are noise.
    """
    step = trajectory[:, -1] - trajectory[:, 0]
    direction = step / torch.linalg.vector_norm(step, dim=-1, keepdim=True)
    spacing = float(torch.linalg.vector_norm(step, dim=-1).mean()) / (trajectory.shape[1] - 1)
    centre = int(torch.linalg.vector_norm(trajectory, dim=-1).mean(0).argmin())
    first, second = _crossings(direction)
    if len(first) < 2 * UNKNOWNS or not REACH <= centre < trajectory.shape[1] - REACH:
        return trajectory.new_zeros(2, 2)
    values, place = _near(spokes, centre)
    a, b = values[first], values[second]  # (pair, coil, place)
    power = [(v.abs() ** 2).sum(1) for v in (a, b)]
    unlike = power[0][:, :, None] + power[1][:, None, :] - 2 * torch.einsum("pcm,pcn->pmn", a, b.conj()).real
    best = unlike.flatten(1).argmin(1)
    r = spacing * place[best // len(place)]
    q = spacing * place[best % len(place)]
    # r n + S n = q m + S m at the crossing, so S (m - n) = r n - q m.
    left = direction[second] - direction[first]
    right = r[:, None] * direction[first] - q[:, None] * direction[second]
    rows = torch.zeros(len(first), 2, UNKNOWNS, device=spokes.device)
    rows[:, 0, 0], rows[:, 0, 1] = left[:, 0], left[:, 1]
    rows[:, 1, 1], rows[:, 1, 2] = left[:, 0], left[:, 1]
    solution, misfit = _robust(rows, right)
    if misfit > MOST_MISFIT:
        return trajectory.new_zeros(2, 2)
    yy, yx, xx = solution.tolist()
    return torch.tensor([[yy, yx], [yx, xx]], device=spokes.device)


def _crossings(direction: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of spokes that cross sharply, spread over all of them."""
    sine = (direction[:, None, 0] * direction[None, :, 1] - direction[:, None, 1] * direction[None, :, 0]).abs()
    first, second = (torch.triu(sine, 1) > LEAST_SINE).nonzero().unbind(1)
    made = torch.Generator().manual_seed(0)
    some = torch.randperm(len(first), generator=made)[:PAIRS].to(first.device)
    return first[some], second[some]


def _robust(rows: Tensor, right: Tensor) -> tuple[Tensor, float]:
    """Least squares, again without the crossings that fit it worst (alike there by chance); and the misfit."""
    solution = torch.linalg.lstsq(rows.flatten(0, 1), right.flatten()[:, None]).solution
    misfit = torch.linalg.vector_norm(rows @ solution[:, 0] - right, dim=1)
    good = misfit <= 2 * misfit.median() + torch.finfo(misfit.dtype).eps
    solution = torch.linalg.lstsq(rows[good].flatten(0, 1), right[good].flatten()[:, None]).solution[:, 0]
    return solution, float(torch.linalg.vector_norm(rows @ solution - right, dim=1).median())


def corrected(spokes: Tensor, trajectory: Tensor) -> Tensor:
    """The trajectory (spoke, sample, 2) that the measured ``spokes`` (spoke, coil, sample) were really on."""
    step = trajectory[:, -1] - trajectory[:, 0]
    direction = step / torch.linalg.vector_norm(step, dim=-1, keepdim=True)
    return trajectory + (direction @ shift(spokes, trajectory).mT)[:, None, :]
