"""Where reconstructed pixels lie: an off-centre point is found again in the patient's coordinates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dicomnode import pipeline as dn
from models.mr_recon import geometry
from models.mr_recon.fft import fftc, ifftc
from tests.mrd_factory import Ellipse, Scan
from tests.recon import pipeline

OBLIQUE = np.linalg.qr(np.array([[0.8, 0.3, -0.5], [0.2, 0.9, 0.4], [0.6, -0.3, 0.7]]))[0].T


def axes(matrix: np.ndarray) -> dict[str, tuple[float, ...]]:
    return {name: tuple(row) for name, row in zip(("read_dir", "phase_dir", "slice_dir"), matrix, strict=True)}


def found(plane: dn.ReconstructedPlane, spacing: tuple[float, float]) -> np.ndarray:
    """World coordinates of the brightest pixel, by DICOM's own formula (PS3.3 C.7.6.2.1.1)."""
    row, column = np.unravel_index(plane.array.argmax(), plane.array.shape)
    along_row, along_column = plane.orientation[:3], plane.orientation[3:]
    return plane.position + column * spacing[1] * along_row + row * spacing[0] * along_column


CASES = {
    "even": Scan(matrix=(64, 64)),
    "odd": Scan(matrix=(65, 63), oversampling=1.0),
    "not square": Scan(matrix=(64, 48), fov=(256.0, 144.0)),
    "not oversampled": Scan(matrix=(64, 48), fov=(192.0, 240.0), oversampling=1.0),
    "odd with oversampling": Scan(matrix=(63, 65), fov=(189.0, 260.0)),
    "interpolated": Scan(matrix=(64, 48), recon_matrix=(128, 96)),
    "interpolated to odd": Scan(matrix=(64, 48), recon_matrix=(127, 97)),
    "cropped k-space": Scan(matrix=(64, 64), recon_matrix=(32, 32)),
    "phase oversampling": Scan(matrix=(64, 72), phase_oversampling=1.5),
    "ratios that are not whole": Scan(matrix=(64, 64), oversampling=1.3, phase_oversampling=1.1, recon_matrix=(60, 50)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("turned", ["axial", "oblique", "read flipped"])
def test_a_point_is_found_where_it_is(case: str, turned: str) -> None:
    scan = CASES[case]
    matrix = {"axial": np.eye(3), "oblique": OBLIQUE, "read flipped": np.diag([-1.0, 1.0, 1.0])}[turned]
    columns, rows, _ = scan.header().encodings[0].recon_matrix
    # Whole pixels of the reconstructed grid from the centre: the peak then is one pixel, and no fit is needed.
    x, y = 9 * scan.fov[0] / columns, -7 * scan.fov[1] / rows
    position = (31.0, -17.5, 88.25)
    scan = replace(scan, ellipses=(Ellipse(x=x, y=y, value=1000.0),), coils=1, position=position, **axes(matrix))
    made = pipeline().run(scan.kspace()).reconstructions[0]
    assert made.planes[0].array.shape == (rows, columns)
    assert made.pixel_spacing == pytest.approx((scan.fov[1] / rows, scan.fov[0] / columns))
    truth = np.array(position) + x * matrix[0] + y * matrix[1]
    assert np.abs(found(made.planes[0], made.pixel_spacing) - truth).max() < 0.01  # mm


def test_a_point_is_found_in_its_partition() -> None:
    point = Ellipse(x=12.0, y=-20.0, z=10.0, value=1000.0, width=2.0)
    scan = Scan(matrix=(64, 64), partitions=10, coils=1, ellipses=(point,), position=(5.0, 6.0, 7.0), **axes(OBLIQUE))
    made = pipeline().run(scan.kspace()).reconstructions[0]
    assert len(made.planes) == 10
    assert made.thickness == 5.0
    brightest = max(made.planes, key=lambda plane: plane.array.max())
    truth = np.array([5.0, 6.0, 7.0]) + np.array([12.0, -20.0, 10.0]) @ OBLIQUE
    assert np.abs(found(brightest, made.pixel_spacing) - truth).max() < 0.01


def test_slices_lie_where_their_readouts_say() -> None:
    scan = Scan(coils=1, slices=3, spacing=8.0, position=(0.0, 0.0, 40.0), **axes(OBLIQUE))
    planes = pipeline().run(scan.kspace()).reconstructions[0].planes
    steps = np.diff([plane.position for plane in planes], axis=0)
    assert np.allclose(steps, 8.0 * OBLIQUE[2], atol=1e-9)


@pytest.mark.parametrize(
    ("read", "phase", "through", "reason"),
    [
        ((0, 0, 0), (0, 0, 0), (0, 0, 0), "gives no direction"),
        ((1, 0, 0), (0.6, 0.8, 0), (0, 0, 1), "not at right angles"),
        ((2, 0, 0), (0, 1, 0), (0, 0, 1), "length"),
        ((1, 0, 0), (0, 1, 0), (0, 1, 0), "slice_dir"),
        ((np.nan, 0, 0), (0, 1, 0), (0, 0, 1), "gives no direction"),
    ],
)
def test_impossible_directions_are_refused_by_name(read, phase, through, reason) -> None:
    with pytest.raises(geometry.GeometryError, match=reason):
        geometry.directions(read, phase, through)


def test_a_left_handed_slice_direction_is_kept() -> None:
    assert geometry.directions((1, 0, 0), (0, 1, 0), (0, 0, -1))[2].tolist() == [0, 0, -1]


def test_a_measurement_without_geometry_needs_leave() -> None:
    scan = Scan(coils=1, slices=2, **axes(np.zeros((3, 3))))
    with pytest.raises(dn.Unsuitable, match="allow_no_geometry"):
        pipeline().run(scan.kspace())
    result = pipeline(allow_no_geometry=True).run(scan.kspace())
    assert len(result.reconstructions[0].planes) == 2
    assert any("no geometry" in note for note in result.notes)


@pytest.mark.parametrize(
    ("have", "size", "fov"), [(16, 32, 1.0), (17, 40, 1.0), (32, 20, 0.625), (30, 16, 0.7), (16, 8, 1.0)]
)
def test_resampling_is_the_images_own_fourier_series(have: int, size: int, fov: float) -> None:
    generator = torch.Generator().manual_seed(1)
    spectrum = torch.randn(3, have, dtype=torch.complex64, generator=generator)
    place = (np.arange(size) - size // 2) * fov / size
    k = np.arange(have) - have // 2
    kept = (k >= -size / fov / 2 - 1e-9) & (k < size / fov / 2 - 1e-9)
    series = np.exp(2j * np.pi * place[:, None] * k[None]) * kept
    expected = spectrum.numpy() @ series.T / np.sqrt(have)
    made = geometry.resample(ifftc(spectrum, (-1,)), 1, 1.0, size, fov)
    assert np.allclose(made.numpy(), expected, atol=1e-4)


def test_beyond_the_encoded_field_of_view_there_is_nothing() -> None:
    image = ifftc(fftc(torch.ones(1, 16, dtype=torch.complex64), (1,)), (1,))
    made = geometry.resample(image, 1, 100.0, 32, 200.0).abs()
    assert made[0, 8:24].min() > 0.9
    assert made[0, :7].max() == 0
