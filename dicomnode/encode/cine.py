"""Phases of a cine for encoders that know planes only.

A segmentation lies on one phase and is written on that phase's images alone, or a viewer paints it on another one
(`outputs.md` 0.2, finding 12). Everything else that points at planes counts them through, phase after phase.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dicomnode.encode.source import CineSource, Source
from dicomnode.errors import EncodingError
from dicomnode.pipeline import KeyPlane, Result, Segmentation


def at_phase(source: Source, phase: int | None) -> Source:
    """The images that something of a phase lies on: ``source`` itself, if it has no phases."""
    if isinstance(source, CineSource):
        return source.at_phase(_valid(source, phase))
    if phase is not None:
        raise EncodingError(f"phase {phase} of a series without phases")
    return source


def counted_through(source: Source, result: Result) -> Result:
    """``result`` with labels and key planes on all planes of ``source``, phase after phase."""
    if not isinstance(source, CineSource):
        return result
    return replace(
        result,
        segmentations=tuple(_spread(source, one) for one in result.segmentations),
        key_planes=tuple(_placed(source, one) for one in result.key_planes),
    )


def _spread(source: CineSource, segmentation: Segmentation) -> Segmentation:
    start = _valid(source, segmentation.phase) * source.slices
    labels = np.zeros(source.images.array.shape, np.uint8)
    labels[start : start + source.slices] = segmentation.labels
    return replace(segmentation, labels=labels)


def _placed(source: CineSource, key: KeyPlane) -> KeyPlane:
    if not 0 <= key.plane < source.slices:
        raise EncodingError(f"key plane {key.plane} is none of the {source.slices} planes of the cine")
    return replace(key, plane=_valid(source, key.phase) * source.slices + key.plane)


def _valid(source: CineSource, phase: int | None) -> int:
    phases = len(source.planes) // source.slices
    if phase is None or not 0 <= phase < phases:
        raise EncodingError(f"phase {phase} is none of the {phases} phases of the cine")
    return phase
