"""The reconstruction of last resort, with numpy alone: Fourier transform and root sum of squares of what is there.

A scanner waits for images, and gets these, with a warning, when the configured pipeline fails or is late. Lines that
are missing stay zero: accelerated measurements show aliasing, and the warning says so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dicomnode.errors import Unsuitable
from dicomnode.kspace import Encoding, Flag, KSpace, Readout, Trajectory
from dicomnode.pipeline import ReconstructedPlane, Reconstruction
from dicomnode.volumes.mrd import open_mrd

#: Readouts that are no part of an image.
_OTHER: Final = (
    Flag.IS_NOISE_MEASUREMENT, Flag.IS_NAVIGATION_DATA, Flag.IS_PHASECORR_DATA,
    Flag.IS_HPFEEDBACK_DATA, Flag.IS_DUMMYSCAN_DATA, Flag.IS_RTFEEDBACK_DATA, Flag.IS_SURFACECOILCORRECTIONSCAN_DATA,
)  # fmt: skip
#: The 99.9th percentile of the first plane is stored as this, which leaves room for brighter ones in 16 bits.
_PERCENTILE: Final = 99.9
_STORED: Final = 20000.0
#: Samples of this size and more are no measurement, and their squares would overflow.
_LARGEST: Final = 1e15
#: Images whose k-space fits into so much memory are gathered in one look at the file [bytes].
_MEMORY: Final = 2**29

#: slice, contrast, phase, repetition, set.
Counters = tuple[int, int, int, int, int]


def counters(item: Readout | ReconstructedPlane) -> Counters:
    """Which image something belongs to."""
    return item.slice, item.contrast, item.phase, item.repetition, item.set


def reconstruct(path: Path, skip: frozenset[Counters] = frozenset()) -> Iterator[Reconstruction]:
    """Reconstruct every image of the MRD file ``path`` but those in ``skip``, one at a time, all with one scale.

    Raises
    ------
    Unsuitable
        It cannot be done by a plain Fourier transform, and why.
    """
    measurement = open_mrd(path)
    encoding = measurement.header.encodings[0]
    if encoding.trajectory is not Trajectory.CARTESIAN:
        raise Unsuitable(f"a plain Fourier transform cannot reconstruct a trajectory of kind {encoding.trajectory}")
    if encoding.multiband > 1:
        raise Unsuitable(f"a plain Fourier transform cannot separate {encoding.multiband} slices excited at once")
    partitions = encoding.limits.get("kspace_encoding_step_2")
    # Some headers count slices as partitions, and encode none.
    if encoding.three_dimensional and (partitions is None or partitions.count > 1):
        raise Unsuitable("the plain reconstruction works on planes, and this is a volume")
    scale = 0.0
    keys, coils = _images(measurement, encoding, skip)
    at_once = _MEMORY // (8 * coils * encoding.encoded_matrix[0] * encoding.encoded_matrix[1])
    if not at_once:
        raise Unsuitable("one image is too large for the plain reconstruction")
    for start in range(0, len(keys), at_once):
        for image in _gathered(measurement, encoding, keys[start : start + at_once]).values():
            array = _transformed(image.averaged(), encoding)
            if not scale:
                level = float(np.percentile(array, _PERCENTILE))
                scale = _STORED / level if level > 0 else 1.0
            yield _packed(array, image.first, encoding, scale)


def usable(readout: Readout, encoding: Encoding) -> bool:
    """Whether a readout is a line of an image, as far as the header's limits and its own numbers say."""
    calibration = readout.has(Flag.IS_PARALLEL_CALIBRATION)
    if calibration and not readout.has(Flag.IS_PARALLEL_CALIBRATION_AND_IMAGING):
        return False
    if readout.has(*_OTHER) or readout.encoding != 0 or not readout.data.size:
        return False
    limit = encoding.limits.get("kspace_encoding_step_1")
    most = limit.maximum if limit is not None else encoding.encoded_matrix[1] - 1
    return readout.step_1 <= most and bool(np.abs(readout.data).max() < _LARGEST)  # NaN is not less either


def _images(measurement: KSpace, encoding: Encoding, skip: frozenset[Counters]) -> tuple[list[Counters], int]:
    """Images that are wanted, in order, and the largest number of coils."""
    found: dict[Counters, int] = {}
    for readout in measurement.readouts:
        if usable(readout, encoding):
            found.setdefault(counters(readout), len(readout.data))
    if not found:
        raise Unsuitable("no readout belongs to an image")
    return [key for key in sorted(found) if key not in skip], max(found.values())


class _Image:
    """K-space of one image while its lines are gathered: (coil, ky, kx), its centre at N // 2."""

    def __init__(self, readout: Readout, encoding: Encoding) -> None:
        columns, self._rows = encoding.encoded_matrix[0], encoding.encoded_matrix[1]
        limit = encoding.limits.get("kspace_encoding_step_1")
        self._shift = self._rows // 2 - (limit.center if limit is not None else self._rows // 2)
        self._space = np.zeros((len(readout.data), self._rows, columns), np.complex64)
        self._times: dict[int, int] = defaultdict(int)
        self.first = readout

    def add(self, readout: Readout) -> None:
        """Add a line; lines outside the matrix or of another coil count are left out."""
        row = readout.step_1 + self._shift
        if len(readout.data) == len(self._space) and 0 <= row < self._rows:
            self._times[row] += 1
            _place(self._space[:, row], readout)

    def averaged(self) -> NDArray[np.complex64]:
        """What was gathered, lines that came several times averaged."""
        for row, times in self._times.items():
            self._space[:, row] /= times
        return self._space


def _gathered(measurement: KSpace, encoding: Encoding, keys: Sequence[Counters]) -> dict[Counters, _Image]:
    """K-space of several images, in one look at the file."""
    images: dict[Counters, _Image] = {}
    wanted = frozenset(keys)
    for readout in measurement.readouts:
        key = counters(readout)
        if key in wanted and usable(readout, encoding):
            if key not in images:
                images[key] = _Image(readout, encoding)
            images[key].add(readout)
    return images


def _place(line: NDArray[np.complex64], readout: Readout) -> None:
    """Add a readout to its line, its centre sample at the line's, its ends cut where they stick out."""
    stop = readout.data.shape[1] - readout.discard_post
    data = readout.data[:, readout.discard_pre : stop]
    if readout.has(Flag.IS_REVERSE):
        data = data[:, ::-1]
    columns = line.shape[1]
    start = columns // 2 - (readout.center_sample - readout.discard_pre)
    low, high = max(start, 0), min(start + data.shape[1], columns)
    if low < high:
        line[:, low:high] += data[:, low - start : high - start]


def _transformed(space: NDArray[np.complex64], encoding: Encoding) -> NDArray[np.float32]:
    """Image (row, column) of the reconstructed field of view, in its matrix if that is no larger than the encoded."""
    images = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(space, axes=(1, 2)), axes=(1, 2), norm="ortho"), axes=(1, 2))
    rows, columns = images.shape[1:]
    keep_rows = min(rows, round(rows * encoding.recon_fov[1] / encoding.encoded_fov[1]))
    keep_columns = min(columns, round(columns * encoding.recon_fov[0] / encoding.encoded_fov[0]))
    top, left = rows // 2 - keep_rows // 2, columns // 2 - keep_columns // 2
    cropped = images[:, top : top + keep_rows, left : left + keep_columns]
    combined: NDArray[np.float32] = np.sqrt(np.sum(np.abs(cropped) ** 2, axis=0)).astype(np.float32)
    return combined


def _packed(array: NDArray[np.float32], readout: Readout, encoding: Encoding, scale: float) -> Reconstruction:
    rows, columns = array.shape
    # What the kept matrix spans: the encoded voxel size is not changed by cropping.
    dx = encoding.encoded_fov[0] / encoding.encoded_matrix[0]
    dy = encoding.encoded_fov[1] / encoding.encoded_matrix[1]
    along_row = np.asarray(readout.read_dir, dtype=np.float64)
    along_column = np.asarray(readout.phase_dir, dtype=np.float64)
    position = np.asarray(readout.position) - columns // 2 * dx * along_row - rows // 2 * dy * along_column
    plane = ReconstructedPlane(
        array=array,
        position=position,
        orientation=np.concatenate([along_row, along_column]),
        slice=readout.slice,
        contrast=readout.contrast,
        phase=readout.phase,
        repetition=readout.repetition,
        set=readout.set,
    )
    return Reconstruction(
        planes=(plane,),
        pixel_spacing=(dy, dx),
        thickness=encoding.recon_fov[2],
        role="plain",
        label="Plain Fourier transform",
        description="Fourier transform and root sum of squares; missing lines are zero",
        learned=False,
        scale=scale,
    )
