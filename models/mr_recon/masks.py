"""Sampling patterns of one phase encoding: which lines of k-space are measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Lines = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranges:
    """What training draws patterns from; the trained-domain record is made of it."""

    #: Distance of the lines outside the calibration block, and width of the block.
    uniform: tuple[int, int] = (2, 8)
    uniform_calibration: tuple[int, int] = (12, 32)
    #: All lines over measured lines, and width of the block; the block takes 0.2 to 0.5 of the measured lines.
    variable: tuple[float, float] = (2.0, 10.0)
    variable_calibration: tuple[int, int] = (6, 32)
    #: Accelerations out of ``variable`` that are drawn more often, and the share of patterns drawn from them alone.
    often: tuple[float, float] = (3.0, 6.0)
    often_share: float = 0.0
    #: Share of uniform patterns, of blocks that lie off the centre, and of partial Fourier.
    uniform_share: float = 0.5
    shifted_share: float = 0.15
    partial_share: float = 0.06
    #: Part of k-space that partial Fourier measures.
    partial: tuple[float, float] = (0.625, 0.875)


def block(rows: int, width: int, shift: int = 0) -> Lines:
    """``width`` neighbouring lines around the centre, index ``rows // 2``."""
    lines = np.zeros(rows, bool)
    first = rows // 2 - width // 2 + shift
    lines[max(0, first) : first + width] = True
    return lines


def uniform(rows: int, acceleration: int, calibration: int, offset: int = 0, shift: int = 0) -> Lines:
    """Every ``acceleration``-th line and the calibration block."""
    lines = block(rows, calibration, shift)
    lines[offset % acceleration :: acceleration] = True
    return lines


def variable(
    rows: int, acceleration: float, calibration: int, rng: np.random.Generator, power: float = 3.0, shift: int = 0
) -> Lines:
    """``rows / acceleration`` lines: the calibration block, the rest denser near the centre.

    The density falls as ``(1 - distance) ** power`` from the centre to the edge, above a floor of 0.02.
    """
    lines = block(rows, calibration, shift)
    distance = np.abs(np.arange(rows) - rows // 2) / (rows / 2)
    density = (1.0 - distance).clip(0.0) ** power + 0.02
    left = max(0, round(rows / acceleration) - int(lines.sum()))
    # the largest of log density plus Gumbel noise: drawn without replacement
    rank = np.where(lines, -np.inf, np.log(density) + rng.gumbel(size=rows))
    lines[np.argsort(rank)[rows - left :]] = True
    return lines


def partial_fourier(lines: Lines, part: float, upper: bool) -> Lines:
    """Only the lower (or upper) ``part`` of k-space stays."""
    kept = np.arange(len(lines)) < round(part * len(lines))
    return lines & (kept if upper else kept[::-1])


def _within(shift: int, width: int) -> int:
    """The centre must stay well inside the block, or there is nothing to make maps from."""
    return int(np.clip(shift, -(width // 4), width // 4))


def draw(rng: np.random.Generator, rows: int, ranges: Ranges) -> Lines:
    """A pattern out of ``ranges``."""
    shifted = int(rng.integers(-3, 4)) if rng.random() < ranges.shifted_share else 0
    if rng.random() < ranges.uniform_share:
        acceleration = int(rng.integers(ranges.uniform[0], ranges.uniform[1] + 1))
        width = int(rng.integers(ranges.uniform_calibration[0], ranges.uniform_calibration[1] + 1))
        lines = uniform(rows, acceleration, width, int(rng.integers(acceleration)), _within(shifted, width))
    else:
        often = ranges.often_share > 0 and rng.random() < ranges.often_share
        net = float(np.exp(rng.uniform(*np.log(ranges.often if often else ranges.variable))))
        width = int(np.clip(rng.uniform(0.2, 0.5) * rows / net, *ranges.variable_calibration))
        lines = variable(rows, net, width, rng, rng.uniform(1.5, 6.0), _within(shifted, width))
    if rng.random() < ranges.partial_share:
        lines = partial_fourier(lines, rng.uniform(*ranges.partial), bool(rng.integers(2)))
    return lines
