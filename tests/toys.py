"""Small pipelines for tests: each does one thing the node must survive."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dicomnode import pipeline as dn
from tests import cine, phantoms

SMOOTHING = dn.Code("113087", "DCM", "Smoothing")


def _image(array: np.ndarray, role: str = "toy") -> dn.Image:
    return dn.Image(array=array, role=role, label="toy", description="toy", code=SMOOTHING)


class Shift(dn.Pipeline[dn.ImageSeries]):
    """Add a constant."""

    algorithm = dn.Algorithm(name="toy-shift", version="1.0.0")
    accepts_incomplete = True

    @dataclass(frozen=True)
    class Options:
        hu: float = 1.0
        seconds: float = 0.0

    options: Options

    def setup(self, runtime: dn.Runtime) -> None:
        self.runtime = runtime

    def run(self, series: dn.ImageSeries) -> dn.Result:
        end = time.monotonic() + self.options.seconds
        while time.monotonic() < end:
            self.runtime.progress("sleeping", 0.5)
            time.sleep(0.05)
        out = np.where(series.padding, series.array, series.array + np.float32(self.options.hu))
        return dn.Result(images=(_image(out.astype(np.float32)),), quality={"shift_hu": self.options.hu})


class Picky(Shift):
    """Refuse everything."""

    algorithm = dn.Algorithm(name="toy-picky", version="1.0.0")

    def run(self, series: dn.ImageSeries) -> dn.Result:
        raise dn.Unsuitable(f"does not like {len(series.array)} slices")


class Broken(Shift):
    """Raise."""

    algorithm = dn.Algorithm(name="toy-broken", version="1.0.0")

    def run(self, series: dn.ImageSeries) -> dn.Result:
        raise RuntimeError("broken on purpose")


class Hungry(Shift):
    """Run out of memory, every time."""

    algorithm = dn.Algorithm(name="toy-hungry", version="1.0.0")

    def run(self, series: dn.ImageSeries) -> dn.Result:
        raise MemoryError("no memory on purpose")


class Poison(Shift):
    """Take the process down."""

    algorithm = dn.Algorithm(name="toy-poison", version="1.0.0")

    def run(self, series: dn.ImageSeries) -> dn.Result:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


class NotFinite(Shift):
    """Return what must never be sent."""

    algorithm = dn.Algorithm(name="toy-nan", version="1.0.0")

    def run(self, series: dn.ImageSeries) -> dn.Result:
        return dn.Result(images=(_image(np.full_like(series.array, np.nan)),))


class Unloadable(Shift):
    """Fail in setup."""

    algorithm = dn.Algorithm(name="toy-unloadable", version="1.0.0")

    def setup(self, runtime: dn.Runtime) -> None:
        raise FileNotFoundError(Path("weights.safetensors"))


class Bleeding(Shift):
    """Find two lesions in every head, or what ``says`` names."""

    algorithm = dn.Algorithm(name="toy-bleeding", version="1.0.0")

    @dataclass(frozen=True)
    class Options:
        says: str = "bleeding"  # a function of tests.phantoms

    options: Options

    def run(self, series: dn.ImageSeries) -> dn.Result:
        found: dn.Result = getattr(phantoms, self.options.says)(series)
        return found


class Doubtful(Bleeding):
    """Find what `Bleeding` finds, and want a person to look first."""

    algorithm = dn.Algorithm(name="toy-doubtful", version="1.0.0")

    def run(self, series: dn.ImageSeries) -> dn.Result:
        return replace(super().run(series), hold="the toy is not sure of its lesions")


class Wavering(Shift):
    """Find lesions in up to six planes, and none in more: what late slices may do to a finding."""

    algorithm = dn.Algorithm(name="toy-wavering", version="1.0.0")

    def run(self, series: dn.ImageSeries) -> dn.Result:
        return phantoms.bleeding(series) if len(series.array) <= 6 else phantoms.not_bleeding(series)


class Beating(dn.Pipeline[dn.CineSeries]):
    """Segment the heart of `tests.cine` at two phases."""

    algorithm = dn.Algorithm(name="toy-beating", version="1.0.0")

    def setup(self, runtime: dn.Runtime) -> None: ...

    def run(self, series: dn.CineSeries) -> dn.Result:
        return cine.beating(series)
