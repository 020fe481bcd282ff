"""Constants of the standard this node uses, and its own identity in DICOM."""

from __future__ import annotations

import hashlib
import uuid
from enum import IntEnum
from typing import Final

from pydicom.uid import (
    UID,
    AllTransferSyntaxes,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pynetdicom import AllStoragePresentationContexts

from dicomnode import __version__

#: Implementation Class UID (0002,0012): a UUID made once for this software (PS3.5 B.2).
IMPLEMENTATION_CLASS_UID: Final = UID("2.25.197420561127340906716204925360170413229")
#: Implementation Version Name (0002,0013), at most 16 characters.
IMPLEMENTATION_VERSION_NAME: Final = f"DICOMNODE_{__version__}"[:16]
#: Manufacturer (0008,0070) of every object this node writes; the loop guard looks for it.
MANUFACTURER: Final = "dicomnode"

#: Raw Data Storage: the carrier of raw k-space with patient and study.
RAW_DATA_STORAGE: Final = "1.2.840.10008.5.1.4.1.1.66"
#: CreatorVersionUID (0008,9123) of the raw data objects this software makes: says how to read their private block.
RAW_CREATOR_VERSION_UID: Final = UID("2.25.85942992355558796126285681669115389432")
#: Private block of those objects: group and creator; `RawElement` has its elements.
RAW_GROUP: Final = 0x0071
RAW_CREATOR: Final = "DICOMNODE MRD 1"
RAW_MIME_TYPE: Final = "application/x-ismrmrd+hdf5"


class RawElement(IntEnum):
    """Elements of the private block: last byte of the element number."""

    #: LO: `RAW_MIME_TYPE`.
    MIME_TYPE = 0x01
    #: LO: bytes of the whole file, decimal (UL ends at 4 GiB, and validators crash on UV).
    LENGTH = 0x02
    #: LO: SHA-256 of the whole file, hexadecimal.
    SHA256 = 0x03
    #: UL: number of this part, counted from 1.
    PART = 0x04
    #: UL: how many parts there are.
    PARTS = 0x05
    #: UL: bytes of this part, without the one that makes the payload even.
    PART_LENGTH = 0x06
    #: LO: SHA-256 of this part, hexadecimal.
    PART_SHA256 = 0x07
    #: LO: COMPLETE, or INCOMPLETE where the scanner's stream ended before it said that it was complete.
    STATE = 0x08
    #: OB: the part's bytes.
    PAYLOAD = 0x10


#: Name space of derived UIDs. Changing it gives every future result another identity.
_UID_NAMESPACE: Final = uuid.UUID("94853a2e-0e5b-5d53-a2a2-9f0a5f2d4a51")

#: Every storage SOP class pynetdicom knows (170), unlike its default list (120, without label map segmentation).
STORAGE_SOP_CLASSES: Final[tuple[str, ...]] = tuple(str(cx.abstract_syntax) for cx in AllStoragePresentationContexts)

UNCOMPRESSED: Final[tuple[str, ...]] = (
    str(ExplicitVRLittleEndian),
    str(ImplicitVRLittleEndian),
    str(DeflatedExplicitVRLittleEndian),
    str(ExplicitVRBigEndian),
)

#: What this node accepts: stored as received, decoded only for computing.
ACCEPTED_TRANSFER_SYNTAXES: Final[tuple[str, ...]] = (
    *UNCOMPRESSED,
    *(str(syntax) for syntax in AllTransferSyntaxes if str(syntax) not in UNCOMPRESSED),
)

# DIMSE statuses of C-STORE, PS3.4 Annex B.2.3 and PS3.7 Annex C.
SUCCESS: Final = 0x0000
DUPLICATE_SOP_INSTANCE: Final = 0x0111
PROCESSING_FAILURE: Final = 0x0110
SOP_CLASS_NOT_SUPPORTED: Final = 0x0122
OUT_OF_RESOURCES: Final = 0xA700
DATA_SET_DOES_NOT_MATCH: Final = 0xA900
CANNOT_UNDERSTAND: Final = 0xC000


def derive_uid(*parts: str) -> str:
    """Deterministic UID of whatever ``parts`` identify: ``2.25.`` + a name-based UUID (PS3.5 B.2).

    The parts are joined by a character that cannot stand in a UID, so ("1.2", "3") and ("1.23", "") differ.
    """
    return f"2.25.{uuid.uuid5(_UID_NAMESPACE, chr(31).join(parts)).int}"


def valid_uid(uid: str, *, leading_zeros: bool = False) -> bool:
    """Whether ``uid`` may be stored and propagated (PS3.5 9.1): digits in dotted components, at most 64 characters.

    ``leading_zeros`` also lets components such as ``01`` pass, which some real scanners write.
    """
    if not 0 < len(uid) <= 64:
        return False
    components = uid.split(".")
    if not all(part.isascii() and part.isdigit() for part in components):
        return False
    return leading_zeros or all(part == "0" or part[0] != "0" for part in components)


def digest(*parts: str | bytes) -> str:
    """Hex SHA-256 over length-prefixed parts (so that no two lists of parts collide by joining)."""
    total = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        total.update(len(raw).to_bytes(8, "big"))
        total.update(raw)
    return total.hexdigest()
