"""What a pipeline on a cine is given, and what it must say of phases."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dicomnode import pipeline as dn
from dicomnode.errors import ResultInvalid
from dicomnode.execute.contract import check_result

HEART = dn.Segment(
    key="lv-ed",
    label="LV blood pool",
    category=dn.codes.SCT.AnatomicalStructure,
    type=dn.Code("87878005", "SCT", "Left ventricle"),
)


class OfCine(dn.Pipeline[dn.CineSeries]):
    algorithm = dn.Algorithm(name="of-cine", version="1")

    def setup(self, runtime: dn.Runtime) -> None: ...

    def run(self, series: dn.CineSeries) -> dn.Result:
        return dn.Result()


class Again(OfCine):
    pass


class OfImages(dn.Pipeline[dn.ImageSeries]):
    pass


def cine(phases: int = 8, slices: int = 3, **changes: object) -> dn.CineSeries:
    shape = (phases, slices, 4, 5)
    given = {
        "array": np.zeros(shape, np.float32),
        "padding": np.zeros(shape, bool),
        "units": dn.Code("1", "UCUM", "no units"),
        "positions": np.arange(slices)[:, None] * [0.0, 0.0, -8.0],
        "orientation": np.array([1.0, 0, 0, 0, 1, 0]),
        "pixel_spacing": (1.4, 1.4),
        "geometry": dn.Geometry.REGULAR,
        "trigger_times": np.arange(phases)[:, None] * np.full(slices, 30.0),
        "intervals": np.full(slices, 800.0),
    }
    return dn.CineSeries(**(given | changes))  # type: ignore[arg-type]


def result(phase: int | None = 2) -> dn.Result:
    labels = np.zeros((3, 4, 5), np.uint8)
    labels[1, 1:3, 1:3] = 1
    segmentation = dn.Segmentation(labels=labels, segments=(HEART,), phase=phase, time_point=dn.END_DIASTOLE)
    return dn.Result(segmentations=(segmentation,), key_planes=(dn.KeyPlane(plane=1, reason="middle", phase=phase),))


def test_a_pipeline_says_in_brackets_what_it_is_given():
    assert OfCine.input_type is Again.input_type is dn.CineSeries
    assert OfImages.input_type is dn.ImageSeries


def test_planes_lie_along_their_normal():
    series = cine()
    assert series.slice_positions.tolist() == [0, 8, 16]
    assert series.step == 8
    assert cine(slices=1).step == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"array": np.zeros((8, 3, 4, 5))},
        {"padding": np.zeros((8, 3, 4, 4), bool)},
        {"positions": np.zeros((2, 3))},
        {"trigger_times": np.zeros(8)},
        {"intervals": np.zeros(8)},
    ],
)
def test_arrays_that_do_not_fit_each_other_make_no_cine(changes):
    with pytest.raises(ValueError, match="must"):
        cine(**changes)


def test_a_segmentation_and_a_key_plane_of_a_cine_name_their_phase():
    check_result(result(), cine())
    for phase in (None, 8, -1):
        with pytest.raises(ResultInvalid, match=rf"segmentation .* phase {phase}, .*key plane 1 is of phase {phase}"):
            check_result(result(phase), cine())


def test_of_an_ordinary_series_nothing_has_a_phase():
    images = dn.ImageSeries(
        array=np.zeros((3, 4, 5), np.float32), padding=np.zeros((3, 4, 5), bool), units=dn.HU,
        positions=cine().positions, orientation=cine().orientation, pixel_spacing=(1.0, 1.0),
        geometry=dn.Geometry.REGULAR,
    )  # fmt: skip
    check_result(result(None), images)
    with pytest.raises(ResultInvalid, match="the series has no phases"):
        check_result(result(0), images)


def test_no_images_are_written_of_a_cine():
    image = dn.Image(array=cine().array, role="a", label="a", description="a", code=dn.Code("113087", "DCM", "Smooth"))
    with pytest.raises(ResultInvalid, match="of which no images can be written"):
        check_result(replace(result(), images=(image,)), cine())
