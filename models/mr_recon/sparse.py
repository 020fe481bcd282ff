"""Compressed sensing: least squares with a sparsity penalty, by FISTA (Beck, SIAM J Imaging Sci 2009, 2:183).

All minimise ``1/2 ||A x - y||² + weight * penalty(x)``. Where the data are whitened, noise has sd 1 in every sample and
at most sd 1 in the pixels and orthonormal coefficients of ``adjoint(y)``: then the weight is a threshold in units of
the noise. Where they are not, multiply it by the noise sd of a sample.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.mr_recon import wavelet
from models.mr_recon.linops import Operator

#: Default weights, in units of the noise sd of a sample. Chosen on the fully sampled 16-channel phantom (uniform R=4,
#: 16 lines) and on cine frames of one training patient (8 simulated coils with R=4 and 8, one coil with R=4) as the
#: compromise of 0.06, 0.12, 0.25, 0.35 and 0.5: the phantom's best is 0.5, cine's 0.06 to 0.25, and BART's `pics` has
#: the same optima. Thresholds of 1.5 to 3 sd, right for denoising, lose 2 to 3 dB on cine: what they take from samples
#: that were not measured nothing brings back.
WAVELET_WEIGHT, TV_WEIGHT = 0.2, 0.15
#: Of `temporal_tv`, on 10 frames of the same patient, 4 coils, lines of their own: 0.3 is best with R=8 (28.2 dB;
#: 24.1 for wavelets frame by frame), 1.0 with R=4 (32.4 dB; 30.0), 2.0 loses 1.6 dB there.
TEMPORAL_WEIGHT = 0.5
#: Steps of the power method: the largest eigenvalue is known to a percent then.
POWER_STEPS = 12
#: The power method comes from below: so much more makes the step safe.
MARGIN = 1.05
#: Inner steps of the total-variation denoiser, warm-started.
INNER = 8


def largest_eigenvalue(operator: Operator, like: Tensor) -> float:
    """Of ``operator.normal``, by the power method, for images like ``like`` (..., row, column)."""
    made = torch.Generator().manual_seed(0)
    x = torch.randn(like.shape, dtype=like.dtype, generator=made).to(like.device)
    value = 0.0
    for _ in range(POWER_STEPS):
        x = operator.normal(x / torch.linalg.vector_norm(x).clamp(min=torch.finfo(torch.float32).tiny))
        value = float(torch.linalg.vector_norm(x))
    return MARGIN * value


def fista(
    operator: Operator,
    y: Tensor,
    prox: Callable[[Tensor, float, int], Tensor],
    iterations: int,
    start: Tensor | None = None,
) -> Tensor:
    """Minimise with ``prox(x, step, iteration)``, the proximal map of the penalty times ``step``."""
    right = operator.adjoint(y)
    x = right if start is None else start
    step = 1 / max(largest_eigenvalue(operator, right), torch.finfo(torch.float32).tiny)
    ahead, momentum = x, 1.0
    for iteration in range(iterations):
        new = prox(ahead - step * (operator.normal(ahead) - right), step, iteration)
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = new + (momentum - 1) / following * (new - x)
        x, momentum = new, following
    return x


def wavelet_l1(
    operator: Operator,
    y: Tensor,
    weight: float,
    iterations: int = 60,
    start: Tensor | None = None,
    *,
    name: str = "haar",
) -> Tensor:
    """L1 norm of wavelet details, the transform shifted at random in every iteration (the same in every run).

    Returns
    -------
    complex64 (..., row, column).
    """
    made = torch.Generator().manual_seed(0)
    shifts = torch.randint(0, 16, (iterations, 2), generator=made).tolist()

    def prox(x: Tensor, step: float, iteration: int) -> Tensor:
        return wavelet.shrink(x, weight * step, name, tuple(shifts[iteration]))

    return fista(operator, y, prox, iterations, start)


def gradient(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Differences to the next sample along every one of ``dims``, in front; the last has none."""
    return torch.stack([torch.diff(x, dim=dim, append=x.narrow(dim, x.shape[dim] - 1, 1)) for dim in dims])


def divergence(p: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Minus the adjoint of `gradient`."""
    total = torch.zeros_like(p[0])
    for part, dim in zip(p, dims, strict=True):
        inner = part.narrow(dim, 0, part.shape[dim] - 1)
        none = torch.zeros_like(part.narrow(dim, 0, 1))
        total += torch.diff(inner, dim=dim, prepend=none, append=none)
    return total


class _Variation:
    """Total-variation denoiser of complex images: dual projected gradient (Chambolle, J Math Imaging Vis 2004, 20:89).

    It goes on where it left off the last time: the images of successive iterations differ little.
    """

    def __init__(self, dims: tuple[int, ...]) -> None:
        self.dims = dims
        self.dual: Tensor | None = None

    def __call__(self, x: Tensor, weight: float) -> Tensor:
        if weight <= 0:
            return x
        if self.dual is None:
            self.dual = torch.zeros((len(self.dims), *x.shape), dtype=x.dtype, device=x.device)
        step = 1 / (4 * len(self.dims) * weight)  # 4 bounds the norm of one dimension's differences
        for _ in range(INNER):
            p = self.dual + step * gradient(x + weight * divergence(self.dual, self.dims), self.dims)
            size = (p.real**2 + p.imag**2).sum(0, keepdim=True).sqrt()
            self.dual = p / size.clamp(min=1)
        return x + weight * divergence(self.dual, self.dims)


def total_variation(
    operator: Operator, y: Tensor, weight: float, iterations: int = 60, start: Tensor | None = None
) -> Tensor:
    """Isotropic total variation over rows and columns (Rudin, Physica D 1992, 60:259).

    Returns
    -------
    complex64 (..., row, column).
    """
    denoise = _Variation((-2, -1))
    return fista(operator, y, lambda x, step, _: denoise(x, weight * step), iterations, start)


def temporal_tv(
    operator: Operator, y: Tensor, weight: float, iterations: int = 60, start: Tensor | None = None
) -> Tensor:
    """Total variation over the frames of (frame, row, column), every pixel on its own.

    Returns
    -------
    complex64 (frame, row, column).
    """
    denoise = _Variation((-3,))
    return fista(operator, y, lambda x, step, _: denoise(x, weight * step), iterations, start)
