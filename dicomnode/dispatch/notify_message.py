"""What a hook is told: the stored findings together with the identity, which is read from a file at the last moment.

Identity is held by these objects alone: they are never stored, never logged, and their ``repr`` is without it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError

from dicomnode.errors import IdentityUnreadable, NodeError
from dicomnode.store.notifications import Notification
from dicomnode.volumes.normalise import Normaliser

#: In every message.
RESEARCH: Final = (
    "Research use only: not for diagnosis. Found by an algorithm; look at the images. This message is not the report."
)
#: PatientID values that are nobody's.
_NOBODY: Final = frozenset({"", "UNKNOWN", "UNK", "NONE"})
_KEYWORDS: Final = (
    "SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "PatientID",
    "IssuerOfPatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber",
    "IssuerOfAccessionNumberSequence", "PlacerOrderNumberImagingServiceRequest",
    "FillerOrderNumberImagingServiceRequest", "RequestAttributesSequence", "ReferencedRequestSequence", "StudyDate",
    "StudyTime", "RequestedProcedureCodeSequence", "StudyDescription",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Whose study it is and for which order it was made, in the words of the header."""

    patient_id: str = field(repr=False)
    issuer: str = field(repr=False)
    #: PN as it stands in the header: components by ``^``, groups by ``=``.
    patient_name: str = field(repr=False)
    birth_date: str = field(repr=False)
    sex: str = field(repr=False)
    accession_number: str = field(repr=False)
    accession_issuer: str = field(repr=False)
    placer_order: str = field(repr=False)
    filler_order: str = field(repr=False)
    #: DA and TM joined.
    study_time: str = field(repr=False)

    @property
    def unaddressed(self) -> str:
        """Why a message about this study would reach nobody, or the wrong one; empty if it may go."""
        if not self.accession_number:
            return "the study has no AccessionNumber"
        if self.patient_id.strip().upper() in _NOBODY:
            return "the study's PatientID is empty or unknown"
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message, ready to be written in the language of a hook."""

    notification: Notification
    identity: Identity


def read_identity(paths: Iterable[Path], default_charset: str) -> Identity:
    """Identity from the first file that can be read.

    Raises
    ------
    IdentityUnreadable
        None is left, or none says it. Names no path and no value.
    OSError
        One is left and cannot be read now.
    """
    reasons, now = [], None
    for path in paths:
        try:
            ds = dcmread(path, stop_before_pixels=True, specific_tags=list(_KEYWORDS))
            return _identity(Normaliser(default_charset).header(ds, path.name))
        except (OSError, InvalidDicomError, NodeError) as error:
            reasons.append(type(error).__name__)
            if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
                now = error
    if now is not None:
        raise now
    raise IdentityUnreadable(f"no file says whose study it is ({', '.join(reasons) or 'none is kept'})")


def _identity(header: Dataset) -> Identity:
    request = _first(header, "RequestAttributesSequence") or _first(header, "ReferencedRequestSequence") or Dataset()

    def either(keyword: str) -> str:
        return str(header.get(keyword) or request.get(keyword) or "").strip()

    issuer = _first(header, "IssuerOfAccessionNumberSequence") or _first(request, "IssuerOfAccessionNumberSequence")
    namespace = issuer.get("LocalNamespaceEntityID") or issuer.get("UniversalEntityID") if issuer else ""
    return Identity(
        patient_id=str(header.get("PatientID") or "").strip(),
        issuer=str(header.get("IssuerOfPatientID") or "").strip(),
        patient_name=str(header.get("PatientName") or ""),
        birth_date=str(header.get("PatientBirthDate") or ""),
        sex=str(header.get("PatientSex") or ""),
        accession_number=either("AccessionNumber"),
        accession_issuer=str(namespace or ""),
        placer_order=either("PlacerOrderNumberImagingServiceRequest"),
        filler_order=either("FillerOrderNumberImagingServiceRequest"),
        study_time=f"{header.get('StudyDate') or ''}{str(header.get('StudyTime') or '').partition('.')[0]}",
    )


def _first(ds: Dataset, keyword: str) -> Dataset | None:
    items = ds.get(keyword)
    return items[0] if items else None
