"""What a pipeline author imports: typed input, typed result, and two methods.

A pipeline sees numbers with geometry and units; never DICOM, files, sockets or a patient's identity::

    from dicomnode import pipeline as dn

    class CTDenoising(dn.Pipeline[dn.ImageSeries]):
        algorithm = dn.Algorithm(name="ct-denoising", version="1.3.0", weights="models/ct_denoise")

        @dataclass(frozen=True)
        class Options:
            strength: float = 0.6

        def setup(self, runtime): ...      # once per process
        def run(self, series): ...         # many times; returns Result or raises Unsuitable
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Final, Generic, TypeVar, get_args, get_origin

import numpy as np
from highdicom import Volume
from numpy.typing import NDArray
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from dicomnode.curve import Curve
from dicomnode.errors import Unsuitable
from dicomnode.inputs import Attribute, CineSeries, Geometry, ImageSeries
from dicomnode.kspace import KSpace, KSpaceHeader, Readout, ReconstructedPlane, Reconstruction

__all__ = [
    "END_DIASTOLE",
    "END_SYSTOLE",
    "HU",
    "ML",
    "MM",
    "Algorithm",
    "Attribute",
    "CineSeries",
    "Code",
    "Curve",
    "Finding",
    "Geometry",
    "Image",
    "ImageSeries",
    "KSpace",
    "KSpaceHeader",
    "KeyPlane",
    "Measurement",
    "ParametricMap",
    "Pipeline",
    "Presence",
    "Readout",
    "ReconstructedPlane",
    "Reconstruction",
    "Result",
    "Runtime",
    "Segment",
    "Segmentation",
    "Site",
    "Stream",
    "StreamingPipeline",
    "TimePoint",
    "Unsuitable",
    "Urgency",
    "Volume",
    "codes",
]

#: Hounsfield unit, UCUM (the units of CT after the modality LUT).
HU: Final = Code("[hnsf'U]", "UCUM", "Hounsfield unit")
#: Millilitre, UCUM: volumes of what was segmented.
ML: Final = Code("ml", "UCUM", "milliliter")
#: Millimetre, UCUM.
MM: Final = Code("mm", "UCUM", "millimeter")


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """Who computed: goes into every object the node writes."""

    #: Stable identifier, for example ``ct-denoising``.
    name: str
    #: Version of code and training together.
    version: str
    #: Folder with ``manifest.yaml`` and weights, relative to the installation root; empty if there are none.
    weights: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """What the node gives a pipeline when its process starts."""

    #: torch device name the pipeline must use, for example ``cpu`` or ``cuda:0``.
    device: str
    #: Folder of the weights whose digests the node has checked against the manifest.
    weights: Path
    #: Threads the pipeline may use on the CPU.
    threads: int = 1
    #: Call with (phase, fraction 0..1) to show progress; never fails.
    progress: Callable[[str, float], None] = lambda _phase, _fraction: None


@dataclass(frozen=True, kw_only=True, eq=False)
class Image:
    """A derived series on the planes of the input, to be written in the input's own SOP class."""

    #: Values in the input's units: float32, same shape as the input, axes (slice, row, column).
    array: NDArray[np.float32]
    #: Part of the identity of the object (deterministic UIDs), for example ``denoised``.
    role: str
    #: Suffix of SeriesDescription, for example ``AI denoised`` (the node appends ``, RUO``).
    label: str
    #: DerivationDescription (free text, says what was done and with which setting).
    description: str
    #: DerivationCodeSequence item, CID 7203.
    code: Code


class Presence(StrEnum):
    """What is said of a finding (CID 240). Silence is never a negative: an algorithm that looked says one of these."""

    PRESENT = "present"
    ABSENT = "absent"
    #: It could not be evaluated, or the evidence is too weak to say either.
    UNDETERMINED = "undetermined"


class Urgency(StrEnum):
    """How soon a person should know: the ACR's categories of actionable findings (CID 7035)."""

    #: Communication within minutes.
    MINUTES = "minutes"
    #: Communication within hours.
    HOURS = "hours"
    #: Communication within days.
    DAYS = "days"


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where in the body."""

    #: Anatomic structure, for example ``Code("12738006", "SCT", "Brain")``.
    code: Code
    #: CID 244, for example ``Code("7771000", "SCT", "Left")``; None: not lateral, or not determined.
    laterality: Code | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One structure or lesion type of a segmentation."""

    #: Stable identifier inside the result, for example ``subdural``: tracking UIDs hang on it.
    key: str
    #: SegmentLabel: what a viewer lists, at most 64 characters.
    label: str
    #: SegmentedPropertyCategory, CID 7150, for example ``codes.SCT.MorphologicallyAbnormalStructure``.
    category: Code
    #: SegmentedPropertyType, for example ``Code("50960005", "SCT", "Hemorrhage")``.
    type: Code
    #: What reports call it; None: ``type``.
    finding: Code | None = None
    #: Where it lies.
    site: Site | None = None
    #: Display colour: sRGB 0..255 (written as RecommendedDisplayCIELabValue).
    colour: tuple[int, int, int] = (255, 80, 60)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimePoint:
    """What a phase of the heartbeat is called in reports (TID 1502)."""

    #: For a person to read, for example ``ED``.
    label: str
    type: Code


END_DIASTOLE: Final = TimePoint(label="ED", type=Code("416190007", "SCT", "End diastole"))
END_SYSTOLE: Final = TimePoint(label="ES", type=Code("416430001", "SCT", "End Systole"))


@dataclass(frozen=True, kw_only=True, eq=False)
class Segmentation:
    """Labels on the planes of the input, to be written as one SEG series.

    Of a `CineSeries`, a segmentation lies on one phase: segmentations of other phases are further ones, with roles and
    segment keys of their own (``lv-ed``, ``lv-es``).
    """

    #: 0: nothing; n: ``segments[n - 1]``. uint8, same shape as the input (as one phase of it), axes (slice, row,
    #: column).
    labels: NDArray[np.uint8]
    segments: tuple[Segment, ...]
    #: Index of the phase of a `CineSeries` that was segmented; None for an `ImageSeries`.
    phase: int | None = None
    #: What that phase is called, for example `END_DIASTOLE`; None: nothing special.
    time_point: TimePoint | None = None
    #: Part of the identity of the object (deterministic UIDs).
    role: str = "segmentation"
    #: SeriesDescription, for example ``AI hemorrhage`` (the node appends ``, RUO``).
    label: str = "AI segmentation"


@dataclass(frozen=True, kw_only=True, eq=False)
class ParametricMap:
    """A number for every voxel of the input, for example a network's output; written where a destination asks for it.

    Of a `CineSeries` it lies on one phase, as a `Segmentation` does.
    """

    #: Finite float32, same shape as the input (as one phase of it), axes (slice, row, column).
    values: NDArray[np.float32]
    #: What the values are, for example ``Code("score", "99SITE", "Score of the network")``.
    quantity: Code
    #: UCUM.
    unit: Code
    #: Least and greatest value that viewers should tell apart.
    shown: tuple[float, float] = (0.0, 1.0)
    phase: int | None = None
    #: Part of the identity of the object (deterministic UIDs).
    role: str = "map"
    #: SeriesDescription, for example ``AI hemorrhage score`` (the node appends ``, RUO``).
    label: str = "AI map"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A number with a coded name and a UCUM unit."""

    name: Code
    #: None where it could not be measured: then ``qualifier`` says why (CID 42).
    value: float | None
    unit: Code
    #: Key of the `Segment` that was measured; empty: of the whole examination.
    segment: str = ""
    #: Interval the true value is believed to lie in, in ``unit``; None: not known.
    interval: tuple[float, float] | None = None
    #: Where it was measured, if neither the segment nor the examination says it.
    site: Site | None = None
    #: How it was measured, for example CID 3453.
    method: Code | None = None
    #: Why there is no value, CID 42.
    qualifier: Code | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A coded statement about the examination: present, absent, or undetermined and why."""

    #: The disorder or observation, for example ``Code("1386000", "SCT", "Intracranial hemorrhage")``.
    code: Code
    presence: Presence
    #: What the algorithm's output for it was, 0..1; None: nothing to say.
    probability: float | None = None
    #: True only if ``probability`` was calibrated on patients; else reports call it a score.
    calibrated: bool = False
    #: Key of the `Segment` that shows it; empty: the whole examination.
    segment: str = ""
    site: Site | None = None
    #: How soon a person should know; None: no need to interrupt anybody.
    urgency: Urgency | None = None
    #: Why it is undetermined, or another sentence for the reader.
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPlane:
    """A plane a reader should look at first: key images, marks and the summary page are made from these."""

    #: Index of the plane (the slice) in the input.
    plane: int
    #: Why, in a few words, for example ``largest extent of the subdural hemorrhage``.
    reason: str
    #: Keys of the segments that are outlined there; empty: all that lie on the plane.
    segments: tuple[str, ...] = ()
    #: Index of the phase of a `CineSeries`; None for an `ImageSeries`.
    phase: int | None = None


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one run found or made. The node writes the DICOM objects and refuses what breaks this contract."""

    images: tuple[Image, ...] = ()
    #: Series computed from `KSpace`; from other inputs there are none.
    reconstructions: tuple[Reconstruction, ...] = ()
    segmentations: tuple[Segmentation, ...] = ()
    parametric_maps: tuple[ParametricMap, ...] = ()
    findings: tuple[Finding, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    key_planes: tuple[KeyPlane, ...] = ()
    #: For the summary page, which has room for the first.
    curves: tuple[Curve, ...] = ()
    #: Sentences for the reader, on every report and on the summary page: limits of the algorithm, what was left out.
    remarks: tuple[str, ...] = ()
    #: Window (center, width) in the input's units in which the summary page shows planes; None: the source's own.
    window: tuple[float, float] | None = None
    #: Numbers worth keeping with the job for quality control, for example the noise before and after [HU].
    quality: Mapping[str, float] = field(default_factory=dict)
    #: Sentences for the job's record (a lowered strength and why, a skipped slice).
    notes: tuple[str, ...] = ()
    #: Why a person must look before anything of this is sent, in words for that person; empty: it is sent at once.
    hold: str = ""

    @property
    def reported(self) -> bool:
        """Whether there is something to report besides images."""
        return bool(self.findings or self.measurements or self.segmentations)


@dataclass(frozen=True)
class NoOptions:
    """The options of a pipeline that has none."""


Input = TypeVar("Input", bound=ImageSeries | CineSeries | KSpace)


class Pipeline(abc.ABC, Generic[Input]):
    """One algorithm. Subclass it, set ``algorithm``, write ``setup`` and ``run``.

    What stands in brackets, ``Pipeline[CineSeries]``, is what ``run`` is given.

    ``run`` may raise `Unsuitable` (an outcome: recorded, reported, never retried). Anything else it raises is a
    failure. It keeps no state between runs, and gives the same output for the same input, weights and options within
    the tolerance its model card states.
    """

    #: Name, version and weights of the algorithm.
    algorithm: ClassVar[Algorithm]
    #: A frozen dataclass with a default for every field; the rule's ``options`` fill it.
    Options: ClassVar[type[Any]] = NoOptions
    #: True if ``run`` can work on a series of which instances are known to be missing.
    accepts_incomplete: ClassVar[bool] = False
    #: What ``run`` is given; read off the brackets.
    input_type: ClassVar[type[ImageSeries | CineSeries | KSpace]] = ImageSeries

    def __init_subclass__(cls, **arguments: Any) -> None:  # noqa: ANN401 - handed on to the next class
        super().__init_subclass__(**arguments)
        for base in cls.__dict__.get("__orig_bases__", ()):
            if get_origin(base) is Pipeline and get_args(base)[0] in (ImageSeries, CineSeries, KSpace):
                cls.input_type = get_args(base)[0]

    def __init__(self, options: Any = None) -> None:  # noqa: ANN401 - the author's own Options class
        self.options = self.Options() if options is None else options

    @abc.abstractmethod
    def setup(self, runtime: Runtime) -> None:
        """Load the network; called once in the process that will run it."""

    @abc.abstractmethod
    def run(self, series: Input) -> Result:
        """Compute the result of one series."""


class Stream(abc.ABC):
    """One measurement being reconstructed while it is acquired."""

    @abc.abstractmethod
    def add(self, readout: Readout) -> Sequence[Reconstruction]:
        """Take the next readout; returns the planes that are ready because of it (usually none)."""

    @abc.abstractmethod
    def finish(self, *, incomplete: bool = False) -> Sequence[Reconstruction]:
        """No more readouts come; returns the planes not given out yet. ``incomplete``: the end was not the scanner's.

        Raises
        ------
        Unsuitable
            Nothing can be reconstructed from what came, with the reason.
        """

    @abc.abstractmethod
    def result(self) -> Result:
        """Everything, after ``finish``: the same pixels that were given out plane by plane."""


class StreamingPipeline(Pipeline[KSpace]):
    """A pipeline for k-space that works line by line: the same for a file as for a live scanner."""

    @abc.abstractmethod
    def begin(self, header: KSpaceHeader) -> Stream:
        """Start on a measurement; raises `Unsuitable` if the header alone rules it out."""

    def run(self, series: KSpace) -> Result:
        """Reconstruct a whole measurement."""
        stream = self.begin(series.header)
        for readout in series.readouts:
            stream.add(readout)
        stream.finish(incomplete=series.incomplete)
        return stream.result()
