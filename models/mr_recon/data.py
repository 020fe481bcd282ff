"""Magnitude images to train on, and slabs of simulated measurements of them.

Under-sampling of whole lines decouples along the readout: columns of the hybrid space (ky, x) are problems of their
own, so training on 48 columns at a time is exact, and several times cheaper (ml-mr 1.3).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Final

import numpy as np
import pydicom
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.cardiac import acquire, scd
from models.cardiac.scene import SUBSLICES, draw_scene, paint
from models.mr_recon import compress, masks
from models.mr_recon.adapters import Volume
from models.mr_recon.checks import noise_of
from models.mr_recon.coils import LEAST_FULL_KERNEL
from models.mr_recon.fft import fft2c, ifft2c, ifftc
from models.mr_recon.phantoms import draw_phantom
from models.mr_recon.simulate import Measurement, calibration, draw_measurement, estimate

Image = NDArray[np.float32]

#: Central part of k-space that the scanner measured, at most: these 256 images are interpolated (ml-mr 1.3).
ACQUIRED: Final = 160
ACQUIRED_SCOUT: Final = 192
#: Columns of a slab.
SLAB: Final = 48
#: A slab's mean signal over that of the image's brightest slab, at least.
FULL_ENOUGH: Final = 0.35


@dataclass(frozen=True, slots=True, kw_only=True)
class Slabs:
    """Columns of measurements, (slab, column, coil, row): the readout comes before the coils."""

    maps: Tensor
    #: Real (slab, 1, 1, row), its centre at index 0: what the Fourier transform without shifts wants.
    mask: Tensor
    #: ``A^H y``, (slab, row, column).
    right: Tensor
    #: (slab, row, column), and the 99th percentile of the whole image each slab comes from.
    reference: Tensor
    scale: Tensor

    def normal(self, x: Tensor) -> Tensor:
        """``A^H A`` of (slab, row, column); the shifts of the centred transform cancel."""
        coils = self.maps * x.transpose(-1, -2).unsqueeze(-2)
        measured = torch.fft.ifft(torch.fft.fft(coils) * self.mask)
        return (self.maps.conj() * measured).sum(-2).transpose(-1, -2)

    def to(self, device: torch.device) -> Slabs:
        """The same on ``device``."""
        return Slabs(**{one.name: getattr(self, one.name).to(device) for one in fields(self)})


def cropped(image: Image, acquired: int) -> Image:
    """The magnitude of the central ``acquired`` by ``acquired`` points of the image's k-space."""
    rows, columns = (min(acquired, n) for n in image.shape)
    k = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image)))
    top, left = image.shape[0] // 2 - rows // 2, image.shape[1] // 2 - columns // 2
    small = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(k[top : top + rows, left : left + columns])))
    return np.asarray(np.abs(small), np.float32)


def scd_frames(folder: Path) -> list[list[Image]]:
    """The frames of one patient's short-axis stack by slice, at the matrix that was acquired."""
    stack = scd.read(folder).images
    return [[cropped(frame, ACQUIRED) for frame in stack[:, k]] for k in range(stack.shape[1])]


def scd_scouts(folder: Path) -> list[Image]:
    """The localizers of one patient."""
    files = sorted((folder / "localizers").glob("*.dcm"))
    return [cropped(pydicom.dcmread(file).pixel_array.astype(np.float32), ACQUIRED_SCOUT) for file in files]


def draw_heart_image(rng: np.random.Generator) -> Image:
    """One plane of one procedural heart, all but free of noise."""
    scene, scanner = draw_scene(rng), replace(acquire.draw_scanner(rng), noise=0.002, gamma=1.0, ghost=0.0)
    pixels, pixel_mm = int(rng.integers(20, 29)) * 8, rng.uniform(1.2, 2.0)
    height = rng.uniform(-0.1, 1.15) * scene.heart.length_at(0.0)
    plane = acquire.plane_of(acquire.draw_pose(rng), (pixels, pixels), pixel_mm)
    painted = paint(scene, plane, tuple(height + share * 6.0 for share in SUBSLICES), (float(rng.random()),) * 3)
    return acquire.expose(painted.image, scanner, pixel_mm, rng)


def hearts(file: Path, number: int, seed: int) -> list[Image]:
    """``number`` procedural hearts, kept in ``file`` for the next run."""
    if file.exists():
        with np.load(file) as kept:
            if len(kept.files) == number:
                return [kept[name] for name in kept.files]
    images = [draw_heart_image(np.random.default_rng([seed, 11, k])) for k in range(number)]
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".part.npz")
    np.savez(partial, *[image.astype(np.float16).astype(np.float32) for image in images])
    partial.replace(file)
    return images


@dataclass(frozen=True, slots=True)
class Pool:
    """Images by kind; a kind without images is not drawn."""

    patients: list[Image]
    hearts: list[Image]
    #: Shares of patients, hearts and phantoms while all are there.
    shares: tuple[float, float, float] = (0.45, 0.3, 0.25)
    #: Complete k-space, and the share of batches that it gives while there is any.
    volumes: Sequence[Volume] = ()
    measured: float = 0.7

    def draw(self, rng: np.random.Generator, rows: int) -> Image:
        """One image of ``rows`` rows, turned and scaled."""
        shares = np.array(self.shares) * (bool(self.patients), bool(self.hearts), True)
        kind = int(rng.choice(3, p=shares / shares.sum()))
        if kind == 2:
            return draw_phantom(rng, (rows, int(rng.integers(14, 29)) * 8))
        images = (self.patients, self.hearts)[kind]
        image = images[int(rng.integers(len(images)))]
        image = np.rot90(image, int(rng.integers(4)))[:, :: 1 if rng.random() < 0.5 else -1]
        image = image / np.quantile(image, 0.99)
        return _with_rows(np.asarray(image ** rng.uniform(0.85, 1.2), np.float32), rows, rng)


def _with_rows(image: Image, rows: int, rng: np.random.Generator) -> Image:
    """Cut or padded with emptiness to ``rows``: another field of view, the same resolution."""
    extra = rows - image.shape[0]
    if extra <= 0:
        first = int(rng.integers(-extra + 1))
        return image[first : first + rows]
    before = int(rng.integers(extra + 1))
    return np.pad(image, ((before, extra - before), (0, 0)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """What measurements are drawn from."""

    ranges: masks.Ranges
    coils: tuple[int, int] = (2, 20)
    #: Rows; the usual ones are drawn more often.
    rows: tuple[int, ...] = (112, 128, 144, 160, 160, 160, 160, 176, 192, 208, 224)


def measured(full: Tensor, rng: np.random.Generator, ranges: masks.Ranges, *, single: bool) -> Measurement:
    """Complete k-space (coil, ky, kx) with lines left out; ``single`` makes one coil of it first."""
    full = full / full.abs().max() * 1e3
    shape, noise = (full.shape[-2], full.shape[-1]), noise_of(full, torch.ones(1, *full.shape[-2:]))
    lines = masks.draw(rng, shape[0], ranges)
    first, last = calibration(lines)
    if full.shape[0] > compress.VIRTUAL:
        full = compress.apply(compress.matrix(full[:, first:last]), full)
    method = "low-resolution" if single or last - first < LEAST_FULL_KERNEL or rng.random() < 0.5 else "espirit"
    maps = estimate(full, lines, shape, method)
    reference = (maps.conj() * ifft2c(full)).sum(0)
    if single:
        full, maps = fft2c(reference)[None], torch.ones(1, *shape, dtype=torch.complex64)
    mask = torch.from_numpy(lines.astype(np.float32))[None, :, None]
    return Measurement(maps=maps, y=full * mask, mask=mask, reference=reference, noise=noise)


def slabs_of(measurements: Iterable[Measurement], rng: np.random.Generator | None, per_image: int = 1) -> Slabs:
    """Slabs of ``SLAB`` columns, drawn where there is signal; without ``rng`` whole measurements."""
    parts = []
    for one in measurements:
        hybrid = ifftc(one.y, (-1,))
        right = (one.maps.conj() * ifftc(hybrid, (-2,))).sum(0)
        columns = one.reference.shape[-1]
        scale = torch.quantile(one.reference.abs().flatten(), 0.99)
        for _ in range(per_image):
            first, width = (0, columns) if rng is None else (_first(one.reference, rng), SLAB)
            cut = slice(first, first + width)
            mask = torch.fft.ifftshift(one.mask[:, :, 0])[None]
            parts.append((one.maps[..., cut].permute(2, 0, 1), mask, right[:, cut], one.reference[:, cut], scale))
    maps, mask, right, reference, scale = (torch.stack(values) for values in zip(*parts, strict=True))
    return Slabs(maps=maps.contiguous(), mask=mask, right=right, reference=reference, scale=scale)


def _first(reference: Tensor, rng: np.random.Generator) -> int:
    signal = reference.abs().mean(0).numpy()
    mean = np.convolve(signal, np.full(SLAB, 1 / SLAB), "valid")
    return int(rng.choice(np.flatnonzero(mean >= FULL_ENOUGH * mean.max())))


def draw_slabs(
    pool: Pool, rng: np.random.Generator, drawing: Drawing, *, single: bool, images: int, per_image: int
) -> Slabs:
    """A batch; its measurements share rows and coils and nothing else."""
    if pool.volumes and rng.random() < pool.measured:
        volume = pool.volumes[int(rng.integers(len(pool.volumes)))]
        slices = rng.integers(volume.slices, size=images)
        whole = [measured(volume.read(int(k)), rng, drawing.ranges, single=single) for k in slices]
        return slabs_of(whole, rng, per_image)
    rows = int(rng.choice(drawing.rows))
    # few coils are more usual, and cheaper
    coils = 1 if single else round(float(np.exp(rng.uniform(*np.log(drawing.coils)))))
    measurements = []
    for _ in range(images):
        image, lines = pool.draw(rng, rows), masks.draw(rng, rows, drawing.ranges)
        measurements.append(draw_measurement(rng, image, coils, lines, espirit=coils <= 10 and rows <= 160))
    return slabs_of(measurements, rng, per_image)
