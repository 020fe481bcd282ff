"""Listens, lets in whom the policy allows, and starts an association for each."""

from __future__ import annotations

import logging
import socket
import socketserver
import threading
import time
from typing import Any, Final

from pynetdicom import AE, _config, evt
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from dicomnode.dicom import (
    ACCEPTED_TRANSFER_SYNTAXES,
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    STORAGE_SOP_CLASSES,
    UNCOMPRESSED,
)
from dicomnode.receive import dimse, door
from dicomnode.receive.association import ReceiverAssociation
from dicomnode.receive.intake import Intake
from dicomnode.receive.policy import Policy, Rejection
from dicomnode.receive.request import Peer

logger = logging.getLogger(__name__)

#: Connections that may stand before the door besides the associations inside.
_WAITING_ROOM: Final = 64
#: Peers remembered as having spoken something else, so that a port scanner costs one line.
_MOST_REMEMBERED: Final = 1000


def application_entity(intake: Intake) -> AE:
    """Set pynetdicom up: every storage class in every transfer syntax, C-ECHO, our identity and timeouts."""
    settings = intake.settings
    _config.LOG_HANDLER_LEVEL = "none"  # its handlers decode every data set for the log
    entity = AE(ae_title=settings.ae_titles[0])
    entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    entity.maximum_pdu_size = settings.max_pdu
    entity.maximum_associations = 1 << 16  # counted here, before the library is asked
    entity.acse_timeout = settings.acse_timeout
    entity.dimse_timeout = settings.idle_timeout
    entity.network_timeout = settings.idle_timeout
    entity.add_supported_context(Verification, list(UNCOMPRESSED))
    for sop_class in STORAGE_SOP_CLASSES:
        entity.add_supported_context(sop_class, list(ACCEPTED_TRANSFER_SYNTAXES))
    return entity


class Server(ThreadedAssociationServer):
    """The listening socket and what came in through it."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, entity: AE, address: tuple[str, int], intake: Intake) -> None:
        self.intake, self.policy = intake, Policy(intake.settings)
        self.closing = False
        self._lock = threading.Lock()
        self._inside: set[ReceiverAssociation] = set()
        self._waiting: set[socket.socket] = set()
        self._strangers: set[str] = set()
        self._last_id = 0
        super().__init__(
            entity,
            address,
            intake.settings.ae_titles[0],
            entity.supported_contexts,
            evt_handlers=[(evt.EVT_C_STORE, _store)],
            request_handler=_Door,
        )

    @property
    def associations(self) -> list[ReceiverAssociation]:
        """Those that are open or being negotiated."""
        with self._lock:
            return list(self._inside)

    def next_id(self) -> int:
        """An association identifier that no earlier run has used: microseconds since 1970, counted on."""
        with self._lock:
            self._last_id = max(self._last_id + 1, time.time_ns() // 1000)
            return self._last_id

    def came(self, client: socket.socket) -> bool:
        """A connection stands before the door; False when too many do."""
        with self._lock:
            if self.closing or len(self._waiting) >= self.intake.settings.max_associations + _WAITING_ROOM:
                return False
            self._waiting.add(client)
            return True

    def went(self, client: socket.socket) -> None:
        """It came in, or left."""
        with self._lock:
            self._waiting.discard(client)

    def entered(self, association: ReceiverAssociation) -> Rejection | None:
        """Give an association its place, unless all are taken."""
        limit = self.intake.settings.max_associations
        with self._lock:
            if self.closing or len(self._inside) >= limit:
                return Policy.full(limit)
            self._inside.add(association)
            return None

    def left(self, association: ReceiverAssociation) -> None:
        """It ended."""
        with self._lock:
            self._inside.discard(association)

    def full(self) -> bool:
        """Whether every place is taken."""
        with self._lock:
            return self.closing or len(self._inside) >= self.intake.settings.max_associations

    def first_time(self, address: str) -> bool:
        """Whether this peer was not yet known to speak something else."""
        with self._lock:
            if address in self._strangers:
                return False
            if len(self._strangers) >= _MOST_REMEMBERED:
                self._strangers.clear()
            self._strangers.add(address)
            return True

    def close_door(self) -> None:
        """Let nobody in any more; who stands before the door is sent away."""
        with self._lock:
            self.closing = True
            waiting = list(self._waiting)
        socketserver.BaseServer.shutdown(self)  # the library's own wants the server to be in a list of the AE's
        self.server_close()
        for client in waiting:
            try:
                client.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002 - socketserver's signature
        """Log what went wrong before an association stood."""
        logger.exception(
            "A connection failed", extra={"action": "connection_failed", "address": _address(client_address)}
        )


class _Door(RequestHandler):
    """Runs in a thread of its own for each connection, until the association has its own threads."""

    server: Server

    def handle(self) -> None:
        """Read the request, then reject it or start an association."""
        client: socket.socket = self.request
        address = _address(self.client_address)
        if not self.server.came(client):
            self.server.shutdown_request(client)
            return
        started = False
        try:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            knock = door.answer(client, self.server.intake.settings.acse_timeout)
            if knock is not None:
                started = self._judge(client, address, knock)
        except door.NotDICOM as error:
            self._send_stranger_away(client, address, error)
        except TimeoutError:
            extra = {"action": "connection_silent", "address": address}
            logger.info("A connection from %s sent no association request", address, extra=extra)
        except OSError as error:
            logger.debug("A connection from %s broke: %s", address, error)
        finally:
            self.server.went(client)
            if not started:
                self.server.shutdown_request(client)

    def _judge(self, client: socket.socket, address: str, knock: door.Knock) -> bool:
        """Reject, or start the association and return True."""
        rejection = self.server.policy.judge(knock.called_ae, knock.calling_ae, address)
        if rejection is None and self.server.full():
            rejection = Policy.full(self.server.intake.settings.max_associations)
        if rejection is None:
            association = self._associate(client, address, knock)
            rejection = self.server.entered(association)
            if rejection is None:
                association.start()
                return True
        logger.warning(
            "Association from %s at %s rejected: %s",
            knock.calling_ae,
            address,
            rejection.text,
            extra={
                "action": "association_rejected",
                "code": rejection.code,
                "calling_ae": knock.calling_ae,
                "called_ae": knock.called_ae,
                "address": address,
            },
        )
        door.turn_away(client, dimse.reject(*rejection.parameters))
        return False

    def _associate(self, client: socket.socket, address: str, knock: door.Knock) -> ReceiverAssociation:
        """`RequestHandler._create_association`, with another class and without its copy of every context.

        The library deep-copies all supported contexts for each association (50 ms with every storage class); they are
        only read.
        """
        server = self.server
        peer = Peer(
            association_id=server.next_id(), calling_ae=knock.calling_ae, called_ae=knock.called_ae, address=address
        )
        association = ReceiverAssociation(server.ae, server, server.intake, peer, client, knock.pdu)
        acceptor = association.acceptor
        acceptor.maximum_length = server.ae.maximum_pdu_size
        acceptor.ae_title = server.ae_title
        acceptor.address_info = self.local
        acceptor.implementation_class_uid = server.ae.implementation_class_uid
        acceptor.implementation_version_name = server.ae.implementation_version_name
        contexts: list[PresentationContext] = server.contexts
        acceptor.supported_contexts = contexts
        association.requestor.address_info = self.remote
        association.bind(evt.EVT_C_STORE, _store)
        return association

    def _send_stranger_away(self, client: socket.socket, address: str, error: door.NotDICOM) -> None:
        if self.server.first_time(address):
            logger.warning(
                "%s does not speak DICOM on this port: %s (said once for this peer)",
                address,
                error,
                extra={"action": "not_dicom", "address": address},
            )
        door.turn_away(client, dimse.abort(dimse.ABORT_UNEXPECTED_PDU))


def _store(event: evt.Event) -> int:
    association = event.assoc
    assert isinstance(association, ReceiverAssociation)
    return association.store(event)


def _address(client_address: Any) -> str:  # noqa: ANN401 - whatever the socket module calls an address
    return str(client_address[0]) if isinstance(client_address, tuple) and client_address else str(client_address)
