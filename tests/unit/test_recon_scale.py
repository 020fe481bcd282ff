"""One factor for a whole series."""

from __future__ import annotations

import pytest
import torch

from models.mr_recon import scale


def test_the_bodys_brightest_becomes_eight_tenths_of_twelve_bits() -> None:
    image = torch.zeros(100, 100)
    image[20:80, 20:80] = torch.linspace(0.5, 1.0, 3600).reshape(60, 60)
    assert scale.factor(image) * 1.0 == pytest.approx(0.8 * 4095, rel=2e-3)


def test_air_has_no_part_in_it() -> None:
    image = torch.zeros(400, 400)
    image[:40, :40] = 2.0
    assert scale.factor(image) == pytest.approx(scale.factor(image[:50, :50]))


def test_one_hot_pixel_does_not_darken_the_series() -> None:
    image = torch.ones(100, 100)
    image[0, 0] = 1e6
    assert scale.factor(image) == pytest.approx(0.8 * 4095, rel=1e-3)


def test_an_empty_image_has_a_factor_too() -> None:
    assert scale.factor(torch.zeros(8, 8)) == 1.0


def test_a_large_series_is_thinned_and_not_refused() -> None:
    image = torch.ones(4200, 4200)
    assert scale.factor(image) == pytest.approx(0.8 * 4095)
