"""Lines of k-space added up to images, and what the pattern of those that are there is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Lines outside the calibration block that lie off a regular lattice before it counts as irregular, and lines of the
#: lattice that may be missing: dropped lines do not make a pattern variable.
OFF_LATTICE: Final = 0.05
DROPPED: Final = 0.2
#: Undersampled along one axis by no more than this is fully sampled (ml-mr 1.2).
FULL: Final = 1.05


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which rows of an image were measured."""

    #: full | uniform | variable.
    pattern: str
    #: Distance of the lines of a uniform pattern; else rows of the measured range over rows measured.
    acceleration: float
    #: First and last + 1 row of the fully sampled block around the centre, symmetric about it; empty if there is none.
    calibration: tuple[int, int]
    #: Rows measured, and rows that belong to the pattern.
    measured: int
    expected: int
    #: The measured range does not reach both ends of k-space.
    partial: bool

    @property
    def lines(self) -> int:
        """Width of the calibration block."""
        return self.calibration[1] - self.calibration[0]

    @property
    def missing(self) -> float:
        """Part of the expected rows that did not come."""
        return 1.0 - self.measured / self.expected if self.expected else 1.0


def symmetric(low: int, high: int, middle: int) -> tuple[int, int]:
    """The widest part of rows ``low`` to ``high`` - 1 whose own index N // 2 is ``middle``."""
    below, above = middle - low, high - middle  # the middle itself counts above
    if below < 0 or above < 1:
        return middle, middle
    size = max(2 * min(below, above), 2 * min(below, above - 1) + 1)
    return middle - size // 2, middle - size // 2 + size


def block(rows: NDArray[np.bool_]) -> tuple[int, int]:
    """First and last + 1 row of the contiguous measured block around the centre, symmetric about it."""
    middle = len(rows) // 2
    if not rows[middle]:
        return middle, middle
    gaps = np.flatnonzero(~rows)
    low = int(gaps[gaps < middle].max(initial=-1)) + 1
    high = int(gaps[gaps > middle].min(initial=len(rows)))
    return symmetric(low, high, middle)


def sampling(
    rows: NDArray[np.bool_], limits: tuple[int, int], flagged: Iterable[int] = (), acceleration: int = 1
) -> Sampling:
    """The pattern of the measured ``rows``.

    Parameters
    ----------
    limits
        First and last + 1 row that the header says belong to the measurement.
    flagged
        Rows that are marked as calibration.
    acceleration
        What the header says. Where it is 1, rows that are missing without a regular pattern were lost on the way.
    """
    low, high = limits
    wanted = np.zeros(len(rows), bool)
    wanted[low:high] = True
    centre = block(rows)
    core = np.zeros(len(rows), bool)
    marked = [row for row in flagged if low <= row < high]
    core[min(marked, default=0) : max(marked, default=-1) + 1] = True
    if not marked and centre[1] - centre[0] > 1:
        core[centre[0] : centre[1]] = True
    measured = int((rows & wanted).sum())
    step, offset = _lattice(rows & wanted, core)
    partial = low > 0 or high < len(rows)
    if measured and (high - low) / measured <= FULL and rows[low:high].all():
        return Sampling("full", 1.0, centre, measured, high - low, partial)
    if step == 0:
        expected = high - low if acceleration <= 1 else measured
        return Sampling("variable", (high - low) / max(measured, 1), centre, measured, expected, partial)
    pattern = core & wanted
    pattern[low + (offset - low) % step : high : step] = True
    return Sampling("uniform", float(step), centre, measured, int(pattern.sum()), partial)


def _lattice(rows: NDArray[np.bool_], core: NDArray[np.bool_]) -> tuple[int, int]:
    """Distance and remainder of the regular lines outside ``core``; distance 0: they are not regular."""
    there = np.flatnonzero(rows & ~core)
    if len(there) < 2:
        return 0, 0
    gaps, counts = np.unique(np.diff(there), return_counts=True)
    step = int(gaps[counts.argmax()])
    if step < 2:
        return 0, 0
    remainders = np.bincount(there % step, minlength=step)
    offset = int(remainders.argmax())
    low, high = int(there[0]), int(there[-1]) + 1
    lattice = [n for n in range(low + (offset - low) % step, high, step) if not core[n]]
    off, dropped = len(there) - remainders[offset], len(lattice) - remainders[offset]
    regular = off <= OFF_LATTICE * len(there) and dropped <= DROPPED * len(lattice)
    return (step, offset) if regular else (0, 0)


class Lines:
    """The readouts of one image, or of one volume, added up where averages fall on the same line."""

    def __init__(self) -> None:
        self.sums: dict[tuple[int, int], Tensor] = {}
        self.counts: dict[tuple[int, int], int] = {}
        self.flagged: set[int] = set()

    def __len__(self) -> int:
        return len(self.sums)

    def add(self, row: int, partition: int, profile: Tensor, *, calibration: bool = False) -> None:
        """Take one readout as image line (coil, column)."""
        key = (partition, row)
        self.sums[key] = profile if key not in self.sums else self.sums[key] + profile
        self.counts[key] = self.counts.get(key, 0) + 1
        if calibration:
            self.flagged.add(row)

    def rows(self, size: int) -> NDArray[np.bool_]:
        """Which of ``size`` rows are there in any partition."""
        there = np.zeros(size, bool)
        there[[row for _, row in self.sums]] = True
        return there

    def assemble(self, rows: int, partitions: int = 1) -> tuple[Tensor, Tensor]:
        """Means (coil, partition, row, column), and the number of readouts in each, float32 (partition, row)."""
        some = next(iter(self.sums.values()))
        grid = some.new_zeros((some.shape[0], partitions, rows, some.shape[1]))
        counts = torch.zeros(partitions, rows)
        for (partition, row), total in self.sums.items():
            grid[:, partition, row] = total / self.counts[partition, row]
            counts[partition, row] = self.counts[partition, row]
        return grid, counts
