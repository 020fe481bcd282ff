"""Raw data objects of one series become a pipeline's k-space: unwrapped to a temporary file, read as it is needed."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from pydicom import Dataset

from dicomnode.dicom import valid_uid
from dicomnode.errors import MissingAttribute
from dicomnode.kspace import KSpace
from dicomnode.volumes import mrd, raw
from dicomnode.volumes.normalise import DEFAULT_CHARSET, Normaliser

logger = logging.getLogger(__name__)

#: What the MRD header may say of the patient and the study, and the object that carries it says for certain.
_COMPARED: Final = ("PatientID", "StudyInstanceUID", "PatientBirthDate")


@dataclass(frozen=True, kw_only=True, eq=False)
class SourceMeasurement:
    """One measurement as read: the pipeline's input, and what is needed to write images in the same terms."""

    #: Normalised headers of the raw data objects, in the order of their parts. Read-only.
    headers: tuple[Dataset, ...]
    #: What the pipeline sees.
    kspace: KSpace
    #: FrameOfReferenceUID that the objects or the MRD header give; empty: neither does.
    frame_of_reference: str
    #: The scanner by DICOM keyword, as the MRD header names it.
    equipment: Mapping[str, str]
    #: What was repaired or seen on the way in, one sentence each.
    notes: tuple[str, ...]


def load(
    paths: Sequence[Path], target: Path, *, incomplete: bool = False, default_charset: str = DEFAULT_CHARSET
) -> SourceMeasurement:
    """Read our raw data objects of one series; their MRD file is put together at ``target`` and must stay there.

    Parameters
    ----------
    incomplete
        Some expected instances never arrived; what arrived may still be all there is.

    Raises
    ------
    UnsupportedSOPClass
        An object is not ours to read.
    UnreadableRawData, MissingAttribute, MixedGeometry, UndecodableText
        The measurement is damaged, incomplete, or lacks what no image can do without; names what to do.
    """
    raw.unwrap(paths, target)
    normaliser = Normaliser(default_charset)
    numbered = []
    with warnings.catch_warnings():
        # pydicom warns, with values that may identify the patient, about what is judged and noted here anyway.
        warnings.simplefilter("ignore")
        for path in paths:
            header = raw.read_header(path)
            numbered.append((raw.part_of(header), normaliser.header(header, path.name)))
    numbered.sort(key=lambda one: one[0].number)
    headers = tuple(header for _, header in numbered)
    # Raw data has no frame of reference module unless somebody knew one: nothing is missing.
    notes = tuple(note for note in normaliser.notes if not note.startswith("PositionReferenceIndicator"))
    return _measured(target, headers, incomplete=incomplete or not numbered[0][0].complete, notes=notes)


def _measured(
    path: Path, headers: tuple[Dataset, ...], *, incomplete: bool, notes: tuple[str, ...]
) -> SourceMeasurement:
    xml, first = mrd.xml_of(path), headers[0]
    kspace = replace(mrd.open_mrd(path), incomplete=incomplete)
    if not kspace.header.acquisition.get("PatientPosition"):
        position = str(first.get("PatientPosition") or "")
        if not position:
            raise MissingAttribute(
                f"the MRD header of {first.SOPInstanceUID} has no measurementInformation/patientPosition: how the "
                "patient lay is needed to place images; wrap it again with --patient-position"
            )
        header = kspace.header
        acquisition = {**header.acquisition, "PatientPosition": position}
        kspace = replace(kspace, header=replace(header, acquisition=acquisition))
    told = mrd.identity_of(xml)
    frame = str(first.get("FrameOfReferenceUID") or told.get("FrameOfReferenceUID") or "")
    if not valid_uid(frame):
        said = "is not a valid UID" if frame else "is not given"
        notes = (
            *notes,
            f"FrameOfReferenceUID {said}: the images get one of their own, and line up with no other series",
        )
        frame = ""
    differing = [key for key in _COMPARED if key in told and told[key] != str(first.get(key) or "")]
    if differing:
        notes = (
            *notes,
            f"{', '.join(differing)} of the MRD header differ from the object that carries it, which counts",
        )
    logger.info(
        "measurement loaded",
        extra={"action": "measurement_loaded", "series_uid": str(first.SeriesInstanceUID), "incomplete": incomplete},
    )
    return SourceMeasurement(
        headers=headers,
        kspace=kspace,
        frame_of_reference=frame,
        equipment=mrd.equipment_of(xml),
        notes=notes,
    )
