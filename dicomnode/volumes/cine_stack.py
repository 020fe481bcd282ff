"""Which images make the cine: one direction, its planes, of each plane one acquisition, its phases in order.

Nothing is told from descriptions or SliceLocation: real ones are empty, and wrong by a third (`ml-mr.md` 2.5).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from dicomnode.errors import MissingAttribute, NotCine, UnequalPhases
from dicomnode.volumes.cine_order import Shot, acquisitions, key_of, latest, one_per_beat, too_long
from dicomnode.volumes.geometry import ORIENTATION_TOLERANCE, Vectors

#: Fewer images at one place show no heartbeat: perfusion and mapping aside, cines have 15 to 50 (`ml-mr.md` 2.5).
MIN_PHASES: Final = 8
#: Long-axis views come as one to three planes of a direction, scouts as up to five; ventricles need six.
MIN_PLANES: Final = 6
#: A stack that covers less cannot hold a ventricle, not even a child's [mm].
MIN_SPAN_MM: Final = 40.0
#: Planes of repeated acquisitions closer than this show the same slice [mm].
SAME_PLANE_MM: Final = 0.5
#: A stack whose normal is this near to an axis of the patient is no short-axis stack, if there is another one.
_ORTHOGONAL: Final = float(np.cos(np.deg2rad(10.0)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The images of a cine."""

    #: By slice (along the normal, either way), then by phase.
    slices: tuple[tuple[Shot, ...], ...]
    #: Keyword that ordered the phases.
    ordered_by: str
    #: What was left out, one sentence each.
    left_out: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class _Plane:
    """Images at one place of a direction."""

    along: float
    #: Acquisitions with the phases of a heartbeat.
    cines: list[list[Shot]]
    #: Images there that are no cine, and why.
    others: list[tuple[list[Shot], str]]


def choose(shots: Iterable[Shot]) -> Chosen:
    """Choose the stack with the most planes, and of each plane the latest complete acquisition.

    Raises
    ------
    NotCine
        No stack of planes with phases; the message says what there is.
    UnequalPhases
        Planes of the stack have different numbers of phases.
    DuplicatePositions
        Two images of one plane claim the same phase, and nothing tells their acquisitions apart.
    """
    ordered = sorted(shots, key=lambda shot: shot.place.label)
    left_out = Counter(shot.why_not for shot in ordered if shot.why_not)
    usable = [shot for shot in ordered if not shot.why_not]
    stacks = [_planes(grid) for grid in _grids(usable)]
    best = _best(stacks, left_out)
    kept, shifted = _one_of_shifted(best)
    chosen, dropped = _one_acquisition_each(kept)
    said = [f"{_images(count)} left out: {why}" for why, count in sorted(left_out.items())]
    others = Counter(_other_stack(stack) for stack in stacks if stack is not best)
    said += [one if count == 1 else f"{one}, {count} times" for one, count in others.items()]
    said += [*shifted, *dropped]
    key = key_of([shot for one in chosen for shot in one])
    if not key:
        raise MissingAttribute("no attribute orders the phases of all planes: some have TriggerTime, others do not")
    slices = tuple(tuple(sorted(one, key=lambda shot: shot.times[key])) for one in chosen)
    return Chosen(slices=slices, ordered_by=key, left_out=tuple(said))


def _grids(shots: Sequence[Shot]) -> list[list[Shot]]:
    """Images of one frame of reference, size, spacing and direction: those that can make one stack."""
    grids: list[list[Shot]] = []
    for shot in shots:
        for grid in grids:
            if _same_grid(grid[0], shot):
                grid.append(shot)
                break
        else:
            grids.append([shot])
    return grids


def _same_grid(first: Shot, other: Shot) -> bool:
    a, b = first.place, other.place
    return (
        (a.frame_of_reference, a.rows, a.columns) == (b.frame_of_reference, b.rows, b.columns)
        and np.allclose(a.spacing, b.spacing, rtol=1e-4, atol=0.0)
        and float(np.max(np.abs(np.subtract(a.orientation, b.orientation)))) <= ORIENTATION_TOLERANCE
    )


def _normal(shot: Shot) -> Vectors:
    return np.cross(shot.place.orientation[:3], shot.place.orientation[3:])


def _planes(grid: Sequence[Shot]) -> list[_Plane]:
    """Places along the normal, each with its acquisitions."""
    normal = _normal(grid[0])
    along = np.array([float(np.dot(shot.place.position, normal)) for shot in grid])
    order = np.argsort(along, kind="stable")
    groups: list[list[int]] = []
    for index in order:
        if groups and along[index] - along[groups[-1][0]] <= SAME_PLANE_MM:
            groups[-1].append(int(index))
        else:
            groups.append([int(index)])
    return [_plane([grid[index] for index in sorted(group)], float(along[group[0]])) for group in groups]


def _plane(shots: Sequence[Shot], along: float) -> _Plane:
    plane = _Plane(along=along, cines=[], others=[])
    for one in acquisitions(shots, MIN_PHASES):
        why = _no_cine(one)
        if why:
            plane.others.append((one, why))
        else:
            plane.cines.append(one)
    return plane


def _no_cine(shots: Sequence[Shot]) -> str:
    """Why the images of one acquisition of a plane show no heartbeat; empty if they do."""
    key = key_of(shots)
    distinct = len({shot.times[key] for shot in shots}) if key else 0
    if len(shots) < MIN_PHASES:
        return f"{_images(len(shots))} of a plane, no phases"
    if not key:
        return "nothing orders the phases (TriggerTime, temporal position and CardiacNumberOfImages absent)"
    if distinct < MIN_PHASES:
        return f"{len(shots)} images of a plane at {distinct} values of {key}: not the phases of a heartbeat"
    return one_per_beat(shots) or too_long(shots, key)


def _best(stacks: Sequence[list[_Plane]], left_out: Counter[str]) -> list[_Plane]:
    """The stack with the most planes that have phases; an oblique one before one along an axis of the patient."""
    able = [stack for stack in stacks if _suits(stack)]
    if not able:
        raise NotCine(_what_there_is(stacks, left_out))
    oblique = [stack for stack in able if float(np.max(np.abs(_normal(_any(stack))))) < _ORTHOGONAL]
    return max(oblique or able, key=lambda stack: (len(_with_phases(stack)), latest(_with_phases(stack)[0].cines[0])))


def _suits(stack: Sequence[_Plane]) -> bool:
    planes = _with_phases(stack)
    return len(planes) >= MIN_PLANES and planes[-1].along - planes[0].along >= MIN_SPAN_MM


def _with_phases(stack: Sequence[_Plane]) -> list[_Plane]:
    return [plane for plane in stack if plane.cines]


def _any(stack: Sequence[_Plane]) -> Shot:
    plane = stack[0]
    return plane.cines[0][0] if plane.cines else plane.others[0][0][0]


def _what_there_is(stacks: Sequence[list[_Plane]], left_out: Counter[str]) -> str:
    """One sentence for a reader who expected a cine."""
    seen = [f"{_images(count)}: {why}" for why, count in sorted(left_out.items())]
    most = max((len(_with_phases(stack)) for stack in stacks), default=0)
    if most:
        seen.insert(
            0,
            f"at most {most} parallel planes with phases (long-axis views, or a part of a stack); a short-axis stack "
            f"has {MIN_PLANES} or more over {MIN_SPAN_MM:g} mm",
        )
    why = Counter(why for stack in stacks for plane in stack for shots, why in plane.others for _ in shots)
    seen += [f"{_images(count)}: {one}" for one, count in why.most_common(3)]
    return f"no cine stack: {'; '.join(seen) or 'no images'}"


def _one_of_shifted(stack: list[_Plane]) -> tuple[list[_Plane], list[str]]:
    """Of several series that are stacks of their own, shifted against each other, the one with the most planes.

    Series that interleave at equal steps (every second plane) stay one stack.
    """
    series: dict[str, list[_Plane]] = {}
    for plane in _with_phases(stack):
        for group in {one[0].group for one in plane.cines}:
            series.setdefault(group, []).append(plane)
    whole = {group: planes for group, planes in series.items() if _suits(planes)}
    if len(whole) < 2 or _even(stack) or not all(_even(planes) for planes in whole.values()):
        return stack, []
    group = max(whole, key=lambda one: (len(whole[one]), latest(whole[one][0].cines[0])))
    kept = [
        _Plane(along=plane.along, cines=[one for one in plane.cines if one[0].group == group], others=plane.others)
        for plane in whole[group]
    ]
    dropped = len(_with_phases(stack)) - len(kept)
    return kept, [f"{dropped} planes left out: another stack of the same direction, shifted along the normal"]


def _even(planes: Sequence[_Plane]) -> bool:
    steps = np.diff([plane.along for plane in planes if plane.cines])
    return float(np.max(np.abs(steps - np.mean(steps)))) <= SAME_PLANE_MM


def _one_acquisition_each(stack: Sequence[_Plane]) -> tuple[list[list[Shot]], list[str]]:
    """Of each plane the latest acquisition with the usual number of phases, and what was dropped for it."""
    planes = _with_phases(stack)
    counts = Counter(len(one) for plane in planes for one in plane.cines)
    usual = max(counts, key=lambda count: (counts[count], count))
    chosen, dropped = [], []
    for plane in planes:
        full = [one for one in plane.cines if len(one) == usual] or plane.cines
        best = max(full, key=latest)
        chosen.append(best)
        for other in plane.cines:
            if other is not best:
                kind = "incomplete" if len(other) != usual else "earlier"
                dropped.append(f"{_at(plane)}: an {kind} acquisition of {len(other)} phases left out, it was repeated")
    _require_equal(planes, chosen, usual)
    for plane in stack:
        for shots, why in plane.others:
            if not plane.cines and _is_part(shots, key_of(chosen[0])):
                raise UnequalPhases(f"{_at(plane)} has {len(shots)} phases, the others {usual}: images are missing")
            dropped.append(f"{_at(plane)}: {_images(len(shots))} left out: {why}")
    return chosen, dropped


def _is_part(shots: Sequence[Shot], key: str) -> bool:
    """Whether a few images look like what is left of a cine."""
    return 1 < len(shots) < MIN_PHASES and key_of(shots) == key and len({one.times[key] for one in shots}) == len(shots)


def _require_equal(planes: Sequence[_Plane], chosen: Sequence[Sequence[Shot]], usual: int) -> None:
    odd = [(plane, len(one)) for plane, one in zip(planes, chosen, strict=True) if len(one) != usual]
    if odd:
        named = ", ".join(f"{count} {_at(plane)}" for plane, count in odd[:5])
        raise UnequalPhases(
            f"{usual} phases in {len(planes) - len(odd)} planes, but {named}: images are missing, or beats were "
            "rejected; send the series again"
        )


def _other_stack(stack: Sequence[_Plane]) -> str:
    planes = _with_phases(stack)
    count = sum(len(one) for plane in stack for one in plane.cines)
    count += sum(len(one) for plane in stack for one, _ in plane.others)
    kind = f"{len(planes)} planes with phases" if planes else f"{len(stack)} planes without phases"
    return f"{_images(count)} left out: another direction or grid ({kind})"


def _at(plane: _Plane) -> str:
    return f"at {plane.along:.1f} mm along the normal"


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"
