"""CG-SENSE, GRAPPA, compressed sensing, partial Fourier: against known objects, closed forms, BART, sigpy, pygrappa."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.mr_recon import grappa, partial, sparse, wavelet
from models.mr_recon.fft import fft2c, ifft2c
from models.mr_recon.linops import Sense
from models.mr_recon.solvers import conjugate_gradient
from tests.conftest import missing_peer
from tests.mr_scenes import Scene, decibels, scene, uniform, variable
from tests.peers.bart import bart

ROWS, COLUMNS = 80, 64


@pytest.fixture(scope="module")
def body() -> Scene:
    return scene(ROWS, COLUMNS)


def sense(operator: Sense, y: Tensor, iterations: int = 15) -> Tensor:
    return conjugate_gradient(operator.normal, operator.adjoint(y), iterations=iterations, damping=2e-3)


def plain(shape: tuple[int, ...]) -> Sense:
    """The identity, up to the Fourier transform."""
    return Sense(torch.ones(1, *shape[-2:], dtype=torch.complex64), torch.ones(1, *shape[-2:]))


# --- conjugate gradients


def test_conjugate_gradients_solve_what_a_direct_solver_solves() -> None:
    made = torch.Generator().manual_seed(0)
    root = torch.randn(30, 30, dtype=torch.complex64, generator=made)
    matrix, right = root.mH @ root / 30 + torch.eye(30), torch.randn(30, dtype=torch.complex64, generator=made)
    found = conjugate_gradient(
        lambda x: (matrix @ x.reshape(30)).reshape(5, 6), right.reshape(5, 6), iterations=60, damping=0.1
    )
    wanted = torch.linalg.solve(matrix + 0.1 * torch.eye(30), right)
    assert torch.allclose(found.reshape(30), wanted, atol=1e-4)


def test_conjugate_gradients_stay_at_an_exact_solution() -> None:
    operator = Sense(torch.ones(1, 24, 24, dtype=torch.complex64), uniform(24, 2, 4))
    y = operator.forward(scene(24, 24, coils=1).object)
    found = conjugate_gradient(operator.normal, operator.adjoint(y), iterations=30)
    assert torch.allclose(found, operator.adjoint(y), atol=1e-3)


@pytest.mark.parametrize(("acceleration", "gain"), [(2, 8), (3, 4)])
def test_cg_sense_resolves_uniform_undersampling(acceleration: int, gain: float, body: Scene) -> None:
    operator, y = body.measured(uniform(ROWS, acceleration, 16))
    folded = decibels(operator.adjoint(y) * body.body, body.object)
    assert decibels(sense(operator, y) * body.body, body.object) > folded + gain


def test_cg_sense_agrees_with_bart(body: Scene, tmp_path: Path) -> None:
    mask = uniform(ROWS, 2, 16)
    operator, y = body.measured(mask)
    theirs = bart(tmp_path, "pics", "-l2", "-r0.002", "-w1", "-i40", given=(y, body.maps))
    assert decibels(sense(operator, y, 40), theirs) > 45


# --- GRAPPA


@pytest.mark.parametrize(("acceleration", "first"), [(2, 0), (2, 1), (3, 2), (4, 1), (4, 3)])
def test_grappa_fills_every_line_wherever_the_regular_ones_begin(acceleration: int, first: int) -> None:
    clean = scene(ROWS, COLUMNS, coils=12, snr=1000)
    mask = uniform(ROWS, acceleration, 24, first)
    filled = grappa.fill(mask * clean.kspace, mask, clean.acs(24), acceleration)
    assert torch.equal((mask * filled), mask * clean.kspace)  # what was measured is not touched
    lines = torch.linalg.vector_norm(filled, dim=(0, 2))
    assert bool((lines > 0).all())
    image = (clean.maps.conj() * ifft2c(filled)).sum(0)
    assert decibels(image, clean.object) > {2: 45, 3: 38, 4: 33}[acceleration]


@pytest.mark.parametrize("acceleration", [2, 3])
def test_grappa_stands_beside_pygrappa(acceleration: int, body: Scene) -> None:
    try:
        from pygrappa import grappa as theirs
    except ImportError:
        missing_peer("pygrappa with scikit-image")
    mask, acs = uniform(ROWS, acceleration, 24), body.acs(24)
    kspace = mask * body.kspace
    peer = theirs(kspace.numpy().transpose(2, 1, 0), acs.numpy().transpose(2, 1, 0), (5, 5), coil_axis=-1)
    peer = torch.from_numpy(np.ascontiguousarray(peer.transpose(2, 1, 0)).astype(np.complex64))
    ours = grappa.fill(kspace, mask, acs, acceleration)
    found = [decibels((body.maps.conj() * ifft2c(filled)).sum(0) * body.body, body.object) for filled in (ours, peer)]
    assert found[0] > found[1] - 0.5


def test_grappa_takes_masks_of_lines_samples_and_stacks(body: Scene) -> None:
    mask, acs = uniform(ROWS, 2, 24), body.acs(24)
    kspace = mask * body.kspace
    whole = grappa.fill(kspace, mask.expand(1, ROWS, COLUMNS), acs, 2)
    assert torch.equal(grappa.fill(kspace, mask[0, :, 0], acs, 2), whole)
    assert torch.equal(grappa.fill(kspace, mask[0], acs, 2), whole)


def test_grappa_leaves_the_side_that_partial_fourier_left_out(body: Scene) -> None:
    mask = uniform(ROWS, 2, 24)
    mask[:, :20] = 0
    filled = grappa.fill(mask * body.kspace, mask, body.acs(24), 2)
    lines = torch.linalg.vector_norm(filled, dim=(0, 2)) > 0
    assert not bool(lines[:19].any())
    assert bool(lines[20:].all())


def test_grappa_refuses_calibration_that_is_too_low(body: Scene) -> None:
    mask = uniform(ROWS, 4, 4)
    with pytest.raises(ValueError, match="acceleration 4 needs more than 4 calibration lines"):
        grappa.fill(mask * body.kspace, mask, body.acs(4), 4)


# --- compressed sensing


def test_the_largest_eigenvalue_is_that_of_the_matrix() -> None:
    maps = torch.randn(3, 6, 7, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    operator = Sense(maps, uniform(6, 2, 2))
    columns = [operator.normal(one.reshape(6, 7)).flatten() for one in torch.eye(42, dtype=torch.complex64)]
    wanted = float(torch.linalg.eigvalsh(torch.stack(columns, 1))[-1])
    found = sparse.largest_eigenvalue(operator, torch.zeros(6, 7, dtype=torch.complex64))
    assert wanted <= found <= 1.1 * wanted


def test_fully_sampled_wavelet_denoising_is_soft_thresholding() -> None:
    image = scene(48, 48, coils=1).object
    one = wavelet.shrink(image, 3.0, "haar", (5, 2))
    coefficients = wavelet.forward(image.roll((5, 2), (0, 1)), "haar")
    kept = wavelet.forward(one.roll((5, 2), (0, 1)), "haar")
    rows, columns = wavelet.approximation((48, 48), "haar")
    assert torch.allclose(kept[:rows, :columns], coefficients[:rows, :columns], atol=1e-3)
    detail, before = kept.clone(), coefficients.clone()
    detail[:rows, :columns] = before[:rows, :columns] = 0
    assert torch.allclose(detail.abs(), (before.abs() - 3).clamp(min=0), atol=1e-3)


@pytest.mark.parametrize("solve", [sparse.wavelet_l1, sparse.total_variation])
def test_without_weight_compressed_sensing_is_least_squares(solve, body: Scene) -> None:
    operator, y = body.measured(torch.ones(1, ROWS, COLUMNS))
    assert torch.allclose(solve(operator, y, 0.0, 40), operator.adjoint(y), atol=1e-2)


def test_total_variation_over_time_moves_a_step_as_its_closed_form_says() -> None:
    """Two plateaus of 4 and 6 frames: each is pulled towards the other by weight / its length."""
    frames = torch.zeros(10, 4, 4, dtype=torch.complex64)
    frames[4:] = 10
    y = plain(frames.shape).forward(frames)
    found = sparse.temporal_tv(plain(frames.shape), y, 2.0, 200)
    assert torch.allclose(found[:4].abs(), torch.tensor(2.0 / 4), atol=0.02)
    assert torch.allclose(found[4:].real, torch.tensor(10 - 2.0 / 6), atol=0.02)


def test_heavy_total_variation_leaves_the_mean() -> None:
    image = scene(16, 16, coils=1, snr=5).object
    found = sparse.total_variation(plain(image.shape), fft2c(image)[None], 500.0, 200)
    assert torch.allclose(found, image.mean().expand(16, 16), atol=0.1)


@pytest.mark.parametrize(("solve", "weight"), [
    (sparse.wavelet_l1, sparse.WAVELET_WEIGHT), (sparse.total_variation, sparse.TV_WEIGHT),
])  # fmt: skip
def test_compressed_sensing_gains_on_cg_sense_where_sampling_is_irregular(solve, weight: float, body: Scene) -> None:
    operator, y = body.measured(variable(ROWS, 4, 12))
    linear = decibels(sense(operator, y), body.object)
    start = sense(operator, y)
    assert decibels(solve(operator, y, weight, 60, start), body.object) > linear + 2
    assert torch.equal(solve(operator, y, weight, 5), solve(operator, y, weight, 5))  # no chance is left in it


def test_wavelets_agree_with_bart_and_sigpy(body: Scene, tmp_path: Path) -> None:
    try:
        from sigpy.mri.app import L1WaveletRecon
    except ImportError:
        missing_peer("sigpy")
    operator, y = body.measured(variable(ROWS, 3, 16))
    ours = sparse.wavelet_l1(operator, y, 0.3, 60)
    theirs = bart(tmp_path, "pics", "-l1", "-r0.3", "-w1", "-i60", "--wavelet", "haar", given=(y, body.maps))
    assert decibels(ours, theirs, scaled=True) > 35
    weights = np.broadcast_to(operator.mask[0].numpy(), (ROWS, COLUMNS)).astype(np.float32)
    app = L1WaveletRecon(
        y.numpy(), body.maps.numpy(), 0.1, weights=weights, wave_name="haar", max_iter=60, show_pbar=False
    )
    assert decibels(ours, torch.from_numpy(app.run()), scaled=True) > 30


def test_frames_that_share_what_does_not_move_are_better_together() -> None:
    beats = [0.5 * np.sin(2 * np.pi * n / 8) for n in range(8)]
    scenes = [scene(48, 48, coils=4, seed=n, beat=beat) for n, beat in enumerate(beats)]
    masks = torch.stack([variable(48, 4, 6, seed=n) for n in range(8)])
    operator = Sense(scenes[0].maps, masks)
    y = masks * torch.stack([one.kspace for one in scenes])
    truth = torch.stack([one.object for one in scenes])
    alone = sense(operator, y)
    together = sparse.temporal_tv(operator, y, sparse.TEMPORAL_WEIGHT, 60, alone)
    assert decibels(together, truth) > decibels(alone, truth) + 4


# --- partial Fourier


@pytest.mark.parametrize(("rows", "first"), [(80, 30), (81, 31), (80, 25)])
def test_pocs_brings_back_the_side_that_was_not_sampled(rows: int, first: int) -> None:
    whole = scene(rows, 64, coils=1, snr=200)
    sampled = torch.ones(rows, 64, dtype=torch.bool)
    sampled[:first] = False
    kspace = torch.where(sampled, whole.kspace[0], 0)
    image = partial.pocs(kspace, sampled)
    assert torch.allclose(fft2c(image)[sampled], kspace[sampled], atol=1e-2)
    assert decibels(image, ifft2c(whole.kspace[0])) > decibels(ifft2c(kspace), ifft2c(whole.kspace[0])) + 5


def test_pocs_mends_an_asymmetric_echo_of_many_coils_and_frames() -> None:
    whole = scene(48, 60, coils=3, snr=200)
    sampled = torch.ones(48, 60, dtype=torch.bool)
    sampled[:, :20] = False
    kspace = torch.where(sampled, whole.kspace, 0).expand(2, 3, 48, 60)
    image = partial.pocs(kspace, sampled)
    full = ifft2c(whole.kspace)
    assert image.shape == (2, 3, 48, 60)
    assert decibels(image[1], full) > decibels(ifft2c(kspace[1]), full) + 3


def test_pocs_changes_nothing_where_all_was_sampled() -> None:
    whole = scene(33, 40, coils=1)
    everywhere = torch.ones(33, 40, dtype=torch.bool)
    assert torch.allclose(partial.pocs(whole.kspace, everywhere), ifft2c(whole.kspace), atol=1e-3)


def test_the_symmetric_core_counts_from_the_centre() -> None:
    sampled = torch.zeros(10, 9, dtype=torch.bool)
    sampled[3:, 2:] = True
    assert partial.core(sampled) == (3, 3)  # 5 - 2 and 4 - 1: the centre and two samples to both sides
    assert partial.core(torch.ones(10, 9)) == (6, 5)
    with pytest.raises(ValueError, match="centre of k-space was not sampled"):
        partial.pocs(torch.zeros(10, 9, dtype=torch.complex64), torch.zeros(10, 9))
