"""Segmentations and results for the tests of reports."""

from __future__ import annotations

import numpy as np
from pydicom import Dataset

from dicomnode import pipeline as dn
from dicomnode.encode.identity import EncodeContext
from dicomnode.encode.seg import encode_segmentation
from dicomnode.encode.source import Source
from tests import phantoms


def segmentations(source: Source, result: dn.Result, context: EncodeContext) -> dict[str, Dataset]:
    """The SEG of every segmentation of ``result``, by role."""
    return {
        one.role: encode_segmentation(source, one, context, series_number=9020 + number)
        for number, one in enumerate(result.segmentations)
    }


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
