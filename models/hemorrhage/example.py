"""Two simulated heads to try the node on, one with blood: of no training, calibration or test seed."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from models.hemorrhage import acquire, bleeds
from models.hemorrhage.acquire import Scan
from models.hemorrhage.scene import make_base, make_scene, scan

#: Apart from every other seed of the package.
SEED: Final = 900_001
#: Image size (rows, columns) and pixel of a usual head scan, at 2/3 of its resolution to be quick.
SIZE: Final = (384, 320)
PIXEL_MM: Final = 0.65
#: A routine scan: 5 mm slices from above the vertex to the skull base [mm].
HEIGHTS_MM: Final = tuple(float(height) for height in range(92, -53, -5))
#: Noisy enough that a denoiser has something to do [HU].
NOISE_HU: Final = 5.0
EDEMA_HU: Final = 18.0


def head(*, bleeding: bool, seed: int = SEED) -> Scan:
    """Scan a head: ``hu`` (slice, row, column) [HU], ``positions`` (slice, 3) LPS [mm], plane 0 nearest the vertex.

    The bleeding one has an intraparenchymal and a subdural hemorrhage.
    """
    rng = np.random.default_rng([seed, 3])
    shell, brain = make_base(seed)
    blood = bleeds.nothing(shell.frame)
    if bleeding:
        bleeds.add_intraparenchymal(blood, shell.frame, brain, rng)
        bleeds.add_subdural(blood, shell.frame, brain, rng)
    protocol = replace(
        acquire.draw_protocol(np.random.default_rng([seed, 4]), SIZE, PIXEL_MM),
        angles=(8.0, 1.0, -1.5),
        heights=HEIGHTS_MM,
        thickness=(5.0,) * len(HEIGHTS_MM),
        noise_hu=NOISE_HU,
        holder=True,
    )
    return scan(make_scene(shell, brain, blood, EDEMA_HU), protocol, rng)
