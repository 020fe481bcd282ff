"""What a learned reconstruction was trained for, and the refusal of everything else, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

FULL, UNIFORM, VARIABLE, TWO_DIMENSIONAL = "full", "uniform", "variable", "two-dimensional"
PATTERNS: Final = (FULL, UNIFORM, VARIABLE, TWO_DIMENSIONAL)
#: Fraction by which an acceleration may leave the trained range before it counts as outside: lines are whole numbers.
ROUNDING: Final = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of one measurement before it is reconstructed."""

    #: Uniform: distance of the lines outside the calibration block; else points of the matrix over points measured.
    acceleration: float
    #: One of ``PATTERNS``; the lines of the calibration block do not count in it.
    pattern: str
    #: Lines measured without a gap around the centre of k-space.
    calibration: int
    #: Coils after compression.
    coils: int
    #: Matrix along the phase encoding and along the readout, oversampling removed.
    rows: int
    columns: int
    partial_fourier: bool

    def __post_init__(self) -> None:
        if self.pattern not in PATTERNS:
            raise ValueError(f"sampling pattern {self.pattern!r} is none of {', '.join(PATTERNS)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Both ends belong to it."""

    least: float
    most: float

    def __contains__(self, value: float) -> bool:
        return self.least <= value <= self.most

    def __str__(self) -> str:
        return f"{self.least:g} to {self.most:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """The trained-domain record of one set of weights; training writes it from the ranges it drew from."""

    #: Trained accelerations by pattern; a pattern that is not here was not trained.
    acceleration: Mapping[str, Range]
    #: Widths of the calibration block by pattern.
    calibration: Mapping[str, Range]
    coils: Range
    rows: Range
    columns: Range
    partial_fourier: bool
    #: Trained accelerations of the weights for one coil by pattern; empty: the same weights serve one coil.
    single: Mapping[str, Range] = field(default_factory=dict)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Domain:
        """From a manifest's record: pairs of least and most."""

        def pair(values: Any) -> Range:  # noqa: ANN401 - whatever YAML holds; a wrong shape fails on the next line
            least, most = values
            return Range(least=float(least), most=float(most))

        return cls(
            acceleration={name: pair(values) for name, values in record["acceleration"].items()},
            calibration={name: pair(values) for name, values in record["calibration"].items()},
            coils=pair(record["coils"]),
            rows=pair(record["rows"]),
            columns=pair(record["columns"]),
            partial_fourier=bool(record["partial_fourier"]),
            single={name: pair(values) for name, values in record.get("single", {}).items()},
        )

    def refusal(self, facts: Facts) -> str:
        """Why the measurement is outside the trained domain; empty when it is inside."""
        if facts.pattern == FULL:
            return "fully sampled: nothing is missing that a network should fill"
        accelerations = self.single if facts.coils == 1 and self.single else self.acceleration
        if facts.pattern not in accelerations:
            return f"{facts.pattern} sampling is not in the trained domain ({', '.join(accelerations)})"
        if facts.pattern == UNIFORM and facts.acceleration > facts.coils:
            return f"{facts.coils} coils cannot tell {facts.acceleration:g} folded images apart: a network would guess"
        if facts.partial_fourier and not self.partial_fourier:
            return "partial Fourier was not trained"
        trained = accelerations[facts.pattern]
        if not trained.least * (1 - ROUNDING) <= facts.acceleration <= trained.most * (1 + ROUNDING):
            return f"acceleration {facts.acceleration:.2f} is outside {trained} trained for {facts.pattern} sampling"
        if facts.calibration < self.calibration[facts.pattern].least:
            width = self.calibration[facts.pattern]
            return f"{facts.calibration} calibration lines: the trained domain begins at {width.least:g}"
        for name in ("coils", "rows", "columns"):
            value, allowed = getattr(facts, name), getattr(self, name)
            if value not in allowed:
                return f"{value} {name} are outside the trained {allowed}"
        return ""
