"""Iterative solvers of the reconstruction."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def conjugate_gradient(
    normal: Callable[[Tensor], Tensor],
    right: Tensor,
    start: Tensor | None = None,
    *,
    iterations: int,
    damping: float | Tensor = 0.0,
    tolerance: float = 0.0,
) -> Tensor:
    """Solve ``(normal + damping) x = right``; differentiable, every leading axis of (..., row, column) on its own.

    Parameters
    ----------
    normal
        A Hermitian, positive semidefinite map of (..., row, column).
    tolerance
        Stop when the residual of every problem is this small a part of ``right``; 0: always all iterations.
    """

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a.conj() * b).real.sum((-2, -1), keepdim=True)

    x = torch.zeros_like(right) if start is None else start
    residual = right if start is None else right - normal(x) - damping * x
    direction, power = residual, dot(residual, residual)
    floor = torch.finfo(power.dtype).tiny
    whole = dot(right, right)
    goal = tolerance**2 * whole
    # Below this the residual is rounding, which may lie where ``normal`` is zero: a step along it would have no bound.
    exact = torch.finfo(power.dtype).eps ** 2 * whole
    for _ in range(iterations):
        image = normal(direction) + damping * direction
        step = torch.where(power > exact, power / dot(direction, image).clamp(min=floor), 0)
        x = x + step * direction
        residual = residual - step * image
        new = dot(residual, residual)
        if tolerance and bool((new <= goal).all()):
            break
        direction = residual + (new / power.clamp(min=floor)) * direction
        power = new
    return x
