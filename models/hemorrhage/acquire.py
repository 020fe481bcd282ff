"""A simulated scan of a head: tilted thick slices, point spread, beam hardening, veiling, noise (ml-ct 2.2).

The order is the scanner's: the voxels of a slice are averaged over its thickness first, then blurred in the plane, then
come bone's side effects and the noise. All of it is linear averaging of HU; a real scanner averages attenuated
intensities, which the veiling stands for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from models.hemorrhage.grid import FINE_MM, FINE_SHAPE, ORIGIN, Array

#: The tilts a gantry reaches, and a nodding patient beyond it [degrees]: ml-ct 2.2.
PITCH_DEG: Final = 25.0
#: Sub-slices are at most this far apart [mm].
SUB_MM: Final = 1.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """Geometry and image quality of one scan."""

    #: Rotations of the slices against the head: pitch, roll, yaw [degrees].
    angles: tuple[float, float, float]
    #: Heights of the slices' centres along their normal, from the top [mm].
    heights: tuple[float, ...]
    #: Thickness of each slice [mm].
    thickness: tuple[float, ...]
    #: In-plane shift of the head (row, column) [mm].
    shift: tuple[float, float]
    #: Size (row, column) of the images, and their pixel [mm].
    size: tuple[int, int]
    pixel_mm: float
    #: Gaussian point spread [mm].
    blur_mm: float
    #: Edge boost of the kernel, as a share of an unsharp mask of 1 mm.
    edge: float
    #: Standard deviation of the noise at the head's centre [HU], at one slice of 5 mm, and its grain [mm].
    noise_hu: float
    grain_mm: float
    #: Share and reach [mm] of the veiling next to bone, and of the broad one (cupping).
    rim: tuple[float, float]
    cup: tuple[float, float]
    #: Dark bands between bones [HU] where a ray meets 40 mm of bone on both sides.
    hardening_hu: float
    #: Error of the water calibration [HU].
    offset_hu: float
    #: Head holder present.
    holder: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """One simulated series on its own grid, all (slice, row, column)."""

    hu: Array
    #: 0 none, 1..5 as ``detect.CLASSES``, 255 unclear (ignored in training).
    labels: NDArray[np.uint8]
    cavity: NDArray[np.bool_]
    ventricle: NDArray[np.bool_]
    #: Left hemisphere within the cavity.
    left: NDArray[np.bool_]
    #: ImagePositionPatient [mm], top slice first.
    positions: NDArray[np.float64]
    spacing: tuple[float, float]
    protocol: Protocol
    #: True shift of the septum [mm].
    midline_shift_mm: float


def draw_heights(rng: np.random.Generator, pitch_deg: float) -> tuple[list[float], list[float]]:
    """Slice centres and thicknesses [mm]: uniform, or thick above thin with an odd step, as the old scanners did.

    A tilted stack needs more travel, and some scans stop at the skull base while others go on to the neck.
    """
    top = rng.uniform(88, 100) + 0.35 * abs(pitch_deg)
    bottom = top - rng.uniform(140, 195)
    kind = rng.random()
    if kind < 0.45:
        step = float(rng.choice([4.0, 4.5, 5.0, 5.0, 5.0, 6.0, 7.0, 8.0]))
        centres = np.arange(top, bottom, -step)
        thick = np.full(len(centres), step * rng.choice([1.0, 1.0, 0.85]))
    elif kind < 0.72:
        step = float(rng.choice([2.5, 3.0, 3.0]))
        centres = np.arange(top, bottom, -step)
        thick = np.full(len(centres), step)
    else:
        upper, lower = float(rng.choice([6.0, 7.0, 7.0, 8.0, 10.0])), float(rng.choice([3.0, 4.0, 4.0, 5.0]))
        switch = rng.uniform(-25, 15)
        high = np.arange(top, switch, -upper)
        low = np.arange(high[-1] - (rng.uniform(0.8, 2.0) if rng.random() < 0.4 else lower), bottom, -lower)
        centres = np.concatenate((high, low))
        thick = np.concatenate((np.full(len(high), upper), np.full(len(low), lower)))
    return [float(v) for v in centres], [float(v) for v in thick]


def draw_protocol(rng: np.random.Generator, size: tuple[int, int], pixel_mm: float) -> Protocol:
    """A random protocol; image quality ranges are ml-ct 2.2's."""
    pitch = float(np.clip(rng.normal(2.0, 11.0), -PITCH_DEG, PITCH_DEG))
    heights, thickness = draw_heights(rng, pitch)
    return Protocol(
        angles=(pitch, float(rng.normal(0, 3.0)), float(rng.normal(0, 4.0))),
        heights=tuple(heights),
        thickness=tuple(thickness),
        shift=(float(rng.normal(0, 5.0)), float(rng.normal(0, 4.0))),
        size=size,
        pixel_mm=pixel_mm,
        blur_mm=float(rng.uniform(0.45, 0.85)),
        edge=float(rng.uniform(-0.1, 0.6)),
        noise_hu=float(np.exp(rng.uniform(np.log(1.3), np.log(6.5)))),
        grain_mm=float(rng.uniform(0.5, 1.0)),
        rim=(float(rng.uniform(0.0, 0.09)), float(rng.uniform(1.3, 4.5))),
        cup=(float(rng.uniform(0.0, 0.045)), float(rng.uniform(7.0, 20.0))),
        hardening_hu=float(rng.uniform(0.0, 14.0)),
        offset_hu=float(rng.normal(0.0, 2.0)),
        holder=bool(rng.random() < 0.6),
    )


def rotation(angles: tuple[float, float, float]) -> NDArray[np.float64]:
    """Columns are the image's row direction, column direction and upward normal in the head's frame."""
    pitch, roll, yaw = np.deg2rad(angles)
    about_x = np.array([[1, 0, 0], [0, np.cos(pitch), np.sin(pitch)], [0, -np.sin(pitch), np.cos(pitch)]])
    about_y = np.array([[np.cos(roll), 0, np.sin(roll)], [0, 1, 0], [-np.sin(roll), 0, np.cos(roll)]])
    about_z = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
    product: NDArray[np.float64] = about_x @ about_y @ about_z
    return product


def slices_of(fields: list[Array], protocol: Protocol) -> Array:
    """Average fine ``fields`` over every slice: (field, slice, row, column)."""
    stack = torch.from_numpy(np.stack(fields))[None]
    axes = rotation(protocol.angles)
    rows = (np.arange(protocol.size[0]) - (protocol.size[0] - 1) / 2) * protocol.pixel_mm - protocol.shift[0]
    columns = (np.arange(protocol.size[1]) - (protocol.size[1] - 1) / 2) * protocol.pixel_mm - protocol.shift[1]
    plane = columns[None, :, None] * axes[:, 0] + rows[:, None, None] * axes[:, 1]  # (row, column, xyz)
    extent = (np.array(FINE_SHAPE) - 1) * FINE_MM
    result = np.empty((len(fields), len(protocol.heights), *protocol.size), np.float32)
    for index, (height, thick) in enumerate(zip(protocol.heights, protocol.thickness, strict=True)):
        count = max(1, round(thick / SUB_MM))
        offsets = ((np.arange(count) + 0.5) / count - 0.5) * thick
        at = plane[None] + (height + offsets)[:, None, None, None] * axes[:, 2]
        zyx = np.stack((ORIGIN[0] - at[..., 2], at[..., 1] - ORIGIN[1], at[..., 0] - ORIGIN[2]), -1)
        unit = 2.0 * zyx[..., ::-1] / extent[::-1] - 1.0
        grid = torch.from_numpy(unit.astype(np.float32))[None]
        sampled = torch.nn.functional.grid_sample(stack, grid, padding_mode="border", align_corners=True)
        result[:, index] = sampled[0].mean(1).numpy()
    return result


def _noise(shape: tuple[int, int, int], bone: Array, protocol: Protocol, rng: np.random.Generator) -> Array:
    """Noise that is coarser than a pixel, weaker in thick slices and streaky in rows that cross much bone."""
    sigma = protocol.grain_mm / protocol.pixel_mm
    white = rng.standard_normal(shape, dtype=np.float32)
    grain = ndimage.gaussian_filter(white, (0, sigma, sigma)) - 0.7 * ndimage.gaussian_filter(
        white, (0, 3 * sigma, 3 * sigma)
    )
    grain /= float(grain.std()) + 1e-6
    streaks = ndimage.gaussian_filter1d(white[::-1], 9.0 / protocol.pixel_mm, axis=2)
    streaks = ndimage.gaussian_filter1d(streaks, 0.6 / protocol.pixel_mm, axis=1)
    streaks /= float(streaks.std()) + 1e-6
    crossed = bone.sum(2, keepdims=True) * protocol.pixel_mm / 40.0  # 40 mm of bone: the petrous level
    level = protocol.noise_hu * np.sqrt(5.0 / np.array(protocol.thickness, np.float32))[:, None, None]
    pixel_loss = min(1.0, 0.9 / protocol.pixel_mm)  # a large pixel has averaged the noise already
    field: Array = (level * pixel_loss * (0.85 * grain + 0.5 * np.clip(crossed, 0.0, 2.5) * streaks)).astype(np.float32)
    return field


def _side_effects(hu: Array, protocol: Protocol) -> Array:
    """Veiling beside bone and dark bands between bones, as the measured profile of real heads asks (ml-ct 2.2)."""
    bone = np.clip(hu / 1400.0, 0.0, 1.0)
    soft = (hu < 200).astype(np.float32)
    for share, reach in (protocol.rim, protocol.cup):
        sigma = reach / protocol.pixel_mm
        veil = ndimage.gaussian_filter(np.clip(hu, 0, 1400), (0, sigma, sigma))
        hu = hu + share * soft * np.clip(veil - np.clip(hu, 0, 200), 0, None) * (hu > -200)
    total = bone.sum(2, keepdims=True) * protocol.pixel_mm
    before = np.cumsum(bone, 2) * protocol.pixel_mm
    bands = np.clip(before * (total - before) / 1600.0, 0.0, 1.5)
    bands = ndimage.gaussian_filter(bands, (0, 2.0 / protocol.pixel_mm, 1.0 / protocol.pixel_mm))
    darker: Array = hu - protocol.hardening_hu * bands * soft
    return darker


def _holder(hu: Array, protocol: Protocol, rng: np.random.Generator) -> Array:
    """A head holder: a bright thin U behind the head, which the head finder must not take for skull."""
    rows, columns = (np.arange(n) * protocol.pixel_mm for n in protocol.size)
    middle = protocol.size[1] * protocol.pixel_mm / 2
    depth = protocol.size[0] * protocol.pixel_mm - rng.uniform(2, 14)
    curve = depth - ((columns - middle) / rng.uniform(85, 95)) ** 4 * rng.uniform(20, 100)
    sheet = np.clip(1.2 - np.abs(rows[:, None] - curve[None, :]) / 1.5, 0.0, 1.0) * rng.uniform(300, 1200)
    held: Array = np.where(hu < -300, np.maximum(hu, -1000.0 + sheet.astype(np.float32)), hu)
    return held


def image(clean: Array, protocol: Protocol, rng: np.random.Generator) -> Array:
    """Clean averaged slices (slice, row, column) [HU] as the scanner would show them."""
    sigma = float(np.hypot(protocol.blur_mm, 0.3) / protocol.pixel_mm)
    hu = ndimage.gaussian_filter(clean, (0, sigma, sigma))
    unsharp = hu - ndimage.gaussian_filter(hu, (0, 1.0 / protocol.pixel_mm, 1.0 / protocol.pixel_mm))
    hu = _side_effects(hu + protocol.edge * unsharp, protocol)
    if protocol.holder:
        hu = _holder(hu, protocol, rng)
    bone = np.clip(hu / 1400.0, 0.0, 1.0)
    hu = hu + protocol.offset_hu + _noise(hu.shape, bone, protocol, rng)
    seen: Array = np.clip(hu, -1024.0, 3071.0).astype(np.float32)
    return seen
