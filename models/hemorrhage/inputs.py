"""From a series in HU to what the network sees: the work grid, its frame, depths and channels.

Training and detection share this module, so that a slice looks the same to the network wherever it comes from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from torch import Tensor

#: The work grid: in-plane pixel [mm] and size (row, column), 220 x 200 mm. 1.25 mm instead of ml-ct 1.3's 1.0 mm: a
#: training step costs two thirds, and thin subdurals are wider than two pixels all the same.
WORK_MM: Final = 1.25
WORK_SIZE: Final = (176, 160)
#: Bone in CT of the head [HU]; depth is measured from it.
BONE_HU: Final = 200.0
#: Soft tissue against air [HU].
TISSUE_HU: Final = -200.0
#: A slice belongs to the head from this area on [mm^2].
HEAD_AREA_MM2: Final = 800.0
#: Depths are stored in quarter millimetres up to this [mm].
DEPTH_MM: Final = 60.0
#: Slices this far below the vertex tell where the head's middle is [mm].
MIDDLE_MM: Final = (25.0, 90.0)
#: Scale of the height coordinate [mm]: vertex to foramen magnum.
HEIGHT_MM: Final = 150.0
#: Channels of the network's input, see ``channels``.
CHANNELS: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Where the work grid lies in a series."""

    #: In-plane position (row, column) of the head's middle in the common plane of all slices [mm].
    centre: tuple[float, float]
    #: Height of the vertex along the slices' normal [mm].
    vertex: float


def _head_box(plane: NDArray[np.float32], pixel: tuple[float, float]) -> tuple[float, float, float] | None:
    """Area [mm^2] and middle (row, column) [pixel] of the head in one slice; None where there is none.

    An opening of 5 mm removes head holders, pads and hair.
    """
    step = tuple(max(1, round(2.5 / mm)) for mm in pixel)
    small = plane[:: step[0], :: step[1]] > TISSUE_HU
    image = sitk.GetImageFromArray(small.astype(np.uint8))
    radius = [max(1, round(5.0 / (pixel[1] * step[1]) / 2)), max(1, round(5.0 / (pixel[0] * step[0]) / 2))]
    parts = sitk.RelabelComponent(sitk.ConnectedComponent(sitk.BinaryMorphologicalOpening(image, radius)))
    head = sitk.GetArrayViewFromImage(parts) == 1
    area = float(head.sum()) * pixel[0] * step[0] * pixel[1] * step[1]
    if area < HEAD_AREA_MM2:
        return None
    rows, columns = (np.flatnonzero(head.any(axis)) for axis in (1, 0))
    return area, (rows[0] + rows[-1]) / 2 * step[0], (columns[0] + columns[-1]) / 2 * step[1]


def find_frame(
    values: NDArray[np.float32], pixel: tuple[float, float], origins: NDArray[np.float64], heights: NDArray[np.float64]
) -> Frame | None:
    """The frame of a series (slice, row, column) [HU], top slice first; None if there is no head.

    ``origins`` (slice, 2): in-plane position (row, column) of the first pixel [mm]; ``heights`` (slice,) [mm].
    """
    boxes = [_head_box(plane, pixel) for plane in values]
    seen = [k for k, box in enumerate(boxes) if box is not None]
    if not seen:
        return None
    vertex = float(heights[seen[0]])
    low, high = MIDDLE_MM
    middle = [k for k in seen if low <= vertex - heights[k] <= high] or seen
    found = [boxes[k] for k in middle]
    rows = [origins[k, 0] + box[1] * pixel[0] for k, box in zip(middle, found, strict=True) if box]
    columns = [origins[k, 1] + box[2] * pixel[1] for k, box in zip(middle, found, strict=True) if box]
    return Frame(centre=(float(np.median(rows)), float(np.median(columns))), vertex=vertex)


def work_offsets() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rows and columns of the work grid relative to the frame's centre [mm]."""
    rows, columns = ((np.arange(n, dtype=np.float64) - n // 2) * WORK_MM for n in WORK_SIZE)
    return rows, columns


def to_work(
    plane: NDArray[np.float32], pixel: tuple[float, float], origin: NDArray[np.float64], frame: Frame
) -> NDArray[np.float32]:
    """One slice on the work grid [HU]: smoothed to the coarser pixel, then interpolated."""
    image = torch.from_numpy(np.ascontiguousarray(np.maximum(plane, -1024.0)))[None, None]
    for axis, mm in enumerate(pixel):
        if mm < 0.9 * WORK_MM:  # the share of a pixel-wide mean that the finer pixel has not had yet
            image = _blur(image, np.sqrt((WORK_MM**2 - mm**2) / 12.0) / mm, axis)
    rows, columns = work_offsets()
    at_row = (rows + frame.centre[0] - origin[0]) / pixel[0]
    at_column = (columns + frame.centre[1] - origin[1]) / pixel[1]
    height, width = plane.shape
    unit = np.stack(
        np.broadcast_arrays(2 * at_column[None, :] / (width - 1) - 1, 2 * at_row[:, None] / (height - 1) - 1), -1
    )
    grid = torch.from_numpy(unit.astype(np.float32))[None]
    sampled = torch.nn.functional.grid_sample(image + 1024.0, grid, align_corners=True)[0, 0] - 1024.0
    return np.asarray(sampled.numpy(), np.float32)


def _blur(image: Tensor, sigma: float, axis: int) -> Tensor:
    """Gaussian smoothing of (1, 1, row, column) along ``axis``, ``sigma`` in pixels."""
    reach = max(1, int(3 * sigma + 0.5))
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float32) / sigma) ** 2)
    taps = (taps / taps.sum()).view((1, 1, -1, 1) if axis == 0 else (1, 1, 1, -1))
    padding = (0, 0, reach, reach) if axis == 0 else (reach, reach, 0, 0)
    padded = torch.nn.functional.pad(image, padding, mode="replicate")
    return torch.nn.functional.conv2d(padded, taps)


def depth_of(work: NDArray[np.float32]) -> NDArray[np.uint8]:
    """In-plane distance to the nearest bone of every slice, in quarter millimetres, on the work grid."""
    depths = np.empty(work.shape, np.uint8)
    for k, plane in enumerate(work):
        bone = plane > BONE_HU
        if not bone.any():
            depths[k] = 255
            continue
        image = sitk.GetImageFromArray(bone.astype(np.uint8))
        distance = sitk.GetArrayViewFromImage(sitk.SignedMaurerDistanceMap(image, False, False, False))
        depths[k] = np.clip(distance, 0.0, DEPTH_MM / WORK_MM) * (4.0 * WORK_MM)
    return depths


def channels(hu: Tensor, depth: Tensor, height: Tensor, gap: Tensor) -> Tensor:
    """The network's input (slice, channel, row, column).

    Parameters
    ----------
    hu
        (slice, 3, row, column): each slice between its upper and lower neighbour [HU].
    depth
        (slice, row, column), quarter millimetres as ``depth_of``.
    height
        (slice,): distance below the vertex [mm].
    gap
        (slice,): mean distance to the neighbours [mm].
    """
    count, _, rows, columns = hu.shape
    brain = ((hu - 40.0) / 50.0).clamp(-1.0, 1.0)  # -10..90 HU
    wide = ((hu - 400.0) / 600.0).clamp(-1.0, 1.0)  # -200..1000 HU
    y = torch.linspace(-1, 1, rows).to(hu).view(1, 1, rows, 1).expand(count, 1, rows, columns)
    x = torch.linspace(-1, 1, columns).to(hu).view(1, 1, 1, columns).expand(count, 1, rows, columns)
    z = (height / HEIGHT_MM * 2.0 - 1.0).view(-1, 1, 1, 1).expand(count, 1, rows, columns)
    spaced = (gap / 5.0 - 1.0).view(-1, 1, 1, 1).expand(count, 1, rows, columns)
    near = (depth[:, None].to(hu.dtype) / (2.0 * DEPTH_MM) - 1.0).clamp(-1.0, 1.0)  # 0..60 mm
    other = brain[:, 1:2].roll(-1, 3).flip(3)  # about the column of x = 0
    return torch.cat((brain, wide, other, near, x, y, z, spaced), 1)


def mirror(input_: Tensor) -> Tensor:
    """``channels`` of the same slices with left and right exchanged."""
    turned = input_.roll(-1, 3).flip(3)
    return torch.cat((turned[:, :8], input_[:, 8:9], turned[:, 9:]), 1)  # x is a coordinate, it stays
