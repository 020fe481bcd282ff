"""Results with known answers: what a pipeline would have returned, and the context they are encoded in."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicomnode import pipeline as dn
from dicomnode.encode.identity import EncodeContext

SMOOTHING = dn.Code("113087", "DCM", "Smoothing")


def context(**changes: Any) -> EncodeContext:
    """A context that is the same every time, but for ``changes``."""
    values: dict[str, Any] = {
        "job_key": "a1" * 32,
        "algorithm": dn.Algorithm(name="ct-denoising", version="1.0.0"),
        "weights_digest": "b2" * 32,
        "when": datetime(2026, 1, 5, 10, 20, 30, 123456, tzinfo=UTC),
        "series_number": 9000,
        "device_serial": "node-1",
    }
    return EncodeContext(**(values | changes))


def result(array: NDArray[np.float32], *, role: str = "denoised", label: str = "AI denoised") -> dn.Result:
    """One derived image."""
    description = "AI noise reduction (ct-denoising 1.0.0, strength 0.6)"
    return dn.Result(images=(dn.Image(array=array, role=role, label=label, description=description, code=SMOOTHING),))


def identity(series: dn.ImageSeries) -> dn.Result:
    """A pipeline that changes nothing."""
    return result(series.array.copy())


def shifted(series: dn.ImageSeries, by: float) -> dn.Result:
    """A pipeline that adds ``by`` [the series' units] to every voxel, padding too."""
    return result(series.array + np.float32(by))
