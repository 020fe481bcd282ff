"""What is shown of complex images: magnitude, phase, real and imaginary part; phases that compare across a measurement.

The phase of an image is that of the coils that saw it together with the object's own. Every slice, echo and set is
combined with maps of its own, each with an arbitrary constant phase; here all are turned to one virtual coil, so that
differences between them (flow, field maps) are the object's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from models.mr_recon import coils
from models.mr_recon.fft import fft2c
from models.mr_recon.nufft import NonUniform
from models.mr_recon.problem import Problem

#: Option -> value 3 of ImageType.
COMPONENTS: Final = {"magnitude": "M", "phase": "P", "real": "R", "imaginary": "I"}
#: Stored value of one radian: half a turn is 4096, 12 bits with a sign.
PHASE_SCALE: Final = 4096 / math.pi
#: Lines and columns around the centre of k-space that tell the constant phase of an image.
CENTRE: Final = 24


def check(wanted: object) -> None:
    """Raise `ValueError` unless ``wanted`` is a list of components, each once."""
    known = ", ".join(COMPONENTS)
    if isinstance(wanted, str) or not isinstance(wanted, Sequence) or not wanted:
        raise ValueError(f"images must be a list of {known}, is {wanted!r}")
    if len(set(wanted)) != len(wanted) or any(one not in COMPONENTS for one in wanted):
        raise ValueError(f"images must be a list of {known}, each at most once, is {list(wanted)!r}")


class Shown:
    """The components of one measurement's images, all phases against one virtual coil for each encoding."""

    def __init__(self, wanted: Sequence[str]) -> None:
        self.wanted = tuple(wanted)
        #: Complex (coil,), the first principal component of the first images.
        self._virtual: dict[int, Tensor] = {}

    @property
    def phases(self) -> bool:
        """Whether anybody looks at a phase."""
        return self.wanted != ("magnitude",)

    def turned(self, encoding: int, images: Tensor, problem: Problem) -> Tensor:
        """``images`` (frame, channel, row, column) as `aligned` makes them, if their phase matters."""
        if not self.phases:
            return images
        if encoding not in self._virtual:
            self._virtual[encoding] = coils.principal(problem.data.movedim(1, 0)).cpu()
        return aligned(images, problem, self._virtual[encoding])

    def turned_off_grid(self, encoding: int, image: Tensor, samples: Tensor, trajectory: Tensor) -> Tensor:
        """The same of one image (row, column) that was measured along ``trajectory``."""
        if not self.phases:
            return image
        virtual = self._virtual.setdefault(encoding, coils.principal(samples))
        return aligned_off_grid(image, samples, trajectory, virtual)

    def of(self, encoding: int, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Magnitude, and what is wanted by its name, of images on the header's grid: see `components`."""
        return components(images, self.wanted, self._virtual.get(encoding))


def aligned(images: Tensor, problem: Problem, virtual: Tensor) -> Tensor:
    """``images`` (frame, channel, row, column) turned, frame by frame, to the phase of the ``virtual`` coil.

    Images of several channels (root sum of squares) keep the phases of their coils: `components` combines them.
    """
    if images.shape[1] != 1:
        return images
    measured = torch.einsum("c,fcyx->fyx", virtual.conj(), problem.data.cpu())
    shape = (measured.shape[-2], measured.shape[-1])
    weight = coils.centre(coils.hann((CENTRE, CENTRE), measured.device), shape)
    there = weight * (problem.counts[:, 0].cpu() > 0)
    common = (there * measured * fft2c(images[:, 0]).conj()).sum((-2, -1))
    return images * torch.exp(1j * common.angle())[:, None, None, None]


def aligned_off_grid(image: Tensor, samples: Tensor, trajectory: Tensor, virtual: Tensor) -> Tensor:
    """The same of one image (row, column) that was measured along ``trajectory`` (sample, 2), in cycles."""
    near = torch.linalg.vector_norm(trajectory, dim=-1) < CENTRE / 4
    shape = (image.shape[-2], image.shape[-1])
    ones = torch.ones(1, *shape, dtype=image.dtype, device=image.device)
    seen = NonUniform(trajectory[near], shape, ones).forward(image)[0]
    common = ((virtual.conj() @ samples[:, near]) * seen.conj()).sum()
    return image * torch.exp(1j * common.angle())


def components(images: Tensor, wanted: Sequence[str], virtual: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
    """Magnitude, and the ``wanted`` components by name: float32 (frame, partition, row, column).

    Parameters
    ----------
    images
        complex64 (frame, channel, partition, row, column), of one channel or of all coils.
    virtual
        The combination of coils whose phase is shown; magnitudes alone need none.
    """
    made: dict[str, Tensor] = {}
    magnitude: Tensor = torch.linalg.vector_norm(images, dim=1)
    if tuple(wanted) == ("magnitude",):
        return magnitude, {"magnitude": magnitude}
    if images.shape[1] == 1:
        phase = images[:, 0].angle()
    else:
        assert virtual is not None  # whoever asks for more than magnitudes has it
        phase = torch.einsum("c,fcpyx->fpyx", virtual.conj(), images).angle()
    for name in wanted:
        match name:
            case "magnitude":
                made[name] = magnitude
            case "phase":
                made[name] = phase
            case "real":
                made[name] = magnitude * torch.cos(phase)
            case _:
                made[name] = magnitude * torch.sin(phase)
    return magnitude, made
