"""Training of the learned reconstruction: patterns, simulated measurements, and a run that goes on where it stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.mr_recon import bundle, data, masks, metrics, phantoms, simulate, verify
from models.mr_recon.net import Shape
from models.mr_recon.train import CONFIGS, Config, Trainer, finish, loss_of, train

TINY = Config(steps=4, single=1, multiple=1, hearts=2, coils=(2, 3), shape=Shape(blocks=1, width=4, levels=2))
CPU = torch.device("cpu")


def shapes(count=3):
    return [phantoms.draw_phantom(np.random.default_rng(k), (112, 112)) for k in range(count)]


@pytest.mark.parametrize("offset", range(4))
def test_uniform_pattern_has_its_lines_and_its_block(offset):
    lines = masks.uniform(160, 4, 16, offset)
    assert lines[offset::4].all() and lines[72:88].all()
    assert lines.sum() == 40 + 16 - 4


def test_variable_pattern_measures_its_share_and_its_block():
    lines = masks.variable(160, 8.0, 10, np.random.default_rng(0))
    assert lines.sum() == 20 and lines[75:85].all()


def test_variable_pattern_is_denser_at_the_centre():
    rng = np.random.default_rng(0)
    mean = np.mean([masks.variable(160, 4.0, 8, rng) for _ in range(200)], 0)
    assert mean[60:76].mean() > 2.0 * mean[:16].mean() > 0.0


def test_partial_fourier_leaves_one_side():
    lines = masks.partial_fourier(np.ones(160, bool), 0.75, upper=True)
    assert lines[:120].all() and not lines[120:].any()


def test_patterns_stay_in_their_ranges():
    ranges = replace(masks.Ranges(), partial_share=0.0, shifted_share=0.0)
    for seed in range(100):
        lines = masks.draw(np.random.default_rng(seed), 160, ranges)
        first, last = simulate.calibration(lines)
        assert 160 / lines.sum() <= ranges.variable[1] + 0.7
        assert ranges.variable_calibration[0] <= last - first


def test_calibration_is_the_block_around_the_centre():
    assert simulate.calibration(masks.uniform(128, 4, 16, 1)) == (56, 72)


def test_same_seed_gives_the_same_measurement():
    image = shapes(1)[0]
    a, b = (
        simulate.measure(np.random.default_rng(1), image, 3, masks.uniform(112, 3, 16), snr=30.0, method="cut")
        for _ in range(2)
    )
    assert torch.equal(a.y, b.y) and torch.equal(a.maps, b.maps)


def test_noise_is_what_the_measurement_says():
    image = np.zeros((112, 112), np.float32)
    image[40:70, 40:70] = 1.0
    made = simulate.measure(np.random.default_rng(1), image, 1, np.ones(112, bool), snr=20.0, method="true")
    outside = made.y.abs()[0, :8]  # the rim of k-space of a smooth-phased square holds little but noise
    assert float((outside**2).mean() ** 0.5) == pytest.approx(made.noise, rel=0.15)


def test_interpolated_images_are_cut_back_to_what_was_measured():
    image = shapes(1)[0]
    k = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image)))
    k = np.pad(k, 40)
    large = np.abs(np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(k)))).astype(np.float32)
    assert large.shape == (192, 192)
    small = data.cropped(large, 112)
    # the magnitude was taken at 192, which spreads a little beyond the centre
    assert metrics.psnr(small * (image * small).sum() / (small**2).sum(), image) > 30.0


def test_run_that_was_stopped_goes_on_bit_for_bit(tmp_path):
    pool = data.Pool([], shapes())
    whole = Trainer(TINY, tmp_path / "whole", CPU, pool)
    for _ in range(4):
        whole.advance()
    parts = Trainer(TINY, tmp_path / "parts", CPU, pool)
    parts.advance()
    parts.advance()
    parts.keep()
    parts = Trainer(TINY, tmp_path / "parts", CPU, pool)
    assert parts.step == 2
    parts.advance()
    parts.advance()
    for a, b in zip(whole.average.parameters(), parts.average.parameters(), strict=True):
        assert torch.equal(a, b)


def test_checkpoint_of_another_configuration_is_refused(tmp_path):
    pool = data.Pool([], shapes())
    Trainer(TINY, tmp_path, CPU, pool).keep()
    with pytest.raises(SystemExit, match="another configuration"):
        Trainer(replace(TINY, rate=1.0), tmp_path, CPU, pool)


def test_training_runs_without_patients_and_says_so(tmp_path):
    train(replace(TINY, steps=1), None, tmp_path / "work", tmp_path / "out", CPU, verified=False)
    log = json.loads((tmp_path / "out" / "training.json").read_text())
    assert log["steps"] == 1 and "no patient image" in log["training_data"]
    learned = bundle.load(tmp_path / "out", CPU)
    assert "no patient image" in learned.manifest["training_data"]
    assert learned.domain.coils.most == TINY.coils[1]


def test_domain_record_has_the_ranges_that_were_drawn():
    config = CONFIGS["cpu"]
    assert config.domain()["acceleration"] == {
        "uniform": list(config.ranges.uniform),
        "variable": list(config.ranges.variable),
    }
    assert config.domain()["coils"] == [1, config.coils[1]]


def test_a_run_cut_short_writes_weights_and_says_it_is_not_finished(tmp_path):
    trainer = Trainer(TINY, tmp_path / "work", CPU, data.Pool([], shapes()))
    finish(trainer, "shapes", tmp_path / "out", [])
    assert json.loads((tmp_path / "out" / "training.json").read_text())["finished"] is False


def test_metrics_of_the_reference_itself_are_perfect():
    image = torch.from_numpy(shapes(1)[0]).to(torch.complex64)
    found = metrics.figures(3.0 * image * torch.exp(torch.tensor(0.4j)), image)
    assert found["ssim"] == pytest.approx(1.0) and found["nmse"] < 1e-10 and found["hfen"] < 1e-5


def test_psnr_of_a_known_error():
    reference = np.zeros((10, 10))
    reference[0, 0] = 2.0
    assert metrics.psnr(reference + 0.02, reference) == pytest.approx(40.0)


def test_domain_is_cut_down_to_where_no_image_lost():
    record = CONFIGS["cpu"].domain()
    found = {
        "uniform": {2: [-0.1, 3.0], 3: [0.4, 0.5], 4: [0.3, 0.1], 5: [-0.2, 2.0], 6: [1.0, 1.0]},
        "variable": {2: [0.1], 4: [0.2], 8: [1.0]},
    }
    assert verify.kept(record, found)["acceleration"] == {"uniform": [3, 4], "variable": [2.0, 8]}


def test_pattern_that_lost_everywhere_leaves_the_domain():
    record = CONFIGS["cpu"].domain()
    kept = verify.kept(record, {"uniform": {2: [-1.0], 4: [-1.0]}, "variable": {2: [0.1]}})
    assert list(kept["acceleration"]) == list(kept["calibration"]) == ["variable"]


def test_gains_are_over_cg_sense_at_every_acceleration(monkeypatch):
    monkeypatch.setattr(verify, "TRIED", {"uniform": (2,), "variable": (4,)})
    image = shapes(1)[0]
    found = verify.gains(lambda s: s.reference * 1.0 + 1e-6, lambda s: s.right, [image])
    assert found["uniform"][2][0] > 20.0 and found["variable"][4][0] > 20.0


def test_accelerations_that_matter_most_are_drawn_most():
    ranges = masks.Ranges(uniform_share=0.0, partial_share=0.0, shifted_share=0.0, often=(3.0, 4.0), often_share=0.8)
    drawn = [160 / masks.draw(np.random.default_rng(k), 160, ranges).sum() for k in range(200)]
    inside = np.mean([2.9 <= net <= 4.2 for net in drawn])
    assert 0.75 < inside < 0.95 and min(drawn) < 2.9 and max(drawn) > 4.2


def test_squared_errors_weigh_large_ones_more():
    image = np.ones((112, 112), np.float32)
    made = simulate.measure(np.random.default_rng(1), image, 1, np.ones(112, bool), snr=30.0, method="true")
    slabs = data.slabs_of([made], None)
    size = float(slabs.scale[0])
    spread = slabs.reference * (1 + 0.1 * size / slabs.reference.abs())  # 0.1 of the scale everywhere
    peak = slabs.reference.clone()
    peak[0, 0, 0] *= 1 + 0.1 * size * 112 * 112 / float(peak[0, 0, 0].abs())  # the same sum at one place
    assert float(loss_of(spread, slabs)) == pytest.approx(0.2, rel=1e-3)
    assert float(loss_of(peak, slabs)) == pytest.approx(0.2, rel=1e-3)
    assert float(loss_of(spread, slabs, squared=True)) == pytest.approx(0.2, rel=1e-3)
    assert float(loss_of(peak, slabs, squared=True)) == pytest.approx(0.2 * 112, rel=1e-3)


ALONE = replace(
    TINY, steps=2, multiple=0, squared=True, shape=replace(TINY.shape, iterations=1),
    ranges=masks.Ranges(uniform_share=0.0, partial_share=0.0),
)  # fmt: skip


def test_weights_for_one_coil_are_trained_from_a_package_and_added_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "TRIED_SINGLE", {"variable": (2, 4)})
    package, work = tmp_path / "package", tmp_path / "work"
    train(replace(TINY, steps=1), None, work, package, CPU, verified=False)
    before = (package / bundle.WEIGHTS).read_bytes()
    train(ALONE, None, work, package, CPU, start=package, verified=True)
    learned, log = bundle.load(package, CPU), json.loads((package / "training-single.json").read_text())
    assert (package / bundle.WEIGHTS).read_bytes() == before
    assert learned.single is not None and learned.single.shape.iterations == Shape().iterations
    assert any(
        not torch.equal(a, b) for a, b in zip(learned.single.parameters(), learned.net.parameters(), strict=True)
    )
    assert log["steps"] == 2 and log["training_data"].endswith(f"begun with weights {learned.sha256[:12]}")
    assert set(log["gain_over_cg_sense"]) == {"variable"}
    # the log has one loss a step, and held-out measurements of one coil
    assert all("8 coils" not in key for record in log["held_out"] for key in record)


def test_weights_for_one_coil_need_a_package(tmp_path):
    with pytest.raises(SystemExit, match="--start"):
        train(ALONE, None, tmp_path / "work", tmp_path / "out", CPU)


def test_one_iteration_solves_one_coil():
    """What training spares: A^H A of one coil is a projection."""
    image = shapes(1)[0]
    lines = masks.variable(112, 3.0, 12, np.random.default_rng(0))
    slabs = data.slabs_of([simulate.measure(np.random.default_rng(1), image, 1, lines, snr=30.0, method="true")], None)
    trainer = Trainer(ALONE, Path("unused"), CPU, data.Pool([], shapes()))
    four = trainer.package_net()
    with torch.no_grad():
        torch.testing.assert_close(
            trainer.average(slabs.normal, slabs.right), four(slabs.normal, slabs.right), atol=0.05, rtol=2e-2
        )


def test_shipped_configurations_stay_in_what_a_domain_may_hold():
    single = CONFIGS["single"]
    assert single.only_single and not CONFIGS["cpu"].only_single
    assert single.ranges.variable == CONFIGS["cpu"].ranges.variable
    assert single.shape.width == CONFIGS["cpu"].shape.width  # it goes on from those weights


def test_gains_of_one_coil_and_of_the_patterns_asked_for(monkeypatch):
    found = verify.gains(lambda s: s.reference + 1e-6, lambda s: s.right, shapes(1), coils=1, tried={"variable": (3,)})
    assert list(found) == ["variable"] and found["variable"][3][0] > 20.0
    assert list(verify.kept(CONFIGS["single"].domain(), found)["acceleration"]) == ["variable"]
