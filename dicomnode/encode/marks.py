"""Marks: outlines on the source images themselves (TID 1410), which is what common viewers draw.

A viewer of the OHIF kind shows planar regions with two-dimensional coordinates and nothing else, and one group without
coordinates blanks a whole report (`viewer.md`): so every group here has them, and carries all values of its segment.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from highdicom.sr import (
    GraphicTypeValues,
    ImageRegion,
    PlanarROIMeasurementsAndQualitativeEvaluations,
    SourceImageForRegion,
)
from numpy.typing import NDArray
from pydicom import Dataset

from dicomnode.encode import content, document
from dicomnode.encode.contours import outline
from dicomnode.encode.identity import EncodeContext
from dicomnode.encode.source import Source
from dicomnode.pipeline import Result, Segment, Segmentation

#: Part of the identity of the report.
MARKS: Final = "marks"


def encode_marks(
    source: Source,
    result: Result,
    context: EncodeContext,
    *,
    series_number: int,
    replaces: Sequence[document.Document] = (),
) -> Dataset | None:
    """Comprehensive 3D SR with the outline of every segment on every key plane; None where nothing is to be marked.

    Parameters
    ----------
    replaces
        Documents of the earlier result: the reports among them become predecessors.
    """
    groups = [
        _group(source, result, context, segmentation, segment, plane, mask)
        for segmentation, segment, plane, mask in marked(result)
    ]
    if not groups:
        return None
    return document.report(
        source,
        context,
        groups,
        document.remarks(result, source, context),
        role=MARKS,
        series_number=series_number,
        label=f"AI marks, {context.algorithm.name}",
        replaces=replaces,
    )


def marked(result: Result) -> Iterator[tuple[Segmentation, Segment, int, NDArray[np.bool_]]]:
    """What is outlined on which plane, in plane order, each once."""
    wanted: dict[int, set[str]] = {}
    everything = {segment.key for segmentation in result.segmentations for segment in segmentation.segments}
    for key in result.key_planes:
        wanted.setdefault(key.plane, set()).update(key.segments or everything)
    for plane in sorted(wanted):
        for segmentation in result.segmentations:
            for number, segment in enumerate(segmentation.segments, start=1):
                mask = segmentation.labels[plane] == number
                if segment.key in wanted[plane] and mask.any():
                    yield segmentation, segment, plane, mask


def _group(
    source: Source,
    result: Result,
    context: EncodeContext,
    segmentation: Segmentation,
    segment: Segment,
    plane: int,
    mask: NDArray[np.bool_],
) -> PlanarROIMeasurementsAndQualitativeEvaluations:
    """Planar group (TID 1410). Its tracking UID is its own: a viewer merges groups that share one."""
    finding = next((one for one in result.findings if one.segment == segment.key), None)
    code, evaluations = content.statement(segment, finding)
    measured = [value for value in result.measurements if value.segment == segment.key]
    name = f"{segment.label}, {_place(source, plane)}"
    # Apart from what is marked on copies of the images: viewers know a drawing by its tracking UID, one for each.
    key = (segmentation.role, segment.key, MARKS + context.variant, str(plane))
    return PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=content.tracking(context, name, *key),
        referenced_region=_region(source, plane, mask),
        finding_type=code,
        finding_sites=content.sites(segment.site or (finding.site if finding else None)),
        algorithm_id=content.algorithm(context),
        measurements=content.numbers(measured, finding),
        qualitative_evaluations=[*evaluations, *content.unmeasured(measured)],
    )


def _region(source: Source, plane: int, mask: NDArray[np.bool_]) -> ImageRegion:
    """Closed POLYLINE around the largest part, selected from the image that holds the plane."""
    ((header, frames),) = content.frames(source, [plane])
    image = SourceImageForRegion(str(header.SOPClassUID), str(header.SOPInstanceUID), frames)
    return ImageRegion(GraphicTypeValues.POLYLINE, outline(mask), image)


def _place(source: Source, plane: int) -> str:
    """How a viewer counts the plane: by frame or by InstanceNumber; by position where the scanner counts neither."""
    place = source.planes[plane]
    number = source.headers[place.header].get("InstanceNumber")
    if place.frame:
        return f"frame {place.frame}"
    return f"image {number}" if number else f"plane {plane + 1}"
