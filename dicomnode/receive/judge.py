"""Is an object what it claims to be? The library does not ask: it says success to garbage and to half an image."""

from __future__ import annotations

from typing import Final

from dicomnode.dicom import CANNOT_UNDERSTAND, DATA_SET_DOES_NOT_MATCH, SUCCESS, valid_uid
from dicomnode.errors import ReceiveError
from dicomnode.receive import dimse, walk
from dicomnode.receive.request import Request
from dicomnode.receive.walk import Walk

SOP_CLASS, SOP_INSTANCE, STUDY, SERIES = 0x00080016, 0x00080018, 0x0020000D, 0x0020000E
_NAMES: Final = {
    SOP_CLASS: "SOP Class UID",
    SOP_INSTANCE: "SOP Instance UID",
    STUDY: "Study Instance UID",
    SERIES: "Series Instance UID",
}
#: Photometric interpretations that share chroma between pixels (PS3.3 C.7.6.3.1.2): bits that remain, of six.
_SUBSAMPLED: Final = {"YBR_FULL_422": 4, "YBR_PARTIAL_422": 4, "YBR_PARTIAL_420": 3}


def refusal(walked: Walk, request: Request, *, leading_zeros: bool) -> ReceiveError | None:
    """Why the object is set aside, with the status to answer; None when it can be filed."""
    if walked.fault:
        code, text = walked.fault
        return ReceiveError(CANNOT_UNDERSTAND, code, text)
    return _identity(walked, request) or _pixels(walked) or _uids(walked, leading_zeros=leading_zeros)


def excess(walked: Walk) -> int:
    """Bytes of native pixel data beyond what the image's dimensions ask for, not counting one to make it even."""
    expected = _expected_bytes(walked)
    if expected is None or walked.pixels is None or walked.pixels < 0:
        return 0
    return max(0, walked.pixels - expected - expected % 2)


def _identity(walked: Walk, request: Request) -> ReceiveError | None:
    """The data set must be the instance and of the class that the command and the presentation context announced."""
    for tag in (SOP_INSTANCE, SOP_CLASS, STUDY, SERIES):
        if not dimse.uid(walked.values.get(tag, b"")):
            text = f"the data set's {_NAMES[tag]} is {'empty' if tag in walked.values else 'missing'}"
            return ReceiveError(DATA_SET_DOES_NOT_MATCH, "missing-uid", text)
    instance, sop_class = dimse.uid(walked.values[SOP_INSTANCE]), dimse.uid(walked.values[SOP_CLASS])
    if instance != request.sop_instance_uid:
        text = f"the command says SOP Instance UID {request.sop_instance_uid or '(none)'}, the data set {instance}"
        return ReceiveError(DATA_SET_DOES_NOT_MATCH, "uid-mismatch", text)
    if sop_class != request.sop_class_uid:
        text = f"the command says SOP Class UID {request.sop_class_uid or '(none)'}, the data set {sop_class}"
        return ReceiveError(DATA_SET_DOES_NOT_MATCH, "class-mismatch", text)
    if sop_class != request.abstract_syntax:
        text = f"SOP Class UID {sop_class} was sent in a presentation context for {request.abstract_syntax}"
        return ReceiveError(DATA_SET_DOES_NOT_MATCH, "class-mismatch", text)
    return None


def _pixels(walked: Walk) -> ReceiveError | None:
    """Native pixel data must hold as many bits as the image's dimensions say."""
    expected = _expected_bytes(walked)
    if not expected or walked.pixels == -1 or (walked.pixels is not None and walked.pixels >= expected):
        return None
    what = "there is none" if walked.pixels is None else f"there are {walked.pixels} bytes"
    text = f"the image's dimensions ask for {expected} bytes of pixel data, {what}"
    return ReceiveError(CANNOT_UNDERSTAND, "truncated", text)


def _expected_bytes(walked: Walk) -> int | None:
    rows, columns, allocated = (_number(walked, tag) for tag in (walk.ROWS, walk.COLUMNS, walk.ALLOCATED))
    if not rows or not columns or not allocated:
        return None
    bits = rows * columns * allocated * (_number(walked, walk.SAMPLES) or 1) * (_number(walked, walk.FRAMES) or 1)
    bits = bits * _SUBSAMPLED.get(walked.text(walk.PHOTOMETRIC), 6) // 6
    return (bits + 7) // 8


def _number(walked: Walk, tag: int) -> int | None:
    try:
        return int(float(walked.text(tag)))  # some write an integer string as 1.0
    except (ValueError, OverflowError):
        return None


def _uids(walked: Walk, *, leading_zeros: bool) -> ReceiveError | None:
    """An invalid UID is not the sender's to repair now, so it is taken, but it must not spread (PS3.5 9.1)."""
    for tag in (SOP_INSTANCE, STUDY, SERIES):
        uid = dimse.uid(walked.values[tag])
        if not valid_uid(uid, leading_zeros=leading_zeros):
            text = f"{_NAMES[tag]} {uid!r} is not a valid UID; kept, but nothing is computed from it"
            return ReceiveError(SUCCESS, "invalid-uid", text)
    return None
