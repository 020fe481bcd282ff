"""What SEG and Parametric Map have in common: frames that highdicom lays over the planes of the source."""

from __future__ import annotations

import re
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataelem import DataElement
from pydicom.tag import Tag

from dicomnode.encode.common import cut
from dicomnode.encode.identity import EncodeContext, require_identity
from dicomnode.encode.source import Source
from dicomnode.encode.stand_ins import StandIns, group_of, referenced_series
from dicomnode.errors import EncodingError

#: Longest CS.
_MAX_CS: Final = 16
_IMAGE_POSITION: Final = Tag("ImagePositionPatient")


def require_frame_of_reference(source: Source, context: EncodeContext) -> None:
    """Refuse a source over which nothing can be laid; names the instance."""
    first = source.headers[0]
    if not first.get("FrameOfReferenceUID"):
        raise EncodingError(
            f"series {first.SeriesInstanceUID} has no FrameOfReferenceUID: no segmentation can be laid over it "
            "(reports and pictures can still be made)"
        )
    for header in source.headers:
        require_identity(header, context)
        if header.FrameOfReferenceUID != first.FrameOfReferenceUID:
            raise EncodingError(
                f"FrameOfReferenceUID differs between {first.SOPInstanceUID} and {header.SOPInstanceUID}: no "
                "segmentation can be laid over both"
            )


def content_label(label: str, otherwise: str) -> str:
    """``label`` in the characters of a CS; ``otherwise`` where it has none of them."""
    words = re.sub(r"[^A-Z0-9 _]+", " ", label.upper()).split()
    return cut(" ".join(words), _MAX_CS) or otherwise


def in_frame_order(source: Source, values: NDArray[Any]) -> NDArray[Any]:
    """Planes in the order of what highdicom takes them for: of the headers, or of the frames of the one instance."""
    if not source.planes[0].frame or len(source.headers) > 1:
        return values
    order = np.argsort([plane.frame for plane in source.planes])
    return values[order]


def settle(ds: Dataset, source: Source, given: StandIns, organization: str) -> None:
    """Set again what highdicom rounded, drew at random or padded, and name the source for what stood in for it."""
    for item in (*ds.DimensionOrganizationSequence, *ds.DimensionIndexSequence):
        item.DimensionOrganizationUID = organization
    ds.ContentCreatorName = None  # nobody's name: type 2
    _settle_shared(ds.SharedFunctionalGroupsSequence[0], source)
    positions = {}
    for plane in source.planes:
        header = source.headers[plane.header]
        item = group_of(header, plane.frame, "PlanePositionSequence") if plane.frame else header
        positions[str(header.SOPInstanceUID), plane.frame] = item.ImagePositionPatient
    images = [frame.DerivationImageSequence[0].SourceImageSequence[0] for frame in ds.PerFrameFunctionalGroupsSequence]
    named = [(str(image.ReferencedSOPInstanceUID), int(image.get("ReferencedFrameNumber") or 0)) for image in images]
    for frame, image, stood_in in zip(ds.PerFrameFunctionalGroupsSequence, images, named, strict=True):
        origin = given.origins[stood_in]
        if origin != stood_in:  # frames of one plane share the item
            image.ReferencedSOPInstanceUID, image.ReferencedFrameNumber = origin[0], str(origin[1])
        frame.PlanePositionSequence[0][_IMAGE_POSITION] = DataElement(_IMAGE_POSITION, "DS", positions[origin])
    if given.series:
        ds.ReferencedSeriesSequence = referenced_series(source)


def _settle_shared(shared: Dataset, source: Source) -> None:
    """Orientation and pixel measures in the source's own digits."""
    header, frame = source.headers[0], source.planes[0].frame
    orientation = group_of(header, frame, "PlaneOrientationSequence") if frame else header
    shared.PlaneOrientationSequence[0]["ImageOrientationPatient"] = orientation["ImageOrientationPatient"]
    measures = group_of(header, frame, "PixelMeasuresSequence") if frame else header
    written = shared.PixelMeasuresSequence[0]
    for keyword in ("PixelSpacing", "SliceThickness", "SpacingBetweenSlices"):
        if measures.get(keyword) not in (None, ""):
            written[keyword] = measures[keyword]
