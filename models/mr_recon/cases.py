"""What the learned reconstruction is tested on; every draw is frozen by its seed.

*Cine*: frames of a patient that nothing was trained on, with simulated coils and noise. *Raw*: real k-space of
phantoms, complete, with lines left out. *Brain*: real k-space of a head, undersampled as it was measured; nobody knows
the truth.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from models.mr_recon import coils as coil_maps
from models.mr_recon import data, masks
from models.mr_recon.baselines import Problem
from models.mr_recon.checks import noise_of
from models.mr_recon.domain import Facts
from models.mr_recon.fft import fftc, ifftc
from models.mr_recon.simulate import calibration, measure

SEED: Final = 501
FRAMES: Final = 24
SNR: Final = 40.0
#: Pattern, acceleration, and width of the calibration block.
PATTERNS: Final = (("uniform", 2, 16), ("uniform", 4, 16), ("variable", 4, 16), ("variable", 8, 10))
#: Coils, and how many of the frames they are simulated for: many coils are slow.
COILS: Final = {1: 24, 8: 12, 16: 2}
#: File and oversampling of the readout.
RAW: Final = {
    "sphere, 16 coils": ("mr-twix-pulseq/2024-02-06-160052.dat", 1),
    "GRE phantom, 2 coils": ("mr-twix-siemens/gre.dat", 2),
}
BRAIN: Final = "mr-kspace-brain8ch/cartesian_ksp.npy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One undersampled image with what it should be."""

    kind: str
    #: Which of its kind.
    number: int
    problem: Problem
    #: complex64 (row, column); None where nobody knows.
    reference: Tensor | None
    facts: Facts


def facts_of(problem: Problem, pattern: str, acceleration: float) -> Facts:
    """What a domain asks about a problem."""
    coils, rows, columns = problem.kspace.shape
    return Facts(
        acceleration=acceleration,
        pattern=pattern,
        calibration=problem.acs.shape[-2],
        coils=coils,
        rows=rows,
        columns=columns,
        partial_fourier=False,
    )


def remembered(folder: Path, name: str, make: Callable[[], Case]) -> Case:
    """The case that ``make`` makes, kept in ``folder``: coil maps cost more than any reconstruction."""
    file = folder / (re.sub(r"\W+", "-", name) + ".pt")
    if not file.exists():
        case = make()
        problem = {
            key: getattr(case.problem, key) for key in ("kspace", "mask", "maps", "acs", "noise", "acceleration")
        }
        content = {"problem": problem, "reference": case.reference, "facts": asdict(case.facts)}
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(content | {"kind": case.kind, "number": case.number}, file)
    content = torch.load(file, weights_only=True)
    problem, facts = Problem(**content["problem"]), Facts(**content["facts"])
    return Case(
        kind=content["kind"], number=content["number"], problem=problem, reference=content["reference"], facts=facts
    )


def cine_frames(patient: Path) -> list[data.Image]:
    """``FRAMES`` frames spread over slices and phases."""
    slices = data.scd_frames(patient)
    last = len(slices) - 1
    return [slices[round(k * last / (FRAMES - 1))][7 * k % len(slices[0])] for k in range(FRAMES)]


def cine(
    frames: list[data.Image], work: Path, coils: int, pattern: str, acceleration: int, width: int
) -> Iterator[Case]:
    """One kind of measurement of the frames, spread over all where they are fewer."""
    for number in range(0, FRAMES, FRAMES // COILS[coils]):
        name = f"{cine_kind(coils, pattern, acceleration)} {number}"
        make = partial(_cine, frames[number], number, coils, pattern, acceleration, width)
        yield remembered(work, name, make)


def cine_kind(coils: int, pattern: str, acceleration: int) -> str:
    """What a kind of measurement is called."""
    return f"cine, {coils} coil{'s' if coils > 1 else ''}, {pattern} R={acceleration}"


def _cine(image: data.Image, number: int, coils: int, pattern: str, acceleration: int, width: int) -> Case:
    rng, rows = np.random.default_rng([SEED, coils, acceleration, len(pattern), number]), image.shape[0]
    if pattern == "uniform":
        lines = masks.uniform(rows, acceleration, width, number)
    else:
        lines = masks.variable(rows, acceleration, width, rng)
    made = measure(rng, image, coils, lines, snr=SNR, method="choose")
    problem = problem_of(made.y, made.mask, made.maps, made.noise, acceleration if pattern == "uniform" else 0)
    facts = facts_of(problem, pattern, float(acceleration))
    kind = cine_kind(coils, pattern, acceleration)
    return Case(kind=kind, number=number, problem=problem, reference=made.reference, facts=facts)


def problem_of(y: Tensor, mask: Tensor, maps: Tensor, noise: float, acceleration: int) -> Problem:
    """A problem whose calibration is the block of lines around the centre."""
    first, last = calibration(mask[0, :, 0].numpy() > 0)
    rows = y.shape[-2]
    acs = coil_maps.centre(y, (2 * min(rows // 2 - first, last - rows // 2), y.shape[-1]))
    whole = mask.expand(1, *y.shape[-2:])
    return Problem(kspace=y, mask=whole, maps=maps, acs=acs, noise=noise, acceleration=acceleration)


def read_twix(file: Path, oversampling: int) -> Tensor:
    """(coil, ky, kx) of the only image in a Siemens raw data file, the readout's oversampling cut away."""
    import twixtools

    scans = [block for block in twixtools.read_twix(str(file), verbose=False)[-1]["mdb"] if block.is_image_scan()]
    rows = max(block.cLin for block in scans) + 1
    full = np.zeros((scans[0].data.shape[0], rows, scans[0].data.shape[1]), np.complex64)
    for block in scans:
        full[:, block.cLin] += block.data
    hybrid, columns = ifftc(torch.from_numpy(full), (-1,)), full.shape[-1]
    kept = columns // oversampling
    return fftc(hybrid[..., columns // 2 - kept // 2 : columns // 2 - kept // 2 + kept], (-1,))


def raw(full: Tensor, kind: str, acceleration: int, width: int, offset: int) -> Case:
    """Every ``acceleration``-th line and a calibration block of complete data."""
    full = full / full.abs().max() * 1e3
    rows = full.shape[-2]
    lines = torch.from_numpy(masks.uniform(rows, acceleration, width, offset).astype(np.float32))
    mask, sd = lines[None, :, None], noise_of(full, torch.ones(1, *full.shape[-2:]))
    shape = (rows, full.shape[-1])
    maps = coil_maps.choose(coil_maps.centre(full * mask, (width // 2 * 2, shape[1])), shape).maps
    problem = problem_of(full * mask, mask, maps, sd, acceleration)
    reference = (maps.conj() * ifftc(full, (-2, -1))).sum(0)
    name = f"{kind}, uniform R={acceleration}, {width} lines"
    facts = facts_of(problem, "uniform", float(acceleration))
    return Case(kind=name, number=offset, problem=problem, reference=reference, facts=facts)


def brain(file: Path) -> Case:
    """The head as it was measured, about every eighth point of both phase encodings."""
    y = torch.from_numpy(np.load(file))
    y = y / y.abs().max() * 1e3
    mask = (y.abs().sum(0, keepdim=True) > 0).float()
    first, last = calibration(mask[0, :, y.shape[-1] // 2].numpy() > 0)
    width = 2 * min(y.shape[-2] // 2 - first, last - y.shape[-2] // 2)
    while bool((coil_maps.centre(mask, (width, width)) == 0).any()):
        width -= 2
    acs = coil_maps.centre(y, (width, width))
    maps = coil_maps.choose(acs, (y.shape[-2], y.shape[-1])).maps
    # two-dimensional patterns leave few samples at the ends; the least of them are noise
    ends = y[:, mask[0] > 0].abs()
    sd = float(torch.quantile(ends[:, torch.argsort(ends.mean(0))[: ends.shape[1] // 20]], 0.5)) / 0.8326
    problem = Problem(kspace=y, mask=mask, maps=maps, acs=acs, noise=sd)
    facts = facts_of(problem, "two-dimensional", float(mask.numel() / mask.sum()))
    return Case(kind="brain, 8 coils, two-dimensional R=8", number=0, problem=problem, reference=None, facts=facts)
