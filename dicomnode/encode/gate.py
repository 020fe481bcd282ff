"""The conformance gate: what this job wrote is looked at as a whole, before anything of it is queued for sending.

Validators pass what a radiologist would not (a mask half a slice off, another patient's name, a report on an object
that does not exist), so the gate compares every object with the source, with the result and with the others.
`encode.check` has looked at each derived image as it was made; here only what takes the others is added to that.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from pydicom import Dataset
from pydicom.dataelem import DataElement
from pydicom.multival import MultiValue

from dicomnode.dicom import valid_uid
from dicomnode.encode.cine import counted_through
from dicomnode.encode.common import MAX_LO, strict
from dicomnode.encode.gate_pm import MAPS, map_faults
from dicomnode.encode.gate_pr import PRESENTATIONS, presentation_faults
from dicomnode.encode.gate_seg import SEGMENTATIONS, seg_faults
from dicomnode.encode.gate_sr import KEY_OBJECTS, REPORTS, key_object_faults, report_faults
from dicomnode.encode.gate_tables import missing
from dicomnode.encode.identity import repeated
from dicomnode.encode.source import RawSource, Source
from dicomnode.errors import EncodingError
from dicomnode.pipeline import Result

#: The same in every object, or it belongs to somebody else.
_IDENTITY: Final = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
)
#: Sequences whose references lead out of the job: to orders, to earlier results.
_ELSEWHERE: Final = frozenset(
    {
        "PredecessorDocumentsSequence",
        "ReferencedStudySequence",
        "ReferencedPatientSequence",
        "ReferencedRequestSequence",
        "RequestAttributesSequence",
        "ContributingEquipmentSequence",
    }
)
#: Where a derived image refers to what it was made from; its other references are copies of the source's.
_OF_IMAGES: Final = ("SourceImageSequence", "ReferencedSeriesSequence", "SourceImageEvidenceSequence")
_NUMBERS: Final = frozenset({"DS", "FD", "FL"})
#: Without these an object cannot even be looked at.
_NEEDED: Final = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
#: Says that an algorithm made it, and which.
_EQUIPMENT: Final = (
    "Manufacturer",
    "ManufacturerModelName",
    "SoftwareVersions",
    "DeviceSerialNumber",
    "ContributingEquipmentSequence",
)
#: Where the value of a code may stand (PS3.3 8.8).
_CODE_VALUES: Final = ("CodeValue", "LongCodeValue", "URNCodeValue")
#: Faults of one object that are told.
_TOLD: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """Something that may be referred to."""

    sop_class: str
    rows: int
    columns: int
    frames: int
    segments: frozenset[int]


class _Faults:
    """Faults by object."""

    def __init__(self) -> None:
        self._found: dict[str, list[str]] = {}

    def add(self, ds: Dataset, faults: Iterator[str]) -> None:
        for fault in faults:
            self._found.setdefault(f"{ds.get('Modality')} {ds.get('SOPInstanceUID')}", []).append(fault)

    def settle(self) -> None:
        if not self._found:
            return
        told = [
            f"{name} would be wrong: {'; '.join(faults[:_TOLD])}"
            + (f"; and {len(faults) - _TOLD} more" if len(faults) > _TOLD else "")
            for name, faults in self._found.items()
        ]
        raise EncodingError(f"the conformance gate lets nothing of this result out. {' | '.join(told)}")


def check_objects(objects: Sequence[Dataset], source: Source | RawSource, result: Result) -> None:
    """Look at all objects of one job together: what refers to another object needs that one among ``objects``.

    Raises
    ------
    EncodingError
        Names every object that would be wrong, by its UID, and its faults.
    """
    faults = _Faults()
    for ds in objects:
        faults.add(ds, (f"{keyword} is absent" for keyword in _NEEDED if not ds.get(keyword)))
    faults.settle()
    targets = {str(header.SOPInstanceUID): _target(header) for header in source.headers}
    of_source = frozenset(targets)
    targets |= {str(ds.SOPInstanceUID): _target(ds) for ds in objects}
    headers = {str(header.SOPInstanceUID): header for header in source.headers}
    instances = Counter(str(ds.SOPInstanceUID) for ds in objects)
    alone = Counter(str(ds.SeriesInstanceUID) for ds in objects if not _is_derived(ds, source))
    seen: set[str] = set()
    accepted = repeated(source.headers)  # the encoders have refused them where the site does not accept such
    for ds in objects:
        faults.add(ds, _uid_faults(ds, source, instances, of_source))
        faults.add(ds, _mark_faults(ds, reconstructed=isinstance(source, RawSource)))
        if _is_derived(ds, source):
            faults.add(ds, _image_faults(ds, headers, targets, first=str(ds.SeriesInstanceUID) not in seen))
            seen.add(str(ds.SeriesInstanceUID))
            continue
        if alone[str(ds.SeriesInstanceUID)] > 1 and not _is_page(ds):
            faults.add(ds, iter(["it shares its series with another object: viewers show the last one only"]))
        faults.add(ds, _identity_faults(ds, source.headers[0]))
        faults.add(ds, missing(ds))
        faults.add(ds, _walk(ds, targets, accepted))
        faults.add(ds, _own_faults(ds, source, result, targets))
    faults.settle()


def _is_derived(ds: Dataset, source: Source | RawSource) -> bool:
    return bool(ds.SOPClassUID == source.headers[0].SOPClassUID)


def _is_page(ds: Dataset) -> bool:
    """Whether the object is an image that may have others of its kind in its series (secondary capture)."""
    return "PixelData" in ds and ds.SOPClassUID not in SEGMENTATIONS


def _own_faults(ds: Dataset, source: Source | RawSource, result: Result, targets: dict[str, _Target]) -> Iterator[str]:
    """What only objects of this kind can do wrong."""
    if ds.SOPClassUID in SEGMENTATIONS and not isinstance(source, RawSource):
        yield from seg_faults(ds, source, result)
    elif ds.SOPClassUID in MAPS and not isinstance(source, RawSource):
        yield from map_faults(ds, source, result)
    elif ds.SOPClassUID in PRESENTATIONS and not isinstance(source, RawSource):
        yield from presentation_faults(ds, source, counted_through(source, result))
    elif ds.SOPClassUID in REPORTS:
        yield from report_faults(ds, {uid: (target.rows, target.columns) for uid, target in targets.items()})
    elif ds.SOPClassUID == KEY_OBJECTS:
        yield from key_object_faults(ds)


def _target(ds: Dataset) -> _Target:
    return _Target(
        sop_class=str(ds.SOPClassUID),
        rows=int(ds.get("Rows") or 0),
        columns=int(ds.get("Columns") or 0),
        frames=int(ds.get("NumberOfFrames") or 1),
        segments=frozenset(int(item.get("SegmentNumber") or 0) for item in ds.get("SegmentSequence") or ()),
    )


def _uid_faults(
    ds: Dataset, source: Source | RawSource, instances: Counter[str], of_source: frozenset[str]
) -> Iterator[str]:
    uid, series = str(ds.SOPInstanceUID), str(ds.SeriesInstanceUID)
    if instances[uid] > 1:
        yield f"SOPInstanceUID is used {instances[uid]} times"
    if uid in of_source:
        yield "SOPInstanceUID is the source's"
    if any(series == header.SeriesInstanceUID for header in source.headers):
        yield "SeriesInstanceUID is the source's"
    meta = ds.file_meta
    if meta.get("MediaStorageSOPInstanceUID") != uid or meta.get("MediaStorageSOPClassUID") != ds.SOPClassUID:
        yield "the file meta information names another object"


def _mark_faults(ds: Dataset, *, reconstructed: bool) -> Iterator[str]:
    """What every object says of itself."""
    if ds.get("SpecificCharacterSet") != "ISO_IR 192":
        yield "SpecificCharacterSet is not ISO_IR 192: names would be read wrongly"
    yield from (f"{keyword} does not say who made it" for keyword in _EQUIPMENT if not ds.get(keyword))
    if ds.get("ContentQualification") != "RESEARCH":
        yield "ContentQualification does not say RESEARCH"
    description = str(ds.get("SeriesDescription") or "")
    if "RUO" not in description or len(description) > MAX_LO:
        yield f"SeriesDescription does not say RUO in {MAX_LO} characters"
    # Pixels computed from k-space are original ones (PS3.3 C.7.6.1.1.2); `encode.gate_mr` knows which must say DERIVED.
    if "PixelData" in ds and not reconstructed and _values(ds.get("ImageType"))[:1] != ["DERIVED"]:
        yield "ImageType does not say DERIVED"


def _identity_faults(ds: Dataset, header: Dataset) -> Iterator[str]:
    for keyword in _IDENTITY:
        allowed = strict(header[keyword]) if header.get(keyword) not in (None, "") else None
        expected = "" if allowed is None or allowed.value is None else str(allowed.value)
        if str(ds.get(keyword) or "") != expected:
            yield f"{keyword} is not the source's"


def _image_faults(
    ds: Dataset, headers: dict[str, Dataset], targets: dict[str, _Target], *, first: bool
) -> Iterator[str]:
    """A derived image: tables once per series, what it was made from for each."""
    groups = [
        ds,
        *(ds.get("SharedFunctionalGroupsSequence") or ()),
        *(ds.get("PerFrameFunctionalGroupsSequence") or ()),
    ]
    derived = [item for group in groups[1:] for item in group.get("DerivationImageSequence") or ()]
    items = [item for keyword in _OF_IMAGES for item in ds.get(keyword) or ()]
    items += [image for item in derived for image in item.get("SourceImageSequence") or ()]
    named = [uid for item in items for uid in _named(item)]
    if not named:
        yield "it does not say what it was made from"
    for uid, sop_class in named:
        yield from _target_faults(uid, sop_class, targets)
    if first:
        origin = next((headers[uid] for uid, _ in named if uid in headers), None)
        yield from missing(ds, origin if origin is not None else next(iter(headers.values())))


def _named(item: Dataset) -> Iterator[tuple[str, str]]:
    """(SOP Instance UID, SOP Class UID) of an item and of the items below it, two levels of series and instances."""
    if "ReferencedSOPInstanceUID" in item:
        yield str(item.ReferencedSOPInstanceUID), str(item.get("ReferencedSOPClassUID"))
    for keyword in ("ReferencedSeriesSequence", "ReferencedInstanceSequence", "ReferencedSOPSequence"):
        for child in item.get(keyword) or ():
            yield from _named(child)


def _target_faults(uid: str, sop_class: str, targets: dict[str, _Target]) -> Iterator[str]:
    target = targets.get(uid)
    if target is None:
        yield f"refers to {uid}, which is neither of the source nor of this result"
    elif target.sop_class != sop_class:
        yield f"refers to {uid} as {sop_class}, but it is {target.sop_class}"


def _walk(
    ds: Dataset, targets: dict[str, _Target], accepted: frozenset[str], *, elsewhere: bool = False
) -> Iterator[str]:
    """References, codes, UIDs and numbers at any depth."""
    if not elsewhere and ("ReferencedSOPInstanceUID" in ds or "ReferencedSOPClassUID" in ds):
        yield from _reference_faults(ds, targets)
    for element in ds:
        if element.VR == "SQ":
            if element.keyword.endswith("CodeSequence"):
                yield from (fault for item in element.value for fault in _code_faults(item, element.keyword))
            for item in element.value:
                yield from _walk(item, targets, accepted, elsewhere=elsewhere or element.keyword in _ELSEWHERE)
        elif element.VR == "UI":
            if not all(valid_uid(value) or value in accepted for value in _values(element.value) if value):
                yield f"{element.keyword} is not a valid UID"
        elif element.VR in _NUMBERS and not _finite(element):
            yield f"{element.keyword} is not finite"


def _reference_faults(item: Dataset, targets: dict[str, _Target]) -> Iterator[str]:
    uid = str(item.get("ReferencedSOPInstanceUID"))
    yield from _target_faults(uid, str(item.get("ReferencedSOPClassUID")), targets)
    target = targets.get(uid)
    if target is None:
        return
    for number in _values(item.get("ReferencedFrameNumber")):
        if not 1 <= int(number) <= target.frames:
            yield f"refers to frame {number} of {uid}, which has {target.frames}"
    for number in _values(item.get("ReferencedSegmentNumber")):
        if int(number) not in target.segments:
            yield f"refers to segment {number} of {uid}, which it does not have"


def _code_faults(item: Dataset, keyword: str) -> Iterator[str]:
    if not any(item.get(one) for one in _CODE_VALUES) or not item.get("CodeMeaning"):
        yield f"{keyword} has no code value or no meaning"
    elif not item.get("CodingSchemeDesignator") and not item.get("URNCodeValue"):
        yield f"{keyword} has no coding scheme"


def _finite(element: DataElement) -> bool:
    return all(math.isfinite(float(value)) for value in _values(element.value) if value)


def _values(value: object) -> list[str]:
    if value is None or value == "":
        return []
    return [str(part) for part in value] if isinstance(value, MultiValue | list | tuple) else [str(value)]
