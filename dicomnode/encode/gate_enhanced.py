"""The last look at a multi-frame object of reconstructed planes: every frame against its plane, as viewers read it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from pydicom import Dataset

from dicomnode.encode.gate_mr import COSINE, POSITION_MM, pixel_faults
from dicomnode.errors import EncodingError
from dicomnode.pipeline import ReconstructedPlane, Reconstruction

#: Of every frame: its own or shared, never both and never neither (PS3.3 A.36.2.4, table A.36-2).
_MANDATORY: Final = (
    "PixelMeasuresSequence",
    "FrameContentSequence",
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "FrameAnatomySequence",
    "MRImageFrameTypeSequence",
    "PixelValueTransformationSequence",
    "FrameVOILUTSequence",
    "RealWorldValueMappingSequence",
)
#: Say of what all frames are, and must say the same at the top.
_REPEATED: Final = ("PixelPresentation", "VolumetricProperties", "ComplexImageComponent", "AcquisitionContrast")
#: Faults of frames that are told.
_TOLD: Final = 5


def check_frames(ds: Dataset, planes: Sequence[ReconstructedPlane], made: Reconstruction) -> None:
    """Read ``ds`` as a viewer does and hold it against ``planes``, frame by frame.

    Raises
    ------
    EncodingError
        Names the object's UID and the faults.
    """
    faults = list(_object(ds, planes, made))
    if not faults:
        frames = [f"frame {number} {fault}" for number, fault in _frames(ds, planes, made)]
        faults = frames[:_TOLD] + ([f"and {len(frames) - _TOLD} more"] if len(frames) > _TOLD else [])
    if faults:
        raise EncodingError(f"{ds.get('SOPInstanceUID')} would be wrong and was not sent: {'; '.join(faults)}")


def _object(ds: Dataset, planes: Sequence[ReconstructedPlane], made: Reconstruction) -> Iterator[str]:
    """What concerns the object as a whole."""
    shape, count = planes[0].array.shape, len(planes)
    if int(ds.NumberOfFrames) != count or len(ds.PerFrameFunctionalGroupsSequence) != count:
        yield f"it has {ds.NumberOfFrames} frames, and {len(ds.PerFrameFunctionalGroupsSequence)} groups, of {count}"
    if (ds.Rows, ds.Columns) != shape or len(ds.PixelData) != 2 * count * shape[0] * shape[1]:
        yield f"Rows, Columns or the length of PixelData are not those of {count} planes of {shape}"
    if not ds.get("FrameOfReferenceUID") or not ds.get("PatientPosition"):
        yield "FrameOfReferenceUID or PatientPosition is absent"
    if not ds.get("ImageComments"):
        yield "ImageComments does not say how it was made"
    if not ds.get("ReferencedRawDataSequence"):
        yield "it does not say what it was made from"
    if list(ds.ImageType)[2:3] != [made.component]:
        yield f"ImageType does not say {made.component}"
    contents = [group.FrameContentSequence[0] for group in ds.PerFrameFunctionalGroupsSequence]
    indices = [tuple(content.DimensionIndexValues) for content in contents]
    if len(set(indices)) != count or {len(one) for one in indices} != {len(ds.DimensionIndexSequence)}:
        yield "DimensionIndexValues do not tell every frame apart"


def _frames(ds: Dataset, planes: Sequence[ReconstructedPlane], made: Reconstruction) -> Iterator[tuple[int, str]]:
    shared = ds.SharedFunctionalGroupsSequence[0]
    kind = "<i2" if ds.PixelRepresentation else "<u2"
    stored = np.frombuffer(ds.PixelData, kind).reshape(len(planes), ds.Rows, ds.Columns)
    for index, (own, plane) in enumerate(zip(ds.PerFrameFunctionalGroupsSequence, planes, strict=True)):
        wrong = [keyword for keyword in _MANDATORY if (keyword in own) == (keyword in shared)]
        yield from ((index + 1, f"has {keyword} twice or not at all") for keyword in wrong)
        if wrong:
            continue
        values = {item.keyword: item.value for group in (shared, own) for one in group if one.value
                  for item in one.value[0]}  # fmt: skip
        yield from ((index + 1, fault) for fault in _geometry(values, plane, made))
        slope = float(values["RealWorldValueSlope"])
        yield from ((index + 1, fault) for fault in pixel_faults(stored[index], plane, slope, made.component))
        if values["FrameType"] != ds.ImageType or any(values[keyword] != ds[keyword].value for keyword in _REPEATED):
            yield index + 1, "is said to be of another type than the object"


def _geometry(values: dict[str, object], plane: ReconstructedPlane, made: Reconstruction) -> Iterator[str]:
    def off(keyword: str, wanted: object, limit: float) -> bool:
        read = np.asarray([float(str(value)) for value in values[keyword]])  # type: ignore[attr-defined]
        return bool(np.abs(read - np.asarray(wanted)).max() > limit)

    if off("ImagePositionPatient", plane.position, POSITION_MM):
        yield "ImagePositionPatient is not the plane's"
    if off("ImageOrientationPatient", plane.orientation, COSINE):
        yield "ImageOrientationPatient is not the plane's"
    if off("PixelSpacing", made.pixel_spacing, POSITION_MM):
        yield "PixelSpacing is not the reconstruction's"
