"""Go on with real contours: ``python -m models.cardiac.tune --member wide --data DIR [--leave-out NAME]``.

Half of each batch stays simulated, so that the right ventricle, which nobody drew, is not forgotten. Writes
``tuned-NAME.pt`` (``tuned-none.pt`` where all patients are used) beside the member's simulation checkpoint.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.cardiac import acquire, display, localise, losses, scd
from models.cardiac.train import CHECKPOINT_EVERY, MEMBERS, Member, Trainer, rate, simulated

#: Share of real slices on which the expert drew nothing although the phase is ED or ES: there is no cavity there.
EMPTY_SHARE: Final = 0.12
#: Spread of the crop's middle around the heart [mm], of turns [degrees], and the range of zooms.
JITTER_MM: Final = 8.0
TURN: Final = 25.0
ZOOM: Final = (0.85, 1.2)


@dataclass(frozen=True, slots=True)
class Example:
    """One real slice; fields are (row, column) in its own pixels."""

    image: NDArray[np.float32]
    #: Shares of each pixel inside the inner and the outer contour; outer None where nobody drew it.
    inner: NDArray[np.float32]
    outer: NDArray[np.float32] | None
    centre: tuple[float, float]
    pixel_mm: float


def examples(patient: scd.Patient) -> tuple[list[Example], list[Example]]:
    """Slices with contours, and slices of the same phases without any."""
    centre = localise.centre(patient.images, (patient.pixel_mm, patient.pixel_mm))
    drawn, empty = [], []
    for phase in (patient.ed, patient.es):
        here = patient.at(phase)
        for k in range(patient.images.shape[1]):
            image = patient.images[phase, k]
            if k in here:
                drawn.append(Example(image, here[k].inner, here[k].outer, centre, patient.pixel_mm))
            else:
                empty.append(Example(image, np.zeros_like(image), None, centre, patient.pixel_mm))
    return drawn, empty


def codes_of(inner: Tensor, outer: Tensor | None) -> Tensor:
    """(row, column) codes of ``losses`` from shares of pixels."""
    if outer is None:
        return torch.where(inner > 0.5, 3, losses.NOT_LV).to(torch.uint8)
    ring = torch.where(outer > 0.5, 2, losses.OUTSIDE)
    return torch.where(inner > 0.5, 3, ring).to(torch.uint8)


def warped(example: Example, member: Member, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """One example turned, zoomed, shifted and bent onto the member's grid: image (row, column) and codes."""
    pose = acquire.Pose(
        turn=np.deg2rad(rng.normal(0.0, TURN)) + np.pi / 2 * rng.integers(0, 4) * (rng.random() < 0.25),
        shift_mm=(0.0, 0.0),
        zoom=rng.uniform(*ZOOM),
        warp=rng.normal(0.0, rng.uniform(0.0, 2.0), (2, 7, 7)),
    )
    plane = acquire.plane_of(pose, (member.pixels, member.pixels), member.pixel_mm)
    shape = np.array(example.image.shape, np.float32)
    shift = rng.normal(0.0, JITTER_MM, 2)
    rows = (-plane.y + shift[0]) / example.pixel_mm + example.centre[0]
    columns = (plane.x + shift[1]) / example.pixel_mm + example.centre[1]
    at = np.stack((columns / (shape[1] - 1) * 2 - 1, rows / (shape[0] - 1) * 2 - 1), -1)[None]
    fields = [example.image, example.inner] + ([] if example.outer is None else [example.outer])
    source = torch.from_numpy(np.stack(fields))[None]
    source[:, :1] = _blurred(source[:, :1], member.pixel_mm / example.pixel_mm * rng.uniform(0.7, 1.2))
    cut = torch.nn.functional.grid_sample(source, torch.from_numpy(at.astype(np.float32)), align_corners=True)[0]
    codes = codes_of(cut[1], cut[2] if len(cut) > 2 else None)
    image = cut[0].numpy() + rng.normal(0.0, rng.uniform(0, 0.02) * float(cut[0].max()), cut[0].shape)
    image = display.normalise(np.maximum(image, 0.0).astype(np.float32)) / display.TOP
    return torch.from_numpy(image ** rng.uniform(0.7, 1.4) * display.TOP), codes


def _blurred(image: Tensor, ratio: float) -> Tensor:
    """(1, 1, row, column) blurred as a grid coarser by ``ratio`` would see it."""
    sigma = 0.4 * max(0.0, ratio**2 - 1.0) ** 0.5
    if sigma < 0.2:
        return image
    kernel = torch.exp(-0.5 * (torch.arange(-3, 4) / sigma) ** 2)
    kernel = kernel / kernel.sum()
    image = torch.nn.functional.conv2d(image, kernel.view(1, 1, 7, 1), padding=(3, 0))
    return torch.nn.functional.conv2d(image, kernel.view(1, 1, 1, 7), padding=(0, 3))


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
