"""The low-dose simulator against what physics says it must give: HU, noise level, spectrum, dose."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from models.ct_denoise import metrics, noise, phantoms, projection, simulate
from models.ct_denoise.data import Pool, draw_kernel, draw_patches
from models.ct_denoise.phantoms import Draw, clean_image, thick_image
from models.ct_denoise.projection import KERNELS, MU_WATER

SIZE, PIXEL_MM = 160, 1.0
CPU = torch.device("cpu")


def disc(radius_mm: float, hu: float = 0.0) -> torch.Tensor:
    axis = (torch.arange(SIZE) - (SIZE - 1) / 2.0) * PIXEL_MM
    inside = ((radius_mm - torch.sqrt(axis[:, None] ** 2 + axis[None] ** 2)) / PIXEL_MM + 0.5).clamp(0.0, 1.0)
    return inside * (1000.0 + hu) - 1000.0


def ring(low_mm: float, high_mm: float) -> torch.Tensor:
    axis = (torch.arange(SIZE) - (SIZE - 1) / 2.0) * PIXEL_MM
    radius = torch.sqrt(axis[:, None] ** 2 + axis[None] ** 2)
    return (radius >= low_mm) & (radius < high_mm)


@pytest.fixture(scope="module")
def water_noise() -> torch.Tensor:
    """Twelve realisations of 20 HU noise of a water disc, kernel "std"."""
    body = disc(65.0)[None]
    return torch.cat([simulate.insert_noise(body, PIXEL_MM, sigma_hu=20.0, seed=seed) for seed in range(12)])


def test_line_integral_through_the_centre_is_chord_times_attenuation():
    mu = (disc(50.0)[None] + 1000.0) * MU_WATER / 1000.0
    middle = projection.forward_project(mu, 8, PIXEL_MM)[0, :, projection.detector_count(SIZE) // 2]
    assert torch.allclose(middle, torch.full((8,), 100.0 * MU_WATER), rtol=5e-3)


def test_reconstruction_of_a_projected_disc_returns_its_hu():
    mu = (disc(50.0, 40.0)[None] + 1000.0) * MU_WATER / 1000.0
    projected = projection.forward_project(mu, 240, PIXEL_MM)
    image = projection.backproject_filtered(projected, SIZE, PIXEL_MM)[0] * 1000.0 / MU_WATER - 1000.0
    assert image[ring(0, 40)].median() == pytest.approx(40.0, abs=1.0)
    assert image[ring(56, 70)].median() == pytest.approx(-1000.0, abs=3.0)


def test_reconstruction_puts_an_off_centre_object_where_it_was():
    image = torch.zeros(1, SIZE, SIZE)
    image[0, 40:46, 100:106] = MU_WATER
    back = projection.backproject_filtered(projection.forward_project(image, 180, PIXEL_MM), SIZE, PIXEL_MM)[0]
    rows, columns = torch.nonzero(back > 0.5 * MU_WATER, as_tuple=True)
    assert float(rows.float().mean()) == pytest.approx(42.5, abs=0.3)
    assert float(columns.float().mean()) == pytest.approx(102.5, abs=0.3)


def test_inserted_noise_has_the_level_asked_for_and_no_mean(water_noise):
    core = water_noise[:, ring(0, 15)]
    assert float(core.std()) == pytest.approx(20.0, rel=0.06)
    assert abs(float(water_noise[:, ring(0, 55)].mean())) < 0.5


@pytest.mark.parametrize("family", ["soft", "sharp"])
def test_every_kernel_gives_the_level_asked_for(family):
    made = [
        simulate.insert_noise(disc(65.0)[None], PIXEL_MM, sigma_hu=12.0, seed=seed, kernel=KERNELS[family])
        for seed in range(5)
    ]
    assert float(torch.cat(made)[:, ring(0, 20)].std()) == pytest.approx(12.0, rel=0.1)


def test_noise_spectrum_is_the_ramp_times_the_kernel_squared(water_noise):
    frequency, power = metrics.noise_spectrum(water_noise[:, 48:112, 48:112], PIXEL_MM)
    band = (frequency > 0.08) & (frequency < 0.45)
    # (f H)^2 of the filter over f of the angular sampling density: S(f) ~ f H(f)^2
    leak = 1.0 + 2.0 * simulate.Scan().cross_talk * np.cos(2.0 * np.pi * frequency * projection.DETECTOR_SPACING)
    expected = frequency * (leak * KERNELS["std"].response(torch.from_numpy(frequency)).numpy()) ** 2
    shape = (power / power[band].sum())[band] / (expected / expected[band].sum())[band]
    assert np.abs(np.log(shape)).mean() < 0.15
    assert power[0] < 0.25 * power[band].max()


def test_noise_is_highest_in_the_middle_of_the_body_and_a_bow_tie_evens_it_out():
    def ratio(bow_tie: float) -> float:
        scan = simulate.Scan(bow_tie=bow_tie)
        made = [simulate.insert_noise(disc(65.0)[None], PIXEL_MM, sigma_hu=20.0, seed=s, scan=scan) for s in range(4)]
        return float(torch.cat(made)[:, ring(0, 15)].std() / torch.cat(made)[:, ring(50, 62)].std())

    assert ratio(0.0) > 1.2
    assert ratio(1.8) < 0.97 * ratio(0.0)


def test_noise_forms_streaks_along_the_longest_path():
    axis = torch.arange(SIZE) - (SIZE - 1) / 2.0
    wide = torch.where((axis[None] / 76.0) ** 2 + (axis[:, None] / 30.0) ** 2 < 1.0, 0.0, -1000.0)
    scan = simulate.Scan(modulation=0.0)
    made = simulate.insert_noise(wide[None], PIXEL_MM, sigma_hu=25.0, seed=3, scan=scan)[0, 60:100, 60:100]
    along, across = (made.diff(dim=d).square().mean() for d in (1, 0))
    assert float(across) > 1.5 * float(along)


def test_insertion_into_a_noisy_scan_adds_only_the_difference():
    body = disc(65.0)[None]
    made = torch.cat(
        [simulate.insert_noise(body, PIXEL_MM, sigma_hu=20.0, own_sigma_hu=12.0, seed=seed) for seed in range(8)]
    )
    assert float(made[:, ring(0, 20)].std()) == pytest.approx(math.sqrt(20.0**2 - 12.0**2), rel=0.08)


def test_the_same_seed_gives_the_same_noise_and_another_seed_does_not(water_noise):
    body = disc(65.0)[None]
    again = simulate.insert_noise(body, PIXEL_MM, sigma_hu=20.0, seed=0)[0]
    assert torch.equal(again, water_noise[0])
    between = torch.corrcoef(torch.stack((water_noise[0].flatten(), water_noise[1].flatten())))[0, 1]
    assert abs(float(between)) < 0.05


def test_a_kernel_keeps_the_mean_and_a_sharper_one_passes_more():
    image = clean_image(5, 128, 0.7, CPU)
    soft, sharp = (projection.apply_kernel(image, KERNELS[name], 0.7) for name in ("soft", "sharp"))
    assert float(soft.mean()) == pytest.approx(float(image.mean()), abs=0.01)
    assert float(sharp.diff().abs().mean()) > float(soft.diff().abs().mean())


@pytest.mark.parametrize("seed", range(12))
def test_clean_images_are_plausible_hounsfield_units(seed):
    image = clean_image(seed, 128, 1.2, CPU)
    assert bool(torch.isfinite(image).all())
    assert -1000.0 <= float(image.min()) < float(image.max()) <= 3000.0
    assert float(image.std()) > 1.0


def test_a_simulated_slice_repeats_and_its_two_realisations_are_independent():
    first, second = simulate.simulate_slice(3, 96), simulate.simulate_slice(3, 96)
    assert torch.equal(first.clean, second.clean) and torch.equal(first.noise, second.noise)
    assert abs(float(torch.corrcoef(first.noise.flatten(1))[0, 1])) < 0.1


def test_a_slice_of_clinical_thickness_repeats_and_softens_what_slants_through_it(monkeypatch):
    assert torch.equal(thick_image(1, 160, 0.7, CPU), thick_image(1, 160, 0.7, CPU))
    edges = {}
    for name, thickness in (("thin", (1e-3, 1e-3)), ("thick", (7.0, 7.0))):
        monkeypatch.setattr(phantoms, "THICKNESS_MM", thickness)
        images = torch.stack([thick_image(seed, 160, 0.7, CPU) for seed in range(6)])
        assert bool((images >= -1000.1).all()) and bool(torch.isfinite(images).all())
        edges[name] = float(images.diff(dim=1).abs().gt(200.0).sum())
    assert edges["thick"] < 0.95 * edges["thin"]


@pytest.mark.parametrize("name", noise.NOISE_MAPS)
def test_the_noise_map_reads_the_level_within_a_quarter(water_noise, name):
    image = (disc(65.0) + water_noise[0])[None, None]
    for scale in (0.3, 1.0, 2.0):
        noisy = disc(65.0)[None, None] + scale * water_noise[0]
        measured = float(noise.NOISE_MAPS[name](noisy)[0, 0][ring(0, 25)].mean())
        assert measured == pytest.approx(scale * 20.0, rel=0.25)
    assert noise.NOISE_MAPS[name](image).shape == image.shape


@pytest.mark.parametrize(("family", "pixel_mm"), [("soft", 0.45), ("std", 0.65), ("sharp", 0.65), ("std", 0.9)])
def test_in_pure_noise_the_flattest_quarter_says_what_the_mean_says(family, pixel_mm):
    made = torch.cat(
        [simulate.insert_noise(wide(), pixel_mm, sigma_hu=20.0, seed=s, kernel=KERNELS[family]) for s in range(4)]
    )
    maps = [each((wide() + made)[:, None])[..., 32:-32, 32:-32] for each in noise.NOISE_MAPS.values()]
    assert float(maps[1].mean() / maps[0].mean()) == pytest.approx(1.0, abs=0.06)
    assert float(maps[1].std() / maps[1].mean()) < 0.08


def wide() -> torch.Tensor:
    """Water that fills a slice of any pixel size, (1, row, column) [HU]."""
    return torch.zeros(1, SIZE, SIZE)


def test_texture_in_most_of_the_tiles_does_not_reach_the_map_of_the_flattest_quarter(water_noise):
    axis = torch.arange(SIZE)
    vessels = 80.0 * ((axis[:, None] % 8 < 2) & (axis[None] % 32 < 16)).float()  # half of the columns of tiles
    # finer than the edge mask sees: the gradient of the smoothed slice stays below the slice's own spread
    plain = disc(65.0) + water_noise[0]
    means, flattest = (
        [float(each(image[None, None])[0, 0][ring(0, 40)].mean()) for image in (plain, plain + vessels)]
        for each in noise.NOISE_MAPS.values()
    )
    assert flattest[1] / flattest[0] < 1.2  # half of the tiles left: the quantile is their median
    assert means[1] / means[0] > 1.3


@pytest.mark.parametrize("name", noise.NOISE_MAPS)
def test_the_noise_map_does_not_take_an_edge_for_noise(water_noise, name):
    image = disc(65.0) + 0.25 * water_noise[0]
    step = image.clone()
    step[:, SIZE // 2 :] += 60.0
    plain, stepped = (noise.NOISE_MAPS[name](part[None, None])[0, 0][ring(0, 40)].mean() for part in (image, step))
    assert float(stepped) < 1.3 * float(plain)


def test_the_map_of_the_flattest_quarter_follows_noise_that_changes_across_the_slice(water_noise):
    ramp = torch.linspace(0.5, 2.0, SIZE)[None]
    found = noise.flattest_noise_map((disc(65.0) + ramp * water_noise[0])[None, None])[0, 0]
    left, right = (float(found[60:100, columns].mean()) for columns in (slice(40, 56), slice(104, 120)))
    expected = float(ramp[0, 104:120].mean() / ramp[0, 40:56].mean())
    assert right / left == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize("name", noise.NOISE_MAPS)
@pytest.mark.parametrize("value", [-1000.0, 40.0])
def test_a_slice_without_noise_or_without_a_body_has_a_finite_map(name, value):
    for shape in ((64, 64), (37, 51), (8, 8)):
        found = noise.NOISE_MAPS[name](torch.full((2, 1, *shape), value))
        assert found.shape == (2, 1, *shape)
        assert bool(torch.isfinite(found).all()) and float(found.min()) >= 0.49


def test_the_noise_level_is_reported_in_hu_with_half_left_after_halving(water_noise):
    body = disc(65.0)
    before, after, shift = noise.noise_level(body + water_noise[0], body + 0.5 * water_noise[0] + 2.0)
    assert before == pytest.approx(20.0, rel=0.3)
    assert after / before == pytest.approx(0.5, abs=0.02)
    assert shift == pytest.approx(2.0, abs=1.0)


def small(seed: int, device: torch.device, thick: bool) -> simulate.Slice:
    return simulate.simulate_slice(seed, 160, device, thick=thick)


def test_the_pool_is_read_back_as_it_was_made_and_its_patches_repeat(tmp_path, monkeypatch):
    monkeypatch.setattr(simulate, "POOL_SIZE", 160)
    monkeypatch.setattr("models.ct_denoise.data.simulate_slice", small)
    made = Pool.make(2, 40, CPU, tmp_path / "pool.safetensors")
    monkeypatch.setattr("models.ct_denoise.data.simulate_slice", None)
    read = Pool.make(2, 40, CPU, tmp_path / "pool.safetensors")
    assert torch.equal(read[1].clean, made[1].clean) and torch.equal(read[1].noise, made[1].noise)
    monkeypatch.setattr("models.ct_denoise.data.simulate_slice", small)
    longer = Pool.make(3, 40, CPU, tmp_path / "pool.safetensors")
    assert len(longer) == 3 and torch.equal(longer[1].noise, made[1].noise)
    assert len(Pool.make(2, 40, CPU, tmp_path / "pool.safetensors")) == 2
    thick = Pool.make(
        2, 40, CPU, tmp_path / "pool.safetensors", thick=True
    )  # another pool, whatever the file is called
    assert not torch.equal(thick[1].clean, made[1].clean)
    first, again, other = (draw_patches(pool, seed, 2, 2, 64) for pool, seed in ((made, 1), (read, 1), (read, 2)))
    assert torch.equal(first.clean, again.clean) and torch.equal(first.noise[0], again.noise[0])
    assert not torch.equal(first.clean, other.clean)
    assert not torch.equal(first.noise[0], first.noise[1])
    assert first.clean.shape == first.insert.shape == (4, 1, 64, 64)


def test_drawn_kernels_cover_soft_to_sharp():
    cutoffs = [draw_kernel(Draw(seed, 1, 1.0, CPU)).cutoff for seed in range(60)]
    assert min(cutoffs) < 0.4 and max(cutoffs) > 0.85
