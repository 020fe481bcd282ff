"""What viewers and validators want of a content tree, beyond the tables: OHIF's rules, PixelMed's and our own."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pydicom import Dataset

#: Key Object Selection Document Storage.
KEY_OBJECTS: Final = "1.2.840.10008.5.1.4.1.1.88.59"
#: SR classes that hold measurement reports: Enhanced, Comprehensive, Comprehensive 3D.
REPORTS: Final = frozenset(f"1.2.840.10008.5.1.4.1.1.88.{number}" for number in (22, 33, 34))
#: Size (rows, columns) of every image that may be referred to, by SOP Instance UID.
Sizes = Mapping[str, tuple[int, int]]

_IMAGING_MEASUREMENT_REPORT: Final = "126000"
_IMAGING_MEASUREMENTS: Final = "126010"
_MEASUREMENT_GROUP: Final = "125007"
_TRACKING_IDENTIFIER: Final = "112039"
_TRACKING_UID: Final = "112040"
#: Referenced Segment, Referenced Segmentation Frame.
_SEGMENT_REFERENCES: Final = frozenset({"121191", "121214"})
_COORDINATES: Final = frozenset({"SCOORD", "SCOORD3D"})
_REFERENCES: Final = frozenset({"IMAGE", "COMPOSITE"})
#: Value types that have a concept name always (PS3.3 C.17.3.2, table C.17-5), and where their value stands.
_NAMED: Final = {
    "TEXT": "TextValue",
    "CODE": "ConceptCodeSequence",
    "UIDREF": "UID",
    "NUM": "",
    "PNAME": "PersonName",
    "DATE": "Date",
    "TIME": "Time",
    "DATETIME": "DateTime",
}


def report_faults(ds: Dataset, sizes: Sizes) -> Iterator[str]:
    """What is wrong with the tree of a TID 1500 report."""
    if _name(ds) != _IMAGING_MEASUREMENT_REPORT or _template(ds) != "1500":
        yield "its root is not (126000, DCM) of TID 1500: viewers show a plain text tree"
    containers = [item for item in _children(ds) if _name(item) == _IMAGING_MEASUREMENTS]
    if not containers:
        yield "the container Imaging Measurements (126010, DCM) is absent: viewers fail on it"
    groups = [item for one in containers for item in _children(one) if _name(item) == _MEASUREMENT_GROUP]
    tracked: Counter[str] = Counter()
    for number, group in enumerate(groups, start=1):
        yield from (f"measurement group {number}: {fault}" for fault in _group_faults(group, tracked))
    yield from (
        f"{times} measurement groups share the tracking UID {uid}" for uid, times in tracked.items() if times > 1
    )
    kinds = {_kind(group) for group in groups}
    if len(kinds) > 1:
        yield f"measurement groups are mixed ({', '.join(sorted(kinds))}): viewers blank the whole report"
    yield from _tree_faults(ds, sizes)
    yield from _item_faults(ds)
    yield from _evidence_faults(ds)


def key_object_faults(ds: Dataset) -> Iterator[str]:
    """What is wrong with the tree of a Key Object Selection."""
    if _template(ds) != "2010" or not _name(ds):
        yield "its root is not a title of TID 2010"
    items = [item for item in _children(ds) if item.get("ValueType") in _REFERENCES]
    if not items:
        yield "it refers to nothing"
    if any("ConceptNameCodeSequence" in item for item in items):
        yield "a reference has a concept name, which TID 2010 does not give it"
    yield from _item_faults(ds)
    yield from _evidence_faults(ds)


def _group_faults(group: Dataset, tracked: Counter[str]) -> Iterator[str]:
    items = _children(group)
    if not any(_name(item) == _TRACKING_IDENTIFIER and item.get("TextValue") for item in items):
        yield "Tracking Identifier is absent"
    uids = [item for item in items if item.get("ValueType") == "UIDREF"]
    if not uids or _name(uids[0]) != _TRACKING_UID or not uids[0].get("UID"):
        yield "Tracking Unique Identifier is not the first UIDREF: viewers take the first for it"
    else:
        tracked[str(uids[0].UID)] += 1
    unnamed = sum(1 for item in items if not _name(item))
    if unnamed:
        yield f"{unnamed} items have no concept name: viewers fail on them"


def _kind(group: Dataset) -> str:
    items = _children(group)
    if any(_name(item) in _SEGMENT_REFERENCES for item in items):
        return "of segments"
    return "with coordinates" if any(item.get("ValueType") in _COORDINATES for item in items) else "without region"


def _tree_faults(ds: Dataset, sizes: Sizes) -> Iterator[str]:
    for item in _descendants(ds):
        value_type = item.get("ValueType")
        if value_type == "NUM":
            yield from (f"{_meaning(item)}: {fault}" for fault in _number_faults(item))
        elif value_type == "SCOORD":
            yield from _coordinate_faults(item, sizes)


def _item_faults(ds: Dataset) -> Iterator[str]:
    """What every content item needs, after its value type."""
    if ds.get("ValueType") != "CONTAINER" or not ds.get("ContinuityOfContent"):
        yield "its root is no container"
    for item in _descendants(ds):
        value_type = str(item.get("ValueType") or "")
        if not value_type or not item.get("RelationshipType"):
            yield f"a content item ({_meaning(item)}) has no value type or no relationship"
        elif value_type in _NAMED:
            value = _NAMED[value_type]
            if not _name(item) or (value and not item.get(value)):
                yield f"a content item ({value_type}, {_meaning(item)}) has no name or no value"


def _number_faults(item: Dataset) -> Iterator[str]:
    measured = item.get("MeasuredValueSequence") or ()
    if not measured and not item.get("NumericValueQualifierCodeSequence"):
        yield "neither a value nor a reason why there is none"
    for one in measured:
        value = one.get("NumericValue")
        if value in (None, "") or not math.isfinite(float(value)):
            yield "the value is not a finite number"
        units = one.get("MeasurementUnitsCodeSequence") or ()
        if not any(unit.get("CodeValue") for unit in units):
            yield "the unit is absent"


def _coordinate_faults(item: Dataset, sizes: Sizes) -> Iterator[str]:
    points = [float(value) for value in _values(item.get("GraphicData"))]
    images = [reference for child in _children(item) for reference in child.get("ReferencedSOPSequence") or ()]
    if len(images) != 1:
        yield f"an outline lies on {len(images)} images, not on one"
        return
    size = sizes.get(str(images[0].get("ReferencedSOPInstanceUID")))
    if size is None:
        return  # told as a reference that leads nowhere
    rows, columns = size
    if not points or len(points) % 2 or not all(math.isfinite(value) for value in points):
        yield "an outline is not made of pairs of finite numbers"
    elif not all(0 <= x <= columns and 0 <= y <= rows for x, y in zip(points[::2], points[1::2], strict=True)):
        yield f"an outline leaves its image of {rows} x {columns}"


def _evidence_faults(ds: Dataset) -> Iterator[str]:
    """Everything the tree refers to must be listed as evidence, with its series and study (PS3.3 C.17.2.3)."""
    listed = {
        str(instance.get("ReferencedSOPInstanceUID"))
        for keyword in ("CurrentRequestedProcedureEvidenceSequence", "PertinentOtherEvidenceSequence")
        for study in ds.get(keyword) or ()
        for series in study.get("ReferencedSeriesSequence") or ()
        for instance in series.get("ReferencedSOPSequence") or ()
    }
    for uid in sorted({uid for item in _descendants(ds) for uid in _referenced(item)} - listed):
        yield f"{uid} is referred to but not listed as evidence"


def _referenced(item: Dataset) -> list[str]:
    return [str(one.get("ReferencedSOPInstanceUID")) for one in item.get("ReferencedSOPSequence") or ()]


def _children(item: Dataset) -> list[Dataset]:
    return list(item.get("ContentSequence") or ())


def _descendants(item: Dataset) -> Iterator[Dataset]:
    for child in _children(item):
        yield child
        yield from _descendants(child)


def _name(item: Dataset) -> str:
    """Code value of the concept name; empty without one."""
    names = item.get("ConceptNameCodeSequence") or ()
    return str(names[0].get("CodeValue") or names[0].get("LongCodeValue") or "") if names else ""


def _meaning(item: Dataset) -> str:
    names = item.get("ConceptNameCodeSequence") or ()
    return str(names[0].get("CodeMeaning")) if names else "without a name"


def _template(ds: Dataset) -> str:
    templates = ds.get("ContentTemplateSequence") or ()
    return str(templates[0].get("TemplateIdentifier")) if templates else ""


def _values(value: Any) -> list[Any]:  # noqa: ANN401 - any element's value
    if value is None:
        return []
    return list(value) if not isinstance(value, str | float | int) else [value]
