"""What a pipeline is given: series as numbers with geometry and units. Authors import it from `dicomnode.pipeline`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from highdicom import Volume
from numpy.typing import NDArray
from pydicom.sr.coding import Code

from dicomnode.errors import Unsuitable

#: A header value a pipeline may see: text, a number, or several of them.
Attribute = str | float | tuple[str, ...] | tuple[float, ...]


class Geometry(StrEnum):
    """How the planes of a series lie to each other."""

    #: Parallel planes at equal steps along their normal: a `Volume`.
    REGULAR = "regular"
    #: Parallel planes along their normal at unequal steps (mixed increments).
    UNEVEN = "uneven"
    #: Equal steps with some planes absent.
    GAPS = "gaps"
    #: Parallel planes whose positions do not run along the normal (gantry tilt); steps may be unequal too.
    TILTED = "tilted"
    #: One plane only.
    SINGLE = "single"


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSeries:
    """One series of parallel planes, modality LUT applied.

    Planes are ordered by position along their normal so that the volume is right-handed; for an axial series of a
    supine patient plane 0 is nearest the head (the order of highdicom's ``get_volume_from_series``).
    """

    #: Values in ``units``: float32, C-contiguous, axes (slice, row, column).
    array: NDArray[np.float32]
    #: True where the scanner wrote PixelPaddingValue (no measurement): bool, axes (slice, row, column).
    padding: NDArray[np.bool_]
    #: UCUM code of ``array``'s values, for example `HU`.
    units: Code
    #: ImagePositionPatient of each plane: float64 (slice, 3), LPS [mm].
    positions: NDArray[np.float64]
    #: ImageOrientationPatient: float64 (6,), direction of a row then of a column, LPS.
    orientation: NDArray[np.float64]
    #: Distance between rows, distance between columns [mm] (PixelSpacing's order).
    pixel_spacing: tuple[float, float]
    #: How the planes lie to each other.
    geometry: Geometry
    #: Where ``geometry`` is not REGULAR: what was seen, in one sentence.
    geometry_note: str = ""
    #: Allow-listed acquisition attributes by keyword (KVP, ConvolutionKernel, ...). No patient identity.
    acquisition: Mapping[str, Attribute] = field(default_factory=dict)
    #: Some expected instances never arrived (the completeness cap fired).
    incomplete: bool = False
    #: `highdicom.Volume` of a REGULAR series, made by the node.
    regular_volume: Volume | None = None

    def __post_init__(self) -> None:
        if self.array.ndim != 3 or self.array.dtype != np.float32:
            raise ValueError(f"array must be float32 (slice, row, column), is {self.array.dtype} {self.array.shape}")
        if self.padding.shape != self.array.shape or len(self.positions) != len(self.array):
            raise ValueError("padding and positions must match array")

    @property
    def volume(self) -> Volume:
        """The series as a regular volume; raises `Unsuitable` with the reason if it is not one."""
        if self.regular_volume is None:
            raise Unsuitable(f"needs a regular volume; the series is {self.geometry}: {self.geometry_note}")
        return self.regular_volume

    @property
    def slice_positions(self) -> NDArray[np.float64]:
        """Distance of each plane from plane 0 along the slice normal: float64 (slice,) [mm]."""
        normal = np.cross(self.orientation[:3], self.orientation[3:])
        along: NDArray[np.float64] = np.abs((self.positions - self.positions[0]) @ normal)
        return along


@dataclass(frozen=True, kw_only=True, eq=False)
class CineSeries:
    """A stack of parallel planes, each of them imaged at the same number of phases of the heartbeat.

    The node has chosen the stack by its geometry: of all planes that were given, the direction with the most positions
    (a short-axis stack, where there is one). What the pictures show it has not looked at. Planes are ordered as in
    `ImageSeries`, along their normal; whether plane 0 is the base or the apex of the heart differs between scanners.
    """

    #: float32, C-contiguous, axes (phase, slice, row, column); phases in the order of their time after the R wave.
    array: NDArray[np.float32]
    #: True where the scanner wrote PixelPaddingValue (no measurement): bool, axes (phase, slice, row, column).
    padding: NDArray[np.bool_]
    #: UCUM code of ``array``'s values.
    units: Code
    #: ImagePositionPatient of each plane: float64 (slice, 3), LPS [mm].
    positions: NDArray[np.float64]
    #: ImageOrientationPatient: float64 (6,), direction of a row then of a column, LPS.
    orientation: NDArray[np.float64]
    #: Distance between rows, distance between columns [mm] (PixelSpacing's order).
    pixel_spacing: tuple[float, float]
    #: How the planes lie to each other.
    geometry: Geometry
    #: Where ``geometry`` is not REGULAR: what was seen, in one sentence.
    geometry_note: str = ""
    #: Time after the R wave: float64 (phase, slice) [ms]; NaN where only the order of the phases is known.
    trigger_times: NDArray[np.float64]
    #: Keyword of the attribute that ordered the phases: ``TriggerTime``, or the fallback that stood in for it.
    ordered_by: str = "TriggerTime"
    #: Length of the heartbeat of each plane: float64 (slice,) [ms]; NaN where the scanner does not say it.
    intervals: NDArray[np.float64]
    #: Allow-listed acquisition attributes by keyword, as in `ImageSeries`, and what indices are computed with:
    #: PatientSize [m], PatientWeight [kg], PatientSex. No other patient identity.
    acquisition: Mapping[str, Attribute] = field(default_factory=dict)
    #: Some expected instances never arrived (the completeness cap fired).
    incomplete: bool = False
    #: What was given and left out (scouts, long-axis planes, earlier repetitions), one sentence each.
    left_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.array.ndim != 4 or self.array.dtype != np.float32:
            raise ValueError(
                f"array must be float32 (phase, slice, row, column), is {self.array.dtype} {self.array.shape}"
            )
        phases, slices = self.array.shape[:2]
        if self.padding.shape != self.array.shape or self.positions.shape != (slices, 3):
            raise ValueError("padding and positions must match array")
        if self.trigger_times.shape != (phases, slices) or self.intervals.shape != (slices,):
            raise ValueError("trigger_times and intervals must match array")

    @property
    def slice_positions(self) -> NDArray[np.float64]:
        """Distance of each plane from plane 0 along the slice normal: float64 (slice,) [mm]."""
        normal = np.cross(self.orientation[:3], self.orientation[3:])
        along: NDArray[np.float64] = np.abs((self.positions - self.positions[0]) @ normal)
        return along

    @property
    def step(self) -> float:
        """Usual distance between neighbouring planes along the normal [mm]: never SliceLocation. 0 for one plane."""
        steps = np.diff(self.slice_positions)
        return float(np.median(steps)) if len(steps) else 0.0
