"""CT at a lower dose: the same series as it would have looked with a fraction of the tube current.

For protocol work, for teaching, and for making training pairs; never a substitute for a scan. The noise is inserted in
the projections (models/ct_denoise/lowdose.py); nothing else changes.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from dicomnode import pipeline as dn
from models.ct_denoise import lowdose, noise_level
from models.ct_denoise.projection import KERNELS, Kernel
from pipelines import blocks
from pipelines.ct_denoise import ITERATIVE

#: Pixels whose sides differ by more than this share are not square.
SQUARE: Final = 1e-3
#: Slices on which noise and mean are measured for the record.
MEASURED_SLICES: Final = 12


class LowDose(dn.Pipeline[dn.ImageSeries]):
    algorithm = dn.Algorithm(name="ct-lowdose", version="1.0.0")
    accepts_incomplete = True  # every slice is worked on by itself

    @dataclass(frozen=True)
    class Options:
        #: Share of the dose that is left, above 0 and below 1.
        dose: float = 0.5

        def __post_init__(self) -> None:
            number = isinstance(self.dose, int | float) and not isinstance(self.dose, bool)
            if not number or not 0.0 < float(self.dose) < 1.0:
                raise ValueError(f"dose must be a fraction between 0 and 1, is {self.dose!r}")

    options: Options

    def setup(self, runtime: dn.Runtime) -> None:
        self.device = torch.device(runtime.device)
        self.progress = runtime.progress
        if self.device.type == "cpu":
            torch.set_num_threads(max(1, runtime.threads))

    def run(self, series: dn.ImageSeries) -> dn.Result:
        blocks.require_plain_ct(series)
        blocks.refuse_denoised(series)
        blocks.require_hounsfield(series.array, series.padding)
        row_mm, column_mm = series.pixel_spacing
        if abs(row_mm - column_mm) > SQUARE * row_mm:
            raise dn.Unsuitable(f"needs square pixels; they are {row_mm:g} x {column_mm:g} mm")
        dose = float(self.options.dose)
        image = torch.from_numpy(np.where(series.padding, np.float32(lowdose.AIR), series.array)).to(self.device)
        try:
            made = lowdose.lower_dose(
                image,
                row_mm,
                dose,
                seed=seed_of(series, dose),
                kernel=lowdose.kernel_of_name(blocks.text(series, "ConvolutionKernel")),
                overlap=overlap(series),
                progress=lambda share: self.progress("inserting noise", share),
            )
        except ValueError as problem:
            raise dn.Unsuitable(str(problem)) from problem
        output = made.image.cpu().numpy()
        output[series.padding] = series.array[series.padding]
        description = f"noise inserted as at {dose:.3g} of the dose ({self.algorithm.name} {self.algorithm.version})"
        lower = dn.Image(
            array=output,
            role=f"lowdose-{dose:.6g}",
            label=f"simulated {100.0 * dose:.3g} % dose",
            description=description,
            code=dn.Code("113042", "DCM", "Pixel by pixel addition"),
        )
        return dn.Result(
            images=(lower,),
            quality={"dose": dose, "noise_map_hu": made.own_hu} | measure(image.cpu(), torch.from_numpy(output)),
            notes=tuple(notes(series, made.kernel)),
        )


def seed_of(series: dn.ImageSeries, dose: float) -> int:
    """A seed from the values and the dose: the same input gives the same noise, and two doses differ."""
    digest = hashlib.sha256(series.array.tobytes() + np.float64(dose).tobytes()).digest()
    return int.from_bytes(digest[:7], "big")


def overlap(series: dn.ImageSeries) -> float:
    """Slice thickness / distance of the slices: above 1 neighbours share noise."""
    thickness = blocks.number(series, "SliceThickness")
    steps = np.diff(series.slice_positions)
    if thickness is None or steps.size == 0 or float(np.median(steps)) <= 0.0:
        return 1.0
    return min(10.0, max(1.0, thickness / float(np.median(steps))))


def measure(before: torch.Tensor, after: torch.Tensor) -> dict[str, float]:
    """Noise before and after and shift of the mean in flat soft tissue [HU]; what cannot be measured is left out."""
    picked = np.unique(np.linspace(0, len(before) - 1, MEASURED_SLICES).round().astype(int))
    levels = [noise_level(before[index], after[index]) for index in picked]
    good = np.array([level for level in levels if math.isfinite(level.before)])  # (slice, 3)
    if not good.size:
        return {}
    return {
        "noise_before_hu": float(np.median(good[:, 0])),
        "noise_after_hu": float(np.median(good[:, 1])),
        "mean_shift_hu": float(good[:, 2].mean()),
    }


def notes(series: dn.ImageSeries, kernel: Kernel) -> list[str]:
    """Sentences for the record: the kernel that was found, and what the insertion does not reproduce."""
    nearest = min(KERNELS, key=lambda name: abs(math.log(KERNELS[name].cutoff / kernel.cutoff)))
    said = [f"noise spectrum as of a {nearest!r} kernel, cutoff {kernel.cutoff:.2f} lp/mm"]
    found = ITERATIVE.search(blocks.text(series, "SeriesDescription", "ConvolutionKernel", "FilterType"))
    if found:
        said.append(
            f"iteratively reconstructed ({found.group(0)!r}): its noise at a lower dose would be lower than this"
        )
    return said
