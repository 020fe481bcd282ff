"""Error against the anatomy of a real slice, whose reference holds noise of its own: beside the tables of `evaluate`.

A reference r = a + o is the anatomy a with the noise o of the scan. What a method f makes of y = r + n is compared with
r for want of a, and a method that removes o too is charged for it. The error against a follows without knowing a, from
how much of o passes:

    E|f(y) - a|^2 = E|f(y) - r|^2 - E|o|^2 + 2 E[o (f(y) - E f)]

and, for normal noise, the last expectation is that of e (f(y + s e) - f(y)) / s, e noise like o and s small (Stein
1981; the Monte-Carlo form: Ramani et al., IEEE Trans. Image Process. 2008;17:1540). The level of o is the one that the
cases were made with, which is below what flat tissue of these scans shows: a lower level favours methods that leave o
alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import torch
from torch import Tensor

from models.ct_denoise import bench, metrics
from models.ct_denoise.baselines import Method
from models.ct_denoise.cases import Case
from models.ct_denoise.projection import KERNELS

#: s: small beside the noise of the slice, large enough for methods with thresholds.
STEP: Final = 0.3

#: Levels of own noise that the error is told for too, as multiples of the one that a case was made with; NaN where the
#: reference cannot hold so much.
LEVELS: Final = (0.8, 1.1, 1.45)
#: Strength of the net of cancellous bone, root mean square [HU], and the noise it is read in [HU].
NETS: Final = (15.0, 30.0, 60.0)
NOISE_HU: Final = 11.6

Table = list[dict[str, Any]]


def errors(case: Case, method: Method) -> tuple[float, float, float]:
    """Mean square error of ``method`` against reference and anatomy [HU^2], and the share of own noise that passes.

    In the window of PSNR, inside the body, as PSNR is.

    Raises
    ------
    ValueError
        The case's reference has no noise of its own.
    """
    if case.own is None:
        raise ValueError(f"a case of {case.group!r} has no noise of its own in its reference")
    low, high = metrics.WINDOW

    def run(image: Tensor) -> Tensor:
        with torch.inference_mode():
            return method(image, case.sigma_hu).clamp(low, high)[case.body]

    reference = case.clean[case.body]
    inside = ((reference > low) & (reference < high)).to(reference.dtype)  # elsewhere the reference is constant
    plain = run(case.noisy)
    passed, there = 0.0, 0.0
    for own in case.own:
        e = own[case.body] * inside
        passed += float((e * (run(case.noisy + STEP * own) - plain)).mean()) / STEP / len(case.own)
        there += float(e.square().mean()) / len(case.own)
    found = float((plain - reference.clamp(low, high)).square().mean())
    return found, found - there + 2.0 * passed, passed / there


def table(every: Iterable[Case], methods: Callable[[Case], Mapping[str, Method]]) -> Table:
    """PSNR [dB] against reference and anatomy per group and method, averaged over the group's cases as PSNR is."""
    rows: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for case in every:
        if case.own is None:
            continue
        for name, method in methods(case).items():
            rows.setdefault((case.group, name), []).append(errors(case, method))
        print(f"compared one case of {case.group} with its anatomy", flush=True)
    return [
        {
            "group": group,
            "method": name,
            "cases": len(found),
            "psnr_reference_db": sum(_psnr(one[0]) for one in found) / len(found),
            "psnr_anatomy_db": sum(_psnr(one[1]) for one in found) / len(found),
            "own_noise_passed": sum(one[2] for one in found) / len(found),
        }
        # the part that own noise has in the error grows with its variance
        | {
            f"psnr_anatomy_{level:g}_db": sum(_psnr(one[0] + level**2 * (one[1] - one[0])) for one in found)
            / len(found)
            for level in LEVELS
        }
        for (group, name), found in rows.items()
    ]


def _psnr(square: float) -> float:
    low, high = metrics.WINDOW
    return 10.0 * math.log10((high - low) ** 2 / square) if square > 0.0 else math.nan


def cancellous(methods: Mapping[str, bench.Denoiser], realisations: int) -> Table:
    """Share of the net of cancellous bone that each of ``methods`` leaves, by how strong it is."""
    made = bench.Bench.make(NOISE_HU, realisations, KERNELS["std"])
    return [
        {"method": name} | {f"kept_{rms:g}_hu_rms": bench.cancellous(made, method, rms) for rms in NETS}
        for name, method in methods.items()
    ]
