"""Cine short-axis MR: both ventricles and the left wall at ED and ES, and what follows for the heart's function.

The node chooses the stack by geometry (`CineSeries`); whether it shows a heart in short axis is asked of the pixels: a
closed ring of myocardium in three slices in a row, and a cavity that contracts. See models/cardiac/CARD.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch

from dicomnode import pipeline as dn
from models.cardiac import cycle, gate, indices, packages, ranges, shapes, study

#: Structures by label; PS3.16 CID 7150, 7152 and 12305.
ANATOMY: Final = dn.Code("91723000", "SCT", "Anatomical Structure")
LEFT_VENTRICLE: Final = dn.Code("87878005", "SCT", "Left ventricle")
LEFT_WALL: Final = dn.Code("49848007", "SCT", "Myocardium of left ventricle")
RIGHT_VENTRICLE: Final = dn.Code("53085002", "SCT", "Right ventricle")
STRUCTURES: Final = (
    ("lv", shapes.LV, "LV blood pool", LEFT_VENTRICLE, (214, 69, 65)),
    ("myo", shapes.MYO, "LV myocardium", LEFT_WALL, (63, 167, 150)),
    ("rv", shapes.RV, "RV blood pool", RIGHT_VENTRICLE, (74, 137, 214)),
)
VOLUME: Final = dn.Code("118565006", "SCT", "Volume")
PERCENT: Final = dn.Code("%", "UCUM", "percent")
GRAM: Final = dn.Code("g", "UCUM", "gram")
#: PS3.16 CID 3453.
MULTIPLE_SLICES: Final = dn.Code("122562", "DCM", "Multiple Slices")
#: CID 3835 and CID 3833: where the heartbeat's length is known.
HEART: Final = dn.Code("80891009", "SCT", "Heart")
CARDIAC_OUTPUT: Final = dn.Code("82799009", "SCT", "Cardiac Output")
HEART_RATE: Final = dn.Code("8867-4", "LN", "Heart rate")
LITRE_PER_MINUTE: Final = dn.Code("l/min", "UCUM", "liter per minute")
PER_MINUTE: Final = dn.Code("/min", "UCUM", "per minute")
#: Heartbeats of the slices that differ by more than this share are worth a sentence: volumes mix different beats.
UNEVEN_BEATS: Final = 0.2
STROKE_VOLUME: Final = dn.Code("90096001", "SCT", "Stroke Volume")
#: Index, its code (PS3.16 CID 3833 and 3835), unit, site.
INDICES: Final = (
    ("lv_edv", dn.Code("8821-1", "LN", "Left ventricular ED volume"), dn.ML, LEFT_VENTRICLE),
    ("lv_esv", dn.Code("8823-7", "LN", "Left ventricular ES volume"), dn.ML, LEFT_VENTRICLE),
    ("lv_sv", STROKE_VOLUME, dn.ML, LEFT_VENTRICLE),
    ("lv_ef", dn.Code("8811-2", "LN", "Left ventricular ejection fraction by MR"), PERCENT, LEFT_VENTRICLE),
    ("lv_mass", dn.Code("122447", "DCM", "Wall Mass"), GRAM, LEFT_WALL),
    ("rv_edv", dn.Code("8822-9", "LN", "Right ventricular ED volume"), dn.ML, RIGHT_VENTRICLE),
    ("rv_esv", dn.Code("8824-5", "LN", "Right ventricular ES volume"), dn.ML, RIGHT_VENTRICLE),
    ("rv_sv", STROKE_VOLUME, dn.ML, RIGHT_VENTRICLE),
    ("rv_ef", dn.Code("8818-7", "LN", "Right ventricular ejection fraction by MR"), PERCENT, RIGHT_VENTRICLE),
)
#: What the networks were made for: slices of a stack, phases, distance of slices and of pixels [mm] (ml-mr 2.5).
FEWEST_SLICES: Final = 5
FEWEST_PHASES: Final = 8
STEP_MM: Final = (4.0, 16.0)
PIXEL_MM: Final = (0.5, 3.0)
#: ImageType values of what is no magnitude image of the beating heart, and the words for acquisitions that are not one.
NOT_MAGNITUDE: Final = frozenset({"P", "PHASE", "PHASE MAP", "VELOCITY", "VELOCITY MAP", "T1 MAP", "T2 MAP"})

REMARKS: Final = (
    "Research use only; not for diagnosis of patients.",
    "Papillary muscles and trabeculae count as cavity; myocardium has 1.05 g/mL. Volumes are sums of areas times the "
    "distance of the slices (ImagePositionPatient). A slice counts where myocardium lies along at least a third of the "
    "cavity's outline, at end diastole and end systole separately.",
)


#: What is said of the weights that are shipped.
SHIPPED: Final = (
    "Trained on computer-generated hearts and on the contours of three public patients with heart failure; the right "
    "ventricle was never compared with an expert's contours."
)


class CardiacCine(dn.Pipeline[dn.CineSeries]):
    algorithm = dn.Algorithm(name="cardiac-cine", version="0.3.0", weights="models/cardiac")

    @dataclass(frozen=True)
    class Options:
        #: Width of the 95 % interval of LV EF [points] above which a person must look first (ml-mr 2.6). The weights
        #: that are shipped are known to no better than 20 points: with them every result is held.
        hold_ef_points: float = study.WIDEST_EF
        #: Whether a person must look first where the masks break a rule of anatomy that could not be corrected.
        hold_violations: bool = True

    options: Options

    def setup(self, runtime: dn.Runtime) -> None:
        device = torch.device(runtime.device)
        if device.type == "cpu":
            torch.set_num_threads(max(1, runtime.threads))
        self.progress: Callable[[str, float], None] = runtime.progress
        package, self.segmenter = packages.load(runtime.weights, device)
        self.origin = origin_of(package.manifest)
        self.ranges = ranges.load(runtime.weights)

    def run(self, series: dn.CineSeries) -> dn.Result:
        require_cine(series)
        self.progress("segmenting", 0.0)
        images = np.where(series.padding, np.float32(0.0), series.array)
        require(gate.why_not(images))
        seen = self.segmenter.look(images, series.pixel_spacing)
        self.progress("measuring", 0.8)
        try:
            found = study.judge(seen, series.slice_positions)
        except cycle.UnsuitableStackError as reason:
            raise dn.Unsuitable(str(reason)) from reason
        always = (found.ed.labels == shapes.LV) & (found.es.labels == shapes.LV)
        require(gate.why_not_blood(images, always))
        return replace(report(series, found, self.origin, self.ranges), hold=why_held(found, self.options))


def require(reason: str) -> None:
    """Raise `Unsuitable` if there is a reason against the series."""
    if reason:
        raise dn.Unsuitable(reason)


def why_held(found: study.Study, options: CardiacCine.Options) -> str:
    """Why a person must look before this is sent; empty: nobody must."""
    low, high = found.intervals["lv_ef"]
    reasons = list(found.violations) if options.hold_violations else []
    if found.ef_points > options.hold_ef_points:
        text = f"LV EF {found.function.lv_ef:.0f} % has the interval {low:.0f} to {high:.0f} %"
        reasons.insert(0, f"{text}, wider than {options.hold_ef_points:g} points")
    return "; ".join(reasons)


def origin_of(manifest: Mapping[str, Any]) -> str:
    """What the reader must know of the weights: the shipped ones, retrained ones, or somebody else's network."""
    name, data = manifest["name"], str(manifest["training_data"])[:300]
    if "foreign" in manifest:
        return (
            f"Segmented by the imported network {name}, trained on: {data}. Its errors were not measured here: "
            "intervals are those of the node's own network and may be too narrow."
        )
    if manifest["version"] != CardiacCine.algorithm.version:
        return (
            f"Weights {manifest['version']}, retrained at this site; trained on: {data}. Intervals are those of the "
            "weights that were shipped."
        )
    return SHIPPED


def require_cine(series: dn.CineSeries) -> None:
    """Raise `Unsuitable` unless header and geometry are those of a cine stack that the networks were made for."""
    modality = str(series.acquisition.get("Modality", ""))
    if modality and modality != "MR":
        raise dn.Unsuitable(f"needs a cine MR series; Modality is {modality}")
    kind = series.acquisition.get("ImageType", ())
    named = {str(part).upper() for part in (kind if isinstance(kind, tuple) else (kind,))}
    if named & NOT_MAGNITUDE:
        raise dn.Unsuitable(f"needs magnitude images; ImageType has {', '.join(sorted(named & NOT_MAGNITUDE))}")
    phases, slices = series.array.shape[:2]
    if slices < FEWEST_SLICES or phases < FEWEST_PHASES:
        raise dn.Unsuitable(f"needs {FEWEST_SLICES} slices of {FEWEST_PHASES} phases; has {slices} of {phases}")
    for what, value, (low, high) in (
        ("slices", series.step, STEP_MM),
        ("rows", series.pixel_spacing[0], PIXEL_MM),
        ("columns", series.pixel_spacing[1], PIXEL_MM),
    ):
        if not low <= value <= high:
            raise dn.Unsuitable(f"{what} are {value:.1f} mm apart; the algorithm was made for {low:g} to {high:g} mm")


def report(
    series: dn.CineSeries, found: study.Study, origin: str = SHIPPED, normal: ranges.Ranges | None = None
) -> dn.Result:
    """What was found, in the words of the contract."""
    phases = (("ed", found.ed, dn.END_DIASTOLE), ("es", found.es, dn.END_SYSTOLE))
    beat_ms = indices.interval_ms(series.intervals)
    measurements = [*_function(found), *_output(found, beat_ms)]
    segmentations = []
    for word, phase, time_point in phases:
        segmentation = _segmentation(word, phase, time_point)
        segmentations.append(segmentation)
        measurements += [
            dn.Measurement(
                name=VOLUME, value=round(float(phase.volumes[value]), 1), unit=dn.ML, segment=f"{key}-{word}"
            )
            for key, value, *_ in STRUCTURES
            if (phase.labels == value).any()
        ]
    remarks = [REMARKS[0], origin, *REMARKS[1:], _slices(found), *_in_proportion(series, found, beat_ms, normal)]
    remarks += [f"To be judged by a reader before use: {text}." for text in found.doubts]
    quality = {name: float(getattr(found.function, name)) for name, *_ in INDICES}
    quality["ef_interval_points"] = found.ef_points
    quality["slices_fitted"] = float(len(found.ed.fitted) + len(found.es.fitted))
    quality["slices_withheld"] = float(len(found.ed.withheld) + len(found.es.withheld))
    return dn.Result(
        segmentations=tuple(segmentations),
        measurements=tuple(measurements),
        key_planes=tuple(_key_planes(found)),
        curves=(_curve(series, found),),
        remarks=tuple(remarks),
        quality=quality,
        notes=tuple(found.doubts),
    )


def _curve(series: dn.CineSeries, found: study.Study) -> dn.Curve:
    """Left volume over the beat as the network sees it in every phase; the points are the volumes that are reported.

    The two differ, as slices are chosen and corrected at ED and ES alone.
    """
    known = bool(np.isfinite(series.trigger_times).all())
    x = series.trigger_times.mean(1) if known else np.arange(1.0, len(found.curve_ml) + 1)
    if not (np.diff(x) > 0).all():
        known, x = False, np.arange(1.0, len(found.curve_ml) + 1)
    ends = ((found.ed.phase, found.function.lv_edv, "ED"), (found.es.phase, found.function.lv_esv, "ES"))
    return dn.Curve(
        title="LV volume in every phase, smoothed and uncorrected; points: as reported",
        x=x,
        y=found.curve_ml,
        x_label="ms after the R wave" if known else "phase",
        y_label="mL",
        points=tuple((float(x[phase]), round(float(value), 1), name) for phase, value, name in ends),
    )


def _function(found: study.Study) -> Iterator[dn.Measurement]:
    for name, code, unit, site in INDICES:
        low, high = found.intervals[name]
        yield dn.Measurement(
            name=code,
            value=round(float(getattr(found.function, name)), 1),
            unit=unit,
            interval=(round(low, 1), round(high, 1)),
            site=dn.Site(code=site),
            method=MULTIPLE_SLICES,
        )


def _output(found: study.Study, beat_ms: float | None) -> Iterator[dn.Measurement]:
    """Heart rate and cardiac output, where the header says how long the heartbeat was."""
    if beat_ms is None:
        return
    output = indices.cardiac_output_l(found.function.lv_sv, beat_ms)
    low, high = (indices.cardiac_output_l(stroke, beat_ms) for stroke in found.intervals["lv_sv"])
    yield dn.Measurement(
        name=CARDIAC_OUTPUT,
        value=round(output, 2),
        unit=LITRE_PER_MINUTE,
        interval=(round(low, 2), round(high, 2)),
        site=dn.Site(code=LEFT_VENTRICLE),
        method=MULTIPLE_SLICES,
    )
    yield dn.Measurement(name=HEART_RATE, value=round(60000.0 / beat_ms, 0), unit=PER_MINUTE, site=dn.Site(code=HEART))


def _in_proportion(
    series: dn.CineSeries, found: study.Study, beat_ms: float | None, normal: ranges.Ranges | None
) -> Iterator[str]:
    """Values by body surface, the beat they hang on, and what is usual in a population."""
    surface, f = _surface(series), found.function
    if surface is not None:
        indexed = [
            f"LV EDV {f.lv_edv / surface:.0f} mL/m²",
            f"LV ESV {f.lv_esv / surface:.0f} mL/m²",
            f"LV mass {f.lv_mass / surface:.0f} g/m²",
            f"RV EDV {f.rv_edv / surface:.0f} mL/m²",
        ]
        if beat_ms is not None:
            indexed.append(f"cardiac index {indices.cardiac_output_l(f.lv_sv, beat_ms) / surface:.1f} L/min/m²")
        yield (
            f"Indexed by a body surface of {surface:.2f} m² (Mosteller, from PatientSize and PatientWeight): "
            f"{', '.join(indexed)}."
        )
    said = series.intervals[np.isfinite(series.intervals)]
    if beat_ms is not None and np.ptp(said) > UNEVEN_BEATS * beat_ms:
        yield f"The slices show different beats: of {said.min():.0f} to {said.max():.0f} ms."
    if normal is not None:
        shown = normal.sentence(
            str(series.acquisition.get("PatientSex", "")), _age(series), indexed=surface is not None
        )
        if shown:
            yield shown


def _age(series: dn.CineSeries) -> float | None:
    """Age [years] out of PatientAge (``045Y``; PS3.5 6.2, AS); younger than a year is 0."""
    text = str(series.acquisition.get("PatientAge", ""))
    if len(text) != 4 or not text[:3].isdecimal() or text[3] not in "DWMY":
        return None
    return float(text[:3]) if text[3] == "Y" else 0.0


def _segmentation(word: str, phase: study.Phase, time_point: dn.TimePoint) -> dn.Segmentation:
    present = [structure for structure in STRUCTURES if (phase.labels == structure[1]).any()]
    labels = np.zeros_like(phase.labels)
    segments = []
    for number, (key, value, label, code, colour) in enumerate(present, start=1):
        labels[phase.labels == value] = number
        segments.append(
            dn.Segment(
                key=f"{key}-{word}", label=f"{label} {time_point.label}", category=ANATOMY, type=code, colour=colour
            )
        )
    return dn.Segmentation(
        labels=labels,
        segments=tuple(segments),
        phase=phase.phase,
        time_point=time_point,
        role=f"segmentation-{word}",
        label=f"AI ventricles {time_point.label}",
    )


def _key_planes(found: study.Study) -> Iterator[dn.KeyPlane]:
    """The mid-ventricular plane at both phases: the middle of the slices that count at end systole too."""
    both = np.flatnonzero(found.ed.counted & found.es.counted)
    planes = both if len(both) else np.flatnonzero(found.ed.counted)
    middle = int(planes[len(planes) // 2])
    for word, phase, name in (("ed", found.ed, "end diastole"), ("es", found.es, "end systole")):
        keys = tuple(f"{key}-{word}" for key, value, *_ in STRUCTURES if (phase.labels[middle] == value).any())
        if keys:
            yield dn.KeyPlane(plane=middle, reason=f"mid-ventricular, {name}", segments=keys, phase=phase.phase)


def _slices(found: study.Study) -> str:
    """Which slices count, from 1 in the order of the stack, and which of them have a fitted outline."""
    parts = []
    for name, phase in (("end diastole", found.ed), ("end systole", found.es)):
        at = np.flatnonzero(phase.counted) + 1
        fitted = f" (fitted shape: {', '.join(str(k + 1) for k in phase.fitted)})" if phase.fitted else ""
        parts.append(f"{name}, phase {phase.phase + 1}: slices {at.min()} to {at.max()}{fitted}")
    return f"Measured at {'; '.join(parts)}; slice 1 lies at the {'apex' if found.base_last else 'base'}."


def _surface(series: dn.CineSeries) -> float | None:
    """Body surface [m²], if the header holds plausible height and weight."""
    values = []
    for keyword in ("PatientSize", "PatientWeight"):
        value = series.acquisition.get(keyword)
        try:
            values.append(None if value is None or isinstance(value, tuple) else float(value))
        except ValueError:
            values.append(None)
    return indices.body_surface_m2(values[0], values[1])
