"""Images reconstructed from k-space: MR Image Storage, one object a plane, in the terms of the raw object they are of.

Geometry is the plane's own, digit for digit as far as DS goes. Stored values are the pipeline's times one factor for
the whole series, which RealWorldValueMappingSequence gives back: RescaleSlope has no place in MR Image Storage, and
viewers window by it. `encode.enhanced_mr` writes the same series as one object.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from pydicom import Dataset
from pydicom.uid import MRImageStorage

from dicomnode.encode.acquired import add_acquisition, numbers
from dicomnode.encode.common import cut, reference
from dicomnode.encode.gate_mr import check_plane
from dicomnode.encode.identity import EncodeContext, file_meta
from dicomnode.encode.mr_series import Series, stored_values
from dicomnode.encode.source import RawSource
from dicomnode.pipeline import ReconstructedPlane, Reconstruction

_MAX_LT: Final = 10240


def encode_reconstruction(
    source: RawSource, reconstruction: Reconstruction, context: EncodeContext
) -> Iterator[Dataset]:
    """One object a plane, checked, with file meta information (Explicit VR Little Endian), in the order of viewing.

    Raises
    ------
    EncodingError
        The identity cannot be repeated, or it is not known how the patient lay.
    """
    series = Series(source, reconstruction, context)
    spacing = series.spacing_between_slices()
    for index, plane in enumerate(series.planes):
        ds = series.envelope(MRImageStorage, index)
        ds.InstanceNumber = str(index + 1)
        ds.SourceInstanceSequence = [reference(header) for header in source.headers]
        ds.ImageType = ["DERIVED" if reconstruction.learned else "ORIGINAL", "PRIMARY", reconstruction.component]
        ds.DerivationDescription = series.derivation()
        _add_geometry(ds, plane, reconstruction, spacing)
        add_acquisition(ds, series.header, plane)
        _add_pixels(ds, plane, series)
        ds.file_meta = file_meta(ds)
        check_plane(ds, plane, reconstruction)
        yield ds


def _add_geometry(ds: Dataset, plane: ReconstructedPlane, made: Reconstruction, spacing: float | None) -> None:
    position, orientation = np.asarray(plane.position), np.asarray(plane.orientation)
    ds.ImagePositionPatient = numbers(position)
    ds.ImageOrientationPatient = numbers(orientation)
    ds.PixelSpacing = numbers(made.pixel_spacing)
    ds.SliceThickness = numbers([made.thickness])[0]
    normal = np.cross(orientation[:3], orientation[3:])
    ds.SliceLocation = numbers([round(float(position @ normal), 6)])[0]
    if spacing is not None:
        ds.SpacingBetweenSlices = numbers([spacing])[0]


def _add_pixels(ds: Dataset, plane: ReconstructedPlane, series: Series) -> None:
    stored, clipped = stored_values(plane.array, series.made.scale, series.made.component)
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = stored.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, int(series.signed)
    ds.WindowCenter, ds.WindowWidth = numbers(series.window)
    ds.RealWorldValueMappingSequence = [series.mapping()]
    remarks = series.remarks(plane, clipped)
    if remarks:
        ds.ImageComments = cut(remarks, _MAX_LT)
    ds.add_new(0x7FE00010, "OW", np.ascontiguousarray(stored.astype(stored.dtype.newbyteorder("<"))).tobytes())
