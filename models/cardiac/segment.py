"""What the networks say of every slice at every phase, on one grid around the heart and on the image's own pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.cardiac import bundle, cycle, display, grid, localise, shapes
from models.cardiac.net import CLASSES, Logits
from models.cardiac.precision import precision

#: The grid on which views are averaged.
WORK: Final = grid.Grid(pixels=112, pixel_mm=1.5)
#: Slices that go through a network at once.
BATCH: Final = 16
#: Phases, spread over the cycle, in which the cavity is sought before anything is segmented.
SOUGHT_PHASES: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One stack seen by all views."""

    #: Middle of the grids (row, column) [pixels], and the image's rows and columns and their (row, column) step [mm].
    centre: tuple[float, float]
    shape: tuple[int, int]
    spacing: tuple[float, float]
    #: (phase, slice, class, row, column) mean probability on ``WORK``.
    mean: NDArray[np.float32]
    #: (view, phase, slice, row, column) labels of each view alone on ``WORK``.
    views: NDArray[np.uint8]
    #: (phase, slice, position) mean probability of above, basal, mid, apical, below.
    positions: NDArray[np.float32]

    def native(self, phase: int) -> tuple[Tensor, tuple[int, int]]:
        """(slice, class, row, column) probabilities on the image's pixels around the heart, and the first of these."""
        cuts, through = [], []
        for axis, n in zip(grid.axes_of(self.shape, self.spacing, self.centre), self.shape, strict=True):
            inside = np.flatnonzero(np.abs(axis) <= WORK.places[-1])
            first, last = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, n)
            cuts.append(first)
            through.append(grid.weights(axis[first:last], WORK.places))
        p = grid.resample(torch.from_numpy(self.mean[phase]), *through)
        p[:, 0] = 1.0 - p[:, 1:].sum(1)
        return p, (cuts[0], cuts[1])

    def whole(self, labels: shapes.Labels, corner: tuple[int, int]) -> shapes.Labels:
        """(slice, row, column) labels of a part of the image, on the whole image."""
        out = np.zeros((len(labels), *self.shape), np.uint8)
        rows, columns = labels.shape[1:]
        out[:, corner[0] : corner[0] + rows, corner[1] : corner[1] + columns] = labels
        return out


class Segmenter:
    """The views of a package on a device."""

    def __init__(self, views: tuple[bundle.View, ...], device: torch.device) -> None:
        self.views, self.device = views, device

    @torch.inference_mode()
    def look(self, images: NDArray[np.float32], spacing: tuple[float, float]) -> Seen:
        """See (phase, slice, row, column) images with (row, column) ``spacing`` [mm]."""
        phases, slices, rows, columns = images.shape
        centre = self._middle(images, spacing, localise.centre(images, spacing))
        axes = grid.axes_of((rows, columns), spacing, centre)
        flat = torch.from_numpy(images.reshape(-1, rows, columns))
        mean = torch.zeros(len(flat), CLASSES, WORK.pixels, WORK.pixels)
        positions, alone = torch.zeros(len(flat), 5), []
        for view, share in zip(self.views, self._shares(), strict=True):
            back = grid.weights(WORK.places, _grid(view).places)
            called = np.empty((len(flat), WORK.pixels, WORK.pixels), np.uint8)
            for k in range(0, len(flat), BATCH):
                logits = self._seen(view, flat[k : k + BATCH], axes)
                p = grid.resample(logits.pixels.float().softmax(1).cpu(), back, back)
                p[:, 0] = 1.0 - p[:, 1:].sum(1)
                mean[k : k + BATCH] += p * share
                positions[k : k + BATCH] += logits.positions.float().softmax(1).cpu() / len(self.views)
                called[k : k + BATCH] = p.argmax(1).numpy()
            alone.append(called.reshape(phases, slices, WORK.pixels, WORK.pixels))
        mean[:, 0] = 1.0 - mean[:, 1:].sum(1)  # also where no view reaches
        return Seen(
            centre=centre,
            shape=(rows, columns),
            spacing=spacing,
            mean=mean.view(phases, slices, CLASSES, WORK.pixels, WORK.pixels).numpy(),
            views=np.stack(alone),
            positions=positions.view(phases, slices, 5).numpy(),
        )

    def _seen(self, view: bundle.View, images: Tensor, axes: list[NDArray[np.float64]]) -> Logits:
        """What a view says of (slice, row, column) images whose pixels are at ``axes`` [mm]."""
        there = [grid.weights(_grid(view).places, axis) for axis in axes]
        cut = display.normalise(grid.resample(images, there[0], there[1]).numpy())
        x = torch.from_numpy(cut)[:, None].to(self.device).contiguous(memory_format=torch.channels_last)
        with precision(self.device):
            return view.net(x)

    def _middle(
        self, images: NDArray[np.float32], spacing: tuple[float, float], first: tuple[float, float]
    ) -> tuple[float, float]:
        """Middle (row, column) [pixels] of the left cavity in the widest view; ``first`` if it sees none.

        What moves most may be the right ventricle's wall, 4 cm beside the cavity that is to be measured.
        """
        view = max(self.views, key=lambda one: one.pixels * one.pixel_mm)
        places = torch.from_numpy(_grid(view).places).float()
        axes = grid.axes_of((images.shape[2], images.shape[3]), spacing, first)
        chosen = images[np.linspace(0, len(images), SOUGHT_PHASES, endpoint=False).astype(int)]
        flat = torch.from_numpy(chosen.reshape(-1, *images.shape[2:]))
        cavity = torch.zeros(view.pixels, view.pixels)
        for k in range(0, len(flat), BATCH):
            called = self._seen(view, flat[k : k + BATCH], axes).pixels.argmax(1).cpu()
            cavity += (called == shapes.LV).sum(0)
        total = float(cavity.sum())
        if total * view.pixel_mm**2 < cycle.LEAST_AREA * len(chosen):
            return first
        down, across = float(cavity.sum(1) @ places) / total, float(cavity.sum(0) @ places) / total
        return first[0] + down / spacing[0], first[1] + across / spacing[1]

    def _shares(self) -> list[Tensor]:
        """(row, column) on ``WORK`` of each view: its share in the mean of those that reach there."""
        ones = []
        for view in self.views:
            inside = grid.weights(WORK.places, _grid(view).places).sum(1)
            ones.append(inside[:, None] * inside[None, :])
        return [one / torch.stack(ones).sum(0).clamp_min(1.0) for one in ones]


def _grid(view: bundle.View) -> grid.Grid:
    return grid.Grid(pixels=view.pixels, pixel_mm=view.pixel_mm)


def load(folder: Path, device: torch.device) -> tuple[bundle.Package, Segmenter]:
    """The package in ``folder``, ready to segment on ``device``."""
    package, views = bundle.load(folder, device)
    return package, Segmenter(views, device)
