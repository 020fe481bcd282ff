"""Training and fine-tuning go on where they stopped, and what real contours leave open stays open."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydicom.dataset import Dataset, FileMetaDataset

from models.cardiac import (
    acquire,
    bundle,
    cases,
    evaluate,
    losses,
    pack,
    scd,
    segment,
    simulate,
    study,
    train,
    tune,
    wrong,
)
from models.cardiac.bundle import View
from models.cardiac.cases import Known
from models.cardiac.cycle import UnsuitableStackError

TINY = train.Member(name="tiny", pixels=32, pixel_mm=6.0, widths=(4, 8), steps=4, batch=2, tuning_steps=2, warm_up=2)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Many small operations: threads that wait for each other take most of the time on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def steps(work: Path, counts: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """The averaged weights after training that was stopped after each of ``counts`` steps."""
    for count in counts:
        trainer = train.Trainer(TINY, work / "checkpoint.pt", torch.device("cpu"))
        for _ in range(count):
            rng = np.random.default_rng([TINY.seed, 3, trainer.step])
            trainer.advance(*train.simulated(TINY, rng, TINY.batch), 1e-3)
        trainer.keep()
    return {name: value.clone() for name, value in trainer.average.state_dict().items()}


def test_a_stopped_training_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole, parts = steps(tmp_path / "a", (4,)), steps(tmp_path / "b", (1, 3))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_checkpoint_of_another_member_is_refused(tmp_path: Path) -> None:
    steps(tmp_path, (1,))
    with pytest.raises(SystemExit, match="another configuration"):
        train.Trainer(replace(TINY, pixels=48), tmp_path / "checkpoint.pt", torch.device("cpu"))


def test_a_member_may_start_from_another_ones_weights(tmp_path: Path) -> None:
    later = replace(TINY, name="later", start="tiny", steps=0)
    with pytest.raises(SystemExit, match="train the member"):
        train.train(later, tmp_path, torch.device("cpu"), 60.0)
    steps(tmp_path / "tiny", (1,))
    (tmp_path / "tiny" / "checkpoint.pt").rename(tmp_path / "tiny" / "simulation.pt")
    train.train(later, tmp_path, torch.device("cpu"), 60.0)
    first, second = (
        torch.load(tmp_path / name / "simulation.pt", weights_only=True)["average"] for name in ("tiny", "later")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_package_logs_the_first_stages_that_its_members_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(train.MEMBERS, "tiny", TINY)
    monkeypatch.setitem(train.MEMBERS, "later", replace(TINY, name="later", start="tiny"))
    for name in ("tiny", "later"):
        trainer = train.Trainer(train.MEMBERS[name], tmp_path / name / "simulation.pt", torch.device("cpu"))
        trainer.keep()
        torch.save(trainer.average.state_dict(), tmp_path / name / "tuned-none.pt")
        shutil.copy(tmp_path / name / "simulation.pt", tmp_path / name / "tuned-none.checkpoint")
    arguments = ["pack", "--work", str(tmp_path), "--members", "later", "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", arguments)
    pack.main()
    log = json.loads((tmp_path / "out" / "training.json").read_text())
    assert list(log) == ["later", "tiny"], "what is packed, then what it began with"
    assert log["later"]["simulator"] == {"simulation": simulate.VERSION, "tuning": simulate.VERSION}
    assert "tuning_seconds" not in log["tiny"]
    _, views = bundle.load(tmp_path / "out", torch.device("cpu"))
    assert [one.pixel_mm for one in views] == [6.0, 5.0], "the one that is packed, as it was trained and closer"


def test_overlap_is_of_the_whole_ventricle_and_its_cavity() -> None:
    codes = torch.tensor([[0, 2, 3, 2, 0, 1]]).view(1, 1, 6)
    right = torch.nn.functional.one_hot(codes, 4).movedim(-1, 1).float()
    assert float(losses.overlap(right, codes)) == pytest.approx(0.0, abs=1e-6)
    swapped = right[:, [0, 1, 3, 2]]
    known = losses.overlap(swapped, codes)
    assert float(known) == pytest.approx((1.0 - 1.0 / 4.0) / 3.0)  # the ventricle is whole, the cavity is not
    open_codes = torch.where(codes == 3, 3, losses.NOT_LV)
    assert float(losses.overlap(right, open_codes)) == pytest.approx(0.0, abs=1e-6)


def write_patient(folder: Path, name: str) -> Path:
    """A patient in the Sunnybrook layout: a disc of 40 mm that beats, contours at its largest and smallest."""
    root = folder / name
    for part in ("sax", "i-contours", "o-contours"):
        (root / part).mkdir(parents=True)
    y, x = np.mgrid[:64, :64]
    angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    number = 0
    for k in range(4):
        for phase in range(4):
            number += 1
            radius = (12.0, 10.0, 7.0, 10.0)[phase]
            r = np.hypot(y - 34, x - 30)
            pixels = np.where(r < radius, 900, np.where(r < radius + 4, 200, 400)).astype(np.uint16)
            write_image(root / "sax" / f"{number}.dcm", pixels, k, phase)
            ring = np.stack((30 + radius * np.cos(angle), 34 + radius * np.sin(angle)), 1)
            if k in (1, 2) and phase in (0, 2):
                np.savetxt(root / "i-contours" / f"IM-0001-{number:04d}-icontour-manual.txt", ring, "%.2f")
            if k in (1, 2) and phase == 0:
                wide = (ring - (30, 34)) * (radius + 4) / radius + (30, 34)
                np.savetxt(root / "o-contours" / f"IM-0001-{number:04d}-ocontour-manual.txt", wide, "%.2f")
    return root


def write_image(path: Path, pixels: np.ndarray, k: int, phase: int) -> None:
    """One image; its SliceLocation is wrong, as this scanner's is."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    ds.Rows, ds.Columns, ds.BitsAllocated, ds.BitsStored, ds.HighBit = 64, 64, 16, 16, 15
    ds.SamplesPerPixel, ds.PixelRepresentation, ds.PhotometricInterpretation = 1, 0, "MONOCHROME2"
    ds.PixelSpacing, ds.ImageOrientationPatient = [2.0, 2.0], [1, 0, 0, 0, 1, 0]
    ds.ImagePositionPatient, ds.SliceLocation = [0, 0, 10.0 * k], 6.7 * k
    ds.TriggerTime, ds.PixelData = 25.0 * phase, pixels.tobytes()
    ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    ds.file_meta.MediaStorageSOPInstanceUID = f"2.25.{k * 100 + phase}"
    ds.save_as(path, enforce_file_format=True)


def test_contours_are_read_with_their_phases_and_true_steps(tmp_path: Path) -> None:
    patient = scd.read(write_patient(tmp_path, "SCD0000001"))
    assert (patient.ed, patient.es, patient.step_mm, patient.images.shape) == (0, 2, 10.0, (4, 4, 64, 64))
    drawn = patient.at(0)[1]
    assert drawn.inner.sum() == pytest.approx(np.pi * 12**2, rel=0.03)
    assert drawn.outer is not None and drawn.outer.sum() == pytest.approx(np.pi * 16**2, rel=0.03)
    middle = np.argwhere(drawn.inner > 0.5).mean(0)
    assert middle == pytest.approx((34.0, 30.0), abs=0.15)


def test_outer_contours_known_to_be_wrong_are_never_read(tmp_path: Path) -> None:
    patient = scd.read(write_patient(tmp_path, "SCD0000501"))
    assert not patient.has_outer and all(one.outer is None for one in patient.drawn)


def test_what_nobody_drew_stays_open(tmp_path: Path) -> None:
    drawn, empty = tune.examples(scd.read(write_patient(tmp_path, "SCD0000001")))
    assert (len(drawn), len(empty)) == (4, 4)
    rng = np.random.default_rng(0)
    ed = [one for one in drawn if one.known is Known.OUTLINES]
    assert set(tune.warped(ed[0], TINY, rng)[1].unique().tolist()) <= {2, 3, losses.OUTSIDE}
    es = [one for one in drawn if one.known is Known.CAVITY]
    assert set(tune.warped(es[0], TINY, rng)[1].unique().tolist()) == {3, losses.NOT_LV}
    assert set(tune.warped(empty[0], TINY, rng)[1].unique().tolist()) == {losses.NOT_LV}


def test_slices_are_learnt_around_the_cavity_drawn_and_their_middle_is_swollen(tmp_path: Path) -> None:
    drawn, empty = tune.examples(scd.read(write_patient(tmp_path, "SCD0000001")))
    assert all(one.centre == pytest.approx((34.0, 30.0), abs=0.1) for one in (*drawn, *empty))
    kept = replace(drawn[0], centre=(1.0, 2.0))
    assert cases.recentred([replace(kept, shares=np.zeros_like(kept.shares))], [])[0][0].centre == (1.0, 2.0)
    plane = acquire.plane_of(acquire.upright(), (64, 64), 2.0)
    swollen = cases._swollen(plane, -0.2, 20.0)
    assert swollen.x[32, 34] == pytest.approx(0.8 * plane.x[32, 34], rel=0.05)
    assert swollen.x[32, 63] == pytest.approx(plane.x[32, 63], rel=0.07)


def test_tuning_starts_from_the_simulation_and_is_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_patient(tmp_path / "data", "SCD0000001")
    monkeypatch.setattr(train, "VALIDATION_SLICES", 16)
    with pytest.raises(SystemExit, match="simulations first"):
        tune.tune(TINY, tmp_path, [folder], "none", torch.device("cpu"))
    train.train(TINY, tmp_path, torch.device("cpu"), 600.0)
    out = tune.tune(TINY, tmp_path, [folder], "none", torch.device("cpu"))
    before = torch.load(tmp_path / "tiny" / "simulation.pt", weights_only=True)["average"]
    after = torch.load(out, weights_only=True)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    monkeypatch.setitem(train.MEMBERS, "tiny", TINY)
    network = evaluate.segmenter(tmp_path, ["tiny"], "tuned-none.pt")
    figures = evaluate.patient_figures(scd.read(folder), network)
    assert figures["name"] == "SCD0000001" and 0.0 <= figures["lv_dice_ed"] <= 1.0
    assert evaluate.summary([figures], "expert")["n"] == 1


@pytest.mark.parametrize("kind", wrong.KINDS)
def test_wrong_stacks_are_drawn(kind: str) -> None:
    images = wrong.draw(kind, 0)
    assert images.shape[0] == wrong.PHASES and images.dtype == np.float32 and np.isfinite(images).all()


def test_an_empty_stack_is_refused_whatever_the_weights() -> None:
    torch.manual_seed(0)
    net = train.build({"widths": (4, 8)}).eval()

    segmenter = segment.Segmenter((View(net=net, pixels=32, pixel_mm=6.0),), torch.device("cpu"))
    with pytest.raises(UnsuitableStackError):
        study.measure(segmenter, wrong.draw("empty", 0), (2.0, 2.0), 8.0 * np.arange(9))


def test_surface_distances_are_those_of_discs() -> None:
    y, x = np.mgrid[:60, :60]
    r = np.hypot(y - 30, x - 30)
    far, most = evaluate.surface_distances(r < 15, r < 18, 1.5)
    assert far == pytest.approx(4.5, abs=1.5) and most <= far
