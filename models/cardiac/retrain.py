"""Go on from packed weights with patients of a data set: what ``train --data DIR`` does.

Patients are split once, by name; a share of every batch stays simulated, so that nothing is forgotten that the data
does not show; the weights that were best on the watched patients are packed as a folder that
the pipeline can be pointed at.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from models.cardiac import adapters, bundle, cases, losses, ranges
from models.cardiac.cases import Case, Example
from models.cardiac.precision import precision
from models.cardiac.train import Member, Trainer, rate, simulated
from models.cardiac.tune import EMPTY_SHARE
from models.cardiac.weak import VolumeTeacher

#: Share of every batch that stays simulated (ml-mr 4).
SIMULATED: Final = 0.3
#: Steps between two looks at the watched patients, and looks without a better Dice after which it ends.
WATCH_EVERY: Final = 40
PATIENCE: Final = 6
#: Every so many steps one patient with volumes alone is learnt from.
VOLUMES_EVERY: Final = 4
#: Slices that a look at patients takes at the most, spread over all of theirs.
MOST_SLICES: Final = 240
_NAMES: Final = ((1, "rv"), (2, "myo"), (3, "lv"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How one retraining runs."""

    steps: int = 600
    batch: int = 8
    rate: float = 3e-4
    warm_up: int = 20
    seed: int = 11


class Pool:
    """Slices of some patients, drawn at random."""

    def __init__(self, chosen: Sequence[Case]) -> None:
        self.drawn: list[Example] = [one for case in chosen for one in case.drawn]
        self.empty: list[Example] = [one for case in chosen for one in case.empty]
        self.volumes = [case.volumes for case in chosen if case.volumes is not None]

    def draw(self, member: Member, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """One slice, image and codes on the member's grid."""
        some = self.empty if self.empty and rng.random() < EMPTY_SHARE else self.drawn
        return cases.warped(some[int(rng.integers(len(some)))], member.pixels, member.pixel_mm, rng)


def batch(pool: Pool, member: Member, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, codes and positions; a slice is simulated with the chance ``SIMULATED``, or if nothing is drawn."""
    fake = count if not pool.drawn else int((rng.random(count) < SIMULATED).sum())
    parts = [simulated(member, rng, fake)] if fake else []
    if fake < count:
        real = [pool.draw(member, rng) for _ in range(count - fake)]
        images = torch.stack([one[0] for one in real])[:, None].float()
        unknown = torch.full((count - fake,), losses.UNKNOWN_POSITION)
        parts.append((images, torch.stack([one[1] for one in real]), unknown))
    images, codes, positions = (torch.cat(some) for some in zip(*parts, strict=True))
    return images, codes, positions


@torch.no_grad()
def dice(trainer: Trainer, chosen: Sequence[Case]) -> dict[str, float]:
    """Dice by class over the drawn slices of some patients, of what each drawing knows."""
    every = [one for case in chosen for one in case.drawn]
    every = every[:: max(1, len(every) // MOST_SLICES)]
    sums = {name: np.zeros(2) for _, name in _NAMES}
    for example in every:
        image, codes = cases.upright(example, trainer.member.pixels, trainer.member.pixel_mm)
        with precision(trainer.device):
            logits = trainer.average(image[None, None].float().to(trainer.device))
        called = logits.pixels.argmax(1)[0].cpu()
        for k, name in _NAMES:
            if not bool((codes == k).any()):
                continue  # not drawn here, or not known
            a, b = called == k, codes == k
            sums[name] += 2.0 * float((a & b).sum()), float(a.sum() + b.sum())
    return {name: round(float(two / all_), 4) for name, (two, all_) in sums.items() if all_ > 0}


def watched_score(trainer: Trainer, watched: Sequence[Case]) -> dict[str, float]:
    """What stopping is decided by: Dice of the watched patients, or of simulations where nobody can be watched."""
    found = dice(trainer, watched)
    return found or {key: value for key, value in trainer.validate().items() if key.startswith("dice")}


def retrain(
    data: Path, layout: str, weights: Path, out: Path, settings: Settings, device: torch.device
) -> dict[str, Any]:
    """Retrain every member of the package ``weights`` on ``data`` and pack the result into ``out``.

    Returns
    -------
    dict
        What was learnt from and how it went: the package's ``training.json``.
    """
    name, everyone, lost = adapters.read(data, layout)
    for sentence in lost:
        print(f"left out: {sentence}", flush=True)
    trained, watched, tested = adapters.split(everyone)
    print(f"{name}: {len(trained)} patients to train on, {len(watched)} watched, {len(tested)} tested on", flush=True)
    package, _ = bundle.load(weights, torch.device("cpu"))
    tensors = bundle.tensors_of(weights)
    states, members, log = {}, {}, {}  # type: dict[str, dict[str, Tensor]], dict[str, Any], dict[str, Any]
    for key, described in package.manifest["members"].items():
        view = described["views"][0]
        widths = tuple(int(width) for width in described["arguments"]["widths"])
        member = Member(
            name=key, pixels=int(view["pixels"]), pixel_mm=float(view["pixel_mm"]), widths=widths, seed=settings.seed,
            steps=settings.steps, batch=settings.batch, rate=settings.rate, warm_up=settings.warm_up,
        )  # fmt: skip
        trainer = Trainer(member, out / f"{key}.checkpoint", device)  # never written: this takes minutes
        trainer.net.load_state_dict(tensors[key])
        trainer.average.load_state_dict(tensors[key])
        states[key], history = _run(trainer, Pool(trained), watched)
        trainer.average.load_state_dict(states[key])
        members[key] = described
        log[key] = {"history": history, "tested": dice(trainer, tested), "watched": dice(trainer, watched)}
    facts = {
        "format": name, "from": package.sha256, "settings": {"steps": settings.steps, "seed": settings.seed},
        "patients": {"trained": len(trained), "watched": len(watched), "tested": len(tested), "left_out": len(lost)},
        "data_sha256": _digest(everyone), "members": log,
    }  # fmt: skip
    text = (
        f"{package.manifest['training_data']}; then {len(trained)} patients of {name}, sha256 {_digest(trained)[:16]}"
    )
    version = f"{package.version}+{name}.{_digest(trained)[:8]}"
    out.mkdir(parents=True, exist_ok=True)
    bundle.save(states, {"version": version, "training_data": text, "members": members}, out)
    _keep_ranges(weights, out)
    (out / "training.json").write_text(json.dumps(facts, indent=1) + "\n")
    tested_on = {"patients": len(tested), "dice": {key: one["tested"] for key, one in log.items()}}
    (out / "evaluation.json").write_text(json.dumps(tested_on, indent=1) + "\n")
    return facts


def _keep_ranges(weights: Path, out: Path) -> None:
    """Reference ranges belong to the site, not to the weights: they come along."""
    there = weights / ranges.FILE
    if there.is_file() and out.resolve() != weights.resolve():
        shutil.copyfile(there, out / ranges.FILE)


def _run(trainer: Trainer, pool: Pool, watched: Sequence[Case]) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """Train to the end or until it gets no better; the weights that were best on the watched patients."""
    member, teacher = trainer.member, VolumeTeacher(pool.volumes)
    best = watched_score(trainer, watched)
    history: list[dict[str, float]] = [{"step": 0, **best}]
    kept, since = _copied(trainer), 0
    while trainer.step < member.steps and since < PATIENCE:
        rng = np.random.default_rng([member.seed, 13, trainer.step])
        lr = rate(trainer.step, member.rate, member.warm_up, member.steps)
        if teacher.pool and trainer.step % VOLUMES_EVERY == VOLUMES_EVERY - 1:
            teacher.teach(trainer, rng, lr)
        trainer.advance(*batch(pool, member, rng, member.batch), lr)
        if trainer.step % WATCH_EVERY == 0 or trainer.step == member.steps:
            now = watched_score(trainer, watched)
            history.append({"step": trainer.step, **now})
            print(f"{member.name}: step {trainer.step}/{member.steps} {json.dumps(now)}", flush=True)
            since += 1
            if _mean(now) > _mean(best):
                best, kept, since = now, _copied(trainer), 0
    return kept, history


def _mean(scores: dict[str, float]) -> float:
    return float(np.mean(list(scores.values()))) if scores else 0.0


def _copied(trainer: Trainer) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in trainer.average.state_dict().items()}


def _digest(chosen: Sequence[Case]) -> str:
    """Of what was drawn on whom: two data sets with one digest are the same."""
    found = hashlib.sha256()
    for case in sorted(chosen, key=lambda one: one.name):
        found.update(case.name.encode())
        for example in case.drawn:
            found.update(example.shares.tobytes())
        if case.volumes is not None:
            found.update(f"{case.volumes.edv_ml} {case.volumes.esv_ml}".encode())
    return found.hexdigest()
