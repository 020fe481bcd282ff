"""How much unfolding amplifies noise, against the g-factor in closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.mr_recon import conditioning
from models.mr_recon.fft import fft2c
from models.mr_recon.linops import Sense

ROWS, COLUMNS = 64, 48


def two_coils(likeness: float) -> Tensor:
    """(2, row, column): in any two rows half the field of view apart the cosine between the coils is ``likeness``."""
    half = torch.full((ROWS // 2,), 0.5 * torch.tensor(likeness).acos())
    angle = torch.cat((half, -half))[:, None].expand(ROWS, COLUMNS)
    return torch.stack((angle.cos(), angle.sin())).to(torch.complex64)


def measured(likeness: float, acceleration: int = 2) -> float:
    maps, mask = two_coils(likeness), torch.zeros(1, ROWS, COLUMNS)
    mask[:, ::acceleration] = 1
    body = torch.ones(ROWS, COLUMNS, dtype=torch.complex64)
    operator = Sense(maps, mask[None])
    return conditioning.amplification(operator, mask * fft2c(maps * body)[None], acceleration)


def test_orthogonal_coils_amplify_nothing() -> None:
    assert measured(0.0) == pytest.approx(1.0, rel=0.01)


@pytest.mark.parametrize("likeness", [0.5, 0.8, 0.95])
def test_two_coils_have_the_g_factor_of_their_likeness(likeness: float) -> None:
    # [(C^H C)^-1]_11 [C^H C]_11 of two unit vectors with that cosine between them
    assert measured(likeness) == pytest.approx((1 - likeness**2) ** -0.5, rel=0.02)


@pytest.mark.parametrize("likeness", [0.99, 0.9999, 1.0])
def test_nearly_equal_coils_are_beyond_the_limit(likeness: float) -> None:
    assert measured(likeness) > conditioning.AMPLIFICATION


def test_what_lies_outside_the_maps_folds_onto_nothing() -> None:
    maps = two_coils(1.0).clone()
    maps[:, ROWS // 2 :] = 0
    assert torch.allclose(conditioning.g_factor(maps, 2), torch.ones(1), atol=1e-3)


def test_lines_that_do_not_divide_the_rows_unfold_at_the_nearest() -> None:
    assert conditioning.g_factor(two_coils(0.5), 3).isfinite().all()


def test_averaged_lines_change_nothing() -> None:
    maps, mask = two_coils(0.5), torch.zeros(1, ROWS, COLUMNS)
    mask[:, ::2] = 3.0**0.5
    y = mask * fft2c(maps * torch.ones(ROWS, COLUMNS))[None]
    found = conditioning.amplification(Sense(maps, mask[None]), y, 2)
    assert found == pytest.approx(measured(0.5), rel=0.01)
