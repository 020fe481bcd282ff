"""Look up an attribute of one plane, wherever its SOP class keeps it: at the top level or in a functional group."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

from pydicom import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    MRImageStorage,
)

from dicomnode.errors import MissingAttribute, UndecodablePixels
from dicomnode.volumes.geometry import Placement

#: Classes whose stored values must have a modality LUT to mean anything.
CT_CLASSES: Final = frozenset({CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage})
SINGLE_FRAME: Final = frozenset({CTImageStorage, MRImageStorage})
MULTI_FRAME: Final = frozenset(
    {
        EnhancedCTImageStorage,
        EnhancedMRImageStorage,
        LegacyConvertedEnhancedCTImageStorage,
        LegacyConvertedEnhancedMRImageStorage,
    }
)

#: What can tell two planes at one position apart, most telling first.
_PHASE: Final = (
    "AcquisitionNumber",
    "FrameAcquisitionNumber",
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "TriggerTime",
    "NominalCardiacTriggerDelayTime",
    "EchoNumbers",
    "EchoTime",
    "EffectiveEchoTime",
    "DiffusionBValue",
    "ConvolutionKernel",
    "ImageType",
    "FrameType",
    "AcquisitionTime",
    "ContentTime",
)


def find(header: Dataset, frame: int, keyword: str) -> Any:  # noqa: ANN401 - any element's value
    """Value of ``keyword`` for a frame (counted from 1; 0 for a single-frame object), None if absent or empty."""
    for item in (*_groups(header, frame), header):
        value = item.get(keyword)
        if value is not None and value != "":
            return value
    return None


def _groups(header: Dataset, frame: int) -> Iterator[Dataset]:
    """Functional group items of ``frame``: its own first, then the shared ones (PS3.3 C.7.6.16)."""
    if frame == 0:
        return
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or ()
    shared = header.get("SharedFunctionalGroupsSequence") or ()
    for groups in (*per_frame[frame - 1 : frame], *shared[:1]):
        for element in groups:
            if element.VR == "SQ" and element.value:
                yield element.value[0]


def label(header: Dataset, frame: int) -> str:
    """SOP Instance UID and frame number, for messages."""
    return f"{header.SOPInstanceUID} frame {frame}" if frame else str(header.SOPInstanceUID)


def placement(header: Dataset, frame: int) -> Placement:
    """Geometry of one plane.

    Raises
    ------
    MissingAttribute
        A position, orientation or spacing is absent or not made of finite numbers.
    """
    spacing = _numbers(header, frame, "PixelSpacing", 2)
    if min(spacing) <= 0:
        raise MissingAttribute(f"PixelSpacing of {label(header, frame)} is {spacing}: must be greater than 0")
    return Placement(
        label=label(header, frame),
        position=_numbers(header, frame, "ImagePositionPatient", 3),
        orientation=_numbers(header, frame, "ImageOrientationPatient", 6),
        spacing=spacing,
        rows=int(header.Rows),
        columns=int(header.Columns),
        frame_of_reference=str(header.get("FrameOfReferenceUID") or ""),
    )


def phase(header: Dataset, frame: int) -> dict[str, str]:
    """What can tell this plane apart from others at its position, by keyword."""
    return {keyword: str(value) for keyword in _PHASE if (value := find(header, frame, keyword)) is not None}


def rescale(header: Dataset, frame: int) -> tuple[float, float]:
    """RescaleSlope and RescaleIntercept of one plane; (1, 0) for an MR plane that has none.

    Raises
    ------
    MissingAttribute
        A CT plane without both, or a value that is 0, multiple, or not a number: Hounsfield units are never assumed.
    UndecodablePixels
        The modality LUT is a table, which CT and MR must not have.
    """
    if find(header, frame, "ModalityLUTSequence"):
        raise UndecodablePixels(f"{label(header, frame)} has a ModalityLUTSequence, which this node does not apply")
    computed = header.SOPClassUID in CT_CLASSES
    slope = _rescale_value(header, frame, "RescaleSlope", None if computed else 1.0)
    intercept = _rescale_value(header, frame, "RescaleIntercept", None if computed else 0.0)
    if slope == 0:
        raise MissingAttribute(f"RescaleSlope of {label(header, frame)} is 0: stored values have no meaning")
    return slope, intercept


def _rescale_value(header: Dataset, frame: int, keyword: str, default: float | None) -> float:
    value = find(header, frame, keyword)
    if value is None and default is not None and not _present(header, frame, keyword):
        return default
    if value is None:
        raise MissingAttribute(
            f"{keyword} of {label(header, frame)} is absent or not a number: Hounsfield units are never assumed"
        )
    if isinstance(value, MultiValue):
        raise MissingAttribute(f"{keyword} of {label(header, frame)} has {len(value)} values: which one holds?")
    return float(value)


def _present(header: Dataset, frame: int, keyword: str) -> bool:
    """Whether the attribute is there, though empty (the normaliser empties what is not a number)."""
    return any(keyword in item for item in (*_groups(header, frame), header))


def _numbers(header: Dataset, frame: int, keyword: str, count: int) -> tuple[float, ...]:
    value = find(header, frame, keyword)
    if value is None:
        raise MissingAttribute(f"{keyword} of {label(header, frame)} is absent or not made of numbers")
    values = list(value) if isinstance(value, MultiValue | list) else [value]
    if len(values) != count or any(part in (None, "") or not math.isfinite(float(part)) for part in values):
        raise MissingAttribute(f"{keyword} of {label(header, frame)} does not have {count} finite values")
    return tuple(float(part) for part in values)
