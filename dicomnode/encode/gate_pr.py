"""A presentation state held against what it is laid over: grey scale, window, and every outline on its own plane."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import GrayscaleSoftcopyPresentationStateStorage

from dicomnode.encode.contours import largest_component
from dicomnode.encode.marks import marked
from dicomnode.encode.source import Source
from dicomnode.pipeline import Result

PRESENTATIONS: Final = frozenset({str(GrayscaleSoftcopyPresentationStateStorage)})
#: An outline may leave the edges of its pixels by this much (the greatest tolerance of `encode.contours`) [pixel].
_FARTHEST: Final = 4.5
#: Share of a part that an outline of many corners may leave outside.
_OUTSIDE: Final = 0.2
#: A written window or rescale may differ from the wanted one by what 16 characters of a DS lose.
_DIGITS: Final = 1e-6


def presentation_faults(ds: Dataset, source: Source, result: Result) -> Iterator[str]:
    """What is wrong with the presentation state ``ds`` of ``source``."""
    listed = [
        (str(image.get("ReferencedSOPInstanceUID")), int(number))
        for series in ds.get("ReferencedSeriesSequence") or ()
        for image in series.get("ReferencedImageSequence") or ()
        for number in _numbers(image)
    ]
    index = {
        (str(source.headers[plane.header].SOPInstanceUID), plane.frame): number
        for number, plane in enumerate(source.planes)
    }
    planes = {number for key, number in index.items() if key in listed or (key[0], 0) in listed}
    if not planes:
        yield "it refers to none of the source's images"
        return
    yield from _grey_faults(ds, source, result, planes)
    expected = {
        (number, segment.label): mask for _, segment, number, mask in marked(result) if number in planes
    }  # fmt: skip
    drawn = set()
    layers = {str(item.get("GraphicLayer")): item for item in ds.get("GraphicLayerSequence") or ()}
    for item in ds.get("GraphicAnnotationSequence") or ():
        layer = layers.get(str(item.get("GraphicLayer")))
        where = [
            (str(image.get("ReferencedSOPInstanceUID")), int(number))
            for image in item.get("ReferencedImageSequence") or ()
            for number in _numbers(image)
        ]
        if layer is None or len(where) != 1 or index.get(where[0]) not in planes:
            yield "an annotation has no layer, or does not lie on one image that the state refers to"
            continue
        key = index[where[0]], str(layer.get("GraphicLayerDescription"))
        if key not in expected:
            yield f"'{key[1]}' is outlined on plane {key[0]}, where the result does not mark it"
            continue
        drawn.add(key)
        yield from (f"'{key[1]}' on plane {key[0]}: {fault}" for fault in _outline_faults(item, expected[key]))
    yield from (f"'{label}' is not outlined on plane {number}" for number, label in sorted(expected.keys() - drawn))


def _numbers(image: Dataset) -> list[int]:
    """Frame numbers of a reference; 0 for the image as a whole."""
    value = image.get("ReferencedFrameNumber")
    if value in (None, ""):
        return [0]
    return [int(value)] if isinstance(value, int | str) else [int(part) for part in value]


def _grey_faults(ds: Dataset, source: Source, result: Result, planes: set[int]) -> Iterator[str]:
    """The state replaces the images' own grey scale pipeline: it must repeat their rescale, and say a window."""
    slope, intercept = float(ds.get("RescaleSlope", 1)), float(ds.get("RescaleIntercept", 0))
    rescales = {one: (source.planes[one].slope, source.planes[one].intercept) for one in sorted(planes)}
    wrong = [one for one, values in rescales.items() if not np.allclose(values, (slope, intercept), _DIGITS, 0)]
    if wrong:
        yield f"its rescale {slope:g}, {intercept:g} is not that of plane {wrong[0]}"
    windows = ds.get("SoftcopyVOILUTSequence") or ()
    found = [(float(one.get("WindowCenter", math.nan)), float(one.get("WindowWidth", math.nan))) for one in windows]
    if len(found) != 1 or not all(math.isfinite(value) for value in found[0]) or not found[0][1] > 0:
        yield f"its window is {found}, not one with a finite center and a width above 0"
    elif result.window is not None and not np.allclose(found[0], result.window, rtol=_DIGITS, atol=_DIGITS):
        yield f"its window is {found[0]}, the result's {result.window}"
    inverse = source.headers[0].get("PhotometricInterpretation") == "MONOCHROME1"
    wanted = "INVERSE" if inverse else "IDENTITY"
    if ds.get("PresentationLUTShape") != wanted:
        yield f"PresentationLUTShape is {ds.get('PresentationLUTShape')}, not {wanted}: black and white would swap"
    spacing = source.images.pixel_spacing
    for area in ds.get("DisplayedAreaSelectionSequence") or ():
        if not np.allclose([float(one) for one in area.get("PresentationPixelSpacing") or (0, 0)], spacing, 0, 1e-4):
            yield "PresentationPixelSpacing is not the source's: pixels would be shown in another shape"


def _outline_faults(item: Dataset, mask: NDArray[np.bool_]) -> Iterator[str]:
    graphics: list[Dataset] = list(item.get("GraphicObjectSequence") or ())
    if len(graphics) != 1 or graphics[0].get("GraphicType") != "POLYLINE":
        yield f"{len(graphics)} graphics, not one POLYLINE"
        return
    (graphic,) = graphics
    values = [float(value) for value in graphic.get("GraphicData") or ()]
    if graphic.get("GraphicAnnotationUnits") != "PIXEL" or len(values) < 8 or len(values) % 2:
        yield "the outline is not made of at least three points in pixels"
        return
    points = np.array(values).reshape(-1, 2)
    if not np.isfinite(points).all() or (points[0] != points[-1]).any():
        yield "the outline is not closed or not finite"
        return
    if points.min() < 0 or points[:, 0].max() > mask.shape[1] or points[:, 1].max() > mask.shape[0]:
        yield "the outline leaves its image"
        return
    part = largest_component(mask)
    rows, columns = np.nonzero(part)
    box = np.array([[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]])
    if np.abs(np.array([points.min(axis=0), points.max(axis=0)]) - box).max() > _FARTHEST:
        yield "the outline lies beside what it outlines"
        return
    (left, top), (right, bottom) = np.floor(points.min(axis=0)).astype(int), np.ceil(points.max(axis=0)).astype(int)
    near = part[top:bottom, left:right]
    held = int((near & inside(points - (left, top), near.shape)).sum())
    if part.sum() - held > max(2.0, _OUTSIDE * part.sum()):
        yield "the outline leaves out much of what it outlines"


def inside(points: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Pixels of a plane (row, column) whose centres lie within a closed polygon (point, 2) of (column, row)."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    found = np.zeros(shape, bool)
    for (x0, y0), (x1, y1) in pairwise(points):
        if y0 == y1:
            continue
        crossed = (y >= min(y0, y1)) & (y < max(y0, y1))
        found ^= crossed & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return found
