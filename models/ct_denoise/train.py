"""Train the denoiser on simulated slices: ``python -m models.ct_denoise.train [--config NAME]``.

``refine`` and ``least`` go on from trained weights, ``--start FOLDER``; the others start from nothing. ``least`` trains
a second network for the least-squares estimate and puts it beside those weights, which it leaves as they are.

Every step is seeded by its number, so an interrupted run that is started again ends as if it had not been. The
checkpoint and the pool lie in ``--work``; weights, log, metrics and manifest beside this file (``--out``).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from models.ct_denoise import adapters, losses
from models.ct_denoise.bundle import digest, load, save
from models.ct_denoise.configs import CONFIGS, Config, Phase
from models.ct_denoise.data import Mixture, Patches, Pool, draw_patches, true_sigma
from models.ct_denoise.net import DenoiseUNet, build
from models.ct_denoise.simulate import EVALUATION_SEED

#: Steps between two validations, and between two checkpoints.
VALIDATE_EVERY: Final = 500
CHECKPOINT_EVERY: Final = 250
#: Share of the patches from real slices, where there are any.
REAL_SHARE: Final = 0.3
#: Seed of the first slice of clinical thickness.
THICK_FIRST: Final = 200_000


def _losses(net: DenoiseUNet, batch: Patches, config: Config, phase: Phase, jitter: Tensor) -> dict[str, Tensor]:
    first, pairs = batch.noise[0], phase.paired
    second, insert = batch.noise[1][:pairs], batch.insert[:pairs]
    count, begin = len(first), len(first) + pairs  # images: all; the pairs with other noise; the pairs with an insert
    clean = torch.cat((batch.clean, batch.clean[:pairs], batch.clean[:pairs] + insert))
    noise = torch.cat((first, second, first[:pairs]))
    images = clean + noise
    with torch.no_grad():
        sigma = net.noise_map(images) * jitter
        scale = true_sigma(batch.noise)
        scale = torch.cat((scale, scale[:pairs], scale[:pairs]))
    with torch.autocast(images.device.type, torch.bfloat16):
        predicted = net(images.contiguous(memory_format=torch.channels_last), sigma).float()
    cautious, least = (predicted[:, :1] - phase.target * noise) / scale, (predicted[:, 1:] - noise) / scale
    parts = {
        "least": losses.charbonnier(least, clean, phase.least_epsilon, phase.outside),
        "least_gradient": losses.gradient_l1(least, clean),
    }
    if config.only_least:
        return parts
    given = (first[:pairs] - second)[:, 0]
    left = given - config.strength * (predicted[:pairs, :1] - predicted[count:begin, :1])[:, 0]
    return parts | {
        "pixel": losses.charbonnier(cautious, clean),
        "gradient": losses.gradient_l1(cautious, clean),
        "spectrum": losses.spectrum_shape(given / scale[:pairs, 0], left / scale[:pairs, 0]),
        "insert": losses.insert_loss(predicted[begin:, :1] - predicted[:pairs, :1], insert),
    }


def _total(parts: dict[str, Tensor], config: Config, step: int) -> Tensor:
    number, local = config.place(step)
    phase = config.phases[number]
    begin, end = phase.insert_rise
    risen = min(1.0, max(0.0, (local / phase.steps - begin) / (end - begin)))
    insert = phase.insert + risen * (phase.insert_late - phase.insert)
    least = phase.least * parts["least"] + config.gradient * parts["least_gradient"]
    if config.only_least:
        return least
    cautious = parts["pixel"] + config.gradient * parts["gradient"]
    return least + cautious + config.spectrum * parts["spectrum"] + insert * parts["insert"]


def _rate(step: int, config: Config) -> float:
    number, local = config.place(step)
    phase = config.phases[number]
    if local < phase.warm_up:
        return phase.rate * (local + 1) / phase.warm_up
    share = (local - phase.warm_up) / max(1, phase.steps - phase.warm_up)
    return phase.rate * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * share)))


def _jitter(seed: int, count: int, phase: Phase, device: torch.device) -> Tensor:
    generator, pairs = torch.Generator().manual_seed(seed), phase.paired
    factor = 1.0 + phase.jitter * (2.0 * torch.rand(count, generator=generator) - 1.0)
    return torch.cat((factor, factor[:pairs], factor[:pairs]))[:, None, None, None].to(device)


class Trainer:
    """Network, averaged network and optimiser, with one checkpoint file."""

    def __init__(self, config: Config, work: Path, device: torch.device, start: Path | None = None) -> None:
        self.config, self.device, self.start = config, device, start
        self.checkpoint = work / "checkpoint.pt"
        torch.manual_seed(config.seed)
        self.average: DenoiseUNet | None = None
        self.step, self.seconds, self.history = 0, 0.0, []  # type: int, float, list[dict[str, float]]
        self.started_from = "" if start is None else digest(start)
        if start is not None:
            self.average = load(start).alone()
            told = self.average.arguments["noise_map"]
            if config.only_least and told != config.noise_map:  # both would be told the one of the weights
                raise SystemExit(f"{start}: its noise map is {told!r}; weights with {config.noise_map!r} are wanted")
        self._begin(0)
        if self.checkpoint.exists():
            self._restore()

    def _begin(self, number: int) -> None:
        """Build what phase ``number`` trains, from the averaged weights of the phase before it."""
        arguments, before = self.config.arguments(number), self.average
        self.phase = number
        self.net = build("denoise_unet", arguments)
        if before is not None:
            self.net.grow_from(before)
        self.net.to(self.device, memory_format=torch.channels_last)
        self.average = build("denoise_unet", arguments).to(self.device)
        self.average.load_state_dict(self.net.state_dict())
        rate = self.config.phases[number].rate
        self.optimiser = torch.optim.AdamW(self.net.parameters(), lr=rate, weight_decay=1e-4)

    def _restore(self) -> None:
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        if state["config"] != json.dumps(asdict(self.config)) or state["started_from"] != self.started_from:
            raise SystemExit(f"{self.checkpoint} belongs to another configuration; remove it or use another --work")
        self._begin(state["phase"])
        self.net.load_state_dict(state["net"])
        self.averaged.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds, self.history = state["step"], state["seconds"], state["history"]

    @property
    def averaged(self) -> DenoiseUNet:
        """The network that is shipped."""
        assert self.average is not None
        return self.average

    def keep(self) -> None:
        """Write the checkpoint so that a kill at any moment leaves the old or the new one whole."""
        state: dict[str, Any] = {"net": self.net.state_dict(), "average": self.averaged.state_dict()}
        state |= {"optimiser": self.optimiser.state_dict(), "step": self.step, "seconds": self.seconds}
        state |= {"phase": self.phase, "history": self.history, "config": json.dumps(asdict(self.config))}
        state |= {"started_from": self.started_from}
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, self.checkpoint.with_suffix(".new"))
        self.checkpoint.with_suffix(".new").replace(self.checkpoint)

    def advance(self, pool: Pool | Mixture) -> dict[str, float]:
        """One optimiser step; returns the parts of the loss."""
        config, seed = self.config, self.config.seed * 10_000_000 + self.step
        number, local = config.place(self.step)
        if number != self.phase:
            self._begin(number)
        phase = config.phases[number]
        for group in self.optimiser.param_groups:
            group["lr"] = _rate(self.step, config)
        batch = draw_patches(pool, seed, phase.slices, phase.per_slice, config.patch, phase.drawing)
        jitter = _jitter(seed, phase.slices * phase.per_slice, phase, self.device)
        parts = _losses(self.net, batch, config, phase, jitter)
        self.optimiser.zero_grad(set_to_none=True)
        _total(parts, config, self.step).backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimiser.step()
        decay = min(phase.average, (local + 1) / (local + 10))
        with torch.no_grad():
            for kept, new in zip(self.averaged.parameters(), self.net.parameters(), strict=True):
                kept.lerp_(new, 1.0 - decay)
        self.step += 1
        return {name: value.detach() for name, value in parts.items()}  # type: ignore[misc]

    @torch.no_grad()
    def validate(self, pool: Pool) -> dict[str, float]:
        """The loss parts of the averaged network on held-out slices, always the same patches within a phase."""
        sums: dict[str, float] = {}
        phase, batches = self.config.phases[self.phase], 12
        phase = replace(phase, paired=0 if self.config.only_least else 4)
        exact = torch.ones(4 + 2 * phase.paired, 1, 1, 1, device=self.device)
        for index in range(batches):
            batch = draw_patches(pool, EVALUATION_SEED + index, 2, 2, self.config.patch, phase.drawing)
            parts = _losses(self.averaged, batch, self.config, phase, exact)
            for name, value in parts.items():
                sums[name] = sums.get(name, 0.0) + float(value) / batches
        return sums


def _slices(
    phase: Phase, first_seed: int, device: torch.device, work: Path, real: tuple[str, Pool] | None
) -> Pool | Mixture:
    """What ``phase`` draws its patches from, kept in ``work``."""
    pool = Pool.make(phase.pool, first_seed, device, work / "pool.safetensors")
    slices = pool if real is None else Mixture(pool, real[1], REAL_SHARE)
    if not phase.thick:
        return slices
    thick = Pool.make(phase.pool, THICK_FIRST, device, work / "thick.safetensors", thick=True)
    return Mixture(slices, thick, phase.thick)


def train(trainer: Trainer, work: Path, out: Path, limit_s: float, real: tuple[str, Pool] | None = None) -> None:
    """Run to the end, or until ``limit_s`` seconds of this call are spent; the checkpoint carries the rest.

    ``real``: what is said of real slices, and the slices, to be mixed in.
    """
    config, device = trainer.config, trainer.device
    first_seed = config.pool_seed * 100_000
    begun = mark = time.monotonic()
    slices, drawn, held_out = None, -1, Pool.make(12, EVALUATION_SEED, device)
    running: dict[str, Any] = {}
    while trainer.step < config.steps and time.monotonic() - begun < limit_s:
        number = config.place(trainer.step)[0]
        if slices is None or number != drawn:
            slices, drawn = _slices(config.phases[number], first_seed, device, work, real), number
        parts = trainer.advance(slices)
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
        export(trainer, out, real[0] if real else "")


def export(trainer: Trainer, out: Path, trained_on: str = "") -> None:
    """Write the averaged weights, the log and the manifest."""
    out.mkdir(parents=True, exist_ok=True)
    config = trainer.config
    log: dict[str, Any] = {
        "command": f"python -m models.ct_denoise.train{_named(config)}",
        "started_from": trainer.started_from,
        "config": asdict(config),
        "steps": trainer.step,
        "seconds": round(trainer.seconds),
        "device": trainer.device.type,
        "torch": torch.__version__,
        "held_out": trainer.history,
    }
    if trainer.start is not None and (trainer.start / "training.json").exists():
        log["before"] = json.loads((trainer.start / "training.json").read_text())
    (out / "training.json").write_text(json.dumps(log, indent=1) + "\n")
    net, arguments = trainer.averaged, config.arguments(trainer.phase)
    if config.only_least and trainer.start is not None:
        net, arguments = load(trainer.start).with_least(net)
    save(net, out, "denoise_unet", arguments, trained_on)
    print(f"wrote {out / 'weights.safetensors'}")


def _named(config: Config) -> str:
    """The option of the command line that names ``config``."""
    name = next((name for name, known in CONFIGS.items() if known == config), "cpu")
    return "" if name == "cpu" else f" --config {name}" + (" --start FOLDER" if config.refines else "")


def _source(text: str) -> tuple[str, Path]:
    """``kind:FOLDER`` of the command line."""
    kind, _, folder = text.partition(":")
    if kind not in adapters.KINDS or not folder or not Path(folder).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}: wanted {', '.join(adapters.KINDS)}, a colon and a folder")
    return kind, Path(folder)


def _arguments() -> argparse.Namespace:
    shipped = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=sorted(CONFIGS), default="cpu")
    parser.add_argument("--start", type=Path, help="folder of the weights that a refining configuration goes on from")
    parser.add_argument("--work", type=Path, default=Path("build/ct_denoise"), help="checkpoint and pool")
    parser.add_argument("--out", type=Path, default=shipped, help="weights, log and manifest")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, default=float("inf"), help="stop after this many seconds, resumable")
    parser.add_argument("--export", action="store_true", help="write the weights of the checkpoint as it stands")
    help_data = "mayo:FOLDER, aapm:FOLDER or dicom:FOLDER: mix in real slices (see adapters.py); needs --out and --work"
    parser.add_argument("--data", type=_source, metavar="KIND:FOLDER", help=help_data)
    parser.add_argument("--pairs", type=int, default=600, help="real slices in the pool at most")
    parser.add_argument(
        "--check", action="store_true", help="only count, verify and split --data; write a licence note"
    )
    arguments = parser.parse_args()
    if arguments.check and arguments.data is None:
        parser.error("--check needs --data")
    if CONFIGS[arguments.config].refines != (arguments.start is not None):
        parser.error("--start belongs to --config refine and --config least, which need it")
    shipping = arguments.out.resolve() == shipped or arguments.work == Path("build/ct_denoise")
    if arguments.data is not None and shipping and not arguments.check:
        parser.error("weights trained on real images are not the shipped ones: give --out and --work of their own")
    return arguments


def main() -> None:
    """Read the command line and train."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    config, device = CONFIGS[arguments.config], torch.device(arguments.device)
    real = None
    if arguments.data is not None:
        kind, folder = arguments.data
        report = adapters.check(kind, folder, arguments.work)
        print(json.dumps(report, indent=1))
        if arguments.check:
            return
        pool = adapters.make_pool(kind, folder, "train", arguments.pairs, device)
        real = f"simulated images, and {len(pool)} real slices. {report['licence']}", pool
    trainer = Trainer(config, arguments.work, device, arguments.start)
    if arguments.export:
        export(trainer, arguments.out, real[0] if real else "")
    else:
        train(trainer, arguments.work, arguments.out, arguments.limit, real)


if __name__ == "__main__":
    main()
