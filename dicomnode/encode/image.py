"""Derived images: the source's planes with other pixels, in the source's own SOP class and pixel encoding.

CT and MR single-frame series give one object per plane, Enhanced and Legacy Converted Enhanced instances one object
with the frames in the order of the source.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.multival import MultiValue
from pydicom.sr.coding import Code

from dicomnode.encode import anatomy
from dicomnode.encode.check import check
from dicomnode.encode.common import MAX_LO, Copier, code_item, cut, reference
from dicomnode.encode.envelope import say_deidentified
from dicomnode.encode.identity import EncodeContext, file_meta, require_identity, sign
from dicomnode.encode.source import Source, SourcePlane
from dicomnode.errors import EncodingError
from dicomnode.pipeline import Image, Result

logger = logging.getLogger(__name__)

SOURCE_FOR_PROCESSING: Final = Code("121322", "DCM", "Source image for image processing operation")
#: Longest ST.
_MAX_ST: Final = 1024
#: ImageType value 3 of a plane whose source has none: type 1 in CT and MR (PS3.3 C.8.2.1.1.1).
_DEFAULT_VALUE_3: Final = {"CT": "AXIAL", "MR": "OTHER"}
#: Functional groups that repeat ImageType for frames.
_FRAME_TYPES: Final = ("CTImageFrameTypeSequence", "MRImageFrameTypeSequence")


def encode_images(source: Source, result: Result, context: EncodeContext) -> Iterator[Dataset]:
    """Objects of every `Image` of ``result``, checked, with file meta information (Explicit VR Little Endian).

    Raises
    ------
    EncodingError
        The identity cannot be repeated, an array does not fit the source or is not finite, or the self-check failed.
        Everything is refused before the first object is given out, but for non-finite values in a later plane.
    """
    roles = [image.role for image in result.images]
    if len(set(roles)) != len(roles):
        raise EncodingError(f"two images of {context.algorithm.name} have the same role: UIDs would collide ({roles})")
    for header in source.headers:
        require_identity(header, context)
    for image in result.images:
        if image.array.shape != source.images.array.shape:
            raise EncodingError(
                f"image '{image.role}' is {image.array.shape}, its input {source.images.array.shape}: not on its planes"
            )
    for number, image in enumerate(result.images):
        derived = _Derived(source, image, context, context.series_number + number)
        yield from derived.objects()


class _Derived:
    """One derived series while it is written."""

    def __init__(self, source: Source, image: Image, context: EncodeContext, series_number: int) -> None:
        self._source, self._image, self._context = source, image, context
        self._series_number = series_number
        self._copier = Copier()
        marks = f", RUO{', incomplete' if self._incomplete else ''}]"
        self._label = f" [{cut(image.label, MAX_LO - len(marks) - 2)}{marks}"

    @property
    def _incomplete(self) -> bool:
        return self._context.incomplete or self._source.images.incomplete

    def objects(self) -> Iterator[Dataset]:
        if self._source.planes[0].frame:
            yield self._finished(self._multi_frame(), self._source.headers[0])
            return
        for index, plane in enumerate(self._source.planes):
            header = self._source.headers[plane.header]
            yield self._finished(self._single_frame(header, index), header)

    def _single_frame(self, header: Dataset, index: int) -> Dataset:
        ds = self._envelope(header, index)
        added = anatomy.locate(ds)
        if added and index == 0:
            logger.info(
                "body part named",
                extra={"action": "body_part_named", "keyword": added, "series_uid": ds.SeriesInstanceUID},
            )
        ds.ImageType = self._image_type(header)
        ds.DerivationDescription = self._description()
        # How the source was derived, then what was done here.
        ds.DerivationCodeSequence = [*(ds.get("DerivationCodeSequence") or ()), code_item(self._image.code)]
        ds.SourceImageSequence = [self._source_image(header)]
        _set_pixels(ds, self._plane(index)[None], self._source.planes[index])
        return ds

    def _multi_frame(self) -> Dataset:
        header = self._source.headers[0]
        ds = self._envelope(header, 0)
        ds.ImageType = ["DERIVED", *_values(header.ImageType)[1:]]
        _mark_frames(ds)
        ds.SourceImageEvidenceSequence = [self._evidence(header)]
        stored: NDArray[np.integer] = np.empty_like(self._source.stored)
        groups = ds.PerFrameFunctionalGroupsSequence
        for index, plane in enumerate(self._source.planes):
            stored[plane.frame - 1] = self._plane(index)
            derivation = Dataset()
            derivation.DerivationDescription = self._description()
            derivation.DerivationCodeSequence = [code_item(self._image.code)]
            derivation.SourceImageSequence = [self._source_image(header, plane.frame)]
            groups[plane.frame - 1].DerivationImageSequence = [derivation]
        for group in ds.SharedFunctionalGroupsSequence:
            group.pop("DerivationImageSequence", None)  # a group is shared or per frame, never both
        _set_pixels(ds, stored, self._source.planes[0])
        return ds

    def _envelope(self, header: Dataset, index: int) -> Dataset:
        """Everything but image type, derivation and pixels."""
        ds = self._copier.copy(header)
        sign(ds, header, self._context)
        ds.SOPInstanceUID = self._context.instance_uid(self._image.role, index)
        ds.SeriesInstanceUID = self._context.series_uid(self._image.role)
        ds.SeriesNumber = str(self._series_number)
        ds.SeriesDescription = self._series_description(header)
        say_deidentified(ds)
        ds.ReferencedSeriesSequence = [_referenced_series(header)]
        return ds

    def _finished(self, ds: Dataset, header: Dataset) -> Dataset:
        ds.file_meta = file_meta(ds)
        check(ds, header)
        return ds

    def _image_type(self, header: Dataset) -> list[str]:
        values = _values(header.get("ImageType"))
        third = values[2] if len(values) > 2 and values[2] else _DEFAULT_VALUE_3.get(header.Modality, "OTHER")
        return ["DERIVED", self._context.image_type_value_2, third]

    def _series_description(self, header: Dataset) -> str:
        keywords = ("SeriesDescription", "ProtocolName", "StudyDescription")
        named = next((header[one].value for one in keywords if header.get(one)), f"{header.Modality} series")
        text = named if isinstance(named, str) else " ".join(named)
        return cut(text, MAX_LO - len(self._label)) + self._label

    def _description(self) -> str:
        context = self._context
        text = self._image.description
        if self._incomplete:
            text += "; input incomplete"
        if context.revision > 1:
            text += f"; revision {context.revision}"
        if context.predecessor:
            text += f", replaces series {context.predecessor}"
        return cut(text, _MAX_ST)

    def _source_image(self, header: Dataset, frame: int = 0) -> Dataset:
        item = reference(header)
        if frame:
            item.ReferencedFrameNumber = str(frame)
        item.PurposeOfReferenceCodeSequence = [code_item(SOURCE_FOR_PROCESSING)]
        item.SpatialLocationsPreserved = "YES"
        return item

    def _evidence(self, header: Dataset) -> Dataset:
        series = Dataset()
        series.SeriesInstanceUID = str(header.SeriesInstanceUID)
        series.ReferencedSOPSequence = [reference(header)]
        study = Dataset()
        study.StudyInstanceUID = str(header.StudyInstanceUID)
        study.ReferencedSeriesSequence = [series]
        return study

    def _plane(self, index: int) -> NDArray[np.integer]:
        """Stored values of one plane: inverted where the pipeline changed something, the source's own elsewhere."""
        images, plane = self._source.images, self._source.planes[index]
        values, stored = self._image.array[index], self._source.stored[index]
        kept = values == images.array[index]
        np.logical_or(kept, images.padding[index], out=kept)
        finite = np.isfinite(values)
        if not finite.all():
            if not (finite | kept).all():
                raise EncodingError(f"image '{self._image.role}' has values that are not finite in plane {index}")
            values = np.where(kept, images.array[index], values)
        inverted = _inverted(values, plane, stored.dtype)
        np.copyto(inverted, stored, where=kept)
        return inverted


def _inverted(values: NDArray[np.float32], plane: SourcePlane, dtype: np.dtype[np.integer]) -> NDArray[np.integer]:
    """Values to stored values: inverse rescale, half to even, clipped, never onto the padding value."""
    stored = np.subtract(values, plane.intercept, dtype=np.float64)
    if plane.slope != 1:
        stored /= plane.slope
    np.rint(stored, out=stored)
    low, high = stored_range(plane)
    np.clip(stored, low, high, out=stored)
    if plane.padding is not None:
        first, last = plane.padding
        inside = (stored >= first) & (stored <= last)
        if last < high:
            stored[inside] = last + 1
        elif first > low:
            stored[inside] = first - 1
    return stored.astype(dtype)


def stored_range(plane: SourcePlane) -> tuple[int, int]:
    """Least and greatest stored value that the plane's encoding holds."""
    if plane.signed:
        return -(1 << (plane.bits_stored - 1)), (1 << (plane.bits_stored - 1)) - 1
    return 0, (1 << plane.bits_stored) - 1


def _set_pixels(ds: Dataset, stored: NDArray[np.integer], plane: SourcePlane) -> None:
    """Write (frame, row, column) little endian, with the high bit where the standard wants it."""
    ds.HighBit = plane.bits_stored - 1
    little = stored.astype(stored.dtype.newbyteorder("<"), copy=False)
    raw = np.ascontiguousarray(little).tobytes()
    ds.add_new(0x7FE00010, "OB" if stored.dtype.itemsize == 1 else "OW", raw + b"\0" * (len(raw) % 2))


def _mark_frames(ds: Dataset) -> None:
    """FrameType value 1 of all frames: DERIVED."""
    for group in (*ds.SharedFunctionalGroupsSequence, *ds.PerFrameFunctionalGroupsSequence):
        for keyword in _FRAME_TYPES:
            for item in group.get(keyword) or ():
                item.FrameType = ["DERIVED", *_values(item.FrameType)[1:]]


def _referenced_series(header: Dataset) -> Dataset:
    item = Dataset()
    item.SeriesInstanceUID = str(header.SeriesInstanceUID)
    item.ReferencedInstanceSequence = [reference(header)]
    return item


def _values(value: object) -> list[str]:
    if value is None:
        return []
    return [str(part) for part in value] if isinstance(value, MultiValue | list | tuple) else [str(value)]
