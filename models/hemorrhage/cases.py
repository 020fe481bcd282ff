"""Evaluation data: held-out synthetic heads, real CT series from a folder, and bleeds painted into a real head.

Real data is for evaluation only. Nothing here is read by training.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.hemorrhage import simulate
from models.hemorrhage.scene import UNCLEAR, make_base

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]
Labels = NDArray[np.uint8]

#: What replaces padding before anything looks at it [HU].
AIR_HU: Final = -1000.0
#: ImageOrientationPatient of simulated scans.
AXIAL: Final = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """One series with geometry; planes ordered so that plane 0 of a supine patient is nearest the head."""

    name: str
    #: (slice, row, column) [HU], padding replaced by air.
    hu: Array
    #: Distance between rows, between columns [mm].
    pixel_spacing: tuple[float, float]
    #: ImagePositionPatient of each plane: float64 (slice, 3), LPS [mm].
    positions: NDArray[np.float64]
    #: ImageOrientationPatient: float64 (6,).
    orientation: NDArray[np.float64]
    #: What is known to be there, 0 none, 1..5 as `models.hemorrhage.CLASSES`; None: not labelled.
    truth: Labels | None = None
    #: True where nobody can say (partial volume, too faint): not counted for or against. Shape of ``hu``.
    ignore: Mask | None = None
    #: Which set the study belongs to.
    group: str = ""
    #: Known midline shift [mm]; None: not known.
    midline_shift_mm: float | None = None

    @property
    def steps_mm(self) -> NDArray[np.float64]:
        """Thickness that each plane stands for, from distances along the slice normal: float64 (slice,) [mm]."""
        return slice_weights(self.positions, self.orientation)

    @property
    def voxel_ml(self) -> NDArray[np.float64]:
        """Volume of a voxel of each plane: float64 (slice,) [mL]."""
        return self.steps_mm * self.pixel_spacing[0] * self.pixel_spacing[1] / 1000.0

    def volume_ml(self, mask: Mask) -> float:
        """Volume of ``mask`` (slice, row, column) [mL]."""
        return float((mask.sum(axis=(1, 2)) * self.voxel_ml).sum())


def slice_weights(positions: NDArray[np.float64], orientation: NDArray[np.float64]) -> NDArray[np.float64]:
    """Half the distance to either neighbour along the normal; the outermost planes count their only step twice [mm]."""
    normal = np.cross(orientation[:3], orientation[3:])
    along = (positions - positions[0]) @ normal
    if len(along) < 2:
        raise ValueError("one plane has no distance to a neighbour")
    steps = np.abs(np.diff(along))
    return 0.5 * (np.concatenate([steps[:1], steps]) + np.concatenate([steps, steps[-1:]]))


def members(path: Path) -> Iterator[bytes]:
    """Contents of the files of a folder or .tar.xz."""
    if path.is_dir():
        for file in sorted(part for part in path.rglob("*") if part.is_file()):
            yield file.read_bytes()
        return
    with tarfile.open(path, "r:xz") as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isfile() else None
            if content is not None:
                yield content.read()


def find(folder: Path, name: str) -> Path | None:
    """The series ``name`` below ``folder``: an archive or a folder."""
    found = sorted(folder.glob(f"**/{name}.tar.xz")) or sorted(
        part for part in folder.glob(f"**/{name}") if part.is_dir()
    )
    return found[0] if found else None


def read_study(path: Path, name: str, group: str = "") -> Study:
    """The CT series of a folder or .tar.xz of DICOM files."""
    import pydicom

    planes: list[tuple[float, Array, NDArray[np.float64]]] = []
    spacing, orientation = (1.0, 1.0), np.zeros(6)
    for content in members(path):
        header = pydicom.dcmread(io.BytesIO(content), force=True)
        if "PixelData" not in header:
            continue
        stored = header.pixel_array
        values = stored.astype(np.float32) * float(header.RescaleSlope) + float(header.RescaleIntercept)
        values[stored == header.get("PixelPaddingValue", 1 << 20)] = AIR_HU
        orientation = np.array(header.ImageOrientationPatient, float)
        position = np.array(header.ImagePositionPatient, float)
        normal = np.cross(orientation[:3], orientation[3:])
        planes.append((-float(position @ normal), np.maximum(values, AIR_HU), position))
        spacing = (float(header.PixelSpacing[0]), float(header.PixelSpacing[1]))
    planes.sort(key=lambda plane: plane[0])
    return Study(
        name=name,
        group=group or name,
        hu=np.stack([plane[1] for plane in planes]),
        pixel_spacing=spacing,
        positions=np.stack([plane[2] for plane in planes]),
        orientation=orientation,
    )


def real(folder: Path, name: str, group: str = "") -> Study | None:
    """The real series ``name`` below ``folder``; None where it is not there."""
    path = find(folder, name)
    return None if path is None else read_study(path, name, group)


def synthetic(count: int, cache: Path) -> Iterator[Study]:
    """``count`` scans of held-out simulated heads, each head once without and once with blood; kept in ``cache``."""
    for index in range(count):
        seed, variant = simulate.TEST_SEED + index // 2, index % 2
        file = cache / f"v{simulate.VERSION}" / f"{seed}-{variant}.npz"
        if not file.exists():
            scan = simulate.held_out_scan(seed, variant, make_base(seed))
            file.parent.mkdir(parents=True, exist_ok=True)
            kept = {"hu": np.round(scan.hu).astype(np.int16), "labels": scan.labels, "cavity": scan.cavity}
            kept |= {"positions": scan.positions, "spacing": np.array(scan.spacing)}
            part = file.with_suffix(".new.npz")
            np.savez_compressed(part, shift=scan.midline_shift_mm, **kept)
            part.replace(file)
        with np.load(file) as found:
            labels = found["labels"]
            yield Study(
                name=f"head {seed}, {'bleeding' if variant else 'negative'}",
                group="synthetic",
                hu=found["hu"].astype(np.float32),
                pixel_spacing=(float(found["spacing"][0]), float(found["spacing"][1])),
                positions=found["positions"],
                orientation=np.array(AXIAL),
                truth=np.where(labels == UNCLEAR, 0, labels).astype(np.uint8),
                ignore=labels == UNCLEAR,
                midline_shift_mm=float(found["shift"]),
            )
