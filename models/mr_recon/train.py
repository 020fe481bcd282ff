"""Train the learned reconstruction: ``python -m models.mr_recon.train [--data DIR] [--config cpu|gpu]``.

One command does all of it: it draws procedural hearts and phantoms, reads images or raw data where ``--data`` names a
folder of them (images as ``models.cardiac.scd`` reads them, complete k-space as ``models.mr_recon.adapters`` does;
without it training is on simulation alone, and the log says which it was), trains, and writes weights, log and manifest
beside this file (``--out``). Every step is seeded by its number, so a run that was stopped goes on as if it had not
been; images and checkpoint lie in ``--work``. To adapt shipped weights to other data: ``--config tune --start FOLDER``.
Weights for a single coil alone, added to a package: ``--config single --start FOLDER``.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from models.cardiac import scd
from models.mr_recon import adapters, data, masks, verify
from models.mr_recon.bundle import add_single, load, save
from models.mr_recon.configs import CONFIGS, Config
from models.mr_recon.net import START_DAMPING, Shape, Unrolled
from models.mr_recon.simulate import Measurement, measure
from models.mr_recon.solvers import conjugate_gradient

#: Patients that nothing may be trained on: they are what the model is tested with.
TEST_PATIENTS: Final = frozenset({"SCD0000501"})
#: Slices of the first patient's stack that training leaves out, to be watched.
WATCHED_SLICES: Final = (5, 6)
VALIDATE_EVERY: Final = 250
CHECKPOINT_EVERY: Final = 50


def loss_of(image: Tensor, slabs: data.Slabs, *, squared: bool = False) -> Tensor:
    """Error of the complex image and of its magnitude, over the 99th percentile of the reference.

    Parameters
    ----------
    squared
        Root mean square errors of each slab; else absolute ones.
    """
    size = slabs.scale[:, None, None]
    errors = ((image - slabs.reference).abs() / size, (image.abs() - slabs.reference.abs()) / size)
    if squared:
        # nothing is added under the root: no slab is without error, for its measurement has noise
        return sum((error.square().mean((-2, -1)).sqrt().mean() for error in errors), torch.zeros(()))
    return errors[0].mean() + errors[1].abs().mean()


def psnr(image: Tensor, reference: Tensor) -> float:
    """Of magnitudes, after one least-squares scale; the peak is the reference's."""
    a, b = image.abs().double(), reference.abs().double()
    a = a * ((a * b).sum() / (a * a).sum())
    return float(20 * torch.log10(b.max()) - 10 * torch.log10(((a - b) ** 2).mean()))


def cg_sense(slabs: data.Slabs) -> Tensor:
    """CG-SENSE of whole measurements."""
    return conjugate_gradient(slabs.normal, slabs.right, iterations=10, damping=START_DAMPING)


def cg_sense_on(device: torch.device) -> verify.Method:
    """``cg_sense`` of measurements that lie elsewhere."""
    return lambda slabs: cg_sense(slabs.to(device))


class Trainer:
    """Network, averaged network and optimiser, with one checkpoint file."""

    def __init__(self, config: Config, work: Path, device: torch.device, pool: data.Pool) -> None:
        self.config, self.device, self.pool = config, device, pool
        self.checkpoint = work / ("checkpoint-single.pt" if config.only_single else "checkpoint.pt")
        torch.manual_seed(config.seed)
        self.net = Unrolled(config.shape).to(device)
        self.average = Unrolled(config.shape).to(device)
        self.average.load_state_dict(self.net.state_dict())
        self.average.requires_grad_(requires_grad=False)
        self.optimiser = torch.optim.Adam(self.net.parameters(), lr=config.rate)
        self.step, self.seconds, self.history = 0, 0.0, []  # type: int, float, list[dict[str, float]]
        if self.checkpoint.exists():
            self._restore()

    def _restore(self) -> None:
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        # more or fewer steps change nothing of the plateau, and are for whoever goes on from one to decide
        if json.loads(state["config"]) | {"steps": 0} != json.loads(json.dumps(asdict(self.config))) | {"steps": 0}:
            raise SystemExit(f"{self.checkpoint} belongs to another configuration; remove it or use another --work")
        self.net.load_state_dict(state["net"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds, self.history = state["step"], state["seconds"], state["history"]

    def begin_with(self, folder: Path) -> None:
        """Take the weights of a package of the same shape."""
        package = load(folder, self.device)
        weights = package.net_for(1 if self.config.only_single else 2).state_dict()
        self.net.load_state_dict(weights)
        self.average.load_state_dict(weights)

    def keep(self) -> None:
        """Write the checkpoint so that a kill at any moment leaves the old or the new one whole."""
        state: dict[str, Any] = {"net": self.net.state_dict(), "average": self.average.state_dict()}
        state |= {"optimiser": self.optimiser.state_dict(), "step": self.step, "seconds": self.seconds}
        state |= {"history": self.history, "config": json.dumps(asdict(self.config))}
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, self.checkpoint.with_suffix(".new"))
        self.checkpoint.with_suffix(".new").replace(self.checkpoint)

    def _rate(self) -> float:
        if self.step < self.config.warm_up:
            return self.config.rate * (self.step + 1) / self.config.warm_up
        left = (self.config.steps - self.step) / max(1.0, self.config.decay * self.config.steps)
        return self.config.rate * min(1.0, left)

    def advance(self) -> dict[str, float]:
        """One optimiser step: one batch with a single coil, one with several; returns their losses."""
        config, losses = self.config, {}
        for group in self.optimiser.param_groups:
            group["lr"] = self._rate()
        self.optimiser.zero_grad(set_to_none=True)
        for single, images in ((True, config.single), (False, config.multiple)):
            if not images:
                continue
            # what goes on from weights sees other draws than they did
            rng = np.random.default_rng([config.seed, 5 if config.only_single else 3, self.step, single])
            slabs = data.draw_slabs(
                self.pool, rng, config.drawing, single=single, images=images, per_image=config.per_image
            ).to(self.device)
            loss = loss_of(self.net(slabs.normal, slabs.right), slabs, squared=config.squared)
            loss.backward()
            losses["single" if single else "multiple"] = float(loss.detach())
        size = torch.nn.utils.clip_grad_norm_(self.net.parameters(), config.clip)
        if bool(torch.isfinite(size)):
            self.optimiser.step()
        else:  # one bad batch would be the end of all weights
            print(f"step {self.step} left out: its gradient is not finite", flush=True)
        decay = min(config.average, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            for kept, new in zip(self.average.parameters(), self.net.parameters(), strict=True):
                kept.lerp_(new, 1.0 - decay)
        self.step += 1
        return losses

    @torch.no_grad()
    def averaged(self, slabs: data.Slabs) -> Tensor:
        """What the averaged network makes of whole measurements."""
        slabs = slabs.to(self.device)
        image: Tensor = self.average(slabs.normal, slabs.right)
        return image

    def package_net(self) -> Unrolled:
        """The averaged network as it is shipped: lines that were averaged need all iterations with one coil too."""
        net = Unrolled(replace(self.config.shape, iterations=Shape().iterations))
        net.load_state_dict(self.average.state_dict())
        return net

    @torch.no_grad()
    def validate(self, held_out: dict[str, list[Measurement]]) -> dict[str, float]:
        """PSNR [dB] of zero-filling, CG-SENSE and the averaged network by kind of measurement."""
        record: dict[str, float] = {}
        for name, measurements in held_out.items():
            found: dict[str, list[float]] = {"zero": [], "cg": [], "ours": []}
            for one in measurements:
                slabs = data.slabs_of([one], None).to(self.device)
                images = {"zero": slabs.right, "cg": cg_sense(slabs)}
                images["ours"] = self.averaged(slabs)
                for method, image in images.items():
                    found[method].append(psnr(image[0], slabs.reference[0]))
            record |= {f"{name} {method}": round(float(np.mean(values)), 2) for method, values in found.items()}
        return record


def watched(images: list[data.Image], *, single: bool = False) -> dict[str, list[Measurement]]:
    """Frozen measurements of images that training does not see, two of each kind; ``single``: of one coil alone."""
    kinds = {"1 coil variable 4": (1, 4.0)}
    if single:
        kinds["1 coil variable 8"] = (1, 8.0)
    else:
        kinds |= {"8 coils variable 4": (8, 4.0), "8 coils variable 8": (8, 8.0), "8 coils uniform 4": (8, 0.0)}
    found: dict[str, list[Measurement]] = {}
    for name, (coils, net) in kinds.items():
        found[name] = []
        for k, image in enumerate(images[:2]):
            rng, rows = np.random.default_rng([999, k]), image.shape[0]
            width = round(rows / net * 0.4) if net else 16
            lines = masks.variable(rows, net, width, rng) if net else masks.uniform(rows, 4, 16, k)
            found[name].append(measure(rng, image, coils, lines, snr=40.0, method="low-resolution"))
    return found


def gather(
    folder: Path | None, work: Path, config: Config, layout: str = "auto"
) -> tuple[data.Pool, list[data.Image], str]:
    """The pool, images to watch, and what the training data were, in words."""
    procedural = data.hearts(work / "hearts.npz", config.hearts, config.seed)
    words = f"{len(procedural)} procedurally generated hearts, random ellipses and polygons"
    if folder is None:
        watch = [data.draw_heart_image(np.random.default_rng([config.seed, 12, k])) for k in range(2)]
        return data.Pool([], procedural, config.shares), watch, words + "; no patient image"
    folders = [one for one in scd.patients(folder) if one.name not in TEST_PATIENTS]
    if layout not in ("auto", "scd") or not folders:
        found = adapters.find(folder, layout)
        volumes = list(adapters.parted(found.volumes, "train"))
        if not volumes:
            raise SystemExit(f"no patient of {folder} falls into the training part: more patients are needed")
        for name, reason in found.left_out.items():
            print(f"left out {name}: {reason}", flush=True)
        watch = [data.draw_heart_image(np.random.default_rng([config.seed, 12, k])) for k in range(2)]
        counts = f"{len(volumes)} files of complete k-space of {len({one.patient for one in volumes})} patients"
        return data.Pool([], procedural, config.shares, volumes), watch, f"{words}; {counts}"
    frames: list[data.Image] = []
    watch = []
    for k, one in enumerate(folders):
        for number, phases in enumerate(data.scd_frames(one)):
            if k == 0 and number in WATCHED_SLICES:
                watch.append(phases[0])
            else:
                frames += phases
        frames += data.scd_scouts(one)
    words += f"; {len(frames)} magnitude images of {', '.join(one.name for one in folders)} (Sunnybrook, CC0)"
    return data.Pool(frames, procedural, config.shares), watch, words


def train(
    config: Config,
    folder: Path | None,
    work: Path,
    out: Path,
    device: torch.device,
    limit_s: float = float("inf"),
    layout: str = "auto",
    start: Path | None = None,
    *,
    verified: bool = True,
) -> None:
    """Run to the end, or until ``limit_s`` seconds of this call are spent; the checkpoint carries the rest."""
    begun = time.monotonic()
    pool, watch, words = gather(folder, work, config, layout)
    print(f"training data: {words}", flush=True)
    held_out, trainer = watched(watch, single=config.only_single), Trainer(config, work, device, pool)
    if config.only_single and start is None:
        raise SystemExit("weights for one coil are added to a package: --start FOLDER names it")
    if start is not None:
        if not trainer.step:
            trainer.begin_with(start)
        words += f"; begun with weights {load(start, device).sha256[:12]}"
    mark, running = time.monotonic(), {}  # type: float, dict[str, float]
    while trainer.step < config.steps and time.monotonic() - begun < limit_s:
        losses = trainer.advance()
        running = {name: running.get(name, value) * 0.98 + value * 0.02 for name, value in losses.items()}
        now = time.monotonic()
        trainer.seconds, mark = trainer.seconds + now - mark, now
        if trainer.step % 25 == 0:
            left = (config.steps - trainer.step) * trainer.seconds / trainer.step
            text = " ".join(f"{name} {value:.4f}" for name, value in running.items())
            print(f"step {trainer.step}/{config.steps} {text} | {left / 60:.0f} min left", flush=True)
        if trainer.step % VALIDATE_EVERY == 0 or trainer.step in (100, config.steps):
            record = {"step": trainer.step, "seconds": round(trainer.seconds)} | trainer.validate(held_out)
            trainer.history.append(record)
            print("held out: " + json.dumps(record), flush=True)
        if trainer.step % CHECKPOINT_EVERY == 0:
            trainer.keep()
    trainer.keep()
    finish(trainer, words, out, watch if verified else [], start)


def finish(trainer: Trainer, words: str, out: Path, watch: list[data.Image], start: Path | None = None) -> None:
    """Write weights, log and manifest; a run that is not at its end says so in the log.

    Parameters
    ----------
    watch
        Images that were kept from training: the domain is cut down to where the weights hold on them; none: it is not.
    start
        The package that weights for one coil are added to.
    """
    config = trainer.config
    rows = [volume.read(0).shape[-2] for volume in trainer.pool.volumes]
    record, found = config.domain(rows), {}  # type: dict[str, Any], dict[str, dict[int, list[float]]]
    if watch:
        images = verify.images_for(watch)
        linear = cg_sense_on(trainer.device)
        if config.only_single:
            found = verify.gains(trainer.averaged, linear, images, coils=1, tried=verify.TRIED_SINGLE)
        else:
            found = verify.gains(trainer.averaged, linear, images)
        record = verify.kept(record, found)
    log = {
        "command": "python -m models.mr_recon.train",
        "config": asdict(config),
        "steps": trainer.step,
        "finished": trainer.step >= config.steps,
        "training_seconds": round(trainer.seconds),
        "training_data": words,
        "device": trainer.device.type,
        "torch": torch.__version__,
        "held_out": trainer.history,
        "gain_over_cg_sense": found,
    }
    out.mkdir(parents=True, exist_ok=True)
    if config.only_single:
        assert start is not None
        add_single(trainer.package_net(), start, out, record["acceleration"], words)
    else:
        save(trainer.average, out, record, words)
    name = "training-single.json" if config.only_single else "training.json"
    (out / name).write_text(json.dumps(log, indent=1) + "\n")
    print(f"wrote the weights into {out}")


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=sorted(CONFIGS), default="cpu")
    parser.add_argument("--steps", type=int, help="other than the configuration's; may change until the rate falls")
    parser.add_argument("--data", type=Path, help="folder of images or raw data; without it simulation alone")
    parser.add_argument("--format", choices=("auto", "scd", *adapters.FORMATS), default="auto", help="of --data")
    parser.add_argument("--start", type=Path, help="folder of weights to begin with")
    parser.add_argument("--work", type=Path, default=Path("build/mr_recon"), help="checkpoint and drawn images")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="weights, log and manifest")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=float, default=float("inf"), help="stop after this many seconds, resumable")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config, device = CONFIGS[options.config], torch.device(options.device)
    if options.steps:
        config = replace(config, steps=options.steps)
    train(config, options.data, options.work, options.out, device, options.limit, options.format, options.start)


if __name__ == "__main__":
    main()
