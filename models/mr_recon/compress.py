"""Coil compression by principal components (Buehrer, Magn Reson Med 2007, 57:1131)."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

#: Virtual coils that compressed sensing and networks are given at most.
VIRTUAL: Final = 10


def matrix(acs: Tensor, keep: float = 0.99, most: int = VIRTUAL) -> Tensor:
    """Orthonormal rows that combine coils into virtual coils; white noise stays white.

    Parameters
    ----------
    acs
        complex64 (coil, ky, kx), whitened.
    keep
        Part of the energy that the virtual coils keep, unless ``most`` are too few for it.

    Returns
    -------
    complex64 (virtual, coil), the strongest first.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep is a part of the energy, above 0 and up to 1, not {keep}")
    flat = acs.reshape(acs.shape[0], -1)
    values, vectors = torch.linalg.eigh(flat @ flat.mH)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    energy = torch.cumsum(values, 0) / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    # Rounding may leave the full sum just below 1: then all coils are kept.
    count = int((energy < keep - 1e-6).sum()) + 1
    return vectors[:, : min(count, most, acs.shape[0])].mH.contiguous()


def count(coils: int, acs: Tensor | None) -> int:
    """How many coils are left of ``coils``: of more than `VIRTUAL` those that keep what ``acs`` (coil, ky, kx) sees."""
    return coils if coils <= VIRTUAL or acs is None or acs.ndim == 4 else len(matrix(acs))


def apply(matrix: Tensor, data: Tensor, dim: int = -3) -> Tensor:
    """``data`` with its coils along ``dim`` combined into the virtual coils of ``matrix``."""
    return torch.movedim(torch.tensordot(matrix, data, dims=([1], [dim])), 0, dim)
