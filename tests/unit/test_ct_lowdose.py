"""A series at a lower dose: the noise that physics gives it, and nothing else changed."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from dicomnode import pipeline as dn
from models.ct_denoise import cases, lowdose, metrics, projection, simulate
from models.ct_denoise.evaluate import DATA
from models.ct_denoise.projection import KERNELS
from pipelines.ct_lowdose import LowDose

PIXEL_MM, SIZE, OWN_HU = 0.9, 192, 10.0
AXIS = (torch.arange(SIZE) - (SIZE - 1) / 2.0) * PIXEL_MM
RADIUS = torch.sqrt(AXIS[:, None] ** 2 + AXIS[None] ** 2).numpy()
CORE, BODY, RIM = RADIUS < 30.0, RADIUS < 65.0, (RADIUS > 48.0) & (RADIUS < 64.0)


def water(kernel: str = "std", slices: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """A water disc without and with noise, (row, column) and (slice, row, column) [HU]."""
    disc = torch.from_numpy(np.where(RADIUS < 68.0, 40.0, -1000.0)).float()
    clean = projection.apply_kernel(disc, KERNELS[kernel], PIXEL_MM)
    noise = [
        simulate.insert_noise(disc[None], PIXEL_MM, sigma_hu=OWN_HU, seed=seed, kernel=KERNELS[kernel])[0]
        for seed in range(slices)
    ]
    return clean.numpy(), (clean + torch.stack(noise)).numpy()


def series(array: np.ndarray, step_mm: float = 5.0, **changes: object) -> dn.ImageSeries:
    acquisition = {"Modality": "CT", "ImageType": ("ORIGINAL", "PRIMARY", "AXIAL"), "SliceThickness": "5"}
    given = {
        "array": np.ascontiguousarray(array, dtype=np.float32),
        "padding": np.zeros(array.shape, bool),
        "units": dn.HU,
        "positions": np.array([[0.0, 0.0, step_mm * k] for k in range(len(array))]),
        "orientation": np.array([1.0, 0, 0, 0, 1, 0]),
        "pixel_spacing": (PIXEL_MM, PIXEL_MM),
        "geometry": dn.Geometry.REGULAR,
        "acquisition": acquisition | changes.pop("acquisition", {}),  # type: ignore[operator]
    }
    return dn.ImageSeries(**(given | changes))  # type: ignore[arg-type]


def run(given: dn.ImageSeries, dose: float, **runtime: object) -> dn.Result:
    made = LowDose(LowDose.Options(dose=dose))
    made.setup(dn.Runtime(device="cpu", weights=Path(), threads=1, **runtime))  # type: ignore[arg-type]
    return made.run(given)


CLEAN, NOISY = water()


@pytest.mark.parametrize("dose", [0.5, 0.25, 0.1])
def test_the_variance_of_the_noise_grows_as_one_over_the_dose(dose):
    output = run(series(NOISY), dose).images[0].array
    for region in (CORE, RIM):
        before, after = (NOISY - CLEAN)[:, region].var(), (output - CLEAN)[:, region].var()
        assert after * dose / before == pytest.approx(1.0, abs=0.08)
    assert abs(float((output - NOISY)[:, BODY].mean())) < 0.3


@pytest.mark.parametrize("kernel", ["soft", "sharp"])
def test_the_inserted_noise_has_the_spectrum_of_the_noise_that_was_there(kernel):
    clean, noisy = water(kernel)
    added = run(series(noisy), 0.3).images[0].array - noisy
    window = (slice(None), slice(56, 136), slice(56, 136))
    there, new = (
        metrics.mean_frequency(*metrics.noise_spectrum(torch.from_numpy(part[window]), PIXEL_MM))
        for part in (noisy - clean, added)
    )
    assert new == pytest.approx(there, rel=0.05)
    assert abs(np.corrcoef(added[window].ravel(), (noisy - clean)[window].ravel())[0, 1]) < 0.05


def test_the_same_input_gives_the_same_output_and_another_dose_other_noise():
    first, again, other = (run(series(NOISY), dose).images[0].array for dose in (0.5, 0.5, 0.4))
    assert np.array_equal(first, again)
    correlation = np.corrcoef((first - NOISY)[:, BODY].ravel(), (other - NOISY)[:, BODY].ravel())[0, 1]
    assert abs(correlation) < 0.05


def test_slices_that_overlap_share_noise_and_others_do_not():
    def correlation(step_mm: float) -> float:
        added = run(series(NOISY, step_mm), 0.25).images[0].array - NOISY
        return float(np.corrcoef(added[0][BODY], added[1][BODY])[0, 1])

    assert correlation(2.5) == pytest.approx(0.5, abs=0.08)
    assert abs(correlation(5.0)) < 0.08


def test_padding_is_untouched_whatever_it_holds_and_nothing_leaves_the_stored_range():
    padding = np.zeros(NOISY.shape, bool)
    padding[:, RADIUS > 82.0] = True
    array = np.maximum(np.where(padding, np.float32(-2000.0), NOISY), np.where(padding, -3000.0, -1024.0))
    output = run(series(array, padding=padding), 0.1).images[0].array
    assert np.array_equal(output[padding], array.astype(np.float32)[padding])
    assert output[~padding].min() == -1024.0


def test_a_tilted_oblong_series_keeps_its_shape():
    array = NOISY[:, 8:-8, :]
    output = run(series(array, geometry=dn.Geometry.TILTED), 0.5).images[0].array
    assert output.shape == array.shape and output.dtype == np.float32


def test_the_image_says_that_its_noise_is_inserted_and_the_record_how_much():
    result = run(series(NOISY), 0.25)
    (image,) = result.images
    assert (image.role, image.label) == ("lowdose-0.25", "simulated 25 % dose")
    assert image.description == "noise inserted as at 0.25 of the dose (ct-lowdose 1.0.0)"
    assert (image.code.value, image.code.scheme_designator) == ("113042", "DCM")
    assert result.quality["noise_after_hu"] == pytest.approx(2.0 * result.quality["noise_before_hu"], rel=0.2)
    assert abs(result.quality["mean_shift_hu"]) < 0.3
    assert "'std' kernel" in result.notes[0]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"acquisition": {"Modality": "MR"}}, "Modality is MR"),
        ({"acquisition": {"ImageType": ("DERIVED", "SECONDARY", "AXIAL")}}, "derived already"),
        ({"acquisition": {"SeriesDescription": "Abdomen [AI denoised, RUO]"}}, "denoised already"),
        ({"pixel_spacing": (0.9, 1.1)}, "needs square pixels; they are 0.9 x 1.1 mm"),
    ],
)
def test_a_series_that_noise_cannot_be_put_into_is_unsuitable(changes, reason):
    with pytest.raises(dn.Unsuitable, match=re.escape(reason)):
        run(series(NOISY, **changes), 0.5)


def test_a_series_without_soft_tissue_is_unsuitable_with_the_reason():
    small = np.where(RADIUS < 9.0, 40.0, -1000.0)
    array = small + np.random.default_rng(0).normal(0.0, 5.0, NOISY.shape)
    with pytest.raises(dn.Unsuitable, match="no soft tissue in which to measure"):
        run(series(array), 0.5)


def test_an_iterative_reconstruction_is_named_in_the_notes():
    notes = run(series(NOISY, acquisition={"SeriesDescription": "STD BRAIN, iDose"}), 0.5).notes
    assert "iDose" in notes[1]


@pytest.mark.parametrize("dose", [0.0, 1.0, -0.5, 2.0, True, "half", None])
def test_a_dose_that_is_no_fraction_is_refused(dose):
    with pytest.raises(ValueError, match="between 0 and 1"):
        LowDose.Options(dose=dose)


def test_progress_rises_to_one():
    seen: list[float] = []
    run(series(NOISY), 0.5, progress=lambda _phase, fraction: seen.append(fraction))
    assert seen == sorted(seen) and seen[-1] == 1.0


@pytest.mark.parametrize("family", ["soft", "std", "sharp"])
def test_the_kernel_is_found_from_the_noise(family):
    _, noisy = water(family)
    found = lowdose.fit_kernel(torch.from_numpy(noisy), PIXEL_MM)
    assert found is not None
    frequency = torch.linspace(0.1, 0.5, 20)
    wanted, got = (kernel.response(frequency) for kernel in (KERNELS[family], found))
    assert float((wanted - got).abs().max()) < 0.12


def test_no_kernel_is_claimed_where_nothing_is_flat():
    assert lowdose.fit_kernel(torch.full((2, 64, 64), -1000.0), 0.8) is None
    assert lowdose.fit_kernel(torch.zeros(4, 96, 96), 0.8) is None


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("SOFT", "soft"),
        ("STANDARD", "std"),
        ("BONEPLUS", "sharp"),
        ("LUNG", "sharp"),
        ("B30f", "soft"),
        ("B40f", "std"),
        ("Br38f 3", "std"),
        ("H60s", "sharp"),
        ("Hr68", "sharp"),
        ("UA", "soft"),
        ("YA", "sharp"),
        ("B", "std"),
        ("FC13", "std"),
        ("FC21", "soft"),
        ("FC51", "sharp"),
        ("", "std"),
    ],
)
def test_vendors_names_of_kernels_are_put_into_families(name, family):
    assert lowdose.kernel_of_name(name) == KERNELS[family]


def test_the_real_tilted_head_at_a_quarter_of_its_dose_has_twice_the_noise():
    path = cases.find(DATA, "ct-head-ge")
    if path is None:
        pytest.skip("the real head CT is not at hand")
    read = cases.read_series(path)
    array, padding = read.array.numpy()[12:18:2], read.padding.numpy()[12:18:2]
    given = series(array, 14.0, padding=padding, pixel_spacing=(read.pixel_mm, read.pixel_mm))
    result = run(given, 0.25)
    assert np.array_equal(result.images[0].array[padding], array[padding])
    assert result.quality["noise_after_hu"] / result.quality["noise_before_hu"] == pytest.approx(2.0, abs=0.35)
    assert abs(result.quality["mean_shift_hu"]) < 0.3
