"""C-STORE and C-ECHO straight from the socket: PDV payloads go from one buffer to the file, and nothing is joined.

pynetdicom's own path costs two polling threads, a copy for each PDU and 1-2 ms of Python an object, and gets 0.15-0.2
of what DCMTK's ``storescp`` takes (ingest study, section 4). This loop reads the socket in the association's thread.
Whatever it does not serve itself is handed back unread: the caller lets pynetdicom's reactor go on from there.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from dicomnode.dicom import SUCCESS
from dicomnode.faults import reached
from dicomnode.receive import dimse
from dicomnode.receive.dimse import COMMAND, LAST, P_DATA, PDU, PDV, Command
from dicomnode.receive.intake import Intake, Sink
from dicomnode.receive.request import Peer, Request
from dicomnode.receive.settings import Settings

#: Bytes read at once; two of the largest PDUs that are advertised. An association's memory is this, at any object size.
_BUFFER: Final = 262144
#: A command set is a few hundred bytes (PS3.7 E.1); more is not one.
_LARGEST_COMMAND: Final = 16384
#: The socket wakes the loop this often to look at its deadlines [s].
_TICK: Final = 1.0


def largest_pdu(max_pdu: int) -> int:
    """Length up to which a PDU is believed: a peer may overlook what was advertised, but no PDU is gigabytes long."""
    return max(1 << 20, 2 * max_pdu)


def set_timeouts(sock: socket.socket, settings: Settings) -> None:
    """Let the kernel wake a reader now and then and a stuck writer; spares a poll() for each read."""
    tick = min(_TICK, settings.idle_timeout / 4, settings.pdu_timeout / 4)
    sock.settimeout(None)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(tick), int(tick % 1 * 1_000_000)))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", max(1, int(settings.pdu_timeout)), 0))


class ProtocolError(Exception):
    """The peer cannot be understood or does not go on; the association is aborted."""

    def __init__(self, reason: int, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(slots=True)
class Counts:
    """What an association brought."""

    stored: int = 0
    failed: int = 0
    bytes: int = 0

    def add(self, status: int, size: int) -> None:
        """Count one answered object."""
        self.bytes += size
        if status == SUCCESS:
            self.stored += 1
        else:
            self.failed += 1


class Stream:
    """The conversation on one association's socket after negotiation.

    Parameters
    ----------
    accepted
        Presentation context ID -> (abstract syntax, transfer syntax).
    """

    def __init__(
        self, sock: socket.socket, accepted: Mapping[int, tuple[str, str]], peer: Peer, intake: Intake, counts: Counts
    ) -> None:
        self._sock, self._accepted, self._peer = sock, accepted, peer
        self._intake, self._settings, self._counts = intake, intake.settings, counts
        #: An object is on its way in.
        self.amid = False
        #: Set by another thread: end between two objects. It shuts the socket's reading side to wake a waiting loop.
        self.stopping = False
        self._largest = largest_pdu(intake.settings.max_pdu)

    def run(self) -> bytes:
        """Serve until something else comes; return the bytes that were read of it (none: the peer has closed).

        Raises
        ------
        ProtocolError
            The association must be aborted.
        OSError
            The connection is gone.
        """
        set_timeouts(self._sock, self._settings)
        return self._serve()

    def _serve(self) -> bytes:
        """Serve; longer than a page because the state of the hot loop stays in local variables."""
        largest, accepted = self._largest, self._accepted
        buffer = memoryview(bytearray(_BUFFER))
        unpack_pdu, unpack_pdv = PDU.unpack_from, PDV.unpack_from
        position = end = pdu_left = pdv_left = control = context = 0
        collected = bytearray()  # of a command set
        request: Command | None = None
        sink: Sink | None = None
        chunks: list[memoryview] = []
        now = time.monotonic()
        pdu_began = now
        try:
            while True:
                while True:  # walk what is in the buffer
                    if not pdv_left:
                        if not pdu_left:
                            if end - position < 6:
                                break
                            kind, pdu_left = unpack_pdu(buffer, position)
                            if kind in (dimse.RELEASE_RQ, dimse.ABORT):
                                return bytes(buffer[position:end])
                            if kind != P_DATA:
                                raise ProtocolError(dimse.ABORT_UNEXPECTED_PDU, f"a PDU of type {kind} came")
                            if pdu_left > largest:
                                raise ProtocolError(
                                    dimse.ABORT_INVALID_PARAMETER, f"a PDU of {pdu_left} bytes was announced"
                                )
                            position += 6
                            pdu_began = now
                            if not pdu_left:
                                continue
                        if end - position < 6:
                            break
                        pdv_left, context, control = unpack_pdv(buffer, position)
                        position += 6
                        pdu_left -= pdv_left + 4
                        pdv_left -= 2
                        if pdu_left < 0 or pdv_left < 0 or bool(control & COMMAND) == (sink is not None):
                            raise ProtocolError(
                                dimse.ABORT_INVALID_PARAMETER, "a PDV does not fit its PDU or the message"
                            )
                    take = min(pdv_left, end - position)
                    part = buffer[position : position + take]
                    position += take
                    pdv_left -= take
                    if control & COMMAND:
                        collected += part
                        if len(collected) > _LARGEST_COMMAND:
                            raise ProtocolError(dimse.ABORT_INVALID_PARAMETER, "a command set has no end")
                    elif take:
                        chunks.append(part)
                    if pdv_left:
                        break
                    if not control & LAST:
                        continue
                    if control & COMMAND:
                        request = dimse.command(collected)
                        if request is None:
                            raise ProtocolError(dimse.ABORT_INVALID_PARAMETER, "a command set cannot be read")
                        if request.field not in (dimse.C_STORE_RQ, dimse.C_ECHO_RQ) or context not in accepted:
                            return dimse.reframed(context, collected, pdu_left) + bytes(buffer[position:end])
                        collected.clear()
                        sink = self._begin(context, request)
                    elif sink is not None and request is not None:
                        sink.write(chunks)
                        chunks = []
                        done, sink = sink, None
                        self._finish(context, request, done)
                        if self.stopping:
                            raise ProtocolError(dimse.ABORT_UNSPECIFIED, "the node is stopping")
                if chunks and sink is not None:
                    sink.write(chunks)
                    chunks = []
                rest = end - position  # less than a header
                if rest and position:
                    buffer[:rest] = bytes(buffer[position:end])
                    if not pdu_left:
                        pdu_began = now
                position, end = 0, rest
                inside = bool(pdu_left or pdv_left or rest)
                count = self._read(buffer[end:], inside=inside, since=pdu_began if inside else now)
                if not count:
                    return b""
                end += count
                now = time.monotonic()
        finally:
            if sink is not None:
                sink.abandon()

    def _read(self, room: memoryview, *, inside: bool, since: float) -> int:
        """Read what is there; gives up on a peer that leaves a PDU unfinished or says nothing for too long."""
        patience = self._settings.pdu_timeout if inside else self._settings.idle_timeout
        while True:
            try:
                count = self._sock.recv_into(room)
            except BlockingIOError:  # the tick of SO_RCVTIMEO
                count = -1
            if self.stopping and not self.amid:
                raise ProtocolError(dimse.ABORT_UNSPECIFIED, "the node is stopping")
            if count >= 0 and not (inside and time.monotonic() - since > patience):
                # Not sticky, so again after each read: a sender without TCP_NODELAY else waits 40 ms an object for
                # our delayed ACK (14 times slower with dcmsend's defaults).
                self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
                return count
            if time.monotonic() - since > patience:
                what = "the rest of a PDU did not come" if inside else "nothing came"
                raise ProtocolError(dimse.ABORT_UNSPECIFIED, f"{what} within {patience:g} s")

    def _begin(self, context: int, request: Command) -> Sink | None:
        """Open an object, or answer at once what has no data set."""
        if request.field == dimse.C_ECHO_RQ:
            self._sock.sendall(dimse.response(context, request, 0))
            return None
        abstract, transfer = self._accepted[context]
        sink = self._intake.open(
            self._peer,
            Request(
                sop_class_uid=dimse.uid(request.sop_class),
                sop_instance_uid=dimse.uid(request.sop_instance),
                abstract_syntax=abstract,
                transfer_syntax_uid=transfer,
            ),
        )
        reached("mid-association")
        if request.has_data_set:
            self.amid = True
            return sink
        self._finish(context, request, sink)
        return None

    def _finish(self, context: int, request: Command, sink: Sink) -> None:
        """Settle an object and answer."""
        status = sink.done()
        self.amid = False
        self._counts.add(status, sink.size)
        self._sock.sendall(dimse.response(context, request, status))
        reached("after-answer")
