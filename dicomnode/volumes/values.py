"""Read one element value leniently: weird but clear values become standard, unclear ones are refused with a reason.

Raw bytes in, a value that may be written in out. What a scanner wrote as a correct DS stays the same string.
"""

from __future__ import annotations

import math
import re
from datetime import date
from typing import Final

from pydicom.datadict import dictionary_has_tag, dictionary_VM
from pydicom.dataelem import DataElement
from pydicom.tag import BaseTag
from pydicom.valuerep import PersonName, format_number_as_ds

from dicomnode.volumes import charset

#: VRs whose characters SpecificCharacterSet governs (PS3.5 6.1.2.3).
TEXT: Final = frozenset({"SH", "LO", "ST", "LT", "UC", "UT", "PN"})
#: VRs of the default repertoire.
ASCII: Final = frozenset({"AE", "AS", "CS", "DA", "DS", "DT", "IS", "TM", "UI", "UR"})
#: VRs in which a backslash is text, not a separator.
_UNSPLIT: Final = frozenset({"ST", "LT", "UT", "UR"})

_DS: Final = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_IS: Final = re.compile(r"[+-]?\d{1,12}")
_INTEGRAL: Final = re.compile(r"([+-]?\d+)\.0*")
_DATE: Final = re.compile(r"(\d{4})[-./]?(\d{2})[-./]?(\d{2})")
_TIME: Final = re.compile(r"(\d{2}):?(?:(\d{2}):?(?:(\d{2})(\.\d{1,6})?\d*)?)?")
_DATETIME: Final = re.compile(r"\d{4}(\d{2}(\d{2}(\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?)?)?)?([+-]\d{4})?")
_AGE: Final = re.compile(r"\d{3}[DWMY]")
_CS: Final = re.compile(r"[A-Z0-9 _]{0,16}")
_MAX_DS: Final = 16  # characters, PS3.5 6.2
_IS_RANGE: Final = range(-(2**31), 2**31)


class Unreadable(ValueError):
    """A value without a clear meaning; the message says why and never repeats the value (it may be an identity)."""


def element(tag: BaseTag, vr: str, raw: bytes, terms: charset.Terms) -> tuple[DataElement, str]:
    """Data element of a string VR, and a note on what had to be repaired ("" if nothing).

    Raises
    ------
    UnicodeDecodeError
        Text that the character set does not explain.
    Unreadable
        A value that its VR does not allow and that has no clear meaning.
    """
    if vr in TEXT:
        text = charset.decode(raw.rstrip(b"\0"), terms, name=vr == "PN")
    elif raw.isascii():
        text = raw.rstrip(b"\0 ").decode("ascii")
    else:
        raise Unreadable("not in the default repertoire")
    if vr in _UNSPLIT:
        return DataElement(tag, vr, _visible(text).rstrip(" \0"), validation_mode=0), ""
    parts = [part.strip(" \0") if vr != "PN" else part.rstrip(" \0") for part in text.split("\\")]
    if len(parts) > 1 and vr in {"LO", "SH"} and _single(tag):
        return _plain(tag, vr, "/".join(parts)), "backslash in a single value replaced by a slash"
    fixed = [_fixed(vr, part) for part in parts]
    note = "value repaired to its VR" if fixed != parts else ""
    return _plain(tag, vr, fixed[0] if len(fixed) == 1 else fixed), note


def _plain(tag: BaseTag, vr: str, value: str | list[str]) -> DataElement:
    if vr == "PN" and isinstance(value, str):
        return DataElement(tag, vr, PersonName(value, encodings=["utf-8"]), validation_mode=0)
    return DataElement(tag, vr, value, validation_mode=0)


def _visible(text: str) -> str:
    """``text`` without the control characters that PS3.5 6.1.3 forbids."""
    return "".join(character for character in text if character >= " " or character in "\t\n\f\r\x1b")


def _single(tag: BaseTag) -> bool:
    """Whether one value only is allowed; the patient group keeps its backslash, so that the encoder refuses it."""
    return tag.group != 0x0010 and dictionary_has_tag(tag) and dictionary_VM(tag) == "1"


def _fixed(vr: str, text: str) -> str:
    """One value as its VR demands it."""
    if text == "":
        return text
    rule = _RULES.get(vr)
    return text if rule is None else rule(text)


def _ds(text: str) -> str:
    if not _DS.fullmatch(text) or not math.isfinite(float(text)):
        raise Unreadable("not a finite decimal number")
    return text if len(text) <= _MAX_DS else format_number_as_ds(float(text))


def _is(text: str) -> str:
    integral = _INTEGRAL.fullmatch(text)
    digits = integral[1] if integral else text
    if not _IS.fullmatch(digits) or int(digits) not in _IS_RANGE:
        raise Unreadable("not an integer of 32 bits")
    return digits


def _da(text: str) -> str:
    found = _DATE.fullmatch(text)
    if found is None:
        raise Unreadable("not a date")
    try:
        date(int(found[1]), int(found[2]), int(found[3]))
    except ValueError:
        raise Unreadable("no day of the calendar") from None
    return "".join(found.groups())


def _tm(text: str) -> str:
    found = _TIME.fullmatch(text)
    if found is None or int(found[1]) > 23 or int(found[2] or 0) > 59 or int(found[3] or 0) > 60:
        raise Unreadable("not a time of day")
    return "".join(part or "" for part in found.groups())


def _dt(text: str) -> str:
    if not _DATETIME.fullmatch(text):
        raise Unreadable("not a date and time")
    return text


def _as(text: str) -> str:
    padded = text.upper().zfill(4)
    if not _AGE.fullmatch(padded):
        raise Unreadable("not an age")
    return padded


def _cs(text: str) -> str:
    upper = text.upper()
    return upper if _CS.fullmatch(upper) else text  # read as it is; the encoder does not copy what CS forbids


_RULES: Final = {"DS": _ds, "IS": _is, "DA": _da, "TM": _tm, "DT": _dt, "AS": _as, "CS": _cs}
