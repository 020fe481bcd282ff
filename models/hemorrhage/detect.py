"""Detect intracranial hemorrhage in a head CT: the interface that pipelines and the evaluation use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.hemorrhage import inputs, midline, placing, postprocess
from models.hemorrhage.bundle import Package
from models.hemorrhage.bundle import load as load_package
from models.hemorrhage.lesion import Fields
from models.hemorrhage.net import CLASS_LOGITS, Findings, Networks, slice_features
from models.hemorrhage.placing import Placed
from models.hemorrhage.precision import precision

#: Label values 1..5.
CLASSES: Final = ("epidural", "subdural", "subarachnoid", "intraparenchymal", "intraventricular")
#: Slices computed at once.
BATCH: Final = 8
#: The brain's median of a head the simulator could have made [HU], the cavity's volume [mL], the extent of the
#: scan [mm], and the fewest slices. Outside them the result says so (``Detection.confidence_note``).
BRAIN_HU: Final = (15.0, 45.0)  # ml-ct 1.1
CAVITY_ML: Final = (900.0, 2600.0)  # ml-ct 1.1
EXTENT_MM: Final = 90.0
#: With less cavity than this [mL] nothing was assessed: a phantom, a neck, or a few slices of a skull base.
ASSESSED_ML: Final = 200.0
#: Outside these nothing was assessed either: fluid, fat or air below; above, more than half of the cavity would have to
#: be blood (55 HU and more), which no patient survives; livers and kidneys with dye lie there [HU].
ASSESSED_HU: Final = (0.0, 60.0)
SLICES: Final = 12

Progress = Callable[[float], None]


@dataclass(frozen=True, eq=False)
class Detection:
    """What was found in one series; arrays are on the source grid (slice, row, column)."""

    #: 0 none, 1..5 as ``CLASSES``, after post-processing.
    labels: NDArray[np.uint8]
    #: Probability of any hemorrhage after the cavity gate, for volume intervals.
    probability: NDArray[np.float16]
    #: Intracranial cavity.
    cavity: NDArray[np.bool_]
    #: Calibrated probability of "any" and of each class.
    study: Mapping[str, float]
    #: Probability of any hemorrhage by slice (slice,).
    slice_any: NDArray[np.float32]
    #: None when its quality test fails.
    midline_shift_mm: float | None
    #: Why not, or how it was measured.
    midline_note: str
    #: Empty, or why confidence is limited.
    confidence_note: str
    #: Probability at which the outline of each class is drawn; 0.5 where none is named.
    drawn_at: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Findings on the work grid, (slice, row, column) unless said otherwise."""

    hu: NDArray[np.float32]
    #: (class, slice, row, column), gated by the cavity.
    classes: NDArray[np.float32]
    cavity: NDArray[np.float32]
    ventricle: NDArray[np.float32]
    left: NDArray[np.float32]
    #: (slice, 6) logits.
    slices: NDArray[np.float32]


def load(folder: Path, device: torch.device) -> Detector:
    """The detector whose package lies in ``folder``."""
    package, networks = load_package(folder, device)
    return Detector(package, networks, device)


class Detector:
    """The networks of one package on one device."""

    def __init__(self, package: Package, networks: Networks, device: torch.device) -> None:
        self.package = package
        self.networks = networks
        self.device = device

    def detect(
        self,
        values_hu: NDArray[np.float32],
        pixel_spacing: tuple[float, float],
        positions: NDArray[np.float64],
        orientation: NDArray[np.float64],
        progress: Progress = lambda _: None,
    ) -> Detection:
        """Find hemorrhage in one series.

        Parameters
        ----------
        values_hu
            (slice, row, column); slice 0 is the one nearest the vertex.
        pixel_spacing
            (row, column) [mm].
        positions
            (slice, 3) ImagePositionPatient [mm].
        orientation
            (6,) ImageOrientationPatient.
        progress
            Called with the share that is done.
        """
        placed = placing.place(values_hu, pixel_spacing, positions, orientation)
        frame = inputs.find_frame(placed.values, placed.pixel, placed.origins, placed.heights)
        if frame is None:
            return _nothing(values_hu.shape, "no head found")
        planes = [
            inputs.to_work(plane, placed.pixel, origin, frame)
            for plane, origin in zip(placed.values, placed.origins, strict=True)
        ]
        progress(0.1)
        depth_mm = frame.vertex - placed.heights
        work, labels, logits = self.examine(np.stack(planes), depth_mm, placed.thickness_mm, progress)
        volume = _cavity_ml(work, placed)
        if volume < ASSESSED_ML:
            return _nothing(values_hu.shape, f"not assessed: the intracranial cavity measures {volume:.0f} mL")
        brain = _brain_hu(work)
        if not ASSESSED_HU[0] <= brain <= ASSESSED_HU[1]:
            return _nothing(values_hu.shape, f"not assessed: the brain's median is {brain:.0f} HU")
        shift, note = midline.shift_mm(work.left, work.cavity > 0.5, depth_mm)
        source = _to_source(work, labels, placed, frame, self.package.postprocessing)
        progress(1.0)
        return Detection(
            labels=source[0],
            probability=source[1],
            cavity=source[2],
            study=self._calibrated(logits),
            slice_any=placed.spread(self._slice_probability(work.slices[:, 0])),
            midline_shift_mm=shift,
            midline_note=note,
            confidence_note=_doubts(work, placed, depth_mm),
            drawn_at=_drawn_at(self.package.postprocessing),
        )

    def examine(
        self,
        hu: NDArray[np.float32],
        depth_mm: NDArray[np.float64],
        thickness_mm: NDArray[np.float64],
        progress: Progress = lambda _: None,
    ) -> tuple[Work, NDArray[np.uint8], NDArray[np.float32]]:
        """Findings, labels and uncalibrated study logits (6,) of slices on the work grid."""
        work = self._run(hu, depth_mm, progress)
        fields = Fields(
            hu=hu,
            near=inputs.depth_of(hu).astype(np.float32) / 4.0,
            ventricle=work.ventricle,
            depth_mm=depth_mm,
            thickness_mm=thickness_mm,
        )
        labels = postprocess.lesions(work.classes, fields, self.package.postprocessing, self._classify)
        with torch.inference_mode():
            logits = self.networks.study(self.features(work, labels, depth_mm)[None])[0]
        return work, labels, logits.float().cpu().numpy()

    def features(self, work: Work, labels: NDArray[np.uint8], depth_mm: NDArray[np.float64]) -> Tensor:
        """What the study head reads (slice, feature)."""
        fields = (work.slices, work.classes.sum(0), labels)
        slices, blood, named = (torch.from_numpy(field).to(self.device) for field in fields)
        height = torch.from_numpy(depth_mm).to(self.device)
        return slice_features(slices, blood, named, inputs.WORK_MM**2, height)

    @torch.inference_mode()
    def _run(self, hu: NDArray[np.float32], depth_mm: NDArray[np.float64], progress: Progress) -> Work:
        near = torch.from_numpy(inputs.depth_of(hu))
        height = torch.from_numpy(depth_mm.astype(np.float32))
        index = torch.arange(len(hu))
        above, below = (index - 1).clamp(min=0), (index + 1).clamp(max=len(hu) - 1)
        gap = (height[below] - height[above]) / (below - above).clamp(min=1)
        stack = torch.from_numpy(hu)
        stack = torch.stack((stack[above], stack, stack[below]), 1)
        found: list[Findings] = []
        for begin in range(0, len(hu), BATCH):
            part = slice(begin, begin + BATCH)
            fields = [field[part].to(self.device) for field in (stack, near, height, gap)]
            found.append(self._findings(inputs.channels(*fields)))
            progress(0.1 + 0.7 * min(1.0, (begin + BATCH) / len(hu)))
        both = Findings(torch.cat([f.pixels for f in found]), torch.cat([f.slices for f in found]))
        pixels = both.pixels
        cavity = pixels[:, CLASS_LOGITS].sigmoid()
        classes = pixels[:, :CLASS_LOGITS].softmax(1)[:, 1:].movedim(1, 0)
        classes = classes * (cavity > self.package.postprocessing["cavity_probability"])
        return Work(
            hu=hu,
            classes=classes.cpu().numpy(),
            cavity=cavity.cpu().numpy(),
            ventricle=pixels[:, CLASS_LOGITS + 1].sigmoid().cpu().numpy(),
            left=pixels[:, CLASS_LOGITS + 2].sigmoid().cpu().numpy(),
            slices=both.slices.cpu().numpy(),
        )

    def _findings(self, channels: Tensor) -> Findings:
        """Logits of the slices, averaged with those of their mirror images if the package asks for it."""
        with precision(self.device):
            found = self.networks.slices(channels.contiguous(memory_format=torch.channels_last))
            if not self.package.postprocessing["mirror"]:
                return Findings(found.pixels.float(), found.slices.float())
            turned = inputs.mirror(channels).contiguous(memory_format=torch.channels_last)
            other = self.networks.slices(turned)
        pixels = other.pixels.float().roll(-1, 3).flip(3)
        pixels = torch.cat((pixels[:, :-1], -pixels[:, -1:]), 1)  # the mirror's left is right
        return Findings((found.pixels.float() + pixels) / 2, (found.slices.float() + other.slices.float()) / 2)

    @torch.inference_mode()
    def _classify(self, numbers: NDArray[np.float32]) -> NDArray[np.float32]:
        logits = self.networks.lesions(torch.from_numpy(numbers)[None].to(self.device))[0]
        return np.asarray(logits.log_softmax(0).cpu().numpy())

    def _calibrated(self, logits: NDArray[np.float32]) -> dict[str, float]:
        scale = self.package.calibration
        study = {}
        for name, logit in zip(("any", *CLASSES), logits, strict=True):
            value = float(logit) / scale["temperature"][name] + scale["bias"][name]
            study[name] = float(1.0 / (1.0 + np.exp(-np.clip(value, -30.0, 30.0))))
        return study

    def _slice_probability(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        scale = self.package.calibration
        value = logits / scale["temperature"]["any"] + scale["bias"]["any"]
        probability: NDArray[np.float32] = (1.0 / (1.0 + np.exp(-np.clip(value, -30.0, 30.0)))).astype(np.float32)
        return probability


def _to_source(
    work: Work, labels: NDArray[np.uint8], placed: Placed, frame: inputs.Frame, rules: Mapping[str, Any]
) -> tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.bool_]]:
    """Labels, probability and cavity on the source grid.

    A lesion's border is drawn where the interpolated probability crosses the threshold, not along work pixels.
    """
    probability = work.classes.sum(0)
    near = functional.max_pool2d(torch.from_numpy(labels.astype(np.float32)), 3, 1, 1)
    wide = np.where(labels > 0, labels, near.numpy().astype(np.uint8))
    fine = placed.back(probability, frame, linear=True)
    named = placed.back(wide.astype(np.float32), frame, linear=False).astype(np.uint8)
    least = np.array([1.0, *_drawn_at(rules).values()], np.float32)
    named[fine <= least[named]] = 0
    cavity = placed.back(work.cavity, frame, linear=True) > 0.5
    return placed.restore(named), placed.restore(fine.astype(np.float16)), placed.restore(cavity)


def _drawn_at(rules: Mapping[str, Any]) -> dict[str, float]:
    """Probability at which the outline of each of ``CLASSES``, in their order, is drawn."""
    return dict.fromkeys(CLASSES, float(rules["grow_probability"])) | dict(rules["wide_probability"])


def _cavity_ml(work: Work, placed: Placed) -> float:
    area = (work.cavity > 0.5).sum((1, 2))
    return float((area * placed.thickness_mm).sum()) * inputs.WORK_MM**2 / 1000.0


def _brain_hu(work: Work) -> float:
    """Median of the cavity; ``work`` has one."""
    return float(np.median(work.hu[work.cavity > 0.5]))


def _doubts(work: Work, placed: Placed, depth_mm: NDArray[np.float64]) -> str:
    """Why this series is unlike the heads the network was trained on, or nothing."""
    notes = []
    volume, brain = _cavity_ml(work, placed), _brain_hu(work)
    if not CAVITY_ML[0] <= volume <= CAVITY_ML[1]:
        notes.append(f"the intracranial cavity measures {volume:.0f} mL")
    if not BRAIN_HU[0] <= brain <= BRAIN_HU[1]:
        notes.append(f"the brain's median is {brain:.0f} HU")
    if float(depth_mm.max()) < EXTENT_MM or len(depth_mm) < SLICES:
        notes.append(f"only {max(0.0, float(depth_mm.max())):.0f} mm below the vertex in {len(depth_mm)} slices")
    return "; ".join(notes)


def _nothing(shape: tuple[int, ...], why: str) -> Detection:
    return Detection(
        labels=np.zeros(shape, np.uint8),
        probability=np.zeros(shape, np.float16),
        cavity=np.zeros(shape, np.bool_),
        study=dict.fromkeys(("any", *CLASSES), 0.0),
        slice_any=np.zeros(shape[0], np.float32),
        midline_shift_mm=None,
        midline_note=why,
        confidence_note=why,
    )
