"""Our DICOM Raw Data Storage objects, read: whose they are, which part each is, and the MRD file they carry.

Files may be as large as a measurement, so payloads go from file to file in blocks.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Final

from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from dicomnode.dicom import (
    RAW_CREATOR,
    RAW_CREATOR_VERSION_UID,
    RAW_DATA_STORAGE,
    RAW_GROUP,
    RAW_MIME_TYPE,
    RawElement,
)
from dicomnode.errors import MixedGeometry, UnreadableRawData, UnsupportedSOPClass

_BLOCK: Final = 2**20
_UNDEFINED: Final = 0xFFFFFFFF
#: What parts of one measurement agree on.
_SHARED: Final = ("StudyInstanceUID", "SeriesInstanceUID", "PatientID", "IssuerOfPatientID")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one instance says of the file it carries a part of."""

    #: Counted from 1, of `parts`.
    number: int
    parts: int
    #: Bytes of this part and of the whole file.
    length: int
    total: int
    #: SHA-256 of this part and of the whole file.
    sha256: str
    total_sha256: str
    #: The scanner said that the measurement was complete.
    complete: bool


def is_ours(ds: Dataset) -> bool:
    """Whether ``ds`` is raw data that this software wrapped, by its SOP class and CreatorVersionUID."""
    return (ds.get("SOPClassUID"), ds.get("CreatorVersionUID")) == (RAW_DATA_STORAGE, RAW_CREATOR_VERSION_UID)


def part_of(ds: Dataset) -> Part:
    """Which part ``ds`` is.

    Raises
    ------
    UnsupportedSOPClass
        It is not ours: only its maker knows what it holds.
    UnreadableRawData
        The private block is missing or says nothing sensible.
    """
    uid = ds.get("SOPInstanceUID")
    if ds.get("SOPClassUID") != RAW_DATA_STORAGE:
        name = UID(ds.get("SOPClassUID") or "").name
        raise UnsupportedSOPClass(f"{uid} is {name}: raw k-space comes as Raw Data Storage, made by `dicomnode wrap`")
    if not is_ours(ds):
        raise UnsupportedSOPClass(foreign(ds))
    try:
        block = ds.private_block(RAW_GROUP, RAW_CREATOR)
        mime = _text(block[RawElement.MIME_TYPE].value)
        part = Part(
            number=_number(block[RawElement.PART].value),
            parts=_number(block[RawElement.PARTS].value),
            length=_number(block[RawElement.PART_LENGTH].value),
            total=int(_text(block[RawElement.LENGTH].value)),
            sha256=_text(block[RawElement.PART_SHA256].value),
            total_sha256=_text(block[RawElement.SHA256].value),
            complete=_text(block[RawElement.STATE].value) == "COMPLETE",
        )
    except (KeyError, ValueError, TypeError) as error:
        raise UnreadableRawData(
            f"{uid} lacks elements of the private block {RAW_CREATOR!r} (a device on the way drops private elements?): "
            "allow group 0071 there and send it again",
            [str(uid)],
        ) from error
    if mime != RAW_MIME_TYPE:
        raise UnreadableRawData(f"{uid} carries {mime!r}, not {RAW_MIME_TYPE}; send it again", [str(uid)])
    if not 1 <= part.number <= part.parts:
        text = f"{uid} says that it is part {part.number} of {part.parts}; send it again"
        raise UnreadableRawData(text, [str(uid)])
    return part


def foreign(ds: Dataset) -> str:
    """Why raw data of others is not for this node, in a sentence for its sender."""
    maker = str(ds.get("Manufacturer") or "an unnamed maker")
    return (
        f"{ds.get('SOPInstanceUID')} is Raw Data Storage of {maker}, whose content only its maker can read: kept, and "
        "not reconstructed. Convert the measurement to MRD, and wrap it with `dicomnode wrap`"
    )


def read_header(path: Path) -> Dataset:
    """Header of a raw data object, everything before its payload, which is not read."""
    with path.open("rb") as file:
        return _header(file, path)


def unwrap(paths: Sequence[Path], target: Path) -> Path:
    """Put the MRD file that the parts in ``paths`` carry together again at ``target``, and return that.

    Raises
    ------
    UnsupportedSOPClass
        An instance is not ours.
    UnreadableRawData
        Parts are missing, of different measurements, or not what their SHA-256 says. Nothing is left at ``target``.
    """
    found = _in_order(paths)
    total, aside = hashlib.sha256(), target.with_name(f"{target.name}.part")
    try:
        with aside.open("wb") as out:
            for path, part in found:
                _append(path, part, out, total)
        if total.hexdigest() != found[0][1].total_sha256:
            text = "the parts do not make the file that was wrapped (SHA-256); wrap and send it again"
            raise UnreadableRawData(text, [_uid_of(path) for path, _ in found])
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)
    return target


def _in_order(paths: Sequence[Path]) -> list[tuple[Path, Part]]:
    """Every part once, in order, all of one measurement."""
    parts: dict[int, tuple[Path, Part]] = {}
    first: Dataset | None = None
    for path in paths:
        header = read_header(path)
        part = part_of(header)
        if first is not None:
            for keyword in _SHARED:
                if header.get(keyword) != first.get(keyword):
                    raise MixedGeometry(
                        f"{keyword} differs between {first.SOPInstanceUID} and {header.SOPInstanceUID}: not one series"
                    )
        first = header if first is None else first
        known = parts.setdefault(part.number, (path, part))[1]
        other = next(iter(parts.values()))[1]
        if known != part or (part.total_sha256, part.parts) != (other.total_sha256, other.parts):
            raise UnreadableRawData(
                f"series {header.SeriesInstanceUID} has parts of different measurements: wrap each as its own series"
            )
    if first is None:
        raise UnreadableRawData("a series without files")
    wanted = next(iter(parts.values()))[1].parts
    missing = sorted(set(range(1, wanted + 1)) - set(parts))
    if missing:
        raise UnreadableRawData(
            f"series {first.SeriesInstanceUID}: {len(missing)} of {wanted} parts of the raw data are missing "
            f"({', '.join(map(str, missing[:10]))}); send them"
        )
    return [parts[number] for number in sorted(parts)]


def _append(path: Path, part: Part, out: BinaryIO, total: Any) -> None:  # noqa: ANN401 - hashlib has no public type
    """Copy the payload of one part, checked."""
    own, left = hashlib.sha256(), part.length
    with _payload(path) as (file, length):
        if length not in (left, left + left % 2):
            text = f"part {part.number} holds {length} bytes and says {left}; send it again"
            raise UnreadableRawData(text, [_uid_of(path)])
        while left:
            block = file.read(min(_BLOCK, left))
            if not block:
                raise UnreadableRawData(f"part {part.number} ends {left} bytes early; send it again", [_uid_of(path)])
            own.update(block)
            total.update(block)
            out.write(block)
            left -= len(block)
    if own.hexdigest() != part.sha256:
        raise UnreadableRawData(f"part {part.number} is not what its SHA-256 says; send it again", [_uid_of(path)])


def _uid_of(path: Path) -> str:
    return str(read_header(path).get("SOPInstanceUID"))


def _header(file: BinaryIO, path: Path) -> Dataset:
    """Everything before the payload; ``file`` is left at the payload's element, unless it is deflated."""
    try:
        return read_partial(file, stop_when=_is_payload)
    except (InvalidDicomError, EOFError, ValueError, NotImplementedError) as error:
        raise UnreadableRawData(f"{path.name} does not read as DICOM: {error}; send it again") from error


def _is_payload(tag: BaseTag, _vr: str | None, _length: int) -> bool:
    """Whether an element is the payload: in our private block, wherever in the group a device on the way put it."""
    return tag.group == RAW_GROUP and tag.element > 0xFF and tag.element & 0xFF == RawElement.PAYLOAD


@contextmanager
def _payload(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """The payload of a file, ready to be read, and its length as encoded."""
    with path.open("rb") as file:
        header = _header(file, path)
        syntax = header.file_meta.TransferSyntaxUID
        if syntax == DeflatedExplicitVRLittleEndian:  # in one piece: a stream cannot be entered in the middle
            whole = dcmread(path)
            value = whole.private_block(RAW_GROUP, RAW_CREATOR)[RawElement.PAYLOAD].value
            yield BytesIO(value), len(value)
            return
        length = _element_length(file, implicit=syntax.is_implicit_VR, little=syntax.is_little_endian)
        if length is None:
            uid = str(header.get("SOPInstanceUID"))
            raise UnreadableRawData(f"{uid} carries no payload; send it again", [uid])
        yield file, length


def _element_length(file: BinaryIO, *, implicit: bool, little: bool) -> int | None:
    """Read the tag, VR and length of an element of OB, OW or UN; None if there is none or it has no length."""
    order = "<" if little else ">"
    head = file.read(8 if implicit else 12)
    if len(head) < (8 if implicit else 12):
        return None
    group, element = struct.unpack_from(f"{order}HH", head)
    (length,) = struct.unpack_from(f"{order}L", head, 4 if implicit else 8)
    if not _is_payload(BaseTag(group << 16 | element), None, length) or length == _UNDEFINED:
        return None
    return int(length)


def _text(value: object) -> str:
    """Text of a private element, which a peer that sends Implicit VR makes bytes."""
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
    return text.strip(" \0")


def _number(value: object) -> int:
    """Number of a UL, which a peer that sends Implicit VR makes little endian bytes."""
    return int.from_bytes(value, "little") if isinstance(value, bytes) else int(str(value))
