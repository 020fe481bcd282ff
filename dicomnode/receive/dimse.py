"""The few bytes of upper layer (PS3.8 9.3) and DIMSE (PS3.7 9.3) that the streaming loop reads and writes itself."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)
#: PDU type and length; then item length, context and control header of a PDV.
PDU: Final = struct.Struct(">BxL")
PDV: Final = struct.Struct(">LBB")
#: Message control header (PS3.8 E.2): command rather than data set; last fragment.
COMMAND, LAST = 1, 2

C_STORE_RQ, C_ECHO_RQ = 0x0001, 0x0030
#: Command Data Set Type (0000,0800) of a message without data set (PS3.7 E.1).
NO_DATA_SET: Final = 0x0101

#: A-ABORT by the service provider (PS3.8 9.3.8).
ABORT_UNSPECIFIED, ABORT_UNEXPECTED_PDU, ABORT_INVALID_PARAMETER = 0, 2, 6

_CLASS, _FIELD, _MESSAGE_ID, _RESPONDED, _DATA_SET, _STATUS, _INSTANCE = (
    0x0002,
    0x0100,
    0x0110,
    0x0120,
    0x0800,
    0x0900,
    0x1000,
)
_element = struct.Struct("<HHL").pack
_read_element = struct.Struct("<HHL").unpack_from
#: Longer UIDs are not echoed: they are optional in a response, which must fit the smallest PDU.
_LONGEST_ECHOED: Final = 64


@dataclass(frozen=True, slots=True)
class Command:
    """What the loop reads of a request's command set."""

    field: int
    message_id: bytes
    sop_class: bytes
    sop_instance: bytes
    has_data_set: bool


def command(raw: bytes | bytearray) -> Command | None:
    """Read a command set (always implicit VR little endian, PS3.7 6.3.1); None when it is not one with a message ID."""
    found: dict[int, bytes] = {}
    position = 0
    while position + 8 <= len(raw):
        group, element, length = _read_element(raw, position)
        position += 8
        if group != 0 or position + length > len(raw):
            return None
        found[element] = bytes(raw[position : position + length])
        position += length
    if position != len(raw) or len(found.get(_FIELD, b"")) != 2 or len(found.get(_MESSAGE_ID, b"")) != 2:
        return None
    return Command(
        field=int.from_bytes(found[_FIELD], "little"),
        message_id=found[_MESSAGE_ID],
        sop_class=found.get(_CLASS, b""),
        sop_instance=found.get(_INSTANCE, b""),
        has_data_set=int.from_bytes(found.get(_DATA_SET, b"\1\1"), "little") != NO_DATA_SET,
    )


def response(context_id: int, request: Command, status: int) -> bytes:
    """The whole P-DATA-TF PDU that answers a C-STORE or C-ECHO request."""
    parts = []
    if 0 < len(request.sop_class) <= _LONGEST_ECHOED:
        parts.append(_element(0, _CLASS, len(request.sop_class)) + request.sop_class)
    parts += [
        _element(0, _FIELD, 2) + struct.pack("<H", request.field | 0x8000),
        _element(0, _RESPONDED, 2) + request.message_id,
        _element(0, _DATA_SET, 2) + struct.pack("<H", NO_DATA_SET),
        _element(0, _STATUS, 2) + struct.pack("<H", status),
    ]
    if request.field == C_STORE_RQ and 0 < len(request.sop_instance) <= _LONGEST_ECHOED:
        parts.append(_element(0, _INSTANCE, len(request.sop_instance)) + request.sop_instance)
    body = b"".join(parts)
    body = _element(0, 0, 4) + struct.pack("<L", len(body)) + body
    return PDU.pack(P_DATA, len(body) + 6) + PDV.pack(len(body) + 2, context_id, COMMAND | LAST) + body


def reframed(context_id: int, raw: bytes | bytearray, rest_of_pdu: int) -> bytes:
    """A PDU header and the PDV of a command already read, before ``rest_of_pdu`` bytes that are still to be read."""
    return PDU.pack(P_DATA, len(raw) + 6 + rest_of_pdu) + PDV.pack(len(raw) + 2, context_id, COMMAND | LAST) + raw


def abort(reason: int) -> bytes:
    """An A-ABORT PDU from the service provider."""
    return PDU.pack(ABORT, 4) + bytes((0, 0, 2, reason))


def reject(result: int, source: int, reason: int) -> bytes:
    """An A-ASSOCIATE-RJ PDU (PS3.8 9.3.4)."""
    return PDU.pack(ASSOCIATE_RJ, 4) + bytes((0, result, source, reason))


def uid(raw: bytes) -> str:
    """A UID of a command or data set without its padding; anything else as it is, byte by byte."""
    return raw.rstrip(b"\0 ").decode("latin-1")
