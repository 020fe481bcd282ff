"""Intracranial hemorrhage in head CT without contrast: what, where, how much. See models/hemorrhage/CARD.md.

Which series of a study is read is the rules' business: a soft kernel, 2.5-5 mm, the most coverage. Every series that a
rule sends here is judged by itself. Three outcomes: *present* with outlines and volumes, *absent*, or *undetermined*
with the reason; a series that is no plain head CT is `Unsuitable`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import SimpleITK as sitk  # noqa: N813 - its own documentation's name
import torch
from numpy.typing import NDArray

from dicomnode import pipeline as dn
from models import hemorrhage
from pipelines import blocks, head

ANY: Final = dn.Code("1386000", "SCT", "Intracranial hemorrhage")
#: SNOMED CT codes of DICOM's subset, PS3.16 CID 7159 and 7150; findings as other vendors write them.
HEMORRHAGE: Final = dn.Code("50960005", "SCT", "Hemorrhage")
ABNORMAL: Final = dn.Code("49755003", "SCT", "Morphologically Abnormal Structure")
CRANIAL_CAVITY: Final = dn.Code("1101003", "SCT", "Intracranial")
BRAIN: Final = dn.Code("12738006", "SCT", "Brain")
VOLUME: Final = dn.Code("118565006", "SCT", "Volume")
#: Neither DICOM's code dictionary (PS3.16, pydicom 3.0) nor a public source that could be checked has a code for these.
MAXIMUM_THICKNESS: Final = dn.Code("MAX-THICKNESS", "99DICOMNODE", "Maximum thickness")
MIDLINE_SHIFT: Final = dn.Code("MIDLINE-SHIFT", "99DICOMNODE", "Midline shift")
#: Key of the manifest: true where the package's midline shift met its bar (ml-ct 4.2: 1.5 mm). A wrong number of
#: millimetres in a report is worse than none.
REPORTS_SHIFT: Final = "reports_midline_shift"
#: CID 244.
LEFT: Final = dn.Code("7771000", "SCT", "Left")
RIGHT: Final = dn.Code("24028007", "SCT", "Right")
BILATERAL: Final = dn.Code("51440002", "SCT", "Bilateral")

#: What each subtype is called, what it is, where it lies, and its colour.
SUBTYPES: Final[Mapping[str, tuple[str, dn.Code, dn.Code, tuple[int, int, int]]]] = {
    "epidural": (
        "Epidural hemorrhage",
        dn.Code("82999001", "SCT", "Epidural intracranial hemorrhage"),
        CRANIAL_CAVITY,
        (232, 163, 61),
    ),
    "subdural": (
        "Subdural hemorrhage",
        dn.Code("35486000", "SCT", "Subdural hemorrhage"),
        CRANIAL_CAVITY,
        (63, 167, 150),
    ),
    "subarachnoid": (
        "Subarachnoid hemorrhage",
        dn.Code("21454007", "SCT", "Subarachnoid intracranial hemorrhage"),
        dn.Code("35951006", "SCT", "Subarachnoid space"),
        (168, 120, 214),
    ),
    "intraparenchymal": (
        "Intraparenchymal hemorrhage",
        dn.Code("274100004", "SCT", "Cerebral hemorrhage"),
        BRAIN,
        (214, 69, 65),
    ),
    # sources disagree on a precoordinated code: hemorrhage, and the site says the rest
    "intraventricular": (
        "Intraventricular hemorrhage",
        HEMORRHAGE,
        dn.Code("35764002", "SCT", "Brain ventricle"),
        (74, 137, 214),
    ),
}
#: Subtypes that lie on the skull and are measured across.
EXTRA_AXIAL: Final = ("epidural", "subdural")
#: The true volume is believed to lie between those at this many times the outline's odds: 0.3-0.7 at 0.5 (ml-ct 1.3).
INTERVAL: Final = (3.0 / 7.0, 7.0 / 3.0)
#: How far beyond the outline a voxel may lie and still count to the larger of the two volumes [mm].
MARGIN_MM: Final = 2.0
#: A side is named if this share of the blood lies there; both are, if each has at least the second share.
ONE_SIDE: Final = 0.9
BOTH_SIDES: Final = 0.25
MOST_KEY_PLANES: Final = 6
#: Window of the summary page (center, width) [HU]: the brain window that blood is looked for in.
WINDOW: Final = (40.0, 80.0)

#: Least outlined volume that keeps a head from being called free of blood [mL]: what the evaluation counts as visible.
DOUBT_ML: Final = 1.0
#: A midline is found along the cavity's longer axis, if it is longer by this; blood nearer to it has no side [mm].
LEAST_ELONGATION: Final = 1.1
LEAST_OFF_MIDLINE_MM: Final = 5.0
ALL_NEAR_MM: Final = 15.0

AGE_UNKNOWN: Final = "The patient's age is not in the images; the algorithm is not made for children."
REMARKS: Final = (
    "Research use only; not for diagnosis or triage of patients.",
    "Trained only on computer-generated heads; never tested on a patient with a real hemorrhage: sensitivity and "
    "specificity in patients are unknown.",
    "Not flagged does not mean no hemorrhage. Thin subdural, subarachnoid, isodense or chronic blood, the skull base, "
    "the posterior fossa and operated heads are known weak points.",
)


class HemorrhageDetection(dn.Pipeline[dn.ImageSeries]):
    algorithm = dn.Algorithm(name="hemorrhage-detection", version="0.4.0", weights="models/hemorrhage")
    accepts_incomplete = True  # blood that is seen must be said; nothing is called absent then

    @dataclass(frozen=True)
    class Options:
        #: Which thresholds of the model package decide: triage (sensitive) or second-read (few false alarms).
        operating_point: str = "triage"

        def __post_init__(self) -> None:
            if self.operating_point not in {"triage", "second-read"}:
                raise ValueError(f"operating_point must be triage or second-read, is {self.operating_point!r}")

    options: Options

    def setup(self, runtime: dn.Runtime) -> None:
        device = torch.device(runtime.device)
        if device.type == "cpu":
            torch.set_num_threads(max(1, runtime.threads))
        self.progress: Callable[[str, float], None] = runtime.progress
        self.detector = hemorrhage.load(runtime.weights, device)

    def run(self, series: dn.ImageSeries) -> dn.Result:
        blocks.require_plain_ct(series)
        blocks.refuse_own_results(series)
        blocks.refuse_contrast(series)
        blocks.require_hounsfield(series.array, series.padding)
        try:
            seen = head.require_head(series)
        except head.Unreadable as reason:
            return not_evaluated(str(reason))
        found = self.detector.detect(
            seen.values,
            series.pixel_spacing,
            series.positions,
            series.orientation,
            progress=lambda share: self.progress("detecting", share),
        )
        if not found.cavity.any():
            return not_evaluated(f"the detector recognised no brain: {found.confidence_note or 'no cavity'}")
        if not self.detector.package.manifest.get(REPORTS_SHIFT, False):
            found = replace(found, midline_shift_mm=None)
        return report(series, seen, found, self.detector.package.operating_points[self.options.operating_point])


def not_evaluated(reason: str) -> dn.Result:
    """The head ought to have been read: said as undetermined, never as absent."""
    finding = dn.Finding(code=ANY, presence=dn.Presence.UNDETERMINED, reason=f"not evaluated: {reason}")
    return dn.Result(findings=(finding,), remarks=REMARKS, window=WINDOW, notes=(f"not evaluated: {reason}",))


def report(
    series: dn.ImageSeries, seen: head.Head, found: hemorrhage.Detection, thresholds: Mapping[str, float]
) -> dn.Result:
    """What was found, in the words of the contract."""
    limits = (*seen.limits, *([found.confidence_note] if found.confidence_note else []))
    outlines = {name: found.labels == value for value, name in enumerate(hemorrhage.CLASSES, start=1)}
    outlines = {name: mask for name, mask in outlines.items() if mask.any()}
    outlined_ml = seen.volume_ml(found.labels > 0)
    doubt = _doubt(found.study, thresholds, outlined_ml)
    quality = {f"score_{name}": float(score) for name, score in found.study.items()}
    quality |= {"coverage": seen.coverage, "cavity_ml": seen.volume_ml(found.cavity), "outlined_ml": outlined_ml}
    age = () if blocks.age_years(series) is not None else (AGE_UNKNOWN,)
    result = dn.Result(
        quality=quality,
        remarks=(*REMARKS, *age, *seen.notes),
        window=WINDOW,
        parametric_maps=(blocks.score_map(found.probability),),
        notes=(*limits, *([doubt] if doubt else []), *seen.notes),
    )
    if found.study["any"] < thresholds["any"] and not doubt:
        presence = dn.Presence.UNDETERMINED if limits else dn.Presence.ABSENT
        negatives = tuple(_negative(name, score, presence, limits) for name, score in found.study.items())
        return replace(result, findings=negatives)
    side = {name: laterality(series, found.cavity, mask, seen.voxel_ml) for name, mask in outlines.items()}
    segments = tuple(_segment(name, side[name]) for name in outlines)
    labels = np.zeros(found.labels.shape, np.uint8)
    for value, name in enumerate(outlines, start=1):
        labels[outlines[name]] = value
    segmentation = dn.Segmentation(labels=labels, segments=segments, label="AI hemorrhage")
    because = (doubt, *limits) if doubt else limits
    findings = [_positive(name, found.study, thresholds, side, because) for name in ("any", *hemorrhage.CLASSES)]
    if doubt:
        findings = [_doubtful(finding) for finding in findings]
    measurements = [m for name, mask in outlines.items() for m in measured(series, seen, found, name, mask)]
    if found.midline_shift_mm is not None:
        shift = round(float(found.midline_shift_mm), 1)
        measurements.append(dn.Measurement(name=MIDLINE_SHIFT, value=shift, unit=dn.MM, site=dn.Site(code=BRAIN)))
    return replace(
        result,
        segmentations=(segmentation,) if segments else (),
        findings=tuple(findings),
        measurements=tuple(measurements),
        key_planes=tuple(key_planes(outlines, found.slice_any)),
        quality=quality | {f"volume_{name}_ml": seen.volume_ml(mask) for name, mask in outlines.items()},
    )


def _doubt(study: Mapping[str, float], thresholds: Mapping[str, float], outlined_ml: float) -> str:
    """Why a head whose score lies below the operating point must not be called free of blood; empty if it may."""
    if study["any"] >= thresholds["any"]:
        return ""
    if outlined_ml >= DOUBT_ML:
        return f"{outlined_ml:.1f} mL outlined, but the head was scored below the operating point"
    over = [name for name in hemorrhage.CLASSES if study[name] >= max(thresholds[name], thresholds["any"])]
    return f"scored as {' and '.join(over)}, but as a whole below the operating point" if over else ""


def _doubtful(finding: dn.Finding) -> dn.Finding:
    """The same, said as undetermined and without urgency."""
    return replace(finding, presence=dn.Presence.UNDETERMINED, urgency=None)


def _code(name: str) -> tuple[dn.Code, dn.Site | None]:
    if name == "any":
        return ANY, None
    _label, code, site, _colour = SUBTYPES[name]
    return code, dn.Site(code=site)


def _negative(name: str, score: float, presence: dn.Presence, limits: tuple[str, ...]) -> dn.Finding:
    code, site = _code(name)
    return dn.Finding(code=code, presence=presence, probability=_score(score), site=site, reason="; ".join(limits))


def _positive(
    name: str,
    scores: Mapping[str, float],
    thresholds: Mapping[str, float],
    side: Mapping[str, dn.Code | None],
    limits: tuple[str, ...],
) -> dn.Finding:
    """One finding of a flagged head. A type needs score and outline to be present; one alone leaves it undetermined."""
    code, site = _code(name)
    over, outlined = scores[name] >= thresholds[name], name in side
    reasons = list(limits)
    if name == "any":
        presence = dn.Presence.PRESENT
        reasons += [] if side else ["flagged by its score; no voxels outlined"]
    elif over and outlined:
        presence = dn.Presence.PRESENT
    elif over or outlined:
        presence = dn.Presence.UNDETERMINED
        reasons.append(
            f"the type is uncertain: {'outlined, but scored below' if outlined else 'scored above'} its "
            f"threshold{'' if outlined else ', and no voxels outlined'}"
        )
    else:
        presence = dn.Presence.UNDETERMINED if limits else dn.Presence.ABSENT
    return dn.Finding(
        code=code,
        presence=presence,
        probability=_score(scores[name]),
        segment=name if outlined else "",
        site=dn.Site(code=site.code, laterality=side.get(name)) if site else None,
        urgency=dn.Urgency.MINUTES if presence is dn.Presence.PRESENT else None,
        reason="; ".join(reasons),
    )


def _score(value: float) -> float:
    return round(min(1.0, max(0.0, float(value))), 3)


def _segment(name: str, side: dn.Code | None) -> dn.Segment:
    label, code, site, colour = SUBTYPES[name]
    return dn.Segment(
        key=name,
        label=label,
        category=ABNORMAL,
        type=HEMORRHAGE,
        finding=code,
        site=dn.Site(code=site, laterality=side),
        colour=colour,
    )


def measured(
    series: dn.ImageSeries,
    seen: head.Head,
    found: hemorrhage.Detection,
    name: str,
    mask: NDArray[np.bool_],
) -> Iterator[dn.Measurement]:
    """Volume with its interval, and what lies on the skull measured across."""
    volume = seen.volume_ml(mask)
    near, drawn_at = _near(mask, found.labels, series.pixel_spacing), found.drawn_at.get(name, 0.5)
    odds = [times * drawn_at / (1.0 - drawn_at) for times in INTERVAL]
    high, low = (seen.volume_ml(near & (found.probability > one / (1.0 + one))) for one in odds)
    yield dn.Measurement(
        name=VOLUME,
        value=round(volume, 2),
        unit=dn.ML,
        segment=name,
        interval=(round(min(low, volume), 2), round(max(high, volume), 2)),
    )
    if name in EXTRA_AXIAL:
        across = max(thickness_mm(plane, series.pixel_spacing) for plane in mask)
        yield dn.Measurement(name=MAXIMUM_THICKNESS, value=round(across, 1), unit=dn.MM, segment=name)


def _near(mask: NDArray[np.bool_], labels: NDArray[np.uint8], spacing: tuple[float, float]) -> NDArray[np.bool_]:
    """``mask`` and what lies within `MARGIN_MM` of it on its planes and belongs to no other subtype."""
    radius = [max(1, round(MARGIN_MM / mm)) for mm in reversed(spacing)]
    wide = mask.copy()
    for index in np.flatnonzero(mask.any(axis=(1, 2))):
        image = sitk.BinaryDilate(sitk.GetImageFromArray(mask[index].astype(np.uint8)), radius, sitk.sitkBall)
        wide[index] = sitk.GetArrayFromImage(image) > 0
    near: NDArray[np.bool_] = wide & (mask | (labels == 0))
    return near


def thickness_mm(plane: NDArray[np.bool_], spacing: tuple[float, float]) -> float:
    """Diameter of the largest circle within ``plane`` (row, column) [mm]: how thick a crescent or lens is."""
    if not plane.any():
        return 0.0
    image = sitk.GetImageFromArray(np.pad(plane, 1).astype(np.uint8))
    image.SetSpacing((spacing[1], spacing[0]))
    distance = sitk.SignedMaurerDistanceMap(image, insideIsPositive=True, squaredDistance=False, useImageSpacing=True)
    # distances end at the border pixels' centres, half a pixel short on either side
    return 2.0 * float(sitk.GetArrayViewFromImage(distance).max()) + 0.5 * sum(spacing)


def laterality(
    series: dn.ImageSeries, cavity: NDArray[np.bool_], mask: NDArray[np.bool_], voxel_ml: NDArray[np.float64]
) -> dn.Code | None:
    """The patient's side on which ``mask`` lies; None where it is not clear.

    The midline of each plane runs through the middle of the cavity along the longer axis of the whole: a rolled head's
    midline is not upright.
    """
    distance = off_midline_mm(series, cavity)
    if distance is None:
        return None
    weight = np.broadcast_to(voxel_ml[:, None, None], mask.shape)[mask]
    off = distance[mask]
    if abs(float(np.average(off, weights=weight))) < LEAST_OFF_MIDLINE_MM and float(np.abs(off).max()) < ALL_NEAR_MM:
        return None
    share = float(weight[off < 0].sum() / weight.sum())
    if share >= ONE_SIDE:
        return RIGHT
    if share <= 1.0 - ONE_SIDE:
        return LEFT
    return BILATERAL if BOTH_SIDES <= share <= 1.0 - BOTH_SIDES else None


def off_midline_mm(series: dn.ImageSeries, cavity: NDArray[np.bool_]) -> NDArray[np.float64] | None:
    """Distance of every voxel from the midline of its plane (slice, row, column) [mm], positive on the patient's left.

    None where the cavity shows no midline.
    """
    if not cavity.any():
        return None
    planes = np.flatnonzero(cavity.any(axis=(1, 2)))
    x = np.arange(cavity.shape[2]) * series.pixel_spacing[1]
    y = np.arange(cavity.shape[1]) * series.pixel_spacing[0]
    middles, moment = np.zeros((len(cavity), 2)), np.zeros((2, 2))
    for index in planes:
        rows, columns = np.nonzero(cavity[index])
        points = np.stack([x[columns], y[rows]])
        middles[index] = points.mean(axis=1)
        centred = points - middles[index][:, None]
        moment += centred @ centred.T
    for empty in set(range(len(cavity))) - set(planes.tolist()):
        middles[empty] = middles[planes[np.abs(planes - empty).argmin()]]
    lengths, axes = np.linalg.eigh(moment)  # the shorter axis first
    if lengths[1] < LEAST_ELONGATION**2 * lengths[0]:
        return None
    to_left = axes[:, 0]  # across the midline
    left = float(to_left[0] * series.orientation[0] + to_left[1] * series.orientation[3])
    if abs(left) < np.sqrt(0.5):  # the longer axis runs from side to side: no head lies so
        return None
    to_left = to_left if left > 0 else -to_left
    along = middles @ to_left
    distance: NDArray[np.float64] = x[None, None, :] * to_left[0] + y[None, :, None] * to_left[1] - along[:, None, None]
    return distance


def key_planes(outlines: Mapping[str, NDArray[np.bool_]], slice_any: NDArray[np.float32]) -> Iterator[dn.KeyPlane]:
    """The plane of the largest extent of every subtype; without an outline the plane of the highest score."""
    if not outlines:
        yield dn.KeyPlane(plane=int(np.argmax(slice_any)), reason="highest score; nothing outlined")
        return
    planes: dict[int, list[str]] = {}
    for name in sorted(outlines, key=lambda name: -int(outlines[name].sum())):
        planes.setdefault(int(outlines[name].sum(axis=(1, 2)).argmax()), []).append(name)
    for plane, names in list(planes.items())[:MOST_KEY_PLANES]:
        what = " and ".join(SUBTYPES[name][0].lower() for name in names)
        yield dn.KeyPlane(plane=plane, reason=f"largest extent of the {what}", segments=tuple(names))
