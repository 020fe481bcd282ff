"""Functional groups of frames reconstructed from k-space (PS3.3 A.36.2.4): what is known of them, and no guess."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from pydicom import Dataset

from dicomnode.encode import anatomy
from dicomnode.encode.acquired import at, numbers
from dicomnode.encode.common import cut
from dicomnode.encode.enhanced_frames import Dimensions, Place
from dicomnode.encode.mr_series import Series
from dicomnode.pipeline import ReconstructedPlane, Reconstruction

_COMPONENTS: Final = {"M": "MAGNITUDE", "P": "PHASE", "R": "REAL", "I": "IMAGINARY"}
_MAX_LT: Final = 10240


def frame_type(made: Reconstruction) -> dict[str, Any]:
    """The Common CT/MR and the MR Image Description macros, by keyword."""
    return {
        # Value 3 as in single-frame images, so that hanging rules for these hold for those.
        "FrameType": ["DERIVED", "PRIMARY", made.component, "NONE"],
        "PixelPresentation": "MONOCHROME",
        "VolumetricProperties": "VOLUME",
        "VolumeBasedCalculationTechnique": "NONE",
        "ComplexImageComponent": _COMPONENTS[made.component],
        "AcquisitionContrast": "UNKNOWN",
    }


def shared(series: Series) -> Dataset:
    """What all frames have in common."""
    made, group = series.made, Dataset()
    measures = Dataset()
    measures.PixelSpacing = numbers(made.pixel_spacing)
    measures.SliceThickness = numbers([made.thickness])[0]
    spacing = series.spacing_between_slices()
    if spacing is not None:
        measures.SpacingBetweenSlices = numbers([spacing])[0]
    group.PixelMeasuresSequence = [measures]
    group.FrameAnatomySequence = [_anatomy(series)]
    group.PixelValueTransformationSequence = [_item(RescaleIntercept="0", RescaleSlope="1", RescaleType="US")]
    center, width = numbers(series.window)
    group.FrameVOILUTSequence = [_item(WindowCenter=center, WindowWidth=width)]
    group.RealWorldValueMappingSequence = [series.mapping()]
    group.MRImageFrameTypeSequence = [_item(**frame_type(made))]
    averages = series.header.encodings[0].limits.get("average")
    if averages is not None:
        group.MRAveragesSequence = [_item(NumberOfAverages=float(averages.count))]
    return group


def of_frame(series: Series, plane: ReconstructedPlane, dimensions: Dimensions, remarks: str) -> Dataset:
    """What is this frame's own."""
    group, place = Dataset(), dimensions.place(plane)
    group.FrameContentSequence = [_content(plane, place, remarks)]
    group.PlanePositionSequence = [_item(ImagePositionPatient=numbers(np.asarray(plane.position)))]
    group.PlaneOrientationSequence = [_item(ImageOrientationPatient=numbers(np.asarray(plane.orientation)))]
    echo = at(series.header, "TE", plane)
    if echo is not None:
        group.MREchoSequence = [_item(EffectiveEchoTime=float(echo))]
    if dimensions.gated:
        assert plane.trigger_time is not None  # of all planes, or they are not gated
        group.CardiacSynchronizationSequence = [_item(NominalCardiacTriggerDelayTime=float(plane.trigger_time))]
    return group


def _content(plane: ReconstructedPlane, place: Place, remarks: str) -> Dataset:
    item = _item(
        FrameAcquisitionNumber=plane.repetition + 1,
        StackID=str(place.stack),
        InStackPositionNumber=place.in_stack,
        DimensionIndexValues=list(place.indices),
    )
    if place.time:
        item.TemporalPositionIndex = place.time
    if place.label:
        item.FrameLabel = place.label
    if remarks:
        item.FrameComments = cut(remarks, _MAX_LT)
    return item


def _anatomy(series: Series) -> Dataset:
    header = series.source.headers[0]
    part = header.get("BodyPartExamined") or series.header.acquisition.get("BodyPartExamined")
    return anatomy.of_frames(str(part or ""), str(header.get("Laterality") or ""))


def _item(**values: Any) -> Dataset:  # noqa: ANN401 - attributes of any VR
    ds = Dataset()
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds
