"""The MRD stream: which messages there are, and where one ends and the next begins.

A message is a little-endian uint16 that says what it is, then its body. Lengths come from the wire, so each is held
against a limit before anything is allocated for it; the reader of the `ismrmrd` package does not do that, which is why
its structures are used here and its reader is not.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from ismrmrd.constants import (
    DATATYPE_CXDOUBLE,
    DATATYPE_CXFLOAT,
    DATATYPE_DOUBLE,
    DATATYPE_FLOAT,
    DATATYPE_INT,
    DATATYPE_SHORT,
    DATATYPE_UINT,
    DATATYPE_USHORT,
)

from dicomnode.errors import NodeError


class Kind(IntEnum):
    """Messages of MRD 1 (ismrmrd.github.io, "Session protocol")."""

    CONFIG_FILE = 1
    CONFIG_TEXT = 2
    HEADER = 3
    CLOSE = 4
    TEXT = 5
    ACQUISITION = 1008
    IMAGE = 1022
    WAVEFORM = 1026


#: Ids of Gadgetron's messages that MRD no longer has.
DEPRECATED: Final = frozenset({*range(1001, 1008), *range(1009, 1022), 1023})
#: Length of the name in CONFIG_FILE [bytes].
CONFIG_FILE_BYTES: Final = 1024
#: Lengths of the headers [bytes].
ACQUISITION_HEAD, IMAGE_HEAD, WAVEFORM_HEAD = 340, 198, 40
#: Where the acquisition header has its flags, number of samples, active channels and trajectory dimensions.
_FLAGS, _SAMPLES, _CHANNELS, _DIMENSIONS = 2, 34, 38, 176
#: Where the image header has its data type, matrix and channels; the waveform header its samples and channels.
_IMAGE_TYPE, _IMAGE_MATRIX, _IMAGE_CHANNELS, _WAVE_SAMPLES = 2, 16, 34, 28
#: Bytes of one value by the image header's data_type.
_ITEM: Final = {
    DATATYPE_USHORT: 2, DATATYPE_SHORT: 2, DATATYPE_UINT: 4, DATATYPE_INT: 4, DATATYPE_FLOAT: 4, DATATYPE_DOUBLE: 8,
    DATATYPE_CXFLOAT: 8, DATATYPE_CXDOUBLE: 16,
}  # fmt: skip
#: Texts beyond this are not for people or parsers [bytes].
MAX_TEXT: Final = 16 * 2**20
#: The buffer is moved to its front when so much of it has been read [bytes].
_COMPACT: Final = 1 << 20

_u16 = struct.Struct("<H")
_u32 = struct.Struct("<L")
_u64 = struct.Struct("<Q")
_lengths = struct.Struct("<HHH")


class ProtocolError(NodeError):
    """Bytes that are not MRD, or more of them than is allowed; the session ends with this as its TEXT."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message as it came."""

    kind: Kind
    #: Without the id.
    body: bytes

    @property
    def raw_text(self) -> bytes:
        """What a message with a length says; for CONFIG_FILE, the name before the first null byte."""
        return self.body.split(b"\0", 1)[0] if self.kind is Kind.CONFIG_FILE else self.body[4:].rstrip(b"\0")

    @property
    def text(self) -> str:
        """The same, decoded; what is not UTF-8 is replaced."""
        return self.raw_text.decode("utf-8", "replace").replace("\0", "")

    @property
    def flags(self) -> int:
        """Flags of an acquisition."""
        return int(_u64.unpack_from(self.body, _FLAGS)[0])

    @property
    def channels(self) -> int:
        """Active channels of an acquisition."""
        return int(_u16.unpack_from(self.body, _CHANNELS)[0])

    def packed(self) -> bytes:
        """As it goes over the wire."""
        return _u16.pack(self.kind) + self.body


def text(kind: Kind, words: str | bytes) -> bytes:
    """A CONFIG_TEXT, HEADER or TEXT message."""
    raw = words.encode() if isinstance(words, str) else words
    return _u16.pack(kind) + _u32.pack(len(raw)) + raw


def config_file(name: str) -> bytes:
    """A CONFIG_FILE message."""
    raw = name.encode()
    if len(raw) >= CONFIG_FILE_BYTES:
        raise ProtocolError(f"a config name has fewer than {CONFIG_FILE_BYTES} bytes")
    return _u16.pack(Kind.CONFIG_FILE) + raw.ljust(CONFIG_FILE_BYTES, b"\0")


CLOSE: Final = _u16.pack(Kind.CLOSE)


class Cutter:
    """Cuts a stream into messages.

    Parameters
    ----------
    most
        Largest message [bytes].
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._buffer = bytearray()
        self._start = 0

    @property
    def pending(self) -> int:
        """Bytes of a message that has begun and not ended."""
        return len(self._buffer) - self._start

    def feed(self, data: bytes | memoryview) -> None:
        """Take the next bytes."""
        self._buffer += data

    def next(self) -> Message | None:
        """The next whole message; None until more bytes come.

        Raises
        ------
        ProtocolError
            The next message is none of MRD's, or larger than allowed.
        """
        here, buffer = self._start, self._buffer
        if len(buffer) - here < 2:
            return None
        kind = _kind(_u16.unpack_from(buffer, here)[0])
        length = _length(kind, buffer, here + 2)
        if length is None:
            return None
        if length > self._most:
            raise ProtocolError(f"{kind.name} of {length} bytes; mrd.max_message_mb allows {self._most}")
        if kind in (Kind.CONFIG_TEXT, Kind.HEADER, Kind.TEXT) and length > MAX_TEXT:
            raise ProtocolError(f"{kind.name} of {length} bytes; texts have at most {MAX_TEXT}")
        end = here + 2 + length
        if len(buffer) < end:
            return None
        with memoryview(buffer) as view:
            message = Message(kind, bytes(view[here + 2 : end]))
        if end == len(buffer) or end > _COMPACT:
            del buffer[:end]
            end = 0
        self._start = end
        return message


def _kind(number: int) -> Kind:
    try:
        return Kind(number)
    except ValueError:
        why = "is no longer part of MRD" if number in DEPRECATED else "is not one of MRD's"
        raise ProtocolError(f"message id {number} {why}") from None


def _length(kind: Kind, buffer: bytearray, at: int) -> int | None:
    """Length of a body that begins at ``at``; None until enough of it is there to tell."""
    here = len(buffer) - at
    if kind is Kind.ACQUISITION:
        if here < ACQUISITION_HEAD:
            return None
        samples, channels, dimensions = (
            _u16.unpack_from(buffer, at + offset)[0] for offset in (_SAMPLES, _CHANNELS, _DIMENSIONS)
        )
        return int(ACQUISITION_HEAD + 4 * samples * dimensions + 8 * samples * channels)
    if kind is Kind.CLOSE:
        return 0
    if kind is Kind.CONFIG_FILE:
        return CONFIG_FILE_BYTES
    if kind is Kind.IMAGE:
        return _image_length(buffer, at) if here >= IMAGE_HEAD + 8 else None
    if kind is Kind.WAVEFORM:
        if here < WAVEFORM_HEAD:
            return None
        samples, channels = struct.unpack_from("<HH", buffer, at + _WAVE_SAMPLES)
        return int(WAVEFORM_HEAD + 4 * samples * channels)
    return 4 + int(_u32.unpack_from(buffer, at)[0]) if here >= 4 else None


def _image_length(buffer: bytearray, at: int) -> int:
    item = _ITEM.get(_u16.unpack_from(buffer, at + _IMAGE_TYPE)[0])
    if item is None:
        raise ProtocolError("IMAGE of an unknown data type")
    matrix, channels = _lengths.unpack_from(buffer, at + _IMAGE_MATRIX), _u16.unpack_from(buffer, at + _IMAGE_CHANNELS)
    attributes = int(_u64.unpack_from(buffer, at + IMAGE_HEAD)[0])
    return IMAGE_HEAD + 8 + attributes + int(item * math.prod((*matrix, *channels)))
