"""Random shapes that look like no anatomy: what keeps a network from believing every image is a heart."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

#: Sub-pixels along each edge of a pixel.
FINE: Final = 2


def draw_phantom(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float32]:
    """(row, column) magnitude: one body, shapes in it, sometimes bars, texture and shading."""
    rows, columns = shape
    canvas = Image.new("F", (columns * FINE, rows * FINE), 0.0)
    brush = ImageDraw.Draw(canvas)
    size = np.array([columns, rows]) * FINE
    centre, half = size * rng.uniform(0.42, 0.58, 2), size * rng.uniform(0.22, 0.47, 2)
    if rng.random() < 0.3:  # a sphere or a bottle, as phantoms are
        half[:] = half.min()
    body = float(rng.uniform(0.3, 0.9))
    brush.ellipse([*(centre - half), *(centre + half)], fill=body)
    for _ in range(int(rng.choice((0, 3, 8, 20, 40), p=(0.15, 0.2, 0.3, 0.25, 0.1)))):
        place = centre + half * rng.uniform(-0.75, 0.75, 2)
        reach = half * np.exp(rng.uniform(np.log(0.02), np.log(0.4))) * rng.uniform(0.5, 1.5, 2)
        value = float(np.clip(body + rng.normal(0.0, 0.3), 0.0, 1.2)) if rng.random() < 0.8 else 0.0
        if rng.random() < 0.5:
            brush.ellipse([*(place - reach), *(place + reach)], fill=value)
        else:
            angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 8))))
            corners = place + reach * np.stack((np.cos(angles), np.sin(angles)), 1)
            brush.polygon([(float(x), float(y)) for x, y in corners], fill=value)
    if rng.random() < 0.3:
        _bars(brush, rng, centre, half)
    image = np.asarray(canvas, np.float32).reshape(rows, FINE, columns, FINE).mean((1, 3))
    if rng.random() < 0.5:
        image = image * (1.0 + rng.uniform(0.02, 0.2) * _smooth(rng, shape, int(rng.integers(6, 40))))
    image = image * np.exp(rng.uniform(0.0, 0.4) * _smooth(rng, shape, 4))
    if rng.random() < 0.7:
        image = ndimage.gaussian_filter(image, rng.uniform(0.2, 0.8))
    return np.asarray(np.clip(image, 0.0, None), np.float32)


def _bars(
    brush: ImageDraw.ImageDraw, rng: np.random.Generator, centre: NDArray[np.float64], half: NDArray[np.float64]
) -> None:
    """A row of thin bars, as resolution phantoms have."""
    place, width = centre + half * rng.uniform(-0.5, 0.3, 2), float(rng.integers(2, 7))
    for k in range(int(rng.integers(3, 8))):
        left = place + np.array([2 * k * width, 0.0])[:: 1 if rng.random() < 0.5 else -1]
        brush.rectangle([*left, *(left + np.array([width, 6 * width]))], fill=float(rng.uniform(0, 1)))


def _smooth(rng: np.random.Generator, shape: tuple[int, int], knots: int) -> NDArray[np.float32]:
    """Smooth noise of standard deviation 1 at its knots."""
    coarse = rng.normal(0.0, 1.0, (knots, knots))
    factors = (shape[0] / knots, shape[1] / knots)
    fine = ndimage.zoom(coarse, factors, order=3, mode="nearest", grid_mode=True)
    return np.asarray(fine[: shape[0], : shape[1]], np.float32)
