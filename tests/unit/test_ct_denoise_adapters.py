"""Retraining on real layouts: trees as the collections lay them out, written here, with images of our own."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from models.ct_denoise import adapters, data, simulate, train
from models.ct_denoise.data import Mixture, Pool
from tests.ct_files import WATER, water, write

CPU = torch.device("cpu")
FULL, LOW = water(8.0, 1), water(16.0, 2)


@pytest.fixture(scope="module")
def aapm(tmp_path_factory) -> Path:
    """Four patients in both doses; one low-dose slice is missing, and they are numbered backwards."""
    root = tmp_path_factory.mktemp("aapm")
    for patient in ("L067", "L096", "L143", "L506"):
        for k in range(3):
            write(root / patient / "full_3mm" / f"{patient}_FD_{9 - k}.IMA", FULL, 3.0 * k)
            if (patient, k) != ("L096", 1):
                write(root / patient / "quarter_3mm" / f"{patient}_QD_{k}.IMA", LOW, 3.0 * k + 0.02)
    return root


@pytest.fixture(scope="module")
def mayo(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("mayo")
    for patient in ("C002", "L004", "N012"):
        study = root / "LDCT-and-Projection-data" / patient / "12-23-2021-NA-NA-62464"
        for k in range(2):
            write(study / "1.000000-Full Dose Images-38394" / f"1-{k}.dcm", FULL, 5.0 * k)
            write(study / "1.000000-Low Dose Images-71581" / f"1-{k}.dcm", LOW, 5.0 * k)
            (study / "1.000000-Full dose projections-24362").mkdir(exist_ok=True)
    return root


def test_aapm_slices_are_paired_by_position_and_a_slice_without_a_partner_is_left_out(aapm):
    found = adapters.pairs("aapm", aapm)
    assert len(found) == 4 * 3 - 1
    for pair in found:
        assert pair.full.parts[-3:-1] == (pair.patient, "full_3mm")
        assert pair.low is not None and pair.low.name == f"{pair.patient}_QD_{pair.position_mm / 3.0:.0f}.IMA"


def test_mayo_slices_are_paired_within_the_study_and_projections_are_left_alone(mayo):
    found = adapters.pairs("mayo", mayo)
    assert {pair.patient for pair in found} == {"C002", "L004", "N012"} and len(found) == 6
    assert all("Low Dose Images" in str(pair.low) and pair.low.name == pair.full.name for pair in found)


def test_own_series_need_no_partner_and_patients_are_named_by_a_digest(tmp_path):
    for k in range(2):
        write(tmp_path / f"{k}", FULL, 2.0 * k)
    write(tmp_path / "scout", FULL, 0.0, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write(tmp_path / "ours", FULL, 0.0, ImageType=["DERIVED", "SECONDARY", "AXIAL"])
    write(tmp_path / "mr", FULL, 0.0, Modality="MR")
    found = adapters.pairs("dicom", tmp_path)
    assert len(found) == 2 and all(pair.low is None for pair in found)
    assert "A-1" not in found[0].patient


def test_patients_are_split_whole_and_l506_is_the_aapm_test():
    ten = {f"L{k:03}" for k in range(9)} | {"L506"}
    parts = adapters.split("aapm", ten)
    assert [name for name in ten if parts[name] == "test"] == ["L506"]
    assert sorted(parts.values()).count("validation") == 1
    many = adapters.split("mayo", {f"C{k:03}" for k in range(40)})
    assert [sorted(many.values()).count(part) for part in ("train", "validation", "test")] == [32, 4, 4]
    assert adapters.split("dicom", {"a", "b"}) == {"a": "train", "b": "train"}
    assert many == adapters.split("mayo", {f"C{k:03}" for k in reversed(range(40))})


def test_the_check_counts_splits_names_what_is_not_hu_and_leaves_a_licence_note(aapm, tmp_path, monkeypatch, capsys):
    broken = tmp_path / "tree"
    for file in sorted(aapm.rglob("*.IMA")):
        target = broken / file.relative_to(aapm)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(file)
    for k in range(3):
        write(broken / "L067" / "quarter_3mm" / f"L067_QD_{k}.IMA", LOW + 1024.0, 3.0 * k + 0.02, RescaleIntercept=0)
    command = ["train", "--check", "--data", f"aapm:{broken}", "--work", str(tmp_path / "work")]
    monkeypatch.setattr(sys, "argv", command)
    train.main()
    report = json.loads(capsys.readouterr().out)
    assert (report["patients"], report["stacks"], report["slices"]) == (4, 4, 11)
    assert report["split"]["test"] == ["L506"] and len(report["split"]["train"]) == 2
    assert list(report["not_hu"]) == ["L067 3mm"] and "no rescale" in report["not_hu"]["L067 3mm"]
    assert "Grand Challenge" in (tmp_path / "work" / "DATA-LICENCE.txt").read_text()


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (FULL, ""),
        (np.maximum(FULL + 1024.0, 0.0), "no rescale"),
        (FULL + 120.0, "air at"),
        (np.where(FULL > -500.0, 900.0, FULL), "soft tissue"),
    ],
)
def test_values_that_are_not_hounsfield_units_are_named(values, reason):
    found = adapters.not_hu(values.astype(np.float32))
    assert reason in found and bool(found) == bool(reason)


@pytest.fixture
def small(monkeypatch) -> None:
    for module in (adapters, simulate, data):
        monkeypatch.setattr(module, "POOL_SIZE", 160)
    monkeypatch.setattr(data, "simulate_slice", partial(simulate.simulate_slice, size=160))


def test_a_pair_gives_its_own_noise_and_a_single_series_gets_noise_inserted(aapm, tmp_path, small):
    pool = adapters.make_pool("aapm", aapm, "train", 3, CPU)
    body = WATER[8:-8, 8:-8] > 0.0
    assert len(pool) == 3 and pool[0].rendered
    expected = float((8.0**2 + 16.0**2) ** 0.5)
    assert float(pool[0].noise[0][body].std()) == pytest.approx(expected, rel=0.15)
    for k in range(3):
        write(tmp_path / f"{k}", FULL, 2.0 * k)
    own = adapters.make_pool("dicom", tmp_path, "train", 2, CPU)
    assert float(own[0].noise[0][body].std()) == pytest.approx(3.0**0.5 * 8.0, rel=0.25)
    first, second = own[0].noise[:, body]
    assert abs(float(torch.corrcoef(torch.stack((first, second)))[0, 1])) < 0.1
    assert abs(float(own[0].noise[:, body].mean())) < 0.5


def test_a_mixture_draws_the_share_asked_for_from_every_real_slice():
    def pool(count: int, rendered: bool) -> Pool:
        clean, noise = torch.zeros(count, 8, 8, dtype=torch.int16), torch.zeros(count, 2, 8, 8, dtype=torch.float16)
        return Pool(clean, noise, [float(k) for k in range(count)], [1.0] * count, rendered=rendered)

    mixed = Mixture(pool(5, False), pool(7, True), 0.3)
    drawn = [mixed[index] for index in range(0, len(mixed), 1000)]
    assert sum(item.rendered for item in drawn) / len(drawn) == pytest.approx(0.3, abs=0.01)
    assert {item.pixel_mm for item in drawn if item.rendered} == set(map(float, range(7)))


def test_retraining_mixes_real_pairs_in_and_its_manifest_says_so(aapm, tmp_path, small, monkeypatch):
    phase = train.Phase(steps=3, pool=2, slices=1, paired=2, blocks=(1, 1, 1))
    config = replace(train.CONFIGS["cpu"], phases=(phase,), patch=64, widths=(8, 8, 8))
    monkeypatch.setitem(train.CONFIGS, "cpu", config)
    given = ["train", "--data", f"aapm:{aapm}", "--pairs", "2", "--work", str(tmp_path / "work"), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", given)
    with pytest.raises(SystemExit):  # never over the shipped weights
        train.main()
    monkeypatch.setattr(sys, "argv", [*given, "--out", str(tmp_path / "out")])
    threads = torch.get_num_threads()
    train.main()
    torch.set_num_threads(threads)
    manifest = yaml.safe_load((tmp_path / "out" / "manifest.yaml").read_text())
    assert "2 real slices" in manifest["training_data"] and "Grand Challenge" in manifest["training_data"]
    assert manifest["version"].endswith("+local") and manifest["licence"] == "none given"


@pytest.mark.parametrize("text", ["mayo", "nii:/", "aapm:/not/there"])
def test_a_source_that_is_none_is_refused_with_the_kinds_that_are(text, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train", "--data", text])
    with pytest.raises(SystemExit):
        train.main()
    assert "mayo, aapm, dicom" in capsys.readouterr().err
