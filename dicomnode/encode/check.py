"""The last look at an object before it leaves: what validators let pass and a radiologist would not."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from pydicom import Dataset
from pydicom.dataelem import DataElement
from pydicom.multival import MultiValue

from dicomnode.dicom import valid_uid
from dicomnode.encode.identity import repeated
from dicomnode.errors import EncodingError

#: Written as the source wrote them, character by character.
_GEOMETRY: Final = (
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    "GantryDetectorTilt",
    "PatientPosition",
    "FrameOfReferenceUID",
    "Rows",
    "Columns",
    "NumberOfFrames",
)
#: Functional groups that hold geometry.
_GEOMETRY_GROUPS: Final = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
#: The same values as in the source, or the object belongs to somebody or something else.
_SAME: Final = (
    "SOPClassUID",
    "StudyInstanceUID",
    "PatientID",
    "PatientName",
    "IssuerOfPatientID",
    "AccessionNumber",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
    "RescaleSlope",
    "RescaleIntercept",
    "LossyImageCompression",
)
_LENGTHS: Final = {"SeriesDescription": 64, "ManufacturerModelName": 64, "DerivationDescription": 1024}
_JUDGED: Final = frozenset({"UI", "DS", "FD", "FL"})


def check(ds: Dataset, source: Dataset) -> None:
    """Check a derived image against the header it was made from.

    Raises
    ------
    EncodingError
        Names the object's UID and every fault.
    """
    faults = [*_marking(ds), *_values(ds, repeated([source])), *_against(ds, source)]
    size = ds.Rows * ds.Columns * int(ds.get("NumberOfFrames") or 1) * ds.BitsAllocated // 8
    if len(ds.PixelData) != size + size % 2:
        faults.append(f"PixelData has {len(ds.PixelData)} bytes, not {size}")
    if faults:
        raise EncodingError(f"{ds.get('SOPInstanceUID')} would be wrong and was not sent: {'; '.join(faults)}")


def _marking(ds: Dataset) -> Iterator[str]:
    if _text(ds, "ImageType").split("\\")[0] != "DERIVED":
        yield "ImageType does not say DERIVED"
    if ds.get("ContentQualification") != "RESEARCH":
        yield "ContentQualification does not say RESEARCH"
    derivations = [ds] if "SourceImageSequence" in ds else _frame_derivations(ds)
    if not derivations:
        yield "no SourceImageSequence"
    for item in derivations:
        if not item.get("DerivationCodeSequence"):
            yield "DerivationCodeSequence absent"
        for image in item.get("SourceImageSequence") or ():
            if not image.get("PurposeOfReferenceCodeSequence"):
                yield "PurposeOfReferenceCodeSequence absent"
    for keyword, length in _LENGTHS.items():
        if len(str(ds.get(keyword) or "")) > length:
            yield f"{keyword} longer than {length} characters"


def _frame_derivations(ds: Dataset) -> list[Dataset]:
    groups = ds.get("PerFrameFunctionalGroupsSequence") or ()
    found = [item for group in groups for item in group.get("DerivationImageSequence") or ()]
    return found if len(found) == len(groups) else []


def _values(ds: Dataset, accepted: frozenset[str]) -> Iterator[str]:
    """Numbers that are not finite and UIDs that are neither valid nor the source's own, at any depth."""
    for element in _elements(ds):
        if element.is_empty:
            continue
        values = element.value if isinstance(element.value, MultiValue | list) else [element.value]
        if element.VR == "UI":
            if not all(valid_uid(str(value)) or str(value) in accepted for value in values):
                yield f"{element.keyword} is not a valid UID"
        elif not all(math.isfinite(float(value)) for value in values if value not in (None, "")):
            yield f"{element.keyword} is not finite"


def _against(ds: Dataset, source: Dataset) -> Iterator[str]:
    for keyword in (*_GEOMETRY, *_SAME):
        if _text(ds, keyword) != _text(source, keyword):
            yield f"{keyword} is not the source's"
    for number, (group, other) in enumerate(zip(_groups(ds), _groups(source), strict=True)):
        if any(group.get(keyword) != other.get(keyword) for keyword in _GEOMETRY_GROUPS):
            yield f"geometry of functional group {number} is not the source's"
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        if ds.get(keyword) == source.get(keyword):
            yield f"{keyword} is still the source's"


def _groups(ds: Dataset) -> list[Dataset]:
    """Shared, then per-frame functional groups."""
    shared, per_frame = ds.get("SharedFunctionalGroupsSequence"), ds.get("PerFrameFunctionalGroupsSequence")
    return [*(shared or ()), *(per_frame or ())]


def _elements(ds: Dataset) -> Iterator[DataElement]:
    """Elements of the VRs that `_values` judges."""
    for element in ds:
        if element.VR == "SQ":
            for item in element.value:
                yield from _elements(item)
        elif element.VR in _JUDGED:
            yield element


def _text(ds: Dataset, keyword: str) -> str:
    """Value as it stands in the file: a DS is its original string."""
    value = ds.get(keyword)
    if value is None:
        return ""
    return "\\".join(str(part) for part in value) if isinstance(value, MultiValue | list) else str(value)
