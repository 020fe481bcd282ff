"""Whose is a measurement? Decided from its header and what this node and the archive know; never guessed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError

from dicomnode.config.mrd import Identity as IdentitySettings
from dicomnode.config.mrd import MrdQuery
from dicomnode.dicom import valid_uid
from dicomnode.errors import NodeError, StoreError
from dicomnode.store import instances
from dicomnode.store.db import Database
from dicomnode.volumes.normalise import Normaliser

logger = logging.getLogger(__name__)

#: Elements larger than this are not read: payloads of raw data.
_DEFER: Final = 1 << 16

#: Asks an archive for the patient and study of a Study Instance UID; None: it does not know it, or does not answer.
Find = Callable[[MrdQuery, str], Dataset | None]


@dataclass(frozen=True, slots=True)
class Found:
    """An identity, or why there is none."""

    like: Dataset | None
    reason: str = ""


class Matcher:
    """Finds patient and study of a measurement.

    Parameters
    ----------
    find
        C-FIND at study level.
    charset
        Character set of received headers that declare none.
    """

    def __init__(self, settings: IdentitySettings, database: Database, data: Path, find: Find, charset: str) -> None:
        self._settings, self._database, self._spool, self._find = settings, database, data / "spool", find
        self._charset = charset

    def match(self, header: Mapping[str, str]) -> Found:
        """Decide by what the header carries (`volumes.mrd.identity_of`)."""
        study, patient = header.get("StudyInstanceUID", ""), header.get("PatientID", "")
        if not study:
            said = "a patient, but no study" if patient else "neither patient nor study"
            return Found(None, f"the header names {said}")
        if not valid_uid(study):
            return Found(None, f"StudyInstanceUID {study[:70]!r} of the header is not a valid UID")
        like, where = self._known(study), "this node has received"
        if like is None and self._settings.query is not None:
            like, where = self._find(self._settings.query, study), "the archive has"
        if like is not None:
            if patient and patient.strip() != str(like.get("PatientID") or "").strip():
                return Found(None, f"PatientID of the header is not that of the study {study} that {where}")
            return Found(like)
        if patient and self._settings.header == "accept":
            return Found(dataset_of(header))
        why = "mrd.identity.header: match" if patient else "the header names no patient"
        return Found(None, f"study {study} is not known to this node{self._and_archive()} ({why})")

    def _and_archive(self) -> str:
        query = self._settings.query
        return "" if query is None else f" nor found at {query.ae_title}"

    def _known(self, study_uid: str) -> Dataset | None:
        """Header of an image of that study that lies in the spool."""
        with self._database.read() as connection:
            paths = instances.paths_of_study(connection, study_uid)
        for path in paths:
            try:
                return identity_in(self._spool / path, self._charset)
            except (NodeError, OSError):  # deleted by retention, or unreadable: another may do
                continue
        return None


def identity_in(path: Path, charset: str) -> Dataset:
    """Normalised header of a DICOM object, to take patient and study from.

    Raises
    ------
    NodeError
        It is not DICOM, or its identity cannot be read.
    """
    try:
        with dcmread(path, stop_before_pixels=True, defer_size=_DEFER) as ds:
            return Normaliser(charset).header(ds, path.name)
    except (InvalidDicomError, EOFError, ValueError, NotImplementedError) as error:
        raise StoreError(f"{path.name} does not read as DICOM: {error}") from error


def dataset_of(header: Mapping[str, str]) -> Dataset:
    """Patient and study of the header as a data set."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    for keyword, value in header.items():
        if keyword != "FrameOfReferenceUID":
            setattr(ds, keyword, value)
    return ds
