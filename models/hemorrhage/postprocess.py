"""From probabilities to lesions on the work grid: hysteresis, components, vertex rule, classes (ml-ct 1.3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from models.hemorrhage.inputs import BONE_HU, WORK_MM

CLASSES: Final = ("epidural", "subdural", "subarachnoid", "intraparenchymal", "intraventricular")
INTRAVENTRICULAR: Final = CLASSES.index("intraventricular")


def components(mask: NDArray[np.bool_]) -> tuple[NDArray[np.uint32], int]:
    """Components of a (slice, row, column) mask, connected by corners within and between slices; and their number."""
    labelled = sitk.ConnectedComponent(sitk.GetImageFromArray(mask.astype(np.uint8)), True)
    array = sitk.GetArrayFromImage(labelled)
    return array, int(array.max()) if array.size else 0


def _beside_bone(hu: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Voxels with bone at the same place in the slice above or below: a slanted calvarium."""
    bone = hu > BONE_HU
    beside = np.zeros_like(bone)
    beside[1:] |= bone[:-1]
    beside[:-1] |= bone[1:]
    return beside


def _split(share: NDArray[np.float32], ml: NDArray[np.float64], part_share: float) -> NDArray[np.uint8]:
    """Class of each voxel of one lesion: its own where that class has enough of it, else the lesion's first.

    ``share`` (class, voxel) are class probabilities, ``ml`` (voxel,) volumes.
    """
    own = share.argmax(0)
    weight = np.array([ml[own == k].sum() for k in range(len(CLASSES))])
    first = int((share * ml).sum(1).argmax())
    keep = weight >= part_share * weight.sum()
    keep[first] = True
    labels: NDArray[np.uint8] = np.where(keep[own], own, first).astype(np.uint8)
    return labels


def lesions(
    probability: NDArray[np.float32],
    ventricle: NDArray[np.float32],
    hu: NDArray[np.float32],
    thickness_mm: NDArray[np.float64],
    rules: Mapping[str, Any],
) -> NDArray[np.uint8]:
    """Labels 0..5 (slice, row, column) of the lesions that pass every rule.

    Parameters
    ----------
    probability
        (class, slice, row, column) of the five classes, after the cavity gate.
    ventricle
        Probability of ventricle.
    thickness_mm
        What each slice stands for along the normal.
    rules
        ``postprocessing`` of a manifest.
    """
    blood = probability.sum(0)
    labels = np.zeros(blood.shape, np.uint8)
    lesion, count = components(blood > rules["grow_probability"])
    if not count:
        return labels
    voxel_ml = np.broadcast_to((thickness_mm * WORK_MM**2 / 1000.0)[:, None, None], blood.shape)
    beside, mirrored = _beside_bone(hu), np.roll(hu, -1, -1)[..., ::-1]
    order = np.argsort(lesion, axis=None, kind="stable")
    bounds = np.searchsorted(lesion.ravel()[order], np.arange(1, count + 2))
    minimum = [rules["minimum_ml"][name] for name in CLASSES]
    for number in range(count):
        at = order[bounds[number] : bounds[number + 1]]
        peak = float(blood.flat[at].max())
        if peak < rules["seed_probability"]:
            continue
        ml = voxel_ml.flat[at]
        own = _split(probability.reshape(len(CLASSES), -1)[:, at], ml, rules["part_share"])
        own = _ventricular(own, probability.reshape(len(CLASSES), -1)[:, at], ventricle.flat[at], rules)
        needed = min(minimum[k] for k in np.unique(own))
        certain = peak > rules["certain_probability"] and ml.sum() >= rules["certain_minimum_ml"]
        if ml.sum() < needed and not certain:
            continue
        if float(beside.flat[at].mean()) > rules["vertex_bone_share"]:
            difference = float(np.median(hu.flat[at]) - np.median(mirrored.flat[at]))
            if difference < rules["vertex_asymmetry_hu"]:
                continue
        labels.flat[at] = own + 1
    return labels


def _ventricular(
    own: NDArray[np.uint8], share: NDArray[np.float32], ventricle: NDArray[np.float32], rules: Mapping[str, Any]
) -> NDArray[np.uint8]:
    """Blood called intraventricular that touches no ventricle takes its next likely class."""
    mine = own == INTRAVENTRICULAR
    if not mine.any() or (ventricle[mine] > rules["ventricle_probability"]).mean() >= rules["ventricle_overlap"]:
        return own
    second = share.copy()
    second[INTRAVENTRICULAR] = 0.0
    return np.where(mine, second.sum(1).argmax(), own).astype(np.uint8)
