"""Loading pipelines by name, and result folders: one clear error for each way it can be wrong."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from dicomnode.errors import PipelineNotLoadable, StoreError
from dicomnode.execute import loader
from dicomnode.store.results import ResultFolder, sweep
from tests import factories, toys


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tests.nothing:Here", "cannot import tests.nothing"),
        ("tests.toys:Shfit", "did you mean Shift?"),
        ("tests.toys:SMOOTHING", "is not a dicomnode.pipeline.Pipeline"),
        ("dicomnode.pipeline:Pipeline", "sets no algorithm"),
    ],
)
def test_a_wrong_name_is_explained(name: str, said: str) -> None:
    with pytest.raises(PipelineNotLoadable, match="(?s)" + said.replace("?", r"\?")):
        loader.load_class(name)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "x" * 65}, "the algorithm name of tests.toys:Shift has 65 characters .* 1 to 64 are possible"),
        ({"name": ""}, "the algorithm name of tests.toys:Shift has 0 characters"),
        ({"name": "a\\b"}, "without a backslash"),
        ({"version": "1." * 17}, "the algorithm version of tests.toys:Shift has 34 characters .* 1 to 32"),
    ],
)
def test_a_name_that_no_object_can_hold_is_refused_when_the_pipeline_is_loaded(monkeypatch, changes, said) -> None:
    monkeypatch.setattr(toys.Shift, "algorithm", replace(toys.Shift.algorithm, **changes))
    with pytest.raises(PipelineNotLoadable, match=said):
        loader.load_class("tests.toys:Shift")


def test_every_wrong_option_is_named_at_once() -> None:
    with pytest.raises(PipelineNotLoadable) as caught:
        loader.make_options(toys.Shift, {"huu": 1, "seconds": "long"})
    assert "unknown option 'huu' (did you mean 'hu'?)" in str(caught.value)
    assert "option 'seconds' must be float, is 'long'" in str(caught.value)
    assert loader.make_options(toys.Shift, {"hu": 2}) == toys.Shift.Options(hu=2)


def test_weights_that_are_not_the_manifests_are_refused(tmp_path: Path) -> None:
    assert loader.check_weights(tmp_path) == ""
    (tmp_path / "w.safetensors").write_bytes(b"weights")
    good = hashlib.sha256(b"weights").hexdigest()
    manifest = tmp_path / "manifest.yaml"
    manifest.write_text(yaml.safe_dump({"files": {"w.safetensors": {"sha256": good}}}))
    assert len(loader.check_weights(tmp_path)) == 64
    (tmp_path / "w.safetensors").write_bytes(b"other")
    with pytest.raises(PipelineNotLoadable, match="do not match the manifest"):
        loader.check_weights(tmp_path)
    manifest.write_text("[]")
    with pytest.raises(PipelineNotLoadable, match="does not list files"):
        loader.check_weights(tmp_path)


def test_results_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    made = factories.ct_series(n=3)
    with ResultFolder(tmp_path, 7, "1-1-0") as folder:
        for index, dataset in enumerate(made):
            folder.add(dataset, role="denoised", index=index)
        assert not (tmp_path / "7" / "1-1-0").exists()
        outputs = folder.commit()
    for output in outputs:
        raw = (tmp_path / output.path).read_bytes()
        assert (output.size, output.sha256) == (len(raw), hashlib.sha256(raw).hexdigest())
    with pytest.raises(RuntimeError, match="in the middle"), ResultFolder(tmp_path, 8, "1-1-0") as folder:
        folder.add(made[0], role="denoised", index=0)
        raise RuntimeError("in the middle")
    assert not list((tmp_path / "8").iterdir())
    with pytest.raises(StoreError, match="share a name"), ResultFolder(tmp_path, 7, "1-1-0") as folder:
        folder.commit()
    assert sweep(tmp_path, {("7", "1-1-0")}) == 0
    assert sweep(tmp_path, set()) == 1
