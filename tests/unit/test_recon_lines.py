"""Lines added up to images, and the pattern they make."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.mr_recon import lines

SIZE = 128
ACS = set(range(52, 76))


def pattern(rows, limits=(0, SIZE), flagged=(), acceleration=1) -> lines.Sampling:
    there = np.zeros(SIZE, bool)
    there[list(rows)] = True
    return lines.sampling(there, limits, flagged, acceleration)


def test_every_line_is_full_sampling() -> None:
    found = pattern(range(SIZE))
    assert (found.pattern, found.acceleration, found.missing, found.partial) == ("full", 1.0, 0.0, False)
    assert found.calibration == (0, SIZE)


@pytest.mark.parametrize("step", [2, 3, 4, 6])
def test_regular_lines_with_a_calibration_block_are_uniform(step: int) -> None:
    rows = set(range(1, SIZE, step)) | ACS
    found = pattern(rows, flagged=ACS, acceleration=step)
    assert (found.pattern, found.acceleration, found.missing) == ("uniform", step, 0.0)
    assert found.lines >= len(ACS)
    assert found.expected == len(rows)


def test_dropped_lines_are_missed_and_do_not_make_the_pattern_irregular() -> None:
    rows = set(range(0, SIZE, 4)) | ACS
    found = pattern(rows - {8, 56, 100}, flagged=ACS - {56}, acceleration=4)
    assert found.pattern == "uniform"
    assert (found.measured, found.expected) == (len(rows) - 3, len(rows))


def test_lines_lost_from_a_full_measurement_are_counted() -> None:
    found = pattern(set(range(SIZE)) - {3, 90, 91})
    assert found.pattern == "variable"
    assert (found.measured, found.expected) == (SIZE - 3, SIZE)


def test_irregular_lines_are_variable_and_nothing_is_known_to_be_missing() -> None:
    draw = np.random.default_rng(0)
    rows = set(draw.choice(SIZE, 20, replace=False).tolist()) | ACS
    found = pattern(rows, flagged=ACS, acceleration=4)
    assert (found.pattern, found.missing) == ("variable", 0.0)
    assert found.acceleration == pytest.approx(SIZE / len(rows))


def test_regular_lines_are_uniform_even_if_the_header_does_not_say_so() -> None:
    assert pattern(set(range(0, SIZE, 2)) | ACS, acceleration=1).pattern == "uniform"


def test_partial_fourier_is_not_missing_lines() -> None:
    found = pattern(range(32, SIZE), limits=(32, SIZE))
    assert (found.pattern, found.missing, found.partial) == ("full", 0.0, True)
    assert found.calibration == (32, 97)  # 65 lines, the middle of which is 64


@pytest.mark.parametrize(("low", "high"), [(10, 30), (20, 21), (3, 40), (20, 33), (8, 22)])
def test_the_calibration_block_is_symmetric_about_the_centre(low: int, high: int) -> None:
    first, last = lines.symmetric(low, high, 20)
    assert low <= first <= last <= high
    assert first + (last - first) // 2 == 20
    wider = (
        (first - 1 >= low and last + 1 <= high)
        or ((last - first) % 2 == 1 and first - 1 >= low)
        or ((last - first) % 2 == 0 and last + 1 <= high)
    )
    assert not wider


def test_without_the_central_line_there_is_no_calibration() -> None:
    assert pattern(set(range(SIZE)) - {64}).lines == 0


def test_averages_of_a_line_become_their_mean_and_are_counted() -> None:
    gathered = lines.Lines()
    for value in (1.0, 2.0, 6.0):
        gathered.add(3, 0, torch.full((2, 4), value, dtype=torch.complex64))
    gathered.add(5, 0, torch.full((2, 4), 7.0, dtype=torch.complex64), calibration=True)
    grid, counts = gathered.assemble(8)
    assert grid[:, 0, 3].real.unique().tolist() == [3.0]
    assert grid[:, 0, 5].real.unique().tolist() == [7.0]
    assert counts[0].tolist() == [0, 0, 0, 3, 0, 1, 0, 0]
    assert gathered.flagged == {5}
