"""Simulated cine: single slices to train on and whole stacks to test on, all from seeds.

``python -m models.cardiac.simulate --seed 700000 --out stack.npz`` writes one stack with its labels.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.cardiac import acquire
from models.cardiac.display import normalise
from models.cardiac.heart import CAP
from models.cardiac.scene import SUBSLICES, Painted, Scene, draw_scene, paint

#: Counts what changes the hearts that a seed draws. 2: thinner walls at apex and base, larger and slack papillary
#: muscles, thicker trabeculae, more outflow tracts. 3: thinner walls where nothing loads them, fat opposed to water.
VERSION: Final = 3
#: Labels, in the order of ACDC.
BACKGROUND, RV, MYO, LV = range(4)
#: Slice positions.
ABOVE, BASAL, MID, APICAL, BELOW = range(5)
#: Heights that part basal, mid and apical.
BASAL_FROM: Final = 0.7
APICAL_TO: Final = 0.33
#: Seeds of test stacks count from here; training draws never use them. Frozen.
TEST_SEED: Final = 700_000
#: Share of the cycle at which the volume is smallest.
SYSTOLE: Final = 0.36


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """One training example; arrays are (row, column)."""

    #: Normalised.
    image: NDArray[np.float32]
    labels: NDArray[np.uint8]
    position: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """One simulated study; arrays are (phase, slice, row, column), the slice nearest the apex first."""

    #: Magnitude of arbitrary units.
    images: NDArray[np.float32]
    labels: NDArray[np.uint8]
    #: (phase, slice).
    positions: NDArray[np.uint8]
    pixel_mm: float
    step_mm: float
    scene: Scene
    #: (phase,) of the heart, 0 at ED and 1 at ES.
    times: NDArray[np.float64]


def position_of(z: float) -> int:
    """Which part of the heart a height is."""
    if z > 1.0:
        return ABOVE
    if z <= -CAP / 2:
        return BELOW
    return BASAL if z > BASAL_FROM else APICAL if z < APICAL_TO else MID


def labels_of(painted: Painted) -> NDArray[np.uint8]:
    """(row, column) the label with the largest share of each pixel."""
    rest = 1.0 - painted.rv - painted.myo - painted.lv
    return np.argmax(np.stack((rest, painted.rv, painted.myo, painted.lv)), 0).astype(np.uint8)


def draw_slice(rng: np.random.Generator, pixels: int, pixel_mm: float) -> Slice:
    """One slice of one heart that is never seen again, at any height and time."""
    scene, scanner = draw_scene(rng), acquire.draw_scanner(rng)
    t = float(rng.choice((0.0, 1.0, rng.random()), p=(0.3, 0.3, 0.4)))
    z = rng.uniform(-0.2, 1.2) if rng.random() < 0.4 else rng.uniform(0.02, 0.98)
    height, thickness = z * scene.heart.length_at(t), rng.uniform(5.0, 9.0)
    smear = rng.uniform(0.0, 0.15) if rng.random() < 0.2 else 0.0  # mistriggering
    plane = acquire.plane_of(acquire.draw_pose(rng), (pixels, pixels), pixel_mm)
    heights = tuple(height + share * thickness for share in SUBSLICES)
    painted = paint(scene, plane, heights, tuple(float(np.clip(t + smear * k, 0, 1)) for k in (-1, 0, 1)))
    image = acquire.expose(painted.image, scanner, pixel_mm, rng)
    return Slice(image=normalise(image), labels=labels_of(painted), position=position_of(z))


def times_of(phases: int) -> NDArray[np.float64]:
    """(phase,) contraction over one cycle that begins at ED: down until ``SYSTOLE``, up in two steps."""
    phase = np.arange(phases) / phases
    down = 0.5 - 0.5 * np.cos(np.pi * np.clip(phase / SYSTOLE, 0.0, 1.0))
    filling = np.clip((phase - SYSTOLE) / (0.97 - SYSTOLE), 0.0, 1.0)
    up = 0.75 * (0.5 - 0.5 * np.cos(np.pi * np.clip(filling / 0.5, 0, 1))) + 0.25 * np.clip((filling - 0.6) / 0.4, 0, 1)
    return np.where(phase <= SYSTOLE, down, 1.0 - up)


def simulate_stack(
    seed: int, *, phases: int = 20, pixels: int = 160, pixel_mm: float = 1.4, step_mm: float = 9.0
) -> Stack:
    """A whole study of one patient: slices from below the apex to above the base, each held at another breath."""
    rng = np.random.default_rng([seed, 1])
    scene, scanner, pose = draw_scene(rng), acquire.draw_scanner(rng), acquire.draw_pose(rng)
    pose = acquire.Pose(turn=pose.turn, shift_mm=pose.shift_mm, zoom=1.0, warp=pose.warp)
    first = -rng.uniform(0.3, 1.3) * step_mm
    heights = first + step_mm * np.arange(int(np.ceil((scene.heart.length_mm - first) / step_mm)) + 1)
    times = times_of(phases)
    images = np.empty((phases, len(heights), pixels, pixels), np.float32)
    labels = np.empty(images.shape, np.uint8)
    positions = np.empty(images.shape[:2], np.uint8)
    for k, height in enumerate(heights):
        breath = rng.normal(0.0, 2.0, 2)
        plane = acquire.plane_of(pose, (pixels, pixels), pixel_mm, (breath[0], breath[1]))
        for p, t in enumerate(times):
            painted = paint(scene, plane, tuple(height + share * 8.0 for share in SUBSLICES), (float(t),) * 3)
            images[p, k] = 1000.0 * acquire.expose(painted.image, scanner, pixel_mm, rng)
            labels[p, k] = labels_of(painted)
            positions[p, k] = position_of(height / scene.heart.length_at(float(t)))
    return Stack(
        images=images,
        labels=labels,
        positions=positions,
        pixel_mm=pixel_mm,
        step_mm=step_mm,
        scene=scene,
        times=times,
    )


def main() -> None:
    """Read the command line and write one stack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=TEST_SEED)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    stack = simulate_stack(options.seed)
    np.savez_compressed(options.out, images=stack.images, labels=stack.labels, positions=stack.positions)


if __name__ == "__main__":
    main()
