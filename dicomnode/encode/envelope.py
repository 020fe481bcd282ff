"""What every object that highdicom builds gets afterwards: whose it is, who made it, when, and that it is for research.

highdicom leaves out, or rewrites, attributes that a radiologist's worklist needs (`outputs.md` 1.1): everything here is
taken again from the source's header, character by character.
"""

from __future__ import annotations

from typing import Final

from pydicom import Dataset
from pydicom.datadict import tag_for_keyword

from dicomnode.encode import anatomy
from dicomnode.encode.common import MAX_LO, Copier, cut
from dicomnode.encode.identity import EncodeContext, file_meta, sign
from dicomnode.encode.source import Source

#: Patient and study, as the source has them (PS3.3 C.7.1.1, C.7.2.1, C.7.2.2).
PATIENT_AND_STUDY: Final = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "IssuerOfPatientIDQualifiersSequence",
    "OtherPatientIDsSequence",
    "PatientBirthDate",
    "PatientSex",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "PatientSpeciesDescription",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "StudyDescription",
    "AccessionNumber",
    "IssuerOfAccessionNumberSequence",
    "ReferringPhysicianName",
    "TimezoneOffsetFromUTC",
    "InstitutionName",
)
#: Type 2 among them: present and empty where the source has none.
TYPE_2: Final = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)
#: General Series attributes of images and segmentations that say what was scanned and for which order.
_SERIES: Final = ("BodyPartExamined", "Laterality", "ProtocolName", "RequestAttributesSequence", "PatientPosition")


def envelop(
    ds: Dataset,
    source: Source,
    context: EncodeContext,
    *,
    role: str,
    series_number: int,
    description: str,
    index: int = 0,
    image: bool = True,
) -> Dataset:
    """Make ``ds`` an object of this job; return it.

    Parameters
    ----------
    role, index
        Identity inside the job: the UIDs hang on them.
    description
        SeriesDescription; the research marking is appended.
    image
        The IOD has the General Series module (SEG, SC), unlike SR and KOS.
    """
    header = source.headers[0]
    copied = Copier().copy(header)
    # highdicom names itself here with the time of the call: equal jobs would not give equal bytes.
    for keyword in (*PATIENT_AND_STUDY, *(_SERIES if image else ()), "ContributingEquipmentSequence"):
        _replace(ds, copied, keyword)
    for keyword in TYPE_2:
        if keyword not in ds:
            setattr(ds, keyword, None)
    say_deidentified(ds)
    if image:
        anatomy.locate(ds)
        if "SegmentSequence" in ds and not ds.get("Laterality"):
            ds.pop("Laterality", None)  # a SEG may say it in its segments: dciodvfy wants no empty one beside them
    if "FrameOfReferenceUID" in ds:
        ds.PositionReferenceIndicator = header.get("PositionReferenceIndicator")
    ds.SOPInstanceUID = context.instance_uid(role, index)
    ds.SeriesInstanceUID = context.series_uid(role)
    ds.SeriesNumber = str(series_number)
    ds.InstanceNumber = str(index + 1)
    ds.SeriesDescription = described(description, source, context)
    sign(ds, header, context)
    ds.file_meta = file_meta(ds)
    return ds


def say_deidentified(ds: Dataset) -> None:
    """Give an object of a patient whose identity was removed the method, or that nobody stated it."""
    if ds.get("PatientIdentityRemoved") == "YES" and not (
        ds.get("DeidentificationMethod") or ds.get("DeidentificationMethodCodeSequence")
    ):
        ds.DeidentificationMethod = "Not stated by the source"  # type 1C beside YES (PS3.3 C.7.1.1)


def described(label: str, source: Source, context: EncodeContext) -> str:
    """SeriesDescription: ``label`` and the marks of research use and missing instances, in 64 characters."""
    marks = ", RUO" + (", incomplete" if context.incomplete or source.images.incomplete else "")
    return cut(label, MAX_LO - len(marks)) + marks


def _replace(ds: Dataset, copied: Dataset, keyword: str) -> None:
    tag = tag_for_keyword(keyword)
    assert tag is not None  # every keyword above is in the dictionary
    ds.pop(tag, None)
    if tag in copied:
        ds[tag] = copied[tag]
