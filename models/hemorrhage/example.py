"""Two simulated heads to try the node on, one with blood: neither is in the training, calibration or test seeds."""

from __future__ import annotations

from typing import Final

from models.hemorrhage.acquire import Scan
from models.hemorrhage.scene import make_base, make_scan

#: Apart from every other seed of the package.
SEED: Final = 900_000
#: Image size (rows, columns) and pixel of a usual head scan, at 2/3 of its resolution to be quick.
SIZE: Final = (384, 320)
PIXEL_MM: Final = 0.65


def head(*, bleeds: bool, seed: int = SEED) -> Scan:
    """Scan a head: ``hu`` (slice, row, column) [HU], ``positions`` (slice, 3) LPS [mm], plane 0 nearest the vertex."""
    return make_scan(make_base(seed), seed, int(bleeds), bleeds, SIZE, PIXEL_MM)
