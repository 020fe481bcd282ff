"""CT noise reduction: the same series with about half of the noise. See models/ct_denoise/CARD.md."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from dicomnode import pipeline as dn
from models import ct_denoise
from pipelines import blocks, ct_adjacent, ct_quality

#: Names of strengths: the share of the predicted noise that is taken away. "default" depends on the series.
STRENGTHS: Final = {"low": 0.4, "default": 0.6, "high": 0.8}
#: "default" of a head: grey and white matter differ by 5-10 HU, and the card shows what full strength does to that.
HEAD_STRENGTH: Final = 0.5
#: Iterative reconstructions: their noise is lower and smoother than the network's training noise.
ITERATIVE: Final = re.compile(
    r"\b(iDose\d?|IMR|ASIR(-?V)?|VEO|MBIR|SAFIRE|ADMIRE|IRIS|AIDR)\b|[BIJQH][rvfsbu]?\d\d[a-z]?[\\ ]\d|\bI\d\d[fsmh]\b",
    re.IGNORECASE,
)
#: Above this the noise exceeds everything in training [HU].
NOISIEST_HU: Final = 80.0
#: Slices per batch at first; halved while memory runs out.
BATCH: Final = {"cuda": 32, "cpu": 2}
#: What replaces padding before the network sees it [HU].
AIR_HU: Final = -1000.0
#: Slices on which noise and mean are measured for the record.
MEASURED_SLICES: Final = 16

Slices = NDArray[np.float32]


class CTDenoising(dn.Pipeline[dn.ImageSeries]):
    algorithm = dn.Algorithm(name="ct-denoising", version="1.3.0", weights="models/ct_denoise")
    accepts_incomplete = True  # a slice beside a gap is worked on by itself

    @dataclass(frozen=True)
    class Options:
        #: Share of the noise to remove: low, default, high, or a number above 0 and up to 1.
        strength: float | str = "default"
        #: Also make a summary page, a report and a segmentation of where structure was removed.
        summary: bool = False

        def __post_init__(self) -> None:
            named = isinstance(self.strength, str) and self.strength in STRENGTHS
            given = isinstance(self.strength, int | float) and not isinstance(self.strength, bool)
            if not named and not (given and 0.0 < float(self.strength) <= 1.0):
                raise ValueError(f"strength must be {', '.join(STRENGTHS)} or in (0, 1], is {self.strength!r}")
            if not isinstance(self.summary, bool):
                raise ValueError(f"summary must be true or false, is {self.summary!r}")

    options: Options

    def setup(self, runtime: dn.Runtime) -> None:
        self.device = torch.device(runtime.device)
        if self.device.type == "cpu":
            torch.set_num_threads(max(1, runtime.threads))
        self.progress: Callable[[str, float], None] = runtime.progress
        self.net = ct_denoise.load(runtime.weights, self.device)

    def run(self, series: dn.ImageSeries) -> dn.Result:
        blocks.require_plain_ct(series)
        blocks.refuse_denoised(series)
        blocks.require_hounsfield(series.array, series.padding)
        strength, notes = self.strength_for(series)
        image = np.where(series.padding, np.float32(AIR_HU), series.array)
        refuse_noisier_than_training(image)
        spacing = ct_adjacent.spacings(series)
        output = self.denoise(image, strength, spacing)
        output[series.padding] = series.array[series.padding]
        if not bool(np.isfinite(output).all()):
            raise ArithmeticError("the network gave values that are not finite")
        description = f"AI noise reduction ({self.algorithm.name} {self.algorithm.version}, strength {strength:g})"
        result = dn.Result(
            images=(
                dn.Image(
                    array=output,
                    role="denoised",
                    label="AI denoised",
                    description=description,
                    code=dn.Code("113087", "DCM", "Smoothing"),
                ),
            ),
            quality={"strength": strength, "slices_with_neighbours": float(np.isfinite(spacing).sum())}
            | measure(image, output, series.padding),
            notes=(*notes, *warnings(series), *above_presets(strength, spacing)),
        )
        return ct_quality.with_summary(result, series) if self.options.summary else result

    def strength_for(self, series: dn.ImageSeries) -> tuple[float, tuple[str, ...]]:
        """The strength for ``series``, and a sentence where it is not the usual one."""
        chosen = self.options.strength
        if not isinstance(chosen, str):
            return float(chosen), ()
        if chosen != "default":
            return STRENGTHS[chosen], ()
        found = ITERATIVE.search(blocks.text(series, "SeriesDescription", "ConvolutionKernel", "FilterType"))
        if found:
            return STRENGTHS["low"], (
                f"strength lowered: the series is iteratively reconstructed ({found.group(0)!r})",
            )
        if blocks.is_head(series):
            return HEAD_STRENGTH, ("strength of a head",)
        return STRENGTHS["default"], ()

    def denoise(self, image: Slices, strength: float, spacing: NDArray[np.float32]) -> Slices:
        """``image`` less ``strength`` times its predicted noise; both (slice, row, column) [HU].

        ``spacing``: distance of each slice's neighbours [mm], NaN where they are not to be used (`ct_adjacent`).
        """
        output = np.empty_like(image)
        stream = ct_denoise.Stream(self.net, strength, torch.from_numpy(spacing))
        batch = BATCH.get(self.device.type, 1)
        while stream.given < len(image):
            done = stream.done
            part = torch.from_numpy(image[stream.given : stream.given + batch]).to(self.device)[:, None]
            try:
                with torch.inference_mode(), ct_denoise.precision(self.device):
                    noise = stream.feed(part)[:, 0].cpu().numpy()
            except torch.OutOfMemoryError:
                if batch == 1:
                    raise
                batch //= 2
                continue
            output[done : stream.done] = image[done : stream.done] - noise
            self.progress("denoising", min(1.0, stream.done / len(image)))
        return output


def refuse_noisier_than_training(image: Slices) -> None:
    """Raise `Unsuitable` if ``image`` (slice, row, column) [HU] is noisier than anything the network was trained on."""
    levels = [ct_denoise.noise_level(plane, plane).before for plane in _sample(image)]
    measured = [level for level in levels if np.isfinite(level)]
    if measured and float(np.median(measured)) > NOISIEST_HU:
        raise dn.Unsuitable(f"noise of {np.median(measured):.0f} HU; the network was trained up to {NOISIEST_HU:g} HU")


def measure(before: Slices, after: Slices, padding: NDArray[np.bool_]) -> dict[str, float]:
    """Noise before and after, and shift of the mean, in flat soft tissue [HU]; what cannot be measured is left out."""
    found = {"largest_change_hu": float(np.abs(after - before)[~padding].max(initial=0.0))}
    levels = [ct_denoise.noise_level(*planes) for planes in zip(_sample(before), _sample(after), strict=True)]
    flat = np.array([level for level in levels if np.isfinite(level.before)])  # (slice, 3)
    if flat.size:
        found["noise_before_hu"], found["noise_after_hu"] = (float(np.median(flat[:, part])) for part in (0, 1))
        found["mean_shift_hu"] = float(flat[:, 2].mean())
    return found


def _sample(image: Slices) -> Iterator[torch.Tensor]:
    for index in np.unique(np.linspace(0, len(image) - 1, MEASURED_SLICES).round().astype(int)):
        yield torch.from_numpy(image[index])


def above_presets(strength: float, spacing: NDArray[np.float32]) -> Iterator[str]:
    """A sentence for the record where neighbours enter the least-squares estimate; no preset does that."""
    if strength > ct_denoise.PRESETS_UP_TO and np.isfinite(spacing).any():
        yield (
            f"strength above {ct_denoise.PRESETS_UP_TO:g} with close slices: faint structures in one slice alone are "
            "taken for noise, and show in the slices beside it"
        )


def warnings(series: dn.ImageSeries) -> Iterator[str]:
    """Sentences for the record: what the model card names as untested."""
    age = blocks.text(series, "PatientAge")
    if age and (age[-1:] in "DWM" or (age[-1:] == "Y" and age[:-1].isdigit() and int(age[:-1]) < 18)):
        yield f"not tested on children (PatientAge {age})"
    if float((series.array > 2500.0).mean()) > 1e-4:
        yield "metal or very dense material: not tested near it"
    if series.incomplete:
        yield "the series is incomplete; those beside a gap are denoised by themselves"
