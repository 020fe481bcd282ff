"""Which attributes the standard wants in an object, from the tables that highdicom carries: no network, no conditions.

The tables are highdicom's own business (a module with an underscore): a contract test holds what is used of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from highdicom import _standard_utils as tables
from pydicom import Dataset

#: Mandatory modules whose tables cannot be read without their conditions: functional groups may be shared or per
#: frame, and content items need what their value type needs (`encode.gate_sr` checks these).
_UNREADABLE: Final = ("functional-groups", "sr-document-content")
#: Modules that the standard makes conditional, and that hold for everything the node writes of an IOD.
_ALWAYS: Final = {"segmentation": ("frame-of-reference", "common-instance-reference")}
#: Standard Extended SOP Classes (PS3.2): attributes beyond the IOD, which say what functional groups have no place for
#: unless everything beside it is known too (`encode.enhanced_mr`).
_EXTENDED: Final = {
    "1.2.840.10008.5.1.4.1.1.4.1": (
        "RepetitionTime",
        "InversionTime",
        "FlipAngle",
        "EchoTrainLength",
        "ImagingFrequency",
    )
}
#: Type 1 before type 2: the stricter one holds where modules differ.
_REQUIRED: Final = ("1", "2")


@dataclass(slots=True)
class Requirement:
    """One attribute of an IOD."""

    #: 1 or 2; empty for an attribute that may be absent.
    type: str = ""
    #: What the items of a sequence need, by keyword.
    items: dict[str, Requirement] = field(default_factory=dict)


@lru_cache(maxsize=16)
def requirements(sop_class: str) -> dict[str, Requirement] | None:
    """What the mandatory modules of ``sop_class`` ask for, by keyword; None for a class without a table."""
    modules = _modules(sop_class)
    if modules is None:
        return None
    merged: dict[str, Requirement] = {}
    always = _ALWAYS.get(tables.get_sop_class_iod_map()[sop_class], ())
    for module in modules:
        wanted = module["usage"] == "M" or module["key"] in always
        if wanted and not module["key"].endswith(_UNREADABLE):
            _merge(merged, tables.construct_module_tree(module["key"])["attributes"])
    return merged


@lru_cache(maxsize=16)
def allowed(sop_class: str) -> frozenset[str]:
    """Keywords that some module of ``sop_class`` has at the top level."""
    attributes = tables.get_module_attribute_map()
    found = (attributes.get(module["key"], ()) for module in _modules(sop_class) or ())
    known = (item["keyword"] for module in found for item in module if not item["path"])
    return frozenset((*known, *_EXTENDED.get(sop_class, ())))


def missing(ds: Dataset, source: Dataset | None = None) -> Iterator[str]:
    """Faults of ``ds`` against the tables of its SOP class.

    Parameters
    ----------
    source
        Of a derived image: its source. What the source lacks was never there to copy, and is no fault; nor are the
        items of sequences and attributes beyond the tables, which are the source's.
    """
    needed = requirements(str(ds.SOPClassUID))
    if needed is None:
        yield f"SOP class {ds.SOPClassUID} is in no table"
        return
    if source is not None:
        yield from (fault for keyword, fault in _absent(ds, needed) if source.get(keyword) not in (None, "", []))
        return
    yield from _missing(ds, needed, "")
    extra = [element for element in ds if element.keyword not in allowed(str(ds.SOPClassUID))]
    yield from (f"{element.keyword or element.tag} is not in the IOD" for element in extra)


def _modules(sop_class: str) -> list[dict[str, Any]] | None:
    iod = tables.get_sop_class_iod_map().get(sop_class)
    return None if iod is None else tables.get_iod_module_map()[iod]


def _merge(into: dict[str, Requirement], attributes: dict[str, Any]) -> None:
    for keyword, entry in attributes.items():
        requirement = into.setdefault(keyword, Requirement())
        kind = entry["type"].value
        if kind in _REQUIRED:
            requirement.type = min(requirement.type or kind, kind)
        _merge(requirement.items, entry.get("attributes", {}))


def _absent(ds: Dataset, needed: dict[str, Requirement]) -> Iterator[tuple[str, str]]:
    """(keyword, fault) of what this level lacks."""
    for keyword, requirement in needed.items():
        if not requirement.type:
            continue
        if keyword not in ds:
            yield keyword, f"{keyword} is absent (type {requirement.type})"
        elif requirement.type == "1" and ds[keyword].is_empty:
            yield keyword, f"{keyword} is empty (type 1)"


def _missing(ds: Dataset, needed: dict[str, Requirement], path: str) -> Iterator[str]:
    yield from (path + fault for _, fault in _absent(ds, needed))
    for element in ds:
        if element.VR == "SQ" and element.keyword in needed and needed[element.keyword].items:
            for item in element.value:
                yield from _missing(item, needed[element.keyword].items, f"{path}{element.keyword}: ")
