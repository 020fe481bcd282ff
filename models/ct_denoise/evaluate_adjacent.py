"""What neighbouring slices add, and what they must not take: the tables of 2.5-D, beside those of `evaluate`.

The middle slices are those of the 2-D tables, so that their rows of other methods (BM3D) are of the same slices. The
baselines through the plane are the mean of the three slices (a slab), and that of three that non-local means have been
over: what neighbours give without looking whether they are alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from models.ct_denoise import baselines, bench, cases, metrics
from models.ct_denoise.adjacent import Adjacent
from models.ct_denoise.cases import Case
from models.ct_denoise.net import DenoiseUNet, precision
from models.ct_denoise.noise import gaussian_blur, noise_level
from models.ct_denoise.projection import KERNELS

#: Spacings of the simulated stacks [mm].
SPACINGS: Final = (0.6, 1.0, 1.5, 2.0, 3.0, 4.0)
#: The spacing that the network is told on the bench [mm]: a disc is the same at any.
BENCH_MM: Final = 1.0
#: Spheres in one slice alone: diameter [mm] and contrast [HU], faint to high.
SPHERES: Final = ((2.0, 300.0), (3.0, 100.0), (3.0, 30.0), (5.0, 15.0), (5.0, 7.0))
#: Strengths of the physics bench.
STRENGTHS: Final = (0.4, 0.5, 0.6, 0.8, 1.0)
#: Slices of the stack in which the noise of neighbours is compared.
STACK: Final = 6

Table = list[dict[str, Any]]


def with_neighbours(net: DenoiseUNet, strength: float) -> bench.Denoiser:
    """The network at ``strength`` on slices (slice, row, column), with the planes beside each where they are given."""

    def run(images: Tensor, planes: Tensor | None = None) -> Tensor:
        made = []
        with torch.inference_mode(), precision(images.device):
            for index, image in enumerate(images):
                beside = None
                if planes is not None:
                    beside = Adjacent(planes=planes[index][None], spacing_mm=torch.tensor([BENCH_MM]))
                made.append(image - net.noise(image[None, None], strength, adjacent=beside)[0, 0])
        return torch.stack(made)

    return run


def _denoised(net: DenoiseUNet, case: Case, strength: float, adjacent: Adjacent | None) -> Tensor:
    with torch.inference_mode(), precision(case.noisy.device):
        return case.noisy - net.noise(case.noisy[None, None], strength, adjacent=adjacent)[0, 0]


def images(net: DenoiseUNet, every: Iterable[Case]) -> Table:
    """RMSE, PSNR and SSIM with neighbours and without, by group, and of baselines through the plane."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for case in every:
        assert case.adjacent is not None
        share = 1.0 - (case.own_hu / case.sigma_hu) ** 2
        found = {"input": case.noisy}
        for strength in (0.6, 1.0):
            for name, adjacent in (("alone", None), ("with neighbours", case.adjacent)):
                found[f"{name}, strength {strength:g}"] = _denoised(net, case, strength, adjacent)
        if case.own_hu:  # the reference's own noise stays, as BM3D leaves it
            for name in ("alone", "with neighbours"):
                full = found[f"{name}, strength 1"]
                found[f"{name}, strength 1, told"] = case.noisy - share * (case.noisy - full)
        planes = [case.noisy, *case.adjacent.planes[0]]
        each = [baselines.non_local_means(plane, case.sigma_hu) for plane in planes]
        found["non-local means"] = each[0]
        found["mean of three slices"] = torch.stack(planes).mean(0)
        found["mean of three slices, non-local means"] = torch.stack(each).mean(0)
        body = case.body
        for name, image in found.items():
            measured = {
                "rmse_hu": metrics.rmse(case.clean, image, body),
                "psnr_db": metrics.psnr(case.clean, image, body),
                "ssim": metrics.ssim(case.clean, image, body),
            }
            rows.setdefault(f"{case.group}|{name}", []).append(measured)
    made = []
    for key, measures in rows.items():
        group, method = key.split("|")
        mean = {figure: sum(one[figure] for one in measures) / len(measures) for figure in measures[0]}
        made.append({"group": group, "method": method, "cases": len(measures)} | mean)
    return made


def physics(net: DenoiseUNet, realisations: int, sigma_hu: float = 11.6) -> Table:
    """The physics bench without neighbours, and with objects that lie in one slice alone or run through."""
    made = bench.Bench.make(sigma_hu, realisations, KERNELS["std"])
    beside = bench.Beside.make(sigma_hu, realisations, KERNELS["std"])
    rows: Table = []
    for strength in STRENGTHS:
        for objects, given in (("no neighbours", None), ("one slice", beside), ("through", replace(beside, share=1.0))):
            row = {"strength": strength, "objects": objects}
            rows.append(row | bench.run(made, with_neighbours(net, strength), given))
    return rows


def spheres(
    net: DenoiseUNet, realisations: int, sigma_hu: float = 11.6, strengths: Sequence[float] = (0.6, 1.0)
) -> Table:
    """Share of a small sphere's contrast that is kept: alone, with neighbours that lack or hold it, and what leaks.

    ``leaked``: the share that appears in a slice whose neighbours hold the sphere and which does not.
    """
    made = bench.Bench.make(sigma_hu, realisations, KERNELS["std"])
    beside = bench.Beside.make(sigma_hu, realisations, KERNELS["std"])
    plain = made.body + made.noise
    around = made.body + beside.noise
    places = bench.places(len(SPHERES))
    each = [bench.disc(p, d / 2.0, made.kernel) * c for (d, c), p in zip(SPHERES, places, strict=True)]
    every = torch.stack(each).sum(0)
    rows: Table = []
    for strength in strengths:
        run = with_neighbours(net, strength)
        none, with_none = run(plain), run(plain, around)
        outputs = {
            "alone": run(plain + every) - none,
            "one_slice": run(plain + every, around) - with_none,
            "through": run(plain + every, around + every) - with_none,
            "leaked": run(plain, around + every) - with_none,
        }
        for (diameter, contrast), place, sphere in zip(SPHERES, places, each, strict=True):
            mask = metrics.disc_mask((bench.SIZE, bench.SIZE), bench.pixel(place), diameter / 2.0 / bench.PIXEL_MM)
            given = float(sphere[mask].mean())
            kept = {name: float(part.mean(0)[mask].mean()) / given for name, part in outputs.items()}
            rows.append({"strength": strength, "diameter_mm": diameter, "contrast_hu": contrast} | kept)
    return rows


def insertion(net: DenoiseUNet, data: Path, strength: float = 0.6) -> Table:
    """Contrast kept of discs put into the low-contrast test images' own noise; the neighbours are other repeats."""
    given, masks = cases.low_contrast(data), cases.low_contrast_masks(data)
    rows: Table = []
    for dose, (_present, absent) in (given or {}).items():
        signal = sum((contrast * mask.float() for contrast, mask in masks.items()), torch.zeros(()))
        signal = gaussian_blur(signal[None, None], 0.7)[0, 0]
        around = torch.stack((absent.roll(1, 0), absent.roll(-1, 0)), 1)
        run = with_neighbours(net, strength)
        for objects, share in (("one slice", 0.0), ("through", 1.0)):
            difference = (run(absent + signal, around + share * signal) - run(absent, around)).mean(0)
            kept = {f"kept_{c}_hu": float(difference[m].mean() / signal[m].mean()) for c, m in masks.items()}
            rows.append({"dose": dose, "objects": objects} | kept)
    return rows


def along(net: DenoiseUNet, sigma_hu: float = 11.6) -> Table:
    """Correlation of the noise of neighbouring slices after denoising; before it there is none."""
    made = bench.Bench.make(sigma_hu, STACK, KERNELS["std"])
    body, noise = made.body, made.noise
    rows: Table = []
    for strength in (0.6, 1.0):
        run = with_neighbours(net, strength)
        middle = body + noise[1:-1]
        planes = body + torch.stack((noise[:-2], noise[2:]), 1)
        for name, left in (("alone", run(middle)), ("with neighbours", run(middle, planes))):
            inner = (left - body)[:, bench.CORE, bench.CORE].flatten(1)
            matrix = torch.corrcoef(inner)
            rows.append({"strength": strength, "slices": name, "correlation": float(matrix.diagonal(1).mean())})
    return rows


def scans(net: DenoiseUNet, data: Path, strength: float = 0.6) -> Table:
    """Noise before and after on the real series whose slices are close, as they are: alone and with neighbours."""
    rows: Table = []
    for name in ("ct-body-siemens", "bone-brain-1mm-ya", "std-brain-1mm-idose-ub"):
        path = cases.find(data, name)
        if path is None:
            continue
        series = cases.read_series(path)
        every = torch.where(series.padding, -1000.0, series.array)
        picked = torch.arange(1, len(every) - 1, max(1, len(every) // 8))
        planes = torch.stack((every[picked - 1], every[picked + 1]), 1)
        spacing = 0.5 * (series.positions_mm[picked + 1] - series.positions_mm[picked - 1])
        row: dict[str, Any] = {"series": name, "slices": len(picked), "spacing_mm": float(spacing.median())}
        for method, beside in (("alone", False), ("with_neighbours", True)):
            levels = []
            for index, at in enumerate(picked):
                adjacent = Adjacent(planes[index][None], spacing[index][None].float()) if beside else None
                with torch.inference_mode(), precision(every.device):
                    after = every[at] - net.noise(every[at][None, None], strength, adjacent=adjacent)[0, 0]
                levels.append(noise_level(every[at], after))
            good = [level for level in levels if math.isfinite(level.before)]
            before, left = (sorted(level[part] for level in good)[len(good) // 2] for part in (0, 1))
            row |= {"noise_in_hu": before, f"reduction_{method}": 1.0 - left / before}
            row[f"largest_mean_shift_hu_{method}"] = max((level.mean_shift for level in good), key=abs)
        rows.append(row)
    return rows


def observers(net: DenoiseUNet, repeats: int, share: float) -> dict[str, Any]:
    """Ratio of detectability after / before at the default strength; ``share`` of the object in the neighbours."""
    return bench.observer(
        with_neighbours(net, 0.6),
        sigma_hu=11.6,
        repeats=repeats,
        diameter_mm=6.0,
        contrast_hu=8.0,
        kernel=KERNELS["std"],
        share=share,
    )


def steps(
    net: DenoiseUNet, data: Path, count: int, realisations: int, repeats: int
) -> dict[str, Callable[[], Table | dict[str, Any]]]:
    """The tables by name."""

    def every() -> Iterable[Case]:
        for spacing in SPACINGS:
            yield from cases.stacks(count, spacing)
        yield from cases.real_stacks(data)

    return {
        "adjacent_images": lambda: images(net, every()),
        "adjacent_bench": lambda: physics(net, realisations),
        "adjacent_spheres": lambda: spheres(net, realisations),
        "adjacent_insertion": lambda: insertion(net, data),
        "adjacent_scans": lambda: scans(net, data),
        "adjacent_along": lambda: along(net),
        "adjacent_observers": lambda: {
            f"{name}, {objects}": ratio
            for objects, share in (("one slice", 0.0), ("through", 1.0))
            for name, ratio in observers(net, repeats, share).items()
        },
    }
