"""Site adaptation: it learns from noise alone, and the guard keeps bad weights from being written."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml

from models import ct_denoise
from models.ct_denoise import adapt, bars
from models.ct_denoise.net import build
from tests.ct_files import RADIUS, water, write

CORE = RADIUS < 55.0
SHIPPED = Path(ct_denoise.__file__).parent
GOOD = {
    "noise_reduction": 0.5,
    "spectrum_shift": -0.1,
    "ttf50_100": 0.98,
    "ttf50_20": 0.8,
    "inserts_mean": 0.9,
    "inserts_least": 0.8,
    "mean_shift_hu": 0.1,
    "blobs_above_gaussian": 0.0,
}


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A series of five slices of water with 12 HU noise."""
    folder = tmp_path_factory.mktemp("site")
    for k in range(5):
        write(folder / f"{k}.dcm", water(12.0, k), 5.0 * k)
    return folder


def run(monkeypatch, site: Path, out: Path, *more: str) -> None:
    command = ["adapt", "--data", str(site), "--out", str(out), "--realisations", "3", "--slices", "5"]
    monkeypatch.setattr(sys, "argv", [*command, "--patch", "96", "--threads", "1", *more])
    adapt.main()


def test_the_noise_put_on_has_the_level_of_the_noise_that_is_there(site):
    made = adapt.samples(site, 3)
    assert len(made) == 3
    for item in made:
        first, second = item.noise[:, CORE]
        assert float(first.std()) == pytest.approx(float(item.image[CORE].std()), rel=0.12)
        assert abs(float(torch.corrcoef(torch.stack((first, second)))[0, 1])) < 0.1


def test_a_network_that_knew_nothing_learns_to_remove_noise_from_noisy_slices_alone(site):
    torch.manual_seed(0)
    net = build("denoise_unet", {"widths": [8, 12, 16], "blocks": 1})
    made = adapt.samples(site, 5)
    adapt.fit(net, made[1:], steps=60, rate=4e-3, patch=96, log=lambda _line: None)
    noisy = made[0].image  # a slice that the fit has not seen
    with torch.inference_mode():
        left = noisy - net.noise(noisy[None, None], 1.0)[0, 0]
    assert float(left[CORE].std()) < 0.75 * float(noisy[CORE].std())
    assert float(left[CORE].mean()) == pytest.approx(float(noisy[CORE].mean()), abs=0.5)


def test_a_network_for_least_squares_is_fitted_too(site):
    torch.manual_seed(0)
    net = build("denoise_unet", {"widths": [8, 12, 16], "blocks": 1, "least": [1, 1, 1]})
    made = adapt.samples(site, 5)
    adapt.fit(net, made[1:], steps=60, rate=4e-3, patch=96, log=lambda _line: None)
    noisy = made[0].image
    with torch.inference_mode():  # above the presets it is that network's estimate alone
        left = noisy - net.noise(noisy[None, None], 1.0)[0, 0]
    assert float(left[CORE].std()) < 0.75 * float(noisy[CORE].std())


def test_a_gentle_fit_passes_the_guard_and_its_manifest_says_what_it_is(site, tmp_path, monkeypatch, capsys):
    run(monkeypatch, site, tmp_path / "out", "--steps", "2", "--rate", "1e-6")
    manifest = yaml.safe_load((tmp_path / "out" / "manifest.yaml").read_text())
    assert "3 local slices without clean images" in manifest["training_data"]
    assert manifest["version"].endswith("+local")
    record = json.loads((tmp_path / "out" / "adaptation.json").read_text())
    assert record["refused"] == [] and record["kept_out"] == 2
    ct_denoise.load(tmp_path / "out")
    assert "noise_reduction" in capsys.readouterr().out


def test_the_guard_refuses_a_fit_that_ruins_the_network_and_names_the_bars(site, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, site, tmp_path / "out", "--steps", "12", "--rate", "0.05")
    assert ended.value.code == 1
    assert not (tmp_path / "out").exists()
    said = capsys.readouterr().out
    assert "refused, nothing written" in said and "noise reduction between 0.45 and 0.6" in said


@pytest.mark.parametrize("folder", [SHIPPED, None])
def test_the_weights_that_are_shipped_or_started_from_are_never_overwritten(site, tmp_path, monkeypatch, folder):
    given = ["--weights", str(tmp_path)] if folder is None else []
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, site, folder or tmp_path, *given)
    assert ended.value.code == 2


def test_a_folder_without_ct_says_so(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no CT slice"):
        run(monkeypatch, tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, []),
        ({"ttf50_20": 0.6}, ["TTF50 against the input at 20 HU"]),
        ({"noise_reduction": 0.7, "mean_shift_hu": -2.0}, ["noise reduction", "shift of the mean"]),
        ({"inserts_least": float("nan")}, ["least contrast"]),
    ],
)
def test_the_guard_names_every_bar_that_is_failed(changes, named):
    found = adapt.refusals(GOOD, GOOD | changes)
    assert len(found) == len(named)
    assert all(name in line for name, line in zip(named, found, strict=True))


def test_a_bar_missed_before_may_be_missed_again_but_not_by_more():
    missed = GOOD | {"ttf50_20": 0.70}
    assert bars.failed(missed, GOOD | {"ttf50_20": 0.695}) == []
    assert bars.failed(missed, GOOD | {"ttf50_20": 0.66}) != []


def test_the_sites_own_slices_count_too():
    before = GOOD | {"site_reduction": 0.4, "site_shift_hu": 0.0}
    assert "falls by 10%" in adapt.refusals(before, before | {"site_reduction": 0.1})[0]
    assert "moves by -1.00 HU" in adapt.refusals(before, before | {"site_shift_hu": -1.0})[0]
