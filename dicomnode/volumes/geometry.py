"""How the planes of a series lie to each other: order, tilt, gaps, uneven steps, duplicates, each with its name.

highdicom answers one and the same "not a regularly-spaced volume" for all of these; an operator and a pipeline need to
know which. Coordinates are LPS [mm] throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dicomnode.errors import DuplicatePositions, MissingAttribute, MixedGeometry
from dicomnode.pipeline import Geometry

#: Unit length and orthogonality of ImageOrientationPatient; beyond it a validator rejects what is built on it.
UNIT_TOLERANCE: Final = 1e-4
#: Cosines that differ by more belong to another orientation (0.06 degrees).
ORIENTATION_TOLERANCE: Final = 1e-3
#: Two planes closer than this are one position; no scanner reconstructs at finer steps [mm].
SAME_POSITION_MM: Final = 0.01
#: Sideways offset of a plane that rounding of ImagePositionPatient can explain [mm].
SIDEWAYS_MM: Final = 0.05
#: Steps equal within this part of their mean are regular: highdicom's own bound for a Volume.
STEP_TOLERANCE: Final = 0.01
#: A step is a gap if it is a multiple of the usual one within this part of the usual one.
GAP_TOLERANCE: Final = 0.05

Vectors = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Geometry read off one plane's header."""

    #: SOP Instance UID, with the frame number where there are several: for messages.
    label: str
    #: ImagePositionPatient [mm].
    position: tuple[float, ...]
    #: ImageOrientationPatient.
    orientation: tuple[float, ...]
    #: PixelSpacing: between rows, between columns [mm].
    spacing: tuple[float, ...]
    rows: int
    columns: int
    frame_of_reference: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Planes in order, and how they lie."""

    #: Index of the header of each plane, in plane order.
    order: tuple[int, ...]
    #: ImagePositionPatient in plane order (slice, 3) [mm].
    positions: Vectors
    #: Orthonormal row and column direction (6,).
    orientation: Vectors
    geometry: Geometry
    #: What was seen, where ``geometry`` is not REGULAR.
    note: str
    #: Usual distance between neighbouring planes along the normal [mm]; 0 for a single plane.
    step: float


def arrange(placements: Sequence[Placement], phase: Callable[[int], Mapping[str, str]]) -> Stack:
    """Order the planes as highdicom does and name their geometry.

    The order makes (slice, row, column) right-handed: against the normal row x column, so that plane 0 of an axial
    series of a supine patient is nearest the head.

    Parameters
    ----------
    placements
        One per plane, in any order.
    phase
        Gives, by keyword, the attributes that can tell the plane of an index apart from others at its position.

    Raises
    ------
    MixedGeometry
        Sizes, spacings, orientations or frames of reference differ.
    MissingAttribute
        An orientation is not two orthogonal unit vectors.
    DuplicatePositions
        Several planes at one position; the message names what tells them apart.
    """
    _require_one_grid(placements)
    orientation = _orientation(placements)
    normal = np.cross(orientation[:3], orientation[3:])
    positions = np.array([placement.position for placement in placements])
    along = -(positions @ normal)
    # At equal positions the label decides, so that no message depends on the order of arrival.
    order = np.lexsort((np.array([placement.label for placement in placements]), along))
    ordered, along = positions[order], along[order]
    sideways = (ordered - ordered[0]) - np.outer(along[0] - along, normal)
    _require_distinct([placements[index] for index in order], along, sideways, [int(index) for index in order], phase)
    steps = np.diff(along)
    geometry, note = _classify(steps, sideways)
    usual = np.mean if geometry is Geometry.REGULAR else np.median
    return Stack(
        order=tuple(int(index) for index in order),
        positions=ordered,
        orientation=orientation,
        geometry=geometry,
        note=note,
        step=float(usual(steps)) if len(steps) else 0.0,
    )


def _require_one_grid(placements: Sequence[Placement]) -> None:
    first = placements[0]
    for placement in placements:
        if (placement.rows, placement.columns) != (first.rows, first.columns):
            raise MixedGeometry(
                f"Rows x Columns are {first.rows} x {first.columns} in {first.label} but {placement.rows} x "
                f"{placement.columns} in {placement.label}; split the series"
            )
        if placement.frame_of_reference != first.frame_of_reference:
            raise MixedGeometry(
                f"FrameOfReferenceUID differs between {first.label} and {placement.label}: their positions cannot be "
                "compared; split the series"
            )
        if not np.allclose(placement.spacing, first.spacing, rtol=1e-4, atol=0.0):
            raise MixedGeometry(
                f"PixelSpacing is {first.spacing} mm in {first.label} but {placement.spacing} mm in {placement.label}"
            )


def _orientation(placements: Sequence[Placement]) -> Vectors:
    """The one orientation of all planes, orthonormalised for computing."""
    for placement in placements:
        row, column = np.array(placement.orientation[:3]), np.array(placement.orientation[3:])
        off = max(abs(np.linalg.norm(row) - 1), abs(np.linalg.norm(column) - 1), abs(row @ column))
        if not off <= UNIT_TOLERANCE:
            raise MissingAttribute(
                f"ImageOrientationPatient of {placement.label} is not two orthogonal unit vectors (off by {off:.2g})"
            )
    all_of_them = np.array([placement.orientation for placement in placements])
    kinds = [all_of_them[0]]
    for orientation in all_of_them[1:]:
        if all(np.max(np.abs(orientation - kind)) > ORIENTATION_TOLERANCE for kind in kinds):
            kinds.append(orientation)
    if len(kinds) > 1:
        angle = _degrees(np.cross(kinds[0][:3], kinds[0][3:]), np.cross(kinds[1][:3], kinds[1][3:]))
        raise MixedGeometry(
            f"{len(kinds)} orientations in one series, the first two {angle:.1f} degrees apart (a localizer?): "
            f"{placements[0].label} and others; split the series"
        )
    row = all_of_them[0, :3] / np.linalg.norm(all_of_them[0, :3])
    column = all_of_them[0, 3:] - (all_of_them[0, 3:] @ row) * row
    orthonormal: Vectors = np.concatenate([row, column / np.linalg.norm(column)])
    return orthonormal


def _degrees(first: Vectors, second: Vectors) -> float:
    cosine = first @ second / (np.linalg.norm(first) * np.linalg.norm(second))
    return float(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))))


def _require_distinct(
    ordered: Sequence[Placement],
    along: Vectors,
    sideways: Vectors,
    order: Sequence[int],
    phase: Callable[[int], Mapping[str, str]],
) -> None:
    """Raise if two planes stand at one place along the normal."""
    close = np.flatnonzero(np.diff(along) < SAME_POSITION_MM)
    if not len(close):
        return
    first, second = ordered[close[0]], ordered[close[0] + 1]
    apart = float(np.linalg.norm(sideways[close[0] + 1] - sideways[close[0]]))
    if apart > SIDEWAYS_MM:
        raise MixedGeometry(
            f"{first.label} and {second.label} lie in one plane, {apart:.1f} mm apart: several stacks; split the series"
        )
    groups = 1 + int(np.sum(np.diff(along) >= SAME_POSITION_MM))
    telling = _told_apart_by([phase(index) for index in order])
    raise DuplicatePositions(
        f"{len(ordered)} images at {groups} positions, for example {first.label} and {second.label}: "
        f"{telling}; split the series or route it to a pipeline that takes phases"
    )


def _told_apart_by(phases: Sequence[Mapping[str, str]]) -> str:
    values: dict[str, set[str]] = {}
    for phase in phases:
        for keyword, value in phase.items():
            values.setdefault(keyword, set()).add(value)
    telling = [f"{keyword} ({len(seen)} values)" for keyword, seen in values.items() if len(seen) > 1]
    return f"told apart by {', '.join(telling)}" if telling else "nothing in their headers tells them apart"


def _classify(steps: Vectors, sideways: Vectors) -> tuple[Geometry, str]:
    """Name of the geometry and, where it is not regular, the sentence that says what was seen."""
    if not len(steps):
        return Geometry.SINGLE, "one plane only"
    uneven, sentence = _steps(steps)
    drift = float(np.max(np.linalg.norm(sideways, axis=1)))
    if drift <= SIDEWAYS_MM:
        return uneven, sentence
    total = float(np.sum(steps))
    tilt = float(np.degrees(np.arctan2(np.linalg.norm(sideways[-1]), total)))
    line = np.outer(np.concatenate([[0.0], np.cumsum(steps)]) / total, sideways[-1])
    straight = float(np.max(np.linalg.norm(sideways - line, axis=1))) <= max(SIDEWAYS_MM, 0.05 * drift)
    seen = (
        f"gantry tilt of {tilt:.1f} degrees between the planes' normal and the line of their positions"
        if straight
        else f"planes shifted sideways by up to {drift:.1f} mm, not along one line"
    )
    return Geometry.TILTED, f"{seen}; {sentence}" if sentence else seen


def _steps(steps: Vectors) -> tuple[Geometry, str]:
    mean, usual = float(np.mean(steps)), float(np.median(steps))
    if np.max(np.abs(steps - mean)) <= max(STEP_TOLERANCE * mean, SAME_POSITION_MM):
        return Geometry.REGULAR, ""
    multiples = np.rint(steps / usual)
    if np.min(multiples) >= 1 and np.max(np.abs(steps - multiples * usual)) <= GAP_TOLERANCE * usual:
        gaps = np.flatnonzero(multiples > 1)
        if len(gaps):
            places = ", ".join(f"between planes {gap} and {gap + 1} ({steps[gap]:.2f} mm)" for gap in gaps[:5])
            missing = int(np.sum(multiples - 1))
            return Geometry.GAPS, f"{missing} planes missing at steps of {usual:.2f} mm: {places}"
    kinds = sorted({round(float(step), 2) for step in steps})
    listed = ", ".join(f"{kind:.2f}" for kind in kinds[:6]) + (", ..." if len(kinds) > 6 else "")
    return Geometry.UNEVEN, f"steps between planes are not equal: {listed} mm"
