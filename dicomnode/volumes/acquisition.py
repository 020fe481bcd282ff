"""The acquisition attributes a pipeline may see: an allow-list, because everything else may identify the patient."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from pydicom import Dataset
from pydicom.multival import MultiValue

from dicomnode.pipeline import Attribute
from dicomnode.volumes import frames

#: Read from the plane itself or, in multi-frame objects, from its functional groups.
ALLOWED: Final = (
    "Modality",
    "SOPClassUID",
    "ImageType",
    "BurnedInAnnotation",
    "RescaleType",
    "MultienergyCTAcquisition",
    "ConvolutionKernel",
    "KVP",
    "SliceThickness",
    "BodyPartExamined",
    "FilterType",
    "PhotometricInterpretation",
    "PatientPosition",
    "PatientAge",
    "SeriesDescription",
    "ProtocolName",
    "StudyDescription",
    "Manufacturer",
    "ManufacturerModelName",
    "GantryDetectorTilt",
    "ContrastBolusAgent",
    "EchoTime",
    "RepetitionTime",
    "FlipAngle",
    "MagneticFieldStrength",
    "ScanOptions",
    "LossyImageCompression",
)
#: What else a pipeline on a cine sees: indices of the heart are by body surface and sex, and need the heart rate.
CINE: Final = (
    *ALLOWED,
    "PatientSize",
    "PatientWeight",
    "PatientSex",
    "HeartRate",
    "NominalInterval",
    "CardiacNumberOfImages",
    "BeatRejectionFlag",
    "SequenceName",
)
#: A single plane with one of these values speaks for the series: gates must not miss it.
_TELLING: Final = {
    "ImageType": ("LOCALIZER", "DERIVED", "SECONDARY"),
    "BurnedInAnnotation": ("YES",),
    "MultienergyCTAcquisition": ("YES",),
    "LossyImageCompression": ("01",),
}
#: Always a tuple, so that a gate can ask for membership.
_TUPLES: Final = frozenset({"ImageType"})


def attributes(planes: Iterable[tuple[Dataset, int]], allowed: Sequence[str] = ALLOWED) -> Mapping[str, Attribute]:
    """Allow-listed attributes of plane 0; where planes differ in a telling attribute, the plane that tells.

    Parameters
    ----------
    planes
        Header and frame number of each plane, in plane order.
    allowed
        Keywords that may be seen.
    """
    listed = list(planes)
    found: dict[str, Attribute] = {}
    for keyword in allowed:
        values = [_attribute(frames.find(*listed[0], keyword), keyword)]
        if keyword in _TELLING:
            values += [_attribute(frames.find(*plane, keyword), keyword) for plane in listed[1:]]
        telling = [value for value in values if value is not None and _tells(keyword, value)]
        value = telling[0] if telling else values[0]
        if value is not None:
            found[keyword] = value
    age = None if "PatientAge" in found else _age(*listed[0])
    if age is not None:
        found["PatientAge"] = age
    return MappingProxyType(found)


def _age(header: Dataset, frame: int) -> str | None:
    """Full years between birth and study as an AS: children must be known for such where PatientAge is absent."""
    dates = [str(frames.find(header, frame, keyword) or "") for keyword in ("PatientBirthDate", "StudyDate")]
    if not all(len(date) == 8 and date.isdecimal() for date in dates):
        return None
    born, studied = (int(date) for date in dates)
    years = (studied - born) // 10_000
    return f"{years:03d}Y" if 0 <= years < 150 else None


def _tells(keyword: str, value: Attribute) -> bool:
    return bool(set(_TELLING.get(keyword, ())) & set(value if isinstance(value, tuple) else (value,)))


def _attribute(value: object, keyword: str) -> Attribute | None:
    if value is None:
        return None
    if isinstance(value, MultiValue | list | tuple):
        parts = [_scalar(part) for part in value]
        if all(isinstance(part, float) for part in parts):
            return tuple(part for part in parts if isinstance(part, float))
        return tuple(str(part) for part in parts)
    scalar = _scalar(value)
    return (str(scalar),) if keyword in _TUPLES else scalar


def _scalar(value: object) -> str | float:
    return float(value) if isinstance(value, int | float) else str(value)
