"""A hospital's own patients: DICOM cine with the segmentations that a reader has corrected; and Kaggle's, with volumes.

Corrected segmentations are the most valuable data there is. What the node sends (SEG at ED, SEG at ES) comes back after
correction with the same codes and references; each frame names the image it lies on, which says slice and phase.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from models.cardiac import localise
from models.cardiac.cases import Case, Example, Known, Volumes, labelled
from models.cardiac.indices import widths
from models.cardiac.nifti import UnreadableCaseError

SEGMENTATIONS: Final = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
#: Label by code of SegmentedPropertyType (SCT; PS3.16 CID 7152 and 12305), as pipelines/cardiac.py writes them.
CODES: Final = {"53085002": 1, "49848007": 2, "87878005": 3}
#: The last characters of a file's name that say it is no DICOM.
_NO_DICOM: Final = frozenset({".txt", ".csv", ".json", ".md", ".gz", ".png", ".xml", ".yaml"})


def objects(folder: Path) -> Iterator[Dataset]:
    """Headers of every DICOM object below a folder."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix.lower() not in _NO_DICOM):
        try:
            yield pydicom.dcmread(path, stop_before_pixels=True)
        except (InvalidDicomError, OSError):
            continue


class Stack:
    """Images of one direction in order: (phase, slice, row, column), and where each instance is."""

    def __init__(self, headers: list[Dataset], name: str) -> None:
        normal = _normal(headers[0])
        heights = sorted({_height(one, normal) for one in headers})
        planes = [[one for one in headers if _height(one, normal) == height] for height in heights]
        phases = min(len(plane) for plane in planes)
        if phases < 2 or any(len(plane) != phases for plane in planes):
            raise UnreadableCaseError(f"{name}: planes have {sorted({len(plane) for plane in planes})} phases")
        first = headers[0]
        self.spacing = float(first.PixelSpacing[0]), float(first.PixelSpacing[1])
        self.positions_mm = np.array(heights) - heights[0]
        self.at: dict[str, tuple[int, int]] = {}
        self.images = np.zeros((phases, len(heights), int(first.Rows), int(first.Columns)), np.float32)
        for k, plane in enumerate(planes):
            for p, one in enumerate(sorted(plane, key=_order)):
                self.at[str(one.SOPInstanceUID)] = p, k
                self.images[p, k] = pydicom.dcmread(str(one.filename)).pixel_array


def _normal(header: Dataset) -> NDArray[np.float64]:
    row, column = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
    return np.cross(row, column)


def _height(header: Dataset, normal: NDArray[np.float64]) -> float:
    return round(float(normal @ np.array(header.ImagePositionPatient, float)), 1)


def _order(header: Dataset) -> tuple[float, float]:
    return float(header.get("TriggerTime") or 0.0), float(header.get("InstanceNumber") or 0.0)


def corrected(folder: Path) -> Case:
    """A patient's folder with a cine and its corrected SEG objects, in any order and depth."""
    everything = list(objects(folder))
    segs = [one for one in everything if one.SOPClassUID in SEGMENTATIONS]
    if not segs:
        raise UnreadableCaseError(f"{folder.name}: holds no segmentation object")
    referred = {uid for one in segs for uid in _sources(one)}
    direction = {
        tuple(np.round(_normal(one), 2)) for one in everything if str(one.get("SOPInstanceUID", "")) in referred
    }
    if len(direction) != 1:
        raise UnreadableCaseError(f"{folder.name}: the images that were segmented are missing, or of several stacks")
    images = [
        one
        for one in everything
        if "ImagePositionPatient" in one and "Rows" in one and tuple(np.round(_normal(one), 2)) in direction
    ]
    stack = Stack([one for one in images if one.SOPClassUID not in SEGMENTATIONS], folder.name)
    labels, named = _labels(segs, stack, folder.name)
    known = Known.ALL if 1 in named else Known.OUTLINES if 2 in named else Known.CAVITY
    centre = localise.centre(stack.images, stack.spacing)
    drawn: list[Example] = []
    empty: list[Example] = []
    for phase, called in sorted(labels.items()):
        with_any, without = labelled(stack.images[phase], called, centre, stack.spacing, known)
        drawn += with_any
        empty += without
    return Case(name=folder.name, drawn=tuple(drawn), empty=tuple(empty), facts={"segments": str(sorted(named))})


def _labels(segs: list[Dataset], stack: Stack, name: str) -> tuple[dict[int, NDArray[np.uint8]], set[int]]:
    """(slice, row, column) labels by phase, and which labels the segmentations know."""
    labels: dict[int, NDArray[np.uint8]] = {}
    named: set[int] = set()
    for header in segs:
        seg = pydicom.dcmread(str(header.filename))
        numbers = {int(one.SegmentNumber): _label(one) for one in seg.SegmentSequence}
        named |= {label for label in numbers.values() if label}
        if seg.get("SegmentationType") not in ("BINARY", "LABELMAP"):
            raise UnreadableCaseError(
                f"{name}: a segmentation is {seg.get('SegmentationType')}; BINARY or LABELMAP read"
            )
        pixels = seg.pixel_array.reshape(-1, int(seg.Rows), int(seg.Columns))
        for frame, groups in zip(pixels, seg.PerFrameFunctionalGroupsSequence, strict=True):
            place = next((stack.at[uid] for uid in _frame_sources(groups) if uid in stack.at), None)
            if place is None:
                raise UnreadableCaseError(f"{name}: a frame of {header.SOPInstanceUID} names none of the images here")
            if frame.shape != stack.images.shape[2:]:
                raise UnreadableCaseError(
                    f"{name}: a segmentation is {frame.shape}, the images {stack.images.shape[2:]}"
                )
            out = labels.setdefault(place[0], np.zeros(stack.images.shape[1:], np.uint8))
            if seg.SegmentationType == "LABELMAP":
                for number, label in numbers.items():
                    out[place[1]][frame == number] = label
            else:
                out[place[1]][frame > 0] = numbers[_segment_of(groups, seg)]
    return labels, named


def _label(segment: Dataset) -> int:
    """Our label of a segment by its coded type; 0 for what is none of the three structures."""
    items = segment.get("SegmentedPropertyTypeCodeSequence") or [Dataset()]
    return CODES.get(str(items[0].get("CodeValue", "")), 0)


def _segment_of(groups: Dataset, seg: Dataset) -> int:
    """Number of the segment of one frame of a BINARY object; it may be said once for all frames."""
    shared = seg.get("SharedFunctionalGroupsSequence") or [Dataset()]
    for part in (groups, shared[0]):
        for item in part.get("SegmentIdentificationSequence") or ():
            return int(item.ReferencedSegmentNumber)
    return int(seg.SegmentSequence[0].SegmentNumber)


def _frame_sources(groups: Dataset) -> Iterator[str]:
    for derived in groups.get("DerivationImageSequence") or ():
        for source in derived.get("SourceImageSequence") or ():
            yield str(source.ReferencedSOPInstanceUID)


def _sources(seg: Dataset) -> Iterator[str]:
    for groups in seg.get("PerFrameFunctionalGroupsSequence") or ():
        yield from _frame_sources(groups)


def kaggle(folder: Path) -> Case:
    """A patient of the Second Annual Data Science Bowl: ``N/study/sax_K`` and volumes in ``train.csv``, no masks."""
    row: dict[str, Any] = {}
    for above in list(folder.parents)[:2]:
        path = above / "train.csv"
        if path.is_file():
            with path.open(encoding="utf-8-sig", newline="") as file:
                row = next((one for one in csv.DictReader(file) if one["Id"].strip() == folder.name), {})
            break
    if not row:
        raise UnreadableCaseError(f"{folder.name}: train.csv has no line of it")
    headers = [one for part in sorted((folder / "study").glob("sax_*")) for one in _last_of_each(part)]
    if not headers:
        raise UnreadableCaseError(f"{folder.name}: study/ has no sax_K with images")
    usual = max({len(_same(headers, one)) for one in headers})
    stack = Stack([one for one in headers if len(_same(headers, one)) == usual], folder.name)
    volumes = Volumes(
        images=stack.images,
        spacing=stack.spacing,
        width_mm=widths(stack.positions_mm),
        edv_ml=float(row["Diastole"]),
        esv_ml=float(row["Systole"]),
    )
    return Case(name=folder.name, volumes=volumes, facts={key: str(value) for key, value in row.items()})


def _last_of_each(folder: Path) -> list[Dataset]:
    """Images of one slice, of a repeated phase the last one."""
    found: dict[float, Dataset] = {}
    for one in sorted(objects(folder), key=lambda ds: float(ds.get("InstanceNumber") or 0.0)):
        found[float(one.get("TriggerTime") or 0.0)] = one
    return list(found.values())


def _same(headers: list[Dataset], one: Dataset) -> list[Dataset]:
    """Headers of the same plane."""
    normal = _normal(one)
    return [other for other in headers if abs(_height(other, normal) - _height(one, normal)) < 0.1]
