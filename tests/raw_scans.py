"""Raw data objects for tests, and a plain reconstruction of them: what a pipeline author would write first."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmwrite

from dicomnode import pipeline as dn
from dicomnode.encode.raw import wrap
from dicomnode.kspace import Flag, KSpace, KSpaceHeader, Readout
from tests import factories
from tests.mrd_factory import Ellipse, Scan

WHEN = datetime(2026, 1, 5, 10, 20, 30, tzinfo=UTC)
NOT_IMAGING = (
    Flag.IS_NOISE_MEASUREMENT, Flag.IS_PARALLEL_CALIBRATION, Flag.IS_PHASECORR_DATA, Flag.IS_NAVIGATION_DATA,
    Flag.IS_DUMMYSCAN_DATA, Flag.IS_RTFEEDBACK_DATA, Flag.IS_HPFEEDBACK_DATA,
)  # fmt: skip


def like(**changes: Any) -> Dataset:
    """An image of the examination that the measurement is of."""
    ds = factories.mr_series(1)[0]
    for keyword, value in changes.items():
        setattr(ds, keyword, value)
    return ds


def wrapped(folder: Path, file: Path, source: Dataset | None = None, series: str = "", **options: Any) -> list[Path]:
    """``file`` as raw data objects in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    source = like() if source is None else source
    uid = series or factories.uid(file.name)
    paths = []
    for number, ds in enumerate(wrap(file, source, series_uid=uid, series_number=7, when=WHEN, **options)):
        paths.append(folder / f"raw-{number:03d}.dcm")
        dcmwrite(paths[-1], ds, enforce_file_format=True)
    return paths


def point_scan(x: float = -41.3, y: float = 25.7, **changes: Any) -> tuple[Scan, NDArray[np.float64]]:
    """An oblique, non-square scan of one point at ``x``, ``y`` of its plane, and where that is [mm, LPS]."""
    turn = np.radians([25.0, -17.0])
    about_z = np.array([[np.cos(turn[0]), -np.sin(turn[0]), 0], [np.sin(turn[0]), np.cos(turn[0]), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(turn[1]), -np.sin(turn[1])], [0, np.sin(turn[1]), np.cos(turn[1])]])
    axes = about_x @ about_z
    position = np.array([12.5, -31.0, 47.0])
    values: dict[str, Any] = {
        "matrix": (64, 48), "fov": (256.0, 144.0), "coils": 1, "noise": 0.0,
        "ellipses": (Ellipse(x=x, y=y, value=1.0),),
        "position": tuple(position), "read_dir": tuple(axes[:, 0]), "phase_dir": tuple(axes[:, 1]),
        "slice_dir": tuple(axes[:, 2]),
    }  # fmt: skip
    scan = Scan(**(values | changes))
    return scan, position + x * axes[:, 0] + y * axes[:, 1]


def seen_at(image: Dataset, scan: Scan) -> NDArray[np.float64]:
    """Where ``image`` shows the one point of ``scan``, to a fraction of a pixel [mm, LPS].

    A point is a Dirichlet kernel of the samples along each axis, whose two largest values say exactly where between
    them it is.
    """
    pixels = image.pixel_array.astype(float)
    row, column = np.unravel_index(int(pixels.argmax()), pixels.shape)
    x = column + _offset(pixels[row], int(column), scan.columns)
    y = row + _offset(pixels[:, column], int(row), scan.rows)
    dy, dx = (float(value) for value in image.PixelSpacing)
    along, down = np.array(image.ImageOrientationPatient, float).reshape(2, 3)
    return np.array(image.ImagePositionPatient, float) + x * dx * along + y * dy * down


def _offset(line: NDArray[np.float64], at: int, samples: int) -> float:
    side = 1 if line[at + 1] > line[at - 1] else -1
    a, b, step = line[at], line[at + side], np.pi / samples
    return side * float(np.arctan2(b * np.sin(step), a + b * np.cos(step)) / step)


def lines_of(kspace: KSpace) -> dict[tuple[int, ...], NDArray[np.complex64]]:
    """Fully sampled grids (coil, partition, line, sample) by (slice, contrast, phase, repetition, set)."""
    encoding = kspace.header.encodings[0]
    nx, ny, nz = encoding.encoded_matrix
    limit = encoding.limits.get("kspace_encoding_step_1")
    shift = ny // 2 - limit.center if limit else 0
    depth = encoding.limits.get("kspace_encoding_step_2")
    deep = nz // 2 - depth.center if depth and nz > 1 else 0
    grids: dict[tuple[int, ...], NDArray[np.complex64]] = {}
    counts: dict[tuple[int, ...], NDArray[np.float32]] = {}
    for readout in kspace.readouts:
        if readout.has(*NOT_IMAGING):
            continue
        key = (readout.slice, readout.contrast, readout.phase, readout.repetition, readout.set)
        grid = grids.setdefault(key, np.zeros((len(readout.data), nz, ny, nx), np.complex64))
        count = counts.setdefault(key, np.zeros((nz, ny), np.float32))
        data, center = readout.data, readout.center_sample
        data = data[:, readout.discard_pre : data.shape[1] - readout.discard_post]
        center -= readout.discard_pre
        if readout.has(Flag.IS_REVERSE):
            data, center = data[:, ::-1], data.shape[1] - 1 - center
        start, row, level = nx // 2 - center, readout.step_1 + shift, readout.step_2 + deep
        grid[:, level, row, start : start + data.shape[1]] += data
        count[level, row] += 1
    for key, grid in grids.items():
        grid /= np.maximum(counts[key], 1)[None, :, :, None]
    return grids


def images_of(kspace: KSpace) -> dict[tuple[int, ...], NDArray[np.float32]]:
    """Magnitudes (partition, row, column) on the reconstruction's matrix: inverse FFT, crop, root sum of squares."""
    encoding = kspace.header.encodings[0]
    (cx, cy, cz), size = encoding.recon_matrix, encoding.encoded_matrix
    # Pixels of the encoded space that the reconstructed field of view covers.
    covered = [round(s * r / e) for s, e, r in zip(size, encoding.encoded_fov, encoding.recon_fov, strict=True)]
    made = {}
    for key, grid in lines_of(kspace).items():
        axes = (1, 2, 3) if size[2] > 1 else (2, 3)
        image = np.fft.fftshift(np.fft.ifftn(np.fft.ifftshift(grid, axes), axes=axes, norm="ortho"), axes)
        image = image[..., _middle(size[1], covered[1]), _middle(size[0], covered[0])]
        if (covered[0], covered[1]) != (cx, cy):
            image = _resized(image, cy, cx)
        made[key] = np.sqrt((np.abs(image) ** 2).sum(0)).astype(np.float32)[_middle(image.shape[1], cz)]
    return made


def _middle(size: int, part: int) -> slice:
    start = size // 2 - part // 2
    return slice(start, start + part)


def _resized(image: NDArray[Any], rows: int, columns: int) -> NDArray[Any]:
    """Fourier interpolation to another matrix over the same field of view."""
    k = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image, (-2, -1)), norm="ortho"), (-2, -1))
    out = np.zeros((*k.shape[:-2], rows, columns), k.dtype)
    y, x = min(rows, k.shape[-2]), min(columns, k.shape[-1])
    out[..., _middle(rows, y), _middle(columns, x)] = k[..., _middle(k.shape[-2], y), _middle(k.shape[-1], x)]
    return np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(out, (-2, -1)), norm="ortho"), (-2, -1))


class PlainRSS(dn.Pipeline[KSpace]):
    """Inverse FFT and root sum of squares of fully sampled Cartesian k-space."""

    algorithm = dn.Algorithm(name="plain-rss", version="1.0.0")
    accepts_incomplete: ClassVar[bool] = False
    learned: ClassVar[bool] = False

    def setup(self, runtime: dn.Runtime) -> None:
        del runtime

    def run(self, series: KSpace) -> dn.Result:
        first: dict[int, Readout] = {}
        for readout in series.readouts:
            if not readout.has(*NOT_IMAGING):
                first.setdefault(readout.slice, readout)
        images = images_of(series)
        if not images:
            raise dn.Unsuitable("there is no imaging readout")
        planes = tuple(self._planes(series.header, images, first))
        most = max(float(plane.array.max()) for plane in planes)
        spacing = self._spacing(series.header)
        made = dn.Reconstruction(
            planes=planes, pixel_spacing=(spacing[1], spacing[0]), thickness=spacing[2], role="magnitude",
            label="plain RSS", description="inverse FFT, root sum of squares", learned=self.learned,
            scale=60000.0 / max(most, 1e-12),
        )  # fmt: skip
        return dn.Result(reconstructions=(made,))

    @staticmethod
    def _spacing(header: KSpaceHeader) -> tuple[float, float, float]:
        fov, matrix = header.encodings[0].recon_fov, header.encodings[0].recon_matrix
        return fov[0] / matrix[0], fov[1] / matrix[1], fov[2] / matrix[2]

    def _planes(
        self, header: KSpaceHeader, images: dict[tuple[int, ...], NDArray[np.float32]], first: dict[int, Readout]
    ) -> Iterator[dn.ReconstructedPlane]:
        dx, dy, dz = self._spacing(header)
        for (level, contrast, phase, repetition, a_set), volume in images.items():
            readout = first[level]
            read, along, through = (np.array(v) for v in (readout.read_dir, readout.phase_dir, readout.slice_dir))
            depth, rows, columns = volume.shape
            corner = np.array(readout.position) - (columns // 2) * dx * read - (rows // 2) * dy * along
            for partition in range(depth):
                at = corner + (partition - depth // 2) * dz * through if depth > 1 else corner
                yield dn.ReconstructedPlane(
                    array=volume[partition], position=at, orientation=np.concatenate([read, along]),
                    slice=level * depth + partition, contrast=contrast, phase=phase, repetition=repetition, set=a_set,
                )  # fmt: skip


class LearnedRSS(PlainRSS):
    """The same, called learned."""

    algorithm = dn.Algorithm(name="learned-rss", version="1.0.0")
    learned = True
