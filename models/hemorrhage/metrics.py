"""Figures of the evaluation, each on plain masks and scores: overlap, distance, volumes, ranking, calibration."""

from __future__ import annotations

from typing import Final

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from models.hemorrhage.cases import Labels, Mask

#: Parts smaller than this are no lesion to be found [mL].
LESION_ML: Final = 0.2
#: Bins of the calibration error.
BINS: Final = 10
#: Draws of the bootstrap.
DRAWS: Final = 1000


def dice(truth: Mask, found: Mask) -> float:
    """Overlap of two masks, 1 where both are empty."""
    both = int(truth.sum()) + int(found.sum())
    return 2.0 * int((truth & found).sum()) / both if both else 1.0


def component_dice(truth: Mask, found: Mask) -> float:
    """Overlap of ``truth`` with those components of ``found`` that touch it."""
    parts = components(found)
    touched = np.unique(parts[truth])
    return dice(truth, np.isin(parts, touched[touched > 0]))


def volume_similarity(truth_ml: float, found_ml: float) -> float:
    """1 - |difference| / sum of two volumes [mL], 1 where both are 0."""
    return 1.0 - abs(truth_ml - found_ml) / (truth_ml + found_ml) if truth_ml + found_ml > 0.0 else 1.0


def components(mask: Mask) -> NDArray[np.int64]:
    """3-D components (slice, row, column), corners count, numbered from 1."""
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    return np.asarray(sitk.GetArrayFromImage(sitk.ConnectedComponent(image, True)), np.int64)


def component_ml(parts: NDArray[np.int64], voxel_ml: NDArray[np.float64]) -> NDArray[np.float64]:
    """Volume of each component [mL], number 0 for what is none; ``voxel_ml`` (slice,)."""
    size = int(parts.max()) + 1
    return np.asarray((np.stack([np.bincount(p.ravel(), minlength=size) for p in parts]) * voxel_ml[:, None]).sum(0))


def hd95_mm(truth: Mask, found: Mask, spacing: tuple[float, float, float]) -> float:
    """95th percentile of surface distances both ways [mm], spacing (slice, row, column); nan if one is empty."""
    if not truth.any() or not found.any():
        return float("nan")
    either = np.argwhere(truth | found)
    low, high = np.maximum(either.min(axis=0) - 1, 0), either.max(axis=0) + 2
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    surfaces, distances = [], []
    for mask in (truth[box], found[box]):
        image = sitk.GetImageFromArray(np.pad(mask, 1).astype(np.uint8))
        image.SetSpacing(tuple(reversed(spacing)))
        surface = sitk.GetArrayFromImage(sitk.BinaryContour(image, True)) > 0
        outline = sitk.GetImageFromArray(surface.astype(np.uint8))
        outline.CopyInformation(image)
        away = sitk.SignedMaurerDistanceMap(outline, squaredDistance=False, useImageSpacing=True)
        surfaces.append(surface)
        distances.append(np.maximum(sitk.GetArrayFromImage(away), 0.0))
    both = np.concatenate([distances[1][surfaces[0]], distances[0][surfaces[1]]])
    return float(np.percentile(both, 95))


def lesions(truth: Labels, found: Labels, voxel_ml: NDArray[np.float64]) -> list[tuple[int, float, int]]:
    """Every lesion of ``truth``: (its class, volume [mL], the class found on most of it, 0 if it was missed)."""
    listed = []
    for label in np.unique(truth[truth > 0]):
        parts = components(truth == label)
        volumes = component_ml(parts, voxel_ml)
        for number in range(1, len(volumes)):
            if volumes[number] < LESION_ML:
                continue
            seen = found[parts == number]
            seen = seen[seen > 0]
            listed.append((int(label), float(volumes[number]), int(np.bincount(seen).argmax()) if len(seen) else 0))
    return listed


def auc(positive: NDArray[np.float64], negative: NDArray[np.float64]) -> float:
    """Chance that a positive scores above a negative, ties half (Mann-Whitney)."""
    if not len(positive) or not len(negative):
        return float("nan")
    above = positive[:, None] > negative[None]
    return float(above.mean() + 0.5 * (positive[:, None] == negative[None]).mean())


def auc_interval(positive: NDArray[np.float64], negative: NDArray[np.float64]) -> tuple[float, float, float]:
    """AUC and its 95 % interval, bootstrapped over positives and negatives apart."""
    rng = np.random.default_rng(1)
    draws = [auc(rng.choice(positive, len(positive)), rng.choice(negative, len(negative))) for _ in range(DRAWS)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return auc(positive, negative), float(low), float(high)


def calibration_error(scores: NDArray[np.float64], outcomes: NDArray[np.bool_]) -> float:
    """Mean distance between score and share of positives over equal bins, weighted by their size (ECE)."""
    bins = np.clip((scores * BINS).astype(int), 0, BINS - 1)
    error = 0.0
    for index in range(BINS):
        here = bins == index
        if here.any():
            error += here.mean() * abs(float(scores[here].mean()) - float(outcomes[here].mean()))
    return float(error)
