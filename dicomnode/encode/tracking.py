"""Identity of one structure across the objects of a job: the same UID in its segment and in its measurements."""

from __future__ import annotations

from typing import Final

from dicomnode.dicom import derive_uid
from dicomnode.encode.common import MAX_LO, cut
from dicomnode.encode.identity import EncodeContext

#: Longest UT would be no limit; viewers list this text, so it is cut as a description is.
_MAX_IDENTIFIER: Final = MAX_LO


def tracking_uid(context: EncodeContext, role: str, key: str) -> str:
    """TrackingUID of the structure ``key`` of the output ``role`` (a `Segmentation`'s role and a `Segment`'s key).

    The same in every encoding of it, so that reports and both flavours of a segmentation agree. Distinct per role: a
    viewer merges all that share a tracking UID, which would join two phases of one structure.
    """
    return derive_uid(context.job_key, role, key, "tracking")


def tracking_id(context: EncodeContext, role: str, key: str) -> str:
    """TrackingID: the same for a person to read."""
    return cut(f"{context.algorithm.name} {role} {key}", _MAX_IDENTIFIER)
