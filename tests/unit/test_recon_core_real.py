"""The reconstruction core on real measurements: an in-vivo brain beside BART, and a fully sampled phantom."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.mr_recon import coils, grappa, sparse
from models.mr_recon.fft import ifft2c
from models.mr_recon.linops import Sense
from models.mr_recon.solvers import conjugate_gradient
from tests.conftest import EVALUATION_DATA, missing_peer
from tests.mr_scenes import decibels, uniform
from tests.peers.bart import bart

BRAIN = EVALUATION_DATA / "mr-kspace-brain8ch" / "cartesian_ksp.npy"
PHANTOM = EVALUATION_DATA / "mr-twix-pulseq" / "2024-02-06-160052.dat"


@pytest.fixture(scope="module")
def brain() -> Tensor:
    """(8, 230, 180), an eighth of it measured, at random in two dimensions; scaled to a largest sample of 1000."""
    if not BRAIN.exists():
        pytest.skip(f"{BRAIN.parent.name} is not here")
    kspace = torch.from_numpy(np.load(BRAIN))
    return 1000 * kspace / kspace.abs().max()


@pytest.fixture(scope="module")
def phantom() -> Tensor:
    """(16, 128, 128), fully sampled."""
    if not PHANTOM.exists():
        pytest.skip(f"{PHANTOM.parent.name} is not here")
    try:
        import twixtools
    except ImportError:
        missing_peer("twixtools")
    lines = [block for block in twixtools.read_twix(str(PHANTOM), verbose=False)[-1]["mdb"] if block.is_image_scan()]
    kspace = np.zeros(
        (lines[0].data.shape[0], max(line.cLin for line in lines) + 1, lines[0].data.shape[1]), np.complex64
    )
    for line in lines:
        kspace[:, line.cLin] = line.data
    return torch.from_numpy(kspace) / float(np.abs(kspace).max()) * 1000


def whole_centre(mask: Tensor) -> tuple[int, int]:
    """The largest square block around the centre that was measured whole."""
    size = 2
    while bool(coils.centre(mask[None], (size + 2, size + 2)).all()):
        size += 2
    return size, size


@pytest.mark.parametrize("name", ["linear", "wavelet"])
def test_the_brain_agrees_with_bart(name: str, brain: Tensor, tmp_path: Path) -> None:
    mask = (brain.abs().sum(0) > 0).float()
    acs = coils.centre(brain, whole_centre(mask))
    assert acs.shape[-1] >= coils.LEAST_FULL_KERNEL
    found = coils.choose(acs, (brain.shape[-2], brain.shape[-1]))
    assert found.method == "espirit-6"
    assert found.leakage < 0.05
    operator = Sense(found.maps, mask[None])
    if name == "linear":
        ours = conjugate_gradient(operator.normal, operator.adjoint(brain), iterations=20, damping=0.01)
        options = ("-l2", "-r0.01", "-i20")
    else:
        weight = sparse.WAVELET_WEIGHT * coils.noise_power(acs) ** 0.5
        ours = sparse.wavelet_l1(operator, brain, weight, 60)
        options = ("-l1", f"-r{weight:.4f}", "-i60")  # with BART's own wavelet
    theirs = bart(tmp_path, "pics", *options, "-w1", given=(brain, found.maps))
    assert decibels(ours, theirs, scaled=True) >= 35


def test_the_brain_agrees_with_bart_to_the_last_step(brain: Tensor, tmp_path: Path) -> None:
    """Maps and reconstruction both BART's own, on the pixels that both take for tissue."""
    mask = (brain.abs().sum(0) > 0).float()
    maps = bart(tmp_path, "ecalib", "-m1", "-c0.9", given=(brain,))
    acs = coils.centre(brain, whole_centre(mask))
    weight = sparse.WAVELET_WEIGHT * coils.noise_power(acs) ** 0.5
    theirs = bart(tmp_path, "pics", "-l1", f"-r{weight:.4f}", "-w1", "-i60", given=(brain, maps))
    found = coils.choose(acs, (brain.shape[-2], brain.shape[-1]))
    ours = sparse.wavelet_l1(Sense(found.maps, mask[None]), brain, weight, 60)
    both = (torch.linalg.vector_norm(maps, dim=0) > 0) & (torch.linalg.vector_norm(found.maps, dim=0) > 0)
    assert decibels(ours * both, theirs * both, scaled=True) >= 35


def test_a_quarter_of_the_phantom_is_enough_for_cg_sense_and_grappa(phantom: Tensor) -> None:
    rows, columns = phantom.shape[-2:]
    mask, acs = uniform(rows, 4, 16), coils.centre(phantom, (16, columns))
    found = coils.choose(acs, (rows, columns))
    assert found.method == "espirit-6"
    full = (found.maps.conj() * ifft2c(phantom)).sum(0)
    operator = Sense(found.maps, mask)
    y = mask * phantom
    image = conjugate_gradient(operator.normal, operator.adjoint(y), iterations=12, damping=2e-3)
    assert decibels(image, full) >= 36
    filled = grappa.fill(y, mask, acs, 4)
    ours = (found.maps.conj() * ifft2c(filled)).sum(0)
    assert decibels(ours, full) >= 35
    try:
        from pygrappa import grappa as theirs
    except ImportError:
        missing_peer("pygrappa with scikit-image")
    peer = theirs(y.numpy().transpose(2, 1, 0), acs.numpy().transpose(2, 1, 0), (5, 5), coil_axis=-1)
    peer = torch.from_numpy(np.ascontiguousarray(peer.transpose(2, 1, 0)).astype(np.complex64))
    assert decibels(ours, full) > decibels((found.maps.conj() * ifft2c(peer)).sum(0), full)
