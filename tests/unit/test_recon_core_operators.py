"""Every linear operator of the reconstruction core against its adjoint, and against transforms known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.mr_recon import coils, compress, nufft, sparse, wavelet
from models.mr_recon.fft import fft2c, ifft2c
from models.mr_recon.linops import Operator, Sense, SoftSense
from tests.mrd_factory import Ellipse

SIZES = st.tuples(st.integers(12, 41), st.integers(12, 41))
few = settings(max_examples=10, deadline=None)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def assert_adjoint(operator: Operator, x: Tensor, y: Tensor) -> None:
    """<Ax, y> is <x, A^H y>, and the normal operator is the one after the other."""
    left, right = (
        torch.vdot(y.flatten(), operator.forward(x).flatten()),
        torch.vdot(operator.adjoint(y).flatten(), x.flatten()),
    )
    size = torch.linalg.vector_norm(operator.forward(x)) * torch.linalg.vector_norm(y)
    assert abs(left - right) <= 1e-5 * size
    twice = operator.adjoint(operator.forward(x))
    assert torch.linalg.vector_norm(operator.normal(x) - twice) <= 3e-5 * torch.linalg.vector_norm(twice)


@few
@given(SIZES, st.integers(1, 4), st.sampled_from([(), (2,)]))
def test_sense_has_its_adjoint_with_any_weights(size: tuple[int, int], count: int, frames: tuple[int, ...]) -> None:
    mask = torch.rand((*frames, 1, *size), generator=torch.Generator().manual_seed(1)).round(decimals=1)
    assert_adjoint(
        Sense(noise(count, *size), mask), noise(*frames, *size, seed=2), noise(*frames, count, *size, seed=3)
    )


@few
@given(SIZES, st.integers(1, 4), st.sampled_from([(), (2,)]))
def test_two_sets_of_maps_have_their_adjoint(size: tuple[int, int], count: int, frames: tuple[int, ...]) -> None:
    mask = torch.rand((*frames, 1, *size), generator=torch.Generator().manual_seed(1)).round(decimals=1)
    operator = SoftSense(noise(2, count, *size), mask)
    assert_adjoint(operator, noise(*frames, 2, *size, seed=2), noise(*frames, count, *size, seed=3))


def test_two_sets_of_maps_measure_the_sum_of_their_images() -> None:
    maps, mask, x = noise(2, 3, 12, 14), torch.ones(1, 12, 14), noise(2, 12, 14, seed=5)
    apart = sum(Sense(maps[k], mask).forward(x[k]) for k in range(2))
    torch.testing.assert_close(SoftSense(maps, mask).forward(x), apart)


@few
@given(SIZES, st.integers(1, 3), st.booleans(), st.sampled_from([(), (2,)]))
def test_measurement_along_a_trajectory_has_its_adjoint(
    size: tuple[int, int], count: int, weighted: bool, frames: tuple[int, ...]
) -> None:
    made = torch.Generator().manual_seed(4)
    trajectory = (torch.rand(200, 2, generator=made) - 0.5) * torch.tensor(size)
    weights = torch.rand(200, generator=made) if weighted else None
    operator = nufft.NonUniform(trajectory, size, noise(count, *size), weights)
    assert_adjoint(operator, noise(*frames, *size, seed=5), noise(*frames, count, 200, seed=6))


@few
@given(SIZES)
def test_measurement_along_the_grid_is_the_fourier_transform(size: tuple[int, int]) -> None:
    ky, kx = (torch.arange(n) - n // 2 for n in size)
    trajectory = torch.cartesian_prod(ky, kx).float()
    maps, image = noise(2, *size), noise(*size, seed=7)
    found = nufft.NonUniform(trajectory, size, maps).forward(image).reshape(2, *size)
    assert torch.allclose(found, fft2c(maps * image), atol=1e-4 * float(image.abs().max()))


def test_measurement_between_grid_points_is_the_sum_of_plane_waves() -> None:
    rows, columns = 9, 12
    image, trajectory = noise(rows, columns), torch.tensor([[0.3, -2.7], [4.1, 5.5], [-4.5, 0.01]])
    y, x = torch.meshgrid(torch.arange(rows) - rows // 2, torch.arange(columns) - columns // 2, indexing="ij")
    wanted = [
        (image * torch.exp(-2j * torch.pi * (ky * y / rows + kx * x / columns))).sum() / (rows * columns) ** 0.5
        for ky, kx in trajectory.tolist()
    ]
    found = nufft.NonUniform(trajectory, (rows, columns), torch.ones(1, rows, columns, dtype=torch.complex64))
    assert torch.allclose(found.forward(image)[0], torch.stack(wanted), atol=1e-4)


@few
@given(SIZES, st.sampled_from(sorted(wavelet.FILTERS)))
def test_wavelets_keep_lengths_and_are_undone_by_their_adjoint(size: tuple[int, int], name: str) -> None:
    x, y = noise(2, *size), noise(2, *size, seed=8)
    coefficients = wavelet.forward(x, name)
    assert torch.linalg.vector_norm(coefficients) == pytest.approx(float(torch.linalg.vector_norm(x)), rel=1e-5)
    assert torch.allclose(wavelet.inverse(coefficients, name), x, atol=1e-5)
    left = torch.vdot(y.flatten(), coefficients.flatten())
    assert abs(left - torch.vdot(wavelet.inverse(y, name).flatten(), x.flatten())) <= 1e-4 * abs(left) + 1e-3


@pytest.mark.parametrize(("name", "degree"), [("haar", 0), ("db4", 3)])
def test_wavelets_have_their_vanishing_moments(name: str, degree: int) -> None:
    size = 64
    details = wavelet.step(size, name)[size // 2 :].double()
    inner = details[: size // 2 - len(wavelet.FILTERS[name])]  # those that do not wrap around
    for power in range(degree + 1):
        assert (inner @ (torch.arange(size).double() / size) ** power).abs().max() < 1e-6
    assert (inner @ (torch.arange(size).double() / size) ** (degree + 1)).abs().max() > 1e-9


def test_wavelets_first_used_for_inference_still_give_gradients() -> None:
    with torch.inference_mode():
        wavelet.forward(noise(37, 29))
    x = noise(37, 29).requires_grad_()
    (wavelet.forward(x).abs() ** 2).sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, 2 * x.detach(), atol=1e-4)


@few
@given(SIZES, st.sampled_from([(-2, -1), (-3,), (-1,)]))
def test_divergence_is_minus_the_adjoint_of_the_gradient(size: tuple[int, int], dims: tuple[int, ...]) -> None:
    x, p = noise(3, *size), noise(len(dims), 3, *size, seed=9)
    left = torch.vdot(p.flatten(), sparse.gradient(x, dims).flatten())
    right = torch.vdot(sparse.divergence(p, dims).flatten(), x.flatten())
    assert abs(left + right) <= 1e-4 * abs(left) + 1e-3


@few
@given(SIZES)
def test_fourier_transform_is_unitary_and_a_point_becomes_its_plane_wave(size: tuple[int, int]) -> None:
    x = noise(*size)
    assert torch.linalg.vector_norm(fft2c(x)) == pytest.approx(float(torch.linalg.vector_norm(x)), rel=1e-5)
    assert torch.allclose(ifft2c(fft2c(x)), x, atol=1e-5)
    rows, columns = size
    point = torch.zeros(size, dtype=torch.complex64)
    point[rows // 2, columns // 2] = 1
    assert torch.allclose(fft2c(point), torch.full(size, (rows * columns) ** -0.5, dtype=torch.complex64), atol=1e-5)
    point = point.roll((3, -2), (0, 1))
    ky, kx = torch.meshgrid(torch.arange(rows) - rows // 2, torch.arange(columns) - columns // 2, indexing="ij")
    wave = torch.exp(-2j * torch.pi * (3 * ky / rows - 2 * kx / columns)) / (rows * columns) ** 0.5
    assert torch.allclose(fft2c(point), wave.to(torch.complex64), atol=1e-5)


@pytest.mark.parametrize(("rows", "columns"), [(96, 96), (97, 80)])
def test_an_ellipse_comes_out_where_and_as_large_as_it_is(rows: int, columns: int) -> None:
    ellipse, fov = Ellipse(x=20, y=-31, a=50, b=28, degrees=25), 200.0
    ky, kx = np.meshgrid((np.arange(rows) - rows // 2) / fov, (np.arange(columns) - columns // 2) / fov, indexing="ij")
    kspace = torch.from_numpy(ellipse.transform(kx, ky).astype(np.complex64)) * (rows * columns) ** 0.5 / fov**2
    image = ifft2c(kspace)
    y, x = np.meshgrid(
        (np.arange(rows) - rows // 2) * fov / rows, (np.arange(columns) - columns // 2) * fov / columns, indexing="ij"
    )
    inside = torch.from_numpy(ellipse.inside(x, y))
    # Gibbs' ringing at the rim is all that differs: 10 % of the pixels at 97 x 80.
    assert float((image.real - inside.float()).abs().median()) < 0.02
    assert float(image.imag.abs().max()) < 0.1
    assert float(((image.real > 0.5) != inside).float().sum()) < 0.02 * float(inside.sum())


@few
@given(st.integers(1, 12), st.integers(1, 12), st.floats(0.5, 1.0))
def test_coil_compression_keeps_white_noise_white_and_the_energy_asked_for(coils_: int, most: int, keep: float) -> None:
    acs = noise(coils_, 6, 9) * torch.linspace(1, 4, coils_)[:, None, None]
    matrix = compress.matrix(acs, keep, most)
    assert torch.allclose(matrix @ matrix.mH, torch.eye(len(matrix), dtype=torch.complex64), atol=1e-5)
    kept = float((compress.apply(matrix, acs).abs() ** 2).sum() / (acs.abs() ** 2).sum())
    assert len(matrix) == min(most, coils_) or kept >= keep - 1e-4
    if len(matrix) > 1:  # one fewer would not have been enough
        assert float((compress.apply(matrix[:-1], acs).abs() ** 2).sum() / (acs.abs() ** 2).sum()) < keep + 1e-4


def test_compression_takes_the_axis_it_is_told() -> None:
    acs = noise(5, 4, 6)
    matrix = compress.matrix(acs, most=3)
    whole = compress.apply(matrix, acs)
    assert torch.allclose(compress.apply(matrix, acs.movedim(0, 1), dim=1), whole.movedim(0, 1))
    assert compress.apply(matrix, acs[None]).shape == (1, 3, 4, 6)


@few
@given(SIZES, st.tuples(st.integers(3, 60), st.integers(3, 60)))
def test_the_block_around_the_centre_keeps_the_centre(size: tuple[int, int], other: tuple[int, int]) -> None:
    data = noise(*size)
    block = coils.centre(data, other)
    assert block.shape == other
    assert block[other[0] // 2, other[1] // 2] == data[size[0] // 2, size[1] // 2]
    larger = tuple(max(pair) for pair in zip(size, other, strict=True))
    assert torch.equal(coils.centre(coils.centre(data, larger), size), data)


def test_density_weights_of_a_radial_scan_grow_with_the_radius_and_give_the_object_back() -> None:
    size, spokes = 64, 101
    angle = torch.arange(spokes) * torch.pi / spokes
    radius = (torch.arange(2 * size) - size) / 2
    trajectory = torch.stack(
        (torch.outer(angle.sin(), radius).flatten(), torch.outer(angle.cos(), radius).flatten()), dim=-1
    )
    weights = nufft.density(trajectory, (size, size))
    inner = (radius.abs().repeat(spokes) > 3) & (radius.abs().repeat(spokes) < size / 2 - 3)
    ratio = (weights / radius.abs().repeat(spokes).clamp(min=0.25))[inner]
    assert float(ratio.std() / ratio.mean()) < 0.1  # the ramp of an evenly sampled circle
    y, x = torch.meshgrid(torch.arange(size) - size // 2, torch.arange(size) - size // 2, indexing="ij")
    smooth = torch.exp(-((y - 4) ** 2 / 60 + (x + 6) ** 2 / 90)).to(torch.complex64)
    operator = nufft.NonUniform(trajectory, (size, size), torch.ones(1, size, size, dtype=torch.complex64))
    again = operator.adjoint(weights * operator.forward(smooth))
    assert torch.linalg.vector_norm(again - smooth) < 0.05 * torch.linalg.vector_norm(smooth)
