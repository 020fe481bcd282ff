"""Facts about a series that no single header states, for rules that route by content."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from pydicom import Dataset

from dicomnode.dicom import MANUFACTURER, RAW_CREATOR_VERSION_UID, RAW_DATA_STORAGE
from dicomnode.rules import stack
from dicomnode.rules.stack import Layout, Plane

Fact = str | int | float
Facts = Mapping[str, Fact | Sequence[Fact]]

_YES_NO: Final = ("yes", "no")
#: Every fact a rule may ask for, with its possible values where they are words. What does not apply to a series is
#: left out of its facts, and absent to a rule.
KNOWN: Final[Mapping[str, tuple[str, ...]]] = {
    "series.instances": (),
    "series.frames": (),
    "series.multiframe": _YES_NO,
    "series.slices": (),
    "series.phases": (),
    "series.slice_spacing": (),
    "series.spacing_uniform": _YES_NO,
    "series.gaps": (),
    "series.tilt_deg": (),
    "series.coverage_mm": (),
    "series.orientation": ("axial", "coronal", "sagittal", "oblique", "mixed", "unknown"),
    "series.localizer": _YES_NO,
    "series.contrast": ("yes", "no", "unknown"),
    "series.contrast_basis": (),
    "series.rows": (),
    "series.columns": (),
    "series.own_result": _YES_NO,
    # Raw data: MRD in our wrapping, or what only its maker can read. Absent for everything else.
    "series.raw": ("mrd", "foreign"),
    # Added by assembly: the series was taken as it was; AE title that sent it.
    "series.incomplete": _YES_NO,
    "series.source": (),
}

#: A normal whose largest cosine is below this lies between the planes (Clunie, dicom3tools and PixelMed: 0.8).
_OBLIQUE_BELOW: Final = 0.8
_PLANES: Final = ("sagittal", "coronal", "axial")
_DESCRIPTIONS: Final = ("SeriesDescription", "ProtocolName", "StudyDescription")
#: What technologists write. Tried in this order, because "without contrast" contains "contrast".
_WITHOUT: Final = re.compile(
    r"without|w/o\b|\bwo\b|non?[ -]?con|non?[ -]?enh|unenhanced|\bplain\b|\bnativ|\bohne\b|\bsans\b|\bsin\b|\bC-(?!\w)",
    re.IGNORECASE,
)
_WITH: Final = re.compile(
    r"contrast|kontrast|contraste|\bpost[ -]?(?:gd|gad|con|km|c)|\bgad|\bgd\b|\bC\+|\+C\b|\bcect\b|enhanced|\bangio"
    r"|\bCTA\b|portal|arterial|venous",
    re.IGNORECASE,
)


def series_facts(headers: Sequence[Mapping[str, str]], representative: Dataset) -> dict[str, Fact | list[Fact]]:
    """Compute every fact that applies; bad values are treated as absent ones.

    Parameters
    ----------
    headers
        The indexed header of each instance (`domain.INDEX_TAGS` by keyword, multiple values joined by backslash).
    representative
        One instance's attributes, without pixels.
    """
    frames = [_frames(header) for header in headers]
    multiframe = any(number > 1 for number in frames)
    facts: dict[str, Fact | list[Fact]] = {
        "series.instances": len(headers),
        "series.frames": sum(frames),
        "series.multiframe": _word(multiframe),
        "series.localizer": _word(_is_localizer(headers, representative)),
        "series.own_result": _word(is_own_result(headers, representative)),
    }
    if _text(representative, "SOPClassUID") == RAW_DATA_STORAGE:
        ours = _text(representative, "CreatorVersionUID") == RAW_CREATOR_VERSION_UID
        facts["series.raw"] = "mrd" if ours else "foreign"
    for name, keyword in (("series.rows", "Rows"), ("series.columns", "Columns")):
        sizes = {number for header in headers if (number := _whole(header.get(keyword, ""))) is not None}
        if sizes:
            facts[name] = sizes.pop() if len(sizes) == 1 else sorted(sizes)
    facts["series.contrast"], facts["series.contrast_basis"] = _contrast(representative)
    planes = [found for header in headers if (found := stack.plane(header)) is not None]
    if multiframe and len(headers) == 1:
        planes = _planes_of_frames(representative)
    facts.update(_geometry(planes))
    return facts


def is_own_result(headers: Sequence[Mapping[str, str]], representative: Dataset) -> bool:
    """Whether this node made the series (the loop guard): by Manufacturer, or by ContributingEquipmentSequence."""
    makers = [header.get("Manufacturer", "") for header in headers]
    makers.append(_text(representative, "Manufacturer"))
    makers += [_text(item, "Manufacturer") for item in _items(representative, "ContributingEquipmentSequence")]
    return any(maker.strip().casefold() == MANUFACTURER for maker in makers)


def _geometry(planes: Sequence[Plane]) -> dict[str, Fact | list[Fact]]:
    if not planes:
        return {"series.orientation": "unknown"}
    if not stack.one_orientation(planes):
        return {"series.orientation": "mixed"}
    found = stack.layout(planes)
    facts: dict[str, Fact | list[Fact]] = {
        "series.orientation": _orientation(found),
        "series.slices": len(found.counts),
        "series.gaps": found.gaps,
        "series.tilt_deg": round(found.tilt_deg, 1),
    }
    # Unequal numbers of phases are listed: a rule that wants 20 of them must not be told "20".
    facts["series.phases"] = found.phases if found.phases is not None else "unequal"
    if found.steps:
        facts["series.slice_spacing"] = round(found.usual, 3)
        facts["series.spacing_uniform"] = _word(found.uniform)
        # From edge to edge, each plane as thick as the usual step.
        facts["series.coverage_mm"] = round(found.extent_mm + found.usual, 1)
    return facts


def _orientation(found: Layout) -> str:
    cosines = [abs(value) for value in found.normal]
    largest = max(cosines)
    return "oblique" if largest < _OBLIQUE_BELOW else _PLANES[cosines.index(largest)]


def _is_localizer(headers: Sequence[Mapping[str, str]], representative: Dataset) -> bool:
    types = [header.get("ImageType", "") for header in headers] or ["\\".join(_texts(representative, "ImageType"))]
    marked = Counter("LOCALIZER" in text.upper().split("\\") for text in types)
    return marked[True] > marked[False]


def _contrast(representative: Dataset) -> tuple[str, str]:
    """Return yes, no or unknown, and what that rests on. An absent ContrastBolusAgent alone proves nothing."""
    agent = _text(representative, "ContrastBolusAgent")
    if agent:
        none = agent.casefold() in ("none", "no", "n", "without", "no contrast")
        return ("no" if none else "yes"), "ContrastBolusAgent"
    if any(_items(representative, "ContrastBolusAgentSequence")):
        return "yes", "ContrastBolusAgentSequence"
    for keyword in _DESCRIPTIONS:
        text = _text(representative, keyword)
        if _WITHOUT.search(text):
            return "no", keyword
        if _WITH.search(text):
            return "yes", keyword
    return "unknown", "neither ContrastBolusAgent nor a description says"


def _planes_of_frames(representative: Dataset) -> list[Plane]:
    """Planes of an enhanced multi-frame object; empty if its functional groups do not tell."""
    shared = next(iter(_items(representative, "SharedFunctionalGroupsSequence")), Dataset())
    planes = []
    for frame in _items(representative, "PerFrameFunctionalGroupsSequence"):
        header = {}
        for group, keyword in (
            ("PlanePositionSequence", "ImagePositionPatient"),
            ("PlaneOrientationSequence", "ImageOrientationPatient"),
        ):
            items = _items(frame, group) or _items(shared, group)
            header[keyword] = "\\".join(_texts(items[0], keyword)) if items else ""
        found = stack.plane(header)
        if found is None:
            return []
        planes.append(found)
    return planes


def _items(dataset: Dataset, keyword: str) -> list[Dataset]:
    try:
        return list(dataset.get(keyword) or [])
    except Exception:  # noqa: BLE001 - pydicom raises many kinds on garbled sequences; facts never raise
        return []


def _texts(dataset: Dataset, keyword: str) -> list[str]:
    try:
        value = dataset.get(keyword)
    except Exception:  # noqa: BLE001 - as above, for garbled values
        return []
    if value is None:
        return []
    several = not isinstance(value, str | bytes) and isinstance(value, Sequence)
    return [str(one).strip(" \0") for one in value] if several else [str(value).strip(" \0")]


def _text(dataset: Dataset, keyword: str) -> str:
    return next(iter(_texts(dataset, keyword)), "")


def _whole(text: str) -> int | None:
    found = stack.numbers(text.strip(" \0"), 1)
    return int(found[0]) if found is not None and found[0] == int(found[0]) else None


def _frames(header: Mapping[str, str]) -> int:
    return max(_whole(header.get("NumberOfFrames", "")) or 1, 1)


def _word(value: bool) -> str:
    return "yes" if value else "no"
