"""Segmentations and results for the tests of reports."""

from __future__ import annotations

import dataclasses
from typing import Any

import highdicom as hd
import numpy as np
from pydicom import Dataset

from dicomnode import pipeline as dn
from dicomnode.encode.envelope import envelop
from dicomnode.encode.identity import EncodeContext
from dicomnode.encode.tracking import tracking_id, tracking_uid
from tests import phantoms


def segmentations(source: Any, result: dn.Result, context: EncodeContext) -> dict[str, Dataset]:
    """A BINARY SEG for every segmentation with voxels, as simple as highdicom makes it."""
    return {
        one.role: _segmentation(source, one, context)
        for one in result.segmentations
        if any((one.labels == number).any() for number in range(1, len(one.segments) + 1))
    }


def _segmentation(source: Any, one: dn.Segmentation, context: EncodeContext) -> Dataset:
    there = [number for number in range(1, len(one.segments) + 1) if (one.labels == number).any()]
    labels = np.zeros_like(one.labels)
    for new, number in enumerate(there, start=1):
        labels[one.labels == number] = new
    order = [plane.header if not plane.frame else plane.frame - 1 for plane in source.planes]
    by_frame = np.zeros_like(labels)
    by_frame[order] = labels
    descriptions = [
        hd.seg.SegmentDescription(
            segment_number=new,
            segment_label=segment.label,
            segmented_property_category=segment.category,
            segmented_property_type=segment.type,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=hd.AlgorithmIdentificationSequence(
                name=context.algorithm.name,
                family=dn.Code("123110", "DCM", "Artificial Intelligence"),
                version=context.algorithm.version,
            ),
            tracking_uid=tracking_uid(context, one.role, segment.key),
            tracking_id=tracking_id(context, one.role, segment.key),
        )
        for new, segment in enumerate((one.segments[number - 1] for number in there), start=1)
    ]
    seg = hd.seg.Segmentation(
        source_images=list(source.headers),
        pixel_array=by_frame,
        segmentation_type="BINARY",
        segment_descriptions=descriptions,
        series_instance_uid=context.series_uid(one.role),
        series_number=9020,
        sop_instance_uid=context.instance_uid(one.role, 0),
        instance_number=1,
        manufacturer="dicomnode",
        manufacturer_model_name="test",
        software_versions="1",
        device_serial_number="node-1",
    )
    return envelop(seg, source, context, role=one.role, series_number=9020, description=one.label)


def bleeding(images: dn.ImageSeries, **changes: Any) -> dn.Result:
    """A positive result, changed."""
    return dataclasses.replace(phantoms.bleeding(images), **changes)


def many_segments(images: dn.ImageSeries, count: int = 12) -> dn.Result:
    """``count`` structures side by side, each with a volume."""
    labels = np.zeros(images.array.shape, np.uint8)
    width = images.array.shape[2] // count
    segments = []
    for number in range(1, count + 1):
        labels[1:, 4:-4, (number - 1) * width : number * width - 1] = number
        segments.append(
            dn.Segment(
                key=f"part-{number}",
                label=f"Part {number}",
                category=dn.Code("91723000", "SCT", "Anatomical Structure"),
                type=dn.Code("12738006", "SCT", "Brain"),
                site=phantoms.BRAIN,
            )
        )
    measurements = tuple(
        dn.Measurement(name=phantoms.VOLUME, value=number / 7, unit=dn.ML, segment=segment.key)
        for number, segment in enumerate(segments, start=1)
    )
    return dn.Result(
        segmentations=(dn.Segmentation(labels=labels, segments=tuple(segments)),),
        measurements=measurements,
        key_planes=(dn.KeyPlane(plane=1, reason="middle"),),
    )
