"""Where trained weights are at least as good as CG-SENSE: the trained domain is cut down to that.

A range that was drawn from is a hope, not a result: the first networks of this kind were trained with uniform patterns
too, and were worse than linear SENSE with them (ml-mr 1.6, C). So images that training did not see are reconstructed
at every acceleration, smooth phantoms among them, for these are hardest for a network and easiest for linear SENSE.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from torch import Tensor

from models.mr_recon import data, masks, metrics
from models.mr_recon.domain import UNIFORM, VARIABLE
from models.mr_recon.phantoms import draw_phantom
from models.mr_recon.simulate import measure

SEED: Final = 77
PHANTOMS: Final = 1
COILS: Final = 8
#: Accelerations that are tried, by pattern; a range ends at the last that held.
TRIED: Final = {UNIFORM: (2, 3, 4, 5, 6, 8), VARIABLE: (2, 4, 6, 8, 10)}
#: With one coil regular lines are refused whatever was trained.
TRIED_SINGLE: Final = {VARIABLE: TRIED[VARIABLE]}
SNR: Final = 40.0
#: Fewest calibration lines with uniform sampling. Set after seeing real data: with 16 lines a sphere in 16 coils, 10
#: after compression, came out 0.3-0.5 dB worse than CG-SENSE of all 16, with 24 and 32 lines 0.1-0.5 dB better.
LEAST_UNIFORM_CALIBRATION: Final = 24

#: A network and CG-SENSE: whole measurements in, images out.
Method = Callable[[data.Slabs], Tensor]


def images_for(watch: list[data.Image]) -> list[data.Image]:
    """Two images that were kept from training, a sphere, and random shapes."""
    rows, columns = watch[0].shape
    y, x = np.mgrid[:rows, :columns]
    sphere = ((y - rows / 2) ** 2 + (x - columns / 2) ** 2 < (0.36 * rows) ** 2).astype(np.float32)
    shapes = [draw_phantom(np.random.default_rng([SEED, k]), (rows, columns)) for k in range(PHANTOMS)]
    return [*watch[:2], sphere, *shapes]


def gains(
    network: Method,
    linear: Method,
    images: list[data.Image],
    coils: int = COILS,
    tried: Mapping[str, tuple[int, ...]] | None = None,
) -> dict[str, dict[int, list[float]]]:
    """PSNR of the network over CG-SENSE [dB] by pattern, acceleration and image."""
    found: dict[str, dict[int, list[float]]] = {}
    for pattern, accelerations in (TRIED if tried is None else tried).items():
        found[pattern] = {}
        for acceleration in accelerations:
            found[pattern][acceleration] = []
            for number, image in enumerate(images):
                rng, rows = np.random.default_rng([SEED, acceleration, number]), image.shape[0]
                if pattern == UNIFORM:
                    lines = masks.uniform(rows, acceleration, 16, number)
                else:
                    lines = masks.variable(rows, acceleration, round(0.4 * rows / acceleration), rng)
                slabs = data.slabs_of([measure(rng, image, coils, lines, snr=SNR, method="choose")], None)
                ours, theirs = (metrics.figures(f(slabs)[0], slabs.reference[0])["psnr"] for f in (network, linear))
                found[pattern][acceleration].append(round(ours - theirs, 2))
            if min(found[pattern][acceleration]) < 0 < len(found[pattern]) - 1:
                break  # a range ends here, and what is not tried is not in it
    return found


def kept(record: dict[str, Any], found: dict[str, dict[int, list[float]]]) -> dict[str, Any]:
    """The trained-domain record without the patterns and accelerations at which any image lost."""
    ranges = {}
    for pattern, (least, most) in record["acceleration"].items():
        if pattern not in found:
            continue
        held: list[int] = []
        for acceleration, values in found[pattern].items():
            if min(values) >= 0.0:
                held.append(acceleration)
            elif held:
                break
        if held:
            ranges[pattern] = [max(least, held[0]), min(most, held[-1])]
    calibration = {pattern: list(record["calibration"][pattern]) for pattern in ranges}
    if UNIFORM in calibration:
        calibration[UNIFORM][0] = max(calibration[UNIFORM][0], LEAST_UNIFORM_CALIBRATION)
    return record | {"acceleration": ranges, "calibration": calibration}
