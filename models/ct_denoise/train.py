"""Train the denoiser on simulated slices: ``python -m models.ct_denoise.train [--config cpu|gpu|gpu-large]``.

Every step is seeded by its number, so an interrupted run that is started again ends as if it had not been. The
checkpoint and the pool lie in ``--work``; weights, log, metrics and manifest beside this file (``--out``).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from models.ct_denoise import losses
from models.ct_denoise.bundle import save
from models.ct_denoise.data import Patches, Pool, draw_patches, true_sigma
from models.ct_denoise.net import DenoiseUNet, build
from models.ct_denoise.noise import noise_map
from models.ct_denoise.simulate import EVALUATION_SEED


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What a training run is."""

    #: Optimiser steps.
    steps: int = 7000
    #: Simulated slices in the pool.
    pool: int = 240
    #: Slices per step, patches per slice, patch side [pixel].
    slices: int = 2
    per_slice: int = 2
    patch: int = 128
    #: Peak learning rate of AdamW; one cosine after a warm-up.
    rate: float = 1.2e-3
    warm_up: int = 200
    #: Decay of the averaged weights, which are the ones shipped.
    average: float = 0.998
    #: Arguments of the network.
    widths: tuple[int, ...] = (32, 48, 64)
    blocks: int = 2
    #: Weights of the loss terms; the last two hold for the cautious estimate only.
    gradient: float = 0.1
    spectrum: float = 0.2
    insert: float = 0.8
    #: The insert term weighs this much at the end, rising between these shares of the steps: once the network can tell
    #: noise from structure, faint structure is what it still takes for noise.
    insert_late: float = 1.6
    insert_rise: tuple[float, float] = (2500 / 7000, 0.5)
    #: The strength at which the spectrum term holds.
    strength: float = 0.6
    seed: int = 0


CONFIGS: Final = {
    "cpu": Config(),
    "gpu": Config(steps=40_000, pool=2000, slices=12, per_slice=2, rate=2e-3, average=0.9995),
    "gpu-large": Config(steps=60_000, pool=3000, slices=16, widths=(64, 128, 256), blocks=4, rate=1e-3, average=0.9995),
}
#: Steps between two validations, and between two checkpoints.
VALIDATE_EVERY: Final = 500
CHECKPOINT_EVERY: Final = 250
#: The network must bear a noise map that is wrong by this factor.
SIGMA_JITTER: Final = 0.15


def _losses(net: DenoiseUNet, batch: Patches, config: Config, jitter: Tensor) -> dict[str, Tensor]:
    first, second = batch.noise
    count = len(first)
    images = torch.cat((batch.clean + first, batch.clean + second, batch.clean + batch.insert + first))
    with torch.no_grad():
        sigma = noise_map(images) * jitter
        scale = true_sigma(batch.noise).repeat(3, 1, 1, 1)
    with torch.autocast(images.device.type, torch.bfloat16):
        predicted = net(images.contiguous(memory_format=torch.channels_last), sigma).float()
    clean = torch.cat((batch.clean, batch.clean, batch.clean + batch.insert))
    error = (predicted - torch.cat((first, second, first))) / scale
    cautious = predicted[:, :1]
    given = (first - second)[:, 0]
    left = given - config.strength * (cautious[:count] - cautious[count : 2 * count])[:, 0]
    return {
        "least": losses.charbonnier(error[:, 1:], clean),
        "least_gradient": losses.gradient_l1(error[:, 1:], clean),
        "pixel": losses.charbonnier(error[:, :1], clean),
        "gradient": losses.gradient_l1(error[:, :1], clean),
        "spectrum": losses.spectrum_shape(given / scale[:count, 0], left / scale[:count, 0]),
        "insert": losses.insert_loss(cautious[2 * count :] - cautious[:count], batch.insert),
    }


def _total(parts: dict[str, Tensor], config: Config, step: int) -> Tensor:
    begin, end = config.insert_rise
    risen = min(1.0, max(0.0, (step / config.steps - begin) / (end - begin)))
    insert = config.insert + risen * (config.insert_late - config.insert)
    least = parts["least"] + config.gradient * parts["least_gradient"]
    cautious = parts["pixel"] + config.gradient * parts["gradient"]
    return least + cautious + config.spectrum * parts["spectrum"] + insert * parts["insert"]


def _rate(step: int, config: Config) -> float:
    if step < config.warm_up:
        return config.rate * (step + 1) / config.warm_up
    phase = (step - config.warm_up) / max(1, config.steps - config.warm_up)
    return config.rate * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * phase)))


def _jitter(seed: int, count: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    factor = 1.0 + SIGMA_JITTER * (2.0 * torch.rand(count, generator=generator) - 1.0)
    return factor.repeat(3)[:, None, None, None].to(device)


class Trainer:
    """Network, averaged network and optimiser, with one checkpoint file."""

    def __init__(self, config: Config, work: Path, device: torch.device) -> None:
        self.config, self.device = config, device
        self.checkpoint = work / "checkpoint.pt"
        torch.manual_seed(config.seed)
        arguments = {"widths": list(config.widths), "blocks": config.blocks}
        self.net = build("denoise_unet", arguments).to(device, memory_format=torch.channels_last)
        self.average = build("denoise_unet", arguments).to(device)
        self.average.load_state_dict(self.net.state_dict())
        self.optimiser = torch.optim.AdamW(self.net.parameters(), lr=config.rate, weight_decay=1e-4)
        self.step, self.seconds, self.history = 0, 0.0, []  # type: int, float, list[dict[str, float]]
        if self.checkpoint.exists():
            self._restore()

    def _restore(self) -> None:
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        if state["config"] != json.dumps(asdict(self.config)):
            raise SystemExit(f"{self.checkpoint} belongs to another configuration; remove it or use another --work")
        self.net.load_state_dict(state["net"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds, self.history = state["step"], state["seconds"], state["history"]

    def keep(self) -> None:
        """Write the checkpoint so that a kill at any moment leaves the old or the new one whole."""
        state: dict[str, Any] = {"net": self.net.state_dict(), "average": self.average.state_dict()}
        state |= {"optimiser": self.optimiser.state_dict(), "step": self.step, "seconds": self.seconds}
        state |= {"history": self.history, "config": json.dumps(asdict(self.config))}
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, self.checkpoint.with_suffix(".new"))
        self.checkpoint.with_suffix(".new").replace(self.checkpoint)

    def advance(self, pool: Pool) -> dict[str, float]:
        """One optimiser step; returns the parts of the loss."""
        config, seed = self.config, self.config.seed * 10_000_000 + self.step
        for group in self.optimiser.param_groups:
            group["lr"] = _rate(self.step, config)
        batch = draw_patches(pool, seed, config.slices, config.per_slice, config.patch)
        parts = _losses(self.net, batch, config, _jitter(seed, config.slices * config.per_slice, self.device))
        self.optimiser.zero_grad(set_to_none=True)
        _total(parts, config, self.step).backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimiser.step()
        decay = min(config.average, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            for kept, new in zip(self.average.parameters(), self.net.parameters(), strict=True):
                kept.lerp_(new, 1.0 - decay)
        self.step += 1
        return {name: value.detach() for name, value in parts.items()}  # type: ignore[misc]

    @torch.no_grad()
    def validate(self, pool: Pool) -> dict[str, float]:
        """The loss parts of the averaged network on held-out slices, always the same patches."""
        sums: dict[str, float] = {}
        batches = 12
        for index in range(batches):
            batch = draw_patches(pool, EVALUATION_SEED + index, 2, 2, self.config.patch)
            parts = _losses(self.average, batch, self.config, torch.ones(12, 1, 1, 1, device=self.device))
            for name, value in parts.items():
                sums[name] = sums.get(name, 0.0) + float(value) / batches
        return sums


def train(config: Config, work: Path, out: Path, device: torch.device, limit_s: float) -> None:
    """Run to the end, or until ``limit_s`` seconds of this call are spent; the checkpoint carries the rest."""
    pool = Pool.make(config.pool, config.seed * 100_000, device, work / "pool.safetensors")
    held_out = Pool.make(12, EVALUATION_SEED, device)
    trainer = Trainer(config, work, device)
    begun = mark = time.monotonic()
    running: dict[str, Any] = {}
    while trainer.step < config.steps and time.monotonic() - begun < limit_s:
        parts = trainer.advance(pool)
        running = {name: running.get(name, value) * 0.98 + value * 0.02 for name, value in parts.items()}
        now = time.monotonic()
        trainer.seconds, mark = trainer.seconds + now - mark, now
        if trainer.step % 50 == 0:
            left = (config.steps - trainer.step) * trainer.seconds / trainer.step
            text = " ".join(f"{name} {float(value):.4f}" for name, value in running.items())
            print(f"step {trainer.step}/{config.steps} {text} | {left / 60:.0f} min left", flush=True)
        if trainer.step % VALIDATE_EVERY == 0 or trainer.step == config.steps:
            record = {"step": trainer.step, "seconds": round(trainer.seconds)} | trainer.validate(pool=held_out)
            trainer.history.append(record)
            print("held out: " + json.dumps({name: round(value, 4) for name, value in record.items()}), flush=True)
        if trainer.step % CHECKPOINT_EVERY == 0:
            trainer.keep()
    trainer.keep()
    if trainer.step >= config.steps:
        export(trainer, out)


def export(trainer: Trainer, out: Path) -> None:
    """Write the averaged weights, the log and the manifest."""
    config = trainer.config
    log = {
        "command": "python -m models.ct_denoise.train",
        "config": asdict(config),
        "steps": trainer.step,
        "seconds": round(trainer.seconds),
        "device": trainer.device.type,
        "torch": torch.__version__,
        "held_out": trainer.history,
    }
    (out / "training.json").write_text(json.dumps(log, indent=1) + "\n")
    arguments = {"widths": list(config.widths), "blocks": config.blocks}
    save(trainer.average, out, "denoise_unet", arguments)
    print(f"wrote {out / 'weights.safetensors'}")


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=sorted(CONFIGS), default="cpu")
    parser.add_argument("--work", type=Path, default=Path("build/ct_denoise"), help="checkpoint and pool")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="weights, log and manifest")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, default=float("inf"), help="stop after this many seconds, resumable")
    parser.add_argument("--export", action="store_true", help="write the weights of the checkpoint as it stands")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config, device = CONFIGS[arguments.config], torch.device(arguments.device)
    if arguments.export:
        export(Trainer(config, arguments.work, device), arguments.out)
    else:
        train(config, arguments.work, arguments.out, device, arguments.limit)


if __name__ == "__main__":
    main()
