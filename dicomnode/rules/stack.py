"""How the planes of a series lie, from header texts alone: steps, gaps, tilt, phases. Never raises on bad input."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

#: Two planes closer than this are one position; no scanner reconstructs at finer steps [mm].
_SAME_POSITION_MM: Final = 0.01
#: Cosines that differ by more belong to another orientation (0.06 degrees).
_SAME_ORIENTATION: Final = 1e-3
#: Steps equal within this part of the usual one are uniform, plus what rounding of ImagePositionPatient explains [mm].
_STEP_PART: Final = 0.01
_ROUNDING_MM: Final = 0.02
#: A lone step is a gap if it is a multiple of the usual one within this part of the usual one.
_GAP_PART: Final = 0.05
#: Planes shifted sideways by more than this, beside a steady drift (tilt), are no stack [mm].
_SIDEWAYS_MM: Final = 0.5
#: Less than this is rounding, not a tilted gantry [degrees].
_NO_TILT_DEG: Final = 0.2
#: A reason shows no more than this many digits of a step [mm].
_MM = "{:.2f} mm".format

Vectors = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plane:
    """Where one image lies."""

    #: ImagePositionPatient [mm].
    position: tuple[float, ...]
    #: ImageOrientationPatient.
    orientation: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How planes of one orientation lie along their normal."""

    #: Unit normal, row x column.
    normal: tuple[float, ...]
    #: Images at each distinct position, in order along the normal.
    counts: tuple[int, ...]
    #: Distances between neighbouring positions along the normal [mm].
    steps: tuple[float, ...]
    #: Median step [mm]; 0 for one position.
    usual: float
    #: Every step is the usual one.
    uniform: bool
    #: Planes that lone multiple steps say are missing.
    gaps: int
    #: Angle between the normal and the way the planes advance [degrees].
    tilt_deg: float
    #: Planes follow one line.
    aligned: bool

    @property
    def phases(self) -> int | None:
        """Images per position; None if that differs."""
        return self.counts[0] if len(set(self.counts)) == 1 else None

    @property
    def extent_mm(self) -> float:
        """Distance from the first to the last plane [mm]."""
        return float(sum(self.steps))


@dataclass(frozen=True, slots=True)
class StackVerdict:
    """Whether the positions alone show that nothing is missing inside."""

    regular: bool
    #: One sentence for the operator.
    reason: str
    #: Images are known to be missing inside the stack.
    holes: bool = False


def plane(header: Mapping[str, str]) -> Plane | None:
    """Return where an image lies; None if its header does not say, or not properly."""
    position = numbers(header.get("ImagePositionPatient", ""), 3)
    orientation = numbers(header.get("ImageOrientationPatient", ""), 6)
    if position is None or orientation is None:
        return None
    normal = np.cross(orientation[:3], orientation[3:])
    if not 0.5 < float(np.linalg.norm(normal)) < 1.5:  # not two unit vectors at a right angle, not nearly
        return None
    return Plane(position=position, orientation=orientation)


def numbers(text: str, count: int) -> tuple[float, ...] | None:
    """Return the numbers of a multi-valued header text; None unless there are ``count`` finite ones."""
    try:
        found = tuple(float(part) for part in text.split("\\"))
    except (ValueError, AttributeError):
        return None
    return found if len(found) == count and all(math.isfinite(value) for value in found) else None


def one_orientation(planes: Sequence[Plane]) -> bool:
    """Whether every plane is parallel to the first."""
    rows = np.asarray([plane.orientation for plane in planes])
    return bool(np.abs(rows - rows[0]).max() <= _SAME_ORIENTATION) if len(rows) else False


def layout(planes: Sequence[Plane]) -> Layout:
    """Measure planes of one orientation."""
    orientation = np.asarray(planes[0].orientation)
    normal = np.cross(orientation[:3], orientation[3:])
    normal /= np.linalg.norm(normal)
    positions = np.asarray([plane.position for plane in planes])
    along = positions @ normal
    order = np.argsort(along, kind="stable")
    along, positions = along[order], positions[order]
    firsts = np.concatenate([[0], np.flatnonzero(np.diff(along) > _SAME_POSITION_MM) + 1])
    counts = np.diff(np.concatenate([firsts, [len(along)]]))
    steps = np.diff(along[firsts])
    usual = float(np.median(steps)) if len(steps) else 0.0
    tilt, aligned = _drift(positions, along, normal)
    return Layout(
        normal=tuple(map(float, normal)),
        counts=tuple(map(int, counts)),
        steps=tuple(map(float, steps)),
        usual=usual,
        uniform=bool(np.all(np.abs(steps - usual) <= _STEP_PART * usual + _ROUNDING_MM)),
        gaps=_gaps(steps, usual),
        tilt_deg=tilt,
        aligned=aligned,
    )


def _drift(positions: Vectors, along: Vectors, normal: Vectors) -> tuple[float, bool]:
    """Return the angle of a steady sideways drift [degrees], and whether that is all there is beside the normal."""
    sideways = positions - along[:, None] * normal
    sideways = sideways - sideways.mean(axis=0)
    centred = along - along.mean()
    spread = float(centred @ centred)
    slope = (centred @ sideways) / spread if spread > 0 else np.zeros(3)
    rest = sideways - centred[:, None] * slope
    tilt = math.degrees(math.atan(float(np.linalg.norm(slope))))
    return (tilt if tilt >= _NO_TILT_DEG else 0.0), bool(np.abs(rest).max() <= _SIDEWAYS_MM)


def _gaps(steps: Vectors, usual: float) -> int:
    """Count the planes that are missing where a lone step is a multiple of the usual one.

    Several such steps in a row are another zone of the scan (head CT: 2.5 mm at the base, 5 mm above), not gaps.
    """
    if usual <= 0:
        return 0
    multiples = np.rint(steps / usual).astype(int)
    large = (multiples >= 2) & (np.abs(steps - multiples * usual) <= _GAP_PART * usual + _ROUNDING_MM)
    before, after = np.concatenate([[False], large[:-1]]), np.concatenate([large[1:], [False]])
    return int((multiples[large & ~before & ~after] - 1).sum())


def is_regular_stack(headers: Sequence[Mapping[str, str]]) -> StackVerdict:
    """Say whether the positions form a gap-free stack, or a cine with equally many phases at every position.

    A tilted gantry is fine. Uneven steps are not regular: nothing tells them from missing planes.
    """
    total = len(headers)
    if not total:
        return StackVerdict(False, "no instances")
    if any(text not in ("", "1") for text in (header.get("NumberOfFrames", "").strip() for header in headers)):
        return StackVerdict(False, "multi-frame objects: their positions are not in the index")
    planes = [found for header in headers if (found := plane(header)) is not None]
    if len(planes) < total:
        return StackVerdict(False, f"{total - len(planes)} of {total} instances do not say where they lie")
    if not one_orientation(planes):
        return StackVerdict(False, "planes of different orientation (a localizer, or several stacks)")
    if len({(header.get("Rows", ""), header.get("Columns", "")) for header in headers}) > 1:
        return StackVerdict(False, "images of different size")
    return _judge(layout(planes))


def _judge(found: Layout) -> StackVerdict:
    number = len(found.counts)
    if number == 1:
        return StackVerdict(False, f"{found.counts[0]} instance(s) at one position")
    if not found.aligned:
        return StackVerdict(False, "planes are shifted sideways against each other")
    if found.gaps:
        plural = "planes are" if found.gaps > 1 else "plane is"
        reason = f"{found.gaps} {plural} missing: usual step {_MM(found.usual)}, largest {_MM(max(found.steps))}"
        return StackVerdict(False, reason, holes=True)
    if not found.uniform:
        reason = f"uneven steps, {_MM(min(found.steps))} to {_MM(max(found.steps))}, at {number} positions"
        return StackVerdict(False, reason)
    if found.phases is None:
        usual, at = Counter(found.counts).most_common(1)[0]
        odd = ", ".join(f"{n} at {k}" for n, k in sorted(Counter(found.counts).items()) if n != usual)
        reason = f"{usual} instance(s) at {at} positions but {odd}"
        return StackVerdict(False, reason, holes=usual > 1 and min(found.counts) < usual)
    reason = f"{number} positions every {_MM(found.usual)}"
    reason += f", {found.phases} phases each" if found.phases > 1 else ""
    reason += f", tilted by {found.tilt_deg:.1f} degrees" if found.tilt_deg else ""
    return StackVerdict(True, reason)
