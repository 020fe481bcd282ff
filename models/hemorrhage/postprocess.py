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
#: Classes (as ``CLASSES``) that one piece of blood may be taken apart into. Epidural and subdural blood are one: the
#: pixels of a crescent often disagree on them, and its shape as a whole decides.
APART: Final = np.array([0, 0, 1, 2, 3])
#: Share of the places across the midline that must be soft tissue, for the two sides to be compared.
LEAST_ACROSS: Final = 0.1
#: Brain farther from bone than this is not brightened by it [mm].
DEEP_MM: Final = 10.0

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


def _stands_out(at: NDArray[np.int64], fields: Fields, rules: Mapping[str, Any]) -> bool:
    """Whether a lesion beside slanted bone is brighter than the soft tissue across the midline.

    A head that lies askew has bone across from blood: compared with that, no bleed would ever be the brighter side.
    Where there is next to nothing else across, the brain of the same slices has to do, at a distance from bone; and by
    more, because the rim of a healthy brain is brighter than its middle too.
    """
    median = float(np.median(fields.hu.ravel()[at]))
    across = np.roll(fields.hu, -1, -1)[..., ::-1].ravel()[at]
    soft = across[across < BONE_HU]
    if len(soft) >= LEAST_ACROSS * len(across):
        return median - float(np.median(soft)) >= rules["vertex_asymmetry_hu"]
    planes = np.unique(at // fields.hu[0].size)
    deep = fields.hu[planes][fields.near[planes] > DEEP_MM]
    return len(deep) > 0 and median - float(np.median(deep)) >= rules["vertex_brain_hu"]


def _each(mask: NDArray[np.bool_]) -> Iterator[NDArray[np.int64]]:
    """Flat indices of the voxels of every component."""
    parts, count = components(mask)
    order = np.argsort(parts, axis=None, kind="stable")
    bounds = np.searchsorted(parts.ravel()[order], np.arange(1, count + 2))
    for number in range(count):
        yield order[bounds[number] : bounds[number + 1]]


def _parts(
    at: NDArray[np.int64],
    ml: NDArray[np.float64],
    probability: NDArray[np.float32],
    fields: Fields,
    rules: Mapping[str, Any],
) -> list[NDArray[np.int64]]:
    """The lesions that one piece of blood ``at`` consists of: where each is large enough.

    An intraparenchymal clot that broke into a ventricle is two lesions, and so is one with blood in the sulci above it.
    """
    wet = fields.ventricle.ravel()[at] > rules["ventricle_probability"]
    total, inner = float(ml.sum()), float(ml[wet].sum())
    least = max(rules["part_ml"], rules["part_share"] * total)
    halves = [wet, ~wet] if min(inner, total - inner) >= least else [np.ones(len(at), bool)]
    parts, called = [], APART[probability[:, at].argmax(0)]
    for half in halves:
        opinion = np.where(half, called, -1)
        sizes = [float(ml[opinion == k].sum()) for k in range(int(APART.max()) + 1)]
        large = [k for k, size in enumerate(sizes) if size >= max(rules["opinion_ml"], rules["opinion_share"] * total)]
        if len(large) < 2:
            parts.append(at[half])
            continue
        largest = max(large, key=lambda k: sizes[k])
        opinion[half & ~np.isin(opinion, large)] = largest
        parts += [at[opinion == k] for k in large]
    return parts


def _class_of(
    at: NDArray[np.int64],
    probability: NDArray[np.float32],
    fields: Fields,
    rules: Mapping[str, Any],
    classify: Classify | None,
    wet_share: float,
) -> int:
    """Index of a lesion's class: the mean of the pixels' opinions, and its shape's.

    Blood away from every ventricle is not intraventricular: ``wet_share`` of the whole piece lies in one.
    """
    score = np.log(probability[:, at].mean(1) + 1e-3)
    if classify is not None:
        score = score + rules["shape_weight"] * classify(features(at, fields))
    if wet_share < rules["ventricle_overlap"]:
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
    near, beside = fields.near.ravel(), _beside_bone(fields.hu).ravel()
    flat, by_class = blood.ravel(), probability.reshape(len(CLASSES), -1)
    minimum = [rules["minimum_ml"][name] for name in CLASSES]
    for at in _each(blood > rules["grow_probability"]):
        peak, ml = float(flat[at].max()), voxel_ml[at]
        if peak < rules["seed_probability"] or ml.sum() < rules["certain_minimum_ml"]:
            continue
        slanted = float(beside[at].mean()) > rules["vertex_bone_share"]
        if slanted and not _stands_out(at, fields, rules):
            continue
        if float(np.quantile(near[at], 0.95)) < rules["rim_mm"]:
            continue
        parts = _parts(at, ml, by_class, fields, rules)
        wet = float((fields.ventricle.ravel()[at] > rules["ventricle_probability"]).mean())
        named = [(part, _class_of(part, by_class, fields, rules, classify, wet)) for part in parts]
        if peak <= rules["certain_probability"] and ml.sum() < min(minimum[k] for _, k in named):
            continue
        for part, k in named:
            labels.ravel()[part] = k + 1
    for name, least in rules["wide_probability"].items():
        _widen(labels, probability[CLASSES.index(name)] > least, CLASSES.index(name) + 1)
    return labels


def _widen(labels: NDArray[np.uint8], likely: NDArray[np.bool_], value: int) -> None:
    """Let the lesions ``value`` go on where their class is likely and nothing else lies; changes ``labels``.

    Thin blood is mixed with fluid: only its core is ever sure.
    """
    own = labels == value
    if not own.any():
        return
    parts, _ = components(own | (likely & (labels == 0)))
    touched = np.zeros(int(parts.max()) + 1, bool)
    touched[parts[own]] = True
    labels[touched[parts]] = value
