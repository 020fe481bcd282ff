"""From probabilities to lesions on the work grid: hysteresis, components, vertex rule, classes (ml-ct 1.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from models.hemorrhage.inputs import BONE_HU, WORK_MM
from models.hemorrhage.lesion import Fields, features

CLASSES: Final = ("epidural", "subdural", "subarachnoid", "intraparenchymal", "intraventricular")
INTRAVENTRICULAR: Final = CLASSES.index("intraventricular")
#: Share of the places across the midline that must be soft tissue, for the two sides to be compared.
LEAST_ACROSS: Final = 0.1

#: Features of a lesion to the logarithms of its class probabilities (class,).
Classify = Callable[[NDArray[np.float32]], NDArray[np.float32]]


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


def _asymmetry(values: NDArray[np.float32], across: NDArray[np.float32]) -> float:
    """How much brighter a lesion is than the soft tissue across the midline [HU]; 0 where there is only bone.

    A head that lies askew has bone across from blood: compared with that, no bleed would ever be the brighter side.
    """
    soft = across[across < BONE_HU]
    return float(np.median(values) - np.median(soft)) if len(soft) >= LEAST_ACROSS * len(across) else 0.0


def _each(mask: NDArray[np.bool_]) -> Iterator[NDArray[np.int64]]:
    """Flat indices of the voxels of every component."""
    parts, count = components(mask)
    order = np.argsort(parts, axis=None, kind="stable")
    bounds = np.searchsorted(parts.ravel()[order], np.arange(1, count + 2))
    for number in range(count):
        yield order[bounds[number] : bounds[number + 1]]


def _parts(
    at: NDArray[np.int64], ml: NDArray[np.float64], fields: Fields, rules: Mapping[str, Any]
) -> list[NDArray[np.int64]]:
    """A lesion, or its part in the ventricles and the rest where both are large enough.

    An intraparenchymal clot that broke into a ventricle is two lesions.
    """
    wet = fields.ventricle.ravel()[at] > rules["ventricle_probability"]
    total, inner = float(ml.sum()), float(ml[wet].sum())
    least = max(rules["part_ml"], rules["part_share"] * total)
    return [at[wet], at[~wet]] if min(inner, total - inner) >= least else [at]


def _class_of(
    at: NDArray[np.int64],
    probability: NDArray[np.float32],
    fields: Fields,
    rules: Mapping[str, Any],
    classify: Classify | None,
) -> int:
    """Index of a lesion's class: the mean of the pixels' opinions, and its shape's.

    Blood away from every ventricle is not intraventricular.
    """
    score = np.log(probability[:, at].mean(1) + 1e-3)
    if classify is not None:
        score = score + rules["shape_weight"] * classify(features(at, fields))
    wet = float((fields.ventricle.ravel()[at] > rules["ventricle_probability"]).mean())
    if wet < rules["ventricle_overlap"]:
        score[INTRAVENTRICULAR] = -np.inf
    return int(score.argmax())


def lesions(
    probability: NDArray[np.float32],
    fields: Fields,
    rules: Mapping[str, Any],
    classify: Classify | None = None,
) -> NDArray[np.uint8]:
    """Labels 0..5 (slice, row, column) of the lesions that pass every rule.

    Parameters
    ----------
    probability
        (class, slice, row, column) of the five classes, after the cavity gate.
    rules
        ``postprocessing`` of a manifest.
    classify
        The lesion network; without it the pixels' classes decide alone.
    """
    blood = probability.sum(0)
    labels = np.zeros(blood.shape, np.uint8)
    voxel_ml = np.broadcast_to((fields.thickness_mm * WORK_MM**2 / 1000.0)[:, None, None], blood.shape).ravel()
    hu, near, beside = fields.hu.ravel(), fields.near.ravel(), _beside_bone(fields.hu).ravel()
    mirrored = np.roll(fields.hu, -1, -1)[..., ::-1].ravel()
    flat, by_class = blood.ravel(), probability.reshape(len(CLASSES), -1)
    minimum = [rules["minimum_ml"][name] for name in CLASSES]
    for at in _each(blood > rules["grow_probability"]):
        peak, ml = float(flat[at].max()), voxel_ml[at]
        if peak < rules["seed_probability"] or ml.sum() < rules["certain_minimum_ml"]:
            continue
        slanted = float(beside[at].mean()) > rules["vertex_bone_share"]
        if slanted and _asymmetry(hu[at], mirrored[at]) < rules["vertex_asymmetry_hu"]:
            continue
        if float(np.quantile(near[at], 0.95)) < rules["rim_mm"]:
            continue
        parts = _parts(at, ml, fields, rules)
        named = [(part, _class_of(part, by_class, fields, rules, classify)) for part in parts]
        if peak <= rules["certain_probability"] and ml.sum() < min(minimum[k] for _, k in named):
            continue
        for part, k in named:
            labels.ravel()[part] = k + 1
    return labels
