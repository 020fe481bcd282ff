"""The segmented phases of a cine as series of their own, with their segmentations and marks on them.

A viewer that takes a cine for one four-dimensional volume knows the images of its first phase alone: OHIF (seen in
3.13.2) hangs on a segmentation or a mark that refers to another one. Unchanged copies of the phases that matter are
plain stacks to it. They come beside the objects on the source's own images, which remain the result of record.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sr.coding import Code

from dicomnode.encode.cine import at_phase, counted_through
from dicomnode.encode.document import Document
from dicomnode.encode.gate import check_objects
from dicomnode.encode.identity import EncodeContext
from dicomnode.encode.image import encode_images
from dicomnode.encode.marks import encode_marks
from dicomnode.encode.seg import encode_segmentation
from dicomnode.encode.source import CineSource, Source, SourcePlane
from dicomnode.pipeline import Image, ImageSeries, Result

#: CID 7203.
EXTRACTED: Final = Code("113092", "DCM", "Temporally-related frames extracted from the set of volumes")
#: Sets the UIDs of segmentations and marks apart from those on the source's own images.
_VARIANT: Final = "-phases"
#: The same in all images of a series (PS3.3 C.7.3.1); slices that were scanned as series of their own differ in them.
_OF_SERIES: Final = (
    "SeriesDescription",
    "ProtocolName",
    "BodyPartExamined",
    "Laterality",
    "OperatorsName",
    "PerformingPhysicianName",
    "RequestAttributesSequence",
)


@dataclass(frozen=True, slots=True)
class _Plane:
    """A plane of a copy: as the source's, in a header of its own."""

    header: int
    slope: float
    intercept: float
    bits_stored: int
    signed: bool
    padding: tuple[int, int] | None
    frame: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stack:
    """Copies of some planes of the source, as a source (`encode.source.Source`)."""

    headers: Sequence[Dataset]
    images: ImageSeries
    stored: NDArray[np.integer]
    planes: Sequence[SourcePlane]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Copies(_Stack):
    """The copied phases as a cine of their own (`encode.source.CineSource`)."""

    slices: int

    def at_phase(self, phase: int) -> Source:
        """One copied phase as a series."""
        return _part(self, range(phase * self.slices, (phase + 1) * self.slices))


def encode_phases(
    source: Source, result: Result, context: EncodeContext, *, series_number: int, replaces: Sequence[Document] = ()
) -> Iterator[tuple[str, int, Dataset]]:
    """Role, index in its series, object: the images of each segmented phase, then the segmentations, then the marks.

    Nothing where `without_phases` has a reason.

    Parameters
    ----------
    replaces
        The same objects of the earlier result: the marks among them become predecessors.

    Raises
    ------
    EncodingError
        As the encoders of the single objects, and the gate.
    """
    if not isinstance(source, CineSource) or without_phases(source, result):
        return
    phases = _segmented(result)
    made: list[Dataset] = []
    for number, phase in enumerate(phases, series_number):
        role = f"phase-{phase + 1}"
        for index, ds in enumerate(_images(source, result, phase, role, replace(context, series_number=number))):
            made.append(ds)
            yield role, index, ds
    copies, on_copies = _copied(source, phases, made), _renumbered(result, phases)
    varied = replace(context, variant=_VARIANT)
    first = series_number + len(phases)
    objects = [
        (one.role + _VARIANT, encode_segmentation(at_phase(copies, one.phase), one, varied, series_number=number))
        for number, one in enumerate(on_copies.segmentations, first)
    ]
    number = first + len(objects)
    whole = counted_through(copies, on_copies)
    marks = encode_marks(copies, whole, varied, series_number=number, replaces=replaces)
    if marks is not None:
        objects.append(("marks" + _VARIANT, marks))
    check_objects([ds for _, ds in objects], copies, on_copies)
    yield from ((role, 0, ds) for role, ds in objects)


def without_phases(source: Source, result: Result) -> str:
    """Why there is nothing to copy; empty where there is."""
    if not isinstance(source, CineSource):
        return "the input has no phases"
    if source.planes[0].frame:
        return "the cine is one multi-frame object, whose frames viewers show as a stack"
    return "" if _segmented(result) else "nothing is segmented at a phase"


def _segmented(result: Result) -> list[int]:
    return list(dict.fromkeys(one.phase for one in result.segmentations if one.phase is not None))


def _images(source: CineSource, result: Result, phase: int, role: str, context: EncodeContext) -> Iterator[Dataset]:
    """Copies of one phase's images: same pixels, new UIDs; one series, of how many ever they come."""
    at = at_phase(source, phase)
    counted = [str(at.headers[plane.header].get("InstanceNumber") or "") for plane in at.planes]
    named = next((one.time_point.label for one in result.segmentations if one.phase == phase and one.time_point), "")
    count = len(source.planes) // source.slices
    image = Image(
        array=at.images.array,
        role=role,
        label=f"{named} images" if named else f"images of phase {phase + 1}",
        description=f"Phase {phase + 1} of {count} of a cine{f' ({named})' if named else ''}, pixels unchanged",
        code=EXTRACTED,
    )
    of_series = Dataset()
    for index, ds in enumerate(encode_images(at, Result(images=(image,)), context)):
        if len(set(counted)) < len(counted):
            ds.pop("InstanceNumber", None)  # setting a value would change the element, which the source shares
            ds.InstanceNumber = str(index + 1)
        if index == 0:
            check_objects([ds], at, result)  # the module tables say the same of every plane
            of_series.update(ds)
        _take(ds, _OF_SERIES, of_series)
        yield ds


def _take(ds: Dataset, keywords: Sequence[str], other: Dataset) -> None:
    """Give ``ds`` the elements of ``other``, or none where that has none."""
    for keyword in keywords:
        ds.pop(keyword, None)
        if keyword in other:
            ds[keyword] = other[keyword]


def _copied(source: CineSource, phases: Sequence[int], made: Sequence[Dataset]) -> _Copies:
    """The source reduced to some phases; its headers name the copies' instances and series."""
    planes = [phase * source.slices + index for phase in phases for index in range(source.slices)]
    reduced = _part(source, planes)
    headers = [_named(reduced.headers[plane.header], ds) for plane, ds in zip(reduced.planes, made, strict=True)]
    numbered = [_Plane(index, *_encoding(plane)) for index, plane in enumerate(reduced.planes)]
    return _Copies(headers=headers, images=reduced.images, stored=reduced.stored, planes=numbered, slices=source.slices)


def _part(source: Source, planes: Sequence[int]) -> _Stack:
    """Some planes of a source, in the order given, each with a header of its own."""
    chosen, images = list(planes), source.images
    return _Stack(
        headers=[source.headers[source.planes[plane].header] for plane in chosen],
        images=replace(
            images,
            array=images.array[chosen],
            padding=images.padding[chosen],
            positions=images.positions[chosen],
            regular_volume=None,
        ),
        stored=source.stored[chosen],
        planes=[_Plane(index, *_encoding(source.planes[plane])) for index, plane in enumerate(chosen)],
    )


def _encoding(plane: SourcePlane) -> tuple[float, float, int, bool, tuple[int, int] | None]:
    return plane.slope, plane.intercept, plane.bits_stored, plane.signed, plane.padding


def _named(header: Dataset, copy: Dataset) -> Dataset:
    """The source's header under the copy's UIDs and number; the source's own is left as it is."""
    ds = Dataset()
    ds.update(header)
    _take(ds, ("SOPInstanceUID", "SeriesInstanceUID", "InstanceNumber"), copy)
    return ds


def _renumbered(result: Result, phases: Sequence[int]) -> Result:
    """What of the result lies on some phases, which are counted anew."""
    new = {phase: number for number, phase in enumerate(phases)}
    return replace(
        result,
        images=(),
        parametric_maps=(),
        segmentations=tuple(
            replace(one, phase=new[one.phase]) for one in result.segmentations if one.phase is not None
        ),
        key_planes=tuple(
            replace(key, phase=new[key.phase])
            for key in result.key_planes
            if key.phase is not None and key.phase in new
        ),
    )
