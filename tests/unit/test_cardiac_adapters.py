"""Data sets in their own layouts become the same hearts, and one command goes on from the shipped weights with them."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch

from models.cardiac import adapters, bundle, losses, nifti, own, retrain, segment, train, weak
from models.cardiac.cases import Case, Known, codes_of
from models.cardiac.nifti import UnreadableCaseError
from tests import cardiac_trees as trees
from tests.unit.test_cardiac_training import TINY, write_patient

SHIPPED = Path(bundle.__file__).parent


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def areas(case: Case, known: Known = Known.ALL) -> list[list[int]]:
    """Pixels of RV, myocardium and cavity on each drawn slice."""
    assert {one.known for one in case.drawn} == {known}
    return [[int((codes_of(torch.from_numpy(one.shares), known) == k).sum()) for k in (1, 2, 3)] for one in case.drawn]


def expected() -> list[list[int]]:
    _, labels = trees.heart()
    return [
        [int((labels[phase, k] == value).sum()) for value in (1, 2, 3)]
        for phase in (trees.ED, trees.ES)
        for k in range(trees.SLICES - 1)
    ]


def test_acdc_frames_count_from_one_and_its_labels_are_ours(tmp_path: Path) -> None:
    trees.acdc(tmp_path, 1)
    name, (case,), lost = adapters.read(tmp_path)
    assert (name, case.name, lost) == ("acdc", "patient001", [])
    assert areas(case) == expected() and len(case.empty) == 2
    assert case.facts["Group"] == "DCM" and case.drawn[0].spacing == (1.5, 1.5)
    assert case.drawn[0].image.min() >= 200 and case.drawn[0].image.max() == 900


def test_mnms_labels_are_turned_around(tmp_path: Path) -> None:
    trees.mnms(tmp_path, ["A0S9V9", "B1C2D3"])
    name, cases, lost = adapters.read(tmp_path)
    assert (name, [case.name for case in cases], lost) == ("mnms", ["A0S9V9", "B1C2D3"], [])
    assert areas(cases[0]) == expected(), "1 is the left cavity there, and 3 the right ventricle"
    assert cases[0].facts["VendorName"] == "Siemens" and cases[0].drawn[0].spacing == pytest.approx((1.4, 1.4))


def test_mnms2_reads_the_short_axis_and_turns_its_labels_around(tmp_path: Path) -> None:
    trees.mnms2(tmp_path, 7)
    name, (case,), _ = adapters.read(tmp_path)
    assert (name, case.name) == ("mnms2", "007") and areas(case) == expected()


def test_sunnybrook_knows_outer_contours_at_ed_only(tmp_path: Path) -> None:
    write_patient(tmp_path, "SCD0000001")
    name, (case,), _ = adapters.read(tmp_path)
    assert name == "sunnybrook" and [one.known for one in case.drawn] == [Known.OUTLINES] * 2 + [Known.CAVITY] * 2


def test_kaggle_gives_volumes_and_no_masks(tmp_path: Path) -> None:
    trees.kaggle(tmp_path, ["1", "2"])
    name, cases, lost = adapters.read(tmp_path)
    assert (name, [case.name for case in cases], lost) == ("kaggle", ["1", "2"], [])
    found = cases[0].volumes
    assert found is not None and not cases[0].drawn and (found.edv_ml, found.esv_ml) == (90.0, 30.0)
    assert found.images.shape == (8, 5, 48, 48) and found.width_mm == pytest.approx([8.0] * 5)
    images, _ = trees.heart()
    assert all(np.abs(found.images[p] - images[p]).max() == 0 for p in range(8)), "phases in the order of their times"


def test_corrected_segmentations_come_back_from_dicom(tmp_path: Path) -> None:
    trees.corrected(tmp_path, "one")
    name, (case,), lost = adapters.read(tmp_path)
    assert (name, case.name, lost) == ("seg", "one", [])
    assert areas(case) == expected()
    assert {one.image.max() for one in case.drawn} == {900.0}


@pytest.mark.parametrize(("structures", "known"), [(("lv", "myo"), Known.OUTLINES), (("lv",), Known.CAVITY)])
def test_what_nobody_segmented_stays_open(tmp_path: Path, structures: tuple[str, ...], known: Known) -> None:
    case = own.corrected(trees.corrected(tmp_path, "one", structures=structures))
    assert [found[2] for found in areas(case, known)] == [cavity for _, _, cavity in expected()]
    codes = codes_of(torch.from_numpy(case.drawn[0].shares), known)
    assert set(codes.unique().tolist()) == ({2, 3, losses.OUTSIDE} if known is Known.OUTLINES else {3, losses.NOT_LV})


def test_a_segmentation_of_images_that_are_not_there_is_named(tmp_path: Path) -> None:
    folder = trees.corrected(tmp_path, "one")
    for path in (folder / "cine").iterdir():
        path.unlink()
    with pytest.raises(UnreadableCaseError, match="images that were segmented are missing"):
        own.corrected(folder)


def test_a_broken_patient_is_left_out_by_name_and_the_rest_is_read(tmp_path: Path) -> None:
    for number in (1, 2):
        trees.acdc(tmp_path, number)
    (tmp_path / "training" / "patient001" / "patient001_frame04_gt.nii.gz").unlink()
    _, cases, lost = adapters.read(tmp_path)
    assert [case.name for case in cases] == ["patient002"]
    assert lost == ["patient001_frame04_gt.nii.gz is missing in patient001"]


def test_labels_nobody_knows_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.nii.gz"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.full((2, 4, 4), 7, np.uint8)), str(path))
    with pytest.raises(UnreadableCaseError, match=r"labels \[7\]"):
        nifti.read_labels(path, nifti.ACDC)


def test_a_folder_of_two_layouts_or_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(adapters.UnknownLayoutError, match="none of the layouts acdc, mnms"):
        adapters.format_of(tmp_path)
    trees.acdc(tmp_path, 1)
    trees.mnms2(tmp_path, 1)
    with pytest.raises(adapters.UnknownLayoutError, match="several layouts"):
        adapters.format_of(tmp_path)


def test_patients_are_split_once_and_never_shared() -> None:
    cases = [Case(name=f"p{number}") for number in range(20)]
    parts = adapters.split(cases)
    assert [len(part) for part in parts] == [14, 3, 3]
    names = [{case.name for case in part} for part in parts]
    assert len(set.union(*names)) == 20 and [{c.name for c in part} for part in adapters.split(cases[::-1])] == names
    assert [len(part) for part in adapters.split(cases[:2])] == [2, 0, 0]
    assert [len(part) for part in adapters.split(cases[:3])] == [1, 1, 1]


def test_volumes_alone_teach_the_size_of_the_cavity(tmp_path: Path) -> None:
    trees.kaggle(tmp_path, ["1"])
    _, (case,), _ = adapters.read(tmp_path)
    assert case.volumes is not None
    state = bundle.tensors_of(SHIPPED)["near"]
    trainer = train.Trainer(train.MEMBERS["near"], tmp_path / "none", torch.device("cpu"))
    trainer.net.load_state_dict(state)
    trainer.average.load_state_dict(state)

    def seen() -> list[float]:
        with torch.no_grad():
            return [float(weak.volume_ml(trainer.net, trainer, case.volumes, p)) for p in (trees.ED, trees.ES)]

    before = seen()
    assert before[0] > 1.5 * before[1] > 0, "the shipped network sees this heart of discs beat"
    measured = replace(case.volumes, edv_ml=1.5 * before[0], esv_ml=1.5 * before[1])
    teacher, rng = weak.VolumeTeacher([measured]), np.random.default_rng(0)
    for _ in range(6):
        teacher.teach(trainer, rng, 2e-4)
    after = seen()
    assert abs(after[0] - measured.edv_ml) < 0.8 * abs(before[0] - measured.edv_ml)


def test_one_command_goes_on_from_the_shipped_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(1, 5):
        trees.acdc(tmp_path / "data", number)
    out = tmp_path / "model"
    words = ["train", "--data", str(tmp_path / "data"), "--format", "auto", "--out", str(out), "--steps", "2"]
    monkeypatch.setattr(sys, "argv", [*words, "--threads", "1", "--device", "cpu"])
    monkeypatch.setattr(retrain, "WATCH_EVERY", 1)
    train.main()
    made, shipped = bundle.read(out), bundle.read(SHIPPED)
    assert (
        made.version.startswith(f"{shipped.version}+acdc.") and "2 patients of acdc" in made.manifest["training_data"]
    )
    file = out / bundle.WEIGHTS
    assert made.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    facts = json.loads((out / "training.json").read_text())
    assert facts["from"] == shipped.sha256 and facts["patients"] == {
        "trained": 2, "watched": 1, "tested": 1, "left_out": 0,
    }  # fmt: skip
    assert set(facts["members"]["near"]["tested"]) == {"rv", "myo", "lv"}
    _, segmenter = segment.load(out, torch.device("cpu"))
    assert len(segmenter.views) == 2 * len(shipped.manifest["members"])


def test_a_third_of_what_is_learnt_from_stays_simulated(tmp_path: Path) -> None:
    trees.acdc(tmp_path, 1)
    _, cases, _ = adapters.read(tmp_path)
    pool = retrain.Pool(cases)
    positions = [
        retrain.batch(pool, TINY, np.random.default_rng(seed), 8)[2] for seed in range(30)
    ]  # simulated slices know where they are
    share = float((torch.cat(positions) != losses.UNKNOWN_POSITION).float().mean())
    assert 0.2 < share < 0.4
    nothing = retrain.batch(retrain.Pool([Case(name="none")]), TINY, np.random.default_rng(0), 4)
    assert bool((nothing[2] != losses.UNKNOWN_POSITION).all())
