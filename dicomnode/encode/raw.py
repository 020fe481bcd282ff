"""Raw k-space as DICOM Raw Data Storage: the MRD file in a private block, with patient and study in the header.

A file larger than a part becomes several instances of one series. What the private elements are is said in
`dicomnode.dicom.RawElement`; `volumes.raw` reads them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Final

from pydicom import Dataset

from dicomnode.dicom import (
    MANUFACTURER,
    RAW_CREATOR,
    RAW_CREATOR_VERSION_UID,
    RAW_DATA_STORAGE,
    RAW_GROUP,
    RAW_MIME_TYPE,
    RawElement,
    derive_uid,
    digest,
    valid_uid,
)
from dicomnode.encode import anatomy
from dicomnode.encode.common import MAX_LO, Copier, cut
from dicomnode.encode.envelope import PATIENT_AND_STUDY, TYPE_2, say_deidentified
from dicomnode.encode.identity import file_meta, zone_of
from dicomnode.errors import EncodingError

#: Largest payload of one instance unless told otherwise [bytes]: whoever writes, sends or files one holds it in memory.
PART_BYTES: Final = 2**28
#: An element ends at 2^32 - 2 bytes (PS3.5 7.1.1), and its length is even.
_MOST: Final = 2**32 - 2
_BLOCK: Final = 2**20
#: What is taken from an image of the same examination beside patient and study.
_SERIES: Final = ("BodyPartExamined", "Laterality", "RequestAttributesSequence")
#: The scanner, which is what made the measurement: this software only carries it.
_EQUIPMENT: Final = (
    "Manufacturer",
    "ManufacturerModelName",
    "DeviceSerialNumber",
    "SoftwareVersions",
    "StationName",
)


def wrap(
    payload: Path,
    like: Dataset,
    *,
    series_uid: str,
    series_number: int,
    when: datetime,
    part_bytes: int = PART_BYTES,
    incomplete: bool = False,
    frame_of_reference: str = "",
    patient_position: str = "",
    description: str = "",
) -> Iterator[Dataset]:
    """Raw Data Storage instances that carry the MRD file ``payload``, with file meta information.

    Equal arguments give equal UIDs and bytes, so that wrapping or sending twice is harmless.

    Parameters
    ----------
    like
        Whose it is: normalised header of any object of the examination, or made of what a person or the MRD header
        says. Needs StudyInstanceUID; whatever else of patient, study and scanner it has is repeated exactly.
    when
        Time of the objects' content, aware of its zone.
    part_bytes
        Largest payload of one instance.
    incomplete
        The scanner's stream ended before it said that it was complete.
    frame_of_reference
        FrameOfReferenceUID, where it is known to be the measurement's; that of ``like`` is not taken over: images of
        one examination need not share it.
    patient_position
        How the patient lay (PS3.3 C.7.3.1.1.2), where the MRD header does not say it.
    description
        SeriesDescription; empty: what ``like`` or nothing says.

    Raises
    ------
    EncodingError
        The identity cannot be repeated, or the file is empty.
    """
    if when.tzinfo is None:
        raise ValueError("when must know its time zone")
    if not 2 <= part_bytes <= _MOST:
        raise ValueError(f"part_bytes {part_bytes} is not 2 to {_MOST}")
    _require_identity(like, series_uid)
    if not payload.stat().st_size:
        raise EncodingError(f"{payload.name} is empty: there is no measurement to wrap")
    envelope = _envelope(like, when, frame_of_reference, description)
    if patient_position:
        envelope.PatientPosition = patient_position
    envelope.SeriesInstanceUID, envelope.SeriesNumber = series_uid, str(series_number)
    yield from _objects(payload, envelope, part_bytes - part_bytes % 2, "INCOMPLETE" if incomplete else "COMPLETE")


def _objects(payload: Path, envelope: Dataset, step: int, state: str) -> Iterator[Dataset]:
    """One instance for every ``step`` bytes."""
    size, total = payload.stat().st_size, _sha256(payload)
    parts = -(-size // step)
    # Other words about the same file are another object: one UID, one content.
    whole = digest(total, state, envelope.to_json())
    with payload.open("rb") as file:
        for number in range(1, parts + 1):
            piece = file.read(step)
            ds = Dataset()
            ds.update(envelope)
            ds.SOPInstanceUID = derive_uid(str(envelope.SeriesInstanceUID), whole, "raw", str(number), str(parts))
            ds.InstanceNumber = str(number)
            _add_block(ds, piece, size=size, sha256=total, number=number, parts=parts, state=state)
            ds.file_meta = file_meta(ds)
            yield ds


def _require_identity(like: Dataset, series_uid: str) -> None:
    for name, uid in (("StudyInstanceUID", str(like.get("StudyInstanceUID") or "")), ("series_uid", series_uid)):
        if not valid_uid(uid, leading_zeros=True):
            raise EncodingError(f"{name} {uid!r} is absent or not a valid UID (PS3.5 9.1): raw data needs a study")
    patient_id = like.get("PatientID") or ""
    if not isinstance(patient_id, str) or len(patient_id) > MAX_LO or not patient_id.isprintable():
        raise EncodingError(f"PatientID has more than {MAX_LO} characters, a backslash or control characters")


def _envelope(like: Dataset, when: datetime, frame_of_reference: str, description: str) -> Dataset:
    """Everything that is the same in every part."""
    copied, ds = Copier().copy(like), Dataset()
    for keyword in (*PATIENT_AND_STUDY, *_SERIES):
        if keyword in copied:
            ds[keyword] = copied[keyword]
    for keyword in TYPE_2:
        if keyword not in ds:
            setattr(ds, keyword, None)
    say_deidentified(ds)
    _add_equipment(ds, like)
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID = RAW_DATA_STORAGE
    ds.Modality = "MR"
    ds.SeriesDescription = cut(description or str(like.get("SeriesDescription") or "Raw k-space"), MAX_LO)
    anatomy.locate(ds)
    if frame_of_reference:
        ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = frame_of_reference, None
    local = when.astimezone(zone_of(like, when))
    ds.InstanceCreationDate = ds.ContentDate = ds.SeriesDate = local.strftime("%Y%m%d")
    ds.InstanceCreationTime = ds.ContentTime = ds.SeriesTime = local.strftime("%H%M%S.%f")
    ds.CreatorVersionUID = RAW_CREATOR_VERSION_UID
    ds.AcquisitionContextSequence = []
    return ds


def _add_equipment(ds: Dataset, like: Dataset) -> None:
    """The scanner; this node never, or its loop guard would take a measurement for its own result."""
    ds.Manufacturer = None  # type 2
    if str(like.get("Manufacturer") or "").strip().casefold() == MANUFACTURER:
        return
    copied = Copier().copy(like)
    for keyword in _EQUIPMENT:
        if keyword in copied:
            ds[keyword] = copied[keyword]
    if like.get("StationName"):
        ds.StationName = like.StationName


def _add_block(ds: Dataset, piece: bytes, *, size: int, sha256: str, number: int, parts: int, state: str) -> None:
    block = ds.private_block(RAW_GROUP, RAW_CREATOR, create=True)
    block.add_new(RawElement.MIME_TYPE, "LO", RAW_MIME_TYPE)
    block.add_new(RawElement.LENGTH, "LO", str(size))
    block.add_new(RawElement.SHA256, "LO", sha256)
    block.add_new(RawElement.PART, "UL", number)
    block.add_new(RawElement.PARTS, "UL", parts)
    block.add_new(RawElement.PART_LENGTH, "UL", len(piece))
    block.add_new(RawElement.PART_SHA256, "LO", hashlib.sha256(piece).hexdigest())
    block.add_new(RawElement.STATE, "LO", state)
    block.add_new(RawElement.PAYLOAD, "OB", piece + b"\0" * (len(piece) % 2))


def _sha256(path: Path) -> str:
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            total.update(block)
    return total.hexdigest()
