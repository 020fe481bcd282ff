"""A segmentation read back by another path than it was written, and laid over its source voxel by voxel.

A viewer shows a mask that lies half a slice off, or on another phase, without a word (`outputs.md` 0.2): so nothing
here trusts the writer. Frames are found again through their own positions *and* through what they say they were made
from, which must agree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import SegmentationStorage

from dicomnode.encode.cine import at_phase
from dicomnode.encode.source import Source
from dicomnode.pipeline import Result, Segmentation

#: Label Map Segmentation Storage, which pydicom 3.0 does not name.
LABELMAP: Final = "1.2.840.10008.5.1.4.1.1.66.7"
SEGMENTATIONS: Final = frozenset({str(SegmentationStorage), LABELMAP})
#: Farther apart than this, viewers hold planes for different ones [mm].
_SAME_PLACE: Final = 1e-3
#: Direction cosines and spacings that differ by more are other ones (PS3.3 C.7.6.2 leaves it open; viewers use 1e-3).
_SAME_DIRECTION: Final = 1e-4
#: Faults of frames that are told one by one.
_TOLD: Final = 5


def seg_faults(ds: Dataset, source: Source, result: Result) -> Iterator[str]:
    """What is wrong with the segmentation ``ds`` of ``source``; nothing if it says exactly what ``result`` says."""
    segmentation = _said_by(ds, result)
    if segmentation is not None:
        source = at_phase(source, segmentation.phase)
    grid = list(_grid_faults(ds, source))
    yield from grid
    yield from _segment_faults(ds)
    if segmentation is None:
        yield "its segments are none of the result's segmentations"
    elif not any(fault.startswith(("Rows", "Columns")) for fault in grid):
        faults = _Frames(ds, source, segmentation).faults()
        yield from islice(faults, _TOLD)
        more = sum(1 for _ in faults)
        if more:
            yield f"and {more} more"


def _grid_faults(ds: Dataset, source: Source) -> Iterator[str]:
    """Size, direction and spacing of the planes, and what they are laid over."""
    images, header = source.images, source.headers[0]
    _, rows, columns = images.array.shape
    for keyword, expected in (("Rows", rows), ("Columns", columns)):
        if ds.get(keyword) != expected:
            yield f"{keyword} is {ds.get(keyword)}, the source's {expected}: another resolution"
    if ds.get("FrameOfReferenceUID") != header.get("FrameOfReferenceUID"):
        yield "FrameOfReferenceUID is not the source's"
    for name, keyword, expected_values in (
        ("PlaneOrientationSequence", "ImageOrientationPatient", images.orientation),
        ("PixelMeasuresSequence", "PixelSpacing", np.asarray(images.pixel_spacing)),
    ):
        for group in _groups(ds, name):
            values = np.asarray(group.get(keyword) or [np.nan], np.float64)
            if values.shape != expected_values.shape or not np.allclose(values, expected_values, 0, _SAME_DIRECTION):
                yield f"{keyword} is {values.tolist()}, the source's {expected_values.tolist()}"
        if not _groups(ds, name):
            yield f"{name} is absent"
    series = ds.get("ReferencedSeriesSequence") or ()
    listed = {str(one.get("ReferencedSOPInstanceUID")) for item in series for one in _listed(item)}
    expected_series = list(dict.fromkeys(str(one.SeriesInstanceUID) for one in source.headers))
    if [str(item.get("SeriesInstanceUID")) for item in series] != expected_series:
        yield "ReferencedSeriesSequence does not name the source's series, and that one alone: viewers show nothing"
    elif listed != {str(one.SOPInstanceUID) for one in source.headers}:
        yield "ReferencedSeriesSequence does not list the source's instances"


def _listed(series: Dataset) -> list[Dataset]:
    return list(series.get("ReferencedInstanceSequence") or ())


def _segment_faults(ds: Dataset) -> Iterator[str]:
    """What the standard leaves optional and a reader needs: who found it, what it is tracked by, its colour."""
    tracked = []
    for item in ds.get("SegmentSequence") or ():
        number = item.get("SegmentNumber")
        if not item.get("RecommendedDisplayCIELabValue"):
            yield f"segment {number} has no colour: viewers pick one"
        if number == 0:  # the background of a label map
            continue
        if not item.get("SegmentationAlgorithmIdentificationSequence"):
            yield f"segment {number} does not say which algorithm found it"
        tracked.append(str(item.get("TrackingUID") or ""))
    if not all(tracked) or len(set(tracked)) != len(tracked):
        yield "segments have no tracking UID of their own"


def _groups(ds: Dataset, name: str) -> list[Dataset]:
    """Items of a functional group, wherever it stands."""
    every = (*(ds.get("SharedFunctionalGroupsSequence") or ()), *(ds.get("PerFrameFunctionalGroupsSequence") or ()))
    return [item for group in every for item in group.get(name) or ()]


def _said_by(ds: Dataset, result: Result) -> Segmentation | None:
    """The segmentation of the result that ``ds`` carries: its segments are tracked by role and key, in this order."""
    found = [item for item in ds.get("SegmentSequence") or () if item.get("SegmentNumber")]
    for segmentation in result.segmentations:
        if [item.SegmentNumber for item in found] == list(range(1, len(segmentation.segments) + 1)) and all(
            str(item.get("TrackingID")).endswith(f" {segmentation.role} {segment.key}")
            and item.get("SegmentLabel") == segment.label
            for item, segment in zip(found, segmentation.segments, strict=True)
        ):
            return segmentation
    return None


class _Frames:
    """The frames of one SEG while they are laid over the source."""

    def __init__(self, ds: Dataset, source: Source, segmentation: Segmentation) -> None:
        self._ds, self._source, self._labels = ds, source, segmentation.labels
        self._labelmap = ds.SOPClassUID == LABELMAP
        self._plane_of = {
            (str(source.headers[plane.header].SOPInstanceUID), plane.frame): index
            for index, plane in enumerate(source.planes)
        }
        self._seen: set[tuple[int, int]] = set()
        self._voxels = 0

    def faults(self) -> Iterator[str]:
        ds = self._ds
        groups: Sequence[Dataset] = ds.get("PerFrameFunctionalGroupsSequence") or ()
        bits = 8 if self._labelmap else 1
        size = (len(groups) * ds.Rows * ds.Columns * bits + 7) // 8
        said, allocated = int(ds.get("NumberOfFrames") or 0), ds.get("BitsAllocated")
        if said != len(groups) or allocated != bits:
            yield f"{len(groups)} frames are described, but {said} of {allocated} bits said"
            return
        there = len(ds.get("PixelData") or b"")
        if there != size + size % 2:
            yield f"PixelData has {there} bytes, not {size}"
            return
        wrong = 0
        for number, group in enumerate(groups):
            for fault in self._frame_faults(number, group):
                wrong += 1
                yield f"frame {number + 1}: {fault}"
        missed = int(np.count_nonzero(self._labels)) - self._voxels
        if not wrong and missed:
            yield f"{missed} voxels of the result are in no frame"

    def _frame_faults(self, number: int, group: Dataset) -> Iterator[str]:
        plane = self._place(group)
        named = self._named(group)
        if isinstance(plane, str) or isinstance(named, str):
            yield from (one for one in (plane, named) if isinstance(one, str))
            return
        if plane != named:
            yield f"lies on plane {plane} of the source but names plane {named}"
            return
        segment = self._segment(group)
        if (plane, segment) in self._seen:
            yield f"segment {segment} comes twice on plane {plane}"
        self._seen.add((plane, segment))
        values = self._decode(number)
        expected = self._labels[plane] if self._labelmap else self._labels[plane] == segment
        different = int(np.count_nonzero(values != expected))
        if different:
            yield f"differs from the result in {different} voxels of plane {plane}"
        self._voxels += int(np.count_nonzero(values))

    def _place(self, group: Dataset) -> int | str:
        """Index of the plane on which the frame lies by its own position, or what is wrong."""
        positions = group.get("PlanePositionSequence") or _groups(self._ds, "PlanePositionSequence")
        if len(positions) != 1:
            return "has no position of its own"
        position = np.asarray(positions[0].get("ImagePositionPatient") or [np.nan] * 3, np.float64)
        distances = np.linalg.norm(self._source.images.positions - position, axis=1)
        nearest = int(distances.argmin())
        if not distances[nearest] <= _SAME_PLACE:
            return f"lies {distances[nearest]:.3f} mm from the nearest plane of the source"
        return nearest

    def _named(self, group: Dataset) -> int | str:
        """Index of the plane that the frame says it was made from, or what is wrong."""
        derivations = group.get("DerivationImageSequence") or ()
        images = [image for item in derivations for image in item.get("SourceImageSequence") or ()]
        if not all(item.get("DerivationCodeSequence") for item in derivations) or not all(
            image.get("PurposeOfReferenceCodeSequence") for image in images
        ):
            return "does not say what its source image is to it (codes of DerivationImageSequence)"
        if len(images) != 1:
            return f"names {len(images)} source images (DerivationImageSequence), not one: viewers guess the plane"
        key = str(images[0].get("ReferencedSOPInstanceUID")), int(images[0].get("ReferencedFrameNumber") or 0)
        if key not in self._plane_of:
            return f"names {key[0]} frame {key[1]}, which is not of the source"
        return self._plane_of[key]

    def _segment(self, group: Dataset) -> int:
        """Segment number of the frame; 0 for a label map, whose frames hold all of them."""
        if self._labelmap:
            return 0
        items = group.get("SegmentIdentificationSequence") or _groups(self._ds, "SegmentIdentificationSequence")[:1]
        return int(items[0].get("ReferencedSegmentNumber") or 0) if items else 0

    def _decode(self, number: int) -> NDArray[np.uint8]:
        """Values of one frame; bits run on from frame to frame, lowest first (PS3.5 8.1.1)."""
        rows, columns = self._ds.Rows, self._ds.Columns
        raw = np.frombuffer(self._ds.PixelData, np.uint8)
        first, last = number * rows * columns, (number + 1) * rows * columns
        if self._labelmap:
            return raw[first:last].reshape(rows, columns)
        bits = np.unpackbits(raw[first // 8 : (last + 7) // 8], bitorder="little")
        return bits[first % 8 : first % 8 + rows * columns].reshape(rows, columns)
