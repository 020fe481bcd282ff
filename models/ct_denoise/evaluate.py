"""Measure the denoiser beside others on the same cases: ``python -m models.ct_denoise.evaluate``.

Prints tables and writes ``evaluation.json`` beside the weights. Real data and other networks' weights are read from
``--data`` where the folder exists; without it only the simulated cases are measured.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from models.ct_denoise import bars, baselines, bench, cases, effect, evaluate_adjacent, evaluate_anatomy, metrics
from models.ct_denoise.baselines import Method
from models.ct_denoise.bundle import load
from models.ct_denoise.cases import Case
from models.ct_denoise.net import PRESET_GAIN, DenoiseUNet, precision
from models.ct_denoise.noise import gaussian_blur, noise_level
from models.ct_denoise.projection import KERNELS
from models.ct_denoise.stream import Stream

#: Where a checkout of the evaluation data usually lies.
DATA: Final = Path("../shared/data")
#: Simulated heads of the hemorrhage evaluation, which its own command keeps there.
CACHE: Final = Path("build/hemorrhage")
#: The strength the pipeline uses where nothing is said.
DEFAULT: Final = 0.6
#: Noise of the physics bench [HU], the prototype's.
BENCH_HU: Final = (11.6, 23.0)
#: Insert of the observer study: diameter [mm], contrast [HU].
OBSERVER: Final = (6.0, 8.0)

Table = list[dict[str, Any]]


def ours(net: DenoiseUNet, strength: float) -> Method:
    """The network at ``strength``."""

    def run(image: Tensor, _sigma: float) -> Tensor:
        with precision(image.device):
            return image - net.noise(image[None, None], strength)[0, 0]

    return run


def told(net: DenoiseUNet, case: Case) -> Method:
    """The network at strength 1, told how much noise was inserted, as BM3D is: on a real slice its own noise stays.

    With o the reference's own noise and t the total, 1 - o^2/t^2 of what is found is the least-squares estimate of the
    inserted part.
    """
    share = 1.0 - (case.own_hu / case.sigma_hu) ** 2

    def run(image: Tensor, sigma: float) -> Tensor:
        return image - share * (image - ours(net, 1.0)(image, sigma))

    return run


def _true_spectrum(case: Case) -> Tensor:
    """E|FFT(noise)|^2 (row, column), from realisations other than the tested one, smoothed."""
    power = (torch.fft.fft2(case.noise).abs() ** 2).mean(0)
    shifted = torch.fft.fftshift(power)
    return torch.fft.ifftshift(gaussian_blur(shifted[None, None], 2.0)[0, 0])


def methods(net: DenoiseUNet, case: Case, data: Path, slow: bool) -> dict[str, Method]:
    """Every method that can run here, by name; ``slow``: the other networks too."""
    found: dict[str, Method | None] = {
        "identity": baselines.identity,
        "gaussian": baselines.gaussian,
        "bilateral": baselines.bilateral,
        "non-local means": baselines.non_local_means,
        "BM3D, white noise": baselines.bm3d_method(None),
        "BM3D, true spectrum": baselines.bm3d_method(_true_spectrum(case)),
        "ours, strength 0.6": ours(net, DEFAULT),
        "ours, strength 1": ours(net, 1.0),
        "ours, strength 1, told": told(net, case),
    }
    adapters = (
        ("DnCNN", "dncnn_25.pth", baselines.dncnn),
        ("TS-DenseNet", "ts_densenet_state_dict.pt", baselines.ts_densenet),
    )
    for name, file, adapter in adapters if slow else ():
        weights = sorted(data.glob(f"**/{file}"))
        found[name] = adapter(weights[0]) if weights else None
    return {name: method for name, method in found.items() if method is not None}


def compare(net: DenoiseUNet, every: Iterable[Case], data: Path, slow: bool, kept: Table | None = None) -> Table:
    """Image quality per group of cases and method, averaged over the group's cases.

    ``kept``: rows of an earlier run; those of other people's methods are taken over and not measured again.
    """
    sums: dict[tuple[str, str], list[dict[str, float]]] = {}
    others = {(row["group"], row["method"]): row for row in kept or [] if not row["method"].startswith("ours")}
    for case in every:
        for name, method in methods(net, case, data, slow).items():
            if name != "identity" and (case.group, name) in others:
                continue
            begun = time.process_time()
            with torch.inference_mode():
                image = method(case.noisy, case.sigma_hu)
            seconds = time.process_time() - begun
            mask = case.body
            row = {
                "rmse_hu": metrics.rmse(case.clean, image, mask),
                "psnr_db": metrics.psnr(case.clean, image, mask),
                "snr_db": metrics.snr(case.clean, image, mask),
                "ssim": metrics.ssim(case.clean, image, mask),
                "epi": metrics.edge_preservation(case.clean, image, mask),
                "coc": metrics.correlation(case.clean, image, mask),
                "mean_shift_hu": float((image - case.noisy)[mask].mean()),
                "cpu_s": seconds,
            }
            sums.setdefault((case.group, name), []).append(row)
        print(f"compared one case of {case.group}", flush=True)
    made = {
        place: {"group": place[0], "method": place[1], "cases": len(rows)}
        | {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
        for place, rows in sums.items()
    }
    for place, row in made.items():  # the untouched input tells whether these are still the same cases
        if place in others and not math.isclose(row["rmse_hu"], others[place]["rmse_hu"], rel_tol=1e-5):
            raise SystemExit(f"the cases of {place[0]!r} are not those of the earlier run: measure without --reuse")
    groups = list(dict.fromkeys(group for group, _ in made))
    rows = [row for (group, _), row in (others | made).items() if group in groups]
    return sorted(rows, key=lambda row: groups.index(row["group"]))


def against_nothing(net: DenoiseUNet, every: Iterable[Case]) -> Table:
    """How many cases each strength leaves worse than their input, by RMSE, PSNR and SSIM: must be none."""
    counts = {strength: {"cases": 0, "rmse": 0, "psnr": 0, "ssim": 0} for strength in (0.4, 0.5, DEFAULT, 0.8, 1.0)}
    for case in every:
        for strength, count in counts.items():
            with torch.inference_mode():
                image = ours(net, strength)(case.noisy, 0.0)
            given, got = (
                [figure(case.clean, part, case.body) for figure in (metrics.rmse, metrics.psnr, metrics.ssim)]
                for part in (case.noisy, image)
            )
            count["cases"] += 1
            count["rmse"] += got[0] > given[0]
            count["psnr"] += got[1] < given[1]
            count["ssim"] += got[2] < given[2]
    return [{"strength": strength} | count for strength, count in counts.items()]


def physics(net: DenoiseUNet, realisations: int, kept: Table | None = None) -> Table:
    """The physics bench of `bench`, our network at five strengths beside a Gaussian and non-local means.

    ``kept``: rows of an earlier run; those of other methods at the same noise are taken over.
    """
    rows: Table = []
    others = {(row["noise_hu"], row["method"]): row for row in kept or [] if not row["method"].startswith("ours")}
    for sigma in BENCH_HU:
        made = bench.Bench.make(sigma, realisations, KERNELS["std"])
        for name, method in {
            "gaussian": baselines.gaussian,
            "non-local means": baselines.non_local_means,
            "ours, strength 0.4": ours(net, 0.4),
            "ours, strength 0.5": ours(net, 0.5),
            "ours, strength 0.6": ours(net, DEFAULT),
            "ours, strength 0.8": ours(net, 0.8),
            "ours, strength 1": ours(net, 1.0),
        }.items():
            row = others.get((sigma, name))
            if row is None or not math.isclose(row["noise_in_hu"], bench.noise_in(made), rel_tol=1e-5):
                row = {"noise_hu": sigma, "method": name} | bench.run(made, _stacked(method, sigma))
            rows.append(row)
        print(f"measured the bench at {sigma} HU", flush=True)
    return rows


def _benched(net: DenoiseUNet) -> dict[str, bench.Denoiser]:
    named: dict[str, Method] = {f"ours, strength {strength:g}": ours(net, strength) for strength in (0.5, DEFAULT, 1.0)}
    named |= {"gaussian": baselines.gaussian, "non-local means": baselines.non_local_means}
    return {name: _stacked(method, BENCH_HU[0]) for name, method in named.items()}


def dial(net: DenoiseUNet, realisations: int) -> Table:
    """The physics bench at the default strength for several blends of the two estimates."""
    made = bench.Bench.make(BENCH_HU[0], realisations, KERNELS["std"])
    rows: Table = []
    for share in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        found = bench.run(made, _stacked(_blend(net, share), BENCH_HU[0]))
        kept = [value for key, value in found.items() if key.startswith("insert_")]
        row = {key: found[key] for key in ("noise_reduction", "spectrum_shift", "ttf50_100", "ttf50_20")}
        rows.append({"share": share} | row | {"inserts_mean": sum(kept) / len(kept), "inserts_least": min(kept)})
    return rows


def _blend(net: DenoiseUNet, share: float) -> Method:
    def run(image: Tensor, _sigma: float) -> Tensor:
        with precision(image.device):
            return image - net.noise(image[None, None], PRESET_GAIN * DEFAULT, share)[0, 0]

    return run


def _stacked(method: Method, sigma: float) -> bench.Denoiser:
    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return torch.stack([method(image, sigma) for image in images])

    return run


def observers(net: DenoiseUNet, repeats: int) -> dict[str, Sequence[float]]:
    """Ratio of detectability after / before at the default strength, with its 95 % interval."""
    diameter, contrast = OBSERVER
    return bench.observer(
        _stacked(ours(net, DEFAULT), BENCH_HU[0]),
        sigma_hu=BENCH_HU[0],
        repeats=repeats,
        diameter_mm=diameter,
        contrast_hu=contrast,
        kernel=KERNELS["std"],
    )


def low_contrast(net: DenoiseUNet, data: Path) -> Table:
    """Contrast of the inserts kept on the low-contrast test images, and the noise left; a row per dose and strength."""
    images, masks = cases.low_contrast(data), cases.low_contrast_masks(data)
    rows: Table = []
    for dose, (present, absent) in (images or {}).items():
        for strength in (DEFAULT, 1.0):
            run = _stacked(ours(net, strength), 0.0)
            after = run(present), run(absent)
            # the expected contrast over repeats: single repeats drown in noise
            row: dict[str, Any] = {"dose": dose, "strength": strength}
            for contrast, mask in masks.items():
                given = float((present.mean(0) - absent.mean(0))[mask].mean())
                kept = float((after[0].mean(0) - after[1].mean(0))[mask].mean())
                row[f"kept_{contrast}_hu"] = kept / given if abs(given) > 1e-6 else math.nan
            centre = slice(108, 148)
            row["noise_in_hu"] = float((absent - absent.mean(0))[:, centre, centre].std())
            row["noise_out_hu"] = float((after[1] - after[1].mean(0))[:, centre, centre].std())
            rows.append(row)
    return rows


def insertion(net: DenoiseUNet, data: Path) -> Table:
    """Contrast kept of discs put into the low-contrast test images' own noise: the same noise with and without them."""
    images, masks = cases.low_contrast(data), cases.low_contrast_masks(data)
    rows: Table = []
    for dose, (_present, absent) in (images or {}).items():
        signal = sum((contrast * mask.float() for contrast, mask in masks.items()), torch.zeros(()))
        signal = gaussian_blur(signal[None, None], 0.7)[0, 0]
        for strength in (DEFAULT, 1.0):
            run = _stacked(ours(net, strength), 0.0)
            difference = (run(absent + signal) - run(absent)).mean(0)
            kept = {f"kept_{c}_hu": float(difference[m].mean() / signal[m].mean()) for c, m in masks.items()}
            rows.append({"dose": dose, "strength": strength} | kept)
    return rows


def scans(net: DenoiseUNet, data: Path) -> Table:
    """Noise before and after on real series as they are, at the default strength, and the shift of the mean."""
    rows: Table = []
    for name in ("ct-head-ge", "ct-body-siemens", "bone-brain-1mm-ya", "std-brain-1mm-idose-ub", "std-brain-5mm"):
        path = cases.find(data, name)
        if path is None:
            continue
        series = cases.read_series(path)
        picked = range(0, len(series.array), max(1, len(series.array) // 8))
        levels = []
        for index in picked:
            image = torch.where(series.padding[index], -1000.0, series.array[index])
            with torch.inference_mode():
                after = ours(net, DEFAULT)(image, 0.0)
            levels.append(noise_level(image, after))
        good = [level for level in levels if not math.isnan(level.before)]
        before, after_hu = (sorted(level[part] for level in good)[len(good) // 2] for part in (0, 1))
        row = {"series": name, "slices": len(levels), "noise_in_hu": before, "noise_out_hu": after_hu}
        rows.append(
            row
            | {
                "noise_reduction": 1.0 - after_hu / before,
                "largest_mean_shift_hu": max((level.mean_shift for level in good), key=abs),
            }
        )
    return rows


def removed(net: DenoiseUNet, count: int) -> Table:
    """Share of what is removed that is structure, on simulated slices scanned four times at 20 HU."""
    rows: Table = []
    for strength in (DEFAULT, 1.0):
        shares = []
        for case in cases.synthetic(count, realisations=4):
            run = _stacked(ours(net, strength), 0.0)
            images = case.clean + case.noise
            soft = (case.clean > -150.0) & (case.clean < 250.0)
            shares.append(metrics.structure_share((images - run(images))[:, soft]))
        rows.append({"strength": strength, "structure_share": sum(shares) / len(shares), "worst": max(shares)})
    return rows


def speed(net: DenoiseUNet) -> dict[str, float]:
    """CPU seconds of one 512 x 512 slice on one thread, median of five: by itself, and in a series with neighbours."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    image = 20.0 * torch.randn(1, 1, 512, 512)
    spacing = torch.tensor([math.nan, *[1.0] * 8, math.nan])
    found = {}
    for name, given in (("cpu_s_per_slice_512", spacing * math.nan), ("cpu_s_per_slice_512_with_neighbours", spacing)):
        stream, taken = Stream(net, DEFAULT, given), []
        with torch.inference_mode(), precision(image.device):
            for _ in range(8):
                begun = time.process_time()
                stream.feed(image)
                taken.append(time.process_time() - begun)
        found[name] = sorted(taken[3:])[2]
    torch.set_num_threads(threads)
    return found


def show(title: str, rows: Table) -> None:
    """Print ``rows`` as a markdown table."""
    if not rows:
        return
    keys = list(rows[0])
    print(f"\n{title}\n\n| " + " | ".join(keys) + " |\n|" + " --- |" * len(keys))
    for row in rows:
        cells = [f"{v:.3f}" if isinstance(v, float) else str(v) for v in (row.get(key, "") for key in keys)]
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    """Read the command line, measure, print and keep."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=here, help="folder with manifest and weights")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of evaluation data; skipped where absent")
    parser.add_argument("--out", type=Path, default=here / "evaluation.json")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of simulated heads, made where it lacks them")
    parser.add_argument("--cases", type=int, default=6, help="simulated slices")
    parser.add_argument("--heads", type=int, default=10, help="simulated heads that hemorrhage is looked for in")
    parser.add_argument("--realisations", type=int, default=16, help="noise realisations of the bench")
    parser.add_argument("--repeats", type=int, default=200, help="repeats of the observer study")
    parser.add_argument("--no-networks", action="store_true", help="leave out the slow networks of others")
    parser.add_argument("--reuse", action="store_true", help="keep the other methods' rows of --out, on equal cases")
    parser.add_argument("--only", nargs="+", metavar="TABLE", help="measure these tables, keep the others of --out")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    net, data = load(arguments.weights), arguments.data
    earlier = json.loads(arguments.out.read_text()) if arguments.only or arguments.reuse else {}
    reused = earlier if arguments.reuse else {}
    every = [*cases.synthetic(arguments.cases), *cases.real(data)]
    steps: dict[str, Callable[[], Any]] = {
        "images": lambda: compare(net, every, data, not arguments.no_networks, reused.get("images")),
        "anatomy": lambda: evaluate_anatomy.table(every, lambda case: methods(net, case, data, slow=False)),
        "cancellous": lambda: evaluate_anatomy.cancellous(_benched(net), arguments.realisations),
        "against_nothing": lambda: against_nothing(net, every),
        "bench": lambda: physics(net, arguments.realisations, reused.get("bench")),
        "dial": lambda: dial(net, arguments.realisations),
        "observers": lambda: observers(net, arguments.repeats),
        "low_contrast": lambda: low_contrast(net, data),
        "insertion": lambda: insertion(net, data),
        "scans": lambda: scans(net, data),
        "removed": lambda: removed(net, arguments.cases),
        "speed": lambda: speed(net),
        **evaluate_adjacent.steps(net, data, arguments.cases, arguments.realisations, arguments.repeats),
        "hemorrhage": lambda: effect.on_hemorrhage(net, data, arguments.cache, arguments.heads),
    }
    found = dict(earlier) if arguments.only else {}
    for name, step in steps.items():
        if not arguments.only or name in arguments.only:
            found[name] = step()
            found["bars"] = bars.verdicts(found)
            arguments.out.write_text(json.dumps(found, indent=1, default=float) + "\n")  # at once: a run takes long
            print(f"measured {name}", flush=True)
    for name, rows in found.items():
        show(name, rows if isinstance(rows, list) else [rows])
    print(f"\nwrote {arguments.out}")


if __name__ == "__main__":
    main()
