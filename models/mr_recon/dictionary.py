"""Dictionary learning of undersampled k-space, the reference of the deep cascade's paper (not a rung of the node).

After DLMRI (Ravishankar and Bresler, IEEE Trans Med Imaging 2011, 30:1028): atoms are learned by K-SVD from the patches
of the image itself, every overlapping patch is written with few atoms by orthogonal matching pursuit, and the average
of the patches is made consistent with the measurement; in turn, a few times. Complex patches, many coils through SENSE.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.mr_recon.linops import Operator
from models.mr_recon.solvers import conjugate_gradient

#: Patch of 6 x 6 and as few atoms per patch as DLMRI's own experiments; twice as many atoms as pixels.
SIDE = 6
ATOMS = 2 * SIDE**2
MOST_ATOMS = 6
#: Patches the atoms are learned from, and sweeps of K-SVD over them in the first turn; one in each of the others, which
#: begin with learned atoms.
TRAINING, SWEEPS = 4000, 4
TURNS = 15
#: Weight of the patches against the measurement, whose normal operator has eigenvalues up to 1.
PATCH_WEIGHT = 0.2
#: Patches are coded until their residual is below so many sds of the noise, a sd being that of a pixel.
RESIDUAL = 1.15


def cosines() -> Tensor:
    """Overcomplete cosine dictionary complex64 (pixel, atom): the start, unit columns, without the constant."""
    count = round(ATOMS**0.5 + 0.5)
    position = torch.arange(SIDE) + 0.5
    line = torch.cos(torch.pi * position[:, None] * torch.arange(count)[None] / count)  # (pixel, frequency)
    atoms = torch.einsum("ap,bq->abpq", line, line).reshape(SIDE**2, -1)[:, 1:]
    atoms = atoms - atoms.mean(0)
    atoms = atoms[:, torch.linalg.vector_norm(atoms, dim=0) > 1e-3][:, :ATOMS]
    return (atoms / torch.linalg.vector_norm(atoms, dim=0)).to(torch.complex64)


def patches(image: Tensor) -> Tensor:
    """Every patch of (row, column), wrapped around the edges: (pixel, patch)."""
    rolled = [torch.roll(image, (-row, -column), (0, 1)).flatten() for row in range(SIDE) for column in range(SIDE)]
    return torch.stack(rolled)


def average(found: Tensor, shape: tuple[int, int]) -> Tensor:
    """The image whose patches are (pixel, patch) in the mean."""
    total = torch.zeros(shape, dtype=found.dtype, device=found.device)
    for number in range(SIDE**2):
        total += torch.roll(found[number].reshape(shape), divmod(number, SIDE), (0, 1))
    return total / SIDE**2


def pursue(atoms: Tensor, signals: Tensor, residual: float, most: int = MOST_ATOMS) -> Tensor:
    """Coefficients (atom, signal) by orthogonal matching pursuit (Pati 1993), all signals at once.

    Parameters
    ----------
    atoms
        (pixel, atom), unit columns.
    signals
        (pixel, signal).
    residual
        A signal is done when the norm of what is left of it is at most this, or it has ``most`` atoms.
    """
    gram, whole = atoms.mH @ atoms, atoms.mH @ signals  # (atom, atom), (atom, signal)
    energy = (signals.abs() ** 2).sum(0)
    coefficients = torch.zeros_like(whole)
    active = (energy > residual**2).nonzero().flatten()
    chosen = torch.zeros(most, signals.shape[1], dtype=torch.long, device=signals.device)
    tiny = 1e-5 * torch.eye(most, dtype=gram.dtype, device=gram.device)
    for count in range(1, most + 1):
        if not len(active):
            break
        left = (whole[:, active] - gram @ coefficients[:, active]).abs()
        if count > 1:
            left.scatter_(0, chosen[: count - 1, active], -1)
        chosen[count - 1, active] = left.argmax(0)
        index = chosen[:count, active]  # (count, active)
        among = gram[index.T[:, :, None], index.T[:, None, :]] + tiny[:count, :count]
        right = whole[:, active].gather(0, index).T
        values = torch.linalg.solve(among, right).T
        coefficients[:, active] = torch.zeros_like(whole[:, active]).scatter(0, index, values)
        explained = (values.conj() * right.T).real.sum(0)
        active = active[energy[active] - explained > residual**2]
    return coefficients


def learn(atoms: Tensor, signals: Tensor, residual: float, sweeps: int = SWEEPS) -> Tensor:
    """Atoms fitted to ``signals`` by approximate K-SVD (Rubinstein, Technion CS-2008-08)."""
    atoms = atoms.clone()
    for _ in range(sweeps):
        coefficients = pursue(atoms, signals, residual)
        left = signals - atoms @ coefficients
        for number in range(atoms.shape[1]):
            users = (coefficients[number] != 0).nonzero().flatten()
            if not len(users):
                worst = signals[:, (left.abs() ** 2).sum(0).argmax()]
                atoms[:, number] = worst / torch.linalg.vector_norm(worst).clamp(min=torch.finfo(torch.float32).tiny)
                continue
            row = coefficients[number, users]
            without = left[:, users] + atoms[:, number, None] * row
            new = without @ row.conj()
            new = new / torch.linalg.vector_norm(new).clamp(min=torch.finfo(torch.float32).tiny)
            row = new.conj() @ without
            atoms[:, number], coefficients[number, users] = new, row
            left[:, users] = without - new[:, None] * row
    return atoms


def reconstruct(operator: Operator, y: Tensor, noise: float, turns: int = TURNS) -> Tensor:
    """Image (row, column) of one measurement.

    Parameters
    ----------
    noise
        Sd of a sample of ``y``; a pixel's is taken to be the same.
    """
    right = operator.adjoint(y)
    shape = (right.shape[-2], right.shape[-1])
    image = conjugate_gradient(operator.normal, right, iterations=4, damping=1e-2)
    atoms = cosines().to(y.device)
    made = torch.Generator().manual_seed(0)
    # The first turns see aliasing as well as noise: they are coded coarsely.
    for turn in range(turns):
        residual = SIDE * noise * RESIDUAL * max(1.0, 4.0 * (1 - 2 * turn / turns))
        every = patches(image)
        means = every.mean(0)
        every = every - means
        strong = ((every.abs() ** 2).sum(0) > residual**2).nonzero().flatten()
        if len(strong) > ATOMS:
            some = strong[torch.randperm(len(strong), generator=made)[:TRAINING]]
            atoms = learn(atoms, every[:, some], residual, 1 if turn else SWEEPS)
        coded = atoms @ pursue(atoms, every, residual) + means
        target = average(coded, shape)
        image = conjugate_gradient(
            operator.normal, right + PATCH_WEIGHT * target, image, iterations=6, damping=PATCH_WEIGHT
        )
    return image
