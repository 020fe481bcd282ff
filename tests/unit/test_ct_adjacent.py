"""Slices with their neighbours: which may be used, what they add, and that a slice without any is as before."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dicomnode import pipeline as dn
from models import ct_denoise
from models.ct_denoise import (
    adjacent,
    bars,
    bench,
    cases,
    data,
    evaluate_adjacent,
    metrics,
    net,
    phantoms,
    projection,
    simulate,
)
from models.ct_denoise.adjacent import MOST_OVERLAP, SPACING_MM, Adjacent
from models.ct_denoise.projection import KERNELS
from pipelines import ct_adjacent
from pipelines.ct_denoise import CTDenoising, above_presets

WEIGHTS = Path(ct_denoise.__file__).parent
CPU = torch.device("cpu")
NAN = math.nan


def series(
    z_mm: list[float], thickness: float | None = 1.0, tilt_deg: float = 0.0, **changes: object
) -> dn.ImageSeries:
    """Slices of 0.7 mm pixels at ``z_mm``, the gantry tilted so that they shift aside."""
    count = len(z_mm)
    shift = math.tan(math.radians(tilt_deg))
    given = {
        "array": np.zeros((count, 16, 16), np.float32),
        "padding": np.zeros((count, 16, 16), bool),
        "units": dn.HU,
        "positions": np.array([[0.0, shift * z, z] for z in z_mm]),
        "orientation": np.array([1.0, 0, 0, 0, 1, 0]),
        "pixel_spacing": (0.7, 0.7),
        "geometry": dn.Geometry.REGULAR,
        "acquisition": {} if thickness is None else {"SliceThickness": str(thickness)},
    }
    return dn.ImageSeries(**given)  # type: ignore[arg-type]


def plain(thickness: float) -> dict[str, object]:
    """Attributes of an original CT."""
    kind = ("ORIGINAL", "PRIMARY", "AXIAL")
    return {"Modality": "CT", "ImageType": kind, "RescaleType": "HU", "SliceThickness": str(thickness)}


def water(slices: int = 5, size: int = 96) -> np.ndarray:
    """Slices of a water disc in air with noise of their own (slice, row, column) [HU]."""
    axis = torch.arange(size) - (size - 1) / 2.0
    disc = torch.where(torch.sqrt(axis[:, None] ** 2 + axis[None] ** 2) < 36.0, 40.0, -1000.0)
    clean = projection.apply_kernel(disc, KERNELS["std"], 0.8)
    noise = [simulate.insert_noise(clean[None], 0.8, sigma_hu=18.0, seed=seed)[0] for seed in range(slices)]
    return (clean + torch.stack(noise)).numpy()


@pytest.mark.parametrize(
    ("z_mm", "more", "expected"),
    [
        ([0, 1, 2, 3], {}, [NAN, 1, 1, NAN]),
        ([3, 2, 1, 0], {}, [NAN, 1, 1, NAN]),
        ([0, 1, 2, 4, 5, 6], {}, [NAN, 1, NAN, NAN, 1, NAN]),  # a gap: a slice is missing
        ([0, 1, 2.2, 3.4], {}, [NAN, NAN, 1.2, NAN]),  # the spacing changes
        ([0, 1, 2.04, 3.08], {}, [NAN, 1.02, 1.04, NAN]),  # within 5 %
        ([0, 5, 10, 15], {"thickness": 5.0}, [NAN] * 4),  # thick slices
        ([0, 0.2, 0.4], {}, [NAN] * 3),  # closer than in training
        ([0, 0, 0], {}, [NAN] * 3),  # one place three times
        ([0, 1, 2], {"thickness": 5.0}, [NAN] * 3),  # noise in common beyond that of training
        ([0, 1, 2], {"thickness": None}, [NAN, 1, NAN]),
        ([0, 1, 2], {"tilt_deg": 18.5}, [NAN, 1, NAN]),  # 0.33 mm aside: less than half a pixel
        ([0, 2, 4], {"tilt_deg": 18.5}, [NAN] * 3),
        ([0], {}, [NAN]),
        ([0, 1], {}, [NAN, NAN]),
    ],
)
def test_neighbours_are_used_where_they_lie_close_evenly_and_over_their_slice(z_mm, more, expected):
    assert ct_adjacent.spacings(series([float(z) for z in z_mm], **more)) == pytest.approx(expected, nan_ok=True)


def test_the_limits_of_the_spacing_and_the_overlap_are_those_of_the_model():
    high = SPACING_MM[1]
    lapped = [ct_adjacent.spacings(series([0.0, 1.0, 2.0], thickness=f * MOST_OVERLAP))[1] for f in (0.9, 1.1)]
    assert lapped == pytest.approx([1.0, NAN], nan_ok=True)
    edge = ct_adjacent.spacings(series([0.0, high, 2.0 * high], thickness=high))
    assert edge[1] == pytest.approx(high)
    assert np.isnan(ct_adjacent.spacings(series([0.0, 1.1 * high, 2.2 * high]))).all()


# -- phantoms


def test_phantoms_change_little_over_a_little_way_and_more_over_more():
    changes = {z: [] for z in (0.01, 0.5, 1.0, 4.0)}
    for seed in range(4):
        middle = phantoms.clean_image(seed, 128, 1.0, CPU)
        for z_mm, kept in changes.items():
            kept.append(
                float((phantoms.clean_image(seed, 128, 1.0, CPU, z_mm) - middle).clamp(-100, 100).square().mean())
            )
    means = [sum(kept) ** 0.5 for kept in changes.values()]
    assert means == sorted(means) and means[0] < 0.2 * means[1] and means[3] > 1.5 * means[1]
    before, after = (phantoms.clean_image(1, 128, 1.0, CPU, z_mm) for z_mm in (-1.0, 1.0))
    assert not torch.equal(before, after)


def test_small_blobs_lie_in_one_plane_only_and_large_ones_in_several():
    def held(radius: float) -> float:
        draws = [phantoms.Draw(seed, 8, 1.0, CPU, 1.5) for seed in range(60)]
        return sum(phantoms._section(draw, radius)[0] > 0.0 for draw in draws) / len(draws)

    assert held(0.6) < 0.5 and held(6.0) > 0.9


def test_noise_beside_a_slice_is_independent_of_its_own():
    middle, beside = (simulate.simulate_slice(3, 160, realisations=1, z_mm=z_mm) for z_mm in (0.0, 1.0))
    assert middle.pixel_mm == beside.pixel_mm and middle.sigma_hu == beside.sigma_hu
    both = torch.stack((middle.noise[0].flatten(), beside.noise[0].flatten()))
    assert abs(float(torch.corrcoef(both)[0, 1])) < 0.03
    assert float(both[1].std()) == pytest.approx(float(both[0].std()), rel=0.2)


# -- a series


@pytest.fixture(scope="module")
def given() -> net.DenoiseUNet:
    """A network that depends on all that it is given."""
    torch.manual_seed(1)
    made = net.build("denoise_unet", {"widths": [8, 8, 8], "blocks": 1}).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return made


IMAGES = 20.0 * torch.randn(7, 1, 45, 52, generator=torch.Generator().manual_seed(0))
SPACING = torch.tensor([NAN, 1.0, 1.0, NAN, NAN, 2.0, NAN])


def streamed(made: net.DenoiseUNet, batch: int, spacing: torch.Tensor = SPACING) -> torch.Tensor:
    stream, parts = ct_denoise.Stream(made, 0.6, spacing), []
    with torch.inference_mode():
        while stream.given < len(IMAGES):
            parts.append(stream.feed(IMAGES[stream.given : stream.given + batch]))
    assert stream.done == len(IMAGES)
    return torch.cat(parts)


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_a_series_in_batches_is_denoised_as_each_slice_with_its_neighbours(given, batch):
    for index, noise in enumerate(streamed(given, batch)):
        beside = None
        if torch.isfinite(SPACING[index]):
            planes = torch.stack((IMAGES[index - 1, 0], IMAGES[index + 1, 0]))[None]
            beside = Adjacent(planes=planes, spacing_mm=SPACING[index : index + 1])
        with torch.inference_mode():
            alone = given.noise(IMAGES[index : index + 1], 0.6)[0]
            wanted = given.noise(IMAGES[index : index + 1], 0.6, adjacent=beside)[0]
        assert torch.allclose(noise, wanted, atol=1e-3)
        assert torch.allclose(noise, alone, atol=1e-3) == (beside is None)


def test_a_batch_that_fails_may_be_given_again(given, monkeypatch):
    expected, true_taken, calls = streamed(given, 2), given.taken, []

    def fails_once(*parts: object) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("out of memory")
        return true_taken(*parts)  # type: ignore[arg-type]

    monkeypatch.setattr(given, "taken", fails_once)
    stream, parts = ct_denoise.Stream(given, 0.6, SPACING), []
    with torch.inference_mode():
        while stream.given < len(IMAGES):
            try:
                parts.append(stream.feed(IMAGES[stream.given : stream.given + 2]))
            except torch.OutOfMemoryError:
                continue
    assert torch.allclose(torch.cat(parts), expected, atol=1e-3) and len(calls) > 3


def test_neighbours_that_cannot_be_used_leave_every_bit_as_it_was(given):
    beside = Adjacent(planes=torch.full((1, 2, 45, 52), 1e4), spacing_mm=torch.tensor([NAN]))
    with torch.inference_mode():
        assert torch.equal(given.noise(IMAGES[:1], 0.6, adjacent=beside), given.noise(IMAGES[:1], 0.6))


# -- what neighbours give and take


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5])
def test_what_is_given_back_is_repaid_in_noise(share, monkeypatch):
    monkeypatch.setattr(adjacent, "GIVEN_BACK", share)
    monkeypatch.setattr(adjacent, "SPARED", 1.0)
    own, before, after = 10.0 * torch.randn(3, 1, 1, 256, 256, generator=torch.Generator().manual_seed(0))
    taken = adjacent.TAKEN
    seen = adjacent.Seen(own, torch.full_like(own, 10.0), torch.cat((taken * own, own), 1))
    around = torch.stack([torch.cat((torch.zeros_like(one), taken * one), 1) for one in (before, after)], 1)
    cautious = adjacent.beside(seen, around, torch.tensor([1.0]))[:, :1]
    assert float((own - cautious).std()) == pytest.approx((1.0 - taken) * 10.0, rel=0.01)


def test_images_that_are_alike_are_averaged_and_what_differs_stays():
    zero, sigma = torch.zeros(1, 1, 16, 16), torch.full((1, 1, 16, 16), 10.0)
    seen = adjacent.Seen(zero + 3.0, sigma, torch.cat((zero, zero), 1))
    for beside, expected in ((0.0, 1.0), (400.0, 3.0)):
        around = torch.stack([torch.cat((zero + beside, zero), 1)] * 2, 1)
        least = adjacent.beside(seen, around, torch.tensor([1.0]))[:, 1:]
        assert float((seen.image - least).mean()) == pytest.approx(expected, abs=0.05)


def test_a_neighbour_counts_less_the_farther_it_is():
    zero, sigma = torch.zeros(1, 1, 16, 16), torch.full((1, 1, 16, 16), 10.0)
    seen = adjacent.Seen(zero, sigma, torch.cat((zero, zero), 1))
    around = torch.stack([torch.cat((zero + 8.0, zero), 1)] * 2, 1)
    moved = [float(adjacent.beside(seen, around, torch.tensor([z]))[:, 1:].abs().mean()) for z in (0.5, 1.0, 3.0)]
    assert moved == sorted(moved, reverse=True) and moved[0] > 1.5 * moved[2]


@pytest.fixture(scope="module")
def kept() -> dict[tuple[float, float, float], dict[str, float]]:
    """Contrast kept of spheres by strength, diameter and contrast, with the shipped weights."""
    rows = evaluate_adjacent.spheres(ct_denoise.load(WEIGHTS), 2)
    return {(row["strength"], row["diameter_mm"], row["contrast_hu"]): row for row in rows}


@pytest.mark.parametrize("sphere", evaluate_adjacent.SPHERES)
def test_a_sphere_in_one_slice_alone_keeps_its_contrast_at_the_default_strength(kept, sphere):
    row = kept[0.6, *sphere]
    assert row["one_slice"] > row["alone"] - 0.01
    assert row["through"] > row["alone"] - 0.002
    assert abs(row["leaked"]) < 0.04


def test_a_faint_sphere_that_runs_through_keeps_more_than_without_neighbours(kept):
    faint = [kept[0.6, *sphere] for sphere in ((5.0, 15.0), (5.0, 7.0))]
    assert all(1.0 - row["through"] < 0.9 * (1.0 - row["alone"]) for row in faint)


def test_a_strong_sphere_in_one_slice_keeps_its_contrast_at_full_strength_too(kept):
    for sphere in ((2.0, 300.0), (3.0, 100.0)):
        row = kept[1.0, *sphere]
        assert row["one_slice"] > row["alone"] - 0.03 and abs(row["leaked"]) < 0.03


def test_neighbours_make_the_estimate_better_and_the_middle_slice_is_that_of_the_plain_cases():
    (case,) = cases.stacks(1, 1.0, first=9000)
    plain = simulate.simulate_slice(simulate.EVALUATION_SEED + 9000)
    assert torch.allclose(case.clean, cases._crop(data.render(plain, KERNELS["soft"], 20.0)[0]))
    made, noisy = ct_denoise.load(WEIGHTS), case.noisy[None, None]
    with torch.inference_mode(), ct_denoise.precision(CPU):
        alone, beside = (
            metrics.psnr(case.clean, (noisy - made.noise(noisy, 1.0, adjacent=one))[0, 0], case.body)
            for one in (None, case.adjacent)
        )
    assert beside > alone + 0.5


# -- the tables


def white(image: torch.Tensor, _pixel_mm: float, *, sigma_hu: float, seed: int, **_: object) -> torch.Tensor:
    """White noise in place of a scanner's, which takes a third of a second a slice."""
    return sigma_hu * torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))


def slab(images: torch.Tensor, planes: torch.Tensor | None = None) -> torch.Tensor:
    """Half of the slice and a quarter of either neighbour."""
    return images if planes is None else 0.5 * images + 0.25 * planes.sum(1)


def test_the_bench_tells_a_slab_by_what_lies_in_one_slice_and_what_runs_through(monkeypatch):
    monkeypatch.setattr(simulate, "insert_noise", white)
    made, beside = bench.Bench.make(12.0, 4, KERNELS["std"]), bench.Beside.make(12.0, 4, KERNELS["std"])
    alone, through = (bench.run(made, slab, replace(beside, share=share)) for share in (0.0, 1.0))
    assert alone["insert_3mm_14hu"] == pytest.approx(0.5, abs=0.01)
    assert through["insert_3mm_14hu"] == pytest.approx(1.0, abs=0.01)
    assert alone["noise_reduction"] == pytest.approx(1.0 - math.sqrt(0.375), abs=0.01)
    assert bench.run(made, slab)["noise_reduction"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0.5 / math.sqrt(0.375)), (1.0, 1.0 / math.sqrt(0.375))])
def test_the_observer_sees_what_neighbours_hold(share, expected, monkeypatch):
    monkeypatch.setattr(simulate, "insert_noise", white)
    given = {"sigma_hu": 12.0, "repeats": 200, "diameter_mm": 6.0, "contrast_hu": 8.0, "kernel": KERNELS["std"]}
    ratio, low, high = bench.observer(slab, **given, share=share)["npw"]
    assert ratio == pytest.approx(expected, rel=0.15) and low < expected < high


def test_the_tables_hold_every_method_and_the_bars_are_told_of_them(given, monkeypatch):
    monkeypatch.setattr(simulate, "insert_noise", white)
    noise = 20.0 * torch.randn(4, 64, 64, generator=torch.Generator().manual_seed(5))
    clean = torch.full((64, 64), 40.0)
    beside = Adjacent(planes=(clean + noise[1:3])[None], spacing_mm=torch.tensor([1.0]))
    case = cases.Case(
        group="real body + 20 HU, 2 mm",
        clean=clean,
        noisy=clean + noise[0],
        noise=noise[3:],
        sigma_hu=20.0,
        own_hu=8.0,
        adjacent=beside,
    )
    rows = evaluate_adjacent.images(given, [case])
    table = {row["method"]: row for row in rows}
    assert table["mean of three slices"]["rmse_hu"] == pytest.approx(20.0 / math.sqrt(3.0), rel=0.05)
    assert {"alone, strength 1, told", "with neighbours, strength 1, told", "non-local means"} <= table.keys()
    monkeypatch.setattr(evaluate_adjacent, "STRENGTHS", (0.6,))
    best = {"group": "real body + 20 HU", "method": "BM3D, true spectrum", "psnr_db": 30.0}
    found = {"adjacent_images": rows, "adjacent_bench": evaluate_adjacent.physics(given, 2), "images": [best]}
    found["adjacent_observers"] = {"npw, through": (1.0, 0.96, 1.1)}
    found["images"] += [best | {"method": name} for name in ("ours, strength 1", "ours, strength 1, told")]
    verdicts = {row["bar"]: row["met"] for row in bars.verdicts(found)}
    assert not verdicts["bench with neighbours, one slice: noise reduction between 0.45 and 0.6"]
    assert verdicts["lower limit of the detectability ratio with neighbours, npw, through of 0.95 or more"]
    assert any("dB above BM3D of the slice alone, real body" in name for name in verdicts)


def test_noise_of_neighbouring_slices_is_as_alike_as_a_slab_makes_it(given, monkeypatch):
    monkeypatch.setattr(simulate, "insert_noise", white)
    monkeypatch.setattr(evaluate_adjacent, "with_neighbours", lambda *_: slab)
    rows = {row["slices"]: row["correlation"] for row in evaluate_adjacent.along(given)}
    assert rows["alone"] == pytest.approx(0.0, abs=0.03)
    # 2 x (1/2 x 1/4) / (1/4 + 2/16)
    assert rows["with neighbours"] == pytest.approx(2.0 / 3.0, abs=0.03)


# -- the pipeline


def test_a_thin_series_is_denoised_with_neighbours_and_a_thick_one_as_each_slice_alone():
    array = water()
    padding = np.zeros(array.shape, bool)
    padding[:, :, :5] = True
    array = np.where(padding, np.float32(-2000.0), array)
    made = CTDenoising()
    made.setup(dn.Runtime(device="cpu", weights=WEIGHTS, threads=1))
    given = {"array": array, "padding": padding}
    thin, thick = (
        made.run(replace(series([step * k for k in range(5)]), **given, acquisition=plain(step))) for step in (1.0, 5.0)
    )
    assert (thin.quality["slices_with_neighbours"], thick.quality["slices_with_neighbours"]) == (3.0, 0.0)
    outputs = [result.images[0].array for result in (thin, thick)]
    assert all(np.array_equal(output[padding], array[padding]) for output in outputs)
    ends = [0, 4]
    assert np.allclose(outputs[0][ends], outputs[1][ends], atol=0.25)
    assert np.abs(outputs[0][1:4] - outputs[1][1:4]).max() > 0.5
    with torch.inference_mode(), ct_denoise.precision(CPU):
        part = torch.from_numpy(np.where(padding, np.float32(-1000.0), array))[:, None]
        alone = (part - made.net.noise(part, 0.6))[:, 0].numpy()
    assert np.allclose(outputs[1][~padding], alone[~padding], atol=0.25)


@pytest.mark.parametrize(("strength", "step", "noted"), [(0.8, 1.0, False), (1.0, 1.0, True), (1.0, 5.0, False)])
def test_the_record_says_what_full_strength_does_with_neighbours(strength, step, noted):
    spacing = ct_adjacent.spacings(series([step * k for k in range(3)], thickness=step))
    assert ("in one slice alone" in " ".join(above_presets(strength, spacing))) == noted
