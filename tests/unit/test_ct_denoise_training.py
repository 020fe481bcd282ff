"""Losses, training and the figures of merit: each against a case whose answer is known."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.ct_denoise import (
    baselines,
    bench,
    bundle,
    cases,
    evaluate,
    evaluate_adjacent,
    losses,
    metrics,
    net,
    noise,
    simulate,
    train,
)
from models.ct_denoise.adjacent import Adjacent
from models.ct_denoise.data import Drawing, Pool
from models.ct_denoise.projection import KERNELS
from models.ct_denoise.stream import Stream

CPU = torch.device("cpu")
FIRST = train.Phase(steps=120, pool=3, slices=1, paired=2, warm_up=10, rate=2e-3, blocks=(1, 1, 1))
TINY = train.Config(phases=(FIRST,), patch=64, widths=(8, 8, 8))


@pytest.fixture(scope="module")
def pool() -> Pool:
    slices = [simulate.simulate_slice(seed, 160) for seed in range(3)]
    clean = torch.stack([(item.clean * 16).round().clamp(-32768, 32767).to(torch.int16) for item in slices])
    noises = torch.stack([item.noise.half() for item in slices])
    return Pool(clean, noises, [item.pixel_mm for item in slices], [item.sigma_hu for item in slices])


def trained(pool: Pool, work, steps: int, config: train.Config = TINY) -> train.Trainer:
    trainer = train.Trainer(config, work, CPU)
    while trainer.step < steps:
        trainer.advance(pool)
    return trainer


def test_training_fits_a_batch_it_sees_again_and_again(pool, tmp_path, monkeypatch):
    batch = train.draw_patches(pool, 5, 1, 2, 64)
    monkeypatch.setattr(train, "draw_patches", lambda *_: batch)
    trainer = train.Trainer(TINY, tmp_path, CPU)
    first = trainer.advance(pool)
    while trainer.step < TINY.steps:
        last = trainer.advance(pool)
    assert float(last["least"]) < 0.8 * float(first["least"])
    assert float(last["pixel"]) < 0.9 * float(first["pixel"])


def test_an_interrupted_run_ends_as_an_uninterrupted_one(pool, tmp_path):
    whole = trained(pool, tmp_path / "whole", 8)
    trained(pool, tmp_path / "parts", 4).keep()
    resumed = trained(pool, tmp_path / "parts", 8)
    for one, other in zip(whole.averaged.parameters(), resumed.averaged.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_checkpoint_of_another_configuration_is_refused(pool, tmp_path):
    trained(pool, tmp_path, 1).keep()
    with pytest.raises(SystemExit, match="another configuration"):
        train.Trainer(replace(TINY, gradient=0.0), tmp_path, CPU)


def test_a_second_phase_starts_from_the_averaged_weights_with_new_blocks_as_identities(pool, tmp_path):
    second = replace(
        FIRST, steps=5, paired=1, blocks=(1, 2, 3), least_epsilon=0.5, drawing=Drawing(faint=0.5, visible=0.5)
    )
    config = replace(TINY, phases=(replace(FIRST, steps=3), second))
    before = trained(pool, tmp_path / "one", 3, config).averaged
    after = net.build("denoise_unet", config.arguments(1))
    after.grow_from(before)
    image, sigma = 20.0 * torch.randn(1, 1, 32, 32), torch.full((1, 1, 32, 32), 20.0)
    with torch.inference_mode():
        assert torch.allclose(after(image, sigma), before(image, sigma), atol=1e-5)
    whole = trained(pool, tmp_path / "whole", 8, config)
    trained(pool, tmp_path / "parts", 5, config).keep()
    resumed = trained(pool, tmp_path / "parts", 8, config)
    assert whole.net.state_dict().keys() == after.state_dict().keys()
    for one, other in zip(whole.averaged.parameters(), resumed.averaged.parameters(), strict=True):
        assert torch.equal(one, other)


REFINES = replace(TINY, phases=(replace(FIRST, steps=4),), noise_map="flattest", refines=True, seed=1)


def test_a_refining_run_starts_from_the_weights_it_is_given_and_can_be_resumed(pool, tmp_path):
    start = tmp_path / "start"
    train.export(trained(pool, tmp_path / "before", 3), start)
    before = bundle.load(start)
    whole = train.Trainer(REFINES, tmp_path / "whole", CPU, start)
    image = 20.0 * torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(whole.averaged(image, before.noise_map(image)), before(image, before.noise_map(image)))
    assert whole.averaged.noise_map is noise.flattest_noise_map and before.noise_map is noise.noise_map
    train.export(whole, tmp_path / "same")  # before its first step: the same weights under the other map
    assert bundle.digest(tmp_path / "same") == bundle.digest(start)
    assert bundle.load(tmp_path / "same").noise_map is noise.flattest_noise_map
    while whole.step < 4:
        whole.advance(pool)
    parts = train.Trainer(REFINES, tmp_path / "parts", CPU, start)
    parts.advance(pool)
    parts.keep()
    parts = train.Trainer(REFINES, tmp_path / "parts", CPU, start)
    while parts.step < 4:
        parts.advance(pool)
    for one, other in zip(whole.averaged.parameters(), parts.averaged.parameters(), strict=True):
        assert torch.equal(one, other)
    train.export(whole, tmp_path / "out")
    log = json.loads((tmp_path / "out" / "training.json").read_text())
    assert log["started_from"] == bundle.digest(start) and log["before"]["steps"] == 3
    assert bundle.load(tmp_path / "out").noise_map is noise.flattest_noise_map


def test_a_refining_run_from_other_weights_does_not_go_on_from_the_checkpoint(pool, tmp_path):
    for name, steps in (("one", 1), ("two", 2)):
        train.export(trained(pool, tmp_path / f"work-{name}", steps), tmp_path / name)
    begun = train.Trainer(REFINES, tmp_path / "work", CPU, tmp_path / "one")
    begun.advance(pool)
    begun.keep()
    with pytest.raises(SystemExit, match="another configuration"):
        train.Trainer(REFINES, tmp_path / "work", CPU, tmp_path / "two")


LEAST = replace(
    TINY,
    phases=(replace(FIRST, steps=4, paired=0, per_slice=2, blocks=(1, 1, 2)),),
    noise_map="flattest",
    refines=True,
    only_least=True,
    seed=2,
)


def test_a_network_for_least_squares_goes_beside_the_weights_it_starts_from_and_leaves_presets_alone(pool, tmp_path):
    start = tmp_path / "start"
    train.export(trained(pool, tmp_path / "before", 8, replace(TINY, noise_map="flattest")), start)
    before = bundle.load(start)
    trainer = train.Trainer(LEAST, tmp_path / "work", CPU, start)
    while trainer.step < 4:
        assert set(trainer.advance(pool)) == {"least", "least_gradient"}
    assert set(trainer.validate(pool)) == {"least", "least_gradient"}
    train.export(trainer, tmp_path / "out")
    after = bundle.load(tmp_path / "out")
    image = 20.0 * torch.randn(2, 1, 60, 52, generator=torch.Generator().manual_seed(0))
    beside = Adjacent(planes=image.transpose(0, 1).expand(2, 2, 60, 52), spacing_mm=torch.tensor([1.0, math.nan]))
    with torch.inference_mode():
        for strength in (0.4, 0.6, 0.8):
            assert torch.equal(before.noise(image, strength), after.noise(image, strength))
            given = [made.noise(image, strength, adjacent=beside) for made in (before, after)]
            assert torch.equal(*given)
        padded = torch.nn.functional.pad(image, (0, 4, 0, 4), mode="replicate")
        own = trainer.averaged(padded, torch.nn.functional.pad(after.noise_map(image), (0, 4, 0, 4), mode="replicate"))
        assert torch.equal(after.noise(image, 1.0), own[:, 1:, :60, :52])
        assert not torch.equal(after.noise(image, 1.0), before.noise(image, 1.0))
        # between the highest preset and 1, both have their share
        share, amount = net.blend(0.9)
        cautious = before.noise(image, amount, 0.0) / amount
        mixed = amount * ((1.0 - share) * cautious + share * own[:, 1:, :60, :52])
        assert torch.allclose(after.noise(image, 0.9), mixed, atol=1e-4)
        # a series, in which the node takes them
        for strength in (0.6, 1.0):
            spacing = torch.full((2,), math.nan)
            found = Stream(after, strength, spacing).feed(image)
            assert torch.equal(found, after.noise(image, strength))
    # a second one takes the place of the first
    again = train.Trainer(LEAST, tmp_path / "again", CPU, tmp_path / "out")
    again.advance(pool)
    train.export(again, tmp_path / "second")
    assert bundle.load(tmp_path / "second").state_dict().keys() == after.state_dict().keys()


def test_a_network_for_least_squares_is_not_put_beside_weights_that_are_told_another_noise_map(pool, tmp_path):
    train.export(trained(pool, tmp_path / "before", 1), tmp_path / "start")
    with pytest.raises(SystemExit, match="its noise map is 'mean'; weights with 'flattest' are wanted"):
        train.Trainer(LEAST, tmp_path / "work", CPU, tmp_path / "start")


def test_slices_of_clinical_thickness_are_drawn_where_a_configuration_asks_for_them(tmp_path, monkeypatch):
    made = []

    def make(count, first_seed, _device, file=None, *, thick=False):
        made.append((count, first_seed, file and file.name, thick))
        item = simulate.simulate_slice(first_seed, 96, thick=thick)
        clean = (item.clean * 16).round().clamp(-32768, 32767).to(torch.int16)
        stacks = (part.expand(count, *part.shape) for part in (clean, item.noise.half()))
        return Pool(*stacks, [item.pixel_mm] * count, [item.sigma_hu] * count)

    monkeypatch.setattr(train.Pool, "make", make)
    phase = replace(FIRST, steps=2, pool=5, thick=0.25)
    config = replace(TINY, phases=(phase, replace(phase, thick=0.5)))  # as many slices, and a share of its own
    trainer, given = train.Trainer(config, tmp_path, CPU), []
    advance = trainer.advance
    monkeypatch.setattr(trainer, "advance", lambda slices: (given.append(slices), advance(slices))[1])
    train.train(trainer, tmp_path, tmp_path / "out", math.inf)
    first, last = given[0][0], given[0][len(given[0]) - 1]
    assert torch.equal(last.clean, given[0].second[0].clean) and not torch.equal(first.clean, last.clean)
    assert [part.border / len(part) for part in given] == [0.75, 0.75, 0.5, 0.5]
    assert (5, 0, "pool.safetensors", False) in made and (5, train.THICK_FIRST, "thick.safetensors", True) in made


@pytest.mark.parametrize("given", [["--config", "refine"], ["--config", "least"], ["--start", "somewhere"]])
def test_refining_and_the_weights_to_start_from_belong_together(given, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train", *given])
    with pytest.raises(SystemExit):
        train.main()
    assert "--start" in capsys.readouterr().err


def test_an_unknown_noise_map_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"guess.*mean, flattest"):
        net.build("denoise_unet", {"noise_map": "guess"})


def test_faint_patches_and_visible_inserts_are_drawn_only_where_asked(pool):
    plain, asked = (train.draw_patches(pool, 7, 2, 2, 64, d) for d in (Drawing(), Drawing(faint=1.0, visible=1.0)))
    assert float(asked.clean.amax() - asked.clean.amin()) <= 300.0 < float(plain.clean.amax() - plain.clean.amin())
    peaks = asked.insert.abs().amax((1, 2, 3))
    assert float(peaks.max()) <= 100.0 and not torch.equal(plain.insert, asked.insert)


def test_an_untrained_network_removes_nothing():
    image = 20.0 * torch.randn(2, 1, 33, 40)
    with torch.inference_mode():
        assert float(net.build("denoise_unet").noise(image, 1.0).abs().max()) == 0.0


def test_presets_share_one_blend_and_full_strength_is_least_squares():
    assert net.blend(0.4)[0] == net.blend(0.6)[0] == net.blend(0.8)[0] == net.PRESET_SHARE
    assert net.PRESET_SHARE < net.blend(0.9)[0] < net.blend(1.0)[0]
    assert net.blend(1.0) == (pytest.approx(1.0), 1.0)
    assert net.blend(0.4)[1] < net.blend(0.6)[1] < net.blend(0.8)[1] <= 1.0


def test_an_unknown_network_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"mystery.*denoise_unet"):
        net.build("mystery")


def test_half_precision_moves_the_result_by_less_than_a_stored_step():
    torch.manual_seed(0)
    made = net.build("denoise_unet", {"widths": [8, 12, 16], "blocks": 1})
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.08)
    image = 15.0 * torch.randn(1, 1, 64, 64)
    with torch.inference_mode():
        plain = made.noise(image, 1.0)
        with torch.autocast("cpu", torch.bfloat16):
            half = made.noise(image, 1.0)
    assert float(plain.std()) > 1.0
    assert float((half - plain).std() / plain.std()) < 0.02


def test_the_spectrum_term_is_zero_for_noise_turned_down_and_not_for_noise_blurred():
    given = torch.randn(4, 64, 64, generator=torch.Generator().manual_seed(2))
    assert float(losses.spectrum_shape(given, 0.4 * given)) == pytest.approx(0.0, abs=1e-3)
    assert float(losses.spectrum_shape(given, noise.gaussian_blur(given[:, None], 0.8)[:, 0])) > 0.3


def test_the_insert_term_is_the_share_of_the_insert_that_is_lost():
    insert = torch.zeros(2, 1, 32, 32)
    insert[:, :, 10:20, 10:20] = -12.0
    assert float(losses.insert_loss(torch.zeros_like(insert), insert)) == 0.0
    assert float(losses.insert_loss(0.5 * insert, insert)) == pytest.approx(0.5, abs=1e-3)
    assert float(losses.insert_loss(insert, insert)) == pytest.approx(1.0, abs=1e-3)


def test_the_pixel_term_grows_with_the_error_and_counts_air_less():
    error = torch.ones(1, 1, 8, 8)
    error[..., :4] = 2.0
    tissue, half_air = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    half_air[..., :4] = -1000.0
    assert float(losses.charbonnier(error, tissue)) == pytest.approx(1.5, abs=0.01)
    assert float(losses.charbonnier(error, half_air)) < 1.3
    bone = torch.where(half_air < -900.0, 900.0, half_air)
    assert float(losses.charbonnier(error, bone)) == pytest.approx(1.5, abs=0.01)
    assert float(losses.charbonnier(error, bone, outside=0.3)) < 1.3


def test_the_gradient_term_ignores_bone_and_counts_soft_tissue():
    error = torch.rand(1, 1, 16, 16)
    assert float(losses.gradient_l1(error, torch.full_like(error, 800.0))) == 0.0
    assert float(losses.gradient_l1(error, torch.full_like(error, 40.0))) > 0.1


def test_psnr_and_rmse_are_those_of_the_definition():
    reference, mask = torch.zeros(32, 32), torch.ones(32, 32, dtype=torch.bool)
    image = reference + 4.0
    assert metrics.rmse(reference, image, mask) == pytest.approx(4.0)
    assert metrics.psnr(reference, image, mask) == pytest.approx(20.0 * math.log10(400.0 / 4.0), abs=1e-3)
    assert metrics.ssim(reference, reference, mask) == pytest.approx(1.0)


def test_the_signal_to_noise_ratio_is_that_of_the_definition():
    reference = 10.0 * torch.randn(60, 60, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(60, 60, dtype=torch.bool)
    assert metrics.snr(reference, reference + 1.0, mask) == pytest.approx(20.0, abs=0.3)


def test_what_all_scans_lose_alike_is_structure_and_noise_is_not():
    generator = torch.Generator().manual_seed(0)
    noise_removed, structure = torch.randn(4, 5000, generator=generator), torch.randn(5000, generator=generator)
    assert metrics.structure_share(noise_removed) == pytest.approx(0.0, abs=0.03)
    assert metrics.structure_share(noise_removed + 0.5 * structure) == pytest.approx(0.2, abs=0.03)


def test_edge_preservation_and_correlation_are_one_for_the_same_image_and_fall_with_noise():
    generator = torch.Generator().manual_seed(0)
    image = 60.0 * torch.randn(40, 40, generator=generator)
    mask = torch.ones(40, 40, dtype=torch.bool)
    noisy = image + 60.0 * torch.randn(40, 40, generator=generator)
    for figure in (metrics.edge_preservation, metrics.correlation):
        assert figure(image, image, mask) == pytest.approx(1.0, abs=1e-5)
        assert figure(image, noisy, mask) < 0.9


def test_the_transfer_function_of_a_gaussian_edge_is_the_one_of_theory():
    size, pixel_mm, sigma_mm = 160, 0.5, 0.8
    axis = (torch.arange(size) - (size - 1) / 2.0) * pixel_mm
    radius = torch.sqrt(axis[:, None] ** 2 + axis[None] ** 2)
    disc = 0.5 * torch.erfc((radius - 20.0) / (sigma_mm * math.sqrt(2.0)))
    # exp(-2 (pi sigma f)^2) = 1/2; bins and window move it by a few per cent
    expected = math.sqrt(math.log(2.0) / 2.0) / (math.pi * sigma_mm)
    centre = ((size - 1) / 2.0,) * 2
    assert metrics.ttf50(disc, centre, 20.0, pixel_mm) == pytest.approx(expected, rel=0.05)


def test_mean_frequency_falls_when_noise_is_blurred():
    generator = torch.Generator().manual_seed(0)
    white = torch.randn(6, 64, 64, generator=generator)
    plain, blurred = (
        metrics.mean_frequency(*metrics.noise_spectrum(part, 0.7))
        for part in (white, noise.gaussian_blur(white[:, None], 1.0)[:, 0])
    )
    assert plain == pytest.approx(2.0 / 3.0 * 0.5 / 0.7, rel=0.05)  # mean radius of a disc up to Nyquist
    assert blurred < 0.6 * plain


def test_detectability_is_the_one_of_known_gaussians_and_its_ratio_is_one_for_the_same_images():
    generator = torch.Generator().manual_seed(0)
    absent = torch.randn(800, 3, generator=generator)
    present = torch.randn(800, 3, generator=generator) + torch.tensor([1.0, 1.0, 0.0])
    assert metrics.detectability(present, absent) == pytest.approx(math.sqrt(2.0), rel=0.1)
    ratio, low, high = metrics.ratio_interval((present, absent), (3.0 * present, 3.0 * absent), draws=50)
    assert ratio == pytest.approx(1.0, abs=1e-6) and low == pytest.approx(high, abs=1e-6)


def test_the_bench_finds_nothing_wrong_with_identity_and_everything_with_a_blur():
    made = bench.Bench.make(12.0, 3, KERNELS["std"])
    same = bench.run(made, lambda images: images)
    assert same["noise_reduction"] == pytest.approx(0.0, abs=1e-6)
    assert same["spectrum_shift"] == pytest.approx(0.0, abs=1e-6)
    assert all(
        value == pytest.approx(1.0, abs=0.02) for key, value in same.items() if key.startswith(("ttf", "insert"))
    )
    blurred = bench.run(made, lambda images: noise.gaussian_blur(images[:, None], 1.2)[:, 0])
    assert blurred["noise_reduction"] > 0.4 and blurred["spectrum_shift"] < -0.2
    assert blurred["ttf50_100"] < 0.8 and blurred["insert_3mm_14hu"] < 0.85
    assert blurred["false_blobs_gaussian"] == pytest.approx(blurred["false_blobs"], abs=1.5)


def test_the_net_of_cancellous_bone_is_kept_by_identity_and_blurred_by_a_gaussian():
    made = bench.Bench.make(11.6, 3, KERNELS["std"])
    assert bench.cancellous(made, lambda images: images, 30.0) == pytest.approx(1.0, abs=1e-4)
    blurred = [
        bench.cancellous(made, lambda images: noise.gaussian_blur(images[:, None], 0.8)[:, 0], v) for v in (9, 60)
    ]
    assert 0.2 < blurred[0] < 0.8 and blurred[0] == pytest.approx(blurred[1], rel=1e-3)  # linear: no matter how strong


@pytest.mark.parametrize("method", [baselines.gaussian, baselines.bilateral, baselines.non_local_means])
def test_every_baseline_lowers_noise_on_a_flat_image_and_keeps_its_mean(method):
    image = 40.0 + 15.0 * torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    output = method(image, 15.0)
    assert float(output.std()) < 0.7 * float(image.std())
    assert float(output.mean()) == pytest.approx(40.0, abs=1.0)


def test_rows_of_other_methods_are_taken_over_on_equal_cases_and_only_there(tmp_path, monkeypatch):
    weights = net.build("denoise_unet", {"widths": [8, 8, 8], "blocks": 1})
    item = simulate.simulate_slice(simulate.EVALUATION_SEED + 5000, 160)
    case = cases.Case(
        group="synthetic", clean=item.clean, noisy=item.clean + item.noise[0], noise=item.noise[1:], sigma_hu=20.0
    )
    asked = []
    monkeypatch.setattr(
        evaluate,
        "methods",
        lambda *_: {
            name: lambda image, _sigma, n=name: asked.append(n) or image for name in ("identity", "theirs", "ours")
        },
    )
    first = evaluate.compare(weights, [case], tmp_path, False)
    marked = [row | {"psnr_db": 99.0} if row["method"] == "theirs" else row for row in first]
    asked.clear()
    again = evaluate.compare(weights, [case], tmp_path, False, marked)
    assert asked == ["identity", "ours"]
    assert {row["method"]: row["psnr_db"] == 99.0 for row in again} == {
        "identity": False, "theirs": True, "ours": False,
    }  # fmt: skip
    other = replace(case, noisy=case.clean + item.noise[1])
    with pytest.raises(SystemExit, match="not those of the earlier run"):
        evaluate.compare(weights, [other], tmp_path, False, marked)


def test_bench_rows_of_other_methods_are_taken_over_at_the_same_noise(monkeypatch):
    made = bench.Bench.make(12.0, 3, KERNELS["std"])
    monkeypatch.setattr(evaluate, "BENCH_HU", (12.0,))
    monkeypatch.setattr(bench.Bench, "make", lambda *_: made)
    runs = []
    monkeypatch.setattr(bench, "run", lambda *_: runs.append(1) or {"noise_in_hu": bench.noise_in(made)})
    weights = net.build("denoise_unet", {"widths": [8, 8, 8], "blocks": 1})
    first = evaluate.physics(weights, 3)
    assert evaluate.physics(weights, 3, first) == first
    assert len(runs) == len(first) + len([row for row in first if row["method"].startswith("ours")])
    louder = [row | {"noise_in_hu": 2.0 * row["noise_in_hu"]} for row in first]
    runs.clear()
    assert evaluate.physics(weights, 3, louder) == first and len(runs) == len(first)


def test_evaluation_runs_without_any_real_data(tmp_path, monkeypatch):
    command = ["evaluate", "--data", str(tmp_path / "absent"), "--out", str(tmp_path / "evaluation.json")]
    monkeypatch.setattr(
        sys,
        "argv",
        [*command, "--cases", "1", "--heads", "0", "--realisations", "3", "--repeats", "24", "--no-networks"],
    )
    monkeypatch.setattr(baselines, "bm3d_method", lambda _spectrum: None)
    monkeypatch.setattr(evaluate, "BENCH_HU", (12.0,))
    monkeypatch.setattr(evaluate_adjacent, "steps", lambda *_: {})  # minutes; tests/unit/test_ct_adjacent.py
    threads = torch.get_num_threads()
    evaluate.main()
    torch.set_num_threads(threads)
    found = json.loads((tmp_path / "evaluation.json").read_text())
    table = {row["method"]: row for row in found["images"]}
    assert table["ours, strength 0.6"]["rmse_hu"] < table["identity"]["rmse_hu"]
    assert found["low_contrast"] == [] and found["scans"] == []
    assert 0.0 <= found["removed"][0]["structure_share"] < 0.2
    assert {row["bar"] for row in found["bars"]} >= {"bench: mean contrast of inserts kept of 0.85 or more"}
    assert all(np.isfinite(value) for row in found["bench"] for value in row.values() if isinstance(value, float))
