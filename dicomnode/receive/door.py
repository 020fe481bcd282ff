"""The first PDU of a connection, read before anything is built for it: an A-ASSOCIATE-RQ in time, or nothing.

HTTP probes, TLS hellos, port scanners and connections that say nothing end here and never hold an association's place.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from typing import Final

from dicomnode.receive import dimse

#: 128 presentation contexts with every transfer syntax are 400 KB.
_LARGEST_REQUEST: Final = 1 << 20
#: The fixed part: protocol version, AE titles (PS3.8 9.3.2).
_FIXED: Final = 68


class NotDICOM(Exception):
    """The peer speaks something else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Knock:
    """An A-ASSOCIATE-RQ, read but not yet parsed beyond its titles."""

    called_ae: str
    calling_ae: str
    pdu: bytes


def answer(sock: socket.socket, timeout: float) -> Knock | None:
    """Read the association request; None when the peer closes without a word.

    Raises
    ------
    NotDICOM
        What comes is not an association request.
    TimeoutError
        It does not come in ``timeout`` seconds (ARTIM, PS3.8 9.1.5).
    OSError
        The connection broke.
    """
    deadline = time.monotonic() + timeout
    start = _read(sock, dimse.PDU.size, deadline)
    if not start:
        return None
    kind, length = dimse.PDU.unpack(start) if len(start) == dimse.PDU.size else (0, 0)
    if kind != dimse.ASSOCIATE_RQ:
        raise NotDICOM(f"it began with {start!r}")
    if not _FIXED <= length <= _LARGEST_REQUEST:
        raise NotDICOM(f"an association request of {length} bytes was announced")
    body = _read(sock, length, deadline)
    if len(body) < length:
        return None
    return Knock(
        called_ae=_title(body[4:20]),
        calling_ae=_title(body[20:36]),
        pdu=bytes(start + body),
    )


def turn_away(sock: socket.socket, pdu: bytes) -> None:
    """Send a last PDU and see that it arrives: closing with unread bytes would destroy it on its way."""
    try:
        sock.settimeout(1.0)
        sock.sendall(pdu)
        sock.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + 1.0
        while sock.recv(65536) and time.monotonic() < deadline:
            pass
    except OSError:
        return


def _read(sock: socket.socket, count: int, deadline: float) -> bytearray:
    out = bytearray()
    while len(out) < count:
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        part = sock.recv(count - len(out))
        if not part:
            break
        out += part
        if time.monotonic() > deadline:
            raise TimeoutError("the association request did not come in time")
    return out


def _title(raw: bytes | bytearray) -> str:
    return "".join(chr(byte) if 32 <= byte < 127 else "?" for byte in raw).strip()
