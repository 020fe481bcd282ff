"""One object from its first byte to its status: the same way in for both engines.

A `Sink` takes the bytes as they come, undecoded, into a file of the spool, and lets the walk look at them. At the end
the object is filed, or set aside in quarantine with its reason, or refused because there is no room; only then is there
a status to answer. Success is answered when the file is as durable as the setting says, whatever the database does.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Final

from dicomnode.dicom import CANNOT_UNDERSTAND, DUPLICATE_SOP_INSTANCE, OUT_OF_RESOURCES, PROCESSING_FAILURE, SUCCESS
from dicomnode.domain import Instance, Quarantined
from dicomnode.errors import InstanceConflict, ReceiveError, StoreError
from dicomnode.faults import reached
from dicomnode.receive import dimse, judge
from dicomnode.receive.committer import Committer
from dicomnode.receive.reader import describe, read_instance
from dicomnode.receive.request import Peer, Request
from dicomnode.receive.settings import Settings
from dicomnode.receive.walk import Walk
from dicomnode.receive.watermark import Watermark
from dicomnode.store import part10
from dicomnode.store.quarantine import Quarantine, printable
from dicomnode.store.spool import Buffer, Part, Spool

logger = logging.getLogger(__name__)

#: What is kept of an object beyond the size limit: enough to see whose it was [bytes].
_KEPT_OF_TOO_LARGE: Final = 1 << 20
_DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class Intake:
    """Where objects are taken in; shared by every association of the process."""

    def __init__(
        self,
        settings: Settings,
        spool: Spool,
        quarantine: Quarantine,
        watermark: Watermark,
        committer: Committer,
        clock: Callable[[], datetime],
    ) -> None:
        self.settings, self.spool, self.quarantine = settings, spool, quarantine
        self.watermark, self.committer, self.clock = watermark, committer, clock
        self.durable_first = settings.durability == "instance"

    def open(self, peer: Peer, request: Request) -> Sink:
        """Begin to take one object in."""
        return Sink(self, peer, request)

    def set_aside(self, part: Part, peer: Peer, request: Request, series_uid: str, why: ReceiveError) -> Quarantined:
        """Keep a refused object's bytes, with the reason, and tell the operator."""
        item = self.quarantine.keep(
            part,
            code=why.code,
            reason=str(why),
            status=why.status,
            sop_instance_uid=request.sop_instance_uid,
            series_uid=series_uid,
            calling_ae=peer.calling_ae,
            at=self.clock(),
        )
        self.committer.quarantined(item)
        logger.warning(
            "Instance %s from %s is in quarantine: %s",
            item.sop_instance_uid or "(no UID)",
            peer.calling_ae,
            printable(str(why)),
            extra={
                "action": "instance_quarantined",
                "code": why.code,
                "status": f"0x{why.status:04X}",
                "sop_instance_uid": item.sop_instance_uid,
                "series_uid": item.series_uid,
                "calling_ae": peer.calling_ae,
                "association": peer.association_id,
                "file": item.name,
            },
        )
        return item


class Sink:
    """One object on its way in: `write` as often as bytes come, then `done`, or `abandon`."""

    __slots__ = ("_drain", "_head", "_intake", "_part", "_peer", "_request", "size", "walk")

    def __init__(self, intake: Intake, peer: Peer, request: Request) -> None:
        self._intake, self._peer, self._request = intake, peer, request
        self.walk = Walk(request.transfer_syntax_uid, intake.settings.max_object)
        #: Data set bytes that have come.
        self.size = 0
        self._part: Part | None = None
        #: Goes before the first bytes, in one write with them.
        self._head = b""
        #: Set: the rest of the object is read and dropped, and this is the answer.
        self._drain: ReceiveError | None = None
        try:
            if intake.watermark.open:
                self._part = intake.spool.incoming(request.sop_instance_uid)
                self._head = self._head_of(peer, request)
            else:
                self._drain = ReceiveError(OUT_OF_RESOURCES, "disk-low", "free disk space is below the watermark")
        except OSError as error:
            self._no_room(error)

    @staticmethod
    def _head_of(peer: Peer, request: Request) -> bytes:
        return part10.head(
            request.sop_class_uid,
            request.sop_instance_uid,
            request.transfer_syntax_uid,
            peer.calling_ae,
            peer.called_ae,
        )

    def write(self, chunks: Sequence[Buffer]) -> None:
        """Take the next bytes; buffers are not kept beyond the call."""
        for chunk in chunks:
            self.size += len(chunk)
            self.walk.feed(chunk)
        if self._drain is not None or self._part is None:
            return
        try:
            self._part.write((self._head, *chunks) if self._head else chunks)
            self._head = b""
            if self.size > self._intake.settings.max_object:
                self._part.truncate(_KEPT_OF_TOO_LARGE)
                text = f"larger than receive.max_object_mb allows; its first {_KEPT_OF_TOO_LARGE} bytes are kept"
                self._drain = ReceiveError(CANNOT_UNDERSTAND, "too-large", text)
        except OSError as error:
            self._no_room(error)

    def done(self) -> int:
        """Decide and return the DIMSE status; the object is then as durable as it was promised to be."""
        part, self._part = self._part, None
        if part is None:
            return self._refused()
        try:
            return self._settle(part)
        except OSError as error:
            part.discard()
            self._no_room(error)
            return self._refused()
        except Exception:  # DIMSE boundary: the sender gets a status whatever happens here
            logger.exception(
                "Instance %s could not be taken in",
                printable(self._request.sop_instance_uid),
                extra={"action": "receive_failed", "association": self._peer.association_id},
            )
            part.discard()
            return PROCESSING_FAILURE

    def abandon(self) -> None:
        """The rest will not come: nothing remains, nobody was promised anything."""
        if self._part is not None:
            self._part.discard()
            self._part = None

    def _settle(self, part: Part) -> int:
        walk, intake = self.walk, self._intake
        if self._head:
            part.write((self._head,))
        walk.end()
        why = self._drain or judge.refusal(walk, self._request, leading_zeros=intake.settings.accept_leading_zeros)
        if why is None:
            try:
                return self._file(part)
            except InstanceConflict as conflict:
                refuse = intake.settings.refuse_changed_duplicates
                status = DUPLICATE_SOP_INSTANCE if refuse else SUCCESS
                why = ReceiveError(status, "changed-duplicate", str(conflict))
        series_uid = dimse.uid(walk.values.get(judge.SERIES, b""))
        intake.set_aside(part, self._peer, self._request, series_uid, why)
        reached("after-quarantine")
        return why.status

    def _file(self, part: Part) -> int:
        intake, uid = self._intake, self._request.sop_instance_uid
        size = part.size
        try:
            new = intake.spool.place(part, uid)
        except InstanceConflict:
            if not self._known_one_is_broken():
                raise
            new = intake.spool.place(part, uid)
        if new and intake.durable_first:
            intake.spool.sync(part)
        part.close()
        intake.committer.received(partial(self._row, size, intake.clock()))
        reached("before-answer")
        return SUCCESS

    def _known_one_is_broken(self) -> bool:
        """Move the file that has this UID out of the way if it does not read: a power cut left it half written."""
        name = Spool.name(self._request.sop_instance_uid)
        path = self._intake.spool.folder / name
        try:
            read_instance(self._intake.spool, name, leading_zeros=True)
        except (ReceiveError, StoreError) as error:
            why = ReceiveError(OUT_OF_RESOURCES, "half-written", f"a file left half written was replaced: {error}")
            self._intake.set_aside(Part.found(path), self._peer, self._request, "", why)
            return True
        return False

    def _row(self, size: int, at: datetime) -> Instance:
        """The filed object's row, made by the committer: it costs as much as the walk, and no answer waits for it."""
        self._warn_of_excess()
        return describe(self.walk, self._request, self._peer, size, at)

    def _warn_of_excess(self) -> None:
        extra = judge.excess(self.walk)
        if extra or self.walk.padded:
            logger.warning(
                "Instance %s has %s",
                self._request.sop_instance_uid,
                f"{extra} bytes more pixel data than its image" if extra else "zeros behind its last element",
                extra={
                    "action": "instance_padded",
                    "sop_instance_uid": self._request.sop_instance_uid,
                    "calling_ae": self._peer.calling_ae,
                },
            )

    def _no_room(self, error: OSError) -> None:
        """The disk does not take it: the sender may try again later, whatever exactly is wrong here."""
        self.abandon()
        full = error.errno in _DISK_FULL
        text = "the disk is full" if full else f"the spool cannot be written: {error.strerror}"
        self._drain = ReceiveError(OUT_OF_RESOURCES, "disk-full" if full else "spool-error", text)

    def _refused(self) -> int:
        assert self._drain is not None
        uid = printable(self._request.sop_instance_uid)
        logger.warning(
            "Instance %s from %s is refused: %s",
            uid,
            self._peer.calling_ae,
            self._drain,
            extra={
                "action": "instance_refused",
                "code": self._drain.code,
                "status": f"0x{self._drain.status:04X}",
                "sop_instance_uid": uid,
                "calling_ae": self._peer.calling_ae,
                "association": self._peer.association_id,
            },
        )
        return self._drain.status
