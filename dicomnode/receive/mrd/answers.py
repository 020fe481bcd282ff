"""Planes as MRD images: 16 bits with the series' one scale, the position of the image's centre, and what was done."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

import ismrmrd
import numpy as np
from ismrmrd.constants import DATATYPE_SHORT, DATATYPE_USHORT, IMTYPE_IMAG, IMTYPE_MAGNITUDE, IMTYPE_PHASE, IMTYPE_REAL

from dicomnode.encode.mr_series import stored_values
from dicomnode.pipeline import ReconstructedPlane, Reconstruction
from dicomnode.volumes import wire

_TYPES: Final = {"M": IMTYPE_MAGNITUDE, "P": IMTYPE_PHASE, "R": IMTYPE_REAL, "I": IMTYPE_IMAG}
_MOST: Final = 65535
#: Said of every image.
RESEARCH: Final = "For research use only"


class Answers:
    """Numbers the images of one session and packs them.

    Parameters
    ----------
    name
        The node's name in the images' history.
    """

    def __init__(self, name: str = "dicomnode") -> None:
        self._name = name
        self._series: dict[str, int] = {}
        self._images: dict[str, int] = {}
        #: Of the measurement, copied into every image.
        self.measurement_uid = 0
        self.table_position: Sequence[float] = (0.0, 0.0, 0.0)

    def pack(self, made: Reconstruction, warnings: Sequence[str] = ()) -> Iterator[bytes]:
        """One IMAGE message a plane."""
        series = self._series.setdefault(made.role, len(self._series) + 1)
        for plane in made.planes:
            index = self._images[made.role] = self._images.get(made.role, 0) + 1
            yield self._pack(made, plane, series, index, warnings)

    def _pack(
        self, made: Reconstruction, plane: ReconstructedPlane, series: int, index: int, warnings: Sequence[str]
    ) -> bytes:
        attributes = self._meta(made, plane, warnings).serialize().encode()
        stored, _ = stored_values(plane.array, made.scale, made.component)  # as in the archive's copy
        head = self._head(made, plane, series, index)
        head.data_type = DATATYPE_USHORT if stored.dtype == np.uint16 else DATATYPE_SHORT
        head.attribute_string_len = len(attributes)
        length = len(attributes).to_bytes(8, "little")
        return b"".join((wire.Kind.IMAGE.to_bytes(2, "little"), bytes(head), length, attributes, stored.tobytes()))

    def _head(self, made: Reconstruction, plane: ReconstructedPlane, series: int, index: int) -> ismrmrd.ImageHeader:
        rows, columns = plane.array.shape
        row_spacing, column_spacing = made.pixel_spacing
        along_row, along_column = plane.orientation[:3], plane.orientation[3:]
        # The first voxel's centre lies N // 2 steps before the centre of the field of view in both directions.
        centre = plane.position + columns // 2 * column_spacing * along_row + rows // 2 * row_spacing * along_column
        head = ismrmrd.ImageHeader()
        head.version, head.channels = 1, 1
        head.measurement_uid = self.measurement_uid
        head.matrix_size[:] = (columns, rows, 1)
        head.field_of_view[:] = (columns * column_spacing, rows * row_spacing, made.thickness)
        head.position[:] = [float(value) for value in centre]
        head.read_dir[:] = [float(value) for value in along_row]
        head.phase_dir[:] = [float(value) for value in along_column]
        head.slice_dir[:] = [float(value) for value in np.cross(along_row, along_column)]
        head.patient_table_position[:] = [float(value) for value in self.table_position]
        for name in ("slice", "contrast", "phase", "repetition", "set"):
            setattr(head, name, getattr(plane, name))
        head.image_type = _TYPES.get(made.component, IMTYPE_MAGNITUDE)
        head.image_index, head.image_series_index = index & _MOST, series
        return head

    def _meta(self, made: Reconstruction, plane: ReconstructedPlane, warnings: Sequence[str]) -> ismrmrd.Meta:
        said = [*warnings, *([plane.remark] if plane.remark else [])]
        meta = ismrmrd.Meta()
        meta["DataRole"] = "Image"
        meta["ImageType"] = f"{'DERIVED' if made.learned else 'ORIGINAL'}\\PRIMARY\\{made.component}"
        meta["ImageProcessingHistory"] = [self._name, made.label]
        meta["SequenceDescriptionAdditional"] = f"{made.label}, RUO"
        meta["ImageComment"] = [RESEARCH, made.description, *said]
        meta["ImageScaleRatio"] = repr(float(made.scale))
        meta["ImageRowDir"] = [f"{value:.9f}" for value in plane.orientation[:3]]
        meta["ImageColumnDir"] = [f"{value:.9f}" for value in plane.orientation[3:]]
        meta["ReconstructionMethod"] = made.label
        meta["ReconstructionLearned"] = "yes" if made.learned else "no"
        if made.component == "P":  # all of it, as in the archive's copy: a console's own guess would cut the angles
            meta["WindowCenter"], meta["WindowWidth"] = "0", f"{2 * math.pi * made.scale:.0f}"
        if plane.trigger_time is not None:
            meta["TriggerTime"] = f"{plane.trigger_time:g}"
        if said:
            meta["Warning"] = said
        return meta
