"""Raw MR scans with a known answer: ellipses, coils and noise in analytic k-space, as readouts or as MRD files.

The k-space of an ellipse is a Bessel function, and coils are sums of a few plane waves, which shift it: nothing here is
the Fourier transform of a sampled picture, so a reconstruction is not compared with its own inverse.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import ismrmrd
import numpy as np
from numpy.typing import NDArray
from scipy.special import j1

from dicomnode.kspace import Calibration, Encoding, Flag, KSpace, KSpaceHeader, Limit, Readout, Trajectory

HARMONICS = tuple(itertools.product((-1, 0, 1), repeat=2))


@dataclass(frozen=True, kw_only=True)
class Ellipse:
    """Centre and half axes [mm] in the plane (x along the readout, y along phase encoding); half axes 0: a point."""

    x: float = 0.0
    y: float = 0.0
    a: float = 0.0
    b: float = 0.0
    degrees: float = 0.0
    value: float = 1.0
    #: Centre and width (standard deviation of a Gaussian) along the slice direction [mm], for partitions.
    z: float = 0.0
    width: float = 20.0
    #: Part by which the half axes breathe over the phases of a heartbeat.
    beat: float = 0.0

    def at(self, phase: int, phases: int) -> Ellipse:
        size = 1.0 + self.beat * np.cos(2 * np.pi * phase / phases)
        return replace(self, a=self.a * size, b=self.b * size)

    def transform(self, kx: NDArray, ky: NDArray) -> NDArray:
        """Fourier transform at ``kx``, ``ky`` [1/mm]."""
        shift = self.value * np.exp(-2j * np.pi * (kx * self.x + ky * self.y))
        if self.a == 0:
            return shift
        c, s = np.cos(np.radians(self.degrees)), np.sin(np.radians(self.degrees))
        k = np.hypot(self.a * (c * kx + s * ky), self.b * (c * ky - s * kx))
        return shift * self.a * self.b * np.where(k < 1e-9, np.pi, j1(2 * np.pi * k) / np.maximum(k, 1e-9))

    def inside(self, x: NDArray, y: NDArray) -> NDArray:
        c, s = np.cos(np.radians(self.degrees)), np.sin(np.radians(self.degrees))
        u, v = c * (x - self.x) + s * (y - self.y), c * (y - self.y) - s * (x - self.x)
        return (u / self.a) ** 2 + (v / self.b) ** 2 <= 1.0


#: A body with a rim, two lungs, a beating heart and a small bright spot; for a field of view of 256 mm.
TORSO = (
    Ellipse(a=100, b=75, value=0.9),
    Ellipse(a=94, b=69, value=-0.4),
    Ellipse(x=-45, y=8, a=26, b=40, degrees=10, value=-0.35),
    Ellipse(x=47, y=5, a=24, b=38, degrees=-8, value=-0.35),
    Ellipse(x=8, y=-10, a=24, b=20, degrees=30, value=0.5, beat=0.15),
    Ellipse(x=-4, y=48, a=6, b=5, value=0.4),
)


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One measurement. Everything is repeatable: ``seed`` fixes coils and noise."""

    matrix: tuple[int, int] = (64, 64)  # columns (x), rows (y) of the encoded space less the readout oversampling
    fov: tuple[float, float] = (256.0, 256.0)  # [mm] x, y
    recon_matrix: tuple[int, int] | None = None
    oversampling: float = 2.0  # of the readout
    phase_oversampling: float = 1.0  # encoded over reconstructed field of view along y
    ellipses: tuple[Ellipse, ...] = TORSO
    coils: int = 4
    slices: int = 1
    partitions: int = 1
    phases: int = 1
    repetitions: int = 1
    contrasts: int = 1
    averages: int = 1
    thickness: float = 5.0  # of a slice, or of a partition [mm]
    spacing: float = 8.0  # between slices [mm]
    acceleration: int = 1
    acs: int = 0  # central lines that are always acquired
    pattern: str = "uniform"  # uniform | variable | shifted (by one line a phase)
    calibration: str = "embedded"  # embedded | separate
    partial_fourier: float = 1.0  # part of ky that is acquired
    echo_fraction: float = 1.0  # part of kx that is acquired
    noise: float = 0.0  # standard deviation of a complex sample, where the brightest tissue is 1 in the image
    noise_lines: int = 0
    correlation: float = 0.0  # of the noise of neighbouring channels
    gains: tuple[float, ...] = ()  # of the channels, on signal and noise alike
    epi: bool = False  # every other line reversed, with three navigator lines before
    ghost: tuple[float, float] = (0.6, 1.5)  # constant [rad] and shift [samples] between the two directions
    position: tuple[float, float, float] = (0.0, 0.0, 0.0)
    read_dir: tuple[float, float, float] = (1.0, 0.0, 0.0)
    phase_dir: tuple[float, float, float] = (0.0, 1.0, 0.0)
    slice_dir: tuple[float, float, float] = (0.0, 0.0, 1.0)
    trigger_ticks: int = 0  # between phases of the heartbeat
    last_flags: bool = True
    seed: int = 0

    @property
    def columns(self) -> int:
        """Samples of a whole readout."""
        return round(self.matrix[0] * self.oversampling)

    @property
    def rows(self) -> int:
        return self.matrix[1]

    @property
    def center(self) -> int:
        """Counter of the line through the centre of k-space: 0 is the first line that is acquired."""
        return self.rows // 2 - self.first

    @property
    def first(self) -> int:
        return self.rows - round(self.rows * self.partial_fourier)

    @property
    def encoded_fov(self) -> tuple[float, float, float]:
        deep = self.thickness * self.partitions
        return self.fov[0] * self.oversampling, self.fov[1] * self.phase_oversampling, deep

    def header(self) -> KSpaceHeader:
        x, y = self.recon_matrix or (self.matrix[0], round(self.matrix[1] / self.phase_oversampling))
        counts = {
            "slice": self.slices, "phase": self.phases, "repetition": self.repetitions, "contrast": self.contrasts,
            "average": self.averages,
        }  # fmt: skip
        limits = {name: Limit(0, count - 1, 0) for name, count in counts.items()}
        limits["kspace_encoding_step_1"] = Limit(0, self.rows - 1 - self.first, self.center)
        limits["kspace_encoding_step_2"] = Limit(0, self.partitions - 1, self.partitions // 2)
        parallel = self.acceleration > 1 or self.acs > 0
        encoding = Encoding(
            trajectory=Trajectory.EPI if self.epi else Trajectory.CARTESIAN,
            encoded_matrix=(self.columns, self.rows, self.partitions),
            encoded_fov=self.encoded_fov,
            recon_matrix=(x, y, self.partitions),
            recon_fov=(*self.fov, self.thickness * self.partitions),
            limits=limits,
            acceleration=(self.acceleration, 1),
            calibration=Calibration(self.calibration) if parallel else Calibration.NONE,
        )
        return KSpaceHeader(
            encodings=(encoding,),
            coils=self.coils,
            noise_bandwidth=1.0,
            sequence={
                "TR": (50.0,),
                "TE": tuple(5.0 + 5.0 * n for n in range(self.contrasts)),
                "flipAngle_deg": (30.0,),
            },
            acquisition={"MagneticFieldStrength": 1.5, "ImagingFrequency": 63.87, "PatientPosition": "HFS"},
        )

    def kspace(self) -> KSpace:
        return KSpace(header=self.header(), readouts=self.readouts())

    def sampled(self, phase: int = 0) -> list[int]:
        """Rows of the encoded matrix that are acquired, less separate calibration lines."""
        rows = range(self.first, self.rows)
        central = {self.rows // 2 - self.acs // 2 + n for n in range(self.acs if self.calibration == "embedded" else 0)}
        if self.pattern == "variable":
            draw = np.random.default_rng((self.seed, 7, phase))
            density = 1.0 / (np.abs(np.arange(self.rows) - self.rows / 2) / self.rows + 0.05)
            wanted = max(self.rows // self.acceleration - len(central), 1)
            density[list(central)] = 0
            central |= set(draw.choice(self.rows, wanted, replace=False, p=density / density.sum()).tolist())
            return sorted(central & set(rows))
        offset = phase if self.pattern == "shifted" else 0
        return [row for row in rows if row in central or (row - offset) % self.acceleration == 0]

    def waves(self) -> NDArray:
        """Amplitudes (coil, harmonic) of the plane waves, of twice the field of view, that make the coils."""
        if self.coils == 1:
            return np.array([[float(wave == (0, 0)) for wave in HARMONICS]], complex)
        y, x = np.meshgrid(np.linspace(-1, 1, 32), np.linspace(-1, 1, 32), indexing="ij")
        basis = np.stack([np.exp(1j * np.pi / 2 * (m * x + n * y)) for m, n in HARMONICS], -1).reshape(
            -1, len(HARMONICS)
        )
        angles = 2 * np.pi * np.arange(self.coils) / self.coils + 0.3
        wanted = [
            np.exp(1j * a) / ((x - 1.1 * np.cos(a)) ** 2 + (y - 1.1 * np.sin(a)) ** 2 + 0.8) ** 1.5 for a in angles
        ]
        return np.linalg.lstsq(basis, np.stack([w.ravel() for w in wanted], -1), rcond=None)[0].T

    def maps(self, columns: int, rows: int) -> NDArray:
        """Coil sensitivities (coil, row, column) on the field of view, as they are in the signal."""
        x = (np.arange(columns) - columns // 2) / columns
        y = (np.arange(rows) - rows // 2)[:, None] / rows * self.phase_oversampling
        waves = np.stack([np.exp(1j * np.pi * (m * x + n * y)) for m, n in HARMONICS])
        return np.tensordot(self.waves(), waves, 1)

    def truth(self, columns: int, rows: int, phase: int = 0) -> NDArray:
        """The object on a grid of the field of view: each pixel's mean (row, column)."""
        fine = 4
        x = ((np.arange(columns * fine) + 0.5) / fine - 0.5 - columns // 2) * self.fov[0] / columns
        y = (((np.arange(rows * fine) + 0.5) / fine - 0.5 - rows // 2) * self.fov[1] / rows)[:, None]
        image = sum(e.at(phase, self.phases).value * e.at(phase, self.phases).inside(x, y) for e in self.ellipses)
        return np.asarray(image).reshape(rows, fine, columns, fine).mean((1, 3))

    def signal(self, kx: NDArray, ky: NDArray, phase: int = 0, kz: float | None = None) -> NDArray:
        """Noise-free samples (coil, ...) at ``kx``, ``ky``, ``kz`` [1/mm]; 1 in the object is 1 in an image."""
        size = np.sqrt(self.columns * self.rows) / (self.encoded_fov[0] * self.encoded_fov[1])
        parts = []
        for m, n in HARMONICS:
            at = kx - m / (2 * self.fov[0]), ky - n / (2 * self.fov[1])
            part = np.zeros(np.broadcast(kx, ky).shape, complex)
            for ellipse in self.ellipses:
                through = 1.0 + 0j
                if kz is not None:
                    through = np.exp(-2 * (np.pi * ellipse.width * kz) ** 2 - 2j * np.pi * kz * ellipse.z)
                    through *= np.sqrt(2 * np.pi) * ellipse.width / (self.thickness * np.sqrt(self.partitions))
                part += through * ellipse.at(phase, self.phases).transform(*at)
            parts.append(part)
        return size * np.tensordot(self.waves(), np.stack(parts), 1)

    def mixing(self) -> NDArray:
        """What makes the channels' noise out of independent noise (coil, coil)."""
        n = np.arange(self.coils)
        return (
            np.linalg.cholesky(self.correlation ** np.abs(n[:, None] - n)) if self.correlation else np.eye(self.coils)
        )

    def readouts(self) -> list[Readout]:
        """In the order of a scanner: noise, separate calibration, then slice by slice, phases within lines."""
        draw = np.random.default_rng((self.seed, 1))
        mixing, gains = self.mixing(), np.array(self.gains or (1.0,) * self.coils)[:, None]

        def received(signal: NDArray) -> NDArray[np.complex64]:
            shape = (2, *signal.shape)
            noise = (
                self.noise
                * np.sqrt(0.5)
                * (mixing @ np.array([1, 1j]).dot(draw.normal(size=shape).reshape(2, -1)).reshape(signal.shape))
            )
            return np.ascontiguousarray(gains * (signal + noise), np.complex64)

        made: list[Readout] = []
        common = {
            "read_dir": self.read_dir,
            "phase_dir": self.phase_dir,
            "slice_dir": self.slice_dir,
            "dwell_time": 5.0,
        }
        for _ in range(self.noise_lines):
            empty = received(np.zeros((self.coils, self.columns), complex))
            made.append(Readout(data=empty, flags=bits(Flag.IS_NOISE_MEASUREMENT), dwell_time=5.0))
        for item in self.order():
            made.append(self.line(item, received, common))
        return [replace(readout, counter=number) for number, readout in enumerate(made)]

    def order(self) -> Iterator[tuple[int, int, int, int, int, int, int, int]]:
        """(repetition, slice, average, contrast, partition, row, phase, flags) of every line; row -1: a navigator."""
        for repetition, level in itertools.product(range(self.repetitions), range(self.slices)):
            if self.calibration == "separate":
                for n in range(self.acs):
                    row = self.rows // 2 - self.acs // 2 + n
                    yield repetition, level, 0, 0, 0, row, 0, bits(Flag.IS_PARALLEL_CALIBRATION)
            if self.epi:
                for n in range(3):
                    flags = bits(Flag.IS_PHASECORR_DATA) | (bits(Flag.IS_REVERSE) if n % 2 else 0)
                    yield repetition, level, 0, 0, 0, -1, 0, flags
            lines = [
                (repetition, level, average, contrast, partition, row, phase)
                for average, contrast, partition in itertools.product(
                    range(self.averages), range(self.contrasts), range(self.partitions)
                )
                for row in range(self.first, self.rows)
                for phase in range(self.phases)
                if row in self.sampled(phase)
            ]
            start = self.rows // 2 - self.acs // 2
            for number, item in enumerate(lines):
                flags = 0
                if self.calibration == "embedded" and start <= item[5] < start + self.acs:
                    flags |= bits(Flag.IS_PARALLEL_CALIBRATION_AND_IMAGING)
                if self.epi and item[5] % 2:
                    flags |= bits(Flag.IS_REVERSE)
                if self.last_flags and number == len(lines) - 1:
                    flags |= bits(Flag.LAST_IN_SLICE)
                    if level == self.slices - 1:
                        flags |= bits(Flag.LAST_IN_REPETITION)
                        if repetition == self.repetitions - 1:
                            flags |= bits(Flag.LAST_IN_MEASUREMENT)
                yield *item, flags

    def line(self, item, received, common) -> Readout:
        repetition, level, average, contrast, partition, row, phase, flags = item
        n = self.columns
        kx = (np.arange(n) - n // 2) / self.encoded_fov[0]
        ky = np.full(1, (row - self.rows // 2 if row >= 0 else 0) / self.encoded_fov[1])
        kz = (partition - self.partitions // 2) / self.encoded_fov[2] if self.partitions > 1 else None
        signal = self.signal(kx, ky, phase, kz) * (1.0 + 0.2 * level) * 0.7**contrast
        reverse = bool(flags >> (Flag.IS_REVERSE - 1) & 1)
        if reverse:
            constant, shift = self.ghost
            signal = self.signal(kx + shift / self.encoded_fov[0], ky, phase, kz) * (1.0 + 0.2 * level) * 0.7**contrast
            signal = (signal * np.exp(1j * constant))[:, ::-1]
        drop = n - round(n * self.echo_fraction)
        middle = np.array(self.position) + (level - self.slices // 2) * self.spacing * np.array(self.slice_dir)
        return Readout(
            data=received(signal[:, drop:]),
            flags=flags,
            step_1=max(row, 0) - (self.first if row >= 0 else 0),
            step_2=partition,
            average=average,
            slice=level,
            contrast=contrast,
            phase=phase,
            repetition=repetition,
            center_sample=n - 1 - n // 2 if reverse else n // 2 - drop,
            position=tuple(float(v) for v in middle),
            time_stamp=1000 + partition,
            physiology=(phase * self.trigger_ticks, 0, 0),
            **common,
        )

    def xml(self, subject: str = "") -> bytes:
        """The header as MRD writes it; ``subject``: further elements in front (subjectInformation, ...)."""
        encoding = self.header().encodings[0]

        def space(name: str, matrix: tuple, fov: tuple) -> str:
            size = "".join(f"<{axis}>{value}</{axis}>" for axis, value in zip("xyz", matrix, strict=True))
            reach = "".join(f"<{axis}>{value}</{axis}>" for axis, value in zip("xyz", fov, strict=True))
            return f"<{name}><matrixSize>{size}</matrixSize><fieldOfView_mm>{reach}</fieldOfView_mm></{name}>"

        limits = "".join(
            f"<{name}><minimum>{limit.minimum}</minimum><maximum>{limit.maximum}</maximum><center>{limit.center}</center></{name}>"
            for name, limit in sorted(encoding.limits.items(), key=lambda item: LIMIT_ORDER.index(item[0]))
        )
        parallel = ""
        if encoding.calibration is not Calibration.NONE:
            parallel = (
                "<parallelImaging><accelerationFactor><kspace_encoding_step_1>"
                f"{self.acceleration}</kspace_encoding_step_1><kspace_encoding_step_2>1</kspace_encoding_step_2>"
                f"</accelerationFactor><calibrationMode>{self.calibration}</calibrationMode></parallelImaging>"
            )
        times = "".join(f"<TE>{value}</TE>" for value in self.header().sequence["TE"])
        return (
            '<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">'
            f"{subject}<measurementInformation><patientPosition>HFS</patientPosition></measurementInformation>"
            "<acquisitionSystemInformation><systemFieldStrength_T>1.5</systemFieldStrength_T>"
            f"<relativeReceiverNoiseBandwidth>1.0</relativeReceiverNoiseBandwidth><receiverChannels>{self.coils}"
            "</receiverChannels></acquisitionSystemInformation><experimentalConditions><H1resonanceFrequency_Hz>63870000"
            "</H1resonanceFrequency_Hz></experimentalConditions><encoding>"
            f"{space('encodedSpace', encoding.encoded_matrix, encoding.encoded_fov)}"
            f"{space('reconSpace', encoding.recon_matrix, encoding.recon_fov)}"
            f"<encodingLimits>{limits}</encodingLimits><trajectory>{encoding.trajectory.value}</trajectory>{parallel}</encoding>"
            f"<sequenceParameters><TR>50.0</TR>{times}<flipAngle_deg>30.0</flipAngle_deg></sequenceParameters></ismrmrdHeader>"
        ).encode()

    def acquisitions(self) -> list[ismrmrd.Acquisition]:
        return [acquisition(readout) for readout in self.readouts()]

    def write(self, path: Path, subject: str = "") -> Path:
        """An MRD file as converters make it."""
        data = ismrmrd.Dataset(str(path), "dataset", create_if_needed=True)
        data.write_xml_header(self.xml(subject))
        for item in self.acquisitions():
            data.append_acquisition(item)
        data.close()
        return path


#: The order in which the schema wants them.
LIMIT_ORDER = (
    "kspace_encoding_step_0",
    "kspace_encoding_step_1",
    "kspace_encoding_step_2",
    *("average", "slice", "contrast", "phase", "repetition", "set", "segment"),
)


def bits(*flags: Flag) -> int:
    """``flags`` as the field of a readout."""
    return sum(1 << (flag - 1) for flag in flags)


def acquisition(readout: Readout) -> ismrmrd.Acquisition:
    """``readout`` as the reference library has it."""
    made = ismrmrd.Acquisition.from_array(readout.data, *(() if readout.trajectory is None else (readout.trajectory,)))
    made.flags = readout.flags  # as a number: set_flag takes one at a time
    made.encoding_space_ref, made.scan_counter = readout.encoding, readout.counter
    made.center_sample, made.sample_time_us = readout.center_sample, readout.dwell_time
    made.discard_pre, made.discard_post = readout.discard_pre, readout.discard_post
    made.acquisition_time_stamp = readout.time_stamp
    for n in range(3):
        made.position[n], made.read_dir[n] = readout.position[n], readout.read_dir[n]
        made.phase_dir[n], made.slice_dir[n] = readout.phase_dir[n], readout.slice_dir[n]
        made.physiology_time_stamp[n] = readout.physiology[n]
    index = made.idx
    index.kspace_encode_step_1, index.kspace_encode_step_2 = readout.step_1, readout.step_2
    for name in ("average", "slice", "contrast", "phase", "repetition", "set", "segment"):
        setattr(index, name, getattr(readout, name))
    return made
