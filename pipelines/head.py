"""What pipelines for non-contrast head CT ask of the pixels: a skull with a brain in it, seen whole, without dye.

Tags lie in both directions, so what is decided here is decided by pixels; `blocks` reads the header. A series that is
no plain head raises `Unsuitable`. A head that ought to be read and cannot be is `Unreadable`: the pipeline reports it
as undetermined, because silence would pass for a negative.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import SimpleITK as sitk  # noqa: N813 - its own documentation's name
import torch
from numpy.typing import NDArray

from dicomnode import pipeline as dn
from models.ct_denoise.noise import gaussian_blur
from models.hemorrhage import intracranial
from pipelines import blocks

Mask = NDArray[np.bool_]

#: Slices may be tilted by 41 degrees against the patient's axis: cos 41 (gantries reach 30, a nodding head more).
LEAST_AXIAL: Final = 0.75
#: Distance between slices that the network was made for [mm] (ml-ct 1.1; the tested GE head has 7 mm steps).
STEP_MM: Final = (0.4, 7.5)
#: A plane through a brain holds this much at its widest; an abdomen or a phantom of plastic does not [cm²].
LEAST_AREA_CM2: Final = 40.0
#: Volume of an intracranial cavity [mL] (ml-ct 1.1).
CAVITY_ML: Final = (900.0, 2600.0)
#: Median of a brain [HU] (ml-ct 1.1): air, plastic, water and gel lie outside.
BRAIN_HU: Final = (15.0, 45.0)
#: Dye in vessels [HU]; more than this volume is contrast medium (ml-ct 1.1) once blobs the size of calcified plexus are
#: left out: the largest of the real head has 0.33 mL.
DYE_HU: Final = (120.0, 400.0)
DYE_ML: Final = 3.0
CALCIFICATION_ML: Final = 0.5
#: Clips and coils [HU], and the least of them [mL]; they shine as dye does, and make a head unreadable.
METAL_HU: Final = 2500.0
METAL_ML: Final = 0.02
#: Distance from bone at which its blur has ended [mm].
RIM_MM: Final = 6.0
#: Share of the cavity that must lie within the series (ml-ct 1.1).
LEAST_COVERAGE: Final = 0.6
#: Below this share nothing may be called absent: the posterior fossa or the base was not seen (a whole adult head
#: gives 0.91 and more by this estimate).
WHOLE_COVERAGE: Final = 0.85
#: A step this much longer than the larger of its neighbours is a hole, whatever else the geometry is called.
HOLE: Final = 1.5
#: Height of a cavity above and below its widest plane [mm]: adult mean, vertex to foramen magnum 145 mm.
HALF_HEIGHT_MM: Final = 72.0
#: Values of the smoothed brain that only streaks of metal or motion make [HU], their share of a plane, and the share of
#: planes from which on nothing may be called absent.
STREAK_HU: Final = (-30.0, 120.0)
STREAK_SHARE: Final = 0.02
STREAK_PLANES: Final = 0.1
STREAK_BLUR_MM: Final = 3.0
#: From this thickness of open planes on the vault has been opened [mm]: sutures and canals are narrower than what the
#: mask closes, and a burr hole is 14 mm wide.
OPEN_MM: Final = 15.0
#: Planes that are looked at for streaks: thin slices show the same ones again.
MOST_PLANES: Final = 48
#: Noise above which a series is smoothed, and what is aimed at [HU]; brain kernels give 3-6.
NOISY_HU: Final = 12.0
SOFT_HU: Final = 6.0
#: The Gaussians tried, from the least [mm].
SMOOTHINGS_MM: Final = (0.4, 0.6, 0.8, 1.0, 1.3)


class Unreadable(Exception):
    """A head that ought to be evaluated and cannot be; the reason is for the reader of the report."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Head:
    """A series that passed, and what was seen of it."""

    #: What the network is given: (slice, row, column) [HU], padding replaced, a sharp kernel softened.
    values: NDArray[np.float32]
    #: Inside the skull, by classical means: (slice, row, column).
    inside: Mask
    #: Thickness that each plane stands for: (slice,) [mm].
    weights_mm: NDArray[np.float64]
    #: Volume of a voxel of each plane: (slice,) [mL].
    voxel_ml: NDArray[np.float64]
    #: Share of the cavity that the series shows, estimated.
    coverage: float
    #: Why nothing may be called absent on this series.
    limits: tuple[str, ...]
    #: What was done to the values, for the record.
    notes: tuple[str, ...]

    def volume_ml(self, mask: Mask) -> float:
        """Volume of ``mask`` (slice, row, column) [mL], by distances along the slice normal."""
        return float((mask.sum(axis=(1, 2)) * self.voxel_ml).sum())


def require_head(series: dn.ImageSeries) -> Head:
    """Look at the pixels of ``series``.

    Raises
    ------
    dn.Unsuitable
        It is no axial CT of a head without contrast medium.
    Unreadable
        It is one, and must not be evaluated.
    """
    normal = np.cross(series.orientation[:3], series.orientation[3:])
    if abs(float(normal[2])) < LEAST_AXIAL:
        raise dn.Unsuitable("needs axial slices; these are sagittal, coronal or steeper than 41 degrees")
    values = np.where(series.padding, np.float32(-1000.0), series.array)
    inside = intracranial.mask(values, series.pixel_spacing)
    areas = intracranial.areas_cm2(inside, series.pixel_spacing)
    if float(areas.max()) < LEAST_AREA_CM2:
        raise dn.Unsuitable(f"no head: the largest closed ring of bone holds {areas.max():.0f} cm² of soft tissue")
    brain = float(np.median(values[inside]))
    if not BRAIN_HU[0] <= brain <= BRAIN_HU[1]:
        raise dn.Unsuitable(f"no brain in the skull: its median is {brain:.0f} HU, a brain's {_range(BRAIN_HU)}")
    weights = blocks.plane_weights_mm(series)
    voxel = weights * (series.pixel_spacing[0] * series.pixel_spacing[1] / 1000.0)
    volume = float((inside.sum(axis=(1, 2)) * voxel).sum())
    if volume > CAVITY_ML[1]:
        raise dn.Unsuitable(f"no head: the ring of bone holds {volume:.0f} mL, a skull at most {CAVITY_ML[1]:.0f}")
    away = np.stack([_away(plane, series.pixel_spacing) for plane in inside]) > RIM_MM
    coverage = covered(areas, weights)
    soft, noted = soften(values, away, series)
    # Noise alone reaches the values of dye: what is smoothed for the network is judged smoothed.
    _refuse_dye(values, soft, inside & away, voxel)
    _require_readable(series, coverage, volume)
    return Head(
        values=soft,
        inside=inside,
        weights_mm=weights,
        voxel_ml=voxel,
        coverage=coverage,
        limits=(*_limits(series, soft, away, coverage), *_opened(series, values, inside, weights)),
        notes=noted,
    )


def _range(limits: tuple[float, float]) -> str:
    return f"{limits[0]:g} to {limits[1]:g}"


def _away(inside: Mask, spacing: tuple[float, float]) -> NDArray[np.float32]:
    """Distance to the border of one plane's mask [mm], 0 outside."""
    if not inside.any():
        return np.zeros(inside.shape, np.float32)
    image = sitk.GetImageFromArray(inside.astype(np.uint8))
    image.SetSpacing((spacing[1], spacing[0]))
    distance = sitk.SignedMaurerDistanceMap(image, insideIsPositive=True, squaredDistance=False, useImageSpacing=True)
    return np.maximum(np.asarray(sitk.GetArrayFromImage(distance), np.float32), 0.0)


def _refuse_dye(
    values: NDArray[np.float32], soft: NDArray[np.float32], brain: Mask, voxel_ml: NDArray[np.float64]
) -> None:
    bright = brain & (soft > DYE_HU[0]) & (soft < DYE_HU[1])
    if not bright.any():
        return
    parts = sitk.GetArrayFromImage(sitk.ConnectedComponent(sitk.GetImageFromArray(bright.astype(np.uint8)), True))
    counts = np.stack([np.bincount(plane.ravel(), minlength=int(parts.max()) + 1) for plane in parts])
    sizes = (counts * voxel_ml[:, None]).sum(axis=0)[1:]
    dye = float(sizes[sizes > CALCIFICATION_ML].sum())
    if dye <= DYE_ML:
        return
    if ((brain & (values > METAL_HU)).sum(axis=(1, 2)) * voxel_ml).sum() > METAL_ML:
        raise Unreadable("limited quality: metal within the skull")
    raise dn.Unsuitable(f"{dye:.1f} mL of the brain lie at {_range(DYE_HU)} HU: contrast medium")


def covered(areas_cm2: NDArray[np.float64], weights_mm: NDArray[np.float64]) -> float:
    """Share of the cavity that lies within the planes, from their areas (slice,) [cm²].

    What is cut off beyond the first and the last plane is taken for the cap of an ellipsoid of the widest area.
    """
    widest, seen = float(areas_cm2.max()), float((areas_cm2 * weights_mm).sum()) / 10.0

    def cap_ml(area: float) -> float:
        height = np.sqrt(max(0.0, 1.0 - area / widest))
        return float(widest * HALF_HEIGHT_MM / 10.0 * (2.0 / 3.0 - height + height**3 / 3.0))

    return seen / (seen + cap_ml(float(areas_cm2[0])) + cap_ml(float(areas_cm2[-1])))


def _require_readable(series: dn.ImageSeries, coverage: float, volume_ml: float) -> None:
    steps = np.diff(series.slice_positions)
    usual = float(np.median(np.abs(steps)))
    if not STEP_MM[0] <= usual <= STEP_MM[1]:
        raise Unreadable(f"slices {usual:.1f} mm apart; the algorithm was made for {_range(STEP_MM)} mm")
    age = blocks.age_years(series)
    if age is not None and age < blocks.ADULT_YEARS:
        raise Unreadable(f"not made for children (PatientAge {blocks.text(series, 'PatientAge')})")
    if coverage < LEAST_COVERAGE:
        raise Unreadable(f"incomplete: about {coverage:.0%} of the intracranial cavity lies within the series")
    if volume_ml < CAVITY_ML[0]:
        raise Unreadable(
            f"the intracranial cavity measures {volume_ml:.0f} mL: a small child's, or not recognised whole"
        )


def _limits(series: dn.ImageSeries, values: NDArray[np.float32], brain: Mask, coverage: float) -> list[str]:
    limits = []
    hole = _hole(np.abs(np.diff(series.slice_positions)))
    if series.incomplete or series.geometry is dn.Geometry.GAPS or hole:
        where = hole or series.geometry_note
        limits.append(f"slices are missing{': ' + where if where else ''}")
    if coverage < WHOLE_COVERAGE:
        limits.append(f"about {coverage:.0%} of the intracranial cavity lies within the series")
    noise = noise_hu(values, brain)
    if noise > NOISY_HU:
        limits.append(f"limited quality: noise of {noise:.0f} HU")
    streaked, planes = 0, 0
    for index in np.unique(np.linspace(0, len(values) - 1, MOST_PLANES).round().astype(int)):
        plane, part = values[index], brain[index]
        if part.sum() * series.pixel_spacing[0] * series.pixel_spacing[1] < 1000.0:  # 10 cm²
            continue
        smooth = _blurred(plane, STREAK_BLUR_MM, series.pixel_spacing)[part]
        planes += 1
        streaked += float(((smooth < STREAK_HU[0]) | (smooth > STREAK_HU[1])).mean()) > STREAK_SHARE
    if streaked > max(1.0, STREAK_PLANES * planes):
        limits.append(f"limited quality: streaks, metal or air within the brain in {streaked} of {planes} planes")
    return limits


def _opened(
    series: dn.ImageSeries, values: NDArray[np.float32], inside: Mask, weights_mm: NDArray[np.float64]
) -> list[str]:
    """A skull that is open above its widest plane, where every skull is closed; below, the base has gaps of its own."""
    height = series.positions[:, 2]
    above = height >= height[int(inside.sum(axis=(1, 2)).argmax())]
    is_open = above & intracranial.open_planes(values, inside, series.pixel_spacing)
    if weights_mm[is_open].sum() < OPEN_MM:
        return []
    return [f"the vault is open in {is_open.sum()} planes: an operated head, which the algorithm was not made for"]


def _hole(steps_mm: NDArray[np.float64]) -> str:
    """Where planes are missing, by the distances between them; a tilted or uneven stack is not called gappy for it."""
    for index, step in enumerate(steps_mm):
        around = [float(other) for other in (*steps_mm[max(0, index - 1) : index], *steps_mm[index + 1 : index + 2])]
        if step > STEP_MM[1] * 1.05 or (around and step > HOLE * max(around) and step > HOLE * np.median(steps_mm)):
            return f"{step:.1f} mm between planes {index + 1} and {index + 2}"
    return ""


def soften(
    values: NDArray[np.float32], brain: Mask, series: dn.ImageSeries
) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """``values`` (slice, row, column) smoothed in the plane if the kernel is sharp or the noise high, and a note."""
    before = noise_hu(values, brain)
    named = blocks.is_sharp(series)
    if not before > SOFT_HU or (before <= NOISY_HU and not named):
        return values, ()
    smooth = values
    for sigma in SMOOTHINGS_MM:
        smooth = np.stack([_blurred(plane, sigma, series.pixel_spacing) for plane in values])
        if noise_hu(smooth, brain) <= SOFT_HU:
            break
    why = "sharp kernel" if named else "noise"
    return smooth, (f"{why}: smoothed by {sigma:g} mm, noise {before:.0f} to {noise_hu(smooth, brain):.0f} HU",)


def noise_hu(values: NDArray[np.float32], brain: Mask) -> float:
    """Noise in the brain (slice, row, column) [HU]: robust, from differences of pixels two apart; nan without brain."""
    both = brain[:, :, 2:] & brain[:, :, :-2]
    if not both.any():
        return float("nan")
    difference = (values[:, :, 2:] - values[:, :, :-2])[both]
    return float(1.4826 * np.median(np.abs(difference)) / np.sqrt(2.0))


def _blurred(plane: NDArray[np.float32], sigma_mm: float, spacing: tuple[float, float]) -> NDArray[np.float32]:
    return np.asarray(gaussian_blur(torch.from_numpy(plane)[None, None], sigma_mm / spacing[0])[0, 0].numpy())
