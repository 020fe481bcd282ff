"""The summary page: one secondary capture image that any viewer shows, also where SEG and SR are not understood."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pydicom import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import SecondaryCaptureImageStorage

from dicomnode.dicom import MANUFACTURER
from dicomnode.encode.common import MAX_LO, code_item, cut, reference
from dicomnode.encode.envelope import envelop
from dicomnode.encode.identity import EncodeContext, require_identity
from dicomnode.encode.source import Source
from dicomnode.errors import EncodingError
from dicomnode.pipeline import KeyPlane, Result

#: Part of the identity of the object.
ROLE: Final = "summary"
_LABEL: Final = "AI summary"
_SOURCE: Final = Code("121322", "DCM", "Source image for image processing operation")


def encode_summary(source: Source, result: Result, context: EncodeContext, *, series_number: int) -> Dataset | None:
    """One page that says what ``result`` says; None if there is nothing to report besides images.

    Raises
    ------
    EncodingError
        A key plane the input does not have, or an identity that cannot be repeated.
    """
    if not result.reported:
        return None
    # Here, because matplotlib takes a second to load and only a worker that draws a page should pay for it.
    from dicomnode.encode import page, planes

    require_identity(source.headers[0], context, spatial=False)
    for key in result.key_planes:
        if not 0 <= key.plane < len(source.planes):
            raise EncodingError(f"key plane {key.plane} is none of the {len(source.planes)} planes of the input")
    pixels = page.draw(source, result, context)
    ds = Dataset()
    ds.SOPClassUID = SecondaryCaptureImageStorage
    ds.Modality = "OT"
    ds.ConversionType = "WSD"
    ds.SecondaryCaptureDeviceManufacturer = MANUFACTURER
    ds.SecondaryCaptureDeviceManufacturerModelName = cut(f"AI {context.algorithm.name}", MAX_LO)
    ds.ImageType = ["DERIVED", "SECONDARY"]
    ds.PatientOrientation = None  # type 2C: a page has none
    ds.BurnedInAnnotation = "NO"
    ds.ImageComments = "Research use only - not for diagnosis"
    ds.DerivationDescription = f"Summary page of {context.algorithm.name} {context.algorithm.version}"
    ds.SourceImageSequence = _references(source, planes.shown(source, result))
    _carry_loss(ds, source.headers[0])
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    ds.Rows, ds.Columns = pixels.shape[:2]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    ds.add_new(0x7FE00010, "OB", pixels.tobytes())
    return envelop(ds, source, context, role=ROLE, series_number=series_number, description=_LABEL)


def _references(source: Source, shown: Sequence[KeyPlane]) -> list[Dataset]:
    """One item for each instance or frame that is shown on the page."""
    items, seen = [], set()
    for key in shown:
        plane = source.planes[key.plane]
        if (plane.header, plane.frame) in seen:
            continue
        seen.add((plane.header, plane.frame))
        item = reference(source.headers[plane.header])
        if plane.frame:
            item.ReferencedFrameNumber = str(plane.frame)
        item.PurposeOfReferenceCodeSequence = [code_item(_SOURCE)]
        item.SpatialLocationsPreserved = "NO"
        items.append(item)
    return items


def _carry_loss(ds: Dataset, header: Dataset) -> None:
    """Once lossy, always lossy (PS3.3 C.7.6.1.1.5)."""
    for keyword in ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        if header.get(keyword):
            ds[keyword] = header[keyword]
