"""A whole series through the denoiser, each slice with its neighbours, and each looked at once."""

from __future__ import annotations

import torch
from torch import Tensor

from models.ct_denoise.adjacent import Seen
from models.ct_denoise.net import DenoiseUNet, blend


class Stream:
    """Takes the slices of a series in order, a batch at a time, and gives back what is to be taken away from them.

    A slice with neighbours waits for the one after it, so that at most one slice and the estimate of the one before are
    kept. A batch that fails (memory) leaves everything as it was and may be given again in parts.

    Parameters
    ----------
    spacing_mm
        Distance of each slice's neighbours (slice,), NaN where they are not to be used; never for the first and last.
    """

    def __init__(self, net: DenoiseUNet, strength: float, spacing_mm: Tensor) -> None:
        self.net, self.strength, self.spacing_mm = net, strength, spacing_mm
        #: Slices given so far, and those whose noise was given back.
        self.given = self.done = 0
        self._any = bool(torch.isfinite(spacing_mm).any())
        #: The slice that waits for the one after it, with the estimate of the one before it.
        self._waiting: tuple[Tensor, Seen, Tensor] | None = None
        #: The estimate of the last slice that was given.
        self._last: Tensor | None = None

    def feed(self, images: Tensor) -> Tensor:
        """The noise of the slices that are now known with their neighbours, in order; ``images``: the next ones.

        Both (batch, 1, row, column) [HU].
        """
        seen = self.net.look(images, blend(self.strength)[0])
        if not self._any:
            self.given = self.done = self.given + len(images)
            return self.net.taken(images, seen.noise, self.strength)
        estimate, made, done = seen.estimate(), [], self.done
        if self._waiting is not None:
            image, waiting, before = self._waiting
            made.append(self._noise(image, waiting, torch.stack((before, estimate[:1]), 1), done))
        last = estimate[:1] if self._last is None else self._last
        before = torch.cat((last, estimate[:-1]))
        # the last waits for the slice after it, if it may use that one at all
        waits = bool(torch.isfinite(self.spacing_mm[self.given + len(images) - 1]))
        ready = len(images) - waits
        if ready:
            after = torch.cat((estimate[1:], estimate[-1:]))
            around = torch.stack((before, after), 1)[:ready]
            made.append(self._noise(images[:ready], seen.at(slice(0, ready)), around, self.given))
        self._waiting = (images[ready:], seen.at(slice(ready, None)), before[ready:]) if waits else None
        self._last, self.given = estimate[-1:], self.given + len(images)
        self.done = self.given - waits
        return torch.cat(made) if made else images[:0]

    def _noise(self, images: Tensor, seen: Seen, around: Tensor, first: int) -> Tensor:
        """The noise of ``images``, the slices from number ``first`` on."""
        spacing = self.spacing_mm[first : first + len(images)].to(images.device)
        return self.net.taken(images, self.net.beside(seen, around, spacing), self.strength)
