"""Slices of real patients and what somebody drew on them, in one form whatever data set they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.cardiac import acquire, display, losses
from models.cardiac.scene import smooth

#: Spread of the crop's middle around the heart [mm], of turns [degrees], and the range of zooms.
JITTER_MM: Final = 8.0
TURN: Final = 25.0
ZOOM: Final = (0.85, 1.2)
#: Spread of the logarithm of a further coil shading, as simulated scanners have it (``acquire.draw_scanner``).
SHADING: Final = 0.35
#: Share by which the middle of the heart is blown up or shrunk against its surroundings, and how far that reaches [mm]:
#: walls and cavities then differ by more than few patients do.
SWELL: Final = 0.2
REACH_MM: Final = (18.0, 40.0)


class Known(StrEnum):
    """What a drawing says, and therefore what it leaves open."""

    #: Right ventricle, myocardium and left cavity: every pixel is known.
    ALL = "all"
    #: Inner and outer contour of the left ventricle: what is outside may be right ventricle.
    OUTLINES = "outlines"
    #: The left cavity alone.
    CAVITY = "cavity"


@dataclass(frozen=True, slots=True)
class Example:
    """One real slice; fields are (row, column) in its own pixels."""

    image: NDArray[np.float32]
    #: (field, row, column) shares of each pixel: RV, myocardium, cavity; or inside inner and outer contour; or inner.
    shares: NDArray[np.float32]
    known: Known
    #: Where the heart is (row, column) [pixels], and (row, column) size of a pixel [mm].
    centre: tuple[float, float]
    spacing: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Volumes:
    """A stack without masks whose volumes somebody measured."""

    #: (phase, slice, row, column).
    images: NDArray[np.float32]
    spacing: tuple[float, float]
    #: (slice,) width that each slice stands for [mm].
    width_mm: NDArray[np.float64]
    edv_ml: float
    esv_ml: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One patient: what data is split by."""

    name: str
    #: Slices with something drawn, and slices of the same phases on which the expert drew nothing.
    drawn: tuple[Example, ...] = ()
    empty: tuple[Example, ...] = ()
    volumes: Volumes | None = None
    #: What the data set says of the patient (group, vendor, height): for tables, never for training.
    facts: Mapping[str, str] = field(default_factory=dict)


def labelled(
    images: NDArray[np.float32],
    labels: NDArray[np.uint8],
    centre: tuple[float, float],
    spacing: tuple[float, float],
    known: Known = Known.ALL,
) -> tuple[list[Example], list[Example]]:
    """(slice, row, column) of one phase with labels 1 RV, 2 myocardium, 3 cavity: slices with and without any."""
    drawn, empty = [], []
    for image, called in zip(images, labels, strict=True):
        if not (called == 3).any() and not (called == 2).any():
            # No left ventricle was seen here; where nothing at all is drawn, the rest is open.
            empty.append(Example(image, np.zeros((1, *image.shape), np.float32), Known.CAVITY, centre, spacing))
            continue
        if known is Known.ALL:
            shares = np.stack([called == k for k in (1, 2, 3)])
        else:
            shares = np.stack([called == 3, called >= 2][: 2 if known is Known.OUTLINES else 1])
        drawn.append(Example(image, shares.astype(np.float32), known, centre, spacing))
    return drawn, empty


def recentred(drawn: Sequence[Example], empty: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """One patient's slices around the middle of all cavities drawn, which is where networks look at work."""
    cavities = [one.shares[2] if one.known is Known.ALL else one.shares[0] for one in drawn]
    total = np.sum(cavities, 0, dtype=np.float64) if cavities else np.zeros((1, 1))
    if not total.any():
        return list(drawn), list(empty)
    rows, columns = total.sum(1), total.sum(0)
    centre = (
        float(rows @ np.arange(len(rows)) / rows.sum()),
        float(columns @ np.arange(len(columns)) / columns.sum()),
    )
    return [replace(one, centre=centre) for one in drawn], [replace(one, centre=centre) for one in empty]


def codes_of(shares: Tensor, known: Known) -> Tensor:
    """(row, column) codes of ``losses`` from (field, row, column) shares of pixels."""
    if known is Known.ALL:
        rest = (1.0 - shares.sum(0)).clamp_min(0.0)
        return torch.cat((rest[None], shares)).argmax(0).to(torch.uint8)
    if known is Known.CAVITY:
        return torch.where(shares[0] > 0.5, 3, losses.NOT_LV).to(torch.uint8)
    ring = torch.where(shares[1] > 0.5, 2, losses.OUTSIDE)
    return torch.where(shares[0] > 0.5, 3, ring).to(torch.uint8)


def warped(example: Example, pixels: int, pixel_mm: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """One example turned, zoomed, shifted and bent onto a grid: image (row, column) and codes."""
    pose = acquire.Pose(
        turn=np.deg2rad(rng.normal(0.0, TURN)) + np.pi / 2 * rng.integers(0, 4) * (rng.random() < 0.25),
        shift_mm=(0.0, 0.0),
        zoom=rng.uniform(*ZOOM),
        warp=rng.normal(0.0, rng.uniform(0.0, 2.0), (2, 7, 7)),
    )
    shift = rng.normal(0.0, JITTER_MM, 2)
    plane = _swollen(
        acquire.plane_of(pose, (pixels, pixels), pixel_mm), rng.uniform(-SWELL, SWELL), rng.uniform(*REACH_MM)
    )
    cut = _cut(example, plane, shift, pixel_mm * rng.uniform(0.7, 1.2))
    shading = smooth(rng.normal(0.0, rng.uniform(0.0, SHADING), (5, 5)), (pixels, pixels))
    image = cut[0].numpy() * np.exp(shading)
    image = image + rng.normal(0.0, rng.uniform(0, 0.02) * float(cut[0].max()), cut[0].shape)
    image = display.normalise(np.maximum(image, 0.0).astype(np.float32)) / display.TOP
    gamma = rng.uniform(0.7, 1.4)
    return torch.from_numpy(image**gamma * display.TOP), codes_of(cut[1:], example.known)


def _swollen(plane: acquire.Plane, share: float, reach_mm: float) -> acquire.Plane:
    """A plane whose middle shows ``share`` more or less of the heart than its surroundings do."""
    gain = np.asarray(1.0 + share * np.exp(-(plane.r**2) / (2.0 * reach_mm**2)), np.float32)
    return acquire.Plane.of(plane.x * gain, plane.y * gain, plane.pixel_mm)


def upright(example: Example, pixels: int, pixel_mm: float) -> tuple[Tensor, Tensor]:
    """One example as it is, on a grid around the heart: image (row, column) and codes."""
    cut = _cut(example, acquire.plane_of(acquire.upright(), (pixels, pixels), pixel_mm), np.zeros(2), pixel_mm)
    return torch.from_numpy(display.normalise(cut[0].numpy())), codes_of(cut[1:], example.known)


def _cut(example: Example, plane: acquire.Plane, shift_mm: NDArray[np.float64], seen_mm: float) -> Tensor:
    """(field, row, column) image and shares at the pixels of a plane, the image blurred to pixels of ``seen_mm``."""
    rows = (-plane.y + shift_mm[0]) / example.spacing[0] + example.centre[0]
    columns = (plane.x + shift_mm[1]) / example.spacing[1] + example.centre[1]
    height, width = (max(n - 1, 1) for n in example.image.shape)
    at = np.stack((columns / width * 2 - 1, rows / height * 2 - 1), -1)[None].astype(np.float32)
    source = torch.from_numpy(np.concatenate((example.image[None], example.shares)))[None]
    source[:, :1] = _blurred(source[:, :1], seen_mm / example.spacing[0])
    return torch.nn.functional.grid_sample(source, torch.from_numpy(at), align_corners=True)[0]


def _blurred(image: Tensor, ratio: float) -> Tensor:
    """(1, 1, row, column) blurred as a grid coarser by ``ratio`` would see it."""
    sigma = 0.4 * max(0.0, ratio**2 - 1.0) ** 0.5
    if sigma < 0.2:
        return image
    kernel = torch.exp(-0.5 * (torch.arange(-3, 4) / sigma) ** 2)
    kernel = kernel / kernel.sum()
    image = torch.nn.functional.conv2d(image, kernel.view(1, 1, 7, 1), padding=(3, 0))
    return torch.nn.functional.conv2d(image, kernel.view(1, 1, 1, 7), padding=(0, 3))
