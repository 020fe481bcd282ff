"""Losses of the slice network (ml-ct 1.3)."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from models.hemorrhage.data import Batch
from models.hemorrhage.net import CLASS_LOGITS, Findings
from models.hemorrhage.scene import UNCLEAR

#: Weights of the terms; those of cavity and slices are ml-ct 1.3's.
DICE: Final = 0.6
CAVITY: Final = 0.3
SIDE: Final = 0.15
SLICE: Final = 0.2
#: A class of this area in a slice [pixel] weighs 1, a smaller one more (1 / sqrt(volume), ml-ct 1.3), up to ``MOST``.
UNIT_AREA: Final = 150.0
MOST: Final = 4.0


def _pixel_weight(labels: Tensor) -> Tensor:
    weight = torch.ones(labels.shape, device=labels.device)
    for value in range(1, CLASS_LOGITS):
        mine = labels == value
        area = mine.sum((1, 2), keepdim=True).float().clamp(min=1.0)
        weight = torch.where(mine, (UNIT_AREA / area).sqrt().clamp(1.0, MOST), weight)
    return weight * (labels != UNCLEAR)


def dice(probability: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """1 - soft Dice over the whole batch, smoothed so that an empty class costs little; all (slice, row, column)."""
    p, t = probability * valid, truth * valid
    return 1.0 - (2.0 * (p * t).sum() + 30.0) / (p.sum() + t.sum() + 30.0)


def terms(findings: Findings, batch: Batch) -> dict[str, Tensor]:
    """The parts of the loss, weighted."""
    pixels, labels = findings.pixels.float(), batch.labels.long()
    valid = labels != UNCLEAR
    clear = torch.where(valid, labels, 0)
    weight = _pixel_weight(labels)
    entropy = functional.cross_entropy(pixels[:, :CLASS_LOGITS], clear, reduction="none")
    probability = pixels[:, :CLASS_LOGITS].softmax(1)
    regions = [dice(1.0 - probability[:, 0], (clear > 0).float(), valid.float())]
    present = [value for value in range(1, CLASS_LOGITS) if bool((clear == value).any())]
    regions += [dice(probability[:, v], (clear == v).float(), valid.float()) for v in present]
    masks = batch.masks.float()
    inside = masks[:, 0]
    side = functional.binary_cross_entropy_with_logits(pixels[:, CLASS_LOGITS + 2], masks[:, 2], reduction="none")
    return {
        "pixel": 8.0 * (entropy * weight).mean(),
        "dice": DICE * torch.stack(regions).mean(),
        "cavity": CAVITY * functional.binary_cross_entropy_with_logits(pixels[:, CLASS_LOGITS], inside),
        "ventricle": CAVITY
        * 3.0
        * functional.binary_cross_entropy_with_logits(pixels[:, CLASS_LOGITS + 1], masks[:, 1]),
        "side": SIDE * (side * inside).sum() / inside.sum().clamp(min=1.0),
        "slice": SLICE * functional.binary_cross_entropy_with_logits(findings.slices.float(), batch.findings),
    }
