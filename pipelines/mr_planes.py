"""From complex images on the measured grid to planes: the header's matrix, magnitude, place in the patient, time."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dicomnode import pipeline as dn
from dicomnode.kspace import Encoding
from models.mr_recon import geometry
from pipelines import mr_images, mr_readouts
from pipelines.mr_images import Part, Unit


def magnitudes(part: Part, images: Tensor, unit: Unit, window: str) -> Tensor:
    """float32 (frame, partition, row, column) on the header's grid.

    Parameters
    ----------
    images
        complex64 (frame, channel, row, column), or (column, channel, row, partition) of a volume's columns.
    """
    encoding, line = unit.encoding, unit.profiles.line
    fov, matrix = encoding.recon_fov, encoding.recon_matrix
    if part.columns:
        images = geometry.resample(images, 2, encoding.encoded_fov[1], matrix[1], fov[1])
        images = geometry.resample(images, 3, encoding.encoded_fov[2], matrix[2], fov[2])
        volume = images.permute(1, 3, 2, 0)  # (channel, partition, row, column)
        whole: Tensor = torch.linalg.vector_norm(mr_images.filtered(volume, window), dim=0)
        return whole[None]
    images = geometry.resample(images, 2, encoding.encoded_fov[1], matrix[1], fov[1])
    images = geometry.resample(images, 3, line.kept * encoding.encoded_fov[0] / line.columns, matrix[0], fov[0])
    flat: Tensor = torch.linalg.vector_norm(mr_images.filtered(images, window), dim=1)
    return flat[:, None]


def place(encoding: Encoding, readout: dn.Readout, axes: NDArray[np.float64], partition: int) -> geometry.Plane:
    """Where the image of ``readout`` lies, ``partition`` being one of the header's reconstructed volume."""
    deep = mr_readouts.volume(encoding)
    matrix = tuple(float(n) for n in encoding.recon_matrix)
    return geometry.plane(readout.position, axes, matrix, encoding.recon_fov, partition if deep else None)  # type: ignore[arg-type]


def thickness(encoding: Encoding) -> float:
    """SliceThickness [mm]."""
    return encoding.recon_fov[2] / (encoding.recon_matrix[2] if mr_readouts.volume(encoding) else 1)


def trigger_times(unit: Unit, tick_ms: float) -> dict[mr_images.Frame, float | None]:
    """Time after the R wave of every frame [ms], of its line nearest to the centre of k-space; None without stamps."""
    stamps = {frame: image.central.physiology[0] for frame, image in unit.images.items()}
    if not any(stamps.values()):
        return dict.fromkeys(stamps)
    return {frame: stamp * tick_ms for frame, stamp in stamps.items()}
