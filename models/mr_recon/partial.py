"""Partial Fourier and asymmetric echo: the missing side of k-space from the smooth phase of the centre.

Projection onto convex sets (Haacke, J Magn Reson 1991, 92:126): in turn the image is given the phase of its
low-resolution copy, and k-space its measured samples. No homodyne weighting: the measured samples are never altered.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from models.mr_recon.coils import hann
from models.mr_recon.fft import fft2c, ifft2c

#: Part of k-space that there is on both sides of the centre at least: 9/16 acquired is 1/16 beyond it.
CORE: Final = 1 / 16


def core(sampled: Tensor) -> tuple[int, int]:
    """How far the sampled region reaches from the centre to both sides alike along ky and kx, centre included."""
    reaches = []
    for dim in (-1, -2):
        line = sampled.to(torch.bool).any(dim)
        line = line.reshape(-1, line.shape[-1]).any(0)
        middle = line.shape[0] // 2
        missing = (~line).nonzero().flatten() - middle
        reach = int(missing.abs().min()) if missing.numel() else middle + 1
        reaches.append(reach)
    return reaches[0], reaches[1]


def smooth_phase(kspace: Tensor, sampled: Tensor) -> Tensor:
    """Unit complex (..., row, column): the phase of the image of the symmetric core, under a Hann window."""
    rows, columns = kspace.shape[-2], kspace.shape[-1]
    window = torch.zeros(rows, columns, device=kspace.device)
    reach = core(sampled)
    if min(reach) == 0:
        raise ValueError("the centre of k-space was not sampled: partial Fourier needs it")
    low = [max(0, size // 2 - width + 1) for size, width in zip((rows, columns), reach, strict=True)]
    high = [min(size, size // 2 + width) for size, width in zip((rows, columns), reach, strict=True)]
    block = hann((2 * reach[0] - 1, 2 * reach[1] - 1), kspace.device)
    first = [start - (size // 2 - width + 1) for start, size, width in zip(low, (rows, columns), reach, strict=True)]
    height, width = high[0] - low[0], high[1] - low[1]
    window[low[0] : high[0], low[1] : high[1]] = block[first[0] : first[0] + height, first[1] : first[1] + width]
    return torch.exp(1j * ifft2c(kspace * window).angle())


def pocs(kspace: Tensor, sampled: Tensor, iterations: int = 10) -> Tensor:
    """Image of a k-space with one side missing.

    Parameters
    ----------
    kspace
        complex64 (..., ky, kx), zero where not sampled.
    sampled
        (ky, kx) or broadcastable: which samples there are. Their gaps must lie at the edges: lines that parallel
        imaging left out are filled before.
    iterations
        10 suffice: the change then is below the noise.

    Returns
    -------
    complex64 (..., row, column).
    """
    sampled = sampled.to(torch.bool)
    phase = smooth_phase(kspace, sampled)
    filled = kspace
    for _ in range(iterations):
        image = ifft2c(filled)
        # Its part along the phase, which may be negative: taking the magnitude would bias the noise floor.
        image = (image * phase.conj()).real * phase
        filled = torch.where(sampled, kspace, fft2c(image))
    return ifft2c(filled)


def filled(images: Tensor, region: Tensor) -> Tensor:
    """Images (..., row, column) of the measured ``region`` (ky, kx) with the rest filled in.

    Raises
    ------
    ValueError
        Too little was measured beyond the centre.
    """
    if any(reach - 1 < CORE * size for reach, size in zip(core(region), region.shape, strict=True)):
        raise ValueError("too little beyond the centre")
    return pocs(fft2c(images), region)
