"""From a finished MRD file to instances in the spool, with rows like received ones; or held, with the reason.

One thread in the node does all of it: for sessions, for watched folders and for what a person released. Filing is
repeatable: names, times and UIDs come from the side file, so a crash at any line is mended by doing it again.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from pydicom import Dataset, dcmread, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import ExplicitVRLittleEndian

from dicomnode.config import Config
from dicomnode.dicom import RAW_DATA_STORAGE, derive_uid
from dicomnode.domain import Association, AssociationEnd, Instance
from dicomnode.encode import raw
from dicomnode.encode.envelope import PATIENT_AND_STUDY
from dicomnode.errors import EncodingError, InstanceConflict, SeriesError, StoreError
from dicomnode.faults import reached
from dicomnode.receive.mrd.identity import Find, Found, Matcher
from dicomnode.receive.mrd.watch import Watcher
from dicomnode.receive.reader import read_instance
from dicomnode.rounds import Rounds
from dicomnode.store import instances
from dicomnode.store.db import Database
from dicomnode.store.raw import Measurement, RawStore
from dicomnode.store.spool import Spool
from dicomnode.volumes.mrd import identity_of, xml_of

logger = logging.getLogger(__name__)

#: AE title under which raw data from scanners stands in the tables; no peer calls itself that.
SOURCE: Final = "MRD"
#: Pace of the sweep when nothing wakes it [s].
_SWEEP_S: Final = 1.0
#: After a failure that is not the measurement's (disk, database) [s].
_RETRY_S: Final = 10.0
#: SeriesNumber of raw data: below those of the results.
_SERIES_NUMBER_BELOW: Final = 50


def _now() -> datetime:
    return datetime.now(UTC)


class RawFiler:
    """Files what lies in the raw store, and takes files from the watched folders.

    Parameters
    ----------
    find
        C-FIND at study level: sending is another room's.
    on_filed
        Called after rows were committed.
    """

    def __init__(
        self,
        config: Config,
        database: Database,
        *,
        find: Find,
        on_filed: Callable[[], None] = lambda: None,
        clock: Callable[[], datetime] = _now,
    ) -> None:
        assert config.mrd is not None
        self._config, self._database, self._filed, self._clock = config, database, on_filed, clock
        self.store = RawStore(config.node.data)
        self._spool = Spool(config.node.data)
        charset = config.node.default_charset
        self._matcher = Matcher(config.mrd.identity, database, config.node.data, find, charset)
        self._watchers = [Watcher(one, self.store, clock) for one in config.mrd.watch]
        self._rounds = Rounds("raw-filer", self._round, self._fault, recover=lambda: _RETRY_S)

    def start(self) -> None:
        """Begin to file."""
        self._rounds.start()

    def wake(self) -> None:
        """Look now."""
        self._rounds.wake()

    def stop(self) -> None:
        """End after the measurement that is being filed."""
        self._rounds.stop()
        self._rounds.join(60)
        self._spool.close()

    def _round(self) -> float:
        for watcher in self._watchers:
            watcher.sweep()
        self.sweep()
        return _SWEEP_S

    def _fault(self, error: Exception) -> None:
        """The files stay, and are filed when the disk is back."""
        extra = {"action": "raw_filing_failed", "error": type(error).__name__}
        logger.error("Raw data cannot be filed", extra=extra, exc_info=error)

    def sweep(self) -> int:
        """File or hold everything new; returns how many were filed."""
        number = 0
        for item in self.store.items():
            if self._rounds.stopping:
                break
            if not item.held:
                number += self._settle(item)
        if number:
            self._filed()
        return number

    def _settle(self, item: Measurement) -> bool:
        try:
            found = self._identity(item)
            if found.like is None:
                self._hold(item, found.reason)
                return False
            self.file(item, found.like)
        except (EncodingError, SeriesError, InstanceConflict) as error:
            self._hold(item, str(error))
            return False
        return True

    def _identity(self, item: Measurement) -> Found:
        if item.released:
            try:
                return Found(dcmread(self.store.like(item.name)))
            except (OSError, InvalidDicomError) as error:
                return Found(None, f"the identity a person gave it cannot be read ({error}); give it again")
        return self._matcher.match(identity_of(xml_of(self.store.payload(item.name))))

    def _hold(self, item: Measurement, reason: str) -> None:
        self.store.hold(item, reason)
        logger.warning(
            "Raw measurement %s is held: %s",
            item.name,
            reason,
            extra={"action": "raw_held", "name_of_raw": item.name, "reason": reason},
        )

    def file(self, item: Measurement, like: Dataset) -> None:
        """Put a measurement into the spool and the table, and forget the file."""
        payload = self.store.payload(item.name)
        study = str(like.StudyInstanceUID)
        series_uid = derive_uid(study, item.name, "raw")
        with self._database.read() as connection:
            if instances.of_series(connection, series_uid):  # before a crash, or the same file was put in again
                self.store.remove(item.name)
                return
        filed = [
            self._place(ds)
            for ds in raw.wrap(
                payload,
                like,
                series_uid=series_uid,
                series_number=max(1, self._config.node.series_number - _SERIES_NUMBER_BELOW),
                when=item.at,
                incomplete=bool(item.incomplete),
                frame_of_reference=identity_of(xml_of(payload)).get("FrameOfReferenceUID", ""),
            )
        ]
        reached("raw-placed")
        self._record(item, filed)
        self.store.remove(item.name)
        logger.info(
            "Raw measurement %s is filed as series %s",
            item.name,
            series_uid,
            extra={
                "action": "raw_filed", "name_of_raw": item.name, "series_uid": series_uid, "study_uid": study,
                "parts": len(filed), "incomplete": bool(item.incomplete),
            },
        )  # fmt: skip

    def _place(self, ds: Dataset) -> Instance:
        """Write one instance to the spool, durably, and read it back as the receiver would have."""
        uid = str(ds.SOPInstanceUID)
        ds.file_meta.SendingApplicationEntityTitle = SOURCE
        ds.file_meta.ReceivingApplicationEntityTitle = self._config.node.ae_title
        part = self._spool.incoming(uid)
        try:
            with os.fdopen(os.dup(part.fd), "wb") as file:
                dcmwrite(file, ds, enforce_file_format=True)
            part.size = os.fstat(part.fd).st_size
            if self._spool.place(part, uid):
                self._spool.sync(part)
                part.close()
        except BaseException:
            part.discard()
            raise
        return read_instance(self._spool, Spool.name(uid), leading_zeros=True)

    def _record(self, item: Measurement, filed: list[Instance]) -> None:
        """Rows as of an association that brought the instances and was released."""
        now = self._clock()
        number = -(time.time_ns() // 1000)  # the receiver numbers associations by the same clock, upwards from 0
        association = Association(
            id=number, calling_ae=SOURCE, called_ae=self._config.node.ae_title, address=item.source[:64], opened_at=now
        )
        rows = [_of_association(one, number, now) for one in filed]
        with self._database.write() as connection:
            instances.open_association(connection, association)
            instances.record(connection, rows)
            instances.close_association(connection, number, AssociationEnd.RELEASED, now)


def _of_association(one: Instance, number: int, now: datetime) -> Instance:
    return replace(one, association_id=number, calling_ae=SOURCE, received_at=now)


def release(store: RawStore, name: str, like: Dataset) -> Measurement:
    """A person named patient and study: kept beside the measurement, which the node files next.

    Raises
    ------
    StoreError
        There is no such measurement, or the identity has no study.
    """
    item = store.get(name)
    if not like.get("StudyInstanceUID"):
        raise StoreError("the identity names no study (StudyInstanceUID)")
    target = store.like(name)
    temporary = target.with_suffix(".tmp")
    with temporary.open("wb") as file:
        dcmwrite(file, _identity_alone(like), enforce_file_format=True)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(target)
    return store.release(item)


def _identity_alone(like: Dataset) -> Dataset:
    """Patient, study and scanner of ``like`` as a file."""
    ds = Dataset()
    for keyword in (*PATIENT_AND_STUDY, "SpecificCharacterSet", "BodyPartExamined", "Laterality"):
        if keyword in like:
            ds[keyword] = like[keyword]
    ds.SOPClassUID, ds.SOPInstanceUID = RAW_DATA_STORAGE, derive_uid(str(like.StudyInstanceUID), "identity")
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds
