"""Images reconstructed from k-space: MR Image Storage, one object a plane, in the terms of the raw object they are of.

Geometry is the plane's own, digit for digit as far as DS goes. Stored values are the pipeline's times one factor for
the whole series, which RealWorldValueMappingSequence gives back: RescaleSlope has no place in MR Image Storage, and
viewers window by it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import MRImageStorage

from dicomnode.dicom import derive_uid
from dicomnode.encode import anatomy
from dicomnode.encode.acquired import add_acquisition, numbers
from dicomnode.encode.common import MAX_LO, Copier, code_item, cut, reference
from dicomnode.encode.envelope import PATIENT_AND_STUDY, TYPE_2, say_deidentified
from dicomnode.encode.gate_mr import check_plane
from dicomnode.encode.identity import EncodeContext, file_meta, require_identity, sign
from dicomnode.encode.source import RawSource
from dicomnode.errors import EncodingError
from dicomnode.pipeline import ReconstructedPlane, Reconstruction

#: Copied from the raw object beside patient and study: what was scanned, and for which order.
_SERIES: Final = ("BodyPartExamined", "Laterality", "RequestAttributesSequence", "ContributingEquipmentSequence")
_NO_UNITS: Final = Code("1", "UCUM", "no units")
_MAX_ST, _MAX_LT, _MAX_SH = 1024, 10240, 16
#: The window shows what lies between these percentiles of the series' non-zero values.
_WINDOW: Final = (1.0, 99.5)
#: Values looked at for the window: enough for a percentile, and not a copy of a large series.
_LOOKED_AT: Final = 2_000_000
#: Steps equal within this are one spacing between slices [mm].
_SAME_STEP_MM: Final = 0.01


def encode_reconstruction(
    source: RawSource, reconstruction: Reconstruction, context: EncodeContext
) -> Iterator[Dataset]:
    """One object a plane, checked, with file meta information (Explicit VR Little Endian), in the order of viewing.

    Raises
    ------
    EncodingError
        The identity cannot be repeated, or it is not known how the patient lay.
    """
    for header in source.headers:
        require_identity(header, context, spatial=False)
    yield from _Series(source, reconstruction, context).objects()


def frame_of_reference(source: RawSource) -> str:
    """That of the measurement; else one of its own, the same for everything that is computed from it."""
    return source.frame_of_reference or derive_uid(str(source.headers[0].SeriesInstanceUID), "frame-of-reference")


def in_order(reconstruction: Reconstruction) -> list[ReconstructedPlane]:
    """Planes as a viewer pages through them: whatever order they were finished in."""
    return sorted(
        reconstruction.planes,
        key=lambda plane: (plane.contrast, plane.set, plane.repetition, plane.slice, plane.phase),
    )


def stored_values(
    array: NDArray[np.float32], scale: float, component: str = "M"
) -> tuple[NDArray[np.uint16] | NDArray[np.int16], int]:
    """Values to stored values, half to even, and how many of them did not fit and were clipped."""
    low, high = (0, 65535) if component == "M" else (-32768, 32767)
    scaled = np.rint(array.astype(np.float64) * scale)
    clipped = int(np.count_nonzero((scaled < low) | (scaled > high)))
    stored = np.clip(scaled, low, high)
    return (stored.astype(np.uint16), clipped) if component == "M" else (stored.astype(np.int16), clipped)


class _Series:
    """One reconstructed series while it is written."""

    def __init__(self, source: RawSource, reconstruction: Reconstruction, context: EncodeContext) -> None:
        self._source, self._made, self._context = source, reconstruction, context
        self._header = source.kspace.header
        self._planes = in_order(reconstruction)
        self._scanner = self._named_scanner()
        self._copied = Copier().copy(source.headers[0])
        self._spacing = _spacing(self._planes)
        self._window = self._center_and_width()
        self._position = self._header.acquisition.get("PatientPosition")
        if not self._position:
            raise EncodingError(
                f"PatientPosition of {source.headers[0].SOPInstanceUID} is not known: images cannot say how the "
                "patient lay; wrap the measurement again with --patient-position"
            )

    def objects(self) -> Iterator[Dataset]:
        for index, plane in enumerate(self._planes):
            ds = self._envelope(index)
            self._add_series(ds)
            self._add_geometry(ds, plane)
            add_acquisition(ds, self._header, plane)
            self._add_pixels(ds, plane)
            ds.file_meta = file_meta(ds)
            check_plane(ds, plane, self._made)
            yield ds

    def _envelope(self, index: int) -> Dataset:
        """Whose it is, who made it, and its place in the series."""
        ds = Dataset()
        for keyword in (*PATIENT_AND_STUDY, *_SERIES):
            if keyword in self._copied:
                ds[keyword] = self._copied[keyword]
        for keyword in TYPE_2:
            if keyword not in ds:
                setattr(ds, keyword, None)
        say_deidentified(ds)
        sign(ds, self._scanner, self._context)
        ds.SOPClassUID = MRImageStorage
        ds.SOPInstanceUID = self._context.instance_uid(self._made.role, index)
        ds.SeriesInstanceUID = self._context.series_uid(self._made.role)
        ds.InstanceNumber = str(index + 1)
        ds.SourceInstanceSequence = [reference(header) for header in self._source.headers]
        return ds

    def _add_series(self, ds: Dataset) -> None:
        made = self._made
        ds.Modality = "MR"
        ds.SeriesNumber = str(self._context.series_number)
        ds.SeriesDescription = self._description()
        protocol = self._header.acquisition.get("ProtocolName")
        if isinstance(protocol, str):
            ds.ProtocolName = cut(protocol, MAX_LO)
        ds.PatientPosition = self._position
        ds.FrameOfReferenceUID = frame_of_reference(self._source)
        ds.PositionReferenceIndicator = None
        ds.ImageType = ["DERIVED" if made.learned else "ORIGINAL", "PRIMARY", made.component]
        ds.DerivationDescription = self._derivation()
        part = self._header.acquisition.get("BodyPartExamined")
        if isinstance(part, str) and not ds.get("BodyPartExamined"):
            ds.BodyPartExamined = cut(part.upper(), _MAX_SH)
        anatomy.locate(ds)

    def _add_geometry(self, ds: Dataset, plane: ReconstructedPlane) -> None:
        position, orientation = np.asarray(plane.position), np.asarray(plane.orientation)
        ds.ImagePositionPatient = numbers(position)
        ds.ImageOrientationPatient = numbers(orientation)
        ds.PixelSpacing = numbers(self._made.pixel_spacing)
        ds.SliceThickness = numbers([self._made.thickness])[0]
        normal = np.cross(orientation[:3], orientation[3:])
        ds.SliceLocation = numbers([round(float(position @ normal), 6)])[0]
        if self._spacing is not None:
            ds.SpacingBetweenSlices = numbers([self._spacing])[0]

    def _add_pixels(self, ds: Dataset, plane: ReconstructedPlane) -> None:
        stored, clipped = stored_values(plane.array, self._made.scale, self._made.component)
        signed = int(self._made.component != "M")
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.Rows, ds.Columns = stored.shape
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, signed
        ds.WindowCenter, ds.WindowWidth = numbers(self._window)
        ds.RealWorldValueMappingSequence = [self._mapping(signed)]
        remarks = [plane.remark] if plane.remark else []
        if clipped:
            remarks.append(f"{clipped} of {stored.size} values are above the range of this series and were clipped")
        if remarks:
            ds.ImageComments = cut("; ".join(remarks), _MAX_LT)
        ds.add_new(0x7FE00010, "OW", np.ascontiguousarray(stored.astype(stored.dtype.newbyteorder("<"))).tobytes())

    def _mapping(self, signed: int) -> Dataset:
        """Stored value -> value of the reconstruction (PS3.3 C.7.6.16.2.11)."""
        item = Dataset()
        vr, low, high = ("SS", -32768, 32767) if signed else ("US", 0, 65535)
        item.add_new("RealWorldValueFirstValueMapped", vr, low)
        item.add_new("RealWorldValueLastValueMapped", vr, high)
        item.RealWorldValueIntercept, item.RealWorldValueSlope = 0.0, 1.0 / self._made.scale
        item.LUTExplanation = "Value of the reconstruction: one factor for the whole series"
        item.LUTLabel = "RECON"
        item.MeasurementUnitsCodeSequence = [code_item(_NO_UNITS)]
        return item

    def _description(self) -> str:
        """What was scanned, how it was reconstructed, and that it is for research."""
        made = self._made
        label = f"AI {made.label}" if made.learned and not made.label.startswith("AI") else made.label
        suffix = f" [{label}, RUO{', incomplete' if self._context.incomplete else ''}]"
        keys = ("SeriesDescription", "ProtocolName")
        found = [self._header.acquisition.get(key) for key in keys] + [self._source.headers[0].get("SeriesDescription")]
        named = next((text for text in found if isinstance(text, str) and text), "MR")
        return cut(named, MAX_LO - len(suffix)) + suffix

    def _derivation(self) -> str:
        context, text = self._context, self._made.description
        if context.incomplete:
            text += "; input incomplete"
        if context.revision > 1:
            text += f"; revision {context.revision}"
        if context.predecessor:
            text += f", replaces series {context.predecessor}"
        return cut(text, _MAX_ST)

    def _named_scanner(self) -> Dataset:
        """The raw object's header with what the MRD header says of the scanner where the object says nothing."""
        ds = Dataset()
        ds.update(self._source.headers[0])
        for keyword, text in self._source.equipment.items():
            if not ds.get(keyword):
                setattr(ds, keyword, cut(text, _MAX_SH if keyword == "StationName" else MAX_LO))
        return ds

    def _center_and_width(self) -> tuple[float, float]:
        """Window of the whole series, in stored values."""
        size = sum(plane.array.size for plane in self._planes)
        step = max(1, size // _LOOKED_AT)
        seen = np.concatenate([plane.array.ravel()[::step] for plane in self._planes])
        seen = seen[seen != 0] * np.float32(self._made.scale)
        low, high = np.percentile(seen, _WINDOW) if seen.size else (0.0, 1.0)
        width = max(float(high - low), 1.0)
        return round(float(low) + width / 2, 1), round(width, 1)


def _spacing(planes: list[ReconstructedPlane]) -> float | None:
    """SpacingBetweenSlices, where parallel planes stand at equal steps; else None."""
    orientation = np.asarray([plane.orientation for plane in planes])
    if np.abs(orientation - orientation[0]).max() > 1e-4:
        return None
    normal = np.cross(orientation[0, :3], orientation[0, 3:])
    along = np.unique(np.round(np.asarray([plane.position for plane in planes]) @ normal, 4))
    steps = np.diff(along)
    if not len(steps) or np.ptp(steps) > _SAME_STEP_MM:
        return None
    return round(float(np.mean(steps)), 6)
