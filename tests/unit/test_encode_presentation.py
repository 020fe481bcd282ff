"""Presentation states: every outline on its own image, in the window of the result; what would mislead is refused."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
from pydicom import Dataset

from dicomnode import pipeline as dn
from dicomnode.domain import ObjectKind
from dicomnode.encode.gate import check_objects
from dicomnode.encode.gate_pr import inside
from dicomnode.encode.result import encode_result
from dicomnode.errors import EncodingError
from dicomnode.volumes.cine import load_cine
from dicomnode.volumes.series import load
from tests import cine, factories, phantoms
from tests.unit.test_encode_gate import SOURCES

STATE = [ObjectKind.PRESENTATION]


def written(source, result) -> list[Dataset]:
    return [one.dataset for one in encode_result(source, result, phantoms.context(), kinds=STATE)]


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    series = factories.ct_series(6, rows=32, columns=24, spacing=(0.5, 0.7))
    source = load(factories.write_series(tmp_path_factory.mktemp("good"), series))
    result = phantoms.bleeding(source.images)
    (state,) = written(source, result)
    return source, result, state


def annotations(ds):
    """(SOP Instance UID, frame, label of the layer, points) of every outline."""
    labels = {layer.GraphicLayer: layer.GraphicLayerDescription for layer in ds.GraphicLayerSequence}
    for item in ds.GraphicAnnotationSequence:
        (image,) = item.ReferencedImageSequence
        (graphic,) = item.GraphicObjectSequence
        points = np.array(graphic.GraphicData).reshape(-1, 2)
        yield str(image.ReferencedSOPInstanceUID), image.get("ReferencedFrameNumber"), labels[item.GraphicLayer], points


@pytest.mark.parametrize("case", SOURCES)
def test_every_segment_is_outlined_on_every_key_plane(tmp_path, case):
    source = load(factories.write_series(tmp_path, SOURCES[case]()))
    result = phantoms.bleeding(source.images)
    (state,) = written(source, result)
    labels = result.segmentations[0].labels
    numbers = {one.label: number for number, one in enumerate(result.segmentations[0].segments, 1)}
    planes = {(str(source.headers[p.header].SOPInstanceUID), p.frame): n for n, p in enumerate(source.planes)}
    seen = set()
    for uid, frame, label, points in annotations(state):
        plane = planes[uid, int(frame or 0)]
        np.testing.assert_array_equal(inside(points, labels.shape[1:]), labels[plane] == numbers[label])
        seen.add((plane, label))
    middle = len(labels) // 2
    iph, sdh = phantoms.IPH.label, phantoms.SDH.label
    assert seen == {(middle, iph), (middle, sdh), (middle - 1, iph)}


def test_the_window_is_the_results_in_the_units_of_the_images(good):
    source, _, state = good
    (window,) = state.SoftcopyVOILUTSequence
    assert (float(window.WindowCenter), float(window.WindowWidth)) == (40.0, 80.0)
    assert window.WindowCenterWidthExplanation == "AI outlines"  # one word for one window
    plane = source.planes[0]
    assert (float(state.RescaleSlope), float(state.RescaleIntercept)) == (plane.slope, plane.intercept)
    assert state.RescaleType == "HU"


def test_pixels_are_shown_in_their_real_shape_and_colours_told_apart(good):
    _, _, state = good
    (area,) = state.DisplayedAreaSelectionSequence
    assert [float(one) for one in area.PresentationPixelSpacing] == [0.5, 0.7]
    assert "PresentationPixelAspectRatio" not in area
    colours = [tuple(layer.GraphicLayerRecommendedDisplayCIELabValue) for layer in state.GraphicLayerSequence]
    assert len(set(colours)) == 2


def test_it_covers_every_image_of_the_series_and_says_research(good):
    source, _, state = good
    (series,) = state.ReferencedSeriesSequence
    named = {str(image.ReferencedSOPInstanceUID) for image in series.ReferencedImageSequence}
    assert named == {str(header.SOPInstanceUID) for header in source.headers}
    assert state.SeriesDescription == "AI outlines, RUO" and state.SeriesNumber == 9080
    texts = [text.UnformattedTextValue for one in state.GraphicAnnotationSequence for text in one.TextObjectSequence]
    assert all(text.endswith("(AI, research use only)") for text in texts)


def test_equal_runs_give_equal_bytes(good):
    source, result, state = good
    assert written(source, result) == [state]


def test_images_of_several_rescales_get_a_state_each(tmp_path):
    series = factories.mr_series(6)
    for number, ds in enumerate(series):
        ds.RescaleSlope, ds.RescaleIntercept = "2" if number < 3 else "4", "0"
    source = load(factories.write_series(tmp_path, series))
    result = phantoms.bleeding(source.images)
    states = written(source, result)
    assert {float(state.RescaleSlope) for state in states} == {2.0, 4.0}
    assert len({str(state.SeriesInstanceUID) for state in states}) == 2
    assert sum(len(list(annotations(state))) for state in states) == 3
    assert all(len(state.ReferencedSeriesSequence[0].ReferencedImageSequence) == 3 for state in states)


def test_without_outlines_there_is_none(tmp_path):
    source = load(factories.write_series(tmp_path, factories.ct_series(4)))
    assert written(source, phantoms.not_bleeding(source.images)) == []
    assert written(source, replace(phantoms.bleeding(source.images), key_planes=())) == []


def test_it_needs_no_frame_of_reference(tmp_path):
    source = load(factories.write_series(tmp_path, factories.ct_series(6, missing=["FrameOfReferenceUID"])))
    (state,) = written(source, phantoms.bleeding(source.images))
    assert len(list(annotations(state))) == 3


def test_outlines_of_a_phase_lie_on_its_images(tmp_path):
    source = load_cine(factories.write_series(tmp_path, cine.one_series()))
    result = cine.beating(source.series)
    phases = {key.phase for key in result.key_planes}
    (state,) = written(source, result)
    wanted = {str(header.SOPInstanceUID) for phase in phases for header in source.at_phase(phase).headers}
    assert {uid for uid, *_ in annotations(state)} <= wanted


@pytest.mark.parametrize("width", [0.25, 1.0])
def test_a_narrow_window_is_exact(tmp_path, width):
    source = load(factories.write_series(tmp_path, factories.ct_series(6)))
    (state,) = written(source, replace(phantoms.bleeding(source.images), window=(0.5, width)))
    (window,) = state.SoftcopyVOILUTSequence
    assert window.VOILUTFunction == "LINEAR_EXACT" and float(window.WindowWidth) == width


def graphic(ds):
    return ds.GraphicAnnotationSequence[0].GraphicObjectSequence[0]


def moved(by):
    def damage(ds):
        points = np.array(graphic(ds).GraphicData)
        graphic(ds).GraphicData = (points + by).tolist()

    return damage


def swapped(ds):
    first, *_, other = ds.GraphicAnnotationSequence  # of two segments, on two planes
    kept = first["ReferencedImageSequence"].value
    first["ReferencedImageSequence"].value = other["ReferencedImageSequence"].value
    other["ReferencedImageSequence"].value = kept


def layers_swapped(ds):
    first, second = ds.GraphicLayerSequence
    first.GraphicLayerDescription, second.GraphicLayerDescription = (
        second.GraphicLayerDescription,
        first.GraphicLayerDescription,
    )


def part_of_it(ds):
    points = np.array(graphic(ds).GraphicData).reshape(-1, 2)
    low, high = points.min(axis=0), points.max(axis=0)
    corner = [low, [low[0], high[1]], high, low]
    graphic(ds).GraphicData = np.array(corner).ravel().tolist()


WRONG = {
    "no rescale": (lambda ds: delattr(ds, "RescaleIntercept"), "its rescale 1, 0 is not that of plane 0"),
    "another window": (
        lambda ds: setattr(ds.SoftcopyVOILUTSequence[0], "WindowCenter", "400"),
        r"its window is \(400.0, 80.0\), the result's",
    ),
    "black for white": (
        lambda ds: setattr(ds, "PresentationLUTShape", "INVERSE"),
        "PresentationLUTShape is INVERSE, not IDENTITY",
    ),
    "no window": (lambda ds: delattr(ds, "SoftcopyVOILUTSequence"), "its window is"),
    "square pixels": (
        lambda ds: setattr(ds.DisplayedAreaSelectionSequence[0], "PresentationPixelSpacing", ["1", "1"]),
        "pixels would be shown in another shape",
    ),
    "beside": (moved(6.0), "lies beside what it outlines"),
    "outside": (moved(30.0), "the outline leaves its image"),
    "half of it": (part_of_it, "leaves out much of what it outlines"),
    "another plane": (swapped, "is outlined on plane|lies beside|is not outlined on plane"),
    "layers swapped": (layers_swapped, "is outlined on plane|lies beside"),
    "open": (
        lambda ds: setattr(graphic(ds), "GraphicData", list(graphic(ds).GraphicData)[:-2]),
        "is not closed",
    ),
    "in another unit": (lambda ds: setattr(graphic(ds), "GraphicAnnotationUnits", "DISPLAY"), "points in pixels"),
    "one left out": (
        lambda ds: setattr(ds, "GraphicAnnotationSequence", ds.GraphicAnnotationSequence[1:]),
        "is not outlined on plane",
    ),
    "image elsewhere": (
        lambda ds: setattr(
            ds.ReferencedSeriesSequence[0].ReferencedImageSequence[0], "ReferencedSOPInstanceUID", "1.2.3"
        ),
        "refers to 1.2.3, which is neither of the source",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_the_gate_refuses_a_state_that_would_mislead(good, case):
    source, result, state = good
    damage, said = WRONG[case]
    changed = deepcopy(state)
    damage(changed)
    with pytest.raises(EncodingError, match=said):
        check_objects([changed], source, result)


def test_the_inside_of_a_polygon_is_what_it_encloses():
    square = np.array([[1, 1], [4, 1], [4, 3], [1, 3], [1, 1]], float)
    wanted = np.zeros((5, 6), bool)
    wanted[1:3, 1:4] = True
    np.testing.assert_array_equal(inside(square, (5, 6)), wanted)


def test_a_result_that_says_more_than_images_is_not_held_up_by_it(good):
    source, result, _ = good
    kinds = {one.kind for one in encode_result(source, result, phantoms.context())}
    assert ObjectKind.PRESENTATION not in kinds, "only where somebody asks"
    assert isinstance(result, dn.Result)
