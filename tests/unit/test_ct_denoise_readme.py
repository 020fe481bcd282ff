"""The listing in pipelines/README.md is a pipeline that loads, runs and refuses, as it stands."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from dicomnode import pipeline as dn

README = Path(__file__).parents[2] / "pipelines" / "README.md"


@pytest.fixture
def smoothing(monkeypatch) -> type[dn.Pipeline[dn.ImageSeries]]:
    listing, *_ = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    module = types.ModuleType("ct_smooth")
    monkeypatch.setitem(sys.modules, "ct_smooth", module)
    exec(compile(listing, str(README), "exec"), module.__dict__)
    return module.CTSmoothing


def series(modality: str) -> dn.ImageSeries:
    array = 40.0 + 10.0 * np.random.default_rng(0).standard_normal((4, 32, 32)).astype(np.float32)
    padding = np.zeros(array.shape, bool)
    padding[:, :3] = True
    array[padding] = -2000.0
    return dn.ImageSeries(
        array=array,
        padding=padding,
        units=dn.HU,
        positions=np.array([[0.0, 0.0, 3.0 * k] for k in range(4)]),
        orientation=np.array([1.0, 0, 0, 0, 1, 0]),
        pixel_spacing=(0.5, 0.5),
        geometry=dn.Geometry.REGULAR,
        acquisition={"Modality": modality},
    )


def test_the_listing_smooths_and_keeps_padding(smoothing):
    pipeline = smoothing(smoothing.Options(sigma_mm=1.0))
    pipeline.setup(dn.Runtime(device="cpu", weights=Path()))
    given = series("CT")
    (image,) = pipeline.run(given).images
    assert image.array[:, 16:].std() < 0.5 * given.array[:, 16:].std()
    assert np.array_equal(image.array[given.padding], given.array[given.padding])
    assert "1 mm" in image.description


def test_the_listing_refuses_what_is_not_ct(smoothing):
    pipeline = smoothing()
    pipeline.setup(dn.Runtime(device="cpu", weights=Path()))
    with pytest.raises(dn.Unsuitable, match="MR"):
        pipeline.run(series("MR"))


def test_the_listing_is_short():
    listing, *_ = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(listing.splitlines()) <= 50
