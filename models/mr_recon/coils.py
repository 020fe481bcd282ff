"""Coil sensitivity maps from the fully sampled centre of k-space.

All methods give maps of unit root sum of squares where there is signal, with the phase of one virtual coil (the first
principal component of the calibration data) taken as zero: the combined image keeps the phase of the object.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from models.mr_recon.fft import ifft2c, ifftc
from models.mr_recon.linops import Sense
from models.mr_recon.solvers import conjugate_gradient

#: Up to so many calibration lines ESPIRiT collapses: 20.6 dB against 28.2 dB with low-resolution maps (8 coils, R=8,
#: 10 lines, the same L1-wavelet solver).
MOST_LOW_RESOLUTION = 12
#: From so many lines on the full kernel finds equations enough; in between it is 4 and its residual is compared.
LEAST_FULL_KERNEL = 16
FULL_KERNEL, SMALL_KERNEL = 6, 4
#: Calibration samples along each axis that are worth their time; BART's `ecalib` uses 24.
MOST_LINES, MOST_COLUMNS = 24, 32
#: Steps of the power method; BART's `ecalib` takes 30 of its orthogonal iteration.
POWER_STEPS = 30
WALSH_WINDOW = 7


@dataclass(frozen=True, slots=True, eq=False)
class Maps:
    """Coil maps, how they were made, and how far to trust them."""

    #: complex64 (coil, row, column).
    maps: Tensor
    #: ``low-resolution`` or ``espirit-4``, ``espirit-6``.
    method: str
    #: Part of the calibration energy that no image seen through the maps explains, above the noise floor; 0 to 1.
    leakage: float


def centre(data: Tensor, shape: tuple[int, int]) -> Tensor:
    """The block of ``shape`` around the centre (index N // 2) of the last two axes, padded with zeros where larger."""
    for dim, size in zip((-2, -1), shape, strict=True):
        have = data.shape[dim]
        if size < have:
            data = data.narrow(dim, have // 2 - size // 2, size)
        elif size > have:
            before = size // 2 - have // 2
            pad = [before, size - have - before]
            data = functional.pad(data, pad if dim == -1 else [0, 0, *pad])
    return data


def hann(shape: tuple[int, int], device: torch.device) -> Tensor:
    """Real (row, column): a Hann window with its top at index N // 2 that is nowhere zero."""
    sides = []
    for size in shape:
        offset = torch.arange(size, device=device) - size // 2
        sides.append(torch.cos(torch.pi * offset / (2 * (size // 2) + 2)) ** 2)
    return sides[0][:, None] * sides[1][None, :]


def principal(data: Tensor) -> Tensor:
    """Complex (coil,): the first principal component of (coil, ...)."""
    flat = data.reshape(data.shape[0], -1)
    _, vectors = torch.linalg.eigh(flat @ flat.mH)
    return vectors[:, -1]


def _referenced(maps: Tensor, reference: Tensor) -> Tensor:
    """``maps`` with the phase of the virtual coil ``reference`` taken out."""
    virtual = torch.einsum("c,cyx->yx", reference.conj(), maps)
    return maps * torch.exp(-1j * virtual.angle())


def _unit(maps: Tensor) -> Tensor:
    power = (maps.abs() ** 2).sum(0, keepdim=True)
    return torch.where(power > 0, maps * torch.rsqrt(power.clamp(min=torch.finfo(power.dtype).tiny)), 0)


def low_resolution(acs: Tensor, shape: tuple[int, int]) -> Tensor:
    """Maps as ratios of Hann-windowed low-resolution images (McKenzie, Magn Reson Med 2002, 47:529).

    Parameters
    ----------
    acs
        complex64 (coil, ky, kx), the fully sampled centre block.

    Returns
    -------
    complex64 (coil, row, column) of ``shape``.
    """
    lines = acs.shape[-2]
    # As wide along the readout as MOST_COLUMNS: the finer detail would be anatomy and noise, not sensitivity.
    block = centre(acs, (lines, min(acs.shape[-1], max(lines, MOST_LINES))))
    windowed = block * hann((block.shape[-2], block.shape[-1]), block.device)
    images = ifft2c(centre(windowed, shape))
    return _referenced(_unit(images), principal(acs))


def espirit(acs: Tensor, shape: tuple[int, int], kernel: int = 6, threshold: float = 0.02, crop: float = 0.9) -> Tensor:
    """ESPIRiT maps: eigenvectors of the calibration's own reproducing kernel (Uecker, Magn Reson Med 2014, 71:990).

    Parameters
    ----------
    acs
        complex64 (coil, ky, kx), the fully sampled centre block.
    kernel
        Size of the k-space kernel along both axes.
    threshold
        Singular values below this part of the largest are noise.
    crop
        Maps are zero where the eigenvalue is below this: there is no signal.

    Returns
    -------
    complex64 (coil, row, column) of ``shape``.
    """
    pixels = _pixels(acs, shape, kernel, threshold)
    maps, values = _leading(pixels, principal(acs))
    return torch.where(values > crop, _referenced(maps, principal(acs)), 0)


def espirit_pair(
    acs: Tensor, shape: tuple[int, int], kernel: int = 6, threshold: float = 0.02, crop: float = 0.8
) -> Tensor:
    """Two sets of ESPIRiT maps, for a field of view that is smaller than the body: two places share a pixel there.

    Parameters are those of `espirit`; the second set is zero wherever one place is all that a pixel shows.

    Returns
    -------
    complex64 (set, coil, row, column) of ``shape``.
    """
    pixels, start = _pixels(acs, shape, kernel, threshold), principal(acs)
    first, value = _leading(pixels, start)
    # without the first, the second eigenvector leads
    left = pixels - value * torch.einsum("cyx,dyx->cdyx", first, first.conj())
    second, lesser = _leading(left, start)
    first, second = _referenced(first, start), _referenced(second, start)
    return torch.stack((torch.where(value > crop, first, 0), torch.where(lesser > crop, second, 0)))


def _pixels(acs: Tensor, shape: tuple[int, int], kernel: int, threshold: float) -> Tensor:
    """(coil, coil, row, column): the matrix of every pixel whose eigenvalues are 1 where there is signal."""
    if min(acs.shape[-2:]) <= kernel:
        raise ValueError(f"ESPIRiT with kernel {kernel} needs more calibration than {tuple(acs.shape[-2:])}")
    acs = centre(acs, (min(acs.shape[-2], MOST_LINES), min(acs.shape[-1], MOST_COLUMNS)))
    correlation = _reproducing(acs, kernel, threshold)  # (coil, coil, 2 kernel - 1, 2 kernel - 1)
    # Not orthonormal: the kernel's sum over its samples is the pixel's matrix itself.
    return ifftc(centre(correlation, shape), (-2, -1)) * (shape[0] * shape[1]) ** 0.5


def _reproducing(acs: Tensor, kernel: int, threshold: float) -> Tensor:
    """The convolution kernel between coils whose eigenvalue is 1 where there is signal (Uecker 2014, eq. 16-21)."""
    coils = acs.shape[0]
    patches = acs.unfold(-2, kernel, 1).unfold(-2, kernel, 1)  # (coil, ky, kx, row, column)
    rows = patches.permute(1, 2, 0, 3, 4).reshape(-1, coils * kernel**2)
    values, vectors = torch.linalg.eigh(rows.mH @ rows)
    signal = vectors[:, values > threshold**2 * values[-1]]
    # Rows are k-space itself, so their span is that of the conjugate eigenvectors.
    projector = (signal.conj() @ signal.mT).reshape(coils, kernel, kernel, coils, kernel, kernel)
    correlation = acs.new_zeros(coils, coils, 2 * kernel - 1, 2 * kernel - 1)
    for row in range(kernel):
        for column in range(kernel):
            part = projector[:, row, column].permute(0, 1, 2, 3)  # (coil, coil, row, column)
            top, left = kernel - 1 - row, kernel - 1 - column
            correlation[:, :, top : top + kernel, left : left + kernel] += part
    return correlation.flip(-2, -1) / kernel**2


def _leading(matrices: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Leading eigenvector (coil, row, column) and eigenvalue (row, column) of (coil, coil, row, column), Hermitian."""
    # Equal parts of every coil besides the start, which may be orthogonal to the answer somewhere.
    vector = (start + start.abs().mean()).reshape(-1, 1, 1).expand(-1, *matrices.shape[-2:])
    value = matrices.real.new_zeros(matrices.shape[-2:])
    for _ in range(POWER_STEPS):
        vector = torch.einsum("cdyx,dyx->cyx", matrices, vector)
        value = torch.linalg.vector_norm(vector, dim=0)
        vector = vector / value.clamp(min=torch.finfo(value.dtype).tiny)
    return vector, value


def walsh(images: Tensor) -> Tensor:
    """Maps as leading eigenvectors of the local coil covariance (Walsh, Magn Reson Med 2000, 43:682).

    Parameters
    ----------
    images
        complex64 (coil, row, column), fully sampled and whitened.
    """
    products = images[:, None] * images[None].conj()
    coils, shape = images.shape[0], images.shape[-2:]
    parts = torch.view_as_real(products).permute(0, 1, 4, 2, 3).reshape(-1, 1, *shape)
    local = functional.avg_pool2d(parts, WALSH_WINDOW, 1, WALSH_WINDOW // 2)
    local = torch.view_as_complex(local.reshape(coils, coils, 2, *shape).permute(0, 1, 3, 4, 2).contiguous())
    reference = principal(images)
    maps, value = _leading(local, reference)
    return torch.where(value > 0, _referenced(maps, reference), 0)


def noise_power(acs: Tensor, kernel: int = 3) -> float:
    """Mean noise power of one sample, from the calibration's weakest directions: they hold noise alone."""
    patches = acs.unfold(-2, kernel, 1).unfold(-2, kernel, 1).permute(1, 2, 0, 3, 4)
    rows = patches.reshape(-1, acs.shape[0] * kernel**2)
    values = torch.linalg.eigvalsh(rows.mH @ rows)
    return float(values[: max(1, len(values) // 4)].mean().clamp(min=0)) / rows.shape[0]


def leakage(maps: Tensor, acs: Tensor, iterations: int = 12) -> float:
    """Part of the calibration energy above its noise that no image seen through the maps explains.

    Solved on every nth pixel, which keeps the field of view and makes k-space as small as the calibration allows.
    """
    stride = max(1, min(size // (2 * width) for size, width in zip(maps.shape[-2:], acs.shape[-2:], strict=True)))
    for dim in (-2, -1):
        size = maps.shape[dim]
        index = torch.arange(size // 2 % stride, size, stride, device=maps.device)
        maps = maps.index_select(dim, index)
        middle, count = size // 2 // stride, len(index)
        if middle != count // 2:  # one more pixel before the centre than index N // 2 has: it is empty field of view
            maps = maps.narrow(dim, middle - count // 2, count - (middle - count // 2))
    shape = (maps.shape[-2], maps.shape[-1])
    mask = centre(torch.ones(1, *acs.shape[-2:], device=acs.device), shape)
    operator, y = Sense(maps, mask), centre(acs, shape)
    image = conjugate_gradient(operator.normal, operator.adjoint(y), iterations=iterations)
    noise = noise_power(acs) * acs.numel()
    left = float(torch.linalg.vector_norm(operator.forward(image) - mask * y)) ** 2
    whole = float(torch.linalg.vector_norm(acs)) ** 2
    return min(1.0, max(0.0, left - noise) / max(whole - noise, torch.finfo(torch.float32).tiny))


def choose(acs: Tensor, shape: tuple[int, int]) -> Maps:
    """The maps that the width of the calibration allows.

    Parameters
    ----------
    acs
        complex64 (coil, ky, kx), the fully sampled centre block.
    """
    width = min(acs.shape[-2:])
    low = low_resolution(acs, shape)
    simple = Maps(low, "low-resolution", leakage(low, acs))
    if width <= MOST_LOW_RESOLUTION or acs.shape[0] == 1:
        return simple
    kernel = FULL_KERNEL if width >= LEAST_FULL_KERNEL else SMALL_KERNEL
    maps = espirit(acs, shape, kernel)
    found = Maps(maps, f"espirit-{kernel}", leakage(maps, acs))
    return found if kernel == FULL_KERNEL or found.leakage <= simple.leakage else simple
