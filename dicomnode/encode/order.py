"""What was ordered, as documents say it (SR, KOS): the Referenced Request Sequence, in the source's own words."""

from __future__ import annotations

from typing import Final

from pydicom import Dataset
from pydicom.dataelem import DataElement

from dicomnode.dicom import valid_uid
from dicomnode.encode.common import strict

#: Copied from the source's request as they are (PS3.3 C.17.2, table C.17-2).
_OPTIONAL: Final = (
    "IssuerOfAccessionNumberSequence",
    "ReasonForTheRequestedProcedure",
    "ReasonForRequestedProcedureCodeSequence",
)
#: Type 2 of an item: present and empty where the source says nothing.
_TYPE_2: Final = (
    "AccessionNumber",
    "PlacerOrderNumberImagingServiceRequest",
    "FillerOrderNumberImagingServiceRequest",
    "RequestedProcedureID",
    "RequestedProcedureDescription",
)
#: Type 2 sequences of an item.
_TYPE_2_SEQUENCES: Final = ("ReferencedStudySequence", "RequestedProcedureCodeSequence")
#: Of the study, not of one request: stands at the source's top level too.
_OF_STUDY: Final = (
    "AccessionNumber",
    "IssuerOfAccessionNumberSequence",
    "PlacerOrderNumberImagingServiceRequest",
    "FillerOrderNumberImagingServiceRequest",
)


def referenced_requests(header: Dataset) -> list[Dataset]:
    """Items of ReferencedRequestSequence (PS3.3 C.17.2), one per request the source was made for; none without.

    Nothing is invented: what the request leaves out is empty, but for study and accession number, which are the
    source's.
    """
    return [_request(request, header) for request in header.get("RequestAttributesSequence") or () if len(request)]


def _request(request: Dataset, header: Dataset) -> Dataset:
    item = Dataset()
    own = str(request.get("StudyInstanceUID") or "")
    item.StudyInstanceUID = own if valid_uid(own) else str(header.StudyInstanceUID)
    for keyword in (*_TYPE_2, *_TYPE_2_SEQUENCES, *_OPTIONAL):
        given = request.get(keyword) or (header.get(keyword) if keyword in _OF_STUDY else None)
        allowed = strict((request if request.get(keyword) else header)[keyword]) if given else None
        if allowed is not None:
            item.add(DataElement(allowed.tag, allowed.VR, allowed.value, already_converted=True))
        elif keyword in _TYPE_2:
            setattr(item, keyword, None)
        elif keyword in _TYPE_2_SEQUENCES:
            setattr(item, keyword, [])
    return item
