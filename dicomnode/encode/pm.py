"""Parametric maps: a number for every voxel of the input, as one floating-point Parametric Map in its own series."""

from __future__ import annotations

from typing import Final

import numpy as np
from highdicom import VOILUTFunctionValues, VOILUTTransformation
from highdicom.pm import ParametricMap as HighdicomParametricMap
from highdicom.pm import RealWorldValueMapping
from pydicom import Dataset

from dicomnode.dicom import MANUFACTURER, derive_uid
from dicomnode.encode import anatomy
from dicomnode.encode.common import MAX_LO, cut
from dicomnode.encode.envelope import envelop
from dicomnode.encode.identity import EncodeContext
from dicomnode.encode.multiframe import content_label, in_frame_order, require_frame_of_reference, settle
from dicomnode.encode.source import Source
from dicomnode.encode.stand_ins import stand_ins
from dicomnode.errors import EncodingError
from dicomnode.pipeline import ParametricMap

#: Longest SH.
_MAX_SH: Final = 16


def encode_parametric_map(source: Source, one: ParametricMap, context: EncodeContext, *, series_number: int) -> Dataset:
    """Write ``one`` on the source's own grid, each frame naming the plane it was made from; values are kept bit by bit.

    Raises
    ------
    EncodingError
        The values do not fit the source or are not finite, or the source has no frame of reference or an identity that
        cannot be repeated.
    """
    require_frame_of_reference(source, context)
    _require_fit(source, one)
    given = stand_ins(source)
    built = HighdicomParametricMap(
        source_images=list(given.headers),
        pixel_array=np.ascontiguousarray(in_frame_order(source, one.values)),
        series_instance_uid=context.series_uid(one.role),
        series_number=series_number,
        sop_instance_uid=context.instance_uid(one.role, 0),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=context.algorithm.name,
        software_versions=context.algorithm.version,
        device_serial_number=context.device_serial,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[_mapping(one)],
        voi_lut_transformations=[_window(one)],
        content_label=content_label(one.label, "MAP"),
        content_description=cut(one.label, MAX_LO),
        specific_character_set="ISO_IR 192",
    )
    # A plain data set: highdicom's own class carries a database of frames, and says so in nothing that is written.
    ds = Dataset()
    ds.update(built)
    settle(ds, source, given, derive_uid(context.job_key, one.role + context.variant, "dimensions"))
    _ascend(ds, source)
    envelop(ds, source, context, role=one.role, series_number=series_number, description=one.label)
    # Optional, and dcmqi (3D Slicer's reader) ends without it.
    ds.SharedFunctionalGroupsSequence[0].FrameAnatomySequence = [_anatomy(ds, source)]
    return ds


def _require_fit(source: Source, one: ParametricMap) -> None:
    name = f"parametric map '{one.role}'"
    if one.values.shape != source.images.array.shape or one.values.dtype != np.float32:
        raise EncodingError(
            f"{name} is {one.values.dtype} {one.values.shape}, its input {source.images.array.shape}: maps are float32 "
            "on the input's planes"
        )
    if not np.isfinite(one.values).all():
        raise EncodingError(f"{name} holds values that are not finite")


def _ascend(ds: Dataset, source: Source) -> None:
    """Put the frames in order along the normal: dcmqi 1.5.7 takes them for such, whatever their positions say."""
    groups = list(ds.PerFrameFunctionalGroupsSequence)
    orientation = source.images.orientation
    normal = np.cross(orientation[:3], orientation[3:])
    places = np.array([group.PlanePositionSequence[0].ImagePositionPatient for group in groups], float) @ normal
    order = np.argsort(places, kind="stable")
    indices = sorted(group.FrameContentSequence[0].DimensionIndexValues for group in groups)
    for place, index in zip(order, indices, strict=True):
        groups[place].FrameContentSequence[0].DimensionIndexValues = index
    ds.PerFrameFunctionalGroupsSequence = [groups[place] for place in order]
    values = np.frombuffer(ds.FloatPixelData, "<f4").reshape(len(groups), -1)
    ds.FloatPixelData = values[order].tobytes()


def _anatomy(ds: Dataset, source: Source) -> Dataset:
    """What the frames of the source say, else what the series does."""
    header, frame = source.headers[0], source.planes[0].frame
    for group in (
        (header.SharedFunctionalGroupsSequence[0], header.PerFrameFunctionalGroupsSequence[0]) if frame else ()
    ):
        for item in group.get("FrameAnatomySequence") or ():
            return Dataset(item)
    return anatomy.of_frames(str(ds.get("BodyPartExamined") or ""), str(ds.get("Laterality") or ""))


def _window(one: ParametricMap) -> VOILUTTransformation:
    """Exact: the usual function takes 1 off the width (PS3.3 C.11.2.1.2.1), which is all of a score's from 0 to 1."""
    low, high = one.shown
    return VOILUTTransformation(
        window_center=[(low + high) / 2],
        window_width=[high - low],
        window_explanation=[one.label],  # of a bare string highdicom makes a value of every letter
        voi_lut_function=VOILUTFunctionValues.LINEAR_EXACT,
    )


def _mapping(one: ParametricMap) -> RealWorldValueMapping:
    """Stored values are the values: what they are, and in which unit."""
    return RealWorldValueMapping(
        lut_label=cut(one.quantity.meaning, _MAX_SH),
        lut_explanation=cut(one.quantity.meaning, MAX_LO),
        unit=one.unit,
        value_range=(float(one.values.min()), float(one.values.max())),
        slope=1.0,
        intercept=0.0,
        quantity_definition=one.quantity,
    )
