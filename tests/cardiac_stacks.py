"""Simulated hearts as a network that is always right would see them, and as the node hands them to a pipeline."""

from __future__ import annotations

import numpy as np
import torch

from dicomnode import pipeline as dn
from models.cardiac import grid, segment, simulate


def stack(seed: int = 3) -> simulate.Stack:
    """A small study with few, far planes."""
    return simulate.simulate_stack(simulate.TEST_SEED + seed, phases=8, pixels=80, pixel_mm=2.2, step_mm=14.0)


def seen_of(made: simulate.Stack) -> segment.Seen:
    """What a network would say that is always right."""
    pixels, work = made.labels.shape[-1], segment.WORK
    centre = ((pixels - 1) / 2, (pixels - 1) / 2)
    axis = (np.arange(pixels) - centre[0]) * made.pixel_mm
    through = grid.weights(work.places, axis)
    hot = torch.nn.functional.one_hot(torch.from_numpy(made.labels.astype(np.int64)), 4).movedim(-1, 2).float()
    mean = grid.resample(hot, through, through)
    mean[:, :, 0] = 1.0 - mean[:, :, 1:].sum(2)
    return segment.Seen(
        centre=centre,
        shape=(pixels, pixels),
        spacing=(made.pixel_mm, made.pixel_mm),
        mean=mean.numpy(),
        views=mean.argmax(2).numpy().astype(np.uint8)[None],
        positions=np.zeros((*made.labels.shape[:2], 5), np.float32),
    )


def series(made: simulate.Stack, **changes: object) -> dn.CineSeries:
    """The study as a cine."""
    phases, slices = made.images.shape[:2]
    given = {
        "array": np.ascontiguousarray(made.images),
        "padding": np.zeros(made.images.shape, bool),
        "units": dn.Code("1", "UCUM", "no units"),
        "positions": np.arange(slices)[:, None] * [0.0, 0.0, -made.step_mm],
        "orientation": np.array([1.0, 0, 0, 0, 1, 0]),
        "pixel_spacing": (made.pixel_mm, made.pixel_mm),
        "geometry": dn.Geometry.REGULAR,
        "trigger_times": np.arange(phases)[:, None] * np.full(slices, 40.0),
        "intervals": np.full(slices, 40.0 * phases),
        "acquisition": {"Modality": "MR", "PatientSize": 1.8, "PatientWeight": 80.0},
    }
    return dn.CineSeries(**(given | changes))  # type: ignore[arg-type]
