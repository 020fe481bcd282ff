"""The inside of the skull by classical means: no network, so that it can judge what a network is given.

Used by the pipeline's input gate and by the evaluation (bleeds are painted there, baselines look there).
"""

from __future__ import annotations

from typing import Final

import numpy as np
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

#: In-plane pixel on which the mask is found [mm]: every structure that matters here is wider.
PIXEL_MM: Final = 2.0
#: Skull, averaged over such a pixel, lies above [HU]; the slanted vertex of a 7 mm slice does too.
BONE_HU: Final = 180.0
#: Holes of the skull that are closed: sutures, canals, the orbital fissure [mm].
CLOSE_MM: Final = 6.0
#: What is inside without being air or bone: fat-free soft tissue, CSF, blood [HU].
CONTENT_HU: Final = (-40.0, 180.0)
#: Within a closed ring dark streaks count too, air does not [HU].
STREAK_HU: Final = -250.0
#: Links this thin between the cavity and what else a ring of bone may hold are cut (sinus walls, canals) [mm].
CUT_MM: Final = 3.0
#: Where the ring of a plane is open (skull base), the mask may reach this far beyond its neighbour's [mm].
REACH_MM: Final = 2.0
#: A plane whose ring holds less than this share of its neighbour's area is open.
OPEN_SHARE: Final = 0.6
#: Planes whose part is smaller hold the spinal canal, or the last of the vertex [cm²].
LEAST_AREA_CM2: Final = 6.0


def mask(hu: Array, pixel_spacing: tuple[float, float]) -> Mask:
    """True inside the skull; ``hu`` (slice, row, column), all False where there is no closed ring of bone."""
    coarse, pixel = _coarse(hu, pixel_spacing)
    closed = [_closed_bone(plane, pixel) for plane in coarse]
    soft = (coarse > CONTENT_HU[0]) & (coarse < CONTENT_HU[1])
    filled = _filled(closed)
    inside = _largest(filled & (coarse > STREAK_HU) & (coarse < CONTENT_HU[1]), pixel)
    bone = np.stack([sitk.GetArrayFromImage(plane)[8:-8, 8:-8] > 0 for plane in closed])
    _follow(inside, soft & ~bone, pixel)
    area = inside.sum(axis=(1, 2)) * pixel[0] * pixel[1] / 100.0
    inside[area < LEAST_AREA_CM2] = False
    # calcium and dense vessels are holes so far
    solid = [sitk.BinaryFillhole(sitk.GetImageFromArray(plane.astype(np.uint8))) for plane in inside]
    inside = np.stack([sitk.GetArrayFromImage(plane) > 0 for plane in solid])
    up = F.interpolate(torch.from_numpy(inside.astype(np.float32))[:, None], hu.shape[1:], mode="bilinear")
    fine: Mask = up[:, 0].numpy() > 0.5
    return fine


def open_planes(hu: Array, inside: Mask, pixel_spacing: tuple[float, float]) -> Mask:
    """Planes whose ring of bone leaves open what ``inside`` (slice, row, column), the `mask`, holds there: (slice,)."""
    coarse, pixel = _coarse(hu, pixel_spacing)
    held, _ = _coarse(inside.astype(np.float32), pixel_spacing)
    ringed = _filled([_closed_bone(plane, pixel) for plane in coarse]) & (held > 0.5)
    is_open: Mask = ringed.sum(axis=(1, 2)) < OPEN_SHARE * (held > 0.5).sum(axis=(1, 2))
    return is_open


def _coarse(field: Array, pixel_spacing: tuple[float, float]) -> tuple[Array, tuple[float, ...]]:
    """Means over pixels of about `PIXEL_MM`, and these pixels' size (row, column) [mm]."""
    size = tuple(max(8, round(n * mm / PIXEL_MM)) for n, mm in zip(field.shape[1:], pixel_spacing, strict=True))
    means: Array = F.adaptive_avg_pool2d(torch.from_numpy(field)[:, None], size)[:, 0].numpy()
    return means, tuple(n * mm / s for n, mm, s in zip(field.shape[1:], pixel_spacing, size, strict=True))


def _filled(closed: list[sitk.Image]) -> Mask:
    """Bone and what it surrounds, without the border."""
    return np.stack([sitk.GetArrayFromImage(sitk.BinaryFillhole(bone))[8:-8, 8:-8] > 0 for bone in closed])


def _closed_bone(plane: Array, pixel: tuple[float, ...]) -> sitk.Image:
    """Bone of one plane (row, column) [HU], its gaps closed, with a border of 8 pixels."""
    bone = sitk.GetImageFromArray((np.pad(plane, 8, mode="edge") > BONE_HU).astype(np.uint8))
    radius = [max(1, round(CLOSE_MM / 2.0 / mm)) for mm in reversed(pixel)]
    return sitk.BinaryMorphologicalClosing(bone, radius, sitk.sitkBall, 1, True)


def _follow(inside: Mask, content: Mask, pixel: tuple[float, ...]) -> None:
    """Carry the mask plane by plane into planes whose ring is open; changes ``inside`` (slice, row, column)."""
    area = inside.sum(axis=(1, 2))
    least = LEAST_AREA_CM2 * 100.0 / (pixel[0] * pixel[1])
    widest = int(area.argmax())
    radius = [max(1, round(REACH_MM / mm)) for mm in reversed(pixel)]
    for order in (range(widest + 1, len(inside)), range(widest - 1, -1, -1)):
        for index in order:
            before = inside[index - order.step]
            if before.sum() < least or inside[index].sum() >= OPEN_SHARE * before.sum():
                continue
            near = (
                sitk.GetArrayFromImage(sitk.BinaryDilate(sitk.GetImageFromArray(before.astype(np.uint8)), radius)) > 0
            )
            found = sitk.BinaryMorphologicalOpening(
                sitk.GetImageFromArray((near & content[index]).astype(np.uint8)), radius
            )
            parts = sitk.RelabelComponent(sitk.ConnectedComponent(found), int(least / 2))
            inside[index] |= sitk.GetArrayFromImage(parts) > 0


def _largest(inside: Mask, pixel: tuple[float, ...]) -> Mask:
    """The largest part after thin links are cut, grown back to what it was cut from."""
    radius = [max(1, round(CUT_MM / mm)) for mm in reversed(pixel)]
    image = sitk.GetImageFromArray(inside.astype(np.uint8))
    core = sitk.BinaryErode(image, [*radius, 0], sitk.sitkBall)
    parts = sitk.RelabelComponent(sitk.ConnectedComponent(core))
    grown = sitk.BinaryDilate(parts == 1, [n + 1 for n in radius] + [0], sitk.sitkBall)
    found: Mask = (sitk.GetArrayFromImage(grown) > 0) & inside
    return found


def areas_cm2(inside: Mask, pixel_spacing: tuple[float, float]) -> NDArray[np.float64]:
    """Area of the mask on each plane: float64 (slice,) [cm²]."""
    area: NDArray[np.float64] = inside.sum(axis=(1, 2)) * (pixel_spacing[0] * pixel_spacing[1] / 100.0)
    return area
