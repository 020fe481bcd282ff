"""The bars of stage 1 on the physics bench at the default strength, in one place: for the table and for the guard."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A range that a figure must lie in."""

    #: Key of the figure, and what to call it.
    figure: str
    name: str
    low: float = -math.inf
    high: float = math.inf

    def met(self, value: float) -> bool:
        """Whether ``value`` lies in the range; NaN does not."""
        return self.low <= value <= self.high

    def miss(self, value: float) -> float:
        """How far ``value`` lies outside the range, in units of the figure."""
        return max(self.low - value, value - self.high, 0.0) if math.isfinite(value) else math.inf

    def __str__(self) -> str:
        if math.isinf(self.high):
            return f"{self.name} of {self.low:g} or more"
        if math.isinf(self.low):
            return f"{self.name} of {self.high:g} or less"
        return f"{self.name} between {self.low:g} and {self.high:g}"


#: The issue's stage 1, as far as the bench measures it.
BARS: Final = (
    Bar(figure="noise_reduction", name="noise reduction", low=0.45, high=0.60),
    Bar(figure="spectrum_shift", name="shift of the spectrum", low=-0.15, high=0.15),
    Bar(figure="ttf50_100", name="TTF50 against the input at 100 HU", low=0.97),
    Bar(figure="ttf50_20", name="TTF50 against the input at 20 HU", low=0.75),
    Bar(figure="inserts_mean", name="mean contrast of inserts kept", low=0.85),
    Bar(figure="inserts_least", name="least contrast of inserts kept", low=0.75),
    Bar(figure="mean_shift_hu", name="shift of the mean [HU]", low=-0.5, high=0.5),
    Bar(figure="blobs_above_gaussian", name="false blobs above those of a Gaussian", high=0.0),
)
#: A bar that the weights before missed may be missed again, by no more than this over what they missed it by.
SLACK: Final = 0.01


def figures(found: Mapping[str, float]) -> dict[str, float]:
    """What the bars ask for, from a row of `bench.run`."""
    kept = [value for key, value in found.items() if key.startswith("insert_")]
    made = {bar.figure: found[bar.figure] for bar in BARS if bar.figure in found}
    made |= {"inserts_mean": sum(kept) / len(kept), "inserts_least": min(kept)}
    return made | {"blobs_above_gaussian": found["false_blobs"] - found["false_blobs_gaussian"]}


def failed(before: Mapping[str, float], after: Mapping[str, float]) -> list[str]:
    """The bars that weights with the figures ``after`` fail, in words; what ``before`` missed counts only if worse."""
    return [
        f"{bar}: {after[bar.figure]:.3f} after, {before[bar.figure]:.3f} before"
        for bar in BARS
        if not bar.met(after[bar.figure]) and bar.miss(after[bar.figure]) > bar.miss(before[bar.figure]) + SLACK
    ]


def verdicts(found: dict[str, Any], default: float = 0.6) -> list[dict[str, Any]]:
    """The bars of stage 1 against what was measured at strength ``default``, as far as ``found`` holds it."""
    rows: list[dict[str, Any]] = []

    def row(name: str, value: float, low: float = -math.inf, high: float = math.inf) -> None:
        bar = Bar(figure="", name=name, low=low, high=high)
        rows.append({"bar": str(bar), "measured": value, "met": bar.met(value)})

    images = {(one["group"], one["method"]): one for one in found.get("images", [])}
    for group, low in (("synthetic", 0.5), ("real head + 12 HU", 0.0), ("real body + 20 HU", 0.4)):
        best = images.get((group, "BM3D, true spectrum"))
        for name in ("ours, strength 1", "ours, strength 1, told") if best else ():
            row(f"{name}: dB above BM3D, {group}", images[group, name]["psnr_db"] - best["psnr_db"], low)
    anatomy = {(one["group"], one["method"]): one["psnr_anatomy_db"] for one in found.get("anatomy", [])}
    for group, low in (("real head + 12 HU", 0.0), ("real body + 20 HU", 0.4)):
        known = anatomy.get((group, "BM3D, true spectrum"))
        if known is not None:
            gain = anatomy[group, "ours, strength 1"] - known
            row(f"ours, strength 1: dB above BM3D against the anatomy, {group}", gain, low)
    beside = {(one["group"], one["method"]): one for one in found.get("adjacent_images", [])}
    for group, alone, low in (
        ("synthetic, 1 mm", "synthetic", 0.5),
        ("real body + 20 HU, 2 mm", "real body + 20 HU", 0.4),
    ):
        best = images.get((alone, "BM3D, true spectrum"))
        for name in ("with neighbours, strength 1", "with neighbours, strength 1, told"):
            if best and (group, name) in beside:
                gain = beside[group, name]["psnr_db"] - best["psnr_db"]
                row(f"{name}: dB above BM3D of the slice alone, {group}", gain, low)
    head = images.get(("real head + 12 HU", "ours, strength 1"))
    if head:
        row("SSIM, real head", head["ssim"], 0.935)
    bench_rows = [one for one in found.get("bench", []) if one["method"] == "ours, strength 0.6"]
    if bench_rows:
        measured = figures(bench_rows[0])
        for bar in BARS:
            row(f"bench: {bar.name}", measured[bar.figure], bar.low, bar.high)
    for one in found.get("adjacent_bench", []):
        if one["strength"] == default and one["objects"] != "no neighbours":
            measured = figures(one)
            for bar in BARS:
                row(f"bench with neighbours, {one['objects']}: {bar.name}", measured[bar.figure], bar.low, bar.high)
    for objects in ("one slice", "through"):
        kept = [one for one in found.get("adjacent_insertion", []) if one["objects"] == objects]
        if kept:
            every = [value for one in kept for key, value in one.items() if key.startswith("kept_")]
            name = f"inserts kept in the test images' noise with neighbours, {objects}"
            row(f"{name}, mean", sum(every) / len(every), 0.85)
            row(f"{name}, least", min(every), 0.75)
    for name, (_ratio, low, _high) in found.get("adjacent_observers", {}).items():
        row(f"lower limit of the detectability ratio with neighbours, {name}", low, 0.95)
    kept = [one for one in found.get("insertion", []) if one["strength"] == default]
    if kept:
        every = [value for one in kept for key, value in one.items() if key.startswith("kept_")]
        row("inserts kept in the test images' noise, mean", sum(every) / len(every), 0.85)
        row("inserts kept in the test images' noise, least", min(every), 0.75)
    for name, (_ratio, low, _high) in found.get("observers", {}).items():
        row(f"lower limit of the detectability ratio, {name}", low, 0.95)
    if found.get("hemorrhage"):
        for figure, high in (("probability", 0.05), ("volume", 0.05)):
            largest = max(abs(one[f"shift_of_{figure}"]) for one in found["hemorrhage"])
            row(f"largest shift of a hemorrhage's {figure} by denoising", largest, high=high)
    names = {"cpu_s_per_slice_512": "", "cpu_s_per_slice_512_with_neighbours": " with neighbours"}
    for key, seconds in found.get("speed", {}).items():
        row(f"CPU seconds per 512 x 512 slice{names[key]}", seconds, high=0.20)
    return rows
