"""Cine series in every layout that scanners write, and what looks like one and is none.

The first two pixels of every image say which slice and phase it is, so that tests can tell how images were put
together; the rest is a heart of a few circles that beats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian

from dicomnode import pipeline as dn
from tests import factories
from tests.factories import uid

#: Row and column direction of a short-axis stack: oblique to all axes of the patient.
SHORT_AXIS = (0.712221, 0.701112, -0.0343949, -0.307716, 0.267798, -0.913015)
#: Of a four-chamber view: the long axis lies in it.
LONG_AXIS = (0.833, -0.5105, 0.2132, -0.3077, -0.1058, 0.9456)
INTERVAL = 840.0


def heart(slices: int, phases: int, rows: int, columns: int) -> NDArray[np.int64]:
    """Stored values of a beating heart: axes (phase, slice, row, column); end systole in the middle of the phases."""
    y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    images = np.full((phases, slices, rows, columns), 200)
    for phase in range(phases):
        for index in range(slices):
            inner = radius(index, slices, phase, phases)
            distance = np.hypot(x, y)
            images[phase, index][distance < inner + 0.2] = 400
            images[phase, index][distance < inner] = 1200
            images[phase, index, 0, :2] = index, phase
    return images


def radius(index: int, slices: int, phase: int, phases: int) -> float:
    """Of the cavity, as a part of half the picture."""
    size = 0.55 - 0.3 * index / max(slices - 1, 1)
    return float(size * (1 - 0.25 * (1 - np.cos(2 * np.pi * phase / phases))))


def one_series(
    slices: int = 8,
    phases: int = 10,
    *,
    rows: int = 24,
    columns: int = 32,
    step: float = 8.0,
    orientation: Sequence[float] = SHORT_AXIS,
    origin: Sequence[float] = (-28.7592, -199.666, 111.184),
    series: str = "cine",
    number: int = 5,
    first: float = 10.0,
    clock: str = "0826",
    numbers: Callable[[int, int], int] | None = None,
    name: str = "",
    values: dict[str, Any] | None = None,
    missing: Sequence[str] = (),
    **knobs: Any,
) -> list[Dataset]:
    """Everything in one series, one file per slice and phase: slice after slice, as GE writes it.

    Parameters
    ----------
    first
        TriggerTime of the first phase [ms].
    clock
        Hour and minute of AcquisitionTime; the seconds are the slice.
    numbers
        InstanceNumber by (slice, phase).
    name
        Sets the instances apart from those of the same series made before.
    """
    stored = heart(slices, phases, rows, columns)
    found: list[Dataset] = []
    for phase in range(phases):
        given: dict[str, Any] = {
            "SOPInstanceUID": lambda index, phase=phase: uid("cine", series, name, index, phase),
            "SeriesNumber": str(number),
            "TriggerTime": f"{first + INTERVAL / phases * phase:.4f}",
            "NominalInterval": str(int(INTERVAL)),
            "HeartRate": "71",
            "CardiacNumberOfImages": str(phases),
            "InstanceNumber": lambda index, phase=phase: str(
                numbers(index, phase) if numbers else 1 + index * phases + phase
            ),
            "AcquisitionTime": lambda index: f"{clock}{index:02d}",
            "SliceLocation": lambda index: f"{6.72 * index:.2f}",  # as one real scanner writes 10 mm
            "SeriesDescription": None,
            "StudyDescription": None,
            "ProtocolName": None,
            "BodyPartExamined": None,
            "SpacingBetweenSlices": str(step),
        }
        found += factories.mr_series(
            slices,
            rows=rows,
            columns=columns,
            step=step,
            thickness=str(step),
            orientation=orientation,
            origin=origin,
            spacing=(1.4, 1.4),
            series=series,
            stored=stored[phase],
            values=given | (values or {}),
            missing=missing,
            **knobs,
        )
    return found


def series_per_slice(slices: int = 8, phases: int = 10, **knobs: Any) -> list[Dataset]:
    """A series for every slice, as Siemens writes it."""
    found = one_series(slices, phases, **knobs)
    for index in range(slices):
        for ds in found[index::slices]:
            ds.SeriesInstanceUID, ds.SeriesNumber = uid(ds.SeriesInstanceUID, index), str(10 + index)
    return found


def repeated(slices: int = 8, phases: int = 10, which: int = 2, **knobs: Any) -> list[Dataset]:
    """One slice acquired again later, in the same series."""
    again = one_series(slices, phases, name="again", clock="0840", first=12.0, **knobs)[which::slices]
    for phase, ds in enumerate(again):
        ds.InstanceNumber = str(1000 + phase)
    return one_series(slices, phases, **knobs) + again


def enhanced(frames: Sequence[Dataset], name: str = "") -> Dataset:
    """``frames`` as one Enhanced MR instance, with the functional groups of a cine."""
    ds = factories._enhanced(list(frames), EnhancedMRImageStorage, "MR", ExplicitVRLittleEndian)
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = uid(frames[0].SOPInstanceUID, "enhanced", name)
    for keyword in ("TriggerTime", "NominalInterval", "HeartRate", "CardiacNumberOfImages"):
        del ds[keyword]
    for groups, frame in zip(ds.PerFrameFunctionalGroupsSequence, frames, strict=True):
        item = Dataset()
        item.NominalCardiacTriggerDelayTime = float(frame.TriggerTime)
        item.RRIntervalTimeNominal = INTERVAL
        groups.CardiacSynchronizationSequence = [item]
    return ds


def enhanced_per_slice(slices: int = 8, phases: int = 10, **knobs: Any) -> list[Dataset]:
    """One Enhanced instance, in a series of its own, for every slice."""
    found = series_per_slice(slices, phases, **knobs)
    return [enhanced(found[index::slices]) for index in range(slices)]


def interleaved(slices: int = 8, phases: int = 10, **knobs: Any) -> list[Dataset]:
    """Even slices in one series, odd ones in another."""
    found = one_series(slices, phases, **knobs)
    for index in range(1, slices, 2):
        for ds in found[index::slices]:
            ds.SeriesInstanceUID, ds.SeriesNumber = uid(ds.SeriesInstanceUID, "odd"), "6"
    return found


def long_axis(slices: int = 3, phases: int = 10, **knobs: Any) -> list[Dataset]:
    """Parallel long-axis planes with phases."""
    return one_series(
        slices, phases, orientation=LONG_AXIS, series="long axis", **({"number": 4, "clock": "0830"} | knobs)
    )


def scouts() -> list[Dataset]:
    """Three planes of each orthogonal direction, one image each."""
    found = []
    directions = {"axial": factories.AXIAL, "sagittal": factories.SAGITTAL, "coronal": factories.CORONAL}
    for name, orientation in directions.items():
        named = {"SOPInstanceUID": lambda index, name=name: uid("scout", name, index)}
        found += factories.mr_series(
            3, orientation=orientation, series="scout", step=10.0, rows=16, columns=16, values=named
        )
    return found


def late_enhancement(slices: int = 8) -> list[Dataset]:
    """On the grid of the cine: one image per plane, after an inversion."""
    return one_series(slices, 1, series="late", values={"InversionTime": "300", "CardiacNumberOfImages": None})


def perfusion(slices: int = 8, beats: int = 20) -> list[Dataset]:
    """Every beat one image of each plane, always at the same time after the R wave."""
    found = one_series(slices, beats, series="perfusion", values={"TriggerTime": "120"})
    for beat in range(beats):
        for ds in found[beat * slices : (beat + 1) * slices]:
            ds.AcquisitionTime = f"08{30 + (beat * 9) // 600:02d}{(beat * 9 % 600) / 10:04.1f}"
    return found


def phase_contrast(**knobs: Any) -> list[Dataset]:
    """Velocity images on the grid of the cine."""
    kind = {"ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"]}
    return one_series(series="flow", values=kind | knobs.pop("values", {}), **knobs)


def changed(found: Sequence[Dataset], which: Callable[[int], bool], **values: Any) -> list[Dataset]:
    """``found`` with attributes of some images set, or taken away where the value is None."""
    for index, ds in enumerate(found):
        if which(index):
            for keyword, value in values.items():
                if value is None and keyword in ds:
                    del ds[keyword]
                elif value is not None:
                    factories.set_raw(ds, keyword, value(index) if callable(value) else value)
    return list(found)


# -- what a pipeline would find

LEFT_VENTRICLE = dn.Site(code=dn.Code("87878005", "SCT", "Left ventricle"))
VOLUME = dn.Code("118565006", "SCT", "Volume")


def segments(phase: str) -> tuple[dn.Segment, dn.Segment]:
    """Cavity and wall at a phase."""
    category = dn.codes.SCT.AnatomicalStructure
    cavity = dn.Segment(
        key=f"lv-{phase}",
        label=f"LV blood pool, {phase.upper()}",
        category=category,
        type=LEFT_VENTRICLE.code,
        colour=(220, 40, 40),
    )
    wall = dn.Segment(
        key=f"myocardium-{phase}",
        label=f"LV myocardium, {phase.upper()}",
        category=category,
        type=dn.Code("49848007", "SCT", "Myocardium of left ventricle"),
        colour=(60, 200, 90),
    )
    return cavity, wall


def beating(series: dn.CineSeries) -> dn.Result:
    """Cavity and wall at end diastole and end systole, as `heart` has painted them, and what follows from them."""
    phases = len(series.array)
    found, measurements, keys = [], [], []
    for name, phase, point in (("ed", 0, dn.END_DIASTOLE), ("es", phases // 2, dn.END_SYSTOLE)):
        values = series.array[phase]
        labels = ((values > 800) + 2 * ((values > 300) & (values <= 800))).astype(np.uint8)
        found.append(
            dn.Segmentation(
                labels=labels,
                segments=segments(name),
                role=f"heart-{name}",
                label=f"AI heart, {name.upper()}",
                phase=phase,
                time_point=point,
            )
        )
        voxel = series.pixel_spacing[0] * series.pixel_spacing[1] * series.step / 1000
        volume = float((labels == 1).sum() * voxel)
        measurements.append(dn.Measurement(name=VOLUME, value=volume, unit=dn.ML, segment=f"lv-{name}"))
        keys.append(dn.KeyPlane(plane=labels.shape[0] // 2, reason=f"middle, {name.upper()}", phase=phase))
    ejected = 100 * (1 - float(measurements[1].value or 0) / float(measurements[0].value or 1))
    fraction = dn.Code("8811-2", "LN", "Left ventricular ejection fraction by MR")
    measurements.append(
        dn.Measurement(name=fraction, value=ejected, unit=dn.Code("%", "UCUM", "percent"), site=LEFT_VENTRICLE)
    )
    return dn.Result(
        segmentations=tuple(found),
        measurements=tuple(measurements),
        key_planes=tuple(keys),
        remarks=("Papillary muscles are counted to the blood pool.",),
    )
