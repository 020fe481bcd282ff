"""What highdicom is given in the place of the source's headers, since it stumbles over ordinary ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pydicom import Dataset

from dicomnode.encode.common import reference
from dicomnode.encode.source import Source, SourcePlane

#: SliceThickness of one plane alone whose source does not say it [mm].
_NOMINAL_THICKNESS: Final = "1"
#: What highdicom reads of a source's top level; what it copies into the SEG from there, the envelope sets again.
_NEEDED: Final = (
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "Modality",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
)
_IDENTITY: Final = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
)


def cited(header: Dataset) -> Dataset:
    """What highdicom needs to refer to an instance; the envelope writes patient and study."""
    ds = Dataset()
    for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        setattr(ds, keyword, str(header[keyword].value))
    for keyword in _IDENTITY:
        setattr(ds, keyword, None)
    for keyword in ("Rows", "Columns"):  # tells highdicom images from other objects
        if keyword in header:
            ds[keyword] = header[keyword]
    return ds


@dataclass(frozen=True, slots=True, kw_only=True)
class StandIns:
    """Headers for highdicom, and what each of them stands in for."""

    headers: tuple[Dataset, ...]
    #: SOP Instance UID and frame number (0 in a single-frame object): of the source, by those of the stand-ins.
    origins: Mapping[tuple[str, int], tuple[str, int]]
    #: Several series or instances stand behind one: the reference to them must be written anew.
    series: bool


def stand_ins(source: Source) -> StandIns:
    """Headers with no more in them than highdicom needs, and nothing less.

    It takes the instances of one series, or one multi-frame instance with all of its frames. A phase of a cine can be
    a part of an instance, or of many of them in as many series.
    """
    several = len({str(header.SeriesInstanceUID) for header in source.headers}) > 1
    if not source.planes[0].frame:
        slim = tuple(_slim_plane(source, plane) for plane in source.planes)
        same = {(str(header.SOPInstanceUID), 0): (str(header.SOPInstanceUID), 0) for header in source.headers}
        return StandIns(headers=slim, origins=same, series=several)
    ordered = source.planes if len(source.headers) > 1 else sorted(source.planes, key=lambda plane: plane.frame)
    uid = str(source.headers[0].SOPInstanceUID)
    origins = {
        (uid, number): (str(source.headers[plane.header].SOPInstanceUID), plane.frame)
        for number, plane in enumerate(ordered, 1)
    }
    return StandIns(headers=(_slim_multi_frame(source, ordered),), origins=origins, series=len(source.headers) > 1)


def referenced_series(source: Source) -> list[Dataset]:
    """Items of ReferencedSeriesSequence (PS3.3 C.12.1.3): every series of ``source`` with its instances."""
    found: dict[str, Dataset] = {}
    for header in source.headers:
        item = found.setdefault(str(header.SeriesInstanceUID), Dataset())
        if "SeriesInstanceUID" not in item:
            item.SeriesInstanceUID, item.ReferencedInstanceSequence = str(header.SeriesInstanceUID), []
        item.ReferencedInstanceSequence.append(reference(header))
    return list(found.values())


def _slim_plane(source: Source, plane: SourcePlane) -> Dataset:
    first, header = source.headers[0], source.headers[plane.header]
    ds = _slim(header)
    ds["SeriesInstanceUID"] = first["SeriesInstanceUID"]
    ds.ImagePositionPatient = header.ImagePositionPatient
    ds.ImageOrientationPatient = first.ImageOrientationPatient  # the loader has found them to agree
    for element in _measures(first):
        ds.add(element)
    return ds


def _slim_multi_frame(source: Source, ordered: Sequence[SourcePlane]) -> Dataset:
    """One instance, the first, with a frame for each of the planes."""
    header, first = source.headers[0], source.planes[0].frame
    ds = _slim(header)
    ds.add_new("NumberOfFrames", "IS", str(len(ordered)))  # another element: the header's own is shared
    shared = Dataset()
    shared.PixelMeasuresSequence = [_measures(group_of(header, first, "PixelMeasuresSequence"))]
    orientation = Dataset()
    orientation.ImageOrientationPatient = group_of(header, first, "PlaneOrientationSequence").ImageOrientationPatient
    shared.PlaneOrientationSequence = [orientation]
    frames = []
    for plane in ordered:
        place = group_of(source.headers[plane.header], plane.frame, "PlanePositionSequence")
        position = Dataset()
        position.ImagePositionPatient = place.ImagePositionPatient
        frame = Dataset()
        frame.PlanePositionSequence = [position]
        frames.append(frame)
    ds.SharedFunctionalGroupsSequence, ds.PerFrameFunctionalGroupsSequence = [shared], frames
    return ds


def _slim(header: Dataset) -> Dataset:
    ds = Dataset()
    for keyword in _NEEDED:
        if header.get(keyword) not in (None, ""):
            ds[keyword] = header[keyword]
    for keyword in _IDENTITY:
        setattr(ds, keyword, None)
    return ds


def _measures(item: Dataset) -> Dataset:
    """Pixel measures as the source has them; SliceThickness must be there in a SEG (type 1C, and highdicom wants it).

    Only a plane alone can lack it here (the loader derives it from the positions): any number draws it the same.
    """
    measures = Dataset()
    for keyword in ("PixelSpacing", "SliceThickness", "SpacingBetweenSlices"):
        if item.get(keyword) not in (None, ""):
            measures[keyword] = item[keyword]
    if "SliceThickness" not in measures:
        measures.SliceThickness = _NOMINAL_THICKNESS
    return measures


def group_of(header: Dataset, frame: int, keyword: str) -> Dataset:
    """Item of the functional group ``keyword`` that holds for ``frame``, its own or the shared one."""
    per_frame = header.PerFrameFunctionalGroupsSequence[frame - 1]
    groups: Sequence[Dataset] = per_frame.get(keyword) or header.SharedFunctionalGroupsSequence[0].get(keyword)
    return groups[0]
