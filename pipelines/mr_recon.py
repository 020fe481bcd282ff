"""MR images from raw k-space, line by line: linear, compressed sensing or learned. See models/mr_recon/CARD.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from dicomnode import pipeline as dn
from models.mr_recon import ladder
from pipelines import mr_components, mr_readouts, mr_snr
from pipelines.mr_stream import Measurement

#: Windows over k-space.
FILTERS: Final = ("none", "hamming", "tukey")
#: Units of magnitudes.
SCALES: Final = ("body", "snr")
#: In a folder of weights.
MANIFEST: Final = "manifest.yaml"


class MRReconstruction(dn.StreamingPipeline):
    algorithm = dn.Algorithm(name="mr-reconstruction", version="0.2.0", weights="models/mr_recon")
    accepts_incomplete = True  # images are refused one by one, by what is missing of each

    @dataclass(frozen=True)
    class Options:
        #: ``auto``: the best that fits the data; or the method to begin with: learned, cs-kttv, cs-l1, sense-cg,
        #: grappa, fft-adaptive, fft-rss. Where it does not fit or fails, the next that fits, and the image says why.
        method: str = "auto"
        #: Whether a trained network may shape images.
        learned: bool = True
        #: Make images where the header has no direction cosines; they have no place in the patient.
        allow_no_geometry: bool = False
        #: How images are turned: ``display``, as readers expect them, or ``measured``, columns along the readout. The
        #: header says which; every voxel lies where it lies either way.
        orientation: str = "display"
        #: Part of an image's lines that may be missing; what is missing more is not shown as an image.
        max_missing: float = 0.25
        #: Length of a tick of physiology time stamps [ms]: 2.5 at Siemens, others differ and the header does not say.
        tick_ms: float = 2.5
        #: Window over k-space: none, hamming, tukey.
        filter: str = "none"
        #: Which images: a list of magnitude, phase, real, imaginary. Each is a series of its own.
        images: Sequence[str] = ("magnitude",)
        #: Units of magnitudes: ``body``, its brightest is 0.8 of 12 bits; or ``snr``, 10 times the signal to noise
        #: ratio, by linear methods and where there is a noise scan (else as ``body``, and the image says why).
        scale: str = "body"

        def __post_init__(self) -> None:
            mr_components.check(self.images)
            if self.scale not in SCALES:
                raise ValueError(f"scale must be {', '.join(SCALES)}, is {self.scale!r}")
            if self.scale == "snr" and self.method not in ("auto", *mr_snr.LINEAR):
                raise ValueError(f"scale snr needs a linear method: {', '.join(mr_snr.LINEAR)}; not {self.method}")
            if self.method != "auto" and self.method not in ladder.RUNGS:
                raise ValueError(f"method must be auto, {', '.join(ladder.RUNGS)}, is {self.method!r}")
            if self.filter not in FILTERS:
                raise ValueError(f"filter must be {', '.join(FILTERS)}, is {self.filter!r}")
            if self.orientation not in ("display", "measured"):
                raise ValueError(f"orientation must be display or measured, is {self.orientation!r}")
            if not 0.0 <= self.max_missing < 1.0:
                raise ValueError(f"max_missing must be in [0, 1), is {self.max_missing!r}")
            if self.tick_ms <= 0:
                raise ValueError(f"tick_ms must be positive, is {self.tick_ms!r}")

    options: Options

    def setup(self, runtime: dn.Runtime) -> None:
        self.device = torch.device(runtime.device)
        if self.device.type == "cpu":
            # One, whatever the node offers: the steps are short, and threads that wait for each other at the end of
            # every one are 20 times slower than one thread when the machine's cores are busy (61 s against 3 s).
            torch.set_num_threads(1)
        self.progress: Callable[[str, float], None] = runtime.progress
        network, absent = None, ""
        if self.options.learned or self.options.method == "learned":
            if (runtime.weights / MANIFEST).is_file():
                from models.mr_recon import bundle  # only where there are weights

                network = bundle.load(runtime.weights, self.device)
            else:
                absent = "no weights are installed"
        self.ladder = ladder.Ladder(self.options.method, network, absent)

    def begin(self, header: dn.KSpaceHeader) -> Measurement:
        if not header.encodings:
            raise dn.Unsuitable("the header has no encoding: no matrix, no field of view")
        mr_readouts.refuse_encoding(header.encodings[0])
        return Measurement(self, header)
