"""Objects as one destination wants them: another uncompressed syntax, another character set. Never another meaning."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydicom import Dataset, charset, dcmread
from pydicom.uid import UID
from pynetdicom.dsutils import encode

from dicomnode.errors import DispatchError

#: What this node writes.
UNICODE: Final = "ISO_IR 192"
#: VRs whose text SpecificCharacterSet governs (PS3.5 6.1.2.3).
_TEXT: Final = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How objects are to be encoded for a peer."""

    #: Preferred for whatever may be rewritten; empty: as the file is.
    transfer_syntax_uid: str = ""
    character_set: str = UNICODE


AS_IT_IS: Final = Encoding()


def converted(path: Path, transfer_syntax_uid: str, character_set: str) -> memoryview:
    """The data set of a file, encoded anew.

    Raises
    ------
    DispatchError
        It cannot be read or written so, or its text does not fit the character set.
    """
    syntax = UID(transfer_syntax_uid)
    try:
        dataset = dcmread(path)
        if character_set != UNICODE and dataset.get("SpecificCharacterSet", UNICODE) != character_set:
            _rewrite(dataset, character_set)
        raw = encode(dataset, syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated)
    except DispatchError:
        raise
    except Exception as error:  # pydicom raises many kinds; this object is set aside with the reason
        raise DispatchError(f"{path.name} cannot be read as a DICOM file: {error}") from error
    if raw is None:
        raise DispatchError(f"{path.name} cannot be written as {syntax.name}")
    return memoryview(raw)


def _rewrite(dataset: Dataset, character_set: str) -> None:
    """Decode every text and declare ``character_set``, if all of it fits: no question marks."""
    dataset.decode()
    for keyword, text in _texts(dataset):
        if not _fits(text, character_set):  # the text itself may name the patient: it is not quoted
            raise DispatchError(
                f"{keyword} cannot be written in {character_set}; set character_set: {UNICODE} for this destination"
            )
    for item in _items(dataset):
        if item is dataset or "SpecificCharacterSet" in item:
            item.SpecificCharacterSet = character_set


def _fits(text: str, character_set: str) -> bool:
    """Whether the set has every character of ``text``: pydicom's codecs of ISO_IR 6 and ISO_IR 13 know more."""
    try:
        raw = text.encode("ascii" if character_set == "ISO_IR 6" else charset.python_encoding[character_set])
    except UnicodeEncodeError:
        return False
    return character_set != "ISO_IR 13" or len(raw) == len(text)  # else JIS X 0208, by the codec of Shift JIS


def _items(dataset: Dataset) -> Iterator[Dataset]:
    yield dataset
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield from _items(item)


def _texts(dataset: Dataset) -> Iterator[tuple[str, str]]:
    for item in _items(dataset):
        for element in item:
            if element.VR in _TEXT and not element.is_empty:
                values = element.value if element.VM > 1 else [element.value]
                yield from ((element.keyword or str(element.tag), str(value)) for value in values)
