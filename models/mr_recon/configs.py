"""What a training run is: the named configurations of ``models.mr_recon.train``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from models.mr_recon import data, masks
from models.mr_recon.net import Shape

#: Columns: a slab is the least; more of them change nothing, the network's view is narrower than two slabs.
COLUMNS: Final = (data.SLAB, 512)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What a training run is."""

    steps: int = 2600
    #: Measurements of each step with one coil and with several, and slabs of each.
    single: int = 2
    multiple: int = 2
    per_image: int = 1
    #: Learning rate of Adam: a warm-up, a plateau, and a line down to nothing over the last part of the steps.
    rate: float = 1.5e-3
    warm_up: int = 50
    decay: float = 0.35
    clip: float = 1.0
    #: Decay of the averaged weights, which are the ones shipped.
    average: float = 0.995
    hearts: int = 240
    seed: int = 0
    shape: Shape = field(default_factory=lambda: Shape(width=16))
    ranges: masks.Ranges = field(default_factory=masks.Ranges)
    coils: tuple[int, int] = (2, 20)
    #: Shares of patients, hearts and phantoms.
    shares: tuple[float, float, float] = (0.45, 0.3, 0.25)
    #: Root mean square instead of mean absolute errors: what PSNR counts.
    squared: bool = False

    @property
    def only_single(self) -> bool:
        """Whether these are weights for one coil alone, which are added to a package."""
        return self.multiple == 0

    @property
    def drawing(self) -> data.Drawing:
        """What batches are drawn from."""
        return data.Drawing(ranges=self.ranges, coils=self.coils)

    def domain(self, rows: Iterable[int] = ()) -> dict[str, Any]:
        """The trained-domain record; ``rows`` of complete k-space count beside those that were simulated."""
        ranges, drawing = self.ranges, self.drawing
        every = [*drawing.rows, *rows]
        return {
            "acceleration": {"uniform": list(ranges.uniform), "variable": list(ranges.variable)},
            "calibration": {
                "uniform": list(ranges.uniform_calibration),
                "variable": list(ranges.variable_calibration),
            },
            "coils": [1, drawing.coils[1]],
            "rows": [min(every), max(every)],
            "columns": list(COLUMNS),
            # a few were drawn, to make the network steady; none was measured, so they are refused
            "partial_fourier": False,
        }


CONFIGS: Final = {
    # three quarters of an hour on one free core
    "cpu": Config(),
    # From weights of the other configurations on, for one coil alone: three quarters of an hour on one free core. What
    # one coil is refused with (regular lines, partial Fourier) is not drawn. A^H A of one coil is a projection, which
    # one iteration solves.
    "single": Config(
        steps=2200,
        single=4,
        multiple=0,
        rate=1e-3,
        warm_up=100,
        decay=0.6,
        average=0.998,
        seed=1,
        shape=Shape(width=16, iterations=1),
        ranges=masks.Ranges(uniform_share=0.0, partial_share=0.0, often_share=0.5),
        shares=(0.55, 0.25, 0.2),
        squared=True,
    ),
    # from weights that exist, on other data; not run yet for want of complete k-space of patients
    "tune": Config(steps=2000, rate=3e-4),
    # not run yet: no such device was at hand
    "gpu": Config(
        steps=30_000,
        single=6,
        multiple=6,
        per_image=2,
        average=0.999,
        hearts=2000,
        shape=Shape(blocks=10, width=32, levels=4),
    ),
}
