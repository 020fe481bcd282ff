"""From a walked data set, or from a file of the spool, to the row of an instance."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Final

from dicomnode.dicom import CANNOT_UNDERSTAND, digest
from dicomnode.domain import INDEX_TAGS, Instance
from dicomnode.errors import ReceiveError, StoreError
from dicomnode.receive import dimse, judge
from dicomnode.receive.request import Peer, Request
from dicomnode.receive.walk import Walk, decoded
from dicomnode.store import part10
from dicomnode.store.spool import Spool

#: PatientID and IssuerOfPatientID: only their digest is kept.
_PATIENT: Final = (0x00100020, 0x00100021)
_INDEXED: Final = tuple((tag, name) for tag, name in INDEX_TAGS.items() if tag not in _PATIENT)
_PIECE: Final = 1 << 16


def describe(walk: Walk, request: Request, peer: Peer, size: int, at: datetime) -> Instance:
    """Make the row of an instance that was filed."""
    values = walk.values
    return Instance(
        sop_instance_uid=request.sop_instance_uid,
        sop_class_uid=request.sop_class_uid,
        transfer_syntax_uid=request.transfer_syntax_uid,
        study_uid=dimse.uid(values[judge.STUDY]),
        series_uid=dimse.uid(values[judge.SERIES]),
        path=Spool.name(request.sop_instance_uid),
        size=size,
        received_at=at,
        association_id=peer.association_id,
        calling_ae=peer.calling_ae,
        patient_key=digest(*(decoded(values.get(tag, b"")) for tag in _PATIENT)),
        header={name: walk.text(tag) for tag, name in _INDEXED if tag in values},
    )


def read_instance(spool: Spool, name: str, *, leading_zeros: bool) -> Instance:
    """Read a file of the spool as the receiver would have; pixel data is passed over unread.

    Raises
    ------
    ReceiveError, StoreError
        When it would have been refused, or is not a file this node wrote.
    """
    with (spool.folder / name).open("rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        head = part10.read_head(file.read(part10.LONGEST_HEAD))
        file.seek(head.length)
        walk = _walked(file.fileno(), head.length, status.st_size, head.transfer_syntax_uid)
    request = Request(
        sop_class_uid=head.sop_class_uid,
        sop_instance_uid=head.sop_instance_uid,
        abstract_syntax=head.sop_class_uid,
        transfer_syntax_uid=head.transfer_syntax_uid,
    )
    refusal = judge.refusal(walk, request, leading_zeros=leading_zeros)
    if refusal is not None:
        raise refusal
    if Spool.name(head.sop_instance_uid) != name:
        raise StoreError(f"it holds SOP Instance UID {head.sop_instance_uid}, which is not what its name says")
    peer = Peer(association_id=0, calling_ae=head.sender, called_ae="", address="")
    return describe(walk, request, peer, status.st_size, datetime.fromtimestamp(status.st_mtime, UTC))


def _walked(descriptor: int, position: int, size: int, transfer_syntax: str) -> Walk:
    walk = Walk(transfer_syntax)
    while position < size and not walk.fault:
        passed = min(walk.skip, size - position)
        walk.skipped(passed)
        position += passed
        piece = os.pread(descriptor, _PIECE, position)
        walk.feed(piece)
        position += len(piece)
        if not piece and not passed:
            raise ReceiveError(CANNOT_UNDERSTAND, "truncated", "the file shrank while it was read")
    walk.end()
    return walk
