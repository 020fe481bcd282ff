"""Batches of simulated slices: half of them or more without blood, classes balanced, hard negatives first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.hemorrhage import inputs
from models.hemorrhage.net import CLASS_LOGITS, FINDINGS
from models.hemorrhage.scene import UNCLEAR
from models.hemorrhage.simulate import CAVITY, LEFT, VENTRICLE, Case, fetch

#: A slice shows a class from this many pixels on (10 mm^2).
SEEN_PIXELS: Final = 6
#: Share of a batch's slices that bleed.
POSITIVE_SHARE: Final = 0.5
#: Share of the slices whose rim along the skull is made brighter.
RIM_SHARE: Final = 0.6
#: A negative slice's weight in sampling: before its first visit, and the least and the most after it.
FRESH: Final = 1.0
LEAST: Final = 0.15
MOST: Final = 6.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Slices for one step."""

    #: (slice, channel, row, column).
    channels: Tensor
    #: (slice, row, column): 0..5, 255 unclear.
    labels: Tensor
    #: (slice, 3, row, column): cavity, ventricle, left.
    masks: Tensor
    #: (slice, 6) 0 or 1: any and the five classes.
    findings: Tensor
    #: Index of each slice in the pool.
    index: NDArray[np.int64]


class Pool:
    """All slices of some cases, and how often each should be drawn."""

    def __init__(self, files: list[Path]) -> None:
        self.cases = [fetch(file) for file in files]
        places, seen = [], []
        for number, case in enumerate(self.cases):
            head = (case.depth.reshape(len(case.hu), -1) < 255).any(1)
            for k in np.flatnonzero(head):
                counts = np.bincount(np.asarray(case.labels[k]).ravel(), minlength=256)
                places.append((number, int(k)))
                seen.append(counts[1:CLASS_LOGITS] >= SEEN_PIXELS)
        self.places = np.array(places)
        #: (slice, 5): which classes a slice shows.
        self.seen = np.array(seen)
        self.by_class = [np.flatnonzero(self.seen[:, k]) for k in range(CLASS_LOGITS - 1)]
        self.negatives = np.flatnonzero(~self.seen.any(1))
        self.weight = np.full(len(self.places), FRESH, np.float32)

    def draw(self, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        """Slices for a batch: bleeding ones balanced over the classes, the others by weight."""
        bleeding = round(count * POSITIVE_SHARE)
        have = [k for k, places in enumerate(self.by_class) if len(places)]
        chosen = [int(rng.choice(self.by_class[k])) for k in rng.choice(have, bleeding)] if have else []
        share = self.weight[self.negatives] / self.weight[self.negatives].sum()
        chosen += [int(k) for k in rng.choice(self.negatives, count - len(chosen), p=share)]
        return np.array(chosen)

    def weigh(self, index: NDArray[np.int64], wrong: NDArray[np.float32]) -> None:
        """Remember how many pixels of each drawn slice were wrongly called blood."""
        self.weight[index] = np.clip(LEAST + wrong / 10.0, LEAST, MOST)


def neighbours(case: Case, k: int) -> tuple[NDArray[np.float32], float]:
    """Slice ``k`` between its neighbours (3, row, column) [HU] and their mean distance [mm]."""
    above, below = max(0, k - 1), min(len(case.hu) - 1, k + 1)
    gap = float(case.height[below] - case.height[above]) / max(1, below - above)
    return np.stack([case.hu[above], case.hu[k], case.hu[below]]).astype(np.float32), gap


def rim(depth: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.float32]:
    """Brightness along the inner table that is no blood [HU]: (slice, row, column), ``depth`` as ``inputs.depth_of``.

    Beam hardening, veiling and thick slices through slanted bone make the brain brighter towards the skull, by other
    amounts on other sides. The real negative head, 2-3 mm below bone, is 14 HU brighter than its
    depth of 12-16 mm, 26 simulated scans without blood 9 HU; its sides differ one and a half times as much.
    """
    mm = depth.astype(np.float32) / 4.0
    rows, columns = np.mgrid[: depth.shape[1], : depth.shape[2]].astype(np.float32)
    angle = np.arctan2(rows - depth.shape[1] / 2, columns - depth.shape[2] / 2)
    share = np.ones_like(angle)
    for turns in (1, 2, 5):
        share += rng.uniform(0.0, 0.8) * np.cos(turns * (angle - rng.uniform(-np.pi, np.pi)))
    reach = rng.uniform(1.0, 4.0)
    all_round = rng.uniform(0.0, 28.0) * np.clip(share, 0.0, 2.5) * np.exp(-np.maximum(mm - 1.5, 0.0) / reach)
    apart = np.angle(np.exp(1j * (angle - rng.uniform(-np.pi, np.pi))))
    spot = np.exp(-0.5 * (apart / rng.uniform(0.1, 0.5)) ** 2) * np.exp(
        -np.maximum(mm - 1.0, 0.0) / rng.uniform(0.8, 3.0)
    )
    by_slice = rng.uniform(0.3, 1.0, (len(depth), 1, 1))
    return (all_round + (rng.random() < 0.5) * rng.uniform(0.0, 45.0) * by_slice * spot).astype(np.float32)


def _altered(
    hu: NDArray[np.float32], depth: NDArray[np.uint8], inside: NDArray[np.bool_], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Calibration drift, contrast, a bright rim and extra noise that the cached scan did not have."""
    if rng.random() < RIM_SHARE:
        hu = hu + np.where(inside, rim(depth, rng), np.float32(0.0))
    hu = (hu - 35.0) * np.float32(rng.uniform(0.95, 1.05)) + np.float32(35.0 + rng.normal(0.0, 1.5))
    if rng.random() < 0.3:
        hu = hu + np.float32(rng.uniform(0.5, 3.0)) * rng.standard_normal(hu.shape, dtype=np.float32)
    if rng.random() < 0.05:
        hu[[0, 2]] = hu[1]
    return hu


def _numbers(values: list, device: torch.device | None) -> Tensor:  # type: ignore[type-arg]
    return torch.tensor(values, dtype=torch.float32, device=device)


def batch_of(
    pool: Pool, index: NDArray[np.int64], rng: np.random.Generator | None, device: torch.device | None = None
) -> Batch:
    """Read the slices ``index``; altered and mirrored at random if ``rng`` is given."""
    parts: dict[str, list[Tensor]] = {name: [] for name in ("hu", "depth", "labels", "masks")}
    height, gap, findings = [], [], []
    for place in index:
        case, k = pool.cases[pool.places[place, 0]], int(pool.places[place, 1])
        hu, distance = neighbours(case, k)
        bits = np.asarray(case.masks[k])
        masks = np.stack([(bits & bit) > 0 for bit in (CAVITY, VENTRICLE, LEFT)])
        fields = {"hu": hu, "depth": np.array(case.depth[k]), "labels": np.array(case.labels[k]), "masks": masks}
        if rng is not None:
            around = [max(0, k - 1), k, min(len(case.hu) - 1, k + 1)]
            inside = (np.asarray(case.masks[around]) & CAVITY) > 0
            fields["hu"] = _altered(hu, np.asarray(case.depth[around]), inside, rng)
            if rng.random() < 0.5:
                fields = {name: np.roll(field, -1, -1)[..., ::-1].copy() for name, field in fields.items()}
                fields["masks"][2] = fields["masks"][0] & ~fields["masks"][2]
        for name, field in fields.items():
            parts[name].append(torch.from_numpy(field))
        height.append(float(case.height[k]))
        gap.append(distance)
        shown = pool.seen[place]
        findings.append([bool(shown.any()), *shown.tolist()])
    stacked = {name: torch.stack(fields).to(device) for name, fields in parts.items()}
    return Batch(
        channels=inputs.channels(stacked["hu"], stacked["depth"], _numbers(height, device), _numbers(gap, device)),
        labels=stacked["labels"],
        masks=stacked["masks"],
        findings=_numbers(findings, device).view(-1, FINDINGS),
        index=index,
    )


def false_pixels(pixels: Tensor, labels: Tensor) -> NDArray[np.float32]:
    """How many pixels of each slice are called blood and are not (slice,)."""
    called = pixels[:, :CLASS_LOGITS].argmax(1) > 0
    wrong = called & (labels == 0) & (labels != UNCLEAR)
    return wrong.sum((1, 2)).float().cpu().numpy()
