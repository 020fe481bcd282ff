"""Radial and spiral measurements, with their trajectory or with the rule that makes it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dicomnode import pipeline as dn
from dicomnode.kspace import Trajectory
from models.mr_recon import noncartesian
from tests.mrd_factory import Ellipse, Scan
from tests.recon import error, pipeline

SCAN = Scan(matrix=(48, 48), coils=4, noise=0.005, noise_lines=8, position=(10.0, 20.0, 30.0))
#: Enough spokes for every sample of the edge: pi / 2 times the matrix.
SPOKES = 80


def measured(scan: Scan, angles: np.ndarray, *, unit: str, kind=Trajectory.RADIAL, user=None) -> dn.KSpace:
    """Spokes at ``angles`` [degrees]; ``unit``: pixel, matrix (cycles per field of view), none (no trajectory)."""
    lines = scan.readouts()
    noise, like = lines[:8], lines[8]
    n = scan.columns
    radius = (np.arange(n) - n // 2) / n
    for number, angle in enumerate(np.radians(angles)):
        turn = np.stack((radius * np.cos(angle), radius * np.sin(angle)), -1)  # cycles per pixel, x then y
        # The readout is oversampled: its pixel is half the image's along every spoke.
        k = turn * n / scan.encoded_fov[0]
        data = np.ascontiguousarray(scan.signal(k[:, 0], k[:, 1]), np.complex64)
        inside = 1.0 if unit == "pixel" else n
        path = None if unit == "none" else (turn * inside).astype(np.float32)
        noise.append(replace(like, data=data, step_1=number % scan.rows, trajectory=path, flags=0))
    encoding = scan.header().encodings[0]
    # The same resolution and reach along y as along x.
    encoding = replace(
        encoding, trajectory=kind, encoded_matrix=(n, n, 1), encoded_fov=(scan.encoded_fov[0],) * 2 + (5.0,), limits={}
    )
    header = replace(scan.header(), encodings=(encoding,), user=user or {})
    return dn.KSpace(header=header, readouts=noise)


UNIFORM = np.arange(SPOKES) * 180.0 / SPOKES


@pytest.mark.parametrize("unit", ["pixel", "matrix"])
def test_radial_images_with_their_trajectory(unit: str) -> None:
    made = pipeline().run(measured(SCAN, UNIFORM, unit=unit)).reconstructions[0]
    assert "nufft-cg" in made.description
    assert made.planes[0].array.shape == (48, 48)
    assert error(SCAN, made.planes[0]) < 0.16


def test_undersampled_spokes_are_unfolded_by_the_coils() -> None:
    made = pipeline().run(measured(SCAN, UNIFORM[::3], unit="pixel")).reconstructions[0]
    assert error(SCAN, made.planes[0]) < 0.25


def test_golden_angles_need_no_trajectory() -> None:
    angles = noncartesian.GOLDEN_ANGLE * np.arange(SPOKES)
    made = pipeline().run(measured(SCAN, angles, unit="none", kind=Trajectory.GOLDEN_ANGLE)).reconstructions[0]
    assert error(SCAN, made.planes[0]) < 0.16


def test_an_angle_of_the_header_makes_the_trajectory() -> None:
    user = {"angle_increment_deg": 180.0 / SPOKES}
    made = pipeline().run(measured(SCAN, UNIFORM, unit="none", user=user)).reconstructions[0]
    assert error(SCAN, made.planes[0]) < 0.16


@pytest.mark.parametrize("kind", [Trajectory.RADIAL, Trajectory.SPIRAL])
def test_without_trajectory_and_rule_it_is_refused(kind: Trajectory) -> None:
    with pytest.raises(dn.Unsuitable, match="readouts without a trajectory"):
        pipeline().run(measured(SCAN, UNIFORM, unit="none", kind=kind))


def test_a_radial_point_is_found_where_it_is() -> None:
    pixel = SCAN.fov[0] / 48
    scan = replace(SCAN, coils=1, noise=0.0, noise_lines=8, ellipses=(Ellipse(x=9 * pixel, y=-7 * pixel, value=1e3),))
    made = pipeline().run(measured(scan, UNIFORM, unit="pixel")).reconstructions[0]
    plane = made.planes[0]
    row, column = np.unravel_index(plane.array.argmax(), plane.array.shape)
    world = plane.position + column * pixel * plane.orientation[:3] + row * pixel * plane.orientation[3:]
    assert np.abs(world - np.add(SCAN.position, (9 * pixel, -7 * pixel, 0))).max() < 0.01


@pytest.mark.parametrize(
    "trajectory", [torch.full((5, 2), 900.0), torch.full((5, 2), torch.nan), torch.zeros(5, 1), torch.zeros(5)]
)
def test_a_trajectory_that_makes_no_sense_is_refused(trajectory) -> None:
    with pytest.raises(noncartesian.TrajectoryError):
        noncartesian.in_cycles(trajectory, (96, 96), (48, 48))
