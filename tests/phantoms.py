"""Results with known answers: what a pipeline would have returned, and the context they are encoded in."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicomnode import pipeline as dn
from dicomnode.encode.identity import EncodeContext

SMOOTHING = dn.Code("113087", "DCM", "Smoothing")


def context(**changes: Any) -> EncodeContext:
    """A context that is the same every time, but for ``changes``."""
    values: dict[str, Any] = {
        "job_key": "a1" * 32,
        "algorithm": dn.Algorithm(name="ct-denoising", version="1.0.0"),
        "weights_digest": "b2" * 32,
        "when": datetime(2026, 1, 5, 10, 20, 30, 123456, tzinfo=UTC),
        "series_number": 9000,
        "device_serial": "node-1",
    }
    return EncodeContext(**(values | changes))


def result(array: NDArray[np.float32], *, role: str = "denoised", label: str = "AI denoised") -> dn.Result:
    """One derived image."""
    description = "AI noise reduction (ct-denoising 1.0.0, strength 0.6)"
    return dn.Result(images=(dn.Image(array=array, role=role, label=label, description=description, code=SMOOTHING),))


def identity(series: dn.ImageSeries) -> dn.Result:
    """A pipeline that changes nothing."""
    return result(series.array.copy())


def shifted(series: dn.ImageSeries, by: float) -> dn.Result:
    """A pipeline that adds ``by`` [the series' units] to every voxel, padding too."""
    return result(series.array + np.float32(by))


# -- results that say something

HEMORRHAGE = dn.Code("1386000", "SCT", "Intracranial hemorrhage")
BRAIN = dn.Site(code=dn.Code("12738006", "SCT", "Brain"), laterality=dn.Code("7771000", "SCT", "Left"))
IPH = dn.Segment(
    key="intraparenchymal",
    label="Intraparenchymal hemorrhage",
    category=dn.Code("49755003", "SCT", "Morphologically Abnormal Structure"),
    type=dn.Code("50960005", "SCT", "Hemorrhage"),
    finding=dn.Code("274100004", "SCT", "Cerebral hemorrhage"),
    site=BRAIN,
    colour=(220, 40, 40),
)
SDH = dn.Segment(
    key="subdural",
    label="Subdural hemorrhage",
    category=IPH.category,
    type=IPH.type,
    finding=dn.Code("35486000", "SCT", "Subdural hemorrhage"),
    colour=(250, 170, 20),
)
VOLUME = dn.Code("118565006", "SCT", "Volume")


def bleeding(images: dn.ImageSeries) -> dn.Result:
    """A positive result: two lesions as boxes in the middle planes, volumes, probabilities, key planes."""
    labels = np.zeros(images.array.shape, np.uint8)
    planes, rows, columns = labels.shape
    middle = planes // 2
    labels[middle - 1 : middle + 1, rows // 4 : rows // 2, columns // 4 : columns // 2] = 1
    labels[middle, rows // 8 : rows // 5, columns // 2 : 3 * columns // 4] = 2
    volume = {key: float(1.5 * n) for n, key in ((1, IPH.key), (2, SDH.key))}
    return dn.Result(
        segmentations=(dn.Segmentation(labels=labels, segments=(IPH, SDH), label="AI hemorrhage"),),
        findings=(
            dn.Finding(code=HEMORRHAGE, presence=dn.Presence.PRESENT, probability=0.97, urgency=dn.Urgency.MINUTES),
            dn.Finding(code=IPH.finding, presence=dn.Presence.PRESENT, probability=0.95, segment=IPH.key),
            dn.Finding(code=SDH.finding, presence=dn.Presence.PRESENT, probability=0.71, segment=SDH.key),
        ),
        measurements=(
            dn.Measurement(name=VOLUME, value=volume[IPH.key], unit=dn.ML, segment=IPH.key, interval=(1.2, 1.9)),
            dn.Measurement(name=VOLUME, value=volume[SDH.key], unit=dn.ML, segment=SDH.key),
        ),
        key_planes=(
            dn.KeyPlane(plane=middle, reason="largest extent"),
            dn.KeyPlane(plane=middle - 1, reason="intraparenchymal hemorrhage", segments=(IPH.key,)),
        ),
        remarks=("Trained on computer-generated heads only; never tested on a patient with a real hemorrhage.",),
        window=(40.0, 80.0),
    )


SCORE = dn.Code("score", "99TEST", "Score of the toy")


def mapped(images: dn.ImageSeries) -> dn.Result:
    """A positive result with the output of the network for every voxel."""
    values = np.linspace(0.0, 1.0, images.array.size, dtype=np.float32).reshape(images.array.shape)
    one = dn.ParametricMap(
        values=values, quantity=SCORE, unit=dn.Code("1", "UCUM", "no units"), role="score", label="AI score"
    )
    return replace(bleeding(images), parametric_maps=(one,))


def not_bleeding(images: dn.ImageSeries) -> dn.Result:
    """An explicit negative."""
    return dn.Result(
        findings=(dn.Finding(code=HEMORRHAGE, presence=dn.Presence.ABSENT, probability=0.02),),
        remarks=("Not flagged does not mean that there is no hemorrhage.",),
        window=(40.0, 80.0),
    )


def not_evaluated(images: dn.ImageSeries) -> dn.Result:
    """Looked at, and nothing can be said."""
    reason = "streaks of metal in 9 of 28 planes"
    return dn.Result(findings=(dn.Finding(code=HEMORRHAGE, presence=dn.Presence.UNDETERMINED, reason=reason),))


def outside_the_gate(images: dn.ImageSeries) -> dn.Result:
    """A positive result that no report can say: a measurement without a code value."""
    fine = bleeding(images)
    nameless = dn.Measurement(name=dn.Code("", "SCT", "Volume"), value=1.0, unit=dn.ML, segment=IPH.key)
    return replace(fine, measurements=(nameless,))
