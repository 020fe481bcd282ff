"""Train hemorrhage detection on simulated heads: ``python -m models.hemorrhage.train [--config s|m|l]``.

One command does all of it: it simulates the cases that are not in the cache yet, trains the slice network, fits the
study head, calibrates, and writes weights, log and manifest beside this file (``--out``). ``--config refine --start
FOLDER`` goes on from the weights of a finished run. Cases are seeded by their number and steps by theirs, so a run that
was stopped goes on as if it had not been; the cache and the checkpoint lie in ``--work``. ``--refit --start FOLDER``
trains nothing and only fits the study head again.
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

from models.hemorrhage import lesion, losses, study
from models.hemorrhage.bundle import load, read, save
from models.hemorrhage.data import Pool, batch_of, false_pixels
from models.hemorrhage.net import CLASS_LOGITS, Networks, build
from models.hemorrhage.precision import precision
from models.hemorrhage.scene import UNCLEAR
from models.hemorrhage.simulate import CALIBRATION_SEED, STUDY_SEED, simulate


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What a training run is."""

    #: Optimiser steps, and slices in each.
    steps: int = 9000
    slices: int = 8
    #: Simulated heads to train on, to fit the study head on, and to calibrate on; each gives four scans. The study head
    #: reads what the slice network says of heads it has not learnt by heart, or it would trust it too much.
    heads: int = 200
    study_heads: int = 20
    calibration_heads: int = 30
    #: Peak learning rate of AdamW; one cosine after a warm-up.
    rate: float = 2e-3
    warm_up: int = 150
    #: Decay of the averaged weights, which are the ones shipped.
    average: float = 0.998
    #: Arguments of the networks.
    widths: tuple[int, ...] = (16, 32, 64, 96, 128)
    depth: int = 2
    first_depth: int = 1
    study_width: int = 24
    seed: int = 0

    def arguments(self) -> dict[str, Any]:
        """What a manifest says of the networks."""
        names = ("depth", "first_depth", "study_width")
        return {"widths": list(self.widths), "lesion_width": lesion.WIDTH} | {
            name: getattr(self, name) for name in names
        }


CONFIGS: Final = {
    "s": Config(),
    # from the weights of "s" (--start), see the card
    "refine": Config(steps=3000, rate=7e-4, warm_up=50),
    "m": Config(steps=30_000, slices=24, heads=2000, widths=(24, 48, 96, 144, 192), average=0.9995),
    "l": Config(steps=60_000, slices=32, heads=5000, widths=(48, 96, 192, 320, 512), average=0.9995, rate=8e-4),
}
#: Steps between two validations, and between two checkpoints.
VALIDATE_EVERY: Final = 500
CHECKPOINT_EVERY: Final = 200
#: Slices of the study head's heads that a validation looks at.
VALIDATION_SLICES: Final = 64


def _rate(step: int, config: Config) -> float:
    if step < config.warm_up:
        return config.rate * (step + 1) / config.warm_up
    phase = (step - config.warm_up) / max(1, config.steps - config.warm_up)
    return config.rate * (0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * phase)))


class Trainer:
    """Network, averaged network, optimiser and sampling weights, with one checkpoint file."""

    def __init__(self, config: Config, work: Path, device: torch.device, pool: Pool) -> None:
        self.config, self.device, self.pool = config, device, pool
        self.checkpoint = work / "checkpoint.pt"
        torch.manual_seed(config.seed)
        self.net = build(config.arguments()).slices.to(device, memory_format=torch.channels_last)
        self.average = build(config.arguments()).slices.to(device, memory_format=torch.channels_last)
        self.average.load_state_dict(self.net.state_dict())
        self.optimiser = torch.optim.AdamW(self.net.parameters(), lr=config.rate, weight_decay=1e-3)
        self.step, self.seconds, self.history = 0, 0.0, []  # type: int, float, list[dict[str, float]]
        if self.checkpoint.exists():
            self._restore()

    def begin_from(self, folder: Path) -> None:
        """Take the weights of a finished run as the start; a checkpoint of this one goes first."""
        if self.step == 0:
            _, found = load(folder, self.device)
            self.net.load_state_dict(found.slices.state_dict())
            self.average.load_state_dict(found.slices.state_dict())

    def _restore(self) -> None:
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        if state["config"] != json.dumps(asdict(self.config)):
            raise SystemExit(f"{self.checkpoint} belongs to another configuration; remove it or use another --work")
        self.net.load_state_dict(state["net"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.pool.weight[:] = state["weight"].numpy()
        self.step, self.seconds, self.history = state["step"], state["seconds"], state["history"]

    def keep(self) -> None:
        """Write the checkpoint so that a kill at any moment leaves the old or the new one whole."""
        state: dict[str, Any] = {"net": self.net.state_dict(), "average": self.average.state_dict()}
        state |= {"optimiser": self.optimiser.state_dict(), "step": self.step, "seconds": self.seconds}
        state |= {"history": self.history, "config": json.dumps(asdict(self.config))}
        state["weight"] = torch.from_numpy(self.pool.weight.copy())
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, self.checkpoint.with_suffix(".new"))
        self.checkpoint.with_suffix(".new").replace(self.checkpoint)

    def advance(self) -> dict[str, float]:
        """One optimiser step; returns the parts of the loss."""
        rng = np.random.default_rng([self.config.seed, 3, self.step])
        for group in self.optimiser.param_groups:
            group["lr"] = _rate(self.step, self.config)
        batch = batch_of(self.pool, self.pool.draw(rng, self.config.slices), rng, self.device)
        with precision(self.device):
            findings = self.net(batch.channels.contiguous(memory_format=torch.channels_last))
        parts = losses.terms(findings, batch)
        self.optimiser.zero_grad(set_to_none=True)
        torch.stack(list(parts.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 2.0)
        self.optimiser.step()
        decay = min(self.config.average, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            for kept, new in zip(self.average.parameters(), self.net.parameters(), strict=True):
                kept.lerp_(new, 1.0 - decay)
        self.pool.weigh(batch.index, false_pixels(findings.pixels.detach(), batch.labels))
        self.step += 1
        return {name: float(value.detach()) for name, value in parts.items()}

    @torch.no_grad()
    def validate(self, held_out: Pool) -> dict[str, float]:
        """Dice by class of the averaged network over held-out slices, and wrong pixels per slice without blood."""
        rng = np.random.default_rng([self.config.seed, 4])
        index = held_out.draw(rng, VALIDATION_SLICES)
        sums, wrong, clean = np.zeros((CLASS_LOGITS, 2)), 0.0, 0
        for part in np.array_split(index, VALIDATION_SLICES // 8):
            batch = batch_of(held_out, part, None, self.device)
            with precision(self.device):
                called = self.average(batch.channels).pixels[:, :CLASS_LOGITS].argmax(1)
            valid, labels = batch.labels != UNCLEAR, batch.labels
            for k in range(CLASS_LOGITS):
                a = ((called > 0) if k == 0 else (called == k)) & valid
                b = ((labels > 0) if k == 0 else (labels == k)) & valid
                sums[k] += 2.0 * float((a & b).sum()), float(a.sum() + b.sum())
            without = batch.findings[:, 0].cpu().numpy() == 0
            wrong += float(false_pixels(torch.nn.functional.one_hot(called).movedim(-1, 1), labels)[without].sum())
            clean += int(without.sum())
        dice = sums[:, 0] / np.maximum(sums[:, 1], 1.0)
        names = ("any", "epidural", "subdural", "subarachnoid", "intraparenchymal", "intraventricular")
        return {f"dice_{name}": round(float(d), 4) for name, d in zip(names, dice, strict=True)} | {
            "wrong_pixels": round(wrong / max(1, clean), 3)
        }


def train(
    config: Config, work: Path, out: Path, device: torch.device, limit_s: float, start: Path | None = None
) -> None:
    """Run to the end, or until ``limit_s`` seconds of this call are spent; the checkpoint carries the rest.

    ``start``: folder of a finished run whose weights are the first.
    """
    begun = time.monotonic()
    files = simulate(work / "cases", config.seed * 100_000, config.heads)
    held_out = Pool(simulate(work / "cases", STUDY_SEED, config.study_heads))
    trainer = Trainer(config, work, device, Pool(files))
    if start is not None:
        trainer.begin_from(start)
    mark, running = time.monotonic(), {}  # type: float, dict[str, float]
    while trainer.step < config.steps and time.monotonic() - begun < limit_s:
        parts = trainer.advance()
        running = {name: running.get(name, value) * 0.98 + value * 0.02 for name, value in parts.items()}
        now = time.monotonic()
        trainer.seconds, mark = trainer.seconds + now - mark, now
        if trainer.step % 50 == 0:
            left = (config.steps - trainer.step) * trainer.seconds / trainer.step
            text = " ".join(f"{name} {value:.3f}" for name, value in running.items())
            print(f"step {trainer.step}/{config.steps} {text} | {left / 60:.0f} min left", flush=True)
        if trainer.step % VALIDATE_EVERY == 0 or trainer.step == config.steps:
            record = {"step": trainer.step, "seconds": round(trainer.seconds)} | trainer.validate(held_out)
            trainer.history.append(record)
            print("held out: " + json.dumps(record), flush=True)
        if trainer.step % CHECKPOINT_EVERY == 0:
            trainer.keep()
    trainer.keep()
    if trainer.step >= config.steps:
        finish(trainer, files, work / "cases", out, start)


def finish(trainer: Trainer, files: list[Path], cases: Path, out: Path, start: Path | None = None) -> None:
    """Fit what reads the slice network's findings, then write weights, log and manifest."""
    config, begun = trainer.config, time.monotonic()
    networks = build(config.arguments())
    networks.slices.load_state_dict(trainer.average.state_dict())
    unseen = simulate(cases, STUDY_SEED, config.study_heads)
    shape = study.fit_lesions(networks.lesions, files, unseen, config.seed)
    name = next((name for name, known in CONFIGS.items() if known == config), "s")
    log: dict[str, Any] = {
        "command": "python -m models.hemorrhage.train" + (f" --config {name}" if name != "s" else ""),
        "config": asdict(config),
        "steps": trainer.step,
        "training_seconds": round(trainer.seconds),
        "device": trainer.device.type,
        "torch": torch.__version__,
        "held_out": trainer.history,
        "lesion_classes": shape,
    }
    if start is not None:
        log["command"] += " --start FOLDER"
        log["started_from"] = {"weights_sha256": read(start).sha256} | json.loads((start / "training.json").read_text())
    fitted = _fit_study(networks, config, cases, trainer.device)
    log |= {"study": fitted.log, "study_seconds": round(time.monotonic() - begun)}
    _write(networks, config.arguments(), out, fitted, log)


def refit(config: Config, cases: Path, out: Path, device: torch.device, start: Path) -> None:
    """Fit the study head, its scaling and the operating points of a finished run again; its other weights stay."""
    package, networks = load(start, device)
    fitted = _fit_study(networks, config, cases, device)
    log = {
        "command": "python -m models.hemorrhage.train --refit --start FOLDER",
        "config": {name: getattr(config, name) for name in ("study_heads", "calibration_heads", "seed")},
        "device": device.type,
        "torch": torch.__version__,
        "study": fitted.log,
        "started_from": {"weights_sha256": package.sha256} | json.loads((start / "training.json").read_text()),
    }
    _write(networks, dict(package.manifest["network"]["arguments"]), out, fitted, log)


def _fit_study(networks: Networks, config: Config, cases: Path, device: torch.device) -> study.Fitted:
    """The study head on heads of its own, calibrated on others."""
    unseen = simulate(cases, STUDY_SEED, config.study_heads)
    calibration = simulate(cases, CALIBRATION_SEED, config.calibration_heads)
    return study.fit(networks, unseen, calibration, device, config.seed)


def _write(networks: Networks, arguments: dict[str, Any], out: Path, fitted: study.Fitted, log: dict[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "training.json").write_text(json.dumps(log, indent=1) + "\n")
    save(networks, out, arguments, fitted.calibration)
    print(f"wrote {out / 'weights.safetensors'}")


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=sorted(CONFIGS), default="s")
    parser.add_argument("--work", type=Path, default=Path("build/hemorrhage"), help="checkpoint and simulated cases")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="weights, log and manifest")
    parser.add_argument("--start", type=Path, metavar="FOLDER", help="begin with the weights of a finished run")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, default=float("inf"), help="stop after this many seconds, resumable")
    parser.add_argument("--refit", action="store_true", help="train nothing: fit the study head of --start again")
    options = parser.parse_args()
    if options.refit and options.start is None:
        parser.error("--refit needs --start")
    torch.set_num_threads(options.threads)
    config, device = CONFIGS[options.config], torch.device(options.device)
    if options.refit:
        refit(config, options.work / "cases", options.out, device, options.start)
    else:
        train(config, options.work, options.out, device, options.limit, options.start)


if __name__ == "__main__":
    main()
