"""From a painted plane to a magnitude image: pose, coil shading, banding, truncation, ghosts, noise and display.

Ranges: ml-mr 2.2, "acquisition".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.cardiac.scene import Field, Plane, smooth


@dataclass(frozen=True, slots=True, kw_only=True)
class Pose:
    """How the heart lies in the image."""

    turn: float
    #: (x, y) [mm].
    shift_mm: tuple[float, float]
    zoom: float
    #: (2, 7, 7) knots of a smooth displacement [mm].
    warp: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scanner:
    """What the scanner does to every slice of a stack."""

    shading: NDArray[np.float64]
    #: bSSFP band: direction, place [mm], half width [mm]; width 0 where there is none.
    band: tuple[float, float, float]
    #: Blur [pixels], and the share of k-space that was sampled along row and column.
    blur: float
    sampled: tuple[float, float]
    #: Strength of phase ghosts, and how many of them.
    ghost: float
    ghosts: int
    noise: float
    gamma: float


def draw_pose(rng: np.random.Generator) -> Pose:
    """Draw how a heart lies."""
    turn = np.deg2rad(rng.normal(0.0, 20.0)) + (np.pi / 2 * rng.integers(0, 4) if rng.random() < 0.25 else 0.0)
    shift = rng.normal(0.0, 16.0, 2)
    warp = rng.normal(0.0, rng.uniform(0.5, 3.5), (2, 7, 7))
    return Pose(turn=turn, shift_mm=(shift[0], shift[1]), zoom=rng.uniform(0.8, 1.3), warp=warp)


def upright() -> Pose:
    """A heart in the middle of the image, neither turned nor bent."""
    return Pose(turn=0.0, shift_mm=(0.0, 0.0), zoom=1.0, warp=np.zeros((2, 7, 7)))


def draw_scanner(rng: np.random.Generator) -> Scanner:
    """Draw a scanner and its settings."""
    cut = rng.random() < 0.6
    slope, turn = rng.uniform(-0.003, 0.013), rng.uniform(0, 2 * np.pi)
    ramp = np.linspace(-100, 100, 5)  # [mm], knots over the field of view
    linear = slope * (ramp[None, :] * np.cos(turn) + ramp[:, None] * np.sin(turn))
    return Scanner(
        shading=linear + rng.normal(0.0, rng.uniform(0.0, 0.35), (5, 5)),
        band=(rng.uniform(0, np.pi), rng.uniform(-80, 80), rng.uniform(3.0, 8.0) if rng.random() < 0.2 else 0.0),
        blur=rng.uniform(0.3, 0.9),
        sampled=(rng.uniform(0.55, 1.0), rng.uniform(0.55, 1.0)) if cut else (1.0, 1.0),
        ghost=rng.uniform(0.01, 0.08) if cut and rng.random() < 0.25 else 0.0,
        ghosts=int(rng.integers(2, 6)),
        noise=float(np.exp(rng.uniform(np.log(0.005), np.log(0.06)))),
        gamma=rng.uniform(0.7, 1.4) if rng.random() < 0.5 else 1.0,
    )


def plane_of(
    pose: Pose, pixels: tuple[int, int], pixel_mm: float, breath_mm: tuple[float, float] = (0.0, 0.0)
) -> Plane:
    """The plane that an image of (row, column) ``pixels`` shows."""
    rows = (np.arange(pixels[0]) - (pixels[0] - 1) / 2) * pixel_mm
    columns = (np.arange(pixels[1]) - (pixels[1] - 1) / 2) * pixel_mm
    dx = columns[None, :] - pose.shift_mm[0] - breath_mm[0] + smooth(pose.warp[0], pixels)
    dy = -rows[:, None] - pose.shift_mm[1] - breath_mm[1] + smooth(pose.warp[1], pixels)
    c, s = np.cos(pose.turn) / pose.zoom, np.sin(pose.turn) / pose.zoom
    x, y = np.asarray(c * dx + s * dy, np.float32), np.asarray(c * dy - s * dx, np.float32)
    return Plane.of(x, y, pixel_mm / pose.zoom)


def expose(image: Field, scanner: Scanner, pixel_mm: float, rng: np.random.Generator) -> Field:
    """(row, column) of tissue to a magnitude image of arbitrary units; ``rng`` draws the noise only."""
    rows, columns = image.shape
    image = image * np.exp(smooth(scanner.shading, (rows, columns)))
    turn, place, width = scanner.band
    if width:
        y, x = np.mgrid[:rows, :columns] * pixel_mm
        off = (x - columns * pixel_mm / 2) * np.cos(turn) + (y - rows * pixel_mm / 2) * np.sin(turn) - place
        image = image * (1.0 - 0.8 * np.exp(-((off / width) ** 2)))
    spectrum = np.fft.fft2(image)
    ky, kx = np.fft.fftfreq(rows)[:, None], np.fft.fftfreq(columns)[None, :]
    filtered = np.exp(-2.0 * (np.pi * scanner.blur) ** 2 * (ky**2 + kx**2))
    filtered = filtered * (np.abs(ky) <= scanner.sampled[0] / 2) * (np.abs(kx) <= scanner.sampled[1] / 2)
    if scanner.ghost:
        lines = np.arange(rows)[:, None]
        filtered = filtered * (1.0 + scanner.ghost * np.cos(2 * np.pi * lines / scanner.ghosts + place))
    sampled = np.fft.ifft2(spectrum * filtered)
    noise = rng.normal(0.0, scanner.noise, (2, rows, columns))
    magnitude = np.hypot(sampled.real + noise[0], sampled.imag + noise[1])
    return np.asarray(magnitude**scanner.gamma, np.float32)
