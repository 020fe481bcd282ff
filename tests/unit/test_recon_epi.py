"""Echo-planar readouts: ghosts and ramps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dicomnode import pipeline as dn
from dicomnode.kspace import Flag, Trajectory
from models.mr_recon import epi
from tests.conftest import EVALUATION_DATA
from tests.mrd_factory import Scan, bits
from tests.recon import error, pipeline

EPI = Scan(noise=0.005, noise_lines=8, epi=True)
#: A trapezoid of 700 us whose first 50 us are not sampled.
TIMINGS = {"rampUpTime": 150.0, "flatTopTime": 400.0, "rampDownTime": 150.0, "acqDelayTime": 50.0, "numSamples": 128}


def image_of(scan: Scan, readouts=None) -> dn.ReconstructedPlane:
    made = dn.KSpace(header=scan.header(), readouts=scan.readouts() if readouts is None else readouts)
    return pipeline().run(made).reconstructions[0].planes[0]


def test_the_linear_phase_between_directions_is_found() -> None:
    draw = np.random.default_rng(0)
    profile = torch.from_numpy((draw.normal(size=(3, 64)) + 1j * draw.normal(size=(3, 64))).astype(np.complex64))
    x = torch.arange(64) - 32
    constant, slope = torch.tensor([[0.4], [-1.0], [2.0]]), torch.tensor([[0.05], [-0.02], [0.0]])
    reverse = profile * torch.exp(1j * (constant + slope * x))
    found = epi.phase_correction([profile, profile], [reverse])
    assert torch.allclose(found.constant, constant, atol=1e-4)
    assert torch.allclose(found.slope, slope, atol=1e-5)
    assert torch.allclose(found.apply(reverse), profile, atol=1e-4)


def test_ghosts_are_gone_after_phase_correction() -> None:
    plain = image_of(replace(EPI, epi=False))
    corrected = image_of(EPI)
    uncorrected = image_of(replace(EPI, ghost=(0.0, 0.0)), readouts=None)
    assert error(EPI, corrected) < 1.05 * error(EPI, plain)
    assert error(EPI, uncorrected) < 1.05 * error(EPI, plain)
    # The same lines without their phase correction do have ghosts: the test above can fail.
    cartesian = replace(EPI.header().encodings[0], trajectory=Trajectory.CARTESIAN)
    header = replace(EPI.header(), encodings=(cartesian,))
    lines = [line for line in EPI.readouts() if not line.has(Flag.IS_PHASECORR_DATA)]
    ghosted = pipeline().run(dn.KSpace(header=header, readouts=lines)).reconstructions[0].planes[0]
    assert error(EPI, ghosted) > 3 * error(EPI, plain)


@pytest.mark.parametrize("left", ["none", "forward only", "reversed not marked"])
def test_epi_without_navigators_of_both_directions_is_refused(left: str) -> None:
    lines = EPI.readouts()
    if left == "none":
        lines = [line for line in lines if not line.has(Flag.IS_PHASECORR_DATA)]
    elif left == "forward only":
        lines = [line for line in lines if not line.has(Flag.IS_PHASECORR_DATA) or not line.has(Flag.IS_REVERSE)]
    else:
        lines = [replace(line, flags=line.flags & ~bits(Flag.IS_REVERSE)) for line in lines]
    with pytest.raises(dn.Unsuitable, match="phase-correction lines"):
        image_of(EPI, lines)


def test_ramp_positions_are_the_integral_of_the_trapezoid() -> None:
    positions = epi.ramp_positions(TIMINGS, columns=96, samples=128).numpy()
    dwell = 600.0 / 128
    times = np.linspace(0, 700, 700_001)
    gradient = np.interp(times, [0, 150, 550, 700], [0, 1, 1, 0])
    area = np.concatenate(([0], np.cumsum((gradient[1:] + gradient[:-1]) / 2 * np.diff(times))))
    wanted = np.interp(50 + dwell * (np.arange(128) + 0.5), times, area) - area[-1] / 2
    whole = np.interp(650, times, area) - np.interp(50, times, area)
    assert np.allclose(positions, wanted / whole * 96, atol=1e-3)
    assert np.allclose(positions, -positions[::-1], atol=1e-9)


def test_samples_on_the_ramps_are_regridded() -> None:
    scan = Scan(matrix=(48, 48), oversampling=2.0, noise=0.002, noise_lines=8)
    columns = scan.columns
    positions = epi.ramp_positions(TIMINGS, columns, 128).numpy()
    made = []
    for line in replace(scan, epi=True, ghost=(0.0, 0.0)).readouts():
        if line.has(Flag.IS_NOISE_MEASUREMENT):
            made.append(line)
            continue
        row = line.step_1 if not line.has(Flag.IS_PHASECORR_DATA) else scan.rows // 2
        ky = np.full(1, (row - scan.rows // 2) / scan.encoded_fov[1])
        data = scan.signal(positions / scan.encoded_fov[0], ky)
        data = data[:, ::-1] if line.has(Flag.IS_REVERSE) else data
        made.append(replace(line, data=np.ascontiguousarray(data, np.complex64)))
    encoding = replace(scan.header().encodings[0], trajectory=Trajectory.EPI, parameters=TIMINGS)
    header = replace(scan.header(), encodings=(encoding,))
    regridded = pipeline().run(dn.KSpace(header=header, readouts=made)).reconstructions[0].planes[0]
    assert error(scan, regridded) < 1.15 * error(scan, image_of(scan))
    unknown = replace(header, encodings=(replace(encoding, parameters={}),))
    with pytest.raises(dn.Unsuitable, match="rampUpTime"):
        pipeline().run(dn.KSpace(header=unknown, readouts=made))


@pytest.mark.parametrize("wrong", [{"numSamples": 100}, {"flatTopTime": 10.0}, {"rampUpTime": -1.0}])
def test_timings_that_cannot_be_are_refused(wrong) -> None:
    timings = TIMINGS | {"dwellTime": 4.6875} | wrong
    with pytest.raises(ValueError, match="samples"):
        epi.ramp_positions(timings, 96, 128)


def air_over_phantom(epi_image: np.ndarray, reference: np.ndarray) -> float:
    """Mean of an EPI image in the air around the phantom over its mean in the phantom, by a GRE of the same place."""
    size = epi_image.shape[0]
    reference = reference.reshape(size, reference.shape[0] // size, size, -1).mean((1, 3))
    inside = reference > 0.3 * np.quantile(reference, 0.9)
    near = torch.nn.functional.max_pool2d(torch.from_numpy(inside[None].astype(np.float32)), 7, 1, 3)[0].numpy() > 0
    return float(epi_image[~near].mean() / epi_image[inside].mean())


def test_a_real_epi_measurement_is_regridded_and_loses_its_ghost(tmp_path, monkeypatch) -> None:
    source = EVALUATION_DATA / "mr-twix-siemens"
    if not source.is_dir():
        pytest.skip("no Siemens raw data beside the checkout")
    pytest.importorskip("twixtools")
    twix, mrd = pytest.importorskip("dicomnode.volumes.twix"), pytest.importorskip("dicomnode.volumes.mrd")
    images = {}
    for name in ("gre", "epi"):
        twix.convert(source / f"{name}.dat", tmp_path / f"{name}.h5")
        images[name] = pipeline().run(mrd.open_mrd(tmp_path / f"{name}.h5")).reconstructions[0].planes[0].array
    monkeypatch.setattr(epi.PhaseCorrection, "apply", lambda _self, profiles: profiles)
    ghosted = pipeline().run(mrd.open_mrd(tmp_path / "epi.h5")).reconstructions[0].planes[0].array
    corrected, uncorrected = (air_over_phantom(image, images["gre"]) for image in (images["epi"], ghosted))
    assert corrected < 0.6 * uncorrected
    assert corrected < 0.07
