"""Networks of others: what their description must say, that they see as they saw at home, and which are refused."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from dicomnode import pipeline as dn
from dicomnode.execute.loader import check_weights
from models.cardiac import bundle, foreign, import_model, nnunet, packages, segment
from models.cardiac.display import TOP
from models.cardiac.foreign import ForeignModelError
from pipelines.cardiac import CardiacCine
from tests.cardiac_stacks import series, stack
from tests.conftest import REPOSITORY

SHIPPED = Path(bundle.__file__).parent
CPU = torch.device("cpu")
ABOUT: dict[str, Any] = {
    "name": "exported", "licence": "Apache-2.0", "training_data": "as the shipped weights", "pixels": 96,
    "pixel_mm": bundle.load(SHIPPED, CPU)[1][0].pixel_mm, "labels": {0: "background", 1: "rv", 2: "myo", 3: "lv"},
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Elsewhere(nn.Module):
    """The shipped network as somebody else might have it: other labels, axes, scale of intensities and output."""

    def __init__(self, *, turned: bool = False, unit: bool = False, last: bool = False, wrong: bool = False) -> None:
        super().__init__()
        _, views = bundle.load(SHIPPED, CPU)
        self.net = views[0].net.to(memory_format=torch.contiguous_format)  # type: ignore[attr-defined]
        self.turned, self.unit, self.last, self.wrong = turned, unit, last, wrong

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(-1, 1) if self.last else x
        out = self.net(x * TOP if self.unit else x).pixels
        out = torch.flip(out, (2, 3)) if self.wrong else out
        out = out[:, [0, 3, 2, 1]] if self.turned else out
        return out.movedim(1, -1) if self.last else out


def exported(path: Path, net: nn.Module, *, example: tuple[int, ...] = (2, 1, 96, 96), any_number: bool = True) -> Path:
    given = (torch.zeros(example),)
    if path.suffix == ".pt2":
        shapes = ({0: torch.export.Dim("slices", min=1, max=64)},) if any_number else None
        torch.export.save(torch.export.export(net.eval(), given, dynamic_shapes=shapes), path)
    elif path.suffix == ".ts":
        torch.jit.trace(net.eval(), given).save(str(path))  # type: ignore[no-untyped-call]
    else:
        axes = {"image": {0: "slices"}, "logits": {0: "slices"}}
        torch.onnx.export(
            net.eval(), given, str(path), dynamo=False, input_names=["image"], output_names=["logits"],
            dynamic_axes=axes if any_number else None, opset_version=17,
        )  # fmt: skip
    return path


HOME = [
    ("model.pt2", {"format": "torch-export"}, {}),
    ("model.ts", {"format": "torchscript", "normalisation": "unit"}, {"unit": True}),
    ("model.onnx", {"format": "onnx", "labels": {0: "background", 1: "lv", 2: "myo", 3: "rv"}}, {"turned": True}),
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("name", "said", "built"), HOME, ids=["torch.export", "torchscript", "onnx"])
def test_an_exported_network_sees_what_it_saw_at_home(
    tmp_path: Path, name: str, said: dict[str, Any], built: dict[str, bool]
) -> None:
    if name.endswith("onnx"):
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
    model = exported(tmp_path / name, Elsewhere(**built))
    out = tmp_path / "package"
    dice = import_model.import_model(model, ABOUT | said, out, CPU)
    assert dice > 0.8
    assert check_weights(out), "the node finds the digests it wants"
    package, segmenter = packages.load(out, CPU)
    assert package.name == "exported" and package.version.startswith("imported.")
    made = import_model.self_test_stack(import_model.SELF_TEST_SEEDS[0])
    seen = segmenter.look(made.images[:, :4], (made.pixel_mm, made.pixel_mm))
    first = segment.Segmenter(bundle.load(SHIPPED, CPU)[1][: len(segmenter.views)], CPU)
    home = first.look(made.images[:, :4], (made.pixel_mm, made.pixel_mm))
    assert np.abs(seen.mean - home.mean).mean() < 5e-3, "the same but for half precision"
    assert (seen.mean.argmax(2) == home.mean.argmax(2)).mean() > 0.995


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_axes_and_a_fixed_number_of_slices_are_honoured(tmp_path: Path) -> None:
    model = exported(tmp_path / "m.ts", Elsewhere(last=True), example=(3, 96, 96, 1))
    net = foreign.net_of(model, foreign.describe(ABOUT | {"format": "torchscript", "axes": "NHWC", "batch": 3}), CPU)
    x = torch.rand(7, 1, 96, 96) * TOP
    with torch.inference_mode():
        here = bundle.load(SHIPPED, CPU)[1][0].net(x).pixels.softmax(1)
        assert float((net(x).pixels.softmax(1) - here).abs().max()) < 1e-3
    assert net(x).positions.shape == (7, 5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    ("built", "said"),
    [
        ({"wrong": True}, {}),  # sees the heart upside down
        ({}, {"labels": {0: "lv", 1: "rv", 2: "myo", 3: "background"}}),  # labels as somebody misread them
        ({}, {"pixel_mm": 0.4}),  # scale as somebody misread it
    ],
    ids=["flipped", "labels", "scale"],
)
def test_the_self_test_refuses_what_finds_no_ventricle(tmp_path: Path, built: dict[str, bool], said: Any) -> None:
    model = exported(tmp_path / "m.ts", Elsewhere(**built))
    with pytest.raises(ForeignModelError, match=r"self-test: Dice of the left cavity .* is 0\.[0-4]"):
        import_model.import_model(model, ABOUT | {"format": "torchscript"} | said, tmp_path / "package", CPU)
    assert [path.name for path in tmp_path.iterdir()] == ["m.ts"], "nothing is left behind"


@pytest.mark.parametrize("kind", ["torchscript", "torch-export", "onnx"])
def test_a_bare_pickle_is_never_loaded(tmp_path: Path, kind: str) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    torch.save(Bomb(), tmp_path / "model.pth")
    with pytest.raises(ForeignModelError, match=r"bare pickled checkpoints are never loaded|does not load as ONNX"):
        import_model.import_model(tmp_path / "model.pth", ABOUT | {"format": kind}, tmp_path / "package", CPU)
    assert not (tmp_path / "exploded").exists() and not (tmp_path / "package").exists()


def test_a_description_names_everything_wrong_at_once() -> None:
    with pytest.raises(ForeignModelError) as caught:
        foreign.describe({"name": "x", "format": "h5", "pixel": 3, "labels": {0: "background", 1: "heart"}})
    for part in ("unknown key 'pixel'", "licence is missing", "pixels is missing", "format is 'h5'", "'heart'", "'lv'"):
        assert part in str(caught.value), part


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_the_pipeline_runs_an_imported_network_and_says_so(tmp_path: Path) -> None:
    model = exported(tmp_path / "m.ts", Elsewhere())
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(ABOUT | {"format": "torchscript"}))
    words = [str(model), "--describe", str(tmp_path / "model.yaml"), "--out", str(tmp_path / "package")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["import_model", *words])
        import_model.main()
    pipeline = CardiacCine()
    pipeline.setup(dn.Runtime(device="cpu", weights=tmp_path / "package"))
    found = pipeline.run(series(stack(5)))
    assert any("imported network exported, trained on: as the shipped weights" in one for one in found.remarks)
    assert not any("three public patients" in one for one in found.remarks)
    (tmp_path / "package" / "m.ts").write_bytes(b"another")
    with pytest.raises(bundle.WeightsMismatchError, match=r"m\.ts"):
        pipeline.setup(dn.Runtime(device="cpu", weights=tmp_path / "package"))


# -- nnU-Net

#: Plays nnUNetv2_predict_from_modelfolder: answers the stacks of the self-test with their truth, in nnU-Net's labels.
PLAYER = """#!{python}
import sys
from pathlib import Path
sys.path.insert(0, {repository!r})
import numpy as np
import SimpleITK
from models.cardiac import import_model
words = sys.argv[1:]
at = lambda word: words[words.index(word) + 1]
given, out, model = Path(at("-i")), Path(at("-o")), Path(at("-m"))
assert (model / "plans.json").is_file() and at("-chk") == "checkpoint_final.pth" and at("-f") == "0"
assert at("-device") == "cpu"
out.mkdir()
truths = [import_model.self_test_stack(seed) for seed in import_model.SELF_TEST_SEEDS]
for path in sorted(given.glob("phase*_0000.nii.gz")):
    image = SimpleITK.ReadImage(str(path))
    assert np.allclose(image.GetSpacing(), (2.0, 2.0, 10.0)), image.GetSpacing()
    array, phase = SimpleITK.GetArrayFromImage(image), int(path.name[5:8])
    [truth] = [one for one in truths if one.images[phase].shape == array.shape and (one.images[phase] == array).all()]
    ours = truth.labels[phase]
    theirs = np.array({mapping!r}, np.uint8)[ours]
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(theirs), str(out / path.name.replace("_0000", "")))
"""
NNUNET: dict[str, Any] = {
    "name": "nn", "licence": "CC-BY-4.0", "training_data": "M&Ms", "format": "nnunet",
    "labels": {0: "background", 1: "lv", 2: "myo", 3: "rv"},
}  # fmt: skip


def model_folder(root: Path) -> Path:
    """nnU-Net v2's folder of a trained model."""
    folder = root / "nnUNetTrainer__nnUNetPlans__2d"
    (folder / "fold_0").mkdir(parents=True)
    about = {"channel_names": {"0": "cine"}, "labels": {"background": 0, "LV": 1}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(about))
    (folder / "plans.json").write_text(json.dumps({"original_median_spacing_after_transp": [10.0, 1.4, 1.4]}))
    (folder / "fold_0" / "checkpoint_final.pth").write_bytes(b"a pickle that this process never opens")
    return folder


def player(root: Path, mapping: list[int]) -> str:
    script = root / "predict"
    text = PLAYER.format(python=sys.executable, repository=str(REPOSITORY), mapping=mapping)
    script.write_text(text)
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return str(script)


def test_a_model_folder_of_nnunet_runs_in_its_own_process(tmp_path: Path) -> None:
    given = NNUNET | {"command": player(tmp_path, [0, 3, 2, 1])}
    dice = import_model.import_model(model_folder(tmp_path), given, tmp_path / "package", CPU)
    assert dice > 0.95, "the player knows the truth; what is missing is lost between the grids"
    listed = yaml.safe_load((tmp_path / "package" / "manifest.yaml").read_text())["files"]
    assert set(listed) == {"dataset.json", "plans.json", "fold_0/checkpoint_final.pth"}
    assert check_weights(tmp_path / "package")


def test_labels_of_nnunet_that_were_misread_are_refused(tmp_path: Path) -> None:
    given = NNUNET | {"command": player(tmp_path, [0, 1, 2, 3])}
    with pytest.raises(ForeignModelError, match="self-test"):
        import_model.import_model(model_folder(tmp_path), given, tmp_path / "package", CPU)


def test_without_nnunet_the_import_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(ForeignModelError, match="pip install nnunetv2"):
        import_model.import_model(model_folder(tmp_path), NNUNET | {"command": "no-such-program"}, tmp_path / "p", CPU)


def test_what_nnunet_says_when_it_fails_is_kept(tmp_path: Path) -> None:
    script = tmp_path / "predict"
    script.write_text("#!/bin/sh\necho 'no such trainer' >&2\nexit 3\n")
    script.chmod(0o755)
    with pytest.raises(ForeignModelError, match="ended with 3: no such trainer"):
        import_model.import_model(model_folder(tmp_path), NNUNET | {"command": str(script)}, tmp_path / "p", CPU)


def test_a_folder_that_is_no_model_of_nnunet_is_named(tmp_path: Path) -> None:
    folder = model_folder(tmp_path)
    (folder / "plans.json").unlink()
    with pytest.raises(ForeignModelError, match=r"plans\.json missing"):
        nnunet.parts(folder)
