"""Who and what an emitted object belongs to: UIDs, patient and study, equipment, times, research marking."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Final, Literal

from pydicom import Dataset
from pydicom.dataelem import DataElement
from pydicom.dataset import FileMetaDataset
from pydicom.sr.coding import Code
from pydicom.uid import UID, ExplicitVRLittleEndian

from dicomnode import __version__
from dicomnode.dicom import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    MANUFACTURER,
    derive_uid,
    valid_uid,
)
from dicomnode.encode.common import MAX_LO, code_item, cut, strict
from dicomnode.errors import EncodingError
from dicomnode.pipeline import Algorithm

ACQUISITION_EQUIPMENT: Final = Code("109101", "DCM", "Acquisition Equipment")
PROCESSING_EQUIPMENT: Final = Code("109102", "DCM", "Processing Equipment")

#: What a scanner says about itself, moved from the top level to its Contributing Equipment item.
_EQUIPMENT: Final = (
    "Manufacturer",
    "InstitutionName",
    "StationName",
    "InstitutionalDepartmentName",
    "ManufacturerModelName",
    "DeviceSerialNumber",
    "SoftwareVersions",
    "DeviceUID",
    "GantryID",
    "SpatialResolution",
    "DateOfLastCalibration",
    "TimeOfLastCalibration",
)
#: What results refer to the source by.
_IDENTIFIERS: Final = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
_MAX_SERIES_NUMBER: Final = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeContext:
    """What is the same for every object of one job. Equal contexts and results give byte-identical objects."""

    #: Identity of the job: every UID hangs on it.
    job_key: str
    #: Who computed.
    algorithm: Algorithm
    #: Digest of the weights; empty if there are none.
    weights_digest: str
    #: Time of the result: goes into every date and time of the objects.
    when: datetime
    #: SeriesNumber of the first series; further ones count on.
    series_number: int
    #: DeviceSerialNumber of this node.
    device_serial: str
    #: Some expected instances never arrived.
    incomplete: bool = False
    #: Number of the result for this series, counted from 1.
    revision: int = 1
    #: Series Instance UID of the result that this one replaces; empty if there is none.
    predecessor: str = ""
    #: Set apart from the same objects in another encoding: goes into every UID.
    variant: str = ""
    #: Repeat UIDs of the source whose components begin with zeros: the site has accepted such (PS3.5 9.1 forbids them).
    leading_zero_uids: bool = False
    #: Value 2 of ImageType: a site option, since some hanging rules look for PRIMARY.
    image_type_value_2: Literal["SECONDARY", "PRIMARY"] = "SECONDARY"

    def __post_init__(self) -> None:
        if self.when.tzinfo is None:
            raise ValueError("when must know its time zone")
        if not 0 <= self.series_number <= _MAX_SERIES_NUMBER:
            raise ValueError(f"series_number {self.series_number} does not fit an IS")
        if not 0 < len(self.algorithm.name) <= MAX_LO:
            raise EncodingError(
                f"the algorithm name {self.algorithm.name[:MAX_LO]!r} has {len(self.algorithm.name)} characters: "
                f"1 to {MAX_LO} are possible (LO); shorten it in the pipeline"
            )

    def series_uid(self, role: str) -> str:
        """Series Instance UID of the output ``role``."""
        return derive_uid(self.job_key, role + self.variant, "series")

    def instance_uid(self, role: str, index: int) -> str:
        """SOP Instance UID number ``index`` of the output ``role``."""
        return derive_uid(self.job_key, role + self.variant, "instance", str(index))


def repeated(headers: Iterable[Dataset]) -> frozenset[str]:
    """UIDs of the source that results repeat as they are though components begin with zeros."""
    uids = {str(header.get(keyword) or "") for header in headers for keyword in _IDENTIFIERS}
    return frozenset(uid for uid in uids if not valid_uid(uid) and valid_uid(uid, leading_zeros=True))


def unplaced(headers: Iterable[Dataset], context: EncodeContext) -> str:
    """Why nothing can be laid over the images of a source; empty if something can."""
    for header in headers:
        frame = str(header.get("FrameOfReferenceUID") or "")
        if not valid_uid(frame, leading_zeros=context.leading_zero_uids):
            said = "is not a valid UID" if frame else "is absent"
            return f"FrameOfReferenceUID of {header.SOPInstanceUID} {said}: nothing can be laid over its series"
    return ""


def require_identity(header: Dataset, context: EncodeContext, *, spatial: bool = True) -> None:
    """Refuse a source whose identity cannot be repeated exactly.

    Parameters
    ----------
    spatial
        It must have a frame of reference.

    Raises
    ------
    EncodingError
        PatientID that LO does not allow, an invalid UID, or no frame of reference. Names the attribute and the
        instance, never the identity.
    """
    uid = header.SOPInstanceUID
    for keyword in _IDENTIFIERS if spatial else _IDENTIFIERS[:-1]:
        if not valid_uid(str(header.get(keyword) or ""), leading_zeros=context.leading_zero_uids):
            raise EncodingError(
                f"{keyword} of {uid} is absent or not a valid UID (PS3.5 9.1): no result may refer to it"
            )
    patient_id = header.get("PatientID") or ""
    if not isinstance(patient_id, str) or len(patient_id) > MAX_LO or not patient_id.isprintable():
        raise EncodingError(
            f"PatientID of {uid} has more than {MAX_LO} characters, a backslash or control characters: a result cannot "
            "repeat it exactly; correct it at the source"
        )


def sign(ds: Dataset, source: Dataset, context: EncodeContext) -> None:
    """Equipment, times, character set and research marking of a new object made from ``source``."""
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.ContentQualification = "RESEARCH"
    local = context.when.astimezone(zone_of(source, context.when))
    ds.InstanceCreationDate = ds.ContentDate = ds.SeriesDate = local.strftime("%Y%m%d")
    ds.InstanceCreationTime = ds.ContentTime = ds.SeriesTime = local.strftime("%H%M%S.%f")
    contributors = list(ds.get("ContributingEquipmentSequence") or ())
    scanner = _scanner(source, contributors)
    if scanner is not None:
        contributors.append(scanner)
    contributors.append(_node(context))
    ds.ContributingEquipmentSequence = contributors
    _equipment(ds, context)


def file_meta(ds: Dataset) -> FileMetaDataset:
    """File meta information of a new object, Explicit VR Little Endian."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\0\1"
    meta.MediaStorageSOPClassUID = UID(ds.SOPClassUID)
    meta.MediaStorageSOPInstanceUID = UID(ds.SOPInstanceUID)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    return meta


def zone_of(source: Dataset, when: datetime) -> timezone:
    """Zone of the source's times, so that all times of one object agree; that of ``when`` if the source has none."""
    offset = str(source.get("TimezoneOffsetFromUTC") or "")
    if len(offset) == 5 and offset[0] in "+-" and offset[1:].isdigit() and int(offset[1:3]) < 15:
        minutes = int(offset[1:3]) * 60 + int(offset[3:])
        return timezone(timedelta(minutes=-minutes if offset[0] == "-" else minutes))
    return timezone(when.utcoffset() or timedelta(0))


def _scanner(source: Dataset, contributors: list[Dataset]) -> Dataset | None:
    """The acquisition equipment, unless the source names it already or says nothing of its maker (type 1 there)."""
    named = any(
        code.get("CodeValue") == ACQUISITION_EQUIPMENT.value
        for item in contributors
        for code in item.get("PurposeOfReferenceCodeSequence") or ()
    )
    if named or not source.get("Manufacturer"):
        return None
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [code_item(ACQUISITION_EQUIPMENT)]
    for keyword in _EQUIPMENT:
        allowed = strict(source[keyword]) if source.get(keyword) else None
        if allowed is not None:
            item.add(DataElement(allowed.tag, allowed.VR, allowed.value, already_converted=True))
    return item


def _node(context: EncodeContext) -> Dataset:
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [code_item(PROCESSING_EQUIPMENT)]
    _equipment(item, context)
    item.ContributionDateTime = context.when.strftime("%Y%m%d%H%M%S.%f%z")
    algorithm = context.algorithm
    weights = f", weights {context.weights_digest[:16]}" if context.weights_digest else ""
    item.ContributionDescription = f"{algorithm.name} {algorithm.version}{weights}, job {context.job_key[:16]}"
    return item


def _equipment(ds: Dataset, context: EncodeContext) -> None:
    """Manufacturer ... DeviceSerialNumber of this node."""
    algorithm = context.algorithm
    ds.Manufacturer = MANUFACTURER
    ds.ManufacturerModelName = cut(f"AI {algorithm.name}", MAX_LO)
    ds.SoftwareVersions = [f"dicomnode {__version__}", cut(f"{algorithm.name} {algorithm.version}", MAX_LO)]
    ds.DeviceSerialNumber = cut(context.device_serial, MAX_LO)
