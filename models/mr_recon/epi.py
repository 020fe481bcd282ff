"""Echo-planar readouts: the ghost between the two directions, and samples taken while the gradient ramps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

#: Navigators that a correction needs: one of each direction.
NAVIGATORS: Final = 2
#: What the header must say of a readout under a trapezoid [us], and the number of its samples.
TIMINGS: Final = ("rampUpTime", "flatTopTime", "rampDownTime", "acqDelayTime", "numSamples")
#: Tikhonov weight, relative to the largest eigenvalue, of the inversion of ramp-sampled readouts.
DAMPING: Final = 1e-4


@dataclass(frozen=True, slots=True, eq=False)
class PhaseCorrection:
    """Phase of reversed readouts against forward ones, a line along the readout for each coil."""

    #: [rad] at the centre of the readout, and [rad per column]; both (coil, 1).
    constant: Tensor
    slope: Tensor

    def apply(self, profiles: Tensor) -> Tensor:
        """A reversed readout's image line (coil, column) with the phase of a forward one."""
        return profiles * torch.exp(-1j * (self.constant + self.slope * _columns(profiles)))


def _columns(profiles: Tensor) -> Tensor:
    size = profiles.shape[-1]
    return torch.arange(size, device=profiles.device) - size // 2


def phase_correction(forward: list[Tensor], reverse: list[Tensor]) -> PhaseCorrection:
    """Linear phase from navigators (Ahn and Cho, IEEE Trans Med Imaging 1987, 6:32).

    Parameters
    ----------
    forward, reverse
        Image lines (coil, column) of the navigators of each direction; reversed ones flipped already.

    Raises
    ------
    ValueError
        One direction is missing.
    """
    if not forward or not reverse:
        raise ValueError("EPI phase correction needs navigators of both directions")
    # Means over a direction: forward ones on both sides of a reversed one take the drift between them out.
    ratio = torch.stack(reverse).mean(0) * torch.stack(forward).mean(0).conj()
    slope = (ratio[:, 1:] * ratio[:, :-1].conj()).sum(-1, keepdim=True).angle()
    constant = (ratio * torch.exp(-1j * slope * _columns(ratio))).sum(-1, keepdim=True).angle()
    return PhaseCorrection(constant, slope)


def ramp_positions(timings: Mapping[str, float], columns: int, samples: int) -> Tensor:
    """Where the samples of a trapezoid lie in k-space, in samples of the encoded grid; 0 is its centre.

    Parameters
    ----------
    timings
        `TIMINGS`, and ``dwellTime`` where the header has it.
    columns
        Of the encoded grid: the samples together cover that many of its steps.

    Raises
    ------
    ValueError
        The timings contradict each other or the readout.
    """
    up, flat, down, delay = (float(timings[name]) for name in TIMINGS[:4])
    total = up + flat + down
    dwell = float(timings.get("dwellTime", 0.0)) or (total - 2 * delay) / samples
    if int(timings["numSamples"]) != samples:
        raise ValueError(f"the header says {int(timings['numSamples'])} samples a readout, and there are {samples}")
    if min(up, flat, down) < 0 or total <= 0 or dwell <= 0 or delay < 0 or delay + samples * dwell > total * 1.01:
        raise ValueError(f"readout gradient timings {dict(timings)} do not hold {samples} samples")

    def area(t: Tensor) -> Tensor:
        t = t.clamp(0, total)
        rising = torch.where(t < up, t**2 / (2 * up) if up > 0 else t, up / 2 + (t - up))
        late = t - up - flat
        return torch.where(late > 0, up / 2 + flat + late - (late**2 / (2 * down) if down > 0 else 0 * late), rising)

    edges = delay + dwell * torch.tensor([0.0, float(samples)], dtype=torch.float64)
    times = delay + dwell * (torch.arange(samples, dtype=torch.float64) + 0.5)
    low, high = area(edges).tolist()
    whole = float(area(torch.tensor(total, dtype=torch.float64)))
    return (area(times) - whole / 2) * (columns / (high - low))


def gridding(positions: Tensor, columns: int) -> Tensor:
    """complex64 (column, sample): image line on the encoded grid from samples at ``positions`` along k-space.

    The regularised inverse of ``s_i = N^-1/2 sum_x m_x exp(-2 pi i k_i x / N)``.
    """
    x = torch.arange(columns, dtype=torch.float64) - columns // 2
    model = torch.exp(-2j * torch.pi * positions[:, None] * x[None, :] / columns) / columns**0.5
    gram = model.mH @ model
    ridge = DAMPING * torch.linalg.matrix_norm(gram, 2) * torch.eye(columns, dtype=gram.dtype)
    return torch.linalg.solve(gram + ridge, model.mH).to(torch.complex64)
