"""Images are turned as readers expect them, and every voxel stays where it lies."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
import torch

from models.mr_recon import geometry
from tests.mrd_factory import Ellipse, Scan
from tests.recon import pipeline

SIGNED = [
    (tuple(int(s) * row for row in np.eye(3)[a]), tuple(int(t) * row for row in np.eye(3)[b]))
    for (a, b), s, t in product(permutations(range(3), 2), (1, -1), (1, -1))
]
#: What readers see to the right and below, by the axis along the normal (sagittal, coronal, axial), LPS.
EXPECTED = {0: ((0, 1, 0), (0, 0, -1)), 1: ((1, 0, 0), (0, 0, -1)), 2: ((1, 0, 0), (0, 1, 0))}


def place(where: geometry.Plane, spacing: tuple[float, float], row: float, column: float) -> np.ndarray:
    return where.position + column * spacing[1] * where.orientation[:3] + row * spacing[0] * where.orientation[3:]


@pytest.mark.parametrize(("along", "down"), SIGNED)
def test_every_orthogonal_plane_is_hung_and_keeps_its_voxels(along, down):
    pixels = torch.arange(5 * 4, dtype=torch.float32).reshape(5, 4)
    measured = geometry.Plane(np.array([3.0, -7.0, 11.0]), np.array([*along, *down], np.float64))
    spacing = (2.0, 3.0)
    image, where, step = geometry.hung(pixels, measured, spacing, transpose=geometry.lies(measured.orientation))
    normal = int(np.abs(np.cross(along, down)).argmax())
    assert (tuple(where.orientation[:3]), tuple(where.orientation[3:])) == EXPECTED[normal]
    for row in range(5):
        for column in range(4):
            r, c = (int(n) for n in (image == pixels[row, column]).nonzero()[0])
            np.testing.assert_allclose(place(where, step, r, c), place(measured, spacing, row, column), atol=1e-9)


def test_an_oblique_plane_is_turned_to_the_nearest():
    tilt = np.deg2rad(25.0)
    along, down = np.array([0.0, -np.cos(tilt), -np.sin(tilt)]), np.array([-1.0, 0.0, 0.0])
    measured = geometry.Plane(np.zeros(3), np.concatenate((along, down)))
    _, where, _ = geometry.hung(torch.zeros(4, 4), measured, (1.0, 1.0), transpose=geometry.lies(measured.orientation))
    np.testing.assert_allclose(where.orientation, [1.0, 0.0, 0.0, 0.0, np.cos(tilt), np.sin(tilt)], atol=1e-12)


@pytest.mark.parametrize("square", [True, False])
def test_the_pipeline_turns_a_scan_with_swapped_directions(square):
    """Phase encoding from right to left, readout towards the front: transposed and turned over, or as measured."""
    point = (Ellipse(x=30.0, y=-21.0, value=1000.0),)

    directions = {"read_dir": (0.0, -1.0, 0.0), "phase_dir": (-1.0, 0.0, 0.0), "slice_dir": (0.0, 0.0, -1.0)}
    matrix, fov = ((64, 64), (192.0, 192.0)) if square else ((64, 48), (192.0, 168.0))
    scan = Scan(matrix=matrix, fov=fov, ellipses=point, coils=1, **directions)
    found = {}
    for orientation in ("display", "measured"):
        made = pipeline(orientation=orientation).run(scan.kspace()).reconstructions[0]
        plane, spacing = made.planes[0], made.pixel_spacing
        row, column = np.unravel_index(plane.array.argmax(), plane.array.shape)
        where = geometry.Plane(plane.position, plane.orientation)
        found[orientation] = place(where, spacing, row, column), plane, spacing
    np.testing.assert_allclose(found["display"][0], found["measured"][0], atol=1e-6)
    display, measured = found["display"][1], found["measured"][1]
    assert tuple(display.orientation) == (1, 0, 0, 0, 1, 0)
    assert tuple(measured.orientation) == (0, -1, 0, -1, 0, 0)
    assert display.array.shape == measured.array.shape[::-1] and found["display"][2] == found["measured"][2][::-1]


def test_an_unknown_orientation_is_refused():
    with pytest.raises(ValueError, match="orientation must be display or measured"):
        pipeline(orientation="upside down")
