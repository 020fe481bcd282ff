"""One association as requestor: opening it with every failure named, and borrowing its socket.

pynetdicom negotiates and releases. In between its two threads may be parked, for two reasons: `send_c_store` and
`send_c_find` lose a race against the association's own thread now and then under load (that thread takes the answer,
the call waits for the DIMSE timeout and aborts), and the streaming sender reads and writes the socket itself. The
private names used here (`_reactor_checkpoint`, `_create_socket`, `_kill`) are held by a contract test.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final, Protocol

from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AddressInformation, AssociationSocket

from dicomnode.dicom import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicomnode.errors import AssociationAborted, AssociationRejected, ContextNotAccepted, PeerUnreachable

#: Longest PDU we take and, if the peer takes it, send [bytes].
MAX_PDU: Final = 131072
#: pynetdicom's threads look at their flags every millisecond; under any load they get there within this [s].
_PARK_S: Final = 10.0


class Peer(Protocol):
    """Where to call; `config.Destination` and `config.Query` are such."""

    @property
    def ae_title(self) -> str:
        """Title it answers to."""

    @property
    def host(self) -> str:
        """Host name or address."""

    @property
    def port(self) -> int:
        """TCP port."""

    @property
    def timeout(self) -> float:
        """How long to wait for anything it does [s]."""


def name_of(peer: Peer) -> str:
    """How a peer is called in messages."""
    return f"{peer.ae_title} at {peer.host}:{peer.port}"


class _TCP(socket.socket):
    """Remembers why it could not connect; pynetdicom only logs it."""

    failure: OSError | None = None

    def connect(self, address: object) -> None:
        try:
            super().connect(address)  # type: ignore[arg-type]
        except OSError as error:
            self.failure = error
            raise


class ParkableSocket(AssociationSocket):
    """Lets somebody else read and write the connection while pynetdicom's thread waits."""

    def __init__(self, assoc: Association, address: AddressInformation) -> None:
        self._parked, self._go = threading.Event(), threading.Event()
        self._go.set()
        self._unread = b""
        self.tcp: _TCP | None = None
        super().__init__(assoc, address=address)

    def _create_socket(self, address: AddressInformation) -> socket.socket:
        plain = super()._create_socket(address)
        self.tcp = _TCP(fileno=plain.detach())
        # Nagle's algorithm against a peer that delays its ACKs costs 40 ms an object.
        self.tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.tcp

    def borrow(self) -> socket.socket | None:
        """Park pynetdicom's thread and return the connection; None if that thread has ended."""
        self._parked.clear()
        self._go.clear()
        thread = self.assoc.dul
        for _ in range(int(_PARK_S / 0.05)):
            if self._parked.wait(0.05):
                return self.socket
            if not thread.is_alive():
                break
        self._go.set()
        return None

    def give_back(self, unread: bytes) -> None:
        """Let pynetdicom go on, with what was read and is not for the borrower."""
        self._unread = unread
        self._go.set()

    @property
    def ready(self) -> bool:
        """Whether there is something to read; pynetdicom's thread asks in every round and is parked here."""
        if not self._go.is_set():
            self._parked.set()
            self._go.wait()
        return bool(self._unread) or bool(AssociationSocket.ready.fget(self))  # type: ignore[attr-defined]

    def recv(self, nr_bytes: int) -> bytearray:
        """Read so many bytes, first of what the borrower left."""
        start = bytearray(self._unread[:nr_bytes])
        self._unread = self._unread[nr_bytes:]
        return start + super().recv(nr_bytes - len(start)) if len(start) < nr_bytes else start


class _Gate(threading.Event):
    """Replaces the checkpoint of an association's thread: pynetdicom's own calls cannot open it."""

    def __init__(self, assoc: Association) -> None:
        super().__init__()
        self._parked, self._assoc, self._old = threading.Event(), assoc, assoc._reactor_checkpoint
        assoc._reactor_checkpoint = self
        for _ in range(int(_PARK_S / 0.05)):
            if self._parked.wait(0.05) or not assoc.is_alive():
                break

    def set(self) -> None:
        """Stay shut; whoever holds the gate opens it."""

    def wait(self, timeout: float | None = None) -> bool:
        self._parked.set()
        return super().wait(timeout)

    def open(self) -> None:
        self._assoc._reactor_checkpoint = self._old
        self._old.set()
        super().set()


class _Requestor(AE):
    def _create_socket(
        self, assoc: Association, address: AddressInformation, tls_args: tuple[ssl.SSLContext, str] | None
    ) -> AssociationSocket:
        sock = ParkableSocket(assoc, address)
        sock.tls_args = tls_args
        return sock


@contextmanager
def associate(peer: Peer, calling_ae: str, contexts: Sequence[PresentationContext]) -> Iterator[Association]:
    """Hold an association whose own thread is parked; released at the end, aborted if the block raised.

    Raises
    ------
    PeerUnreachable, AssociationRejected, AssociationAborted
        It could not be opened.
    ContextNotAccepted
        The peer took the association and refused every context.
    """
    assoc = _open(peer, calling_ae, contexts)
    gate = _Gate(assoc)
    try:
        yield assoc
    except BaseException:
        gate.open()
        cut(assoc)
        raise
    gate.open()
    if assoc.is_established:
        assoc.release()
    cut(assoc)


def _open(peer: Peer, calling_ae: str, contexts: Sequence[PresentationContext]) -> Association:
    ae = _Requestor(ae_title=calling_ae)
    ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    ae.connection_timeout = ae.acse_timeout = ae.dimse_timeout = peer.timeout
    ae.network_timeout = None  # idle time is ours to watch: the timer would run while the thread is parked

    def opened(event: evt.Event) -> None:
        # Without this a peer that stops in the middle of a PDU would hold pynetdicom's thread for ever.
        sock = event.assoc.dul.socket
        if sock is not None and sock.socket is not None:
            sock.socket.settimeout(peer.timeout)

    try:
        assoc = ae.associate(
            peer.host,
            peer.port,
            contexts=list(contexts),
            ae_title=peer.ae_title,
            max_pdu=MAX_PDU,
            evt_handlers=[(evt.EVT_CONN_OPEN, opened)],
        )
    except OSError as error:  # the name does not resolve
        raise PeerUnreachable(f"{name_of(peer)} is not reachable: {error.strerror or error}") from error
    if assoc.is_established:
        return assoc
    _explain(peer, calling_ae, assoc)
    raise AssociationAborted(f"{name_of(peer)} did not complete the association")


def _explain(peer: Peer, calling_ae: str, assoc: Association) -> None:
    """Raise what an association that was not established died of."""
    sock = assoc.dul.socket
    failure = sock.tcp.failure if isinstance(sock, ParkableSocket) and sock.tcp is not None else None
    answer = assoc.acceptor.primitive
    cut(assoc)
    if failure is not None:
        reason = "it does not answer in time" if isinstance(failure, TimeoutError) else failure.strerror or str(failure)
        raise PeerUnreachable(f"{name_of(peer)} is not reachable: {reason}")
    if answer is None:
        raise PeerUnreachable(
            f"{name_of(peer)} took the connection and gave no proper answer within {peer.timeout:g} s"
        )
    if assoc.is_rejected:
        reason = f"{answer.result_str}, {answer.reason_str}" if answer.result else "no reason given"
        raise AssociationRejected(
            f"{name_of(peer)} rejected the association of {calling_ae}: {reason}; "
            "check both AE titles and what it allows them"
        )
    if answer.result == 0 and not assoc.accepted_contexts:
        raise ContextNotAccepted(f"{name_of(peer)} refused every presentation context that was proposed")


def break_off(assoc: Association) -> None:
    """Shut the connection down, whatever is on its way."""
    sock = assoc.dul.socket
    tcp = sock.socket if sock is not None else None
    if tcp is not None:
        with suppress(OSError):
            tcp.shutdown(socket.SHUT_RDWR)


def cut(assoc: Association) -> None:
    """End what is left of an association at once, without waiting for the peer."""
    break_off(assoc)
    sock = assoc.dul.socket
    if isinstance(sock, ParkableSocket):
        sock.give_back(sock._unread)
    assoc.kill()
    if assoc.is_alive():
        assoc.join(_PARK_S)
