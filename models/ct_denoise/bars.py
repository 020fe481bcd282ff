"""The bars of stage 1 on the physics bench at the default strength, in one place: for the table and for the guard."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A range that a figure must lie in."""

    #: Key of the figure, and what to call it.
    figure: str
    name: str
    low: float = -math.inf
    high: float = math.inf

    def met(self, value: float) -> bool:
        """Whether ``value`` lies in the range; NaN does not."""
        return self.low <= value <= self.high

    def miss(self, value: float) -> float:
        """How far ``value`` lies outside the range, in units of the figure."""
        return max(self.low - value, value - self.high, 0.0) if math.isfinite(value) else math.inf

    def __str__(self) -> str:
        if math.isinf(self.high):
            return f"{self.name} of {self.low:g} or more"
        if math.isinf(self.low):
            return f"{self.name} of {self.high:g} or less"
        return f"{self.name} between {self.low:g} and {self.high:g}"


#: The issue's stage 1, as far as the bench measures it.
BARS: Final = (
    Bar(figure="noise_reduction", name="noise reduction", low=0.45, high=0.60),
    Bar(figure="spectrum_shift", name="shift of the spectrum", low=-0.15, high=0.15),
    Bar(figure="ttf50_100", name="TTF50 against the input at 100 HU", low=0.97),
    Bar(figure="ttf50_20", name="TTF50 against the input at 20 HU", low=0.75),
    Bar(figure="inserts_mean", name="mean contrast of inserts kept", low=0.85),
    Bar(figure="inserts_least", name="least contrast of inserts kept", low=0.75),
    Bar(figure="mean_shift_hu", name="shift of the mean [HU]", low=-0.5, high=0.5),
    Bar(figure="blobs_above_gaussian", name="false blobs above those of a Gaussian", high=0.0),
)
#: A bar that the weights before missed may be missed again, by no more than this over what they missed it by.
SLACK: Final = 0.01


def figures(found: Mapping[str, float]) -> dict[str, float]:
    """What the bars ask for, from a row of `bench.run`."""
    kept = [value for key, value in found.items() if key.startswith("insert_")]
    made = {bar.figure: found[bar.figure] for bar in BARS if bar.figure in found}
    made |= {"inserts_mean": sum(kept) / len(kept), "inserts_least": min(kept)}
    return made | {"blobs_above_gaussian": found["false_blobs"] - found["false_blobs_gaussian"]}


def failed(before: Mapping[str, float], after: Mapping[str, float]) -> list[str]:
    """The bars that weights with the figures ``after`` fail, in words; what ``before`` missed counts only if worse."""
    return [
        f"{bar}: {after[bar.figure]:.3f} after, {before[bar.figure]:.3f} before"
        for bar in BARS
        if not bar.met(after[bar.figure]) and bar.miss(after[bar.figure]) > bar.miss(before[bar.figure]) + SLACK
    ]
