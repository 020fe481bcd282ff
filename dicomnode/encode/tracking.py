"""Identity of one structure across the objects of a job: the same UID in its segment and in its measurements."""

from __future__ import annotations

from dicomnode.dicom import derive_uid
from dicomnode.encode.identity import EncodeContext


def tracking_uid(context: EncodeContext, role: str, key: str) -> str:
    """TrackingUID of the structure ``key`` of the output ``role`` (a `Segmentation`'s role and a `Segment`'s key).

    The same in every encoding of it, so that reports and both flavours of a segmentation agree. Distinct per role: a
    viewer merges all that share a tracking UID, which would join two phases of one structure.
    """
    return derive_uid(context.job_key, role, key, "tracking")


def tracking_id(context: EncodeContext, role: str, key: str) -> str:
    """TrackingID: the same for a person to read (UT: as long as it needs)."""
    return f"{context.algorithm.name} {role} {key}"
