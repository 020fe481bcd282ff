"""Images in units of their own noise (Kellman and McVeigh, Magn Reson Med 2005, 54:1439).

A value is the signal over the standard deviation of the noise of one component (real or imaginary), pixel by pixel.
That needs noise that is known from a scan and a method that is linear: what compressed sensing or a network makes of
noise has no standard deviation that would hold for the image.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from models.mr_recon import ladder
from models.mr_recon.ladder import Outcome
from models.mr_recon.problem import Problem
from pipelines import mr_readouts
from pipelines.mr_images import Part, Unit, window_at

#: Stored value of a signal to noise ratio of 1 (ml-mr 1.5).
SCALE: Final = 10.0
#: Methods whose noise is known, and what is taken where the data allows the choice.
LINEAR: Final = ("sense-cg", "fft-adaptive", "fft-rss")
#: Images of pure noise that measure what CG-SENSE makes of it (Robson, Magn Reson Med 2008, 60:895), and the window
#: [pixels] over which their power is averaged: 2 % of a standard deviation.
REPLICAS: Final = 24
WINDOW: Final = 9
#: Real and imaginary part of noise whose complex standard deviation is 1 have this one each.
COMPONENT: Final = 0.5**0.5
#: Noise below this part of a sample's is no noise but the place where maps are zero.
NOTHING: Final = 1e-3


class NoNoise(ValueError):
    """Why an image cannot be given in units of its noise."""


class Units:
    """Whether the series of a measurement are in units of their noise: the first images of each decide.

    Parameters
    ----------
    wanted
        Somebody asked for it.
    """

    def __init__(self, *, wanted: bool) -> None:
        self._wanted = wanted
        self._absent: dict[int, str] = {}
        self._begun: set[int] = set()

    def there(self, encoding: int) -> bool:
        """Whether the series of ``encoding`` is in units of its noise."""
        return self._wanted and encoding not in self._absent

    def said(self, encoding: int) -> str:
        """In words, for the image's description; empty: nobody asked."""
        if not self._wanted:
            return ""
        why = self._absent.get(encoding)
        return f"not in SNR units: {why}" if why else f"SNR units times {SCALE:g}"

    def refuse(self, encoding: int, why: str) -> str:
        """Leave the series of ``encoding`` in its own units; a note the first time."""
        if not self.there(encoding):
            return ""
        self._absent[encoding] = why
        return self.said(encoding)

    def method_for(self, encoding: int, problem: Problem) -> str:
        """The linear method that fits ``problem`` best; empty: any method may be taken."""
        if not self.there(encoding) or not problem.noise_scan:
            return ""
        return "fft-adaptive" if problem.sampling.pattern == "full" else "sense-cg"

    def applied(self, encoding: int, part: Part, outcome: Outcome, unit: Unit, window: str) -> tuple[Outcome, str]:
        """``outcome`` in units of its noise where that can be, and a note."""
        if not self.there(encoding):
            return outcome, ""
        try:
            made = replace(outcome, images=in_noise_units(part, outcome, unit, window))
        except NoNoise as error:
            if encoding not in self._begun:
                return outcome, self.refuse(encoding, str(error))
            # Of one series, so in its units as far as they are known: what unfolding adds and averages take is not.
            remark = f"not in SNR units: {error}; the value is over the noise of one sample, not of the image"
            whole = replace(outcome, images=outcome.images / COMPONENT, remarks=(*outcome.remarks, remark))
            return whole, remark
        self._begun.add(encoding)
        return made, ""


def in_noise_units(part: Part, outcome: Outcome, unit: Unit, window: str) -> Tensor:
    """``outcome.images`` over the noise of one component: it is 1 once they lie on the header's grid.

    Raises
    ------
    NoNoise
        The noise is not known, with the reason.
    """
    problem = part.problem
    if not problem.noise_scan:
        raise NoNoise("there is no noise scan")
    if outcome.rung not in LINEAR:
        raise NoNoise(f"{ladder.LABELS[outcome.rung]} is not linear, or its combination of coils follows the image")
    if mr_readouts.volume(unit.encoding):
        raise NoNoise("the noise of volumes is not followed through their partitions")
    if not bool(problem.region.all()):
        raise NoNoise("partial Fourier is filled in by the image's own phase, which is not linear")
    noise = _replicated(problem) if outcome.rung == "sense-cg" else _averaged(problem)
    images = outcome.images
    return torch.where(noise > NOTHING, images / (noise.clamp(min=NOTHING) * COMPONENT * _kept(part, unit, window)), 0)


def _averaged(problem: Problem) -> Tensor:
    """(frame, 1, 1, 1): orthonormal transforms leave noise as it is, averages and zeros lower it alike everywhere."""
    counts = problem.counts
    power = torch.where(counts > 0, 1 / counts.clamp(min=1), 0).mean((-2, -1), keepdim=True)
    return power.sqrt()


def _replicated(problem: Problem) -> Tensor:
    """(frame, 1, row, column): of CG-SENSE, by reconstructing noise with the same maps and the same lines."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for counts in problem.counts:
        shape = (REPLICAS, *problem.data.shape[1:])
        drawn = torch.randn(shape, dtype=torch.complex64, generator=generator).to(problem.data.device)
        noise = torch.where(counts > 0, drawn / counts.clamp(min=1).sqrt(), 0)
        alone = replace(problem, data=noise, counts=counts.expand(REPLICAS, -1, -1, -1), dynamic=False)
        images = ladder.Ladder("sense-cg").reconstruct(alone, networks=False).images[:, 0]
        power = images.abs().square().mean(0)
        there = (power > 0).float()
        mean, share = (functional.avg_pool2d(one[None], WINDOW, 1, WINDOW // 2)[0] for one in (power * there, there))
        found.append(torch.where(share > 0, mean / share.clamp(min=1e-6), 0).sqrt()[None] * there)
    return torch.stack(found)


def _kept(part: Part, unit: Unit, window: str) -> float:
    """Part of the noise's standard deviation that coarser pixels and a window over k-space leave."""
    encoding, line = unit.encoding, unit.profiles.line
    rows, columns = part.problem.data.shape[-2:]
    fields = (encoding.encoded_fov[1], line.kept * encoding.encoded_fov[0] / line.columns)
    power = 1.0
    for axis, (have, fov) in enumerate(zip((rows, columns), fields, strict=True)):
        size, wanted = encoding.recon_matrix[1 - axis], encoding.recon_fov[1 - axis]
        # Frequencies of the new grid, in steps of it, that hold noise.
        filled = min(1.0, have / fov * wanted / size)
        places = (torch.arange(size) - size // 2).abs() / (size / 2)
        inside = places <= filled + 1e-9
        power *= float(window_at(places[inside], window).square().mean()) * min(1.0, size * fov / wanted / have)
    return float(power**0.5)
