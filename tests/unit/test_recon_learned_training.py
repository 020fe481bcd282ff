"""Training of the learned reconstruction: patterns, simulated measurements, and a run that goes on where it stopped."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.mr_recon import bundle, data, masks, metrics, phantoms, simulate, verify
from models.mr_recon.net import Shape
from models.mr_recon.train import CONFIGS, Config, Trainer, finish, train

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
