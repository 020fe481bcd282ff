"""A small PACS stand-in for the demo: keeps what it is sent as files, and counts series by C-FIND."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Final

from pydicom import Dataset, dcmread
from pynetdicom import AE, evt
from pynetdicom.events import Event
from pynetdicom.transport import ThreadedAssociationServer

from dicomnode import dicom

_VERIFICATION: Final = "1.2.840.10008.1.1"  # PS3.4 annex A
_STUDY_ROOT_FIND: Final = "1.2.840.10008.5.1.4.1.2.2.1"  # PS3.4 annex C


class StandInPACS:
    """Listens on a free loopback port while the block lasts."""

    def __init__(self, folder: Path, ae_title: str = "DEMOPACS") -> None:
        self.folder, self.ae_title = folder, ae_title
        self._counts: dict[str, int] = {}
        self._lock = Lock()
        self._ae = AE(ae_title=ae_title)
        for service in (_VERIFICATION, _STUDY_ROOT_FIND):
            self._ae.add_supported_context(service)
        for sop_class in dicom.STORAGE_SOP_CLASSES:
            self._ae.add_supported_context(sop_class, dicom.UNCOMPRESSED)

    def __enter__(self) -> StandInPACS:
        self.folder.mkdir(parents=True, exist_ok=True)
        handlers: list[Any] = [(evt.EVT_C_STORE, self._store), (evt.EVT_C_FIND, self._find)]
        server = self._ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        assert server is not None  # block=False gives one
        self._server: ThreadedAssociationServer = server
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._server.shutdown()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def add(self, dataset: Dataset) -> None:
        """Know an object without being sent it: what the modality archived here before it pushed to the node."""
        with self._lock:
            uid = str(dataset.SeriesInstanceUID)
            self._counts[uid] = self._counts.get(uid, 0) + 1

    def _store(self, event: Event) -> int:
        dataset = event.dataset
        folder = self.folder / str(dataset.SeriesInstanceUID)
        folder.mkdir(exist_ok=True)
        path = folder / f"{dataset.SOPInstanceUID}.dcm"
        path.write_bytes(event.encoded_dataset())
        self.add(dataset)
        return dicom.SUCCESS

    def _find(self, event: Event) -> Iterator[tuple[int, Dataset | None]]:
        wanted = event.identifier
        with self._lock:
            number = self._counts.get(str(wanted.get("SeriesInstanceUID", "")))
        if number is not None and wanted.get("QueryRetrieveLevel") == "SERIES":
            answer = Dataset()
            answer.QueryRetrieveLevel = "SERIES"
            answer.StudyInstanceUID, answer.SeriesInstanceUID = wanted.StudyInstanceUID, wanted.SeriesInstanceUID
            answer.NumberOfSeriesRelatedInstances = number
            yield 0xFF00, answer

    def received(self) -> dict[str, list[Path]]:
        """Files by Series Instance UID."""
        return {one.name: sorted(one.glob("*.dcm")) for one in sorted(self.folder.iterdir()) if one.is_dir()}


def read_in_plane_order(paths: Iterable[Path]) -> list[Dataset]:
    """Read a series' files, ordered by the third coordinate of their position."""
    return in_plane_order(dcmread(path) for path in paths)


def in_plane_order(datasets: Iterable[Dataset]) -> list[Dataset]:
    """Order images by the third coordinate of their position."""
    return sorted(datasets, key=lambda ds: float(ds.ImagePositionPatient[2]))
