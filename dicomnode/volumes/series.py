"""One series of files becomes one input: read once, normalised, decoded, ordered, its geometry named."""

from __future__ import annotations

import filecmp
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from highdicom import Volume
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.sr.coding import Code
from pydicom.uid import UID
from pydicom.valuerep import format_number_as_ds

from dicomnode.errors import DuplicatePositions, MissingAttribute, MixedGeometry, UndecodablePixels, UnsupportedSOPClass
from dicomnode.pipeline import HU, Geometry, ImageSeries
from dicomnode.volumes import acquisition, frames, geometry, pixels
from dicomnode.volumes.normalise import DEFAULT_CHARSET, Normaliser, replace

logger = logging.getLogger(__name__)

#: Voxels of one series: 4 GB of float32. More is refused before it fills the memory of every job on the machine.
MAX_VOXELS: Final = 2**30
#: UCUM code of values without a unit.
NO_UNITS: Final = Code("1", "UCUM", "no units")
#: Attributes that one series must agree on.
_SHARED: Final = ("SOPClassUID", "StudyInstanceUID", "SeriesInstanceUID", "PatientID", "IssuerOfPatientID")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plane:
    """Where one plane came from and what its stored values mean."""

    #: Index in the series' headers.
    header: int
    #: Frame number in that instance, counted from 1; 0 for a single-frame object.
    frame: int
    #: Modality LUT: value = stored * slope + intercept.
    slope: float
    intercept: float
    bits_stored: int
    signed: bool
    #: Least and greatest stored value of padding; None without.
    padding: tuple[int, int] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class SourceSeries:
    """A series as read: the pipeline's input, and what is needed to write a result in the same terms.

    ``headers`` are read-only: headers with equal elements share them.
    """

    #: Normalised headers without pixel data, in plane order; one header if the series is one multi-frame instance.
    headers: tuple[Dataset, ...]
    #: What the pipeline sees.
    images: ImageSeries
    #: Stored values in plane order (slice, row, column), unused bits cleared, padding as it was.
    stored: NDArray[np.integer]
    #: One per plane, in plane order.
    planes: tuple[Plane, ...]
    #: What was repaired on the way in, one sentence each.
    notes: tuple[str, ...]


class _Reader:
    """Files of one series on their way to a `SourceSeries`: state that must not outlive `load`."""

    def __init__(self, default_charset: str) -> None:
        self.normaliser = Normaliser(default_charset)
        self.headers: list[Dataset] = []
        self.encodings: list[pixels.Encoding] = []
        self._paths: dict[str, Path] = {}
        self.stored: NDArray[np.integer] = np.zeros((0, 0, 0), np.int16)
        self.padding: NDArray[np.bool_] = np.zeros((0, 0, 0), np.bool_)

    def read(self, path: Path, capacity: int) -> None:
        """Read, normalise and decode one file; the first one decides the size of the arrays for ``capacity`` files."""
        try:
            dataset = dcmread(path)
        except (InvalidDicomError, OSError, EOFError, ValueError, NotImplementedError) as error:
            raise UndecodablePixels(f"{path.name} does not read as DICOM: {error}; send the series again") from error
        header = self.normaliser.header(dataset, path.name)
        uid = str(header.SOPInstanceUID)
        if self._seen(uid, path):
            return
        encoding = self._checked(header, uid)
        if not self.headers:
            self._allocate(encoding, 1 if header.SOPClassUID in frames.MULTI_FRAME else capacity)
        start = len(self.headers)
        at = slice(start, start + encoding.frames)
        note = pixels.decode(dataset, encoding, uid, self.stored[at], self.padding[at])
        if note:
            self.normaliser.note(note)
        self.headers.append(header)
        self.encodings.append(encoding)

    def _seen(self, uid: str, path: Path) -> bool:
        if uid not in self._paths:
            self._paths[uid] = path
            return False
        if not filecmp.cmp(self._paths[uid], path, shallow=False):
            raise DuplicatePositions(f"two different files claim SOP Instance UID {uid}; remove one of them")
        self.normaliser.note("an identical copy of an instance was left out")
        return True

    def _checked(self, header: Dataset, uid: str) -> pixels.Encoding:
        """Encoding of an instance that fits the ones before it."""
        sop_class = UID(header.SOPClassUID)
        if sop_class not in frames.SINGLE_FRAME | frames.MULTI_FRAME:
            raise UnsupportedSOPClass(f"{uid} is {sop_class.name}: only CT and MR images become volumes")
        for keyword in _SHARED:
            if self.headers and header.get(keyword) != self.headers[0].get(keyword):
                raise MixedGeometry(
                    f"{keyword} differs between {self.headers[0].SOPInstanceUID} and {uid}: not one series"
                )
        encoding = pixels.encoding_of(header, uid)
        if sop_class in frames.SINGLE_FRAME and encoding.frames != 1:
            raise UnsupportedSOPClass(f"{uid} is {sop_class.name} with {encoding.frames} frames")
        if self.headers:
            if sop_class in frames.MULTI_FRAME:
                raise MixedGeometry(f"several multi-frame instances in one series ({uid} and others): split the series")
            self._fits(encoding, uid)
        return encoding

    def _fits(self, encoding: pixels.Encoding, uid: str) -> None:
        first, other = self.encodings[0], self.headers[0].SOPInstanceUID
        if (encoding.rows, encoding.columns) != (first.rows, first.columns):
            raise MixedGeometry(
                f"Rows x Columns are {first.rows} x {first.columns} in {other} but {encoding.rows} x "
                f"{encoding.columns} in {uid}; split the series"
            )
        if encoding.dtype != first.dtype:
            raise MixedGeometry(f"pixels are {first.dtype} in {other} but {encoding.dtype} in {uid}; split the series")

    def _allocate(self, encoding: pixels.Encoding, instances: int) -> None:
        shape = (instances * encoding.frames, encoding.rows, encoding.columns)
        if shape[0] * shape[1] * shape[2] > MAX_VOXELS:
            raise UndecodablePixels(
                f"series of {shape[0]} x {shape[1]} x {shape[2]} voxels is above the limit {MAX_VOXELS}"
            )
        self.stored = np.empty(shape, encoding.dtype)
        self.padding = np.zeros(shape, np.bool_)


def load(paths: Sequence[Path], *, incomplete: bool = False, default_charset: str = DEFAULT_CHARSET) -> SourceSeries:
    """Read the files of one series, each of them once.

    Parameters
    ----------
    paths
        Files in any order: single-frame CT or MR images, or one Enhanced or Legacy Converted Enhanced instance.
    incomplete
        Some expected instances never arrived; handed on to the pipeline.
    default_charset
        Term of (0008,0005) for 8-bit text of headers that declare no character set.

    Raises
    ------
    SeriesError
        One of its subclasses, naming the instance and what to do. Tilt, gaps and uneven steps are no errors but the
        `Geometry` of the result.
    """
    reader = _read(paths, default_charset)
    numbered = _numbered(reader)
    stack = geometry.arrange(
        [frames.placement(reader.headers[index], frame) for index, frame in numbered],
        lambda plane: frames.phase(reader.headers[numbered[plane][0]], numbered[plane][1]),
    )
    headers, planes = _planes(reader, numbered, stack)
    repair_thickness(headers, stack, reader.normaliser)
    stored, padding = _in_order(reader, stack)
    source = SourceSeries(
        headers=headers,
        images=_images(headers, planes, stored, padding, stack, incomplete=incomplete),
        stored=stored,
        planes=planes,
        notes=reader.normaliser.notes,
    )
    logger.info(
        "series loaded",
        extra={
            "action": "series_loaded",
            "series_uid": str(headers[0].SeriesInstanceUID),
            "planes": len(planes),
            "geometry": str(stack.geometry),
            "notes": len(source.notes),
        },
    )
    return source


def _read(paths: Sequence[Path], default_charset: str) -> _Reader:
    if not paths:
        raise MissingAttribute("a series without files")
    reader = _Reader(default_charset)
    with warnings.catch_warnings():
        # pydicom warns, with values that may identify the patient, about what is judged and noted here anyway.
        warnings.simplefilter("ignore")
        for path in paths:
            reader.read(path, len(paths))
    return reader


def _numbered(reader: _Reader) -> list[tuple[int, int]]:
    """(index of the header, frame number) in the order of the stored values."""
    if reader.headers[0].SOPClassUID in frames.MULTI_FRAME:
        return [(0, frame + 1) for frame in range(reader.encodings[0].frames)]
    return [(index, 0) for index in range(len(reader.headers))]


def _planes(
    reader: _Reader, numbered: Sequence[tuple[int, int]], stack: geometry.Stack
) -> tuple[tuple[Dataset, ...], tuple[Plane, ...]]:
    """Headers and planes in plane order."""
    multi_frame = numbered[0][1] > 0
    planes = []
    for position, arrived in enumerate(stack.order):
        index, frame = numbered[arrived]
        slope, intercept = frames.rescale(reader.headers[index], frame)
        encoding = reader.encodings[index]
        planes.append(
            Plane(
                header=0 if multi_frame else position,
                frame=frame,
                slope=slope,
                intercept=intercept,
                bits_stored=encoding.bits_stored,
                signed=encoding.signed,
                padding=encoding.padding,
            )
        )
    headers = reader.headers if multi_frame else [reader.headers[arrived] for arrived in stack.order]
    return tuple(headers), tuple(planes)


def _in_order(reader: _Reader, stack: geometry.Stack) -> tuple[NDArray[np.integer], NDArray[np.bool_]]:
    """Stored values and padding in plane order; identical copies left empty places at the end."""
    count = len(stack.order)
    stored, padding = reader.stored[:count], reader.padding[:count]
    if stack.order == tuple(range(count)):
        return stored, padding
    if stack.order == tuple(reversed(range(count))):
        return stored[::-1], padding[::-1]
    order = list(stack.order)
    return stored[order], padding[order] if padding.any() else padding


def _images(
    headers: tuple[Dataset, ...],
    planes: tuple[Plane, ...],
    stored: NDArray[np.integer],
    padding: NDArray[np.bool_],
    stack: geometry.Stack,
    *,
    incomplete: bool,
) -> ImageSeries:
    """Apply the modality LUT plane by plane and attach the geometry."""
    array = np.empty(stored.shape, np.float32)
    for index, plane in enumerate(planes):
        if plane.slope == 1:
            np.add(stored[index], np.float32(plane.intercept), out=array[index])
        else:
            array[index] = stored[index] * plane.slope + plane.intercept
    spacing = frames.placement(headers[0], planes[0].frame).spacing
    attributes = acquisition.attributes((headers[plane.header], plane.frame) for plane in planes)
    return ImageSeries(
        array=array,
        padding=np.ascontiguousarray(padding),
        units=units_of(headers[0], attributes.get("RescaleType")),
        positions=stack.positions,
        orientation=stack.orientation,
        pixel_spacing=(spacing[0], spacing[1]),
        geometry=stack.geometry,
        geometry_note=stack.note,
        acquisition=attributes,
        incomplete=incomplete,
        regular_volume=regular_volume(array, headers[0], stack, spacing)
        if stack.geometry is Geometry.REGULAR
        else None,
    )


def units_of(header: Dataset, rescale_type: object) -> Code:
    """HU for CT, unless the scanner says that the values are something else (PS3.3 C.8.2.1.1.2)."""
    return HU if header.SOPClassUID in frames.CT_CLASSES and rescale_type in {None, "HU"} else NO_UNITS


def regular_volume(
    array: NDArray[np.float32], header: Dataset, stack: geometry.Stack, spacing: tuple[float, ...]
) -> Volume:
    """``array`` (slice, row, column) in the place of a regular stack."""
    return Volume.from_attributes(
        array=array,
        image_position=[float(value) for value in stack.positions[0]],
        image_orientation=[float(value) for value in stack.orientation],
        pixel_spacing=spacing,
        spacing_between_slices=stack.step,
        coordinate_system="PATIENT",
        frame_of_reference_uid=str(header.get("FrameOfReferenceUID") or "") or None,
    )


def repair_thickness(headers: tuple[Dataset, ...], stack: geometry.Stack, normaliser: Normaliser) -> None:
    """Give SliceThickness, and SpacingBetweenSlices where present, a value from the positions if they have none."""
    if stack.geometry is Geometry.SINGLE:
        return
    step = format_number_as_ds(round(stack.step, 6))
    for header in headers:
        for item in _measures(header):
            for keyword in ("SliceThickness", "SpacingBetweenSlices"):
                value = item.get(keyword)
                wrong = keyword in item and (value is None or isinstance(value, str) or not float(value) > 0)
                if wrong or (keyword == "SliceThickness" and keyword not in item):
                    replace(item, keyword, step)
                    normaliser.note(f"{keyword} absent or not above 0: {step} mm taken from the positions")


def _measures(header: Dataset) -> list[Dataset]:
    """Where the thickness stands: the header itself, or every Pixel Measures item."""
    if header.SOPClassUID not in frames.MULTI_FRAME:
        return [header]
    groups = [
        *(header.get("SharedFunctionalGroupsSequence") or ()),
        *(header.get("PerFrameFunctionalGroupsSequence") or ()),
    ]
    return [item for group in groups for item in group.get("PixelMeasuresSequence") or ()]
