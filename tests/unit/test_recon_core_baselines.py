"""What reconstructions are compared with: every method through one interface, and dictionary learning on its own."""

from __future__ import annotations

import pytest
import torch

from models.mr_recon import baselines, dictionary
from models.mr_recon.baselines import NotApplicable, Problem
from tests.conftest import missing_peer
from tests.mr_scenes import Scene, decibels, scene, uniform, variable

ROWS, COLUMNS = 64, 48


def problem(coils: int, mask: torch.Tensor, acceleration: int = 0) -> tuple[Problem, Scene]:
    made = scene(ROWS, COLUMNS, coils=coils)
    given = Problem(
        kspace=mask * made.kspace, mask=mask, maps=made.maps, acs=made.acs(16), noise=made.sd, acceleration=acceleration
    )
    return given, made


@pytest.mark.parametrize("name", [name for name in baselines.METHODS if name != "zero-filled"])
def test_every_method_gains_on_zero_filling_and_says_what_it_cost(name: str) -> None:
    given, made = problem(8, uniform(ROWS, 2, 16), acceleration=2)
    try:
        found = baselines.reconstruct(name, given)
    except NotApplicable as reason:
        missing_peer(str(reason))
    plain = baselines.reconstruct("zero-filled", given)
    assert found.image.shape == (ROWS, COLUMNS)
    assert found.image.dtype == torch.complex64
    assert found.cpu_s > 0
    assert decibels(found.image, made.object) > decibels(plain.image, made.object) + 2


@pytest.mark.parametrize("name", ["cs-wavelet", "cs-tv", "bart-l1", "sigpy-l1"])
def test_one_coil_is_a_problem_like_another(name: str) -> None:
    given, made = problem(1, variable(ROWS, 3, 16))
    try:
        found = baselines.reconstruct(name, given)
    except NotApplicable as reason:
        missing_peer(str(reason))
    assert decibels(found.image, made.object) > decibels(given.operator.adjoint(given.kspace), made.object) + 0.5


@pytest.mark.parametrize(("coils", "acceleration"), [(8, 0), (1, 2)])
def test_grappa_is_not_applicable_to_one_coil_or_irregular_lines(coils: int, acceleration: int) -> None:
    given, _ = problem(coils, variable(ROWS, 3, 16), acceleration)
    with pytest.raises(NotApplicable, match="uniform undersampling and several coils"):
        baselines.reconstruct("grappa", given)


def test_matching_pursuit_finds_the_atoms_a_signal_was_made_of() -> None:
    made = torch.Generator().manual_seed(0)
    atoms = torch.randn(36, 50, dtype=torch.complex64, generator=made)
    atoms = atoms / torch.linalg.vector_norm(atoms, dim=0)
    wanted = torch.zeros(50, 20, dtype=torch.complex64)
    for signal in range(20):
        chosen = torch.randperm(50, generator=made)[:3]
        wanted[chosen, signal] = 2 * torch.exp(1j * torch.rand(3, generator=made) * 6)
    found = dictionary.pursue(atoms, atoms @ wanted, residual=1e-3, most=6)
    exact = (found - wanted).abs().amax(0) < 1e-2
    assert float(exact.float().mean()) >= 0.9


def test_matching_pursuit_stops_at_the_residual_and_leaves_weak_signals_alone() -> None:
    atoms = dictionary.cosines()
    made = torch.Generator().manual_seed(1)
    signals = torch.randn(36, 40, dtype=torch.complex64, generator=made) * torch.linspace(0.01, 3, 40)
    signals = signals - signals.mean(0)  # as patches are coded: the atoms have no constant
    found = dictionary.pursue(atoms, signals, residual=2.0, most=34)
    left = torch.linalg.vector_norm(signals - atoms @ found, dim=0)
    assert float(left.max()) <= 2.01
    weak = torch.linalg.vector_norm(signals, dim=0) <= 2.0
    assert bool(weak.any())
    assert not bool(found[:, weak].any())


def test_learned_atoms_fit_better_than_cosines() -> None:
    every = dictionary.patches(scene(48, 48, coils=1).object)
    every = every - every.mean(0)
    some = every[:, torch.linalg.vector_norm(every, dim=0) > 20][:, ::3]
    start = dictionary.cosines()
    learned = dictionary.learn(start, some, residual=0.1, sweeps=6)
    assert torch.allclose(torch.linalg.vector_norm(learned, dim=0), torch.ones(learned.shape[1]), atol=1e-4)
    left = [torch.linalg.vector_norm(some - a @ dictionary.pursue(a, some, 0.1)) for a in (start, learned)]
    assert float(left[1]) < 0.8 * float(left[0])


def test_patches_average_back_to_their_image() -> None:
    image = scene(30, 41, coils=1).object
    assert torch.allclose(dictionary.average(dictionary.patches(image), (30, 41)), image, atol=1e-4)
