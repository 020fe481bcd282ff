"""Images reconstructed from k-space as Enhanced MR Image Storage: one object a series, its planes as frames.

The pixels, places and values are those of the single-frame form (`encode.mr`), in the same order. Frames say DERIVED,
of linear methods too: of ORIGINAL ones the standard wants to know what no MRD header holds and what has no word for
"not known" (SAR, echo pulse sequence, preparation, spoiling, saturation, coils: PS3.3 C.8.13.4, C.8.13.5), of DERIVED
ones only what is known. For the same reason the groups that hold such attributes beside others (MR Timing, MR Modifier,
MR FOV/Geometry, MR Receive and Transmit Coil) are left out, and what is known of them stands at the top of the object,
which makes it of a Standard Extended SOP Class (PS3.2). What a network shaped says so as in the single-frame form.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from pydicom import Dataset
from pydicom.uid import EnhancedMRImageStorage

from dicomnode.dicom import derive_uid
from dicomnode.encode import enhanced_groups as groups
from dicomnode.encode.acquired import at, numbers
from dicomnode.encode.common import cut, reference
from dicomnode.encode.enhanced_frames import Dimensions
from dicomnode.encode.gate_enhanced import check_frames
from dicomnode.encode.identity import EncodeContext, file_meta
from dicomnode.encode.mr_series import Series, stored_values
from dicomnode.encode.source import RawSource
from dicomnode.pipeline import ReconstructedPlane, Reconstruction

#: Largest pixel data of one object [bytes]: whoever sends or files it holds it in memory. What is more becomes a
#: concatenation (PS3.3 C.7.6.16.2.2.4).
MOST_BYTES: Final = 2**28
#: Why frames of a linear reconstruction do not say ORIGINAL: for the reader of the object.
_WHY_DERIVED: Final = "Value 1 of ImageType is DERIVED because the raw data does not say all that ORIGINAL asks for"
_MAX_LT: Final = 10240


def encode_enhanced(
    source: RawSource, made: Reconstruction, context: EncodeContext, *, most_bytes: int = MOST_BYTES
) -> Iterator[Dataset]:
    """The series as one object, or as a concatenation of several; checked, with file meta information.

    Parameters
    ----------
    most_bytes
        Largest pixel data of one object; one frame goes in whatever its size.

    Raises
    ------
    EncodingError
        The identity cannot be repeated, or it is not known how the patient lay.
    """
    series = Series(source, made, context)
    dimensions = Dimensions(series.header, series.planes)
    step = max(1, most_bytes // (2 * series.planes[0].array.size))
    parts = [series.planes[start : start + step] for start in range(0, len(series.planes), step)]
    shared = groups.shared(series)
    for number, planes in enumerate(parts):
        ds = _envelope(series, number, len(planes))
        if len(parts) > 1:
            _add_concatenation(ds, number, len(parts), step)
        _add_acquisition(ds, series)
        dimensions.describe(ds)
        ds.SharedFunctionalGroupsSequence = [shared]
        clipped = _add_pixels(ds, series, planes)
        ds.PerFrameFunctionalGroupsSequence = [
            groups.of_frame(series, plane, dimensions, series.remarks(plane, count))
            for plane, count in zip(planes, clipped, strict=True)
        ]
        ds.file_meta = file_meta(ds)
        check_frames(ds, planes, made)
        yield ds


def _envelope(series: Series, number: int, frames: int) -> Dataset:
    made, source = series.made, series.source
    ds = series.envelope(EnhancedMRImageStorage, number)
    ds.pop("Laterality", None)  # FrameLaterality says it, and both may not (PS3.3 C.7.3.1, type 2C)
    ds.InstanceNumber = "1"  # the same in all parts of a concatenation (PS3.3 C.7.6.16)
    ds.NumberOfFrames = str(frames)
    for keyword, value in groups.frame_type(made).items():
        setattr(ds, "ImageType" if keyword == "FrameType" else keyword, value)
    said = [series.derivation()] if made.learned else [series.derivation(), _WHY_DERIVED]
    ds.ImageComments = cut("; ".join(said), _MAX_LT)
    ds.BurnedInAnnotation, ds.LossyImageCompression, ds.PresentationLUTShape = "NO", "00", "IDENTITY"
    ds.AcquisitionContextSequence = []
    raw = Dataset()
    raw.SeriesInstanceUID = str(source.headers[0].SeriesInstanceUID)
    raw.ReferencedSOPSequence = [reference(header) for header in source.headers]
    study = Dataset()
    study.StudyInstanceUID = str(source.headers[0].StudyInstanceUID)
    study.ReferencedSeriesSequence = [raw]
    ds.ReferencedRawDataSequence = [study]
    return ds


def _add_concatenation(ds: Dataset, number: int, parts: int, step: int) -> None:
    series_uid = str(ds.SeriesInstanceUID)
    ds.ConcatenationUID = derive_uid(series_uid, "concatenation")
    ds.SOPInstanceUIDOfConcatenationSource = derive_uid(series_uid, "concatenation-source")
    ds.InConcatenationNumber, ds.InConcatenationTotalNumber = number + 1, parts
    ds.ConcatenationFrameOffsetNumber = number * step


def _add_acquisition(ds: Dataset, series: Series) -> None:
    """What is known of the measurement as a whole."""
    header, raw = series.header, series.source.headers[0]
    ds.AcquisitionNumber = "1"
    if raw.get("AcquisitionDateTime"):
        ds.AcquisitionDateTime = raw.AcquisitionDateTime
    ds.ResonantNucleus = "1H"  # the header gives the resonance frequency of 1H and of nothing else
    ds.KSpaceFiltering = series.made.filtering
    ds.ApplicableSafetyStandardAgency = "UNKNOWN"
    strength = header.acquisition.get("MagneticFieldStrength")
    if isinstance(strength, float):
        ds.MagneticFieldStrength = strength
    for keyword, value in _beyond_the_groups(series).items():
        setattr(ds, keyword, numbers([value])[0] if keyword != "EchoTrainLength" else str(int(value)))


def _beyond_the_groups(series: Series) -> dict[str, float]:
    """What functional groups have no place for here, and all frames share, by keyword (`gate_tables`)."""
    header, found = series.header, {}
    for keyword, name in (("RepetitionTime", "TR"), ("InversionTime", "TI"), ("FlipAngle", "flipAngle_deg")):
        values = {at(header, name, plane) for plane in series.planes}
        value = values.pop() if len(values) == 1 else None
        if value is not None:
            found[keyword] = value
    for keyword in ("EchoTrainLength", "ImagingFrequency"):
        known = header.acquisition.get(keyword)
        if isinstance(known, float):
            found[keyword] = known
    return found


def _add_pixels(ds: Dataset, series: Series, planes: Sequence[ReconstructedPlane]) -> list[int]:
    """Write the pixels of all frames; how many values of each were clipped."""
    made, clipped, pixels = series.made, [], bytearray()
    for plane in planes:
        stored, count = stored_values(plane.array, made.scale, made.component)
        pixels += np.ascontiguousarray(stored.astype(stored.dtype.newbyteorder("<"))).tobytes()
        clipped.append(count)
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = planes[0].array.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, int(series.signed)
    ds.add_new(0x7FE00010, "OW", bytes(pixels))
    return clipped
