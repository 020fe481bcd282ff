"""The first bytes of a DICOM file (PS3.10 7.1): preamble and file meta information, written and read back.

The receiver writes them itself because the data set behind them must stay as it came, undecoded. Sending and receiving
AE title are kept in them (0002,0017 and 0002,0018), so that a file alone tells where it came from.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from dicomnode.dicom import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicomnode.errors import StoreError

_PREAMBLE: Final = bytes(128) + b"DICM"
_VERSION: Final = b"\x02\x00\x01\x00OB\x00\x00\x02\x00\x00\x00\x00\x01"
#: File meta information longer than this is not ours and not sane.
_LONGEST: Final = 1 << 16
_LONG_VRS: Final = frozenset({b"OB", b"OW", b"UN", b"UT", b"SQ"})
_pack_head = struct.Struct("<HH2sH").pack


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What stands before the data set of a file."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    #: AE title that sent it; empty when the file does not say.
    sender: str
    #: Where the data set begins [bytes].
    length: int


def _element(number: int, vr: bytes, text: str, pad: bytes) -> bytes:
    value = text.encode("latin-1", "replace")[:0xFFFE]
    if len(value) & 1:
        value += pad
    return _pack_head(2, number, vr, len(value)) + value


_IMPLEMENTATION: Final = _element(0x12, b"UI", IMPLEMENTATION_CLASS_UID, b"\0") + _element(
    0x13, b"SH", IMPLEMENTATION_VERSION_NAME, b" "
)


def head(sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str, sender: str, receiver: str) -> bytes:
    """Preamble and file meta information for a data set that follows."""
    body = b"".join(
        (
            _VERSION,
            _element(0x02, b"UI", sop_class_uid, b"\0"),
            _element(0x03, b"UI", sop_instance_uid, b"\0"),
            _element(0x10, b"UI", transfer_syntax_uid, b"\0"),
            _IMPLEMENTATION,
            _element(0x17, b"AE", sender, b" "),
            _element(0x18, b"AE", receiver, b" "),
        )
    )
    return b"".join((_PREAMBLE, _pack_head(2, 0, b"UL", 4), struct.pack("<L", len(body)), body))


def read_head(start: bytes) -> Head:
    """Read the head from the first bytes of a file; `LONGEST_HEAD` of them are always enough.

    Raises
    ------
    StoreError
        When the bytes do not begin like a DICOM file.
    """
    if len(start) < 144 or start[128:132] != b"DICM" or start[132:140] != _pack_head(2, 0, b"UL", 4):
        raise StoreError("it does not begin like a DICOM file (no preamble, DICM and file meta length)")
    position, end = 144, 144 + int(struct.unpack_from("<L", start, 140)[0])
    if end > min(len(start), _LONGEST):
        raise StoreError("its file meta information is cut off")
    found: dict[int, str] = {}
    while position + 8 <= end:
        group, element, vr, length = struct.unpack_from("<HH2sH", start, position)
        position += 8
        if vr in _LONG_VRS:
            length = struct.unpack_from("<L", start, position)[0]
            position += 4
        if group == 2:
            found[element] = start[position : position + length].decode("latin-1").strip(" \0")
        position += length
    return Head(
        sop_class_uid=found.get(0x02, ""),
        sop_instance_uid=found.get(0x03, ""),
        transfer_syntax_uid=found.get(0x10, ""),
        sender=found.get(0x17, "")[:16],
        length=end,
    )


#: Enough bytes of a file to read its head.
LONGEST_HEAD: Final = _LONGEST
