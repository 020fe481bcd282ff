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
from dicomnode.encode.gate_frames import Laid, grid_faults, groups_of
from dicomnode.encode.source import Source
from dicomnode.pipeline import Result, Segmentation

#: Label Map Segmentation Storage, which pydicom 3.0 does not name.
LABELMAP: Final = "1.2.840.10008.5.1.4.1.1.66.7"
SEGMENTATIONS: Final = frozenset({str(SegmentationStorage), LABELMAP})
#: Faults of frames that are told one by one.
_TOLD: Final = 5


def seg_faults(ds: Dataset, source: Source, result: Result) -> Iterator[str]:
    """What is wrong with the segmentation ``ds`` of ``source``; nothing if it says exactly what ``result`` says."""
    segmentation = _said_by(ds, result)
    if segmentation is not None:
        source = at_phase(source, segmentation.phase)
    grid = list(grid_faults(ds, source))
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
        self._ds, self._labels, self._laid = ds, segmentation.labels, Laid(ds, source)
        self._labelmap = ds.SOPClassUID == LABELMAP
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
        plane = self._laid.plane(group)
        if isinstance(plane, list):
            yield from plane
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

    def _segment(self, group: Dataset) -> int:
        """Segment number of the frame; 0 for a label map, whose frames hold all of them."""
        if self._labelmap:
            return 0
        items = group.get("SegmentIdentificationSequence") or groups_of(self._ds, "SegmentIdentificationSequence")[:1]
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
