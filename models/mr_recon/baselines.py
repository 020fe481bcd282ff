"""What a reconstruction is compared with: one interface over our rungs and over the libraries, for evaluation alone."""

from __future__ import annotations

import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.mr_recon import dictionary, grappa, sparse
from models.mr_recon.fft import ifft2c
from models.mr_recon.linops import Sense
from models.mr_recon.solvers import conjugate_gradient

#: Of CG-SENSE: iterations, and damping as a part of the largest eigenvalue.
CG_ITERATIONS, CG_DAMPING = 12, 2e-3
#: FISTA iterations of every compressed sensing, ours and the libraries'.
CS_ITERATIONS = 60
#: Weights of the libraries in units of the noise, chosen on the same data as ours (`sparse`): none is handicapped.
BART_WEIGHT, SIGPY_WEIGHT = 0.2, 0.06


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Problem:
    """One undersampled image."""

    #: complex64 (coil, ky, kx), zero where not measured; whitened.
    kspace: Tensor
    #: Real (1, ky, kx), 1 where measured.
    mask: Tensor
    #: complex64 (coil, row, column).
    maps: Tensor
    #: complex64 (coil, ky, kx), the fully sampled centre.
    acs: Tensor
    #: Sd of the noise of one complex sample.
    noise: float
    #: Of a uniform pattern, for GRAPPA; 0: the pattern is not uniform.
    acceleration: int = 0

    @property
    def operator(self) -> Sense:
        """Image to measurement."""
        return Sense(self.maps, self.mask)


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What one method gave."""

    #: complex64 (row, column).
    image: Tensor
    #: Processor time of this process and its children [s].
    cpu_s: float


class NotApplicable(Exception):
    """The method cannot be used for this problem, or its library is not installed."""


def zero_filled(problem: Problem) -> Tensor:
    """Missing samples are zero."""
    return problem.operator.adjoint(problem.kspace)


def cg_sense(problem: Problem) -> Tensor:
    """Least squares with slight damping."""
    operator = problem.operator
    right = operator.adjoint(problem.kspace)
    return conjugate_gradient(operator.normal, right, iterations=CG_ITERATIONS, damping=CG_DAMPING)


def our_grappa(problem: Problem) -> Tensor:
    """GRAPPA, its coils combined by the maps."""
    if problem.acceleration < 2 or problem.kspace.shape[0] < 2:
        raise NotApplicable("GRAPPA needs uniform undersampling and several coils")
    filled = grappa.fill(problem.kspace, problem.mask, problem.acs, problem.acceleration)
    return (problem.maps.conj() * ifft2c(filled)).sum(-3)


def our_wavelet(problem: Problem) -> Tensor:
    """L1 of wavelet details."""
    weight = sparse.WAVELET_WEIGHT * problem.noise
    return sparse.wavelet_l1(problem.operator, problem.kspace, weight, CS_ITERATIONS, cg_sense(problem))


def our_tv(problem: Problem) -> Tensor:
    """Total variation."""
    weight = sparse.TV_WEIGHT * problem.noise
    return sparse.total_variation(problem.operator, problem.kspace, weight, CS_ITERATIONS, cg_sense(problem))


def bart_l1(problem: Problem) -> Tensor:
    """BART's `pics` with L1-wavelet, in its own process."""
    bart = shutil.which("bart")
    if bart is None:
        raise NotApplicable("BART is not installed")
    with tempfile.TemporaryDirectory() as folder:
        write_cfl(Path(folder) / "k", bart_axes(problem.mask * problem.kspace))
        write_cfl(Path(folder) / "s", bart_axes(problem.maps))
        # -w 1: the weight is in the units of the data, not of BART's own guess of their size.
        weight = BART_WEIGHT * problem.noise
        command = [bart, "pics", "-l1", f"-r{weight:.6g}", "-w1", f"-i{CS_ITERATIONS}", "k", "s", "x"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)  # noqa: S603 -- no shell, our own words
        image = read_cfl(Path(folder) / "x")
    return torch.from_numpy(image.squeeze().T.copy()).to(problem.kspace)


def sigpy_l1(problem: Problem) -> Tensor:
    """sigpy's `L1WaveletRecon`."""
    if find_spec("sigpy") is None:
        raise NotApplicable("sigpy is not installed")
    from sigpy.mri import app

    weight = SIGPY_WEIGHT * problem.noise
    kspace, maps = problem.kspace.cpu().numpy(), problem.maps.cpu().numpy()
    weights = np.broadcast_to(problem.mask[0].cpu().numpy(), kspace.shape[-2:]).astype(np.float32)
    made = app.L1WaveletRecon(
        kspace, maps, weight, weights=weights, wave_name="db4", max_iter=CS_ITERATIONS, show_pbar=False
    ).run()
    return torch.from_numpy(made.astype(np.complex64)).to(problem.kspace.device)


def dictionary_learning(problem: Problem) -> Tensor:
    """Dictionary learning on the image itself."""
    return dictionary.reconstruct(problem.operator, problem.kspace, problem.noise)


METHODS: Mapping[str, Callable[[Problem], Tensor]] = {
    "zero-filled": zero_filled,
    "cg-sense": cg_sense,
    "grappa": our_grappa,
    "cs-wavelet": our_wavelet,
    "cs-tv": our_tv,
    "bart-l1": bart_l1,
    "sigpy-l1": sigpy_l1,
    "dictionary": dictionary_learning,
}


def reconstruct(name: str, problem: Problem) -> Outcome:
    """Run the method of ``METHODS`` called ``name``.

    Raises
    ------
    NotApplicable
        For this pattern, these coils, or without its library.
    """
    before = _cpu_s()
    image = METHODS[name](problem)
    return Outcome(image, _cpu_s() - before)


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def bart_axes(data: Tensor) -> np.ndarray:
    """(coil, row, column) as BART has it: (readout, phase, 1, coil)."""
    return data.cpu().numpy().transpose(2, 1, 0)[:, :, None, :]


def write_cfl(path: Path, data: np.ndarray) -> None:
    """Write BART's file pair: a text of the dimensions, and complex64 with the first axis fastest."""
    path.with_suffix(".hdr").write_text("# Dimensions\n" + " ".join(str(size) for size in data.shape) + "\n")
    data.astype(np.complex64).ravel(order="F").tofile(path.with_suffix(".cfl"))


def read_cfl(path: Path) -> np.ndarray:
    """Read BART's file pair."""
    shape = [int(size) for size in path.with_suffix(".hdr").read_text().splitlines()[1].split()]
    return np.fromfile(path.with_suffix(".cfl"), np.complex64).reshape(shape, order="F")
