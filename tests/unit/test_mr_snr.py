"""Signal to noise ratios as stored values: noise of 1 wherever the method put it, and refused where it is not known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dicomnode import pipeline as dn
from dicomnode.kspace import Flag
from models.mr_recon.ladder import Ladder
from tests.mrd_factory import Ellipse, Scan
from tests.recon import pipeline
from tests.unit.test_recon_noncartesian import UNIFORM, measured

#: Two repetitions: their difference is noise alone, whatever the image.
TWICE = Scan(
    matrix=(48, 48),
    coils=6,
    ellipses=(Ellipse(a=90, b=80),),
    noise=0.05,
    noise_lines=64,
    repetitions=2,
    correlation=0.3,
)


def run(scan: Scan, **options) -> dn.Result:
    # Calibration without noise: maps that differ between repetitions would add to what the noise does.
    clean = replace(scan, noise=0.0).readouts() if scan.calibration == "separate" else scan.readouts()
    pairs = zip(clean, scan.readouts(), strict=True)
    lines = [still if still.has(Flag.IS_PARALLEL_CALIBRATION) else noisy for still, noisy in pairs]
    return pipeline(scale="snr", **options).run(dn.KSpace(header=scan.header(), readouts=lines))


def noise(made: dn.Reconstruction, scan: Scan) -> float:
    """Standard deviation of one image inside the body."""
    first, second = made.planes
    rows, columns = first.array.shape
    inside = replace(scan, ellipses=(Ellipse(a=80, b=70),)).truth(columns, rows) > 0.99
    return float(np.std((first.array - second.array)[inside]) / 2**0.5)


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, {}),
        ({"averages": 4}, {}),
        ({"acceleration": 2, "acs": 24, "calibration": "separate"}, {}),
        ({}, {"filter": "hamming"}),
        ({"recon_matrix": (64, 64)}, {}),
        ({"recon_matrix": (32, 32)}, {"filter": "tukey"}),
        ({}, {"method": "fft-rss"}),
    ],
    ids=["full", "averaged", "SENSE", "hamming", "finer", "coarser", "rss"],
)
def test_noise_is_one_wherever_there_is_signal(changes, options) -> None:
    scan = replace(TWICE, **changes)
    result = run(scan, **options)
    (made,) = result.reconstructions
    assert made.snr and made.scale == 10.0 and "SNR units" in made.description
    assert noise(made, scan) == pytest.approx(1.0, abs=0.07)


def test_the_signal_is_that_of_the_coils_together() -> None:
    scan = replace(TWICE, correlation=0.0, noise_lines=256)
    (made,) = run(scan).reconstructions
    seen = np.sqrt((np.abs(scan.maps(48, 48)) ** 2).sum(0)) * scan.truth(48, 48)
    inside = replace(scan, ellipses=(Ellipse(a=80, b=70),)).truth(48, 48) > 0.99
    wanted = (seen / (scan.noise * 0.5**0.5))[inside]
    assert np.median(made.planes[0].array[inside] / wanted) == pytest.approx(1.0, abs=0.03)


REFUSED = {
    "no noise scan": ({"noise_lines": 0}, {}, "there is no noise scan"),
    "partial Fourier": ({"partial_fourier": 0.75}, {}, "partial Fourier"),
    "volume": ({"partitions": 4, "coils": 2, "repetitions": 1}, {}, "the noise of volumes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_where_noise_is_not_known_the_usual_scale_is_taken_and_the_reason_said(case) -> None:
    changes, options, why = REFUSED[case]
    scan = replace(TWICE, **changes)
    result = run(scan, **options)
    (made,) = result.reconstructions
    assert not made.snr and made.scale != 10.0
    assert f"not in SNR units: {why}" in made.description
    assert any(note.startswith("not in SNR units") and why in note for note in result.notes)


def test_gridded_images_keep_the_usual_scale() -> None:
    result = pipeline(scale="snr").run(measured(replace(TWICE, repetitions=1, noise_lines=8), UNIFORM, unit="pixel"))
    (made,) = result.reconstructions
    assert not made.snr and "not in SNR units: the noise of gridded images" in made.description
    assert sum("gridded" in note for note in result.notes) == 1


def test_a_later_slice_whose_noise_is_not_known_says_so_and_keeps_the_scale(monkeypatch) -> None:
    scan = replace(TWICE, slices=2, repetitions=1, acceleration=2, acs=20)
    seen = []

    def reconstruct(self, problem, **more):
        seen.append(self.method)
        made = whole(self, problem, **more)
        return (
            replace(made, rung="grappa")
            if len(seen) > 1 and self.method == "sense-cg" and len(problem.data) == 1
            else made
        )

    whole = Ladder.reconstruct
    monkeypatch.setattr(Ladder, "reconstruct", reconstruct)
    (made,) = run(scan).reconstructions
    assert made.snr and [bool(plane.remark) for plane in made.planes] == [False, True]
    assert "not in SNR units: GRAPPA" in made.planes[1].remark
    # Averages and coarser pixels lower the noise of an image below that of a sample: no bound follows from it.
    assert "the noise of one sample" in made.planes[1].remark and "most" not in made.planes[1].remark


def test_methods_without_a_noise_of_their_own_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"scale snr needs a linear method.*not cs-l1"):
        pipeline(scale="snr", method="cs-l1")
    with pytest.raises(ValueError, match="scale must be body, snr"):
        pipeline(scale="percent")


def test_the_noise_scan_is_no_image() -> None:
    assert sum(line.has(Flag.IS_NOISE_MEASUREMENT) for line in TWICE.readouts()) == 64
    assert len(run(TWICE).reconstructions[0].planes) == 2
