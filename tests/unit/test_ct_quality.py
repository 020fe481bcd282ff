"""The denoising's summary: it finds structure that was removed, stays silent over noise, and says what was measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dicomnode import pipeline as dn
from dicomnode.encode import page
from dicomnode.errors import ResultInvalid
from dicomnode.execute.contract import check_result
from dicomnode.volumes.series import load
from models import ct_denoise
from models.ct_denoise import noise, projection, quality, simulate
from pipelines import ct_quality
from pipelines.ct_denoise import CTDenoising
from tests import factories, phantoms

SIZE, PIXEL_MM, SIGMA = 192, 0.8, 15.0
WEIGHTS = Path(ct_denoise.__file__).parent


def water(slices: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """A water disc and its noise, (slice, row, column) [HU]."""
    axis = (torch.arange(SIZE) - (SIZE - 1) / 2.0) * PIXEL_MM
    disc = ((70.0 - torch.sqrt(axis[:, None] ** 2 + axis[None] ** 2)) / PIXEL_MM + 0.5).clamp(0.0, 1.0) * 1040.0
    clean = projection.apply_kernel(disc - 1000.0, projection.KERNELS["std"], PIXEL_MM)
    made = [simulate.insert_noise(clean[None], PIXEL_MM, sigma_hu=SIGMA, seed=40 + s)[0] for s in range(slices)]
    return clean.expand(slices, -1, -1), torch.stack(made)


CLEAN, NOISE = water()


def insert(height: float = SIGMA) -> torch.Tensor:
    """A disc of 12 mm beside the centre, (row, column) [HU]."""
    axis = (torch.arange(SIZE) - (SIZE - 1) / 2.0) * PIXEL_MM
    return height * ((axis[:, None] - 20.0) ** 2 + (axis[None] + 10.0) ** 2 < 36.0).float()


def test_noise_that_was_removed_is_no_structure():
    for left in (0.5, 0.1):
        levels = quality.structure((CLEAN + NOISE)[0], (CLEAN + left * NOISE)[0])
        assert not quality.structure_mask(levels, PIXEL_MM).any()


def test_an_insert_that_was_removed_with_the_noise_is_found_where_it_was():
    before = (CLEAN + NOISE)[0] + insert()
    kept = quality.structure(before, (CLEAN + 0.5 * NOISE)[0] + insert())
    lost = quality.structure(before, (CLEAN + 0.5 * NOISE)[0])
    assert not quality.structure_mask(kept, PIXEL_MM).any()
    found = quality.structure_mask(lost, PIXEL_MM)
    overlap = 2.0 * float((found & (insert() > 0)).sum()) / float(found.sum() + (insert() > 0).sum())
    assert overlap > 0.7


def test_a_sharpened_skull_is_structure_and_small_spots_are_not_shown():
    before = (CLEAN + NOISE)[0]
    blurred = noise.gaussian_blur(before[None, None], 1.5)[0, 0]  # a rim of 1000 HU is smeared
    assert quality.structure_mask(quality.structure(before, blurred), PIXEL_MM).sum() > 100
    levels = torch.zeros(20, 20)
    levels[3:5, 3:5], levels[10:14, 10:14] = 9.0, -9.0
    found = quality.structure_mask(levels, 0.8)
    assert found.sum() == 16 and found[12, 12]


def test_clothes_beside_the_body_are_not_its_structure():
    before = (CLEAN + NOISE)[0]
    before[8:12, 8:20] = -700.0
    after = torch.where(before == -700.0, -1000.0, (CLEAN + 0.5 * NOISE)[0])
    assert not quality.structure_mask(quality.structure(before, after), PIXEL_MM).any()


def test_a_slice_of_air_holds_no_structure():
    air = torch.full((64, 64), -1000.0)
    assert float(quality.structure(air, air + 1.0).abs().max()) == 0.0


def test_the_spectrum_says_what_was_turned_down_and_what_was_blurred():
    before = CLEAN + NOISE
    halved = quality.spectra(before, CLEAN + 0.5 * NOISE, PIXEL_MM)
    assert halved is not None
    assert halved.means[1] == pytest.approx(halved.means[0], rel=0.01)
    assert [left for _, _, left in halved.left()] == pytest.approx([0.5] * 4, abs=0.02)
    blurred = quality.spectra(before, CLEAN + noise.gaussian_blur(NOISE[:, None], 1.0)[:, 0], PIXEL_MM)
    assert blurred is not None and blurred.means[1] < 0.8 * blurred.means[0]
    left = [share for _, _, share in blurred.left()]
    assert left == sorted(left, reverse=True) and left[-1] < 0.2
    # a Gaussian of one pixel passes exp(-2 pi^2 f^2), f in cycles per pixel
    middle = 0.5 * (0.45 * 0.5) ** 2
    assert left[1] == pytest.approx(float(np.exp(-4.0 * np.pi**2 * middle)), abs=0.1)


def test_there_is_no_spectrum_without_flat_soft_tissue():
    bone = torch.full((1, 96, 96), 900.0)
    assert quality.spectra(bone, bone, PIXEL_MM) is None


def series(array: torch.Tensor) -> dn.ImageSeries:
    values = np.ascontiguousarray(array.numpy(), dtype=np.float32)
    return dn.ImageSeries(
        array=values,
        padding=np.zeros(values.shape, bool),
        units=dn.HU,
        positions=np.array([[0.0, 0.0, 5.0 * k] for k in range(len(values))]),
        orientation=np.array([1.0, 0, 0, 0, 1.0, 0]),
        pixel_spacing=(PIXEL_MM, PIXEL_MM),
        geometry=dn.Geometry.REGULAR,
        geometry_note="",
        acquisition={"Modality": "CT", "ImageType": ("ORIGINAL", "PRIMARY", "AXIAL"), "RescaleType": "HU"},
    )


def denoised(given: dn.ImageSeries, array: torch.Tensor) -> dn.Result:
    image = dn.Image(
        array=np.ascontiguousarray(array.numpy(), dtype=np.float32),
        role="denoised",
        label="AI denoised",
        description="by hand",
        code=dn.Code("113087", "DCM", "Smoothing"),
    )
    found = {"strength": 0.6, "noise_before_hu": 15.0, "noise_after_hu": 7.5, "mean_shift_hu": 0.0}
    return dn.Result(images=(image,), quality=found, notes=("strength of a head",))


def test_the_page_names_the_worst_plane_and_the_numbers_and_keeps_the_contract():
    given = series(torch.stack(((CLEAN + NOISE)[0], (CLEAN + NOISE)[1] + insert())))
    result = ct_quality.with_summary(denoised(given, CLEAN + 0.5 * NOISE), given)
    check_result(result, given)
    assert result.reported and [key.plane for key in result.key_planes] == [1]
    assert "mm²" in result.key_planes[0].reason
    values = {one.name.value: one.value for one in result.measurements}
    assert (values["NOISE-BEFORE"], values["NOISE-AFTER"], values["STRENGTH"]) == (15.0, 7.5, 0.6)
    assert values["FREQUENCY-SHIFT"] == pytest.approx(0.0, abs=1.0)
    assert values["NOISE-LEFT-2"] == pytest.approx(50.0, abs=3.0)
    area = float(result.segmentations[0].labels[1].sum()) * PIXEL_MM**2
    assert values["LARGEST-AREA"] == pytest.approx(area) and 60.0 < area < 180.0
    assert not result.segmentations[0].labels[0].any()
    assert "strength of a head" in result.remarks and any("Outlined" in remark for remark in result.remarks)


def test_a_page_over_pure_noise_says_that_nothing_was_found_and_outlines_nothing():
    given = series(CLEAN + NOISE)
    result = ct_quality.with_summary(denoised(given, CLEAN + 0.5 * NOISE), given)
    check_result(result, given)
    assert result.segmentations == () and result.key_planes == ()
    assert ct_quality.NOTHING in result.remarks
    assert "LARGEST-AREA" not in {one.name.value for one in result.measurements}


def test_the_spectrum_is_drawn_before_and_after():
    given = series(CLEAN + NOISE)
    result = ct_quality.with_summary(denoised(given, CLEAN + 0.5 * NOISE), given)
    (curve,) = result.curves
    assert curve.other is not None and curve.other.max() == pytest.approx(100.0)
    assert curve.y == pytest.approx(0.5 * curve.other, rel=0.15)  # some anatomy is in the lowest frequencies
    assert (curve.x[0], curve.x[-1]) == (pytest.approx(0.1, abs=0.03), pytest.approx(0.5 / PIXEL_MM, abs=0.02))
    assert [name for _, _, name in curve.points] == ["before", "after"]
    check_result(result, given)
    with pytest.raises(ResultInvalid, match="Noise spectrum"):
        check_result(replace(result, curves=(replace(curve, other=curve.other[:-1]),)), given)


def test_the_page_shows_the_noise_before_as_a_line_above_that_after(tmp_path):
    datasets = factories.ct_series(2, rows=SIZE, columns=SIZE, hu=(CLEAN + NOISE).numpy())
    source = load(factories.write_series(tmp_path, datasets))
    given = source.images
    result = ct_quality.with_summary(denoised(given, CLEAN + 0.5 * NOISE), given)
    (curve,) = result.curves
    both, one = (
        page.draw(source, replace(result, curves=(replace(curve, other=other, points=()),)), phantoms.context())
        for other in (curve.other, np.zeros_like(curve.y) + 100.0)  # a flat line: the same scale
    )
    rows, columns = np.nonzero((both != one).any(-1))
    assert np.ptp(columns) > 600, "the line runs from the first frequency to the last"
    bright = (both > 200).all(-1)
    at = int(np.median(columns))
    line = np.flatnonzero(bright[rows.min() : rows.max(), at]) + rows.min()
    before = rows[np.abs(columns - at) < 8]
    assert line.size and before.min() < line.min() - 10


def test_what_could_not_be_measured_is_left_out():
    bone = torch.full((3, 64, 64), 700.0) + NOISE[:1, :64, :64]
    given = series(bone)
    bare = replace(denoised(given, bone), quality={"strength": 0.6})
    names = {one.name.value for one in ct_quality.with_summary(bare, given).measurements}
    assert names == {"STRENGTH"}


def test_the_summary_is_made_where_it_is_asked_for_and_only_there():
    given = series((CLEAN + NOISE)[[0, 1, 0]])
    reported = []
    for summary in (False, True):
        made = CTDenoising(CTDenoising.Options(summary=summary))
        made.setup(dn.Runtime(device="cpu", weights=WEIGHTS, threads=1))
        result = made.run(given)
        check_result(result, given)
        reported.append(result.reported)
    assert reported == [False, True]
    with pytest.raises(ValueError, match="summary must be true or false"):
        CTDenoising.Options(summary="yes")
