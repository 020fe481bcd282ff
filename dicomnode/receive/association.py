"""pynetdicom's association with the streaming loop in front of its own reactor.

Two threads work on an association in pynetdicom: one reads PDUs from the socket, one serves messages. While the
streaming loop reads the socket itself, the first is parked: it parks in `PushbackSocket.ready` right after it has sent
A-ASSOCIATE-AC, before the peer can send anything more, so the two never compete for a byte. What the loop does not
serve is pushed back, the reader is let go, and the library goes on as if nothing had been there.

The private names of pynetdicom that this relies on are listed in tests/unit/test_receive_contract.py.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from typing import TYPE_CHECKING, Final

from pynetdicom import evt
from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.transport import AssociationSocket

from dicomnode.domain import Association as AssociationRow
from dicomnode.domain import AssociationEnd
from dicomnode.receive import dimse
from dicomnode.receive.intake import Intake
from dicomnode.receive.request import Peer, Request
from dicomnode.receive.stream import Counts, ProtocolError, Stream, largest_pdu, set_timeouts

if TYPE_CHECKING:
    from dicomnode.receive.server import Server

logger = logging.getLogger(__name__)

#: Pause between two looks of the library's reading thread [s], a fifth of its own: it looks only while an association
#: is negotiated or released, and each takes several looks.
_POLL: Final = 0.0002
_VERIFICATION: Final = "1.2.840.10008.1.1"


class PushbackSocket(AssociationSocket):
    """The library's socket: first hands out what was read ahead of it, waits while somebody else reads.

    Parameters
    ----------
    ahead
        Bytes read from the socket already (the association request).
    park
        Park the library's reading thread once A-ASSOCIATE-AC is sent.
    """

    def __init__(self, association: ReceiverAssociation, client: socket.socket, ahead: bytes, *, park: bool) -> None:
        self._ahead, self._park = ahead, park
        self._unparked = threading.Event()
        self._unparked.set()
        self._settings = association.intake.settings
        self._largest = largest_pdu(self._settings.max_pdu)
        super().__init__(association, client_socket=client)
        set_timeouts(client, self._settings)

    def unpark(self, ahead: bytes = b"") -> None:
        """Let the library read, first the bytes given here."""
        self._ahead += ahead
        self._unparked.set()

    @property
    def ready(self) -> bool:
        """Whether there is something to read."""
        self._unparked.wait()
        return bool(self._ahead) or super().ready

    def send(self, bytestream: bytes) -> None:
        """Send one PDU."""
        if self._park and bytestream[0] == dimse.ASSOCIATE_AC:
            self._unparked.clear()
        super().send(bytestream)

    def recv(self, nr_bytes: int) -> bytearray:
        """Read exactly ``nr_bytes``, or fewer when the peer closes; give up on a peer that does not go on."""
        if nr_bytes > self._largest:
            self._abort()
            raise OSError(f"a PDU of {nr_bytes} bytes was announced")
        out = bytearray(self._ahead[:nr_bytes])
        self._ahead = self._ahead[nr_bytes:]
        deadline = time.monotonic() + self._settings.pdu_timeout
        while len(out) < nr_bytes:
            if self.socket is None:
                break
            try:
                part = self.socket.recv(min(nr_bytes - len(out), 1 << 18))
            except BlockingIOError:
                part = None
            if part == b"":
                break
            out += part or b""
            if time.monotonic() > deadline and len(out) < nr_bytes:
                self._abort()
                raise TimeoutError("the rest of a PDU did not come in time")
        return out

    def _abort(self) -> None:
        with contextlib.suppress(OSError):
            if self.socket is not None:
                self.socket.sendall(dimse.abort(dimse.ABORT_INVALID_PARAMETER))


class ReceiverAssociation(Association):
    """One association towards the Storage SCP."""

    def __init__(
        self, ae: ApplicationEntity, server: Server, intake: Intake, peer: Peer, client: socket.socket, ahead: bytes
    ) -> None:
        super().__init__(ae, MODE_ACCEPTOR)
        self.intake, self.peer, self.counts = intake, peer, Counts()
        self._owner, self._server = server, server
        self._client = client
        self._streaming = intake.settings.engine == "streaming"
        self._stream: Stream | None = None
        self._began = time.monotonic()
        self._recorded = False
        self.name = f"AcceptorThread@{peer.association_id}"
        self.set_socket(PushbackSocket(self, client, ahead, park=self._streaming))
        if self._streaming:
            self.dul._run_loop_delay = _POLL

    def run(self) -> None:
        """Negotiate, serve, and say how it ended."""
        try:
            super().run()
        except Exception:  # association boundary: one peer's trouble is nobody else's
            logger.exception(
                "An association failed", extra={"action": "association_failed", "calling_ae": self.peer.calling_ae}
            )
        finally:
            self._wrapper.unpark()
            self._owner.left(self)
            with contextlib.suppress(OSError):
                self._client.close()
            self._report_end()

    def stop_soon(self) -> None:
        """End between two objects."""
        stream = self._stream
        if stream is None:
            self.cut()
            return
        stream.stopping = True
        if not stream.amid:
            with contextlib.suppress(OSError):
                self._client.shutdown(socket.SHUT_RD)

    def cut(self) -> None:
        """End now, whatever is going on."""
        with contextlib.suppress(OSError):
            self._client.sendall(dimse.abort(dimse.ABORT_UNSPECIFIED))
        with contextlib.suppress(OSError):
            self._client.shutdown(socket.SHUT_RDWR)

    def store(self, event: evt.Event) -> int:
        """C-STORE the library's way (``engine: stock``, and whatever follows a service the loop does not serve)."""
        request, context = event.request, event.context
        assert isinstance(request, C_STORE)
        data = request.DataSet.getvalue() if request.DataSet is not None else b""
        sink = self.intake.open(
            self.peer,
            Request(
                sop_class_uid=str(request.AffectedSOPClassUID or ""),
                sop_instance_uid=str(request.AffectedSOPInstanceUID or ""),
                abstract_syntax=str(context.abstract_syntax),
                transfer_syntax_uid=str(context.transfer_syntax),
            ),
        )
        sink.write([data] if data else [])
        status = sink.done()
        self.counts.add(status, sink.size)
        return status

    def _run_reactor(self) -> None:
        self._open()
        if self._streaming:
            self._serve()
        super()._run_reactor()

    @property
    def _wrapper(self) -> PushbackSocket:
        wrapper = self.dul.socket
        assert isinstance(wrapper, PushbackSocket)
        return wrapper

    def _open(self) -> None:
        contexts = {str(context.abstract_syntax) for context in self._accepted_cx.values()}
        #: An association that cannot carry an image (an echo every ten seconds) leaves no row.
        self._recorded = bool(contexts - {_VERIFICATION})
        if self._recorded:
            row = AssociationRow(
                id=self.peer.association_id,
                calling_ae=self.peer.calling_ae,
                called_ae=self.peer.called_ae,
                address=self.peer.address,
                opened_at=self.intake.clock(),
            )
            self.intake.committer.opened(row)
        logger.info(
            "Association accepted from %s",
            self.peer.calling_ae,
            extra={"action": "association_accepted", "contexts": len(self._accepted_cx), **self._who()},
        )

    def _serve(self) -> None:
        accepted = {
            number: (str(context.abstract_syntax), str(context.transfer_syntax[0]))
            for number, context in self._accepted_cx.items()
        }
        self._stream = Stream(self._client, accepted, self.peer, self.intake, self.counts)
        ahead = b""
        try:
            ahead = self._stream.run()
        except ProtocolError as error:
            self._abort_stream(error.reason, str(error))
        except OSError as error:
            logger.debug("The connection is gone: %s", error)  # the library meets the broken socket and ends
        except Exception:  # association boundary
            logger.exception("The streaming loop failed", extra={"action": "receive_failed", **self._who()})
            self._abort_stream(dimse.ABORT_UNSPECIFIED, "internal error")
        finally:
            self._stream = None
            self.dul._idle_timer.restart()
            self._wrapper.unpark(ahead)

    def _abort_stream(self, reason: int, text: str) -> None:
        logger.warning(
            "Association with %s aborted: %s",
            self.peer.calling_ae,
            text,
            extra={"action": "association_aborted", "reason": text, **self._who()},
        )
        with contextlib.suppress(OSError):
            self._client.sendall(dimse.abort(reason))
        with contextlib.suppress(OSError):
            self._client.shutdown(socket.SHUT_RDWR)

    def _report_end(self) -> None:
        if not self._accepted_cx and not self.counts.bytes:
            return
        end = AssociationEnd.RELEASED if self.is_released else AssociationEnd.ABORTED
        if self._recorded:
            self.intake.committer.closed(self.peer.association_id, end, self.intake.clock())
        seconds = time.monotonic() - self._began
        logger.info(
            "Association with %s %s: %d stored, %d not",
            self.peer.calling_ae,
            end.value,
            self.counts.stored,
            self.counts.failed,
            extra={
                "action": "association_ended",
                "end": end.value,
                "stored": self.counts.stored,
                "failed": self.counts.failed,
                "megabytes": round(self.counts.bytes / 1e6, 3),
                "megabytes_per_second": round(self.counts.bytes / 1e6 / seconds, 1) if seconds else 0.0,
                "seconds": round(seconds, 3),
                **self._who(),
            },
        )

    def _who(self) -> dict[str, object]:
        return {
            "association": self.peer.association_id,
            "calling_ae": self.peer.calling_ae,
            "called_ae": self.peer.called_ae,
            "address": self.peer.address,
        }
