"""BodyPartExamined or Laterality of a derived image, where the scanner left both out: one of them must be there."""

from __future__ import annotations

import re
from typing import Final

from pydicom import Dataset
from pydicom.sr.coding import Code

from dicomnode.encode.common import code_item

#: Word in a description -> defined term of a body part that is not paired (PS3.16 Annex L); the first match counts.
_WORDS: Final = (
    (r"brain|cerebr|hirn|cerveau", "BRAIN"),
    (r"head|skull|kopf|schaedel|crane|cranial|neuro", "HEAD"),
    (r"heart|cardiac|cardio|coronar|herz|sax\b|short.?axis", "HEART"),
    (r"chest|thorax|lung|pulmo", "CHEST"),
    (r"abdom|liver|leber", "ABDOMEN"),
    (r"pelvi|becken", "PELVIS"),
    (r"c.?spine|cervical spine|hws", "CSPINE"),
    (r"t.?spine|thoracic spine|bws", "TSPINE"),
    (r"l.?spine|lumbar|lws", "LSPINE"),
    (r"spine|wirbel", "SPINE"),
    (r"neck|hals", "NECK"),
    (r"prostat", "PROSTATE"),
)
_DESCRIPTIONS: Final = ("SeriesDescription", "ProtocolName", "StudyDescription", "RequestedProcedureDescription")
#: Body parts of which there are two: these need Laterality.
_PAIRED: Final = frozenset(
    {
        "ANKLE",
        "ARM",
        "BREAST",
        "CLAVICLE",
        "ELBOW",
        "EYE",
        "FEMUR",
        "FOOT",
        "HAND",
        "HIP",
        "HUMERUS",
        "KIDNEY",
        "KNEE",
        "LEG",
        "SHOULDER",
        "WRIST",
    }
)

#: BodyPartExamined -> region (PS3.16 Annex L).
_REGIONS: Final = {
    "ABDOMEN": ("818981001", "Abdomen"),
    "BRAIN": ("12738006", "Brain"),
    "BREAST": ("76752008", "Breast"),
    "CHEST": ("816094009", "Chest"),
    "CSPINE": ("122494005", "Cervical spine"),
    "HEAD": ("69536005", "Head"),
    "HEART": ("80891009", "Heart"),
    "HIP": ("24136001", "Hip"),
    "KNEE": ("72696002", "Knee"),
    "LSPINE": ("122496007", "Lumbar spine"),
    "NECK": ("45048000", "Neck"),
    "PELVIS": ("816092008", "Pelvis"),
    "PROSTATE": ("41216001", "Prostate"),
    "SHOULDER": ("16982005", "Shoulder"),
    "SPINE": ("421060004", "Spine"),
    "TSPINE": ("122495006", "Thoracic spine"),
}
#: Where the body part is not known: the sequence may not be left out, and this says no more than is true.
_SOMEWHERE: Final = ("123037004", "Body structure")
#: Laterality -> FrameLaterality; U: unpaired, which is also all there is to say of what is not known.
_SIDES: Final = {"L": "L", "R": "R", "B": "B"}


def of_frames(part: str, laterality: str) -> Dataset:
    """Item of FrameAnatomySequence: the region that a BodyPartExamined and a Laterality name."""
    value, meaning = _REGIONS.get(part.upper(), _SOMEWHERE)
    item = Dataset()
    item.FrameLaterality = _SIDES.get(laterality, "U")
    item.AnatomicRegionSequence = [code_item(Code(value, "SCT", meaning))]
    return item


def locate(ds: Dataset) -> str:
    """Give ``ds``, a single-frame image, the BodyPartExamined its descriptions name, else an empty Laterality.

    Laterality is of type 2C: empty says "not known", which is true; any body part would be a guess.

    Returns
    -------
    str
        Keyword of what was added, or "".
    """
    part = ds.get("BodyPartExamined")
    if ds.get("Laterality") or ds.get("ImageLaterality") or (part and part not in _PAIRED):
        return ""
    for keyword in () if part else _DESCRIPTIONS:
        text = str(ds.get(keyword) or "").lower()
        for pattern, term in _WORDS:
            if re.search(rf"\b(?:{pattern})", text):
                ds.BodyPartExamined = term
                return "BodyPartExamined"
    ds.Laterality = None
    return "Laterality"
