"""What does the archive know of a series or a study? Asked by C-FIND, Study Root."""

from __future__ import annotations

import logging
from typing import Final

from pydicom import Dataset
from pynetdicom import build_context
from pynetdicom.association import Association
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind as StudyRoot  # type: ignore[attr-defined]

from dicomnode.config import MrdQuery, Query
from dicomnode.dispatch.association import associate
from dicomnode.errors import DispatchError

logger = logging.getLogger(__name__)

#: What identifies patient and study (PS3.4 C.6.2.1.2; other archives answer with what they have of it).
_STUDY_KEYS: Final = (
    "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
    "StudyID", "AccessionNumber", "ReferringPhysicianName", "StudyDescription",
)  # fmt: skip


def count_instances(query: Query, calling_ae: str, study_uid: str, series_uid: str) -> int | None:
    """Ask at series level (NumberOfSeriesRelatedInstances), or count the answers at image level.

    None if there is no usable answer, and also if the archive does not know the series (yet): a zero would pass for
    "nothing is missing".
    """
    try:
        with associate(query, calling_ae, [build_context(StudyRoot)]) as assoc:
            known, number = _series_level(assoc, study_uid, series_uid)
            if known and number is None:
                number = _image_level(assoc, study_uid, series_uid)
            return number or None
    except DispatchError as error:
        logger.warning(
            "Archive was not counted in",
            extra={"action": "count_failed", "series_uid": series_uid, "peer": query.ae_title, "error": str(error)},
        )
        return None


def find_study(query: MrdQuery, calling_ae: str, study_uid: str) -> Dataset | None:
    """Patient and study of a Study Instance UID; None if the archive does not know it, or does not answer."""
    keys = Dataset()
    keys.QueryRetrieveLevel, keys.StudyInstanceUID = "STUDY", study_uid
    for keyword in _STUDY_KEYS:
        setattr(keys, keyword, None)
    try:
        with associate(query, calling_ae, [build_context(StudyRoot)]) as assoc:
            # Some archives ignore keys they do not match on.
            return next((one for one in _answers(assoc, keys) if one.get("StudyInstanceUID") == study_uid), None)
    except DispatchError as error:
        logger.warning(
            "Archive was not asked about a study",
            extra={"action": "find_failed", "study_uid": study_uid, "peer": query.ae_title, "error": str(error)},
        )
        return None


def _series_level(assoc: Association, study_uid: str, series_uid: str) -> tuple[bool, int | None]:
    """Return whether the archive knows the series, and its count if it tells."""
    keys = Dataset()
    keys.QueryRetrieveLevel = "SERIES"
    keys.StudyInstanceUID, keys.SeriesInstanceUID = study_uid, series_uid
    keys.NumberOfSeriesRelatedInstances = None
    for answer in _answers(assoc, keys):
        # Some archives ignore keys they do not match on, and answer with every series of the study.
        if str(answer.get("SeriesInstanceUID", "")) == series_uid:
            try:
                number = answer.get("NumberOfSeriesRelatedInstances")
                return True, int(number) if number else None
            except (ValueError, TypeError):  # several values, or no number: not an answer to the question
                return True, None
    return False, None


def _image_level(assoc: Association, study_uid: str, series_uid: str) -> int:
    keys = Dataset()
    keys.QueryRetrieveLevel = "IMAGE"
    keys.StudyInstanceUID, keys.SeriesInstanceUID, keys.SOPInstanceUID = study_uid, series_uid, ""
    found = {
        str(answer.get("SOPInstanceUID", ""))
        for answer in _answers(assoc, keys)
        if str(answer.get("SeriesInstanceUID", series_uid)) == series_uid
    }
    return len(found - {""})


def _answers(assoc: Association, keys: Dataset) -> list[Dataset]:
    """Return every match; raises `DispatchError` if the query did not end well."""
    found = []
    try:
        for status, identifier in assoc.send_c_find(keys, StudyRoot):
            code = status.get("Status")
            if code in (0xFF00, 0xFF01) and identifier is not None:
                found.append(identifier)
            elif code != 0x0000:
                said = "no answer in time" if code is None else f"0x{code:04X}"
                raise DispatchError(f"C-FIND at {keys.QueryRetrieveLevel} level: {said}")
    except (RuntimeError, ValueError) as error:
        raise DispatchError(f"C-FIND at {keys.QueryRetrieveLevel} level: {error}") from error
    return found
