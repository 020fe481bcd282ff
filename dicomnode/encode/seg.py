"""Segmentations: labels on the planes of the input, as one SEG instance in a series of its own.

highdicom writes the frames. It is given only what it needs of the source's headers, since it stumbles over ordinary
ones (`outputs.md` 0.2), and what it rounds, draws at random or leaves out is set again afterwards.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.color import CIELabColor
from highdicom.seg import SegmentAlgorithmTypeValues, SegmentationTypeValues, SegmentDescription
from highdicom.seg import Segmentation as HighdicomSegmentation
from pydicom import Dataset
from pydicom.dataelem import DataElement
from pydicom.sr.coding import Code

from dicomnode.dicom import MANUFACTURER, derive_uid
from dicomnode.encode.common import MAX_LO, code_item, cut
from dicomnode.encode.envelope import envelop
from dicomnode.encode.identity import EncodeContext
from dicomnode.encode.multiframe import content_label, in_frame_order, require_frame_of_reference, settle
from dicomnode.encode.source import Source
from dicomnode.encode.stand_ins import stand_ins
from dicomnode.encode.tracking import tracking_id, tracking_uid
from dicomnode.errors import EncodingError
from dicomnode.pipeline import Segment, Segmentation

#: CID 7162.
ARTIFICIAL_INTELLIGENCE: Final = Code("123110", "DCM", "Artificial Intelligence")
#: What the LABELMAP flavour adds to a role: both flavours of one result may reach the same archive.
LABELMAP_SUFFIX: Final = "-labelmap"


def encode_segmentation(
    source: Source,
    segmentation: Segmentation,
    context: EncodeContext,
    *,
    series_number: int,
    labelmap: bool = False,
) -> Dataset:
    """Write ``segmentation`` as one SEG on the source's own grid, each frame naming the plane it was made from.

    Parameters
    ----------
    labelmap
        One value per voxel (Label Map Segmentation Storage) instead of one bit per voxel and segment, under other
        UIDs. Smaller and newer: many archives refuse it.

    Raises
    ------
    EncodingError
        The labels do not fit the source or the segments, nothing is segmented (a negative has no SEG), or the source
        has no frame of reference or an identity that cannot be repeated.
    """
    require_frame_of_reference(source, context)
    _require_fit(source, segmentation)
    role = segmentation.role + (LABELMAP_SUFFIX if labelmap else "")
    given = stand_ins(source)
    built = HighdicomSegmentation(
        source_images=list(given.headers),
        pixel_array=in_frame_order(source, segmentation.labels),
        segmentation_type=SegmentationTypeValues.LABELMAP if labelmap else SegmentationTypeValues.BINARY,
        segment_descriptions=[
            _description(number, segment, segmentation.role, context)
            for number, segment in enumerate(segmentation.segments, start=1)
        ],
        series_instance_uid=context.series_uid(role),
        series_number=series_number,
        sop_instance_uid=context.instance_uid(role, 0),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=context.algorithm.name,
        software_versions=context.algorithm.version,
        device_serial_number=context.device_serial,
        content_label=content_label(segmentation.label, "SEGMENTATION"),
        content_description=cut(segmentation.label, MAX_LO),
        specific_character_set="ISO_IR 192",
    )
    # A plain data set: highdicom's own class carries a database of frames, and says so in nothing that is written.
    ds = Dataset()
    ds.update(built)
    settle(ds, source, given, derive_uid(context.job_key, role + context.variant, "dimensions"))
    size = (int(ds.NumberOfFrames) * ds.Rows * ds.Columns * ds.BitsAllocated + 7) // 8
    ds["PixelData"] = DataElement(0x7FE00010, "OB", ds.PixelData[:size] + b"\0" * (size % 2))
    return envelop(ds, source, context, role=role, series_number=series_number, description=segmentation.label)


def _require_fit(source: Source, segmentation: Segmentation) -> None:
    labels, segments = segmentation.labels, segmentation.segments
    name = f"segmentation '{segmentation.role}'"
    if labels.shape != source.images.array.shape or labels.dtype != np.uint8:
        raise EncodingError(
            f"{name} is {labels.dtype} {labels.shape}, its input {source.images.array.shape}: labels are uint8 on the "
            "input's planes"
        )
    greatest = int(labels.max(initial=0))
    if greatest == 0:
        raise EncodingError(f"{name} is empty: a negative is said by a finding, not by a SEG")
    if greatest > len(segments):
        raise EncodingError(f"{name} has the label {greatest} but {len(segments)} segments")
    keys = [segment.key for segment in segments]
    if len(set(keys)) != len(keys):
        raise EncodingError(f"{name} has two segments of the same key: tracking UIDs would collide ({keys})")
    for segment in segments:
        if not segment.label.strip() or len(segment.label) > MAX_LO or "\\" in segment.label:
            raise EncodingError(f"{name}: label of segment '{segment.key}' is empty, too long or has a backslash")
        if not all(0 <= part <= 255 for part in segment.colour):
            raise EncodingError(f"{name}: colour of segment '{segment.key}' is {segment.colour}, not sRGB 0..255")


def _description(number: int, segment: Segment, role: str, context: EncodeContext) -> SegmentDescription:
    algorithm = context.algorithm
    item = SegmentDescription(
        segment_number=number,
        segment_label=segment.label,
        segmented_property_category=segment.category,
        segmented_property_type=segment.type,
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=AlgorithmIdentificationSequence(
            name=cut(algorithm.name, MAX_LO),
            version=cut(algorithm.version, MAX_LO),
            family=ARTIFICIAL_INTELLIGENCE,
            source=MANUFACTURER,
            parameters={"weights_sha256": context.weights_digest} if context.weights_digest else None,
        ),
        tracking_uid=tracking_uid(context, role, segment.key),
        tracking_id=tracking_id(context, role, segment.key),
        anatomic_regions=[segment.site.code] if segment.site is not None else None,
        display_color=CIELabColor.from_rgb(*segment.colour),
    )
    if segment.site is not None and segment.site.laterality is not None:
        item.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = [code_item(segment.site.laterality)]
    return item
