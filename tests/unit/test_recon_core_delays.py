"""Gradient delays of radial measurements, put in and found again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.mr_recon import delays, nufft
from tests.mr_scenes import decibels, scene

SIZE = 48


def along(trajectory: Tensor) -> Tensor:
    """Unit direction (spoke, 2)."""
    step = trajectory[:, -1] - trajectory[:, 0]
    return step / torch.linalg.vector_norm(step, dim=-1, keepdim=True)


def spokes(count: int, golden: bool) -> Tensor:
    """float32 (spoke, sample, 2): (ky, kx) in cycles per field of view, twice oversampled."""
    angle = torch.arange(count) * (torch.deg2rad(torch.tensor(111.246)) if golden else torch.pi / count)
    radius = (torch.arange(2 * SIZE) - SIZE) / 2
    return torch.stack((torch.outer(angle.sin(), radius), torch.outer(angle.cos(), radius)), -1)


def measured(trajectory: Tensor, coils: int = 4, snr: float = 50.0) -> tuple[Tensor, Tensor]:
    """(spoke, coil, sample), and the object."""
    body = scene(SIZE, SIZE, coils=coils, snr=snr)
    y = nufft.NonUniform(trajectory.flatten(0, 1), (SIZE, SIZE), body.maps).forward(body.object)
    y = y + torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(3))
    return y.unflatten(-1, trajectory.shape[:2]).movedim(0, 1), body.object


@pytest.mark.parametrize("golden", [False, True])
@pytest.mark.parametrize("put", [((0.6, 0.0), (0.0, -0.4)), ((0.3, 0.15), (0.15, 0.5)), ((0.0, 0.0), (0.0, 0.0))])
def test_the_shift_that_was_put_in_is_found(put: tuple[tuple[float, float], ...], golden: bool) -> None:
    meant, wanted = spokes(31, golden), torch.tensor(put)
    found = delays.shift(measured(meant + (along(meant) @ wanted.mT)[:, None])[0], meant)
    assert torch.allclose(found, wanted, atol=0.05)


def test_the_corrected_trajectory_gives_a_better_image() -> None:
    meant = spokes(75, golden=True)
    true = meant + (along(meant) @ torch.tensor([[0.7, 0.0], [0.0, 0.7]]))[:, None]
    samples, body = measured(true)
    maps = scene(SIZE, SIZE, coils=4).maps
    found = {}
    for name, trajectory in (("meant", meant), ("corrected", delays.corrected(samples, meant)), ("true", true)):
        flat = trajectory.flatten(0, 1)
        weights = nufft.density(flat, (SIZE, SIZE))
        image = nufft.NonUniform(flat, (SIZE, SIZE), maps).adjoint(weights * samples.movedim(1, 0).flatten(1))
        found[name] = decibels(image, body, scaled=True)
    assert found["corrected"] > found["meant"] + 3
    assert found["corrected"] > found["true"] - 0.3


def test_too_few_spokes_are_left_as_they_are() -> None:
    meant = spokes(3, golden=False)
    assert torch.equal(delays.shift(measured(meant)[0], meant), torch.zeros(2, 2))
    parallel = meant[:1].expand(12, -1, -1)
    assert torch.equal(delays.corrected(measured(parallel)[0], parallel), parallel)


def test_crossings_of_noise_move_nothing() -> None:
    meant = spokes(31, golden=True)
    noise = torch.randn(31, 4, 2 * SIZE, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(delays.shift(noise, meant), torch.zeros(2, 2))
