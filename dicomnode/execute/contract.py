"""A result held against the contract of `dicomnode.pipeline`: nothing is silently fixed."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import numpy as np

from dicomnode.errors import ResultInvalid
from dicomnode.execute.contract_kspace import reconstruction_faults
from dicomnode.pipeline import (
    CineSeries,
    Finding,
    Image,
    ImageSeries,
    KSpace,
    Measurement,
    ParametricMap,
    Result,
    Segmentation,
)

#: Longest LO (PS3.5 6.2): labels and descriptions end there.
_MAX_LO = 64


def check_result(result: Result, series: ImageSeries | CineSeries | KSpace) -> None:
    """Raise `ResultInvalid` that names everything in ``result`` that breaks the contract."""
    if not isinstance(result, Result):
        raise ResultInvalid(f"run() returned {type(result).__name__}, not Result")
    faults = [*_roles(result), *_window(result), *_curves(result)]
    if isinstance(series, KSpace):
        faults += reconstruction_faults(result)
    else:
        faults += _series_faults(result, series)
    if faults:
        raise ResultInvalid("; ".join(faults))


def _series_faults(result: Result, series: ImageSeries | CineSeries) -> list[str]:
    """What can be wrong in a result computed from images."""
    faults: list[str] = []
    for image in result.images:
        faults += _image(image, series)
    for segmentation in result.segmentations:
        faults += _segmentation(segmentation, series)
    for one in result.parametric_maps:
        faults += _parametric_map(one, series)
    keys = [segment.key for segmentation in result.segmentations for segment in segmentation.segments]
    if len(set(keys)) != len(keys):
        faults.append(f"two segments have the key {max(set(keys), key=keys.count)!r}")
    for measurement in result.measurements:
        faults += _measurement(measurement, keys)
    for finding in result.findings:
        faults += _finding(finding, keys)
    for key_plane in result.key_planes:
        if not 0 <= key_plane.plane < len(series.positions):
            faults.append(f"key plane {key_plane.plane} of {len(series.positions)} planes")
        faults += _phase(key_plane.phase, series, f"key plane {key_plane.plane}")
        faults += [f"key plane names the unknown segment {key!r}" for key in key_plane.segments if key not in keys]
    if not (result.images or result.reported or result.parametric_maps):
        faults.append("it says nothing: report a finding as absent or undetermined, or raise Unsuitable")
    if result.reconstructions:
        faults.append("it has reconstructions, and its input was no k-space")
    return faults


def _roles(result: Result) -> Iterator[str]:
    roles = [*(one.role for one in result.images), *(one.role for one in result.reconstructions)]
    roles += [*(one.role for one in result.segmentations), *(one.role for one in result.parametric_maps)]
    if len(set(roles)) != len(roles):
        yield f"two images, reconstructions, segmentations or maps have the role {max(set(roles), key=roles.count)!r}"
    for role in roles:
        if role in _RESERVED or _MADE_UP.fullmatch(role):
            yield f"the role {role!r} is taken by the node"


#: Roles of objects that the node makes by itself.
_RESERVED = frozenset({"report", "values", "marks", "key-images", "summary", "presentation"})
#: The same where they are numbered, and what the node appends to the roles of another form of an object: UIDs hang on
#: roles, so that two objects of one role would be one to an archive.
_MADE_UP = re.compile(r"(?:phase|presentation)-\d+|.*(?:labelmap|enhanced|-phases)", re.DOTALL)


def _window(result: Result) -> Iterator[str]:
    if result.window is None:
        return
    center, width = result.window
    if not (math.isfinite(center) and math.isfinite(width) and width > 0):
        yield f"the window is (center {center}, width {width}): both are finite, and the width is above 0"


def _curves(result: Result) -> Iterator[str]:
    for one in result.curves:
        lines = [one.y] if one.other is None else [one.y, one.other]
        shapes = one.x.ndim == 1 and len(one.x) > 1 and all(line.shape == one.x.shape for line in lines)
        if not shapes or not (all(np.isfinite(part).all() for part in (one.x, *lines)) and (np.diff(one.x) > 0).all()):
            yield f"curve {one.title!r}: x and y are finite, of one length above 1, and x rises"
        elif not all(one.x[0] <= x <= one.x[-1] and math.isfinite(y) for x, y, _ in one.points):
            yield f"curve {one.title!r} has a point that is not finite, or beside the curve"


def _phase(phase: int | None, series: ImageSeries | CineSeries, name: str) -> Iterator[str]:
    if isinstance(series, ImageSeries):
        if phase is not None:
            yield f"{name} is of phase {phase}, and the series has no phases"
    elif phase is None or not 0 <= phase < len(series.array):
        yield f"{name} is of phase {phase}, and the cine has the phases 0 to {len(series.array) - 1}"


def _image(image: Image, series: ImageSeries | CineSeries) -> Iterator[str]:
    if isinstance(series, CineSeries):
        yield f"image {image.role!r} is of a cine, of which no images can be written"
        return
    if image.array.shape != series.array.shape or image.array.dtype != np.float32:
        yield (
            f"image {image.role!r} is {image.array.dtype} {image.array.shape}, the series is float32 "
            f"{series.array.shape}"
        )
        return
    if not np.isfinite(image.array).all():
        yield f"image {image.role!r} holds values that are not finite"
    elif np.ptp(image.array) == 0 and np.ptp(series.array) > 0:
        yield f"image {image.role!r} is constant, the series is not"


def _segmentation(segmentation: Segmentation, series: ImageSeries | CineSeries) -> Iterator[str]:
    labels, name = segmentation.labels, f"segmentation {segmentation.role!r}"
    shape = series.array.shape[-3:]
    yield from _phase(segmentation.phase, series, name)
    if labels.shape != shape or labels.dtype != np.uint8:
        yield f"{name} is {labels.dtype} {labels.shape}, the series is {shape} and labels are uint8"
        return
    if not segmentation.segments:
        yield f"{name} declares no segments"
    if int(labels.max(initial=0)) > len(segmentation.segments):
        yield f"{name} has the label {labels.max()}, and declares {len(segmentation.segments)} segments"
    if not labels.any():
        yield f"{name} is empty: report the finding as absent instead"
    for segment in segmentation.segments:
        if not segment.key or not 0 < len(segment.label) <= _MAX_LO:
            yield f"segment {segment.key!r} needs a key, and a label of 1 to {_MAX_LO} characters"
        if not all(0 <= part <= 255 for part in segment.colour):
            yield f"colour of segment {segment.key!r} is {segment.colour}, not sRGB 0..255"


def _parametric_map(one: ParametricMap, series: ImageSeries | CineSeries) -> Iterator[str]:
    name, shape = f"parametric map {one.role!r}", series.array.shape[-3:]
    yield from _phase(one.phase, series, name)
    if one.values.shape != shape or one.values.dtype != np.float32:
        yield f"{name} is {one.values.dtype} {one.values.shape}, the series is {shape} and maps are float32"
    elif not np.isfinite(one.values).all():
        yield f"{name} holds values that are not finite"
    low, high = one.shown
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        yield f"{name} shows values from {low} to {high}: both are finite, and the second is greater"
    if not 0 < len(one.label) <= _MAX_LO or not one.role:
        yield f"{name} needs a role, and a label of 1 to {_MAX_LO} characters"


def _measurement(measurement: Measurement, keys: list[str]) -> Iterator[str]:
    name = f"measurement {measurement.name.meaning!r}"
    if measurement.segment and measurement.segment not in keys:
        yield f"{name} is of the unknown segment {measurement.segment!r}"
    if measurement.value is None:
        if measurement.qualifier is None:
            yield f"{name} has no value and does not say why (qualifier, CID 42)"
    elif not math.isfinite(measurement.value):
        yield f"{name} is {measurement.value}"
    elif measurement.interval is not None:
        low, high = measurement.interval
        if not (math.isfinite(low) and math.isfinite(high) and low <= measurement.value <= high):
            yield f"{name} is {measurement.value:g}, outside its interval {low:g} to {high:g}"


def _finding(finding: Finding, keys: list[str]) -> Iterator[str]:
    name = f"finding {finding.code.meaning!r}"
    if finding.segment and finding.segment not in keys:
        yield f"{name} is shown by the unknown segment {finding.segment!r}"
    if finding.probability is not None and not 0.0 <= finding.probability <= 1.0:
        yield f"{name} has the probability {finding.probability}"
