"""Presentation state: the source images in the window that shows the finding, with the outline of every segment.

It changes no pixel and no viewer needs to know segmentations: archives of the last twenty years apply it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from highdicom import ModalityLUTTransformation, PresentationLUTTransformation, VOILUTFunctionValues
from highdicom.color import CIELabColor
from highdicom.pr import (
    AnnotationUnitsValues,
    GraphicAnnotation,
    GraphicLayer,
    GraphicObject,
    GraphicTypeValues,
    GrayscaleSoftcopyPresentationState,
    SoftcopyVOILUTTransformation,
    TextObject,
)
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement

from dicomnode.dicom import MANUFACTURER, derive_uid
from dicomnode.encode.common import MAX_LO, cut
from dicomnode.encode.contours import outline
from dicomnode.encode.envelope import envelop
from dicomnode.encode.identity import EncodeContext, require_identity
from dicomnode.encode.marks import marked
from dicomnode.encode.source import Source
from dicomnode.encode.stand_ins import cited, group_of
from dicomnode.encode.tracking import tracking_id
from dicomnode.encode.window import window
from dicomnode.pipeline import HU, Result, Segment, Segmentation

#: Part of the identity of the object; a further one, where images have other rescale values, is numbered.
ROLE: Final = "presentation"
_LABEL: Final = "AI outlines"
#: Down from this the exact function: the usual one takes 1 off the width (PS3.3 C.11.2.1.2.1), all of it here.
_LEAST_WIDTH: Final = 1.0
#: What is outlined: segmentation, segment, plane, where.
_Marked = tuple[Segmentation, Segment, int, NDArray[np.bool_]]


def encode_presentations(
    source: Source, result: Result, context: EncodeContext, *, series_number: int
) -> list[tuple[str, Dataset]]:
    """(role, presentation state), one for each rescale that outlined planes have: usually one; none without outlines.

    A state replaces the whole grey scale pipeline of its images, rescale included, so that images of several rescale
    values cannot share one.
    """
    alike: dict[tuple[float, float], list[_Marked]] = {}
    for one in marked(result):
        plane = source.planes[one[2]]
        alike.setdefault((plane.slope, plane.intercept), []).append(one)
    found = []
    for number, outlined in enumerate(alike.values()):
        role = ROLE if number == 0 else f"{ROLE}-{number + 1}"
        state = _State(source, result, context, outlined).written(role, series_number + number)
        found.append((role, state))
    return found


class _State:
    """One presentation state while it is written."""

    def __init__(self, source: Source, result: Result, context: EncodeContext, outlined: Sequence[_Marked]) -> None:
        self._source, self._result, self._context, self._outlined = source, result, context, outlined
        first = source.planes[outlined[0][2]]
        self._rescale = first.slope, first.intercept
        self._segments = list(dict.fromkeys(one[1] for one in outlined))

    def written(self, role: str, series_number: int) -> Dataset:
        context, header = self._context, self._source.headers[0]
        for one in self._source.headers:
            require_identity(one, context, spatial=False)
        layers = [self._layer(number, one) for number, one in enumerate(self._segments, 1)]
        built = GrayscaleSoftcopyPresentationState(
            referenced_images=[_cited(one) for one in self._covered()],
            series_instance_uid=context.series_uid(role),
            series_number=series_number,
            sop_instance_uid=context.instance_uid(role, 0),
            instance_number=1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=context.algorithm.name,
            software_versions=context.algorithm.version,
            device_serial_number=context.device_serial,
            content_label="AI OUTLINES",
            content_description=cut(f"Outlines by {context.algorithm.name}, research use only", MAX_LO),
            graphic_layers=layers,
            graphic_annotations=[self._annotation(one, layers[self._segments.index(one[1])]) for one in self._outlined],
            modality_lut_transformation=self._modality_lut(),
            voi_lut_transformations=[self._window()],
            presentation_lut_transformation=PresentationLUTTransformation(
                "INVERSE" if header.get("PhotometricInterpretation") == "MONOCHROME1" else "IDENTITY"
            ),
            specific_character_set="ISO_IR 192",
        )
        ds = Dataset()
        ds.update(built)
        self._settle(ds)
        envelop(ds, self._source, context, role=role, series_number=series_number, description=_LABEL)
        # Not the time of the call, and under the names that this IOD has.
        ds.PresentationCreationDate, ds.PresentationCreationTime = ds.ContentDate, ds.ContentTime
        del ds.ContentDate, ds.ContentTime
        return ds

    def _covered(self) -> list[Dataset]:
        """Headers of the images with this rescale."""
        numbers = {
            plane.header for plane in self._source.planes if (plane.slope, plane.intercept) == self._rescale
        }  # fmt: skip
        return [self._source.headers[number] for number in sorted(numbers)]

    def _layer(self, number: int, segment: Segment) -> GraphicLayer:
        colour = CIELabColor.from_rgb(*segment.colour)
        return GraphicLayer(f"AI {number}", order=number, description=segment.label, display_color=colour)

    def _annotation(self, one: _Marked, layer: GraphicLayer) -> GraphicAnnotation:
        """Closed POLYLINE around the largest part, and the segment's name beside it."""
        segmentation, segment, index, mask = one
        plane = self._source.planes[index]
        points = outline(mask)
        key = (segmentation.role, segment.key, ROLE, str(index))
        graphic = GraphicObject(
            GraphicTypeValues.POLYLINE,
            points,
            AnnotationUnitsValues.PIXEL,
            tracking_id=f"{tracking_id(self._context, segmentation.role, segment.key)} {ROLE} {index + 1}",
            tracking_uid=derive_uid(self._context.job_key, *key),
        )
        right = points[int(points[:, 0].argmax())]
        name = TextObject(
            f"{segment.label} (AI, research use only)",
            AnnotationUnitsValues.PIXEL,
            anchor_point=(float(right[0]), float(right[1])),
        )
        return GraphicAnnotation(
            [_cited(self._source.headers[plane.header])],
            layer,
            referenced_frame_number=plane.frame or None,
            graphic_objects=[graphic],
            text_objects=[name],
        )

    def _modality_lut(self) -> ModalityLUTTransformation | None:
        """The rescale of the images: without it a window in their units would be applied to stored values."""
        slope, intercept = self._rescale
        if (slope, intercept) == (1.0, 0.0):
            return None
        units = "HU" if self._source.images.units == HU else "US"
        return ModalityLUTTransformation(rescale_intercept=intercept, rescale_slope=slope, rescale_type=units)

    def _window(self) -> SoftcopyVOILUTTransformation:
        low, high = window(self._source, self._result, self._outlined[0][2])
        exact = VOILUTFunctionValues.LINEAR_EXACT if high - low <= _LEAST_WIDTH else None
        return SoftcopyVOILUTTransformation(
            window_center=[(low + high) / 2],
            window_width=[high - low],
            window_explanation=[_LABEL],  # of a bare string highdicom makes a value of every letter
            voi_lut_function=exact,
        )

    def _settle(self, ds: Dataset) -> None:
        """Show pixels in their real shape (highdicom makes them square), and name frames where not all are meant."""
        header, frame = self._source.headers[0], self._source.planes[0].frame
        measures = group_of(header, frame, "PixelMeasuresSequence") if frame else header
        for item in ds.DisplayedAreaSelectionSequence:
            item.pop("PresentationPixelAspectRatio", None)
            item["PresentationPixelSpacing"] = _spacing(measures)
        chosen: dict[str, list[str]] = {}
        for plane in self._source.planes:
            if plane.frame and (plane.slope, plane.intercept) == self._rescale:
                uid = str(self._source.headers[plane.header].SOPInstanceUID)
                chosen.setdefault(uid, []).append(str(plane.frame))
        for series in ds.ReferencedSeriesSequence:
            for image in series.ReferencedImageSequence:
                numbers = chosen.get(str(image.ReferencedSOPInstanceUID), [])
                if numbers and len(numbers) < len(self._source.planes):
                    image.ReferencedFrameNumber = sorted(numbers, key=int)


def _cited(header: Dataset) -> Dataset:
    """What highdicom needs to refer to an image from a presentation state."""
    ds = cited(header)
    ds.SamplesPerPixel = 1
    if header.get("NumberOfFrames"):
        ds["NumberOfFrames"] = header["NumberOfFrames"]
        ds.SharedFunctionalGroupsSequence = [Dataset()]  # where highdicom looks for a rescale if it is given none
    return ds


def _spacing(measures: Dataset) -> DataElement:
    """PresentationPixelSpacing: between rows and columns [mm], in the source's own digits."""
    tag = tag_for_keyword("PresentationPixelSpacing")
    assert tag is not None  # it is in the dictionary
    return DataElement(tag, "DS", measures.PixelSpacing)
