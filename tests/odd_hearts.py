"""MR of the heart, and of other things, that is no short-axis cine: as DICOM files, and disguised as a cine.

Painted with the simulator's own patients, so that nothing but what makes them unsuitable tells them from a cine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from models.cardiac import acquire, simulate, wrong
from models.cardiac.scene import SUBSLICES, Field, Painted, Plane, Scene, draw_scene, paint
from tests import cine

Images = NDArray[np.float32]

PIXELS, PIXEL_MM, STEP_MM = 96, 2.2, 10.0
#: Seeds of these patients: none of training, none of the frozen test stacks.
SEED: Final = 810_000


def _plane() -> Plane:
    return acquire.plane_of(acquire.upright(), (PIXELS, PIXELS), PIXEL_MM)


def _stack(
    seed: int,
    times: Sequence[float],
    draw: Callable[[Painted, Plane, int, Scene], Field],
    *,
    slices: int = 7,
    exposed: bool = True,
) -> Images:
    """(phase, slice, row, column) of one patient; ``draw`` says what a painted plane looks like at a phase."""
    rng = np.random.default_rng([SEED, seed])
    scene, scanner, plane = draw_scene(rng, "normal"), acquire.draw_scanner(rng), _plane()
    out = np.empty((len(times), slices, PIXELS, PIXELS), np.float32)
    for p, t in enumerate(times):
        for k in range(slices):
            heights = tuple(STEP_MM * k - 5.0 + share * 8.0 for share in SUBSLICES)
            image = draw(paint(scene, plane, heights, (float(t),) * 3), plane, p, scene)
            out[p, k] = 1000.0 * acquire.expose(image, scanner, PIXEL_MM, rng) if exposed else image
    return out


def _scar(plane: Plane) -> NDArray[np.bool_]:
    return np.asarray(np.arctan2(plane.y, plane.x) % (2 * np.pi) < 1.5)


def _rest(one: Painted) -> Field:
    return np.clip(1.0 - one.rv - one.lv - one.myo, 0.0, 1.0)


def late_enhancement(seed: int, phases: int = 1) -> Images:
    """Nulled muscle, grey blood and a bright scar, always at one moment of the beat."""

    def draw(one: Painted, plane: Plane, _phase: int, _scene: Scene) -> Field:
        wall = one.myo * np.where(_scar(plane), 1.0, 0.05)
        return np.asarray(0.5 * (one.image * _rest(one) + one.rv + one.lv) + wall, np.float32)

    return _stack(seed, [0.9] * phases, draw)


def inversion_times(seed: int, phases: int = 12) -> Images:
    """A scout of inversion times over the beat: every phase later after the inversion, the heart beating on."""
    delays = np.linspace(80.0, 600.0, phases)

    def draw(one: Painted, plane: Plane, phase: int, _scene: Scene) -> Field:
        def signal(t1_ms: float) -> float:
            return abs(1.0 - 2.0 * float(np.exp(-delays[phase] / t1_ms)))

        wall = one.myo * np.where(_scar(plane), signal(240.0), signal(420.0))
        return np.asarray(one.image * _rest(one) * signal(300.0) + (one.rv + one.lv) * signal(280.0) + wall, np.float32)

    return _stack(seed, simulate.times_of(phases).tolist(), draw)


def perfusion(seed: int, beats: int = 20) -> Images:
    """First pass: a bolus fills the right, then the left cavity, then the muscle; one image a beat."""

    def bolus(beat: float, width: float, height: float) -> float:
        x = max(beat / width, 0.0)
        return height * x * float(np.exp(1.0 - x))

    def draw(one: Painted, _plane: Plane, p: int, _scene: Scene) -> Field:
        right, left, wall = (0.08 + bolus(p - at, *rest) for at, *rest in ((3, 3, 0.9), (6, 3.5, 0.85), (8, 7, 0.35)))
        return np.asarray(0.12 * one.image * _rest(one) + right * one.rv + left * one.lv + wall * one.myo, np.float32)

    return _stack(seed, [0.5] * beats, draw)


def velocity(seed: int, phases: int = 10) -> Images:
    """Through-plane velocity [cm/s] within an encoding of 150: noise of full range where there is air."""
    times, noise = simulate.times_of(phases), np.random.default_rng([SEED, seed, 1])
    speed = 6.0 * np.gradient(times)

    def draw(one: Painted, plane: Plane, p: int, _scene: Scene) -> Field:
        air = np.abs(one.image) < 0.1  # fat may be negative
        moved = (80.0 * (one.rv + one.lv) + 10.0 * one.myo) * speed[p]
        fuzz = noise.normal(0.0, 2.0, air.shape) + air * noise.uniform(-150.0, 150.0, air.shape)
        return np.asarray(np.clip(moved + fuzz, -150.0, 150.0), np.float32)

    return _stack(seed, times.tolist(), draw, exposed=False)


def long_axis(seed: int, phases: int = 8, *, slices: int = 7, horizontal: bool = True) -> Images:
    """Parallel planes along the heart, 8 mm apart, cut out of closely painted ones across it."""
    rng = np.random.default_rng([SEED, seed])
    scene, scanner, plane = draw_scene(rng), acquire.draw_scanner(rng), _plane()
    heights = np.arange(-40.0, -40.0 + PIXELS * PIXEL_MM, 1.5 * PIXEL_MM)
    at = np.arange(PIXELS) / 1.5
    low = np.minimum(at.astype(int), len(heights) - 2)
    share = np.clip(at - low, 0.0, 1.0)[:, None]
    places = np.round((np.arange(slices) - (slices - 1) / 2) * 8.0 / PIXEL_MM + (PIXELS - 1) / 2).astype(int)
    out = np.empty((phases, slices, PIXELS, PIXELS), np.float32)
    for p, t in enumerate(simulate.times_of(phases)):
        block = np.stack([paint(scene, plane, (float(h),), (float(t),)).image for h in heights])
        for k, place in enumerate(places):
            cut = block[:, place] if horizontal else block[:, :, place]
            image = np.asarray(cut[low] * (1.0 - share) + cut[low + 1] * share, np.float32)
            out[p, k] = 1000.0 * acquire.expose(image, scanner, PIXEL_MM, rng)
    return out


def phantom(seed: int, kind: str) -> Images:
    """One of `models.cardiac.wrong`, on fewer planes."""
    return wrong.draw(kind, seed)[:8, :6]


def files(
    images: Images,
    *,
    values: dict[str, Any] | None = None,
    step: float = STEP_MM,
    rescaled: bool = False,
    **knobs: Any,
) -> list[Dataset]:
    """The images as one MR series: a file for every plane and phase, headers of a cine but for ``values``.

    ``rescaled``: with the slope and intercept that give the images' own values back; else only their pattern.
    """
    phases, slices, rows, columns = images.shape
    spacing = {"PixelSpacing": f"{PIXEL_MM}\\{PIXEL_MM}"}
    low, high = float(min(images.min(), 0.0)), float(images.max())
    slope = max(high - low, 1.0) / 4000.0
    if rescaled:
        spacing |= {"RescaleSlope": f"{slope:.6f}", "RescaleIntercept": f"{low:.4f}"}
    found = cine.one_series(
        slices, phases, rows=rows, columns=columns, step=step, values=spacing | (values or {}), **knobs
    )
    stored = np.round((images - low) / slope).astype("<u2")
    for number, ds in enumerate(found):
        ds.PixelData = stored[number // slices, number % slices].tobytes()
    return found
