"""Files of one study become a cine: planes of one stack, each at the phases of the heartbeat.

One series with everything (GE, Philips), one series per slice (Siemens), Enhanced instances, repeated slices, scouts
and long-axis views in between: `cine_stack` chooses by geometry and times, here the chosen images are read.
"""

from __future__ import annotations

import filecmp
import logging
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID

from dicomnode.dicom import valid_uid
from dicomnode.errors import DuplicatePositions, MissingAttribute, MixedGeometry, UndecodablePixels, UnsupportedSOPClass
from dicomnode.pipeline import CineSeries, Geometry, ImageSeries
from dicomnode.volumes import acquisition, cine_kinds, cine_order, cine_stack, frames, geometry, normalise, pixels
from dicomnode.volumes.cine_order import Shot
from dicomnode.volumes.series import MAX_VOXELS, Plane, SourceSeries, regular_volume, repair_thickness, units_of

logger = logging.getLogger(__name__)

#: Attributes that everything of one study agrees on.
_SHARED: Final = ("StudyInstanceUID", "PatientID", "IssuerOfPatientID")


@dataclass(frozen=True, kw_only=True, eq=False)
class CineSource:
    """A cine as read: the pipeline's input, and what is needed to write a result in the same terms.

    To an encoder it is a series whose planes come phase after phase; `at_phase` gives one phase as a series.
    """

    #: What the pipeline sees.
    series: CineSeries
    #: Normalised headers without pixel data, in the order of their first plane; read-only.
    headers: tuple[Dataset, ...]
    #: All planes, phase after phase: axes (phase * slice, row, column).
    images: ImageSeries
    #: Stored values in plane order, unused bits cleared, padding as it was.
    stored: NDArray[np.integer]
    #: One per plane, in plane order.
    planes: tuple[Plane, ...]
    #: What was repaired or left out on the way in, one sentence each.
    notes: tuple[str, ...]

    @property
    def slices(self) -> int:
        """Planes of one phase."""
        return len(self.series.positions)

    def at_phase(self, phase: int) -> SourceSeries:
        """Headers, images, stored values and planes of one phase, as a series of their own."""
        if not 0 <= phase < len(self.series.array):
            raise IndexError(f"phase {phase} of {len(self.series.array)}")
        at = slice(phase * self.slices, (phase + 1) * self.slices)
        used = list(dict.fromkeys(plane.header for plane in self.planes[at]))
        headers = tuple(self.headers[index] for index in used)
        images = replace(
            self.images,
            array=self.images.array[at],
            padding=self.images.padding[at],
            positions=self.images.positions[at],
        )
        if images.geometry is Geometry.REGULAR:
            stack = geometry.Stack(
                order=(), positions=images.positions, orientation=images.orientation, geometry=images.geometry,
                note="", step=self.series.step,
            )  # fmt: skip
            volume = regular_volume(images.array, headers[0], stack, images.pixel_spacing)
            images = replace(images, regular_volume=volume)
        return SourceSeries(
            headers=headers,
            images=images,
            stored=self.stored[at],
            planes=tuple(replace(plane, header=used.index(plane.header)) for plane in self.planes[at]),
            notes=self.notes,
        )


def load_cine(
    paths: Sequence[Path], *, incomplete: bool = False, default_charset: str = normalise.DEFAULT_CHARSET
) -> CineSource:
    """Read a cine stack out of the files of one or more series of a study.

    Parameters
    ----------
    paths
        Files in any order; what is no part of the stack is left out and named.
    incomplete
        Some expected instances never arrived; handed on to the pipeline.
    default_charset
        Term of (0008,0005) for 8-bit text of headers that declare no character set.

    Raises
    ------
    NotCine, UnequalPhases
        There is no stack with phases, or not the same phases on all planes.
    SeriesError
        Another of its subclasses, naming the instance and what to do.
    """
    with warnings.catch_warnings():
        # pydicom warns, with values that may identify the patient, about what is judged and noted here anyway.
        warnings.simplefilter("ignore")
        reader = _Reader(default_charset)
        for path in paths:
            reader.look(path)
        _one_frame_of_reference(reader.headers, reader.normaliser)
        shots, unplaced = reader.shots()
        chosen = cine_stack.choose(shots)
        source = _Assembly(reader, chosen, [*reader.left_out(), *unplaced]).source(incomplete=incomplete)
    logger.info(
        "cine loaded",
        extra={
            "action": "cine_loaded",
            "study_uid": str(source.headers[0].StudyInstanceUID),
            "phases": len(source.series.array),
            "planes": source.slices,
            "ordered_by": source.series.ordered_by,
            "geometry": str(source.series.geometry),
            "left_out": len(source.series.left_out),
        },
    )
    return source


class _Reader:
    """Headers of everything that was given: state that must not outlive `load_cine`."""

    def __init__(self, default_charset: str) -> None:
        self.normaliser = normalise.Normaliser(default_charset)
        self.headers: list[Dataset] = []
        self.paths: list[Path] = []
        self._seen: dict[str, Path] = {}
        self._other: Counter[str] = Counter()

    def look(self, path: Path) -> None:
        """Read one header; pixels stay in the file until it is known that they are wanted."""
        try:
            dataset = dcmread(path, stop_before_pixels=True)
        except (InvalidDicomError, OSError, EOFError, ValueError, NotImplementedError) as error:
            raise UndecodablePixels(f"{path.name} does not read as DICOM: {error}; send the series again") from error
        header = self.normaliser.header(dataset, path.name)
        uid = str(header.SOPInstanceUID)
        if uid in self._seen:
            if not filecmp.cmp(self._seen[uid], path, shallow=False):
                raise DuplicatePositions(f"two different files claim SOP Instance UID {uid}; remove one of them")
            self.normaliser.note("an identical copy of an instance was left out")
            return
        self._seen[uid] = path
        if UID(header.SOPClassUID) not in cine_kinds.MR_CLASSES:
            self._other[UID(header.SOPClassUID).name] += 1
            return
        for keyword in _SHARED:
            if self.headers and header.get(keyword) != self.headers[0].get(keyword):
                raise MixedGeometry(
                    f"{keyword} differs between {self.headers[0].SOPInstanceUID} and {uid}: not one study"
                )
        self.headers.append(header)
        self.paths.append(path)

    def left_out(self) -> list[str]:
        """Objects that are no MR images."""
        return [f"{count} of {name} left out: no MR images" for name, count in sorted(self._other.items())]

    def shots(self) -> tuple[list[Shot], list[str]]:
        """Every image or frame, and sentences about those that have no place."""
        if not self.headers:
            there = "; ".join(self.left_out()) or "no files"
            raise UnsupportedSOPClass(f"only MR images become a cine: {there}")
        shots: list[Shot] = []
        lost: list[str] = []
        for index, header in enumerate(self.headers):
            count = int(header.get("NumberOfFrames") or 1)
            numbers = range(1, count + 1) if UID(header.SOPClassUID) in frames.MULTI_FRAME else [0]
            for frame in numbers:
                try:
                    shots.append(cine_order.shot(header, index, frame, cine_kinds.why_not(header, frame)))
                except MissingAttribute as error:
                    lost.append(str(error))
        if not shots:
            raise MissingAttribute(lost[0])
        more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
        return shots, [f"left out: {lost[0]}{more}"] if lost else []


def _one_frame_of_reference(headers: Sequence[Dataset], normaliser: normalise.Normaliser) -> None:
    """Give a series one FrameOfReferenceUID whose every image has another one.

    It is an attribute of the series (PS3.3 C.7.4.1); some anonymisers draw it anew for each image. Positions of one
    series are comparable, so it is repaired. A series with a few of them is left alone: there the table was moved.
    """
    series: dict[str, list[Dataset]] = {}
    for header in headers:
        series.setdefault(str(header.SeriesInstanceUID), []).append(header)
    for members in series.values():
        uids = [str(header.get("FrameOfReferenceUID") or "") for header in members]
        if len(members) < cine_stack.MIN_PHASES or len(set(uids)) <= len(members) / 2:
            continue
        ordered = sorted(members, key=lambda header: cine_kinds.number(header, 0, "InstanceNumber") or 0.0)
        named = [str(header.get("FrameOfReferenceUID") or "") for header in ordered]
        one = next((uid for uid in named if valid_uid(uid)), named[0])
        for header in members:
            normalise.replace(header, "FrameOfReferenceUID", one)
            normaliser.note("FrameOfReferenceUID differed from image to image of one series: that of one taken for all")


class _Assembly:
    """The chosen images on their way to a `CineSource`."""

    def __init__(self, reader: _Reader, chosen: cine_stack.Chosen, left_out: Sequence[str]) -> None:
        self._reader, self._chosen = reader, chosen
        self._left_out = (*left_out, *chosen.left_out)
        self._stack = geometry.arrange([plane[0].place for plane in chosen.slices], lambda _: {})
        slices = [chosen.slices[index] for index in self._stack.order]
        #: Phase after phase, in each the planes in order.
        self._shots = [plane[phase] for phase in range(len(slices[0])) for plane in slices]
        self._shape = (len(slices[0]), len(slices))

    def source(self, *, incomplete: bool) -> CineSource:
        """Decode, and put everything in order."""
        positions = self._positions()
        used = list(dict.fromkeys(shot.header for shot in self._shots))
        headers = tuple(self._reader.headers[index] for index in used)
        repair_thickness(headers, self._stack, self._reader.normaliser)
        planes, stored, padding = self._decoded(used)
        array = np.empty(stored.shape, np.float32)
        for index, plane in enumerate(planes):
            array[index] = stored[index] * plane.slope + plane.intercept
        placed = [(headers[plane.header], plane.frame) for plane in planes]
        attributes = acquisition.attributes(placed, acquisition.CINE)
        spacing = frames.placement(*placed[0]).spacing
        images = ImageSeries(
            array=array,
            padding=padding,
            units=units_of(headers[0], attributes.get("RescaleType")),
            positions=positions,
            orientation=self._stack.orientation,
            pixel_spacing=(spacing[0], spacing[1]),
            geometry=self._stack.geometry,
            geometry_note=self._stack.note,
            acquisition=attributes,
            incomplete=incomplete,
        )
        return CineSource(
            series=self._series(images, [cine_order.interval(*place) for place in placed[: self._shape[1]]]),
            headers=headers,
            images=images,
            stored=stored,
            planes=planes,
            notes=self._notes(),
        )

    def _series(self, images: ImageSeries, intervals: Sequence[float | None]) -> CineSeries:
        key = self._chosen.ordered_by
        times = np.array([shot.times[key] for shot in self._shots]).reshape(self._shape)
        shape = (*self._shape, *images.array.shape[1:])
        return CineSeries(
            array=images.array.reshape(shape),
            padding=images.padding.reshape(shape),
            units=images.units,
            positions=images.positions[: self._shape[1]],
            orientation=images.orientation,
            pixel_spacing=images.pixel_spacing,
            geometry=images.geometry,
            geometry_note=images.geometry_note,
            trigger_times=times if key in cine_order.TIMES else np.full(self._shape, np.nan),
            ordered_by=key,
            intervals=np.array([np.nan if one is None else one for one in intervals]),
            acquisition=images.acquisition,
            incomplete=images.incomplete,
            left_out=self._left_out,
        )

    def _notes(self) -> tuple[str, ...]:
        key = self._chosen.ordered_by
        fallback = [] if key == "TriggerTime" else [f"no TriggerTime: phases ordered by {key}"]
        return (*self._reader.normaliser.notes, *fallback, *self._left_out)

    def _positions(self) -> NDArray[np.float64]:
        """ImagePositionPatient of every plane of every phase; the phases of a plane must lie on each other."""
        positions = np.array([shot.place.position for shot in self._shots])
        shaped = positions.reshape(*self._shape, 3)
        off = np.linalg.norm(shaped - shaped[0], axis=2)
        if float(off.max()) > geometry.SIDEWAYS_MM:
            phase, plane = np.unravel_index(int(off.argmax()), off.shape)
            label = self._shots[int(phase) * self._shape[1] + int(plane)].place.label
            raise MixedGeometry(
                f"{label} lies {float(off.max()):.2f} mm from the first phase of its plane: not one cine; send the "
                "acquisitions as series of their own"
            )
        return positions

    def _decoded(self, used: Sequence[int]) -> tuple[tuple[Plane, ...], NDArray[np.integer], NDArray[np.bool_]]:
        """Planes in order, with their stored values and padding."""
        reader = self._reader
        encodings = [pixels.encoding_of(reader.headers[index], _uid(reader, index)) for index in used]
        first = encodings[0]
        for index, encoding in zip(used, encodings, strict=True):
            if encoding.dtype != first.dtype:
                raise MixedGeometry(
                    f"pixels are {first.dtype} in {_uid(reader, used[0])} but {encoding.dtype} in {_uid(reader, index)}"
                )
        shape = (len(self._shots), first.rows, first.columns)
        if np.prod(shape, dtype=np.int64) > MAX_VOXELS:
            raise UndecodablePixels(f"cine of {shape[0]} x {shape[1]} x {shape[2]} voxels is above {MAX_VOXELS}")
        stored, padding = np.empty(shape, first.dtype), np.zeros(shape, np.bool_)
        planes: list[Plane | None] = [None] * len(self._shots)
        places: dict[int, list[int]] = {}
        for at, shot in enumerate(self._shots):
            places.setdefault(shot.header, []).append(at)
        for number, (index, encoding) in enumerate(zip(used, encodings, strict=True)):
            raw, padded = self._raw(index, encoding)
            for at in places[index]:
                frame = self._shots[at].frame
                stored[at], padding[at] = raw[max(frame, 1) - 1], padded[max(frame, 1) - 1]
                planes[at] = _plane(reader.headers[index], number, frame, encoding)
        return tuple(plane for plane in planes if plane is not None), stored, padding

    def _raw(self, index: int, encoding: pixels.Encoding) -> tuple[NDArray[np.integer], NDArray[np.bool_]]:
        """All frames of one file: stored values and padding, axes (frame, row, column)."""
        shape = (encoding.frames, encoding.rows, encoding.columns)
        if np.prod(shape, dtype=np.int64) > MAX_VOXELS:
            raise UndecodablePixels(f"{_uid(self._reader, index)} has {encoding.frames} frames: above {MAX_VOXELS}")
        raw, padded = np.empty(shape, encoding.dtype), np.zeros(shape, np.bool_)
        dataset = dcmread(self._reader.paths[index])
        note = pixels.decode(dataset, encoding, _uid(self._reader, index), raw, padded)
        if note:
            self._reader.normaliser.note(note)
        return raw, padded


def _uid(reader: _Reader, index: int) -> str:
    return str(reader.headers[index].SOPInstanceUID)


def _plane(header: Dataset, number: int, frame: int, encoding: pixels.Encoding) -> Plane:
    slope, intercept = frames.rescale(header, frame)
    return Plane(
        header=number,
        frame=frame,
        slope=slope,
        intercept=intercept,
        bits_stored=encoding.bits_stored,
        signed=encoding.signed,
        padding=encoding.padding,
    )
