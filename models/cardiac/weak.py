"""Learning from volumes alone: the expected volume of a stack is held against the one that was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from models.cardiac import display, grid, localise
from models.cardiac.cases import Volumes
from models.cardiac.precision import precision
from models.cardiac.train import Trainer

#: Weight of the volumes beside the contours: they say much less of each pixel.
WEIGHT: Final = 0.1
#: Differences of volume beyond this share count no more than this: the network may look at the wrong slices [log].
MOST: Final = 0.7
_LV: Final = 3


class VolumeTeacher:
    """Stacks with measured volumes, and the phases of them at which the network sees ED and ES."""

    def __init__(self, pool: Sequence[Volumes]) -> None:
        self.pool = list(pool)
        self._phases: dict[int, tuple[int, int]] = {}

    def teach(self, trainer: Trainer, rng: np.random.Generator, lr: float) -> float:
        """One optimiser step on one stack; returns the loss."""
        number = int(rng.integers(len(self.pool)))
        case = self.pool[number]
        if number not in self._phases:
            self._phases[number] = _ed_and_es(trainer, case)
        parts = []
        for phase, truth in zip(self._phases[number], (case.edv_ml, case.esv_ml), strict=True):
            seen = volume_ml(trainer.net, trainer, case, phase)
            parts.append((torch.log(seen.clamp_min(1.0)) - float(np.log(max(truth, 1.0)))).abs().clamp_max(MOST))
        loss = WEIGHT * torch.stack(parts).mean()
        for group in trainer.optimiser.param_groups:
            group["lr"] = lr
        trainer.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trainer.net.parameters(), 2.0)
        trainer.optimiser.step()
        return float(loss.detach())


def volume_ml(net: torch.nn.Module, trainer: Trainer, case: Volumes, phase: int) -> Tensor:
    """Expected volume of the left cavity at a phase [mL]: probability times area times width."""
    member = trainer.member
    images = case.images[phase]
    axes = grid.axes_of(images.shape[1:], case.spacing, localise.centre(case.images, case.spacing))
    places = grid.Grid(pixels=member.pixels, pixel_mm=member.pixel_mm).places
    cut = grid.resample(torch.from_numpy(images), *(grid.weights(places, axis) for axis in axes))
    x = torch.from_numpy(display.normalise(cut.numpy()))[:, None].to(trainer.device)
    with precision(trainer.device):
        logits = net(x)
    area = logits.pixels.float().softmax(1)[:, _LV].sum((1, 2)) * member.pixel_mm**2
    width = torch.from_numpy(case.width_mm).float().to(area.device)
    return (area * width).sum() / 1000.0


@torch.no_grad()
def _ed_and_es(trainer: Trainer, case: Volumes) -> tuple[int, int]:
    curve = [float(volume_ml(trainer.average, trainer, case, phase)) for phase in range(len(case.images))]
    return int(np.argmax(curve)), int(np.argmin(curve))
