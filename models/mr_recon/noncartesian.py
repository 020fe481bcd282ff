"""Radial and spiral images: samples on their trajectory, and trajectories that only a rule describes."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from models.mr_recon import coils, delays
from models.mr_recon.fft import fft2c, ifft2c
from models.mr_recon.nufft import NonUniform, density
from models.mr_recon.solvers import conjugate_gradient

#: 180 degrees over the golden ratio (Winkelmann, IEEE Trans Med Imaging 2007, 26:68) [degrees].
GOLDEN_ANGLE: Final = 111.246117975
ITERATIONS: Final = 12
DAMPING: Final = 2e-3
#: Samples of the centre of k-space along each axis that make coil maps.
MAP_SIZE: Final = 24
#: A trajectory may leave the matrix by this part of it: gradients overshoot.
BEYOND: Final = 0.02


class TrajectoryError(ValueError):
    """A trajectory in units that cannot be told."""


def in_cycles(trajectory: Tensor, encoded: tuple[int, int], shape: tuple[int, int]) -> Tensor:
    """(sample, 2): (ky, kx) in cycles per field of view of ``shape``, from (kx, ky, ...) as the readouts have it.

    MRD does not fix the unit. Within +-0.5 it is cycles per pixel, within half the matrix cycles per encoded field of
    view; anything else is refused.

    Parameters
    ----------
    encoded, shape
        (row, column) of the encoded matrix and of the image.

    Raises
    ------
    TrajectoryError
        It reaches further than the matrix, is not finite, or has fewer than two axes.
    """
    if trajectory.ndim != 2 or trajectory.shape[1] < 2 or not bool(torch.isfinite(trajectory).all()):
        raise TrajectoryError(f"the trajectory of shape {tuple(trajectory.shape)} is not (sample, 2) of finite numbers")
    flat = trajectory[:, :2].flip(-1).float()
    reach = float(flat.abs().max())
    size = torch.tensor(shape, dtype=torch.float32)
    if reach <= 0.5 * (1 + BEYOND):
        return flat * size
    whole = torch.tensor(encoded, dtype=torch.float32)
    if reach <= max(encoded) / 2 * (1 + BEYOND):
        return flat / whole * size
    raise TrajectoryError(f"the trajectory reaches {reach:g}, beyond half of the matrix {max(encoded)}")


def spoke(angle: float, samples: int, center: int) -> Tensor:
    """float32 (sample, 2), (kx, ky) in cycles per pixel of the readout: a line through the centre.

    Parameters
    ----------
    angle
        [degrees] from the readout direction.
    """
    radius = (torch.arange(samples, dtype=torch.float32) - center) / samples
    turn = torch.deg2rad(torch.tensor(angle))
    return torch.stack((radius * torch.cos(turn), radius * torch.sin(turn)), -1)


@torch.inference_mode()
def undelayed(samples: Tensor, trajectory: Tensor, spokes: int, shape: tuple[int, int]) -> Tensor:
    """The trajectory of ``spokes`` equally long spokes as the gradients' delays made it; see `delays`."""
    # Pixels are square, fields of view may not be: a delay is the same length of k-space in all directions.
    unit = torch.tensor(shape, dtype=trajectory.dtype, device=trajectory.device) / max(shape)
    whole = samples.reshape(len(samples), spokes, -1).movedim(0, 1)
    return delays.corrected(whole, (trajectory / unit).reshape(spokes, -1, 2)).flatten(0, 1) * unit


@torch.inference_mode()
def reconstruct(samples: Tensor, trajectory: Tensor, shape: tuple[int, int]) -> Tensor:
    """Image by SENSE along the trajectory, with maps from the centre of k-space.

    Parameters
    ----------
    samples
        complex64 (coil, sample), whitened.
    trajectory
        Of `in_cycles`.

    Returns
    -------
    complex64 (row, column).
    """
    weights = density(trajectory, shape)
    ones = torch.ones(1, *shape, dtype=samples.dtype, device=samples.device)
    gridded = NonUniform(trajectory, shape, ones)
    images = torch.stack([gridded.adjoint((weights * part)[None]) for part in samples])
    size = (min(MAP_SIZE, shape[0]), min(MAP_SIZE, shape[1]))
    maps = coils.low_resolution(coils.centre(fft2c(images), size), shape)
    root = weights.sqrt()
    operator = NonUniform(trajectory, shape, maps, root)
    right = operator.adjoint(root * samples)
    largest = float(torch.linalg.vector_norm(operator.normal(right)) / torch.linalg.vector_norm(right).clamp(min=1e-30))
    image = conjugate_gradient(operator.normal, right, iterations=ITERATIONS, damping=DAMPING * largest)
    return _inside(image, trajectory, shape)


def _inside(image: Tensor, trajectory: Tensor, shape: tuple[int, int]) -> Tensor:
    """The image without what lies beyond the disc of k-space that was measured."""
    reach = trajectory.abs().max(0).values
    ky, kx = (torch.arange(n, device=image.device) - n // 2 for n in shape)
    disc = (ky[:, None] / reach[0]) ** 2 + (kx[None, :] / reach[1]) ** 2 <= 1.0 + 1e-3
    return ifft2c(fft2c(image) * disc)
