"""Coil maps: against the maps that were put in, BART and sigpy; and the rules of the calibration's width."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.mr_recon import coils
from models.mr_recon.fft import fft2c, ifft2c
from tests.conftest import missing_peer
from tests.mr_scenes import Scene, decibels, scene, uniform
from tests.peers.bart import bart

ROWS, COLUMNS = 80, 96


@pytest.fixture(scope="module")
def body() -> Scene:
    return scene(ROWS, COLUMNS)


def likeness(a: Tensor, b: Tensor, where: Tensor) -> Tensor:
    """|<a, b>| of two maps pixel by pixel: 1 where they agree up to a phase."""
    return (a * b.conj()).sum(0).abs()[where]


@pytest.mark.parametrize("kernel", [4, 6])
def test_espirit_finds_the_maps_that_were_put_in_and_nothing_outside(body: Scene, kernel: int) -> None:
    maps = coils.espirit(body.acs(20), (ROWS, COLUMNS), kernel)
    inside = torch.linalg.vector_norm(maps, dim=0) > 0
    assert float(inside[body.body].float().mean()) > 0.98
    # A rim as wide as the kernel resolves: the smaller it is, the wider.
    assert float(inside[~body.body].float().mean()) < (0.4 if kernel == 6 else 0.6)
    assert float(likeness(maps, body.maps, body.body & inside).quantile(0.02)) > 0.995
    assert torch.allclose(torch.linalg.vector_norm(maps, dim=0)[inside], torch.ones(1), atol=1e-4)


def test_espirit_agrees_with_sigpy(body: Scene) -> None:
    try:
        from sigpy.mri.app import EspiritCalib
    except ImportError:
        missing_peer("sigpy")
    acs = body.acs(24, 24)
    theirs = EspiritCalib(acs.numpy(), calib_width=24, thresh=0.02, kernel_width=6, crop=0.9, show_pbar=False)
    theirs.img_ndim = 2
    small = torch.from_numpy(theirs.run())
    ours = coils.espirit(acs, (24, 24))
    both = (torch.linalg.vector_norm(ours, dim=0) > 0) & (torch.linalg.vector_norm(small, dim=0) > 0)
    either = (torch.linalg.vector_norm(ours, dim=0) > 0) | (torch.linalg.vector_norm(small, dim=0) > 0)
    assert float(both.sum()) > 0.97 * float(either.sum())
    assert float(likeness(ours, small, both).quantile(0.02)) > 0.999


def test_espirit_agrees_with_bart(body: Scene, tmp_path: Path) -> None:
    theirs = bart(tmp_path, "ecalib", "-m1", "-r24", "-k6", "-c0.9", given=(body.kspace,))
    ours = coils.espirit(body.acs(24, 24), (ROWS, COLUMNS))
    there = body.body & (torch.linalg.vector_norm(theirs, dim=0) > 0) & (torch.linalg.vector_norm(ours, dim=0) > 0)
    assert float(there.sum()) > 0.97 * float(body.body.sum())
    assert float(likeness(ours, theirs, there).quantile(0.02)) > 0.995


def test_low_resolution_maps_agree_with_barts_direct_calibration(body: Scene, tmp_path: Path) -> None:
    theirs = bart(tmp_path, "caldir", "16", given=(body.kspace,))
    ours = coils.low_resolution(body.acs(16), (ROWS, COLUMNS))
    theirs = theirs / torch.linalg.vector_norm(theirs, dim=0).clamp(min=1e-9)
    assert float(likeness(ours, theirs, body.body).quantile(0.05)) > 0.98
    assert float(likeness(ours, body.maps, body.body).quantile(0.05)) > 0.97


def test_walsh_maps_combine_what_is_fully_sampled(body: Scene) -> None:
    images = ifft2c(body.kspace)
    maps = coils.walsh(images)
    assert float(likeness(maps, body.maps, body.body).quantile(0.02)) > 0.99
    assert decibels((maps.conj() * images).sum(0) * body.body, body.object) > 34  # 50 : 1 of the noise, and no more


@pytest.mark.parametrize("make", [coils.low_resolution, coils.espirit])
def test_the_combined_image_keeps_the_objects_phase_less_the_virtual_coils(make, body: Scene) -> None:
    acs = body.acs(20)
    maps = make(acs, (ROWS, COLUMNS))
    virtual = torch.einsum("c,cyx->yx", coils.principal(acs).conj(), maps)
    assert float(virtual.imag.abs().max()) < 5e-3
    assert float(virtual.real.min()) > -5e-3
    image = (maps.conj() * ifft2c(body.kspace)).sum(0)
    reference = torch.einsum("c,cyx->yx", coils.principal(acs).conj(), body.maps)
    turned = (image * (body.object * reference).conj())[body.body]
    assert float(turned.angle().abs().quantile(0.95)) < 0.1


@pytest.mark.parametrize(("lines", "methods"), [
    (6, {"low-resolution"}), (12, {"low-resolution"}), (13, {"espirit-4", "low-resolution"}),
    (15, {"espirit-4", "low-resolution"}), (16, {"espirit-6"}), (24, {"espirit-6"}),
])  # fmt: skip
def test_the_calibrations_width_decides_how_maps_are_made(lines: int, methods: set[str], body: Scene) -> None:
    found = coils.choose(body.acs(lines), (ROWS, COLUMNS))
    assert found.method in methods
    assert found.leakage < 0.02
    if lines in (13, 15):  # the one that explains more of the calibration
        both = (
            coils.low_resolution(body.acs(lines), (ROWS, COLUMNS)),
            coils.espirit(body.acs(lines), (ROWS, COLUMNS), 4),
        )
        least = min(coils.leakage(maps, body.acs(lines)) for maps in both)
        assert found.leakage == pytest.approx(least, abs=1e-6)


def test_narrow_columns_count_as_narrow_calibration(body: Scene) -> None:
    assert coils.choose(body.acs(24, 12), (ROWS, COLUMNS)).method == "low-resolution"


def test_one_coil_is_its_own_map() -> None:
    single = scene(48, 48, coils=1)
    found = coils.choose(single.acs(20), (48, 48))
    assert found.method == "low-resolution"
    assert torch.allclose(found.maps.abs(), torch.ones(1), atol=1e-4)
    assert found.leakage < 0.01


def test_an_object_that_folds_into_the_field_of_view_shows_as_leakage() -> None:
    tall = scene(160, COLUMNS)
    folded = fft2c(tall.maps * tall.object).unflatten(1, (80, 2))[:, :, 0] * 2**0.5
    made = torch.Generator().manual_seed(1)
    folded = folded + torch.randn(folded.shape, dtype=torch.complex64, generator=made)
    one_map = coils.choose(coils.centre(folded, (24, COLUMNS)), (80, COLUMNS))
    assert one_map.leakage > 0.1
    assert coils.choose(tall.acs(24), (160, COLUMNS)).leakage < 0.01


def test_leakage_does_not_count_noise() -> None:
    noisy = scene(ROWS, COLUMNS, snr=5)
    assert coils.leakage(noisy.maps, noisy.acs(20)) < 0.04
    assert coils.leakage(noisy.maps.roll(ROWS // 3, 1), noisy.acs(20)) > 0.1


@pytest.mark.parametrize("shape", [(81, 96), (80, 97), (63, 51)])
def test_maps_of_odd_grids_lie_where_the_object_does(shape: tuple[int, int]) -> None:
    odd = scene(*shape)
    maps = coils.espirit(odd.acs(20), shape)
    assert float(likeness(maps, odd.maps, odd.body).quantile(0.05)) > 0.995
    assert coils.leakage(odd.maps, odd.acs(20)) < 0.01


def test_calibration_no_wider_than_the_kernel_is_refused_by_name(body: Scene) -> None:
    with pytest.raises(ValueError, match="kernel 6 needs more calibration"):
        coils.espirit(body.acs(6), (ROWS, COLUMNS))


def test_maps_of_few_lines_beat_espirit_there(body: Scene) -> None:
    """The rule's reason: ESPIRiT on 10 lines loses to plain low-resolution maps."""
    from models.mr_recon.solvers import conjugate_gradient

    found = {}
    for name, maps in (
        ("low", coils.low_resolution(body.acs(8), (ROWS, COLUMNS))),
        ("espirit", coils.espirit(body.acs(8), (ROWS, COLUMNS), 6)),
    ):
        operator, y = body.measured(uniform(ROWS, 2, 8), maps)
        image = conjugate_gradient(operator.normal, operator.adjoint(y), iterations=12, damping=2e-3)
        found[name] = decibels(image * body.body, body.object)
    assert found["low"] > found["espirit"]


def test_where_the_body_folds_over_two_sets_of_maps_explain_what_one_cannot() -> None:
    whole = scene(96, COLUMNS)
    images = whole.maps * whole.object
    rows = 64  # of 77 rows of body
    folded = torch.zeros(len(whole.maps), rows, COLUMNS, dtype=torch.complex64)
    for row in range(96):
        folded[:, (row - 16) % rows] += images[:, row]
    acs = coils.centre(fft2c(folded), (20, COLUMNS))
    one, two = coils.espirit(acs, (rows, COLUMNS)), coils.espirit_pair(acs, (rows, COLUMNS))
    known = torch.linalg.vector_norm(one, dim=0) > 0
    known[:25] = known[39:] = False  # nothing folds in between
    torch.testing.assert_close(two[0][:, known], one[:, known], atol=1e-4, rtol=1e-3)

    def left(maps: Tensor) -> float:
        """Part of the folded coil images that no image seen through the (set, coil, row, column) maps explains."""
        span = maps.permute(2, 3, 1, 0)  # (row, column, coil, set)
        seen = folded.permute(1, 2, 0)[..., None]
        rest = seen - span @ torch.linalg.pinv(span, rtol=1e-3) @ seen
        return float(torch.linalg.vector_norm(rest) ** 2 / torch.linalg.vector_norm(seen) ** 2)

    assert left(two) < 0.2 * left(one[None])


def test_a_body_in_the_field_of_view_has_one_set_of_maps(body: Scene) -> None:
    two = coils.espirit_pair(body.acs(20), (ROWS, COLUMNS))
    assert float((two[1].abs().sum(0) > 0)[body.body].float().mean()) < 0.05
