"""What pixels alone say against a cine of a beating heart, whatever its header claims to be.

Headers of anonymised or exported images often no longer say that they are velocities, late enhancement or first-pass
perfusion. A cine is magnitude images of one contrast: each test here breaks one part of that.
Limits lie between what was seen on three real patients and on simulated cines, and on generated images of the others.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

#: Share of values below zero above which images are no magnitudes: real 0, velocities one half.
MOST_NEGATIVE: Final = 0.01
#: Brightest over darkest phase of a plane, median of the planes: real 1.04, simulated to 1.13, inversion from 4.
MOST_BRIGHTENING: Final = 1.35
#: Share of pixels that jump from phase to phase by more than ``JUMP`` of the image's range: real 0, simulated to 0.03,
#: velocities, whose air is noise of full range, from 0.13.
MOST_FLICKER: Final = 0.06
JUMP: Final = 0.15
#: Brightest over darkest phase of the blood in the left cavity; contrast that arrives brightens it several times.
MOST_BLOOD: Final = 2.0


def why_not(images: NDArray[np.float32]) -> str:
    """Why (phase, slice, row, column) images are no cine; empty if nothing speaks against it."""
    part = np.asarray(images[:, :, ::2, ::2], np.float32)
    low, high = np.percentile(part, (1.0, 99.0))
    if not high > low:
        return "the images are empty: every pixel has the same value"
    negative = float((part < 0.0).mean())
    if negative > MOST_NEGATIVE:
        return f"{100 * negative:.0f} % of the values are below zero: velocities or phases, no magnitude images"
    means = part.mean((2, 3), dtype=np.float64)
    brightening = float(np.median(means.max(0) / np.maximum(means.min(0), 1e-3 * means.max())))
    if brightening > MOST_BRIGHTENING:
        return (
            f"brightness changes {brightening:.1f}-fold between phases: contrast agent passes or an inversion recovers "
            "(perfusion, inversion times), no cine"
        )
    jumps = np.mean([np.abs(part[p] - part[p - 1]) for p in range(len(part))], 0) > JUMP * (high - low)
    flicker = float(jumps.mean())
    if flicker > MOST_FLICKER:
        return (
            f"{100 * flicker:.0f} % of the pixels jump from phase to phase: velocities or phases, no magnitude images"
        )
    return ""


def why_not_blood(images: NDArray[np.float32], cavity: NDArray[np.bool_]) -> str:
    """Why what fills the ``cavity`` (slice, row, column) at every phase is no blood of constant contrast."""
    if not cavity.any():
        return ""
    values = images[:, cavity].mean(1, dtype=np.float64)
    change = float(values.max() / max(values.min(), 1e-3 * float(values.max())))
    if change > MOST_BLOOD:
        return f"the left cavity brightens {change:.1f}-fold between phases: contrast agent passes (perfusion), no cine"
    return ""
