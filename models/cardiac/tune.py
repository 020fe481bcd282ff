"""Go on with real contours: ``python -m models.cardiac.tune --member wide --data DIR [--leave-out NAME]``.

Half of each batch stays simulated, so that the right ventricle, which nobody drew, is not forgotten. Writes
``tuned-NAME.pt`` (``tuned-none.pt`` where all patients are used) beside the member's simulation checkpoint.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from models.cardiac import cases, localise, losses, scd
from models.cardiac.cases import Example, Known
from models.cardiac.train import CHECKPOINT_EVERY, MEMBERS, Member, Trainer, rate, simulated

#: Share of real slices on which the expert drew nothing although the phase is ED or ES: there is no cavity there.
EMPTY_SHARE: Final = 0.12


def examples(patient: scd.Patient) -> tuple[list[Example], list[Example]]:
    """Slices with contours, and slices of the same phases without any."""
    spacing = patient.pixel_mm, patient.pixel_mm
    centre = localise.centre(patient.images, spacing)
    drawn, empty = [], []
    for phase in (patient.ed, patient.es):
        here = patient.at(phase)
        for k in range(patient.images.shape[1]):
            image = patient.images[phase, k]
            if k not in here:
                empty.append(Example(image, np.zeros((1, *image.shape), np.float32), Known.CAVITY, centre, spacing))
                continue
            inner, outer = here[k].inner, here[k].outer
            known = Known.CAVITY if outer is None else Known.OUTLINES
            shares = np.stack([inner] if outer is None else [inner, outer])
            drawn.append(Example(image, shares, known, centre, spacing))
    return cases.recentred(drawn, empty)


def warped(example: Example, member: Member, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """One example turned, zoomed, shifted and bent onto the member's grid: image (row, column) and codes."""
    return cases.warped(example, member.pixels, member.pixel_mm, rng)


def real(
    member: Member, pool: tuple[list[Example], list[Example]], rng: np.random.Generator, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Images (slice, 1, row, column), codes (slice, row, column) and unknown positions (slice,) of real slices."""
    chosen = [pool[1] if pool[1] and rng.random() < EMPTY_SHARE else pool[0] for _ in range(count)]
    made = [warped(some[int(rng.integers(len(some)))], member, rng) for some in chosen]
    images, codes = torch.stack([one[0] for one in made])[:, None].float(), torch.stack([one[1] for one in made])
    return images, codes, torch.full((count,), losses.UNKNOWN_POSITION)


def tune(member: Member, work: Path, folders: list[Path], name: str, device: torch.device) -> Path:
    """Fine-tune on the patients of ``folders``; returns the file of the averaged weights."""
    trainer = Trainer(member, work / member.name / "simulation.pt", device)
    if trainer.step < member.steps:
        raise SystemExit(f"{trainer.checkpoint}: train the member on simulations first")
    trainer.net.load_state_dict(trainer.average.state_dict())
    trainer.optimiser.state.clear()
    out = work / member.name / f"tuned-{name}.pt"
    trainer.checkpoint = out.with_suffix(".checkpoint")
    trainer.step, trainer.seconds, trainer.history = 0, 0.0, []
    if trainer.checkpoint.exists():
        trainer._restore()
    parts = [examples(scd.read(folder)) for folder in folders]
    pool = [one for part in parts for one in part[0]], [one for part in parts for one in part[1]]
    mark, running = time.monotonic(), {}  # type: float, dict[str, float]
    while trainer.step < member.tuning_steps:
        rng = np.random.default_rng([member.seed, 7, trainer.step])
        halves = simulated(member, rng, member.batch // 2), real(member, pool, rng, member.batch // 2)
        images, codes, positions = (torch.cat(pair) for pair in zip(*halves, strict=True))
        lr = rate(trainer.step, member.tuning_rate, member.warm_up // 3, member.tuning_steps)
        found = trainer.advance(images, codes, positions, lr)
        running = {key: running.get(key, value) * 0.97 + value * 0.03 for key, value in found.items()}
        trainer.seconds, mark = trainer.seconds + time.monotonic() - mark, time.monotonic()
        if trainer.step % 40 == 0:
            text = " ".join(f"{key} {value:.3f}" for key, value in running.items())
            print(f"{name}: step {trainer.step}/{member.tuning_steps} {text}", flush=True)
        if trainer.step % CHECKPOINT_EVERY == 0:
            trainer.keep()
    record = trainer.validate()
    print(f"{name}: held out " + json.dumps(record), flush=True)
    torch.save(trainer.average.state_dict(), out)
    return out


def main() -> None:
    """Read the command line and fine-tune."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--member", choices=sorted(MEMBERS), default="wide")
    parser.add_argument("--data", type=Path, required=True, help="folder of patients as models.cardiac.scd reads them")
    parser.add_argument("--leave-out", default="none", help="name of the patient that is not trained on")
    parser.add_argument("--work", type=Path, default=Path("build/cardiac"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folders = [folder for folder in scd.patients(options.data) if folder.name != options.leave_out]
    tune(MEMBERS[options.member], options.work, folders, options.leave_out, torch.device(options.device))


if __name__ == "__main__":
    main()
