"""Evaluation data: simulated slices, and real CT series and test images from a folder where one is at hand.

Real data is for evaluation only. Nothing here is read by training.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from models.ct_denoise import simulate
from models.ct_denoise.adjacent import Adjacent
from models.ct_denoise.data import render
from models.ct_denoise.projection import KERNELS, Kernel

#: Half-width of the evaluated part of a slice [pixel].
HALF: Final = 144
#: Realisations of noise like a real slice's own.
OWN: Final = 4
#: Pixel size of the low-contrast test images [mm] (MITA phantom of 200 mm diameter over 232 pixels).
LCD_PIXEL_MM: Final = 0.86
#: Value stored for 0 HU in the low-contrast test images.
LCD_WATER: Final = 1000.0
#: HU of the inserts of the low-contrast test images above their background: stored 1014, 1007, 1005, 1003.
LCD_INSERTS: Final = {14: (1009, 1014), 7: (1006, 1007), 5: (1004, 1005), 3: (1002, 1003)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A slice, the same slice noisier, and further realisations of that noise; (row, column) [HU]."""

    group: str
    clean: Tensor
    noisy: Tensor
    #: (realisation, row, column): what the true spectrum is estimated from.
    noise: Tensor
    sigma_hu: float
    #: Noise that ``clean`` holds already, part of ``sigma_hu``.
    own_hu: float = 0.0
    #: Realisations of noise like that, (realisation, row, column); none where ``clean`` is.
    own: Tensor | None = None
    #: What lies beside the slice, as noisy.
    adjacent: Adjacent | None = None

    @property
    def body(self) -> Tensor:
        """True in the body: metrics are taken there."""
        return self.clean > -900.0


def _crop(image: Tensor, half: int = HALF) -> Tensor:
    rows, columns = image.shape[-2] // 2, image.shape[-1] // 2
    return image[..., max(rows - half, 0) : rows + half, max(columns - half, 0) : columns + half]


def synthetic(count: int, realisations: int = simulate.REALISATIONS) -> Iterator[Case]:
    """Held-out simulated slices at 20 HU, the three kernel families in turn."""
    for index in range(count):
        item = simulate.simulate_slice(simulate.EVALUATION_SEED + 5000 + index, realisations=realisations)
        kernel = KERNELS[("soft", "std", "sharp")[index % 3]]
        clean, noise = render(item, kernel, 20.0)
        clean, noise = _crop(clean), _crop(noise)
        # both realisations would hide the tested one in its own spectrum
        yield Case(group="synthetic", clean=clean, noisy=clean + noise[0], noise=noise[1:], sigma_hu=20.0)


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        for file in sorted(part for part in path.rglob("*") if part.is_file()):
            yield file.name, file.read_bytes()
        return
    with tarfile.open(path, "r:xz") as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isfile() else None
            if content is not None:
                yield member.name, content.read()


def stacks(count: int, spacing_mm: float, first: int = 5000) -> Iterator[Case]:
    """The slices of `synthetic` with the slices ``spacing_mm`` before and after them, each with noise of its own.

    ``first``: the slices of the tables begin at 5000; what is chosen by looking at figures is chosen on others.
    """
    for index in range(count):
        seed = simulate.EVALUATION_SEED + first + index
        kernel = KERNELS[("soft", "std", "sharp")[index % 3]]
        clean, noise = render(simulate.simulate_slice(seed), kernel, 20.0)
        beside = []
        for side in (-1.0, 1.0):
            plane, own = render(simulate.simulate_slice(seed, realisations=1, z_mm=side * spacing_mm), kernel, 20.0)
            beside.append(_crop(plane + own[0]))
        clean, noise = _crop(clean), _crop(noise)
        given = Adjacent(planes=torch.stack(beside)[None], spacing_mm=torch.tensor([spacing_mm]))
        group = f"synthetic, {spacing_mm:g} mm"
        yield Case(group=group, clean=clean, noisy=clean + noise[0], noise=noise[1:], sigma_hu=20.0, adjacent=given)


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A real series read for evaluation."""

    #: Slices (slice, row, column) [HU].
    array: Tensor
    #: Pixel size [mm].
    pixel_mm: float
    #: True where the scanner padded.
    padding: Tensor
    #: Position of each slice along the normal [mm].
    positions_mm: Tensor


def read_series(path: Path) -> Series:
    """The CT series of a folder or .tar.xz of DICOM files, ordered by position."""
    import pydicom

    planes: list[tuple[float, np.ndarray, np.ndarray]] = []
    spacing = 1.0
    for _name, content in _members(path):
        header = pydicom.dcmread(io.BytesIO(content), force=True)
        if "PixelData" not in header:
            continue
        stored = header.pixel_array
        values = stored.astype(np.float32) * float(header.RescaleSlope) + float(header.RescaleIntercept)
        padding = stored == header.get("PixelPaddingValue", 1 << 20)
        normal = np.cross(header.ImageOrientationPatient[:3], header.ImageOrientationPatient[3:])
        planes.append((float(np.dot(header.ImagePositionPatient, normal)), values, padding))
        spacing = float(header.PixelSpacing[0])
    planes.sort(key=lambda plane: plane[0])
    array, pad = (np.stack([plane[part] for plane in planes]) for part in (1, 2))
    positions = torch.tensor([plane[0] for plane in planes])
    return Series(
        array=torch.from_numpy(array), pixel_mm=spacing, padding=torch.from_numpy(pad), positions_mm=positions
    )


def find(folder: Path, name: str) -> Path | None:
    """The series ``name`` below ``folder``: an archive or a folder."""
    found = sorted(folder.glob(f"**/{name}.tar.xz")) or sorted(
        part for part in folder.glob(f"**/{name}") if part.is_dir()
    )
    return found[0] if found else None


def noisier(
    series: Series,
    group: str,
    index: int,
    sigma_hu: float,
    own_hu: float,
    kernel: Kernel,
    extra: int = 4,
    step: int = 0,
) -> Case:
    """Slice ``index`` of a real series with noise inserted up to ``sigma_hu``; its own noise stays in the reference.

    ``step``: with the slices so many before and after it, as noisy.
    """

    def inserted(at: int, seed: int, level: float = sigma_hu, there: float = own_hu) -> Tensor:
        image = torch.where(series.padding[at], -1000.0, series.array[at])[None]
        return simulate.insert_noise(
            image, series.pixel_mm, sigma_hu=level, own_sigma_hu=there, kernel=kernel, seed=seed
        )[0]

    image = torch.where(series.padding[index], -1000.0, series.array[index])
    noise = torch.stack([inserted(index, 9000 + k) for k in range(extra + 1)])
    body = image > -300.0
    rows, columns = torch.nonzero(body, as_tuple=True)
    row, column = int(rows.median()), int(columns.median())
    row, column = (min(max(part, HALF), image.shape[0] - HALF) for part in (row, column))
    window = (slice(row - HALF, row + HALF), slice(column - HALF, column + HALF))
    beside = None
    if step:
        planes = [
            torch.where(series.padding[at], -1000.0, series.array[at])[window] + inserted(at, 9900 + at)[window]
            for at in (index - step, index + step)
        ]
        spacing = (series.positions_mm[index + step] - series.positions_mm[index - step]) / 2.0
        beside = Adjacent(planes=torch.stack(planes)[None], spacing_mm=spacing.float()[None])
    own = torch.stack([inserted(index, 9700 + k, own_hu, 0.0)[window] for k in range(OWN)])
    clean, noise = image[window], noise[(slice(None), *window)]
    return Case(
        group=group,
        clean=clean,
        noisy=clean + noise[0],
        noise=noise[1:],
        sigma_hu=sigma_hu,
        own_hu=own_hu,
        own=own,
        adjacent=beside,
    )


def real(folder: Path) -> Iterator[Case]:
    """The real head at 12 HU and the real body at 20 HU, as far as ``folder`` holds them."""
    head, body = find(folder, "ct-head-ge"), find(folder, "ct-body-siemens")
    if head is not None:
        series = read_series(head)
        for index in (6, 12, 18):
            yield noisier(series, "real head + 12 HU", index, 12.0, 3.5, KERNELS["std"])
    if body is not None:
        series = read_series(body)
        for index in (4, 14):
            yield noisier(series, "real body + 20 HU", index, 20.0, 8.0, KERNELS["std"])


def real_stacks(folder: Path) -> Iterator[Case]:
    """Real slices with neighbours: the body of `real`, every slice (2 mm) and every other; a plastic head at 1 mm."""
    body, head = find(folder, "ct-body-siemens"), find(folder, "std-brain-1mm-idose-ub")
    if body is not None:
        series = read_series(body)
        for step, index in ((1, 4), (1, 14), (2, 4), (2, 14)):
            group = f"real body + 20 HU, {2 * step} mm"
            yield noisier(series, group, index, 20.0, 8.0, KERNELS["std"], step=step)
    if head is not None:
        series = read_series(head)
        for index in (10, 25, 40):
            yield noisier(series, "real phantom + 12 HU, 1 mm", index, 12.0, 3.0, KERNELS["std"], step=1)


def low_contrast(folder: Path) -> Mapping[str, tuple[Tensor, Tensor]] | None:
    """Low-contrast test images per dose: (signal present, signal absent), each (repeat, row, column) [HU]."""
    path = find(folder, "lcd")
    if path is None:
        return None
    found: dict[str, dict[str, list[Tensor]]] = {}
    for name, content in _members(path):
        parts = Path(name).parts
        if name.endswith(".raw") and "fbp" in parts and "dose" in name:
            pixels = np.frombuffer(content, "<u2").reshape(256, 256).astype(np.float32) - LCD_WATER
            found.setdefault(parts[-3], {}).setdefault(parts[-2], []).append(torch.from_numpy(pixels))
    return {
        dose: (torch.stack(kept["signal_present"]), torch.stack(kept["signal_absent"]))
        for dose, kept in sorted(found.items())
    }


def low_contrast_masks(folder: Path) -> dict[int, Tensor]:
    """Mask (row, column) of each insert by its contrast [HU]."""
    path = find(folder, "lcd")
    if path is None:
        return {}
    truth = next(c for n, c in _members(path) if n.endswith("ground_truth.raw") and "fbp" in Path(n).parts)
    pixels = np.frombuffer(truth, "<u2").reshape(256, 256)
    quadrant = {14: (slice(60, 128), slice(128, 196)), 7: (slice(60, 128), slice(60, 128))}
    quadrant |= {5: (slice(128, 196), slice(60, 128)), 3: (slice(128, 196), slice(128, 196))}
    masks = {}
    for contrast, (low, high) in LCD_INSERTS.items():
        mask = np.zeros_like(pixels, dtype=bool)
        mask[quadrant[contrast]] = ((pixels >= low) & (pixels <= high))[quadrant[contrast]]
        masks[contrast] = torch.from_numpy(mask)
    return masks
