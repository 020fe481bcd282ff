"""Stacks that are no short axis of a beating heart: what must be refused."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.cardiac import acquire
from models.cardiac.scene import draw_scene, paint
from models.cardiac.simulate import TEST_SEED, simulate_stack

KINDS: Final = ("empty", "noise", "phantom", "pulsating_phantom", "still_heart", "beside_the_heart")
#: Size of the stacks: phases, slices, pixels, and their edge [mm].
PHASES: Final = 10
SLICES: Final = 9
PIXELS: Final = 112
PIXEL_MM: Final = 2.0


def draw(kind: str, seed: int) -> NDArray[np.float32]:
    """(phase, slice, row, column) of one of ``KINDS``, of pixels of ``PIXEL_MM``."""
    rng = np.random.default_rng([TEST_SEED, KINDS.index(kind), seed])
    shape = (PHASES, SLICES, PIXELS, PIXELS)
    if kind == "empty":
        return np.zeros(shape, np.float32)
    if kind == "noise":
        return np.asarray(np.abs(rng.normal(0.0, 50.0, shape)), np.float32)
    if kind == "still_heart":
        stack = simulate_stack(TEST_SEED + 1000 + seed, phases=1, pixels=PIXELS, pixel_mm=PIXEL_MM)
        still = np.repeat(stack.images, PHASES, 0)
        return np.asarray(still + rng.normal(0.0, 5.0, still.shape), np.float32)
    scanner = acquire.draw_scanner(rng)
    if kind == "beside_the_heart":
        scene, pose = draw_scene(rng), acquire.draw_pose(rng)
        plane = acquire.plane_of(pose, (PIXELS, PIXELS), PIXEL_MM)
        heights = scene.heart.length_mm + 25.0 + 8.0 * np.arange(SLICES)
        painted = [paint(scene, plane, (float(h),), (0.0,)).image for h in heights]
        planes = [[acquire.expose(one, scanner, PIXEL_MM, rng) for one in painted] for _ in range(PHASES)]
        return np.asarray(planes, np.float32)
    y, x = (np.mgrid[:PIXELS, :PIXELS] - PIXELS / 2) * PIXEL_MM
    radius, beat = rng.uniform(30.0, 80.0), rng.uniform(0.02, 0.06) if kind == "pulsating_phantom" else 0.0
    holes = rng.uniform(-0.5, 0.5, (4, 2)) * radius
    out = np.empty(shape, np.float32)
    for p in range(PHASES):
        size = radius * (1.0 + beat * np.cos(2.0 * np.pi * p / PHASES))
        image = (np.hypot(x, y) < size).astype(np.float32)
        for a, b in holes:
            image[np.hypot(x - a, y - b) < 0.12 * size] = 0.1
        for k in range(SLICES):
            out[p, k] = 1000.0 * acquire.expose(image, scanner, PIXEL_MM, rng)
    return out
