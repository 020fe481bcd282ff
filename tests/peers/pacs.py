"""An in-process PACS: Storage, Verification and Study Root C-FIND on a free loopback port, with scriptable failures.

    with Pacs(tmp_path) as pacs:
        pacs.script(0xA700, 0x0000)          # answers to the next objects, then 0x0000 again
        ...
        assert pacs.uids == [...]
        pacs.stop(); pacs.start()            # down and back on the same port

Every knob may be turned while it runs; it counts for the next association or object.
"""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.uid import AllTransferSyntaxes
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind, Verification
from pynetdicom.transport import ThreadedAssociationServer

PENDING, MATCH_END, UNABLE = 0xFF00, 0x0000, 0xC001


@dataclass(frozen=True)
class Received:
    """One C-STORE request, whatever it was answered."""

    sop_class_uid: str
    sop_instance_uid: str
    study_uid: str
    series_uid: str
    #: The syntax of the presentation context it came in.
    transfer_syntax_uid: str
    calling_ae: str
    #: 1 for the first association since the start, and so on.
    association: int
    status: int
    #: Digest of the data set as it was sent (without file meta).
    sha256: str
    path: Path | None


@dataclass
class Pacs:
    """A Storage SCP that keeps what it accepts under ``folder``."""

    folder: Path
    ae_title: str = "PACS"
    #: SOP classes whose presentation contexts are refused.
    refuse: Collection[str] = ()
    #: Transfer syntaxes it accepts.
    syntaxes: Sequence[str] = tuple(str(syntax) for syntax in AllTransferSyntaxes)
    #: Longest PDU it announces; 0: no limit.
    max_pdu: int = 16384
    #: Reject every association.
    reject: bool = False
    #: Abort the association when the n-th object of it has arrived, before answering.
    abort_after: int | None = None
    #: Status by SOP Instance UID; goes before the script.
    status_of: dict[str, int] = field(default_factory=dict)
    #: Wait before each answer [s].
    sleep: float = 0.0
    #: Bytes to send before each answer; empty: close the connection instead.
    raw_answer: bytes | None = None
    #: Called with each object before it is answered.
    on_store: Callable[[Received], None] | None = None
    #: How C-FIND is answered: "count" (NumberOfSeriesRelatedInstances), "images" (only image level is known), "fail",
    #: "silent" (no answer before stop).
    find: str = "count"
    #: Instances to claim for a series instead of what is stored.
    claims: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.port = 0
        self.received: list[Received] = []
        self.associations = 0
        self.queries: list[Dataset] = []
        self.releases = 0
        self.aborts = 0
        self._script: list[int] = []
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._in_association: Counter[int] = Counter()
        self._numbers: dict[Any, int] = {}
        self._stopped = threading.Event()
        self._server: ThreadedAssociationServer | None = None

    # -- life

    def __enter__(self) -> Pacs:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Listen; the second time on the same port as before."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._stopped.clear()
        ae = AE(ae_title=self.ae_title)
        ae.maximum_pdu_size = self.max_pdu
        ae.maximum_associations = 100
        ae.require_called_aet = True
        ae.network_timeout = ae.dimse_timeout = ae.acse_timeout = 30
        ae.add_supported_context(Verification)
        ae.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
        for context in AllStoragePresentationContexts:
            if context.abstract_syntax not in self.refuse:
                ae.add_supported_context(str(context.abstract_syntax), list(self.syntaxes))
        server = ae.start_server(
            ("127.0.0.1", self.port),
            block=False,
            evt_handlers=[
                (evt.EVT_REQUESTED, self._requested),
                (evt.EVT_C_STORE, self._store),
                (evt.EVT_C_FIND, self._find),
                (evt.EVT_RELEASED, self._count_release),
                (evt.EVT_ABORTED, self._count_abort),
            ],
        )
        assert isinstance(server, ThreadedAssociationServer)
        self._server = server
        self.port = server.socket.getsockname()[1]

    def stop(self) -> None:
        """Abort what is open and stop listening."""
        self._stopped.set()
        if self._server is not None:
            for association in self._server.ae.active_associations:
                association.abort()
            self._server.shutdown()
            self._server = None

    # -- what tests ask

    def script(self, *statuses: int) -> None:
        """Answer the next objects so, one each; 0x0000 when the list is used up."""
        with self._lock:
            self._script = list(statuses)

    @property
    def stored(self) -> list[Received]:
        """What was accepted (success or warning), in order of arrival; an object that came twice is there twice."""
        with self._lock:
            return [item for item in self.received if item.path is not None]

    @property
    def uids(self) -> list[str]:
        """SOP Instance UIDs of `stored`."""
        return [item.sop_instance_uid for item in self.stored]

    def datasets(self) -> list[Dataset]:
        """What lies in the folder, read back."""
        return [dcmread(path) for path in sorted(self.folder.glob("*.dcm"))]

    def wait_for(self, number: int, timeout: float = 20.0) -> None:
        """Wait until so many different objects are stored."""
        with self._changed:
            ok = self._changed.wait_for(
                lambda: len({item.sop_instance_uid for item in self.received if item.path}) >= number, timeout
            )
        if not ok:
            raise AssertionError(f"{len(set(self.uids))} of {number} objects arrived within {timeout:g} s")

    # -- handlers

    def _requested(self, event: evt.Event) -> None:
        with self._lock:
            self.associations += 1
            self._numbers[event.assoc] = self.associations
        event.assoc.ae.require_calling_aet = ["NOBODY"] if self.reject else []

    def _count_release(self, _event: evt.Event) -> None:
        with self._lock:
            self.releases += 1

    def _count_abort(self, _event: evt.Event) -> None:
        with self._lock:
            self.aborts += 1

    def _store(self, event: evt.Event) -> int:
        request = event.request
        raw = request.DataSet.getvalue()
        header = event.dataset
        with self._changed:
            number = self._numbers.get(event.assoc, 0)
            self._in_association[number] += 1
            abort = self.abort_after is not None and self._in_association[number] >= self.abort_after
            status = self.status_of.get(str(request.AffectedSOPInstanceUID))
            if status is None:
                status = self._script.pop(0) if self._script and not abort else 0x0000
            path = None
            if not abort and (status == 0 or status & 0xF000 == 0xB000):
                path = self.folder / f"{request.AffectedSOPInstanceUID}.dcm"
            item = Received(
                sop_class_uid=str(request.AffectedSOPClassUID),
                sop_instance_uid=str(request.AffectedSOPInstanceUID),
                study_uid=str(header.get("StudyInstanceUID", "")),
                series_uid=str(header.get("SeriesInstanceUID", "")),
                transfer_syntax_uid=str(event.context.transfer_syntax),
                calling_ae=str(event.assoc.requestor.ae_title).strip(),
                association=number,
                status=status,
                sha256=hashlib.sha256(raw).hexdigest(),
                path=path,
            )
            if path is not None:
                path.write_bytes(event.encoded_dataset())
        if self.on_store is not None:
            self.on_store(item)
        with self._changed:
            self.received.append(item)
            self._changed.notify_all()
        if self.raw_answer is not None:
            tcp = event.assoc.dul.socket.socket
            tcp.sendall(self.raw_answer) if self.raw_answer else tcp.shutdown(socket.SHUT_RDWR)
        if abort:
            event.assoc.abort()
            return 0x0110
        if self.sleep:
            self._stopped.wait(self.sleep)
        return status

    def _find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        query = event.identifier
        self.queries.append(query)
        if self.find == "silent":
            self._stopped.wait(30)
            return
        if self.find == "fail":
            yield UNABLE, None
            return
        series_uid = str(query.get("SeriesInstanceUID", ""))
        held = {item.sop_instance_uid for item in self.stored if item.series_uid == series_uid}
        number = self.claims.get(series_uid, len(held))
        if query.QueryRetrieveLevel == "SERIES" and number:
            yield PENDING, self._series_answer(query, number)
        elif query.QueryRetrieveLevel == "IMAGE":
            for index in range(number):
                answer = Dataset()
                answer.QueryRetrieveLevel = "IMAGE"
                answer.StudyInstanceUID, answer.SeriesInstanceUID = query.StudyInstanceUID, series_uid
                answer.SOPInstanceUID = f"2.25.{index + 1}"
                yield PENDING, answer

    def _series_answer(self, query: Dataset, number: int) -> Dataset:
        answer = Dataset()
        answer.QueryRetrieveLevel = "SERIES"
        answer.StudyInstanceUID, answer.SeriesInstanceUID = query.StudyInstanceUID, query.SeriesInstanceUID
        if self.find == "count":
            answer.NumberOfSeriesRelatedInstances = number
        return answer


def wait_until(condition: Callable[[], bool], timeout: float = 20.0, what: str = "") -> None:
    """Wait for something that another thread or process does, and cannot be waited for by an event."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout:g} s: {what or condition}")
        time.sleep(0.01)
