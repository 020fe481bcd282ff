"""One readout: whitening, placement on the grid, removal of oversampling."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dicomnode.kspace import Flag
from models.mr_recon import prep
from tests.mrd_factory import Scan


def coloured(covariance: np.ndarray, samples: int, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    white = (draw.normal(size=(2, len(covariance), samples)) * np.sqrt(0.5)).astype(np.float64)
    return (np.linalg.cholesky(covariance) @ (white[0] + 1j * white[1])).astype(np.complex64)


COVARIANCE = np.array([[4.0, 1.0 + 0.5j, 0.0], [1.0 - 0.5j, 1.0, 0.2j], [0.0, -0.2j, 9.0]])


def test_whitened_noise_is_independent_with_standard_deviation_one() -> None:
    noise = prep.Noise()
    noise.add(coloured(COVARIANCE, 20000))
    noise.add(coloured(COVARIANCE, 20000, seed=1))
    white = noise.whitening().apply(torch.from_numpy(coloured(COVARIANCE, 40000, seed=2)), 0).numpy()
    assert np.allclose(white @ white.conj().T / 40000, np.eye(3), atol=0.03)


def test_dwell_time_and_receiver_bandwidth_scale_the_noise() -> None:
    noise = prep.Noise()
    noise.add(coloured(np.eye(2), 20000), dwell=2.0)  # of images sampled four times as long, half the amplitude
    made = noise.whitening(bandwidth=0.79 * 8.0)
    assert made.sd == pytest.approx(np.sqrt(2.0 / 8.0 / 0.79) * np.ones(2), rel=0.02)
    assert np.abs(np.diag(made.matrix.numpy())) == pytest.approx(1 / made.sd, rel=0.02)


def test_dead_and_broken_channels_are_left_out() -> None:
    samples = coloured(np.eye(5), 5000)
    samples[1] = 0
    samples[3] *= 21
    noise = prep.Noise()
    noise.add(samples)
    made = noise.whitening()
    assert made.rejected == (1, 3)
    assert made.matrix.shape == (3, 5)
    assert made.matrix[:, [1, 3]].abs().max() == 0


def test_a_channel_that_is_twenty_times_noisier_stays() -> None:
    samples = coloured(np.eye(5), 5000)
    samples[3] *= 19
    noise = prep.Noise()
    noise.add(samples)
    assert noise.whitening().rejected == ()


def test_two_equal_channels_do_not_break_the_whitening() -> None:
    samples = coloured(np.eye(2), 5000)
    noise = prep.Noise()
    noise.add(np.concatenate((samples, samples[:1])))
    assert torch.isfinite(torch.view_as_real(noise.whitening().matrix)).all()


@pytest.mark.parametrize("samples", [None, np.zeros((3, 64), np.complex64)])
def test_no_noise_at_all_is_said(samples) -> None:
    noise = prep.Noise()
    if samples is not None:
        noise.add(samples)
    with pytest.raises(ValueError, match=r"no noise samples|is zero"):
        noise.whitening()


@pytest.mark.parametrize(
    ("columns", "encoded", "recon", "kept"),
    [
        (256, 512.0, 256.0, 128),
        (256, 256.0, 256.0, 256),
        (255, 510.0, 170.0, 85),
        (128, 333.0, 256.0, 99),
        (64, 256.0, 300.0, 64),
    ],
)
def test_what_is_cropped_follows_from_the_fields_of_view(columns, encoded, recon, kept) -> None:
    assert prep.Line.of(columns, encoded, recon).kept == kept


@pytest.mark.parametrize("columns", [64, 63])
def test_a_whole_readout_becomes_the_middle_of_its_transform(columns: int) -> None:
    line = prep.Line.of(columns, 2.0, 1.0)
    draw = np.random.default_rng(0)
    samples = (draw.normal(size=(2, columns)) + 1j * draw.normal(size=(2, columns))).astype(np.complex64)
    n = np.arange(columns) - columns // 2
    image = samples @ np.exp(2j * np.pi * np.outer(n, n) / columns) / np.sqrt(columns)
    first = columns // 2 - line.kept // 2
    assert np.allclose(
        line.to_image(torch.from_numpy(samples), columns // 2).numpy(), image[:, first : first + line.kept], atol=1e-5
    )


def test_an_asymmetric_echo_lies_around_its_centre() -> None:
    line = prep.Line.of(128, 2.0, 1.0)
    placed = line.place(torch.ones(1, 96, dtype=torch.complex64), center=32)
    assert placed[0, :32].abs().max() == 0
    assert placed[0, 32:].abs().min() == 1
    assert line.measured(96, 32) == (16, 64)
    assert line.measured(128, 64) == (0, 64)


def test_a_readout_that_starts_before_the_grid_is_cut() -> None:
    line = prep.Line.of(8, 1.0, 1.0)
    placed = line.place(torch.arange(8.0).to(torch.complex64)[None], center=6)
    assert placed[0].real.tolist() == [2, 3, 4, 5, 6, 7, 0, 0]


def own_noise(scan: Scan) -> prep.Whitening:
    noise = prep.OwnNoise()
    for readout in scan.readouts():
        noise.add(readout.data, abs(readout.step_1 - scan.center), 1 / scan.oversampling)
    return noise.whitening()


def scanned_noise(scan: Scan) -> prep.Whitening:
    noise = prep.Noise()
    for readout in replace(scan, noise_lines=64).readouts():
        if readout.has(Flag.IS_NOISE_MEASUREMENT):
            noise.add(readout.data)
    return noise.whitening()


@pytest.mark.parametrize(
    "scan",
    [
        Scan(matrix=(64, 64), coils=6, noise=0.01, acceleration=3, acs=16, pattern="variable"),
        Scan(matrix=(128, 128), coils=1, noise=0.01, acceleration=4, acs=16, pattern="variable"),
        Scan(matrix=(128, 128), coils=2, noise=0.05, gains=(1.0, 3.0)),
        Scan(matrix=(128, 128), coils=4, noise=0.02, fov=(170.0, 256.0)),  # the body reaches beyond the field of view
    ],
    ids=["variable", "one coil", "gains", "folded"],
)
def test_noise_without_a_scan_is_that_of_the_scan(scan: Scan) -> None:
    assert own_noise(scan).sd == pytest.approx(scanned_noise(scan).sd, rel=0.2)


def test_noise_without_oversampling_comes_from_the_outer_lines() -> None:
    scan = Scan(matrix=(128, 128), coils=4, noise=0.03, oversampling=1.0)
    made, known = own_noise(scan), scanned_noise(scan)
    assert made.source == "edges"
    assert made.sd == pytest.approx(known.sd, rel=0.25)


def test_no_readout_and_no_signal_at_all_are_said() -> None:
    with pytest.raises(ValueError, match="no noise samples"):
        prep.OwnNoise().whitening()
    silent = prep.OwnNoise()
    silent.add(np.zeros((2, 128), np.complex64), 0, 0.5)
    with pytest.raises(ValueError, match="is zero"):
        silent.whitening()
