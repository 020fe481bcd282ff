"""What a person should see of one denoising: noise and its spectrum before and after, and where structure went.

It becomes the summary page, a report of the numbers and a segmentation of the places, beside the denoised series.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import numpy as np
import torch

from dicomnode import pipeline as dn
from models.ct_denoise import quality

#: What stands for padding [HU].
AIR_HU: Final = -1000.0
#: Planes on the page: those with the most structure in what was removed.
MOST_PLANES: Final = 4
#: Slices on which the spectrum is measured.
SPECTRUM_SLICES: Final = 16
UNITY: Final = dn.Code("1", "UCUM", "no units")
PER_MM: Final = dn.Code("/mm", "UCUM", "per millimeter")
PERCENT: Final = dn.Code("%", "UCUM", "percent")
SQUARE_MM: Final = dn.Code("mm2", "UCUM", "square millimeter")
SPATIAL_CONCEPT: Final = dn.Code("309825002", "SCT", "Spatial and Relational Concept")
REMOVED: Final = dn.Segment(
    key="removed-structure",
    label="Structure removed with the noise",
    category=SPATIAL_CONCEPT,
    type=dn.Code("REMOVED-STRUCTURE", "99DICOMNODE", "Structure removed by noise reduction"),
    colour=(230, 159, 0),
)
RESEARCH: Final = "Research use only; not for diagnosis. The original series is the source; it is never replaced."
OUTLINES: Final = (
    "Outlined: what was removed and is no noise, because neighbouring pixels lost it alike (beyond "
    f"{quality.SPREADS:g} spreads of the blurred difference, from {quality.LEAST_MM:g} mm on). Most of it is edges "
    "and fine texture."
)
NOTHING: Final = (
    "No place was found where what was removed is more than noise. Faint objects below the noise hide from it."
)
SPECTRUM: Final = (
    "Shares of noise are measured in flat soft tissue, where some anatomy is left in the lowest frequencies."
)


def _named(code: str, meaning: str, value: float, unit: dn.Code, segment: str = "") -> dn.Measurement:
    name = dn.Code(code, "99DICOMNODE", meaning)
    return dn.Measurement(name=name, value=value, unit=unit, segment=segment)


def with_summary(result: dn.Result, series: dn.ImageSeries) -> dn.Result:
    """``result`` of denoising ``series`` with what its summary page says."""
    (image,) = result.images
    before, after = (
        torch.from_numpy(np.where(series.padding, np.float32(AIR_HU), values)) for values in (series.array, image.array)
    )
    pixel_mm2 = series.pixel_spacing[0] * series.pixel_spacing[1]
    pairs = zip(before, after, strict=True)
    masks = [quality.structure_mask(quality.structure(*pair), series.pixel_spacing[0]) for pair in pairs]
    labels = torch.stack(masks).numpy().astype(np.uint8)
    areas = labels.sum((1, 2)) * pixel_mm2
    found = bool(labels.any())
    measured = [_named("STRENGTH", "Strength of noise reduction", result.quality["strength"], UNITY)]
    spectra = _spectra(before, after, series.pixel_spacing[0])
    measured += _noise(result.quality) + (_spectrum(spectra) if spectra is not None else [])
    if found:
        measured.append(_named("LARGEST-AREA", "Largest area in one plane", float(areas.max()), SQUARE_MM, REMOVED.key))
    worst = [int(plane) for plane in np.argsort(-areas, kind="stable")[:MOST_PLANES] if areas[plane] > 0.0]
    keys = [dn.KeyPlane(plane=plane, reason=f"{areas[plane]:.0f} mm² of structure removed") for plane in worst]
    outlined = dn.Segmentation(labels=labels, segments=(REMOVED,), label="AI removed structure")
    return replace(
        result,
        measurements=tuple(measured),
        segmentations=(outlined,) if found else (),
        key_planes=tuple(keys),
        curves=(_curve(spectra),) if spectra is not None else (),
        remarks=(RESEARCH, OUTLINES if found else NOTHING, SPECTRUM, *result.notes),
        quality={**result.quality, "largest_structure_mm2": float(areas.max())},
    )


def _noise(levels: Mapping[str, float]) -> list[dn.Measurement]:
    """Noise before and after and shift of the mean; what could not be measured is left out."""
    names = {
        "noise_before_hu": ("NOISE-BEFORE", "Noise before"),
        "noise_after_hu": ("NOISE-AFTER", "Noise after"),
        "mean_shift_hu": ("MEAN-SHIFT", "Shift of the mean"),
    }
    return [_named(*name, levels[key], dn.HU) for key, name in names.items() if key in levels]


def _spectra(before: torch.Tensor, after: torch.Tensor, pixel_mm: float) -> quality.Spectra | None:
    picked = np.unique(np.linspace(0, len(before) - 1, SPECTRUM_SLICES).round().astype(int))
    return quality.spectra(before[picked], after[picked], pixel_mm)


def _spectrum(spectra: quality.Spectra) -> list[dn.Measurement]:
    """Mean frequency of the noise before and after, and the share of noise left in each band."""
    first, second = spectra.means
    made = [
        _named("FREQUENCY-BEFORE", "Mean frequency of the noise before", first, PER_MM),
        _named("FREQUENCY-AFTER", "Mean frequency of the noise after", second, PER_MM),
        _named("FREQUENCY-SHIFT", "Shift of the mean frequency", 100.0 * (second / first - 1.0), PERCENT),
    ]
    for number, (low, high, left) in enumerate(spectra.left(), start=1):
        meaning = f"Noise left between {low:g} and {high:g} of the Nyquist frequency"
        made.append(_named(f"NOISE-LEFT-{number}", meaning, 100.0 * left, PERCENT))
    return made


def _curve(spectra: quality.Spectra) -> dn.Curve:
    """Amplitude of the noise by frequency after denoising, and before it as the fainter line."""
    amplitudes = [np.sqrt(power) for power in (spectra.before, spectra.after)]
    before, after = (100.0 * part / amplitudes[0].max() for part in amplitudes)
    peak = int(before.argmax())
    named = ((peak, before, "before"), (peak, after, "after"))
    return dn.Curve(
        title="Noise spectrum before (dashed) and after",
        x=spectra.frequency,
        y=after,
        x_label="spatial frequency [1/mm]",
        y_label="% of the highest amplitude before",
        points=tuple((float(spectra.frequency[at]), float(values[at]), name) for at, values, name in named),
        other=before,
    )
