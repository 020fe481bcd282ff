"""A result computed from k-space held against the contract of `dicomnode.pipeline`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import numpy as np

from dicomnode.pipeline import ReconstructedPlane, Reconstruction, Result

#: Longest LO (PS3.5 6.2): labels end there, with room for what the node appends.
_MAX_LABEL: Final = 48
#: Value 3 of ImageType (PS3.3 C.8.3.1.1.1): magnitude, phase, real, imaginary.
_COMPONENTS: Final = frozenset({"M", "P", "R", "I"})
#: Direction cosines may miss unit length and right angles by this much: what validators allow.
_ORTHONORMAL: Final = 1e-4
#: Rows and Columns are US.
_MOST: Final = 65535
#: Faults of planes that are told.
_TOLD: Final = 5


def reconstruction_faults(result: Result) -> Iterator[str]:
    """Everything in ``result`` that breaks the contract of results from k-space."""
    if result.images or result.reported or result.key_planes or result.parametric_maps:
        yield "its input was k-space, from which only reconstructions can be written"
    if not result.reconstructions:
        yield "it has no reconstruction: raise Unsuitable with the reason instead"
    for one in result.reconstructions:
        yield from (f"reconstruction {one.role!r} {fault}" for fault in _series(one))


def _series(one: Reconstruction) -> Iterator[str]:
    if not one.role:
        yield "has no role"
    if not 0 < len(one.label) <= _MAX_LABEL:
        yield f"needs a label of 1 to {_MAX_LABEL} characters"
    if not one.description:
        yield "does not say how it was made (description)"
    if one.component not in _COMPONENTS:
        yield f"has the component {one.component!r}, not one of {', '.join(sorted(_COMPONENTS))}"
    if not (math.isfinite(one.scale) and one.scale > 0):
        yield f"has the scale {one.scale}"
    for name, value in (("pixel spacing", min(one.pixel_spacing)), ("thickness", one.thickness)):
        if not (math.isfinite(value) and value > 0):
            yield f"has the {name} {value} mm"
    if not one.planes:
        yield "has no planes"
        return
    yield from _planes(one)


def _planes(one: Reconstruction) -> Iterator[str]:
    sizes = {plane.array.shape for plane in one.planes}
    if len(sizes) > 1:
        yield f"has planes of {len(sizes)} sizes: {sorted(sizes)[:3]}"
    counters = [_counters(plane) for plane in one.planes]
    if len(set(counters)) != len(counters):
        twice = max(set(counters), key=counters.count)
        yield f"has two planes with (slice, contrast, phase, repetition, set) {twice}"
    wrong = [f"plane {number} {fault}" for number, plane in enumerate(one.planes) for fault in _plane(plane, one)]
    yield from wrong[:_TOLD]
    if len(wrong) > _TOLD:
        yield f"has {len(wrong) - _TOLD} more faults of planes"


def _counters(plane: ReconstructedPlane) -> tuple[int, int, int, int, int]:
    return plane.slice, plane.contrast, plane.phase, plane.repetition, plane.set


def _plane(plane: ReconstructedPlane, one: Reconstruction) -> Iterator[str]:
    array = plane.array
    if array.ndim != 2 or array.dtype != np.float32 or not all(0 < size <= _MOST for size in array.shape):
        yield f"is {array.dtype} {array.shape}, not float32 (row, column)"
        return
    if not np.isfinite(array).all():
        yield "holds values that are not finite"
    elif one.component == "M" and array.min() < 0:
        yield "is a magnitude and has values below 0"
    position, orientation = np.asarray(plane.position), np.asarray(plane.orientation)
    if position.shape != (3,) or not np.isfinite(position).all():
        yield f"has the position {position}"
    if orientation.shape != (6,) or not _orthonormal(orientation):
        yield "has direction cosines that are not of unit length at a right angle"
    if plane.trigger_time is not None and not math.isfinite(plane.trigger_time):
        yield f"has the trigger time {plane.trigger_time}"


def _orthonormal(orientation: np.typing.NDArray[np.float64]) -> bool:
    directions = orientation.reshape(2, 3)
    return bool(np.abs(directions @ directions.T - np.eye(2)).max() <= _ORTHONORMAL)
