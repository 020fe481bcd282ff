"""Reading what a rule names: a keyword, a path into sequences, a tag, or a fact."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID

from dicomnode.rules.facts import Facts

_TAG: Final = re.compile(r"\(([0-9A-Fa-f]{4}),([0-9A-Fa-f]{4})\)")
#: Of the patient module, what rules may show: it tells nobody apart.
_SHOWN_OF_PATIENT: Final = frozenset({"PatientSex", "PatientAge", "PatientSize", "PatientWeight"})
#: Identifies somebody, or leads to whom.
_HIDDEN: Final = frozenset({"AccessionNumber", "StudyID", "AdmissionID", "PatientAddress"})
_SEQUENCE: Final = "SQ"
_PERSON: Final = "PN"


class UnknownName(ValueError):
    """A rule names what neither the DICOM dictionary nor the facts know."""


@dataclass(frozen=True, slots=True)
class Path:
    """A parsed name: tags from the data set down, the last one holds the value."""

    name: str
    tags: tuple[BaseTag, ...]

    @property
    def vr(self) -> str:
        """Value representation by the dictionary; empty for private tags."""
        try:
            return dictionary_VR(self.tags[-1])
        except KeyError:
            return ""

    @property
    def secret(self) -> bool:
        """Whether its values may identify a patient, and so are shown to nobody."""
        for tag in self.tags:
            keyword = keyword_for_tag(tag)
            if keyword in _HIDDEN or (tag.group == 0x0010 and keyword not in _SHOWN_OF_PATIENT):
                return True
        return self.vr == _PERSON


@dataclass(frozen=True, slots=True)
class Value:
    """One value as a rule sees it."""

    text: str
    number: float | None = None

    @classmethod
    def of(cls, value: object) -> Value:
        """Read a fact or a DICOM value; text that is a number compares as one."""
        text = str(value).strip(" \0")
        return cls(text, number_of(text))


def number_of(text: str) -> float | None:
    """Return a text's number, if it is a finite one."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def parse(name: str) -> Path:
    """Parse a keyword, ``(gggg,eeee)``, or a path such as ``RequestAttributesSequence.ScheduledProcedureStepID``."""
    tags = []
    for part in name.split("."):
        matched = _TAG.fullmatch(part.strip())
        found = int(matched[1] + matched[2], 16) if matched else tag_for_keyword(part.strip())
        if found is None:
            raise UnknownName(part)
        tags.append(Tag(found))
    return Path(name, tuple(tags))


def values(path: Path, dataset: Dataset) -> list[Value]:
    """Every value there is, over all items of the sequences on the way; empty values count as absent."""
    here = [dataset]
    for tag in path.tags[:-1]:
        here = [item for one in here for item in _items(one, tag)]
    return [value for one in here for value in _values(one, path.tags[-1])]


def fact_values(name: str, facts: Facts) -> list[Value]:
    """Return the values of a fact; none if it does not apply to this series."""
    fact = facts.get(name)
    if fact is None:
        return []
    if isinstance(fact, str | int | float):
        return [Value.of(fact)]
    return [Value.of(one) for one in fact]


def _items(dataset: Dataset, tag: BaseTag) -> list[Dataset]:
    element = _element(dataset, tag)
    return list(element.value or []) if isinstance(element, DataElement) and element.VR == _SEQUENCE else []


def _values(dataset: Dataset, tag: BaseTag) -> list[Value]:
    element = _element(dataset, tag)
    if element is None or element.value is None:
        return []
    raw = element.value
    if element.VR == _SEQUENCE:
        return [Value("(item)") for _ in raw]
    if isinstance(raw, bytes):
        raw = raw.decode("latin-1")
    several = isinstance(raw, Sequence) and not isinstance(raw, str)
    found = [Value.of(one) for one in (raw if several else [raw])]
    return [value for value in found if value.text]


def _element(dataset: Dataset, tag: BaseTag) -> DataElement | RawDataElement | None:
    """Return an element, converted if pydicom can; the raw one if its value is garbled."""
    source = getattr(dataset, "file_meta", None) if tag.group == 0x0002 else dataset
    if source is None or tag not in source:
        return None
    try:
        element = source[tag]
    except Exception:  # noqa: BLE001 - pydicom raises many kinds on garbled values; a rule then sees the raw text
        raw = source.get_item(tag)
        return raw if isinstance(raw, RawDataElement) else None
    return element if isinstance(element, DataElement) else None


def uid_names(text: str) -> set[str]:
    """Return the dictionary's keyword and name of a UID, so that a rule may say CTImageStorage."""
    uid = UID(text)
    return {uid.keyword, uid.name} - {"", text}
