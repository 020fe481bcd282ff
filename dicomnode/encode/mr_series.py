"""What all objects of one reconstructed series have in common, whether a frame each or all of them together."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sr.coding import Code

from dicomnode.dicom import derive_uid
from dicomnode.encode import anatomy
from dicomnode.encode.common import MAX_LO, Copier, code_item, cut
from dicomnode.encode.envelope import PATIENT_AND_STUDY, TYPE_2, say_deidentified
from dicomnode.encode.identity import EncodeContext, require_identity, sign
from dicomnode.encode.source import RawSource
from dicomnode.errors import EncodingError
from dicomnode.pipeline import ReconstructedPlane, Reconstruction

#: Copied from the raw object beside patient and study: what was scanned, and for which order.
_SERIES: Final = ("BodyPartExamined", "Laterality", "RequestAttributesSequence", "ContributingEquipmentSequence")
_NO_UNITS: Final = Code("1", "UCUM", "no units")
_RADIAN: Final = Code("rad", "UCUM", "radian")
_MAX_ST, _MAX_SH = 1024, 16
#: The window shows what lies between these percentiles of the series' non-zero values.
_WINDOW: Final = (1.0, 99.5)
#: Values looked at for the window: enough for a percentile, and not a copy of a large series.
_LOOKED_AT: Final = 2_000_000
#: Steps equal within this are one spacing between slices [mm].
_SAME_STEP_MM: Final = 0.01
#: Direction cosines equal within this are one orientation.
SAME_COSINE: Final = 1e-4

Stored = NDArray[np.uint16] | NDArray[np.int16]


def frame_of_reference(source: RawSource) -> str:
    """That of the measurement; else one of its own, the same for everything that is computed from it."""
    return source.frame_of_reference or derive_uid(str(source.headers[0].SeriesInstanceUID), "frame-of-reference")


def in_order(reconstruction: Reconstruction) -> list[ReconstructedPlane]:
    """Planes as a viewer pages through them: whatever order they were finished in."""
    return sorted(
        reconstruction.planes,
        key=lambda plane: (plane.contrast, plane.set, plane.repetition, plane.slice, plane.phase),
    )


def stored_values(array: NDArray[np.float32], scale: float, component: str = "M") -> tuple[Stored, int]:
    """Values to stored values, half to even, and how many of them did not fit and were clipped."""
    low, high = (0, 65535) if component == "M" else (-32768, 32767)
    scaled = np.rint(array.astype(np.float64) * scale)
    clipped = int(np.count_nonzero((scaled < low) | (scaled > high)))
    stored = np.clip(scaled, low, high)
    return (stored.astype(np.uint16), clipped) if component == "M" else (stored.astype(np.int16), clipped)


class Series:
    """One reconstructed series while it is written.

    Raises
    ------
    EncodingError
        The identity cannot be repeated, or it is not known how the patient lay.
    """

    def __init__(self, source: RawSource, made: Reconstruction, context: EncodeContext) -> None:
        for header in source.headers:
            require_identity(header, context, spatial=False)
        self.source, self.made, self.context = source, made, context
        self.header = source.kspace.header
        self.planes = in_order(made)
        self.window = self._center_and_width()
        self._scanner = self._named_scanner()
        self._copied = Copier().copy(source.headers[0])
        self._position = self.header.acquisition.get("PatientPosition")
        if not self._position:
            raise EncodingError(
                f"PatientPosition of {source.headers[0].SOPInstanceUID} is not known: images cannot say how the "
                "patient lay; wrap the measurement again with --patient-position"
            )

    @property
    def signed(self) -> bool:
        """Whether stored values have a sign: all but magnitudes."""
        return self.made.component != "M"

    def envelope(self, sop_class: str, index: int) -> Dataset:
        """Whose it is, who made it, and the series it belongs to."""
        ds = Dataset()
        for keyword in (*PATIENT_AND_STUDY, *_SERIES):
            if keyword in self._copied:
                ds[keyword] = self._copied[keyword]
        for keyword in TYPE_2:
            if keyword not in ds:
                setattr(ds, keyword, None)
        say_deidentified(ds)
        sign(ds, self._scanner, self.context)
        ds.SOPClassUID = sop_class
        ds.SOPInstanceUID = self.context.instance_uid(self.made.role, index)
        ds.SeriesInstanceUID = self.context.series_uid(self.made.role)
        self._add_series(ds)
        return ds

    def derivation(self) -> str:
        """How the pixels came about."""
        context, text = self.context, self.made.description
        if context.incomplete:
            text += "; input incomplete"
        if context.revision > 1:
            text += f"; revision {context.revision}"
        if context.predecessor:
            text += f", replaces series {context.predecessor}"
        return cut(text, _MAX_ST)

    def remarks(self, plane: ReconstructedPlane, clipped: int) -> str:
        """What sets one plane apart; empty: nothing."""
        said = [plane.remark] if plane.remark else []
        if clipped:
            said.append(f"{clipped} of {plane.array.size} values are above the range of this series and were clipped")
        return "; ".join(said)

    def mapping(self) -> Dataset:
        """Stored value -> value of the reconstruction (PS3.3 C.7.6.16.2.11)."""
        made, item = self.made, Dataset()
        vr, low, high = ("SS", -32768, 32767) if self.signed else ("US", 0, 65535)
        item.add_new("RealWorldValueFirstValueMapped", vr, low)
        item.add_new("RealWorldValueLastValueMapped", vr, high)
        item.RealWorldValueIntercept, item.RealWorldValueSlope = 0.0, 1.0 / made.scale
        if made.component == "P":
            label, said, unit = "PHASE", "Phase of the complex image", _RADIAN
        elif made.snr:
            # UCUM has no unit of it: the annotation {SNR} would be the unity too.
            label, said, unit = "SNR", "Signal to noise ratio: value over the noise of one component", _NO_UNITS
        else:
            label, said, unit = "RECON", "Value of the reconstruction: one factor for the whole series", _NO_UNITS
        item.LUTExplanation, item.LUTLabel = said, label
        item.MeasurementUnitsCodeSequence = [code_item(unit)]
        return item

    def spacing_between_slices(self) -> float | None:
        """Step of planes that are parallel at equal distances [mm]; else None."""
        orientation = np.asarray([plane.orientation for plane in self.planes])
        if np.abs(orientation - orientation[0]).max() > SAME_COSINE:
            return None
        normal = np.cross(orientation[0, :3], orientation[0, 3:])
        along = np.unique(np.round(np.asarray([plane.position for plane in self.planes]) @ normal, 4))
        steps = np.diff(along)
        if not len(steps) or np.ptp(steps) > _SAME_STEP_MM:
            return None
        return round(float(np.mean(steps)), 6)

    def _add_series(self, ds: Dataset) -> None:
        ds.Modality = "MR"
        ds.SeriesNumber = str(self.context.series_number)
        ds.SeriesDescription = self._description()
        protocol = self.header.acquisition.get("ProtocolName")
        if isinstance(protocol, str):
            ds.ProtocolName = cut(protocol, MAX_LO)
        ds.PatientPosition = self._position
        ds.FrameOfReferenceUID = frame_of_reference(self.source)
        ds.PositionReferenceIndicator = None
        part = self.header.acquisition.get("BodyPartExamined")
        if isinstance(part, str) and not ds.get("BodyPartExamined"):
            ds.BodyPartExamined = cut(part.upper(), _MAX_SH)
        anatomy.locate(ds)

    def _description(self) -> str:
        """What was scanned, how it was reconstructed, and that it is for research."""
        made = self.made
        label = f"AI {made.label}" if made.learned and not made.label.startswith("AI") else made.label
        marks = f", RUO{', incomplete' if self.context.incomplete else ''}]"
        suffix = f" [{cut(label, MAX_LO - len(marks) - 2)}{marks}"
        keys = ("SeriesDescription", "ProtocolName")
        found = [self.header.acquisition.get(key) for key in keys] + [self.source.headers[0].get("SeriesDescription")]
        named = next((text for text in found if isinstance(text, str) and text), "MR")
        return cut(named, MAX_LO - len(suffix)) + suffix

    def _named_scanner(self) -> Dataset:
        """The raw object's header with what the MRD header says of the scanner where the object says nothing."""
        ds = Dataset()
        ds.update(self.source.headers[0])
        for keyword, text in self.source.equipment.items():
            if not ds.get(keyword):
                setattr(ds, keyword, cut(text, _MAX_SH if keyword == "StationName" else MAX_LO))
        return ds

    def _center_and_width(self) -> tuple[float, float]:
        """Window of the whole series, in stored values."""
        made = self.made
        if made.component == "P":
            return 0.0, round(2 * math.pi * made.scale, 1)  # all of it: no percentile of an angle means anything
        size = sum(plane.array.size for plane in self.planes)
        step = max(1, size // _LOOKED_AT)
        seen = np.concatenate([plane.array.ravel()[::step] for plane in self.planes])
        seen = seen[seen != 0] * np.float32(made.scale)
        if self.signed:
            most = float(np.percentile(np.abs(seen), _WINDOW[1])) if seen.size else 1.0
            return 0.0, round(max(2 * most, 1.0), 1)
        low, high = np.percentile(seen, _WINDOW) if seen.size else (0.0, 1.0)
        width = max(float(high - low), 1.0)
        return round(float(low) + width / 2, 1), round(width, 1)
