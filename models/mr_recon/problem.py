"""What a reconstruction is asked to solve."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from models.mr_recon.lines import Sampling

#: Samples of all frames together over those of one, from which time tells what space does not.
VARIED: Final = 1.5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Problem:
    """Images of one place that share coils: one, or the frames of a cine, or the columns of a volume."""

    #: complex64 (frame, coil, ky, kx), whitened; zero where nothing was measured.
    data: Tensor
    #: float32 (frame, 1, ky, kx): readouts that were averaged.
    counts: Tensor
    #: complex64 (coil, ky, kx): the fully sampled centre; None: there is none. With a leading axis where frames are
    #: columns of a volume, each with maps of its own.
    calibration: Tensor | None
    sampling: Sampling
    #: Bool (ky, kx): the measured region, gaps of undersampling filled in; False: partial Fourier, asymmetric echo.
    region: Tensor
    #: Whether the noise is known from a scan.
    noise_scan: bool
    #: Whether frames follow each other in time.
    dynamic: bool = False

    @property
    def varied(self) -> bool:
        """Whether the frames together measure well more than each of them."""
        there = self.counts > 0
        return float(there.any(0).float().mean()) >= VARIED * float(there.float().mean())

    def on(self, device: torch.device) -> Problem:
        """The same on another device."""
        known = None if self.calibration is None else self.calibration.to(device)
        data, counts, region = (tensor.to(device) for tensor in (self.data, self.counts, self.region))
        return replace(self, data=data, counts=counts, calibration=known, region=region)
