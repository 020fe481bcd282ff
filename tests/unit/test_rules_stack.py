from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicomnode.rules import is_regular_stack
from tests.factories import CORONAL, ct_series, plane_positions


def headers(datasets):
    """What the receiver would index."""
    return [
        {
            "ImagePositionPatient": "\\".join(map(str, ds.ImagePositionPatient)),
            "ImageOrientationPatient": "\\".join(map(str, ds.ImageOrientationPatient)),
            "Rows": str(ds.Rows),
            "Columns": str(ds.Columns),
        }
        for ds in datasets
    ]


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"orientation": CORONAL},
        {"tilt": 18.5},
        {"order": "shuffled"},
        {"order": "descending"},
        {"step": 0.625},
        {"n": 3},
    ],
    ids=str,
)
def test_a_stack_without_gaps_is_regular(knobs):
    verdict = is_regular_stack(headers(ct_series(**knobs)))
    assert verdict.regular, verdict.reason
    assert not verdict.holes


def test_a_tilted_stack_says_so():
    assert "tilted by 18.5 degrees" in is_regular_stack(headers(ct_series(n=12, tilt=18.5))).reason


@pytest.mark.parametrize(
    ("gap", "missing"), [((3,), "1 plane is missing"), ((2, 5), "2 planes are"), ((3, 4), "2 planes")]
)
def test_a_missing_plane_is_a_hole(gap, missing):
    verdict = is_regular_stack(headers(ct_series(n=12, gap=gap)))
    assert not verdict.regular
    assert verdict.holes
    assert missing in verdict.reason


def test_two_zones_of_a_head_scan_are_uneven_but_nothing_is_known_to_be_missing():
    verdict = is_regular_stack(headers(ct_series(n=16, step=[2.5] * 9 + [5.0] * 6)))
    assert not verdict.regular
    assert not verdict.holes
    assert verdict.reason == "uneven steps, 2.50 mm to 5.00 mm, at 16 positions"


def test_a_cine_with_equal_phases_is_regular():
    verdict = is_regular_stack(headers(ct_series(n=5)) * 20)
    assert verdict.regular
    assert "20 phases each" in verdict.reason


def test_a_cine_that_misses_one_phase_has_a_hole():
    verdict = is_regular_stack((headers(ct_series(n=5)) * 20)[:-1])
    assert not verdict.regular
    assert verdict.holes
    assert verdict.reason == "20 instance(s) at 4 positions but 19 at 1"


def test_a_duplicate_position_is_not_a_hole():
    verdict = is_regular_stack(headers(ct_series(n=6, duplicate=[2])))
    assert not verdict.regular
    assert not verdict.holes


def test_a_plane_shifted_sideways_is_no_stack():
    found = headers(ct_series(n=6))
    x, y, z = found[3]["ImagePositionPatient"].split("\\")
    found[3]["ImagePositionPatient"] = f"{float(x) + 5}\\{y}\\{z}"
    assert "sideways" in is_regular_stack(found).reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ImagePositionPatient": ""}, "1 of 6 instances do not say where they lie"),
        ({"ImagePositionPatient": "a\\b\\c"}, "do not say"),
        ({"ImagePositionPatient": "1\\2"}, "do not say"),
        ({"ImagePositionPatient": "nan\\0\\0"}, "do not say"),
        ({"ImagePositionPatient": "1e400\\0\\0"}, "do not say"),
        ({"ImageOrientationPatient": "0\\0\\0\\0\\0\\0"}, "do not say"),
        ({"ImageOrientationPatient": "1\\0\\0\\0\\0\\-1"}, "different orientation"),
        ({"Rows": "31"}, "different size"),
        ({"NumberOfFrames": "2"}, "multi-frame"),
    ],
)
def test_what_cannot_be_a_stack_says_why(change, reason):
    found = headers(ct_series(n=6))
    found[2] |= change
    verdict = is_regular_stack(found)
    assert not verdict.regular
    assert reason in verdict.reason


def test_no_instances_and_one_instance_are_not_regular():
    assert is_regular_stack([]).reason == "no instances"
    assert not is_regular_stack(headers(ct_series(n=1))).regular


KEYWORDS = ("ImagePositionPatient", "ImageOrientationPatient", "Rows", "Columns", "NumberOfFrames")


@given(st.lists(st.dictionaries(st.sampled_from(KEYWORDS), st.text(max_size=20)), max_size=5))
def test_garbled_headers_never_raise(found):
    assert not is_regular_stack(found).regular


@given(
    st.integers(3, 40),
    st.floats(0.3, 20),
    st.tuples(st.floats(-200, 200), st.floats(-200, 200), st.floats(-1500, 1500)),
    st.integers(1, 5),
    st.randoms(use_true_random=False),
)
def test_any_even_stack_is_regular_in_any_order(n, step, origin, phases, random):
    positions = plane_positions(n, step=step, origin=origin)
    texts = ["\\".join(f"{value:.6f}" for value in position) for position in positions]
    axial = "1\\0\\0\\0\\1\\0"
    found = [{"ImagePositionPatient": one, "ImageOrientationPatient": axial} for one in texts] * phases
    random.shuffle(found)
    assert is_regular_stack(found).regular
