"""The last look at an image that was reconstructed from k-space: against its plane, and against the raw object."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from dicomnode.errors import EncodingError
from dicomnode.pipeline import ReconstructedPlane, Reconstruction

#: What writing a position as DS may cost [mm]; a radiologist's tolerance is a hundred times that.
POSITION_MM: Final = 1e-6
COSINE: Final = 1e-9
#: Largest phase, with what float32 makes of it [rad].
HALF_TURN: Final = math.pi * (1 + 1e-6)
#: Has no place in MR Image Storage, or would say something that is not so.
_FORBIDDEN: Final = ("RescaleSlope", "RescaleIntercept", "SourceImageSequence", "AcquisitionDate", "AcquisitionTime")


def check_plane(ds: Dataset, plane: ReconstructedPlane, made: Reconstruction) -> None:
    """Read ``ds`` as a viewer does and hold it against ``plane``.

    Raises
    ------
    EncodingError
        Names the object's UID and every fault.
    """
    faults = [*_geometry(ds, plane, made), *_pixels(ds, plane, made), *_marks(ds, made)]
    if faults:
        raise EncodingError(f"{ds.get('SOPInstanceUID')} would be wrong and was not sent: {'; '.join(faults)}")


def _geometry(ds: Dataset, plane: ReconstructedPlane, made: Reconstruction) -> Iterator[str]:
    def off(keyword: str, wanted: object, limit: float) -> bool:
        read = np.asarray([float(str(value)) for value in ds[keyword].value])
        return bool(np.abs(read - np.asarray(wanted)).max() > limit)

    if off("ImagePositionPatient", plane.position, POSITION_MM):
        yield "ImagePositionPatient is not the plane's"
    if off("ImageOrientationPatient", plane.orientation, COSINE):
        yield "ImageOrientationPatient is not the plane's"
    if off("PixelSpacing", made.pixel_spacing, POSITION_MM):
        yield "PixelSpacing is not the reconstruction's"
    if not ds.get("FrameOfReferenceUID") or not ds.get("PatientPosition"):
        yield "FrameOfReferenceUID or PatientPosition is absent"


def _pixels(ds: Dataset, plane: ReconstructedPlane, made: Reconstruction) -> Iterator[str]:
    if (ds.Rows, ds.Columns) != plane.array.shape or len(ds.PixelData) != 2 * plane.array.size:
        yield f"Rows, Columns or the length of PixelData are not those of a plane of {plane.array.shape}"
        return
    kind = "<i2" if ds.PixelRepresentation else "<u2"
    stored = np.frombuffer(ds.PixelData, kind).reshape(plane.array.shape)
    slope = float(ds.RealWorldValueMappingSequence[0].RealWorldValueSlope)
    yield from pixel_faults(stored, plane, slope, made.component)


def pixel_faults(stored: NDArray[np.integer], plane: ReconstructedPlane, slope: float, component: str) -> Iterator[str]:
    """What is wrong with the ``stored`` values of ``plane``, of which ``slope`` makes values again."""
    kind = np.iinfo(stored.dtype)
    inside = (stored > kind.min) & (stored < kind.max)
    if (np.abs(stored * slope - plane.array)[inside] > 0.501 * slope + 1e-6 * np.abs(plane.array[inside])).any():
        yield "stored values and RealWorldValueMappingSequence do not give the plane back"
    if component == "P" and np.abs(plane.array).max() > HALF_TURN:
        yield "its phases go beyond half a turn: they are said to be in radians"
    if component == "M" and plane.array.max() > 0 and not stored.any():
        yield "every stored value is 0: the scale is too small"


def _marks(ds: Dataset, made: Reconstruction) -> Iterator[str]:
    yield from (f"{keyword} must not be there" for keyword in _FORBIDDEN if keyword in ds)
    wanted = ["DERIVED" if made.learned else "ORIGINAL", "PRIMARY", made.component]
    if list(ds.ImageType) != wanted:
        yield f"ImageType is not {wanted}"
    if not ds.get("DerivationDescription"):
        yield "DerivationDescription does not say how it was made"
    if not ds.get("SourceInstanceSequence"):
        yield "it does not say what it was made from"
