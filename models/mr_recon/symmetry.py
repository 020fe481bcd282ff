"""Mean of a network's images over reflections of the measurement, none of which the measurement tells apart.

A scene that is flipped, conjugated or turned in phase, measured with maps and lines changed alike, has the image that
is changed alike. Training turned and flipped its images at random, so each of these is as good as the next; what the
network gets wrong differs between them, and in their mean it is less.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

#: A quarter turn of phase.
QUARTER = 1j


@dataclass(frozen=True, slots=True)
class Reflection:
    """A change of (..., row, column) that keeps distances, and its inverse."""

    rows: bool
    columns: bool
    conjugate: bool
    #: Quarter turns of phase, after the others.
    quarters: int

    def _flip(self, x: Tensor) -> Tensor:
        dims = [dim for dim, flipped in ((-2, self.rows), (-1, self.columns)) if flipped]
        return x.flip(dims) if dims else x

    def __call__(self, x: Tensor) -> Tensor:
        """Do it."""
        x = self._flip(x)
        return (x.conj().resolve_conj() if self.conjugate else x) * QUARTER**self.quarters

    def back(self, x: Tensor) -> Tensor:
        """Undo it."""
        x = x * QUARTER**-self.quarters
        return self._flip(x.conj().resolve_conj() if self.conjugate else x)


def reflections(number: int) -> list[Reflection]:
    """The first is none at all; any further one differs from all before it in a flip or in conjugation, up to 8."""
    # the order makes the most of few: 2 are opposite in all three, 4 hold every pair of them evenly
    order = (0, 7, 1, 6, 2, 5, 4, 3) if number != 4 else (0, 3, 5, 6)
    if not 1 <= number <= len(order):
        raise ValueError(f"there are 1 to {len(order)} reflections, not {number}")
    return [Reflection(bool(k & 1), bool(k & 2), bool(k & 4), turn % 4) for turn, k in enumerate(order[:number])]


def averaged(
    network: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor],
    normal: Callable[[Tensor], Tensor],
    right: Tensor,
    number: int,
) -> Tensor:
    """The mean image over ``number`` reflections of the measurement ``normal``, ``right`` (see `net.Unrolled`)."""
    total = torch.zeros_like(right)
    for change in reflections(number):
        changed = network(lambda x, change=change: change(normal(change.back(x))), change(right))  # type: ignore[misc]
        total = total + change.back(changed)
    return total / number
