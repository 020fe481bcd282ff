"""What a training run is: its phases, and the configurations that ``--config`` names."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Final

from models.ct_denoise import losses
from models.ct_denoise.data import Drawing


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A stretch of training with its own optimiser, rate and loss; it starts from the averaged weights before it."""

    #: Optimiser steps.
    steps: int
    #: Simulated slices in the pool; a later phase keeps the slices of the one before and adds to them.
    pool: int
    #: Share of the draws from slices of clinical thickness, of which there are as many again.
    thick: float = 0.0
    #: Slices per step, patches per slice; of these patches the first ``paired`` bear the spectrum and insert terms.
    slices: int = 2
    per_slice: int = 2
    paired: int = 4
    #: Peak learning rate of AdamW; one cosine after a warm-up.
    rate: float = 1.2e-3
    warm_up: int = 200
    #: Decay of the averaged weights, which are the ones shipped.
    average: float = 0.998
    #: Residual blocks per level; blocks more than before start as identities.
    blocks: tuple[int, int, int] = (2, 2, 2)
    #: Weight of the least-squares estimate's loss, and where it turns from quadratic to linear [sigma].
    least: float = 1.0
    least_epsilon: float = losses.CHARBONNIER_EPSILON
    #: The network must bear a noise map that is wrong by this share.
    jitter: float = 0.15
    #: Weight of pixels outside the reading window -160..240 HU in the loss of the least-squares estimate.
    outside: float = 1.0
    #: The cautious estimate's share of the noise.
    target: float = 1.0
    #: Weight of the insert term at the beginning and at the end, rising between these shares of the steps: once the
    #: network can tell noise from structure, faint structure is what it still takes for noise.
    insert: float = 0.8
    insert_late: float = 1.6
    insert_rise: tuple[float, float] = (2500 / 7000, 0.5)
    #: What the patches are made of.
    drawing: Drawing = field(default_factory=Drawing)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What a training run is."""

    phases: tuple[Phase, ...]
    #: Patch side [pixel].
    patch: int = 128
    #: Channels per level of the network.
    widths: tuple[int, int, int] = (32, 48, 64)
    #: Weights of the loss terms of both estimates' gradients, and of the cautious estimate's spectrum.
    gradient: float = 0.1
    spectrum: float = 0.2
    #: The strength at which the spectrum term holds.
    strength: float = 0.6
    #: Noise map that the network is told, of `noise.NOISE_MAPS`.
    noise_map: str = "mean"
    #: Starts from trained weights (``--start``) and not from nothing.
    refines: bool = False
    #: Trains a network for the least-squares estimate alone, which goes beside the weights it starts from.
    only_least: bool = False
    #: Seed of network and patches, and of the pool's slices.
    seed: int = 0
    pool_seed: int = 0

    @property
    def steps(self) -> int:
        """Steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    def place(self, step: int) -> tuple[int, int]:
        """Number of the phase that holds ``step``, and the step within it."""
        for number, phase in enumerate(self.phases):
            if step < phase.steps or number == len(self.phases) - 1:
                return number, step
            step -= phase.steps
        raise ValueError("a configuration has at least one phase")

    def arguments(self, number: int) -> dict[str, Any]:
        """Arguments of the network of phase ``number``."""
        made: dict[str, Any] = {"widths": list(self.widths), "blocks": list(self.phases[number].blocks)}
        return made if self.noise_map == "mean" else made | {"noise_map": self.noise_map}


#: The second phase: edges a human would see must be seen, faint ones of every shape are in the pictures, and the
#: least-squares estimate is least squares where people look.
_FAINT: Final = Phase(
    steps=4250,
    pool=600,
    slices=3,
    per_slice=2,
    paired=3,
    rate=8e-4,
    warm_up=300,
    average=0.999,
    blocks=(2, 3, 4),
    least=2.0,
    least_epsilon=0.5,
    outside=0.3,
    target=0.75,
    insert=1.2,
    insert_late=1.2,
    drawing=Drawing(faint=0.25, visible=0.5),
)
#: Gets trained weights used to another noise map.
_REFINE: Final = replace(_FAINT, steps=1600, slices=3, per_slice=2, paired=2, rate=4e-4, warm_up=60, average=0.998)
#: Least squares where people look, on thin and thick slices, with a noise map that may be off by a third.
_LEAST: Final = Phase(
    steps=8_250,
    pool=520,
    thick=0.5,
    slices=4,
    per_slice=3,
    paired=0,
    rate=8e-4,
    average=0.999,
    blocks=(2, 4, 6),
    least_epsilon=1.0,
    jitter=0.3,
    outside=0.3,
    drawing=Drawing(faint=0.15),
)
CONFIGS: Final = {
    "cpu": Config(phases=(Phase(steps=7000, pool=240), _FAINT)),
    "refine": Config(phases=(_REFINE,), noise_map="flattest", refines=True, seed=1),
    "least": Config(
        phases=(_LEAST, replace(_LEAST, steps=11_000, thick=0.6, rate=6e-4)),
        gradient=0.05,
        noise_map="flattest",
        refines=True,
        only_least=True,
        seed=2,
    ),
    "gpu": Config(
        phases=(replace(_FAINT, steps=40_000, pool=2000, slices=12, paired=12, rate=2e-3, average=0.9995),),
    ),
    "gpu-large": Config(
        phases=(
            replace(_FAINT, steps=60_000, pool=3000, slices=16, paired=16, rate=1e-3, average=0.9995, blocks=(4, 4, 4)),
        ),
        widths=(64, 128, 256),
    ),
}
