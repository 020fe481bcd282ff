"""Bleeds of our own painted into a real head without one: the only evaluation on real brain that can be had here.

Shapes are simple bodies in patient millimetres, cut into the series' own planes (tilt, uneven steps, partial volume of
thick planes), blurred as the scanner blurs, and laid over the slice so that its noise and texture stay. There is no
mass effect: the brain is covered, not pushed. Nothing here shares code with the simulator that training uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from models.hemorrhage import intracranial
from models.hemorrhage.cases import Array, Labels, Mask, Study, slice_weights

EPIDURAL, SUBDURAL, SUBARACHNOID, INTRAPARENCHYMAL, INTRAVENTRICULAR = 1, 2, 3, 4, 5

#: Samples across a plane's thickness for its partial volume.
SAMPLES: Final = 5
#: In-plane point spread of the scanner, standard deviation [mm] (ml-ct 2.2: 0.45-0.85).
PSF_MM: Final = 0.6
#: Smoothing that separates tissue from noise: what is replaced is the tissue [mm].
TISSUE_MM: Final = 1.5
#: Denser is bone or calcium and no part of the tissue [HU].
SOFT_BELOW_HU: Final = 90.0
#: Blood [HU] (issue: 55-80).
BLOOD_HU: Final = (55.0, 80.0)
#: A voxel is labelled above this share of blood if it is also this much denser than before; it is ignored between the
#: lower share and that (ml-ct 2.2, the simulator's rule).
LABEL_SHARE: Final = 0.35
IGNORE_SHARE: Final = 0.1
VISIBLE_HU: Final = 6.0
#: Lateral and third ventricles: smoothed values below, this far from bone and this near to the middle, at these shares
#: of the skull's height, the largest connected part [HU, mm].
VENTRICLE_HU: Final = 17.0
VENTRICLE_DEPTH_MM: Final = 28.0
VENTRICLE_REACH_MM: Final = 30.0
VENTRICLE_LEVEL: Final = (0.2, 0.4)
#: Extra-axial bleeds stay above this share of the skull's height: the tentorium bounds them.
TENTORIUM_LEVEL: Final = 0.65
#: Sulci and cisterns: smoothed values below [HU]; wider bodies of fluid (ventricles, an old infarct) are not [mm].
CSF_HU: Final = 20.0
CSF_WIDTH_MM: Final = 8.0
#: Brain in which a parenchymal bleed is put [HU, share of its voxels].
BRAIN_HU: Final = (22.0, 42.0)

#: Share of blood (row, column), from the plane's index and the patient coordinates (row, column, 3) [mm].
Shape = Callable[[int, NDArray[np.float64]], Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A negative study and what painting needs to know of it, each (slice, row, column)."""

    study: Study
    inside: Mask
    #: Distance to the inner table in the plane [mm].
    depth: Array
    #: Values without noise [HU].
    tissue: Array
    ventricles: Mask
    #: Sulci and cisterns.
    csf: Mask
    #: Patient x of the middle of the skull on each row: (slice, row) [mm].
    middle: NDArray[np.float64]

    @classmethod
    def of(cls, study: Study) -> Head:
        """Look at a negative study once."""
        inside = intracranial.mask(study.hu, study.pixel_spacing)
        depth = np.stack([_depth(plane, study.pixel_spacing) for plane in inside])
        tissue = np.stack(
            [_tissue(plane, mask, study.pixel_spacing) for plane, mask in zip(study.hu, inside, strict=True)]
        )
        middle = np.full(inside.shape[:2], np.nan)
        away = np.full(inside.shape, np.inf)
        for index in np.flatnonzero(inside.any(axis=(1, 2))):
            rows = np.flatnonzero(inside[index].any(axis=1))
            first, last = inside[index].argmax(axis=1), inside.shape[2] - 1 - inside[index, :, ::-1].argmax(axis=1)
            x = points(study, int(index), 0.0)[..., 0]
            middle[index, rows] = 0.5 * (x[rows, first[rows]] + x[rows, last[rows]])
            away[index] = np.abs(x - np.nan_to_num(middle[index], nan=np.inf)[:, None])
        fluid = inside & (depth > VENTRICLE_DEPTH_MM) & (tissue < VENTRICLE_HU) & (away < VENTRICLE_REACH_MM)
        low, high = (level_of(inside, study.pixel_spacing, share) for share in VENTRICLE_LEVEL)
        fluid[:low], fluid[high + 1 :] = False, False
        parts = sitk.RelabelComponent(sitk.ConnectedComponent(sitk.GetImageFromArray(fluid.astype(np.uint8))))
        csf = inside & (depth > 1.5) & (tissue < CSF_HU)
        csf &= ~np.stack([_wide(plane, study.pixel_spacing) for plane in csf])
        return cls(
            study=study,
            inside=inside,
            depth=depth,
            tissue=tissue,
            ventricles=sitk.GetArrayFromImage(parts) == 1,
            csf=csf,
            middle=middle,
        )

    def level(self, share: float) -> int:
        """The plane at ``share`` of the skull's height, 0 the vertex, 1 the base."""
        return level_of(self.inside, self.study.pixel_spacing, share)


def level_of(inside: Mask, pixel_spacing: tuple[float, float], share: float) -> int:
    """The plane at ``share`` of the height of ``inside`` (slice, row, column), 0 the vertex, 1 the base."""
    planes = np.flatnonzero(intracranial.areas_cm2(inside, pixel_spacing) > 40.0)
    return int(planes[round(share * (len(planes) - 1))])


def blur(plane: Array, sigma_mm: float, spacing: tuple[float, float]) -> Array:
    """Gaussian of ``sigma_mm`` on one plane (row, column)."""
    image = sitk.GetImageFromArray(plane.astype(np.float32))
    image.SetSpacing((spacing[1], spacing[0]))
    return np.asarray(sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(image, sigma_mm)))


def _tissue(plane: Array, inside: Mask, spacing: tuple[float, float]) -> Array:
    """A plane without its noise, bone kept out of the average; beyond the skull the plain average."""
    soft = (inside & (plane < SOFT_BELOW_HU)).astype(np.float32)
    weight = blur(soft, TISSUE_MM, spacing)
    mean = blur(plane * soft, TISSUE_MM, spacing) / np.maximum(weight, 1e-3)
    return np.where(weight > 0.05, mean, blur(plane, TISSUE_MM, spacing)).astype(np.float32)


def _depth(inside: Mask, spacing: tuple[float, float]) -> Array:
    if not inside.any():
        return np.zeros(inside.shape, np.float32)
    image = sitk.GetImageFromArray(inside.astype(np.uint8))
    image.SetSpacing((spacing[1], spacing[0]))
    away = sitk.SignedMaurerDistanceMap(image, insideIsPositive=True, squaredDistance=False, useImageSpacing=True)
    return np.maximum(np.asarray(sitk.GetArrayFromImage(away), np.float32), 0.0)


def _wide(fluid: Mask, spacing: tuple[float, float]) -> Mask:
    """Where ``fluid`` (row, column) is wider than a sulcus or a cistern, and a little around."""
    radius = [round(CSF_WIDTH_MM / 2.0 / mm) for mm in reversed(spacing)]
    image = sitk.BinaryErode(sitk.GetImageFromArray(fluid.astype(np.uint8)), radius, sitk.sitkBall)
    wide: Mask = sitk.GetArrayFromImage(sitk.BinaryDilate(image, [n + 2 for n in radius], sitk.sitkBall)) > 0
    return wide


def points(study: Study, index: int, offset_mm: float) -> NDArray[np.float64]:
    """Patient coordinates (row, column, 3) of a plane moved by ``offset_mm`` along its normal [mm]."""
    row, column = study.orientation[:3], study.orientation[3:]
    r = np.arange(study.hu.shape[1])[:, None, None] * study.pixel_spacing[0]
    c = np.arange(study.hu.shape[2])[None, :, None] * study.pixel_spacing[1]
    point: NDArray[np.float64] = study.positions[index] + r * column + c * row + offset_mm * np.cross(row, column)
    return point


def painted(head: Head, name: str, label: int, shape: Shape, blood_hu: float, mixing: float = 1.0) -> Study:
    """``head`` with ``shape`` filled with blood; ``mixing`` is how much of the blood replaces what was there."""
    study, weights = head.study, slice_weights(head.study.positions, head.study.orientation)
    hu, truth, ignore = study.hu.copy(), np.zeros(study.hu.shape, np.uint8), np.zeros(study.hu.shape, bool)
    for index in range(len(hu)):
        if not head.inside[index].any():
            continue
        share = np.zeros(hu.shape[1:], np.float32)
        for part in range(SAMPLES):
            offset = ((part + 0.5) / SAMPLES - 0.5) * weights[index]
            share += shape(index, points(study, index, float(offset))) / SAMPLES
        share *= head.inside[index]
        if share.max() < IGNORE_SHARE:
            continue
        share = blur(share, PSF_MM, study.pixel_spacing) * mixing
        change = share * (blood_hu - head.tissue[index])
        hu[index] += change
        seen = (share > LABEL_SHARE * mixing) & (change > VISIBLE_HU)
        truth[index][seen] = label
        ignore[index] = (share > IGNORE_SHARE * mixing) & ~seen
    return replace(study, name=name, group="painted", hu=hu, truth=truth, ignore=ignore)


def intraparenchymal(head: Head, radius_mm: float, seed: int) -> Study:
    """A deformed ellipsoid in brain, half of them with a rim of oedema."""
    rng = np.random.default_rng([INTRAPARENCHYMAL, seed, round(10 * radius_mm)])
    brain = head.inside & (head.tissue > BRAIN_HU[0]) & (head.tissue < BRAIN_HU[1])
    low, high = head.level(0.25), head.level(0.8)
    while True:
        index = int(rng.integers(low, high + 1))
        rows, columns = np.nonzero(brain[index] & (head.depth[index] > radius_mm + 7.0))
        if not len(rows):
            radius_mm *= 0.95
            continue
        pick = int(rng.integers(len(rows)))
        point = points(head.study, index, 0.0)
        centre = point[rows[pick], columns[pick]]
        lateral = abs(centre[0] - head.middle[index][rows[pick]]) > radius_mm + 3.0  # the falx is no place for it
        if lateral and brain[index][np.linalg.norm(point - centre, axis=2) < radius_mm].mean() > 0.85:
            break
    axes = radius_mm * np.exp(rng.normal(0.0, 0.12, 3))
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    waves, phases = rng.normal(size=(5, 3)) * 2.2, rng.uniform(0, 2 * np.pi, 5)

    def shape(_index: int, point: NDArray[np.float64]) -> Array:
        local = (point - centre) @ turn / axes
        length = np.linalg.norm(local, axis=2)
        bump = np.sin((local / (length[..., None] + 1e-6)) @ waves.T + phases).sum(axis=2) * 0.06
        return _ramp((length - 1.0 - bump) * radius_mm)

    name = f"IPH r {radius_mm:.0f} mm, seed {seed}"
    return painted(head, name, INTRAPARENCHYMAL, shape, float(rng.uniform(60.0, BLOOD_HU[1])))


def extra_axial(head: Head, label: int, thickness_mm: float, reach_mm: float, seed: int) -> Study:
    """A crescent (subdural) or lens (epidural) on the inner table of one side."""
    rng = np.random.default_rng([label, seed, round(10 * thickness_mm)])
    index, side = head.level(float(rng.uniform(0.3, 0.55))), 1.0 if rng.random() < 0.5 else -1.0
    point = points(head.study, index, 0.0)
    away = side * (point[..., 0] - head.middle[index][:, None])
    edge = head.inside[index] & (head.depth[index] < 1.0) & (away > 28.0)
    rows, columns = np.nonzero(edge)
    pick = int(rng.integers(len(rows)))
    centre = point[rows[pick], columns[pick]]
    power = 0.8 if label == EPIDURAL else float(rng.uniform(0.35, 0.6))
    middle, tentorium = np.nanmean(head.middle), head.level(TENTORIUM_LEVEL)

    def shape(index: int, point: NDArray[np.float64]) -> Array:
        reach = np.clip(1.0 - (np.linalg.norm(point - centre, axis=2) / reach_mm) ** 2, 0.0, None)
        profile = thickness_mm * reach**power
        same_side = np.clip((side * (point[..., 0] - middle) - 3.0) / 2.0, 0.0, 1.0) * (index <= tentorium)
        return (_ramp(head.depth[index] - profile) * same_side * (profile > 0.3)).astype(np.float32)

    kind = "EDH" if label == EPIDURAL else "SDH"
    name = f"{kind} {thickness_mm:.0f} mm, seed {seed}"
    return painted(head, name, label, shape, float(rng.uniform(*BLOOD_HU)))


def intraventricular(head: Head, filled: float, seed: int) -> Study:
    """Blood in the ventricles: the lowest ``filled`` share of them by gravity (the patient is supine)."""
    rng = np.random.default_rng([INTRAVENTRICULAR, seed, round(100 * filled)])
    depths = np.concatenate([points(head.study, k, 0.0)[head.ventricles[k]][:, 1] for k in range(len(head.ventricles))])
    level = float(np.quantile(depths, 1.0 - filled))
    planes = _soft(head, head.ventricles)

    def shape(index: int, point: NDArray[np.float64]) -> Array:
        return (planes[index] * np.clip((point[..., 1] - level) / 1.5 + 0.5, 0.0, 1.0)).astype(np.float32)

    name = f"IVH {filled:.0%} filled, seed {seed}"
    return painted(head, name, INTRAVENTRICULAR, shape, float(rng.uniform(58.0, 78.0)))


def subarachnoid(head: Head, reach_mm: float, seed: int) -> Study:
    """Blood in the sulci or cisterns within ``reach_mm`` of a point between brain and bone, mixed with CSF."""
    rng = np.random.default_rng([SUBARACHNOID, seed, round(reach_mm)])
    index = head.level(float(rng.uniform(0.35, 0.7)))
    rows, columns = np.nonzero(head.csf[index] & (head.depth[index] < 40.0))
    pick = int(rng.integers(len(rows)))
    centre = points(head.study, index, 0.0)[rows[pick], columns[pick]]
    planes = _soft(head, head.csf)

    def shape(index: int, point: NDArray[np.float64]) -> Array:
        near = np.clip((reach_mm - np.linalg.norm(point - centre, axis=2)) / 4.0, 0.0, 1.0)
        return (planes[index] * near).astype(np.float32)

    name = f"SAH {reach_mm:.0f} mm, seed {seed}"
    return painted(head, name, SUBARACHNOID, shape, float(rng.uniform(52.0, 66.0)), float(rng.uniform(0.7, 1.0)))


def _soft(head: Head, mask: Mask) -> Array:
    """``mask`` with an edge one pixel wide, a little wider than itself: CSF is seen too narrow beside brain."""
    wide = [blur(plane.astype(np.float32), 0.7, head.study.pixel_spacing) for plane in mask]
    return np.clip(np.stack(wide) * 2.0, 0.0, 1.0).astype(np.float32)


def _ramp(distance_mm: NDArray[np.float64]) -> Array:
    """Share of blood from the distance to the surface, negative inside: half a millimetre of edge."""
    return np.clip(0.5 - distance_mm / 0.5, 0.0, 1.0).astype(np.float32)


def every(head: Head) -> Iterator[Study]:
    """The painted set: sizes, kinds and seeds fixed once (ml-ct 3.2's cases A, B and C among the sizes)."""
    for radius in (5.2, 9.0, 15.2, 21.0):
        for seed in range(3):
            yield intraparenchymal(head, radius, seed)
    for thickness, reach in ((5.0, 50.0), (8.0, 55.0), (12.0, 60.0)):
        for seed in range(3):
            yield extra_axial(head, SUBDURAL, thickness, reach, seed)
    for thickness, reach in ((8.0, 22.0), (14.0, 30.0), (20.0, 38.0)):
        for seed in range(2):
            yield extra_axial(head, EPIDURAL, thickness, reach, seed)
    for seed, filled in enumerate((0.1, 0.3, 0.9)):
        yield intraventricular(head, filled, seed)
    for reach in (22.0, 40.0):
        for seed in range(2):
            yield subarachnoid(head, reach, seed)


def negatives(head: Head) -> Iterator[Study]:
    """The same head without blood, changed as another scan of it would be: noise, calibration, left and right."""
    study = replace(head.study, group="real negative, changed")
    rng = np.random.default_rng(7)
    for sigma in (3.0, 5.0):
        noise = np.stack([blur(rng.normal(size=plane.shape), 0.5, study.pixel_spacing) for plane in study.hu])
        yield replace(study, name=f"noise {sigma:g} HU", hu=study.hu + (sigma / noise.std() * noise).astype(np.float32))
    for shift in (-3.0, 3.0):
        yield replace(study, name=f"shift {shift:+g} HU", hu=np.where(study.hu > -900, study.hu + shift, study.hu))
    yield replace(study, name="mirrored", hu=np.ascontiguousarray(study.hu[:, :, ::-1]))


def truth_or_none(study: Study) -> Labels:
    """The known labels, none where nothing was painted: (slice, row, column)."""
    return np.zeros(study.hu.shape, np.uint8) if study.truth is None else study.truth
