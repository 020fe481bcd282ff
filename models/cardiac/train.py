"""Train a member on simulated hearts: ``python -m models.cardiac.train --member wide``.

With ``--data DIR`` go on from the shipped weights with patients of a data set instead (``adapters`` lists the layouts):
``python -m models.cardiac.train --data DIR --format auto --out MODEL`` packs a folder for the pipeline's ``weights``.

Every step draws hearts that are never seen again, seeded by the step, so a run that was stopped goes on as if it had
not been; the checkpoint lies in ``--work``. ``tune`` then goes on with real contours, and ``bundle`` packs the members.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from models.cardiac import losses
from models.cardiac.net import CLASSES, build
from models.cardiac.precision import precision
from models.cardiac.simulate import TEST_SEED, VERSION, draw_slice


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One network of the ensemble and how it is trained."""

    name: str
    #: The square grid that it sees.
    pixels: int
    pixel_mm: float
    widths: tuple[int, ...]
    #: Optimiser steps on simulated slices, slices in each, and steps with real contours.
    steps: int
    batch: int = 8
    tuning_steps: int = 280
    #: Peak learning rates of AdamW; one cosine each, after a warm-up.
    rate: float = 2e-3
    tuning_rate: float = 7e-4
    warm_up: int = 60
    #: Decay of the averaged weights, which are the ones shipped.
    average: float = 0.99
    seed: int = 0
    #: The member whose simulation weights this one starts from; none where empty.
    start: str = ""


#: The members differ on purpose in what they see (ml-mr 2.1): context or detail. Each goes on from the one before, on a
#: later version of the simulator; those of ``SHIPPED`` are the ensemble, the others are where these began.
MEMBERS: Final = {
    "wide": Member(name="wide", pixels=96, pixel_mm=2.25, widths=(16, 32, 64, 96), steps=1500),
    "fine": Member(
        name="fine", pixels=96, pixel_mm=1.6, widths=(16, 32, 64, 96), steps=250, rate=1e-3, seed=1, start="wide"
    ),
    "middle": Member(
        name="middle", pixels=96, pixel_mm=1.8, widths=(16, 32, 64, 96), steps=500, rate=1.5e-3, seed=2, start="fine"
    ),
    "near": Member(
        name="near", pixels=96, pixel_mm=1.6, widths=(16, 32, 64, 96), steps=1000, rate=1.5e-3, seed=3, start="middle"
    ),
}
SHIPPED: Final = ("middle", "near")
#: Steps between two validations, and between two checkpoints; simulated slices of a validation.
VALIDATE_EVERY: Final = 250
CHECKPOINT_EVERY: Final = 50
VALIDATION_SLICES: Final = 64


def rate(step: int, peak: float, warm_up: int, steps: int) -> float:
    """The learning rate at a step."""
    if step < warm_up:
        return peak * (step + 1) / warm_up
    return peak * (0.02 + 0.49 * (1.0 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up))))


def simulated(member: Member, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images (slice, 1, row, column), codes (slice, row, column) and positions (slice,) of hearts never seen again."""
    drawn = [draw_slice(rng, member.pixels, member.pixel_mm) for _ in range(count)]
    images = torch.from_numpy(np.stack([one.image for one in drawn]))[:, None]
    codes = torch.from_numpy(np.stack([one.labels for one in drawn]))
    return images, codes, torch.tensor([one.position for one in drawn])


class Trainer:
    """Network, averaged network and optimiser, with one checkpoint file."""

    def __init__(self, member: Member, checkpoint: Path, device: torch.device) -> None:
        self.member, self.device, self.checkpoint = member, device, checkpoint
        torch.manual_seed(member.seed)
        arguments = {"widths": member.widths}
        self.net = build(arguments).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = build(arguments).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average.load_state_dict(self.net.state_dict())
        self.optimiser = torch.optim.AdamW(self.net.parameters(), lr=member.rate, weight_decay=1e-3)
        self.step, self.seconds, self.history = 0, 0.0, []  # type: int, float, list[dict[str, float]]
        if checkpoint.exists():
            self._restore()

    def _restore(self) -> None:
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        if state["member"] != json.dumps(asdict(self.member)):
            raise SystemExit(f"{self.checkpoint} belongs to another configuration; remove it or use another --work")
        self.net.load_state_dict(state["net"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds, self.history = state["step"], state["seconds"], state["history"]

    def begin_with(self, other: Path) -> None:
        """Take the averaged weights of another member's checkpoint."""
        if not other.exists():
            raise SystemExit(f"{other} is missing: train the member that {self.member.name} starts from first")
        state = torch.load(other, map_location=self.device, weights_only=True)["average"]
        self.net.load_state_dict(state)
        self.average.load_state_dict(state)

    def keep(self) -> None:
        """Write the checkpoint so that a kill at any moment leaves the old or the new one whole."""
        state: dict[str, Any] = {"net": self.net.state_dict(), "average": self.average.state_dict()}
        state |= {"optimiser": self.optimiser.state_dict(), "step": self.step, "seconds": self.seconds}
        state |= {"history": self.history, "member": json.dumps(asdict(self.member)), "simulator": VERSION}
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, self.checkpoint.with_suffix(".new"))
        self.checkpoint.with_suffix(".new").replace(self.checkpoint)

    def advance(self, images: Tensor, codes: Tensor, positions: Tensor, lr: float) -> dict[str, float]:
        """One optimiser step at a learning rate; returns the parts of the loss."""
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        with precision(self.device):
            logits = self.net(images.to(self.device).contiguous(memory_format=torch.channels_last))
        parts = losses.terms(logits, codes.to(self.device), positions.to(self.device))
        self.optimiser.zero_grad(set_to_none=True)
        torch.stack(list(parts.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 2.0)
        self.optimiser.step()
        decay = min(self.member.average, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            for kept, new in zip(self.average.parameters(), self.net.parameters(), strict=True):
                kept.lerp_(new, 1.0 - decay)
        self.step += 1
        return {name: float(value.detach()) for name, value in parts.items()}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Dice by class and share of right positions of the averaged network on simulated slices never trained on."""
        sums, right = np.zeros((CLASSES, 2)), 0.0
        rng = np.random.default_rng([TEST_SEED, 2])
        for _ in range(VALIDATION_SLICES // 16):
            images, codes, positions = simulated(self.member, rng, 16)
            with precision(self.device):
                logits = self.average(images.to(self.device))
            called = logits.pixels.argmax(1).cpu()
            right += float((logits.positions.argmax(1).cpu() == positions).sum())
            for k in range(CLASSES):
                a, b = called == k, codes == k
                sums[k] += 2.0 * float((a & b).sum()), float(a.sum() + b.sum())
        dice = sums[:, 0] / np.maximum(sums[:, 1], 1.0)
        found = {f"dice_{name}": round(float(d), 4) for name, d in zip(("rv", "myo", "lv"), dice[1:], strict=True)}
        return found | {"position": round(right / VALIDATION_SLICES, 3)}


def train(member: Member, work: Path, device: torch.device, limit_s: float) -> None:
    """Run to the end, or until ``limit_s`` seconds of this call are spent; the checkpoint carries the rest."""
    trainer = Trainer(member, work / member.name / "simulation.pt", device)
    if member.start and trainer.step == 0:
        trainer.begin_with(work / member.start / "simulation.pt")
    begun = mark = time.monotonic()
    running: dict[str, float] = {}
    while trainer.step < member.steps and time.monotonic() - begun < limit_s:
        rng = np.random.default_rng([member.seed, 3, trainer.step])
        lr = rate(trainer.step, member.rate, member.warm_up, member.steps)
        parts = trainer.advance(*simulated(member, rng, member.batch), lr)
        running = {name: running.get(name, value) * 0.97 + value * 0.03 for name, value in parts.items()}
        now = time.monotonic()
        trainer.seconds, mark = trainer.seconds + now - mark, now
        if trainer.step % 25 == 0:
            left = (member.steps - trainer.step) * trainer.seconds / trainer.step
            text = " ".join(f"{name} {value:.3f}" for name, value in running.items())
            print(f"step {trainer.step}/{member.steps} {text} | {left / 60:.0f} min left", flush=True)
        if trainer.step % VALIDATE_EVERY == 0 or trainer.step == member.steps:
            record = {"step": trainer.step, "seconds": round(trainer.seconds)} | trainer.validate()
            trainer.history.append(record)
            print("held out: " + json.dumps(record), flush=True)
        if trainer.step % CHECKPOINT_EVERY == 0:
            trainer.keep()
    trainer.keep()


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--member", choices=sorted(MEMBERS), default="wide")
    parser.add_argument("--work", type=Path, default=Path("build/cardiac"), help="checkpoints")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, default=float("inf"), help="stop after this many seconds, resumable")
    parser.add_argument("--data", type=Path, help="patients of a data set: retrain the packed weights on them")
    parser.add_argument("--format", default="auto", help="layout of --data (default: the one it holds)")
    parser.add_argument("--weights", type=Path, default=Path(__file__).parent, help="package to start from")
    parser.add_argument("--out", type=Path, default=Path("build/cardiac/retrained"), help="package of --data")
    parser.add_argument("--steps", type=int, default=600, help="at the most, with --data")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.data is not None:
        from models.cardiac import retrain  # which builds on this module

        settings = retrain.Settings(steps=options.steps)
        device = torch.device(options.device)
        retrain.retrain(options.data, options.format, options.weights, options.out, settings, device)
        return
    train(MEMBERS[options.member], options.work, torch.device(options.device), options.limit)


if __name__ == "__main__":
    main()
