"""The denoising pipeline: what it refuses, what it must not touch, and that it removes noise and nothing else."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from dicomnode import pipeline as dn
from models import ct_denoise
from models.ct_denoise import bundle, cases, net, projection, simulate
from models.ct_denoise.adjacent import Seen
from models.ct_denoise.evaluate import DATA
from pipelines import blocks
from pipelines.ct_denoise import CTDenoising

WEIGHTS = Path(ct_denoise.__file__).parent
ORIGINAL = {"Modality": "CT", "ImageType": ("ORIGINAL", "PRIMARY", "AXIAL"), "RescaleType": "HU"}
NOISE_HU = 18.0


def phantom(slices: int = 3, size: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """A water disc with a bone ring in air, without and with noise; (slice, row, column) [HU]."""
    axis = torch.arange(size) - (size - 1) / 2.0
    radius = torch.sqrt(axis[:, None] ** 2 + axis[None] ** 2)
    clean = torch.where(radius < 52.0, 40.0, -1000.0)
    clean = torch.where((radius > 47.0) & (radius < 52.0), 900.0, clean)
    clean = projection.apply_kernel(clean, projection.KERNELS["std"], 0.8)
    noise = [simulate.insert_noise(clean[None], 0.8, sigma_hu=NOISE_HU, seed=seed)[0] for seed in range(slices)]
    many = clean.expand(slices, -1, -1)
    return many.numpy().copy(), (many + torch.stack(noise)).numpy()


def series(array: np.ndarray | None = None, **changes: object) -> dn.ImageSeries:
    """A tilted, uneven series: `volume` would raise, so slice-wise work must not ask for it."""
    array = NOISY if array is None else np.ascontiguousarray(array, dtype=np.float32)
    acquisition = {**ORIGINAL, **changes.pop("acquisition", {})}  # type: ignore[dict-item]
    given = {
        "array": array,
        "padding": np.zeros(array.shape, bool),
        "units": dn.HU,
        "positions": np.array([[0.0, 0.3 * k, 4.0 * k] for k in range(len(array))]),
        "orientation": np.array([1.0, 0, 0, 0, 0.95, -0.31]),
        "pixel_spacing": (0.8, 0.8),
        "geometry": dn.Geometry.TILTED,
        "geometry_note": "gantry tilt 18.5 degrees",
        "acquisition": acquisition,
    }
    return dn.ImageSeries(**(given | changes))  # type: ignore[arg-type]


CLEAN, NOISY = phantom()
CORE = (slice(None), slice(40, 88), slice(40, 88))


def pipeline(strength: float | str = "default", **runtime: object) -> CTDenoising:
    made = CTDenoising(CTDenoising.Options(strength=strength))
    made.setup(dn.Runtime(device="cpu", weights=WEIGHTS, threads=1, **runtime))  # type: ignore[arg-type]
    return made


@pytest.fixture(scope="module")
def denoising() -> CTDenoising:
    return pipeline()


@pytest.mark.parametrize(
    ("acquisition", "reason"),
    [
        ({"Modality": "MR"}, "Modality is MR"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "1.2.840.10008.5.1.4.1.1.7"),
        ({"ImageType": ("ORIGINAL", "PRIMARY", "LOCALIZER")}, "LOCALIZER"),
        ({"ImageType": ("DERIVED", "SECONDARY", "AXIAL")}, "DERIVED"),
        ({"ImageType": ("DERIVED", "PRIMARY", "AXIAL")}, "derived already"),
        ({"ImageType": ("ORIGINAL", "SECONDARY", "AXIAL")}, "SECONDARY"),
        ({"ImageType": ("ORIGINAL", "PRIMARY", "AXIAL", "VMI")}, "VMI"),
        ({"BurnedInAnnotation": "YES"}, "BurnedInAnnotation is YES"),
        ({"PhotometricInterpretation": "RGB"}, "RGB"),
        ({"RescaleType": "US"}, "RescaleType is US"),
        ({"MultienergyCTAcquisition": "YES"}, "MultienergyCTAcquisition is YES"),
        ({"SliceThickness": "25"}, "SliceThickness is 25"),
        ({"SeriesDescription": "Abdomen [AI denoised, RUO]"}, "denoised already"),
        ({"ConvolutionKernel": "TrueFidelity-H"}, "TrueFidelity"),
    ],
)
def test_a_series_that_is_not_original_ct_is_unsuitable_and_the_value_is_named(denoising, acquisition, reason):
    with pytest.raises(dn.Unsuitable, match=re.escape(reason)):
        denoising.run(series(acquisition=acquisition))


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (NOISY[:2], "the series has 2"),
        (np.maximum(NOISY, 0.0), "clipped at 0"),
        (NOISY + 1024.0, "the rescale is missing"),
        (NOISY - 100.0, "air lies at"),
        (NOISY - 1024.0, "vary below -1200: not HU"),
        (np.where(NOISY > -500.0, NOISY + 800.0, NOISY), "soft tissue: not HU"),
        (np.full_like(NOISY, 7.0), "every voxel has the value 7"),
        (np.where(NOISY > 800.0, np.nan, NOISY), "not all finite"),
        (np.maximum(CLEAN + 9.0 * (NOISY - CLEAN), -1024.0), "noise of"),
    ],
)
def test_values_that_cannot_be_hounsfield_units_are_unsuitable(denoising, array, reason):
    with pytest.raises(dn.Unsuitable, match=reason):
        denoising.run(series(array))


def test_units_other_than_hounsfield_are_unsuitable(denoising):
    with pytest.raises(dn.Unsuitable, match="needs HU"):
        denoising.run(series(units=dn.Code("1", "UCUM", "no units")))


@pytest.mark.parametrize(
    "image_type", [("ORIGINAL", "PRIMARY", "AXIAL", "ADD"), ("ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 SPI")]
)
def test_vendor_words_in_image_type_are_no_reason_to_refuse(image_type):
    blocks.require_plain_ct(series(acquisition={"ImageType": image_type}))


def test_a_series_without_any_attribute_is_accepted():
    blocks.require_plain_ct(replace(series(), acquisition={}))


def test_about_half_of_the_noise_goes_and_the_mean_stays(denoising):
    result = denoising.run(series())
    (image,) = result.images
    before, after = (NOISY - CLEAN)[CORE].std(), (image.array - CLEAN)[CORE].std()
    assert 0.40 <= 1.0 - after / before <= 0.62
    assert abs(float((image.array - NOISY)[CORE].mean())) < 0.5
    assert abs(result.quality["mean_shift_hu"]) < 0.5
    assert result.quality["noise_after_hu"] < 0.65 * result.quality["noise_before_hu"]


def test_the_result_is_closer_to_the_truth_than_the_input_everywhere_it_matters(denoising):
    output = denoising.run(series()).images[0].array
    body = CLEAN > -500.0
    assert np.square(output - CLEAN)[body].mean() < 0.6 * np.square(NOISY - CLEAN)[body].mean()
    bone = CLEAN > 600.0
    assert np.square(output - CLEAN)[bone].mean() < np.square(NOISY - CLEAN)[bone].mean()


def test_the_image_says_what_was_done_in_the_words_of_the_specification():
    (image,) = pipeline(0.6).run(series()).images
    assert (image.role, image.label) == ("denoised", "AI denoised")
    assert image.description == "AI noise reduction (ct-denoising 1.3.0, strength 0.6)"
    assert (image.code.value, image.code.scheme_designator) == ("113087", "DCM")
    assert image.array.dtype == np.float32 and image.array.shape == NOISY.shape


def test_padding_is_bit_identical_and_does_not_leak_into_its_neighbours(denoising):
    padding = np.zeros(NOISY.shape, bool)
    padding[:, :, :6] = True
    outputs = []
    for value in (-1500.0, -2000.0, 3000.0):
        array = np.where(padding, np.float32(value), NOISY)
        output = denoising.run(series(array, padding=padding)).images[0].array
        assert np.array_equal(output[padding], array[padding])
        outputs.append(output[~padding])
    assert np.array_equal(outputs[0], outputs[1]) and np.array_equal(outputs[0], outputs[2])


def test_metal_and_undeclared_padding_pass_through_untouched(denoising):
    array = NOISY.copy()
    array[1, 60:64, 60:64] = 3071.0
    array[:, :4, :4] = -2000.0
    output = denoising.run(series(array)).images[0].array
    assert np.array_equal(output[1, 60:64, 60:64], array[1, 60:64, 60:64])
    assert np.array_equal(output[:, :4, :4], array[:, :4, :4])


def test_the_same_input_gives_the_same_output_in_a_new_process_state(denoising):
    first, again = denoising.run(series()).images[0].array, pipeline().run(series()).images[0].array
    assert np.array_equal(first, again)


def test_a_slice_does_not_depend_on_neighbours_that_are_far_away(denoising):
    array = np.concatenate((NOISY, NOISY[::-1]))
    output = denoising.run(series(array)).images[0].array
    alone = denoising.run(series()).images[0].array
    assert np.allclose(output[:3], alone, atol=0.25) and np.allclose(output[3:][::-1], alone, atol=0.25)


def test_a_higher_strength_removes_more_noise():
    left = [(pipeline(s).run(series()).images[0].array - CLEAN)[CORE].std() for s in ("low", "default", "high", 1.0)]
    assert left == sorted(left, reverse=True) and left[0] > 1.5 * left[3]


@pytest.mark.parametrize(
    ("acquisition", "strength"),
    [
        ({}, 0.6),
        ({"BodyPartExamined": "HEAD"}, 0.5),
        ({"StudyDescription": "CT Brain plain"}, 0.5),
        ({"SeriesDescription": "FOREHEAD"}, 0.6),
        ({"BodyPartExamined": "HEAD", "SeriesDescription": "STD BRAIN 1MM, iDose"}, 0.4),
        ({"ConvolutionKernel": ("Br38f", "3")}, 0.4),
        ({"ConvolutionKernel": ("Br38f",)}, 0.6),
        ({"ConvolutionKernel": "STD+"}, 0.6),
    ],
)
def test_the_default_strength_follows_body_part_and_reconstruction(denoising, acquisition, strength):
    assert denoising.strength_for(series(acquisition=acquisition))[0] == strength


def test_a_strength_that_was_asked_for_is_not_second_guessed():
    assert pipeline("high").strength_for(series(acquisition={"BodyPartExamined": "HEAD"}))[0] == 0.8
    assert pipeline(0.25).strength_for(series(acquisition={"SeriesDescription": "iDose"}))[0] == 0.25


@pytest.mark.parametrize("strength", ["strong", 0.0, -0.1, 1.5, True, None])
def test_a_strength_that_means_nothing_is_refused_with_the_names_that_do(strength):
    with pytest.raises(ValueError, match="low, default, high"):
        CTDenoising.Options(strength=strength)


def test_batches_halve_while_memory_runs_out_and_the_result_is_the_same(monkeypatch):
    made = pipeline()
    expected = made.run(series()).images[0].array
    monkeypatch.setitem(CTDenoising.run.__globals__["BATCH"], "cpu", 32)
    true_look, seen = made.net.look, []

    def short_of_memory(part: torch.Tensor, share: float) -> Seen:
        seen.append(len(part))
        if len(part) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return true_look(part, share)

    monkeypatch.setattr(made.net, "look", short_of_memory)
    assert np.allclose(made.run(series()).images[0].array, expected, atol=0.25)
    assert seen[0] > 1 and seen.count(1) == len(NOISY)


def test_running_out_of_memory_with_a_single_slice_is_a_failure(monkeypatch):
    made = pipeline()

    def short_of_memory(_part: torch.Tensor, _share: float) -> Seen:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(made.net, "look", short_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        made.run(series())


def test_output_that_is_not_finite_is_an_error_and_never_a_result(monkeypatch):
    made = pipeline()
    monkeypatch.setattr(made.net, "taken", lambda part, *_: torch.full_like(part, torch.nan))
    with pytest.raises(ArithmeticError, match="not finite"):
        made.run(series())


def test_what_the_card_names_as_untested_is_noted(denoising):
    array = NOISY.copy()
    array[1, 50:60, 50:60] = 3000.0
    notes = " ".join(denoising.run(series(array, acquisition={"PatientAge": "007Y"}, incomplete=True)).notes)
    assert "children" in notes and "metal" in notes and "incomplete" in notes


def test_progress_rises_to_one():
    seen: list[float] = []
    pipeline(progress=lambda _phase, fraction: seen.append(fraction)).run(series())
    assert seen == sorted(seen) and seen[-1] == 1.0


def test_weights_that_do_not_match_their_manifest_are_not_loaded(tmp_path):
    for name in (bundle.MANIFEST, bundle.WEIGHTS):
        (tmp_path / name).write_bytes((WEIGHTS / name).read_bytes())
    content = bytearray((tmp_path / bundle.WEIGHTS).read_bytes())
    content[-1] ^= 1
    (tmp_path / bundle.WEIGHTS).write_bytes(content)
    with pytest.raises(ct_denoise.WeightsMismatchError, match="sha256"):
        ct_denoise.load(tmp_path)


def test_saved_weights_load_as_the_same_network(tmp_path):
    torch.manual_seed(1)
    made = net.build("denoise_unet", {"widths": [8, 12, 16], "blocks": 1}).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    bundle.save(made, tmp_path, "denoise_unet", {"widths": [8, 12, 16], "blocks": 1})
    image = 20.0 * torch.randn(1, 1, 37, 50)
    with torch.inference_mode():
        assert torch.equal(ct_denoise.load(tmp_path).noise(image, 0.6), made.noise(image, 0.6))


def test_the_shipped_manifest_names_licence_input_and_digest_and_the_weights_are_small():
    manifest = yaml.safe_load((WEIGHTS / bundle.MANIFEST).read_text())
    assert manifest["licence"] and manifest["input"]["units"] == "HU"
    assert len(manifest["files"][bundle.WEIGHTS]["sha256"]) == 64
    assert "research use only" in manifest["intended_use"]
    assert (WEIGHTS / bundle.WEIGHTS).stat().st_size <= 20 * 2**20


def test_the_real_tilted_head_loses_noise_and_keeps_its_padding():
    path = cases.find(DATA, "ct-head-ge")
    if path is None:
        pytest.skip("the real head CT is not at hand")
    read = cases.read_series(path)
    array, padding = read.array.numpy()[4:24:4], read.padding.numpy()[4:24:4]
    assert padding.mean() > 0.1
    result = pipeline().run(series(array, padding=padding, acquisition={"BodyPartExamined": "HEAD"}))
    output = result.images[0].array
    assert np.array_equal(output[padding], array[padding])
    assert result.quality["strength"] == 0.5
    assert 0.5 < result.quality["noise_after_hu"] / result.quality["noise_before_hu"] < 0.8
    assert abs(result.quality["mean_shift_hu"]) < 0.5
