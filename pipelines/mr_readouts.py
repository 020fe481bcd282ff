"""Readouts of a measurement one by one: what each is for, whether it can be used, and its line of the image."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from typing import Final

import numpy as np
import torch
from torch import Tensor

from dicomnode import pipeline as dn
from dicomnode.kspace import Encoding, Flag, Limit, Trajectory
from models.mr_recon import epi, prep

#: Flags that this pipeline acts on or leaves alone knowingly; others are counted.
KNOWN_BITS: Final = sum(1 << (flag - 1) for flag in Flag)
#: Largest matrix along x and y, and along z: more is a mistake in the header, or an attack.
MAX_MATRIX: Final = (4096, 4096, 1024)
COUNTERS: Final = ("average", "slice", "contrast", "phase", "repetition", "set")
STEPS: Final = {"kspace_encoding_step_1": "step_1", "kspace_encoding_step_2": "step_2"}
NON_CARTESIAN: Final = (Trajectory.RADIAL, Trajectory.GOLDEN_ANGLE, Trajectory.SPIRAL)


class Kind(StrEnum):
    """What a readout is for."""

    IMAGE = "image"
    NOISE = "noise"
    CALIBRATION = "calibration"
    PHASE_CORRECTION = "phase correction"
    #: Navigators, feedback, dummies, surface coil correction: never part of an image.
    OTHER = "other"


def kind_of(readout: dn.Readout) -> Kind:
    """The use of ``readout``, by its flags."""
    if readout.has(Flag.IS_NOISE_MEASUREMENT):
        return Kind.NOISE
    aside = (Flag.IS_DUMMYSCAN_DATA, Flag.IS_NAVIGATION_DATA, Flag.IS_HPFEEDBACK_DATA, Flag.IS_RTFEEDBACK_DATA)
    if readout.has(*aside, Flag.IS_SURFACECOILCORRECTIONSCAN_DATA):
        return Kind.OTHER
    if readout.has(Flag.IS_PHASECORR_DATA):
        return Kind.PHASE_CORRECTION
    if readout.has(Flag.IS_PARALLEL_CALIBRATION) and not readout.has(Flag.IS_PARALLEL_CALIBRATION_AND_IMAGING):
        return Kind.CALIBRATION
    return Kind.IMAGE


def refuse_encoding(encoding: Encoding) -> None:
    """Raise `Unsuitable` with the reason if images of ``encoding`` cannot be made."""
    if encoding.multiband > 1:
        raise dn.Unsuitable(f"multiband {encoding.multiband}: slices excited together are not separated here")
    if encoding.trajectory is Trajectory.OTHER:
        raise dn.Unsuitable("trajectory 'other': how k-space was travelled is not said")
    if encoding.trajectory in NON_CARTESIAN and volume(encoding):
        raise dn.Unsuitable(f"{encoding.trajectory.value} trajectories in three dimensions are not reconstructed")
    for name, matrix in (("encoded", encoding.encoded_matrix), ("recon", encoding.recon_matrix)):
        if min(matrix) < 1:
            raise dn.Unsuitable(f"no matrix: {name}Space/matrixSize is {' x '.join(map(str, matrix))}")
        if any(n > most for n, most in zip(matrix, MAX_MATRIX, strict=True)):
            raise dn.Unsuitable(f"{name}Space/matrixSize {' x '.join(map(str, matrix))} is beyond {MAX_MATRIX}")
    for name, fov in (("encoded", encoding.encoded_fov), ("recon", encoding.recon_fov)):
        if not (np.isfinite(fov).all() and min(fov) > 0):
            raise dn.Unsuitable(f"no field of view: {name}Space/fieldOfView_mm is {fov}")


def volume(encoding: Encoding) -> bool:
    """Whether partitions are phase encoded; some headers count slices as partitions and encode none."""
    steps = encoding.limits.get("kspace_encoding_step_2")
    return encoding.three_dimensional and (steps is None or steps.count > 1)


class Gate:
    """Lets usable readouts through, and counts the others by reason."""

    def __init__(self, header: dn.KSpaceHeader) -> None:
        self.header = header
        self.coils = 0
        self.skipped: Counter[str] = Counter()
        self.unknown_flags = 0
        self.samples: dict[int, int] = {}

    def admits(self, readout: dn.Readout, kind: Kind) -> bool:
        """Whether ``readout`` can be used.

        Raises
        ------
        Unsuitable
            It contradicts those before it: the measurement as a whole is not one.
        """
        self.unknown_flags += bool(readout.flags & ~KNOWN_BITS)
        reason = self._fault(readout, kind)
        if reason:
            self.skipped[reason] += 1
            return False
        channels = readout.data.shape[0]
        if self.coils and channels != self.coils:
            raise dn.Unsuitable(
                f"readout {readout.counter} has {channels} receiver channels, those before it had {self.coils}"
            )
        self.coils = channels
        if kind is Kind.IMAGE and self.header.encodings[readout.encoding].trajectory not in NON_CARTESIAN:
            count = readout.data.shape[1]
            known = self.samples.setdefault(readout.encoding, count)
            if count != known:
                raise dn.Unsuitable(f"mixed sample counts: readout {readout.counter} has {count}, others have {known}")
        return True

    def _fault(self, readout: dn.Readout, kind: Kind) -> str:
        data = readout.data
        if data.ndim != 2 or data.shape[0] == 0 or data.shape[1] - readout.discard_pre - readout.discard_post < 1:
            return "without channels or samples"
        if not np.isfinite(data).all():
            return "with values that are not finite"
        if kind is Kind.NOISE:
            return ""
        if readout.encoding >= len(self.header.encodings):
            return "of an encoding that the header does not have"
        encoding = self.header.encodings[readout.encoding]
        if kind in (Kind.IMAGE, Kind.CALIBRATION):
            limits = [(name, name) for name in COUNTERS]
            limits += list(STEPS.items()) if kind is Kind.IMAGE else []
            for name, field in limits:
                limit = encoding.limits.get(name)
                if limit is not None and not limit.minimum <= getattr(readout, field) <= limit.maximum:
                    return f"outside encodingLimits of {name}"
        if encoding.trajectory not in NON_CARTESIAN and kind in (Kind.IMAGE, Kind.CALIBRATION):
            row, partition = place(encoding, readout)
            inside = 0 <= row < encoding.encoded_matrix[1]
            if not inside or (volume(encoding) and not 0 <= partition < encoding.encoded_matrix[2]):
                return "outside the encoded matrix"
        if kind is Kind.CALIBRATION and data.shape[1] != self.samples.get(readout.encoding, data.shape[1]):
            return "of calibration with another number of samples"
        return ""

    def sentences(self) -> list[str]:
        """What was left out, for the record."""
        said = [f"{count} readouts {reason} left out" for reason, count in sorted(self.skipped.items())]
        if self.unknown_flags:
            said.append(f"{self.unknown_flags} readouts have flags that are not known; they were ignored")
        return said


def place(encoding: Encoding, readout: dn.Readout) -> tuple[int, int]:
    """Row and partition of the encoded matrix that ``readout`` fills; the centre of k-space is N // 2."""
    _, rows, deep = encoding.encoded_matrix
    along, across = (encoding.limits.get(name) for name in STEPS)
    row = rows // 2 + readout.step_1 - _center(along, rows)
    return row, (deep // 2 + readout.step_2 - _center(across, deep) if volume(encoding) else 0)


def _center(limit: Limit | None, size: int) -> int:
    return size // 2 if limit is None else limit.center


def measured_range(encoding: Encoding, axis: int) -> tuple[int, int]:
    """First and last + 1 row (axis 1) or partition (axis 2) of the encoded matrix that the limits allow."""
    size = encoding.encoded_matrix[axis]
    limit = encoding.limits.get(f"kspace_encoding_step_{axis}")
    if limit is None:
        return 0, size
    first = size // 2 - limit.center
    return max(0, first + limit.minimum), min(size, first + limit.maximum + 1)


class Profiles:
    """Image lines of one encoding's readouts, with what EPI needs done to them."""

    def __init__(self, encoding: Encoding) -> None:
        self.encoding = encoding
        self.epi = encoding.trajectory is Trajectory.EPI
        self.line = prep.Line.of(encoding.encoded_matrix[0], encoding.encoded_fov[0], encoding.recon_fov[0])
        self.columns = (0, self.line.kept)
        #: Whether readouts did not say where the centre of k-space is.
        self.uncentred = False
        self._gridding: Tensor | None = None
        self._navigators: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
        self._corrections: dict[int, epi.PhaseCorrection] = {}

    def profile(self, readout: dn.Readout) -> Tensor:
        """complex64 (coil, column): the image line of an imaging or calibration readout."""
        made, reverse = self._plain(readout), readout.has(Flag.IS_REVERSE)
        # Asked for of every EPI line: one whose reversed lines are not marked is refused too.
        correction = self._correction(readout.slice) if reverse or self.epi else None
        return correction.apply(made) if reverse and correction is not None else made

    def navigate(self, readout: dn.Readout) -> None:
        """Take a phase-correction line."""
        level = readout.slice
        if level in self._corrections or level not in self._navigators:  # the first of a further shot
            self._navigators[level] = ([], [])
            self._corrections.pop(level, None)
        self._navigators[level][readout.has(Flag.IS_REVERSE)].append(self._plain(readout))

    def _correction(self, level: int) -> epi.PhaseCorrection | None:
        if level not in self._corrections:
            forward, reverse = self._navigators.get(level) or next(reversed(self._navigators.values()), ([], []))
            if not forward or not reverse:
                if self.epi:
                    seen = len(forward) + len(reverse)
                    raise dn.Unsuitable(
                        f"EPI needs {epi.NAVIGATORS} phase-correction lines or more, of both directions; slice {level} "
                        f"has {seen}: ghosts would remain"
                    )
                return None
            self._corrections[level] = epi.phase_correction(forward, reverse)
        return self._corrections[level]

    def _plain(self, readout: dn.Readout) -> Tensor:
        whole, reverse = torch.tensor(readout.data, dtype=torch.complex64), readout.has(Flag.IS_REVERSE)
        if self.epi and (matrix := self._ramp(whole.shape[1])) is not None:
            return self.line.crop((whole.flip(-1) if reverse else whole) @ matrix.mT)
        samples = whole[:, readout.discard_pre : whole.shape[1] - readout.discard_post]
        center = readout.center_sample - readout.discard_pre
        if readout.center_sample == 0 and samples.shape[-1] == self.line.columns:
            # A whole readout whose first sample were the centre would be cut in half: the field was left empty.
            self.uncentred, center = True, samples.shape[-1] // 2
        elif reverse:
            center = samples.shape[-1] - 1 - center
        samples = samples.flip(-1) if reverse else samples
        if samples.shape[-1] > self.line.columns:
            raise dn.Unsuitable(
                f"readouts have {samples.shape[-1]} samples, and the encoded matrix {self.line.columns} columns"
            )
        if readout.has(Flag.IS_PHASECORR_DATA):
            center = min(max(center, 0), samples.shape[-1] - 1)
        else:
            self.columns = self.line.measured(samples.shape[-1], center)
        return self.line.to_image(samples, center)

    def _ramp(self, samples: int) -> Tensor | None:
        """The inverse of ramp sampling; None where the header gives no timings, and the samples are on the grid."""
        timings = {
            name: float(value) for name, value in self.encoding.parameters.items() if isinstance(value, int | float)
        }
        if not all(name in timings for name in epi.TIMINGS):
            if samples != self.line.columns:
                missing = ", ".join(name for name in epi.TIMINGS if name not in timings)
                raise dn.Unsuitable(
                    f"EPI readouts have {samples} samples for {self.line.columns} columns, and the header gives no "
                    f"{missing}: sampled on the ramps, and they cannot be regridded"
                )
            return None
        if self._gridding is None:
            try:
                positions = epi.ramp_positions(timings, self.line.columns, samples)
            except ValueError as error:
                raise dn.Unsuitable(f"EPI: {error}") from error
            self._gridding = epi.gridding(positions, self.line.columns)
        return self._gridding
