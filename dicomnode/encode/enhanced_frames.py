"""How the frames of a multi-frame object are ordered in space, echo and time (PS3.3 C.7.6.17)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword

from dicomnode.dicom import derive_uid
from dicomnode.encode.acquired import at
from dicomnode.encode.mr_series import SAME_COSINE
from dicomnode.kspace import KSpaceHeader
from dicomnode.pipeline import ReconstructedPlane

#: Planes nearer than this along their normal are at one place [mm].
_SAME_PLACE_MM: Final = 1e-3

#: What frames are told apart by: all values of one dimension are of one of these types.
Key = TypeVar("Key", int, float, str, tuple[int, int])


@dataclass(frozen=True, slots=True)
class Place:
    """One frame among the others; numbers count from 1."""

    #: Stack of parallel planes, and place in it along their normal.
    stack: int
    in_stack: int
    #: Values of DimensionIndexValues, in the order of the dimensions.
    indices: tuple[int, ...]
    #: Position in time where nothing better orders the frames; 0: there is one only.
    time: int
    #: Where neither space nor time nor echo time tells frames apart; empty: they do.
    label: str


class Dimensions:
    """Which dimensions the planes of a series have, and where each plane lies in them."""

    def __init__(self, header: KSpaceHeader, planes: Sequence[ReconstructedPlane]) -> None:
        self._stacks = _stacks(planes)
        echoes = {plane.contrast: at(header, "TE", plane) for plane in planes}
        self._echoes = {contrast: echo for contrast, echo in echoes.items() if echo is not None}
        #: Echoes that differ in their echo time are a dimension of it; others are told apart by a label.
        self._by_echo = len(echoes) > 1 and len(set(self._echoes.values())) == len(echoes)
        #: Phases of the heartbeat with a trigger time each.
        self.gated = len({plane.phase for plane in planes}) > 1 and all(p.trigger_time is not None for p in planes)
        self._times = _numbered(self._time(plane) for plane in planes)
        self._labels = _numbered(self._label(plane) for plane in planes)
        self._echo_order = _numbered(self._echoes.values())
        self._phases = _numbered(plane.phase for plane in planes)
        self._uid = ""

    def place(self, plane: ReconstructedPlane) -> Place:
        """Where ``plane`` lies."""
        stack, in_stack = self._stacks[id(plane)]
        many, label = len(self._times) > 1, self._label(plane)
        indices = [
            *([self._labels[label]] if len(self._labels) > 1 else []),
            *([self._echo_order[self._echoes[plane.contrast]]] if self._by_echo else []),
            *([self._times[self._time(plane)]] if many else []),
            stack,
            in_stack,
            *([self._phases[plane.phase]] if self.gated else []),
        ]
        time = self._times[self._time(plane)] if many else 0
        return Place(stack, in_stack, tuple(indices), time, label if len(self._labels) > 1 else "")

    def describe(self, ds: Dataset) -> None:
        """Write the Multi-frame Dimension module."""
        uid = derive_uid(str(ds.SeriesInstanceUID), "dimensions")
        organization = Dataset()
        organization.DimensionOrganizationUID = uid
        ds.DimensionOrganizationSequence = [organization]
        wanted = [
            *([("FrameLabel", "FrameContentSequence", "Set")] if len(self._labels) > 1 else []),
            *([("EffectiveEchoTime", "MREchoSequence", "Echo time")] if self._by_echo else []),
            *([("TemporalPositionIndex", "FrameContentSequence", "Time")] if len(self._times) > 1 else []),
            ("StackID", "FrameContentSequence", "Stack"),
            ("InStackPositionNumber", "FrameContentSequence", "Position"),
            *([("NominalCardiacTriggerDelayTime", "CardiacSynchronizationSequence", "Phase")] if self.gated else []),
        ]
        ds.DimensionIndexSequence = [_pointer(uid, *one) for one in wanted]

    def _time(self, plane: ReconstructedPlane) -> tuple[int, int]:
        return plane.repetition, 0 if self.gated else plane.phase

    def _label(self, plane: ReconstructedPlane) -> str:
        return f"set {plane.set + 1}" if self._by_echo else f"set {plane.set + 1}, echo {plane.contrast + 1}"


def _pointer(uid: str, keyword: str, group: str, label: str) -> Dataset:
    item = Dataset()
    item.DimensionOrganizationUID = uid
    item.DimensionIndexPointer = tag_for_keyword(keyword)
    item.FunctionalGroupPointer = tag_for_keyword(group)
    item.DimensionDescriptionLabel = label
    return item


def _numbered(values: Iterable[Key]) -> dict[Key, int]:
    """Different ``values`` in their order, counted from 1."""
    return {value: number for number, value in enumerate(sorted(set(values)), 1)}


def _stacks(planes: Sequence[ReconstructedPlane]) -> dict[int, tuple[int, int]]:
    """(stack, place in it) of every plane, by its id: parallel planes in the order in which they lie."""
    orientations: list[np.ndarray] = []
    members: list[list[ReconstructedPlane]] = []
    for plane in planes:
        own = np.asarray(plane.orientation)
        for known, those in zip(orientations, members, strict=True):
            if np.abs(own - known).max() <= SAME_COSINE:
                those.append(plane)
                break
        else:
            orientations.append(own)
            members.append([plane])
    found: dict[int, tuple[int, int]] = {}
    for stack, (orientation, those) in enumerate(zip(orientations, members, strict=True), 1):
        along = np.asarray([plane.position for plane in those]) @ np.cross(orientation[:3], orientation[3:])
        number, last = 0, -np.inf
        for index in np.argsort(along, kind="stable"):
            if along[index] - last > _SAME_PLACE_MM:
                number, last = number + 1, along[index]
            found[id(those[index])] = (stack, number)
    return found
