"""Fit the denoiser to one site's noise without clean images: ``python -m models.ct_denoise.adapt --help``.

The noise of CT is correlated, so the white-noise forms of SURE do not apply. Noise z with the *measured* level and
spectrum of each slice (`lowdose`) is put on and taken off:

    input y + alpha z,    target y - z / alpha        E|f(y + alpha z) - (y - z/alpha)|^2 = E|f - x|^2 + const

for noise n of y = x + n that is independent of z and has its covariance (alpha = 1: arXiv 1902.02452; Pang et al.,
CVPR 2021). The network predicts noise, so its target is (alpha + 1/alpha) z. The cautious estimate keeps its insert
and spectrum terms, which need no clean image either.

Guard: the physics bench is measured before and after, and slices of the site kept out of the fit. Weights that fail a
bar are not written, and the bars are printed. Nothing runs by itself: a person decides what the node loads.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from models.ct_denoise import adapters, bars, bench, losses, lowdose
from models.ct_denoise.bundle import MANIFEST, load, save
from models.ct_denoise.configs import CONFIGS
from models.ct_denoise.net import DenoiseUNet, precision
from models.ct_denoise.noise import noise_level
from models.ct_denoise.phantoms import Draw
from models.ct_denoise.projection import KERNELS

#: Share of z in the input. Above 0.5 the input is noisier than anything the network will meet; below, the target is.
ALPHA: Final = 0.5
#: Weight that pulls the parameters to where they were: the site has few slices, the simulator has all anatomies.
ANCHOR: Final = 1e-3
#: Weights of the insert and spectrum terms, as in the last phase of training.
PHASE: Final = CONFIGS["cpu"].phases[-1]
#: Noise of the bench [HU], and the preset strength the bars hold at.
BENCH_HU: Final = 11.6
STRENGTH: Final = 0.6
#: Least share of the noise of the site's own slices that must go, and most shift of their mean [HU].
SITE_REDUCTION: Final = 0.25
SITE_SHIFT_HU: Final = 0.5
#: Every so many slices one is kept out of the fit, for the guard.
KEPT_OUT: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One slice of the site and noise like its own."""

    #: (row, column) [HU].
    image: Tensor
    #: Independent realisations (2, row, column) [HU].
    noise: Tensor
    pixel_mm: float


def samples(folder: Path, count: int) -> list[Sample]:
    """At most ``count`` slices of the CT series in ``folder``, spread evenly, with two realisations of like noise.

    Raises
    ------
    ValueError
        If no slice is of use.
    """
    found = adapters.pairs("dicom", folder)
    step = max(1, len(found) // count)
    made = []
    for index, pair in enumerate(found[::step][:count]):
        values, pixel_mm = adapters.read_hu(pair.full)
        if adapters.not_hu(values):
            continue
        image = torch.from_numpy(values.copy())
        try:
            # half of the dose adds as much variance as there is
            twins = [lowdose.lower_dose(image[None], pixel_mm, 0.5, seed=2 * index + k).image[0] for k in (0, 1)]
        except ValueError:
            continue
        made.append(Sample(image=image, noise=torch.stack(twins) - image, pixel_mm=pixel_mm))
    if not made:
        raise ValueError(f"no CT slice in {folder} whose noise can be measured")
    return made


def _patches(fit: list[Sample], seed: int, count: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images (patch, 1, row, column), noise (2, patch, 1, row, column) and inserts [HU] of step ``seed``."""
    draw = Draw(seed, 1, 1.0, torch.device("cpu"))
    parts, inserts = [], []
    while len(parts) < count:
        item = fit[min(int(draw.uniform(0, len(fit))), len(fit) - 1)]
        rows, columns = item.image.shape
        row, column = int(draw.uniform(0, rows - size)), int(draw.uniform(0, columns - size))
        window = (slice(row, row + size), slice(column, column + size))
        if float((item.image[window] > -500.0).float().mean()) < 0.3 and not draw.chance(0.05):
            continue
        stack = torch.rot90(torch.cat((item.image[window][None], item.noise[(slice(None), *window)])), seed % 4, (1, 2))
        parts.append(stack.flip(-1) if draw.chance(0.5) else stack)
        axis = torch.arange(size, dtype=torch.float32) * item.pixel_mm
        span, radius = size * item.pixel_mm, draw.log_uniform(1.0, 12.0)
        x, y = draw.uniform(0.2, 0.8) * span, draw.uniform(0.2, 0.8) * span
        height = draw.log_uniform(3.0, 40.0) * (1.0 if draw.chance(0.5) else -1.0)
        distance = torch.sqrt((axis[:, None] - y) ** 2 + (axis[None] - x) ** 2)
        inserts.append(height * torch.sigmoid((radius - distance) * 3.0 / item.pixel_mm))
    stacked = torch.stack(parts)
    return stacked[:, :1], stacked[:, 1:].transpose(0, 1)[:, :, None], torch.stack(inserts)[:, None]


def _loss(net: DenoiseUNet, image: Tensor, noise: Tensor, insert: Tensor) -> Tensor:
    """The self-supervised loss of one batch; see the module's docstring for the equation."""
    count = len(image)
    added = ALPHA * torch.cat((noise[0], noise[1], noise[0]))
    inputs = torch.cat((image, image, image + insert)) + added
    with torch.no_grad():
        sigma = net.noise_map(inputs)
    predicted = net(inputs, sigma)
    target = (1.0 + 1.0 / ALPHA**2) * added
    scale = F.avg_pool2d(sigma, 31, 1, 15, count_include_pad=False)
    least = ((predicted[:, 1:] - target) / scale).square().mean()
    if net.least is not None:
        least = least + ((net.least(inputs, sigma)[:, 1:] - target) / scale).square().mean()
    cautious = ((predicted[:, :1] - PHASE.target * target) / scale).square().mean()
    given = (added[:count] - added[count : 2 * count])[:, 0]
    left = given - STRENGTH * (predicted[:count, :1] - predicted[count : 2 * count, :1])[:, 0]
    spectrum = losses.spectrum_shape(given / scale[:count, 0], left / scale[:count, 0])
    kept = losses.insert_loss(predicted[2 * count :, :1] - predicted[:count, :1], insert)
    return least + cautious + CONFIGS["cpu"].spectrum * spectrum + PHASE.insert_late * kept


def fit(net: DenoiseUNet, sites: list[Sample], steps: int, rate: float, patch: int, log: Callable[[str], None]) -> None:
    """Train ``net`` in place on ``sites`` for ``steps`` steps; every step is seeded by its number."""
    for parameter in net.parameters():
        parameter.requires_grad_(True)
    net.train()
    start = [parameter.detach().clone() for parameter in net.parameters()]
    optimiser = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.0)
    patch = min(patch, *(side // 8 * 8 for item in sites for side in item.image.shape))
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * 0.5 * (1.0 + math.cos(math.pi * step / steps)) * min(1.0, (step + 1) / 20)
        total = _loss(net, *_patches(sites, step, 4, patch))
        pull = sum(((p - q) ** 2).sum() for p, q in zip(net.parameters(), start, strict=True))
        optimiser.zero_grad(set_to_none=True)
        (total + ANCHOR * pull).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        if (step + 1) % 50 == 0 or step + 1 == steps:
            log(f"step {step + 1}/{steps} loss {float(total.detach()):.3f}")
    net.eval()


def measure(net: DenoiseUNet, made: bench.Bench, kept_out: list[Sample]) -> dict[str, float]:
    """The figures of the guard: the bench at the default strength, and the site's own slices."""

    def denoise(images: Tensor) -> Tensor:
        with torch.inference_mode(), precision(images.device):
            return torch.stack([image - net.noise(image[None, None], STRENGTH)[0, 0] for image in images])

    found = bars.figures(bench.run(made, denoise))
    levels = [noise_level(item.image, denoise(item.image[None])[0]) for item in kept_out]
    good = [level for level in levels if math.isfinite(level.before)]
    if good:
        reductions = sorted(1.0 - level.after / level.before for level in good)
        found["site_reduction"] = reductions[len(reductions) // 2]
        found["site_shift_hu"] = max((level.mean_shift for level in good), key=abs)
    return found


def refusals(before: dict[str, float], after: dict[str, float]) -> list[str]:
    """Why weights with the figures ``after`` may not be written; empty where they may."""
    reasons = bars.failed(before, after)
    if after.get("site_reduction", 1.0) < min(SITE_REDUCTION, before.get("site_reduction", 1.0)):
        reasons.append(f"noise of the site's slices falls by {after['site_reduction']:.0%} only")
    if abs(after.get("site_shift_hu", 0.0)) > SITE_SHIFT_HU:
        reasons.append(f"mean of the site's slices moves by {after['site_shift_hu']:+.2f} HU")
    return reasons


def adapt(arguments: argparse.Namespace) -> dict[str, Any]:
    """Fit, measure, and write unless the guard refuses; returns the record."""
    every = samples(arguments.data, arguments.slices)
    kept_out = every[::KEPT_OUT]
    used = [item for index, item in enumerate(every) if index % KEPT_OUT] or every
    net = load(arguments.weights)
    made = bench.Bench.make(BENCH_HU, arguments.realisations, KERNELS["std"])
    before = measure(net, made, kept_out)
    fit(net, used, arguments.steps, arguments.rate, arguments.patch, print)
    after = measure(net, made, kept_out)
    reasons = refusals(before, after)
    record = {"slices": len(used), "kept_out": len(kept_out), "steps": arguments.steps, "rate": arguments.rate}
    record |= {"before": before, "after": after, "refused": reasons}
    if not reasons:
        import yaml

        network = yaml.safe_load((arguments.weights / MANIFEST).read_text())["network"]
        said = f"the weights of {arguments.weights.name}, fitted to {len(used)} local slices without clean images. "
        said += adapters.LICENCES["dicom"]
        save(net, arguments.out, network["network"], network["arguments"], said)
        (arguments.out / "adaptation.json").write_text(json.dumps(record, indent=1) + "\n")
    return record


def main() -> None:
    """Read the command line; exit with 1 where the guard refuses."""
    shipped = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the site's CT series (DICOM)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights; not the shipped one")
    parser.add_argument("--weights", type=Path, default=shipped, help="weights to start from")
    parser.add_argument("--slices", type=int, default=32, help="slices to use at most; a quarter is kept out")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rate", type=float, default=1e-4, help="peak learning rate")
    parser.add_argument("--patch", type=int, default=128, help="side of the patches [pixel]")
    parser.add_argument("--realisations", type=int, default=12, help="noise realisations of the guard's bench")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.out.resolve() in {shipped, arguments.weights.resolve()}:
        parser.error("--out must not be the folder of the weights that are shipped or started from")
    torch.set_num_threads(arguments.threads)
    record = adapt(arguments)
    for name, value in record["after"].items():
        print(f"{name:22} {record['before'].get(name, math.nan):8.3f} -> {value:8.3f}")
    if record["refused"]:
        print("refused, nothing written:", *record["refused"], sep="\n  ")
        sys.exit(1)
    print(f"wrote {arguments.out}; compare before you use it")


if __name__ == "__main__":
    main()
