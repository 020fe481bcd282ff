"""The private names of pynetdicom that receiving relies on: an upgrade that moves one fails here, not at a scanner."""

from __future__ import annotations

import inspect
import re
import threading

from pynetdicom import AE, acse, association, dul, fsm, transport
from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.pdu import A_ASSOCIATE_AC

from dicomnode.dicom import ACCEPTED_TRANSFER_SYNTAXES, STORAGE_SOP_CLASSES


def source(thing: object) -> str:
    return inspect.getsource(thing)  # type: ignore[arg-type]


def test_association_has_the_reactor_that_is_replaced_and_the_contexts_that_are_read() -> None:
    made = association.Association(AE(), MODE_ACCEPTOR)
    assert callable(made._run_reactor)
    assert made._accepted_cx == {}
    assert made.dul.socket is None
    assert made.dul._run_loop_delay == 0.001
    assert "time.sleep(self._run_loop_delay)" in source(dul.DULServiceProvider.run_reactor)
    assert callable(made.dul._idle_timer.restart)
    assert isinstance(made, threading.Thread)
    assert "self._run_reactor()" in source(association.Association.run_reactor)
    assert "_accepted_cx" in source(acse.ACSE._negotiate_as_acceptor)


def test_the_reading_thread_asks_ready_before_each_read_and_reads_through_the_wrapper() -> None:
    transport_event = source(dul.DULServiceProvider._is_transport_event)
    assert "self.socket.ready" in transport_event and "_read_pdu_data" in transport_event
    reading = source(dul.DULServiceProvider._read_pdu_data)
    assert "self.socket.recv(6)" in reading and "self.socket.recv(pdu_length)" in reading
    assert isinstance(inspect.getattr_static(transport.AssociationSocket, "ready"), property)
    assert list(inspect.signature(transport.AssociationSocket.recv).parameters) == ["self", "nr_bytes"]
    assert list(inspect.signature(transport.AssociationSocket.send).parameters) == ["self", "bytestream"]


def test_the_accept_pdu_is_sent_by_the_reading_thread_through_the_wrapper() -> None:
    # PushbackSocket.send parks that thread: nothing can be read twice only because it is the one that sends.
    assert "A_ASSOCIATE_AC" in source(fsm.AE_7) and "dul._send" in source(fsm.AE_7)
    assert "self.socket.send(" in source(dul.DULServiceProvider._send)
    assert "state_machine.do_action" in source(dul.DULServiceProvider.run_reactor)
    assert A_ASSOCIATE_AC().pdu_type == 2


def test_creating_an_association_does_what_the_door_does_instead() -> None:
    body = source(transport.RequestHandler._create_association)
    for line in (
        "assoc._server = self.server",
        "assoc.set_socket(sock)",
        "assoc.acceptor.maximum_length = self.ae.maximum_pdu_size",
        "assoc.acceptor.ae_title = self.server.ae_title",
        "assoc.acceptor.address_info = self.local",
        "assoc.acceptor.implementation_class_uid = self.ae.implementation_class_uid",
        "assoc.acceptor.implementation_version_name = self.ae.implementation_version_name",
        "assoc.acceptor.supported_contexts = deepcopy(self.server.contexts)",
        "assoc.requestor.address_info = self.remote",
    ):
        assert line in body
    # Anything new that is set up there must be set up in server._Door._associate as well.
    assigned = re.findall(r"^ +assoc\.([\w.]+) = ", body, re.MULTILINE)
    assert sorted(assigned) == sorted(
        [
            "_server",
            "name",
            "acceptor.maximum_length",
            "acceptor.ae_title",
            "acceptor.address_info",
            "acceptor.implementation_class_uid",
            "acceptor.implementation_version_name",
            "acceptor.supported_contexts",
            "requestor.address_info",
        ]
    )


def test_supported_contexts_are_shared_not_copied_and_only_read() -> None:
    entity = AE()
    for uid in STORAGE_SOP_CLASSES[:3]:
        entity.add_supported_context(uid, list(ACCEPTED_TRANSFER_SYNTAXES))
    made = association.Association(entity, MODE_ACCEPTOR)
    contexts = entity.supported_contexts
    made.acceptor.supported_contexts = contexts
    assert made.acceptor._contexts is contexts
