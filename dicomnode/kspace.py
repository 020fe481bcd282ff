"""Raw MR measurements as a pipeline is given them, and the planes it computes: no files, sockets or patient's identity.

Names and meanings are those of MRD, the raw data format of the ISMRM (Inati et al., Magn Reson Med 2017, 77:411).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

import numpy as np
from numpy.typing import NDArray

from dicomnode.inputs import Attribute


class Flag(IntEnum):
    """Flags of a readout, counted from 1 as MRD counts them: flag n is bit n - 1."""

    FIRST_IN_ENCODE_STEP1 = 1
    LAST_IN_ENCODE_STEP1 = 2
    FIRST_IN_ENCODE_STEP2 = 3
    LAST_IN_ENCODE_STEP2 = 4
    FIRST_IN_AVERAGE = 5
    LAST_IN_AVERAGE = 6
    FIRST_IN_SLICE = 7
    LAST_IN_SLICE = 8
    FIRST_IN_CONTRAST = 9
    LAST_IN_CONTRAST = 10
    FIRST_IN_PHASE = 11
    LAST_IN_PHASE = 12
    FIRST_IN_REPETITION = 13
    LAST_IN_REPETITION = 14
    FIRST_IN_SET = 15
    LAST_IN_SET = 16
    FIRST_IN_SEGMENT = 17
    LAST_IN_SEGMENT = 18
    IS_NOISE_MEASUREMENT = 19
    IS_PARALLEL_CALIBRATION = 20
    IS_PARALLEL_CALIBRATION_AND_IMAGING = 21
    IS_REVERSE = 22
    IS_NAVIGATION_DATA = 23
    IS_PHASECORR_DATA = 24
    LAST_IN_MEASUREMENT = 25
    IS_HPFEEDBACK_DATA = 26
    IS_DUMMYSCAN_DATA = 27
    IS_RTFEEDBACK_DATA = 28
    IS_SURFACECOILCORRECTIONSCAN_DATA = 29


class Trajectory(StrEnum):
    """How k-space was travelled."""

    CARTESIAN = "cartesian"
    EPI = "epi"
    RADIAL = "radial"
    GOLDEN_ANGLE = "goldenangle"
    SPIRAL = "spiral"
    OTHER = "other"


class Calibration(StrEnum):
    """Where the calibration lines of parallel imaging come from."""

    EMBEDDED = "embedded"
    INTERLEAVED = "interleaved"
    SEPARATE = "separate"
    EXTERNAL = "external"
    OTHER = "other"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Limit:
    """Range of one encoding counter."""

    minimum: int
    maximum: int
    center: int

    @property
    def count(self) -> int:
        """How many values there are."""
        return self.maximum - self.minimum + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """One encoding space: matrices and fields of view in the order x (readout), y (phase), z (partition or slice)."""

    trajectory: Trajectory
    encoded_matrix: tuple[int, int, int]
    #: [mm].
    encoded_fov: tuple[float, float, float]
    recon_matrix: tuple[int, int, int]
    #: [mm].
    recon_fov: tuple[float, float, float]
    #: By the header's names: kspace_encoding_step_1, kspace_encoding_step_2, average, slice, contrast, phase,
    #: repetition, set, segment. Those the header does not give are absent.
    limits: Mapping[str, Limit] = field(default_factory=dict)
    #: Acceleration along y and z.
    acceleration: tuple[int, int] = (1, 1)
    calibration: Calibration = Calibration.NONE
    multiband: int = 1
    #: Numbers and texts of trajectoryDescription by name (EPI: rampUpTime, flatTopTime, ...).
    parameters: Mapping[str, float | str] = field(default_factory=dict)

    @property
    def three_dimensional(self) -> bool:
        """Whether z is phase encoded too."""
        return self.encoded_matrix[2] > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class KSpaceHeader:
    """What the header of a measurement says, less the patient."""

    encodings: tuple[Encoding, ...]
    #: Receiver channels; 0: not said.
    coils: int = 0
    #: Noise bandwidth of the receiver relative to its nominal one.
    noise_bandwidth: float = 0.79
    #: Lists of sequenceParameters by name: TR, TE, TI, echo_spacing [ms], flipAngle_deg.
    sequence: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    #: By DICOM keyword: MagneticFieldStrength [T], ImagingFrequency [MHz], ProtocolName, PatientPosition, ...
    acquisition: Mapping[str, Attribute] = field(default_factory=dict)
    #: userParameters by name.
    user: Mapping[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Readout:
    """One line of k-space, or one noise, calibration, navigation line."""

    #: complex64 (coil, sample).
    data: NDArray[np.complex64]
    #: 64 bits, see `Flag`.
    flags: int = 0
    #: Index in ``KSpaceHeader.encodings``.
    encoding: int = 0
    step_1: int = 0
    step_2: int = 0
    average: int = 0
    slice: int = 0
    contrast: int = 0
    phase: int = 0
    repetition: int = 0
    set: int = 0
    segment: int = 0
    #: Sample at the centre of k-space; samples to leave out at both ends.
    center_sample: int = 0
    discard_pre: int = 0
    discard_post: int = 0
    #: Time of one sample [us].
    dwell_time: float = 0.0
    #: Centre of the excited volume, LPS relative to the isocentre [mm], and the three direction cosines.
    position: tuple[float, float, float] = (0.0, 0.0, 0.0)
    read_dir: tuple[float, float, float] = (0.0, 0.0, 0.0)
    phase_dir: tuple[float, float, float] = (0.0, 0.0, 0.0)
    slice_dir: tuple[float, float, float] = (0.0, 0.0, 0.0)
    #: float32 (sample, dimension); None: along the grid.
    trajectory: NDArray[np.float32] | None = None
    #: Ticks whose length the vendor chooses: since midnight, and since the trigger.
    time_stamp: int = 0
    physiology: tuple[int, int, int] = (0, 0, 0)
    #: Number of the readout in the measurement.
    counter: int = 0

    def has(self, *flags: Flag) -> bool:
        """Whether any of ``flags`` is set."""
        return any(self.flags >> (flag - 1) & 1 for flag in flags)


@dataclass(frozen=True, kw_only=True, eq=False)
class KSpace:
    """One measurement."""

    header: KSpaceHeader
    #: In the order of acquisition; may be read from a file as it is iterated over, and more than once.
    readouts: Iterable[Readout]
    #: The scanner's stream ended before it said that it was complete, or parts never arrived.
    incomplete: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class ReconstructedPlane:
    """One plane computed from k-space."""

    #: float32 (row, column), in the units of the reconstruction.
    array: NDArray[np.float32]
    #: ImagePositionPatient: centre of the first voxel, float64 (3,), LPS [mm].
    position: NDArray[np.float64]
    #: ImageOrientationPatient: float64 (6,), direction of a row then of a column, LPS.
    orientation: NDArray[np.float64]
    #: Counters of the measurement that it belongs to.
    slice: int = 0
    contrast: int = 0
    phase: int = 0
    repetition: int = 0
    set: int = 0
    #: Time after the R wave [ms]; None: not known.
    trigger_time: float | None = None
    #: What differs from the rest of its series, for the reader: "incomplete k-space: 96 of 128 lines".
    remark: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reconstruction:
    """Planes of one image series computed from k-space, all of one size."""

    planes: tuple[ReconstructedPlane, ...]
    #: Distance between rows, distance between columns [mm].
    pixel_spacing: tuple[float, float]
    #: SliceThickness [mm].
    thickness: float
    #: Part of the identity of the objects (deterministic UIDs), for example ``magnitude``.
    role: str
    #: Suffix of SeriesDescription, for example ``CG-SENSE`` (the node appends ``, RUO``).
    label: str
    #: DerivationDescription: the method, its settings, and why an earlier choice was not taken.
    description: str
    #: True if a trained network shaped the pixels: such images are DERIVED, and say so.
    learned: bool
    #: Stored value = array * scale: one factor for the whole series, fixed before its first plane is given out.
    scale: float
    #: Value 3 of ImageType: M(agnitude), P(hase) [rad], R(eal), I(maginary).
    component: str = "M"
    #: Values are signal over noise, in standard deviations of the noise of one component (real or imaginary).
    snr: bool = False
    #: KSpaceFiltering (PS3.3 C.8.13.1): NONE, HAMMING, TUKEY, ...
    filtering: str = "NONE"
