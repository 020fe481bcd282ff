"""What is no short-axis cine of a beating heart is refused, always, and with a reason that names what it is.

From files to the pipeline's answer, as a job runs: by header and times where they say it, else by the pixels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from pydicom import Dataset

from dicomnode import pipeline as dn
from dicomnode.execute.executor import PipelineSpec, Request
from dicomnode.execute.perform import perform
from models.cardiac import bundle, gate, simulate
from pipelines.cardiac import CardiacCine
from tests import cine, factories, odd_hearts
from tests.odd_hearts import STEP_MM, files


@pytest.fixture(scope="module")
def pipeline() -> Iterator[CardiacCine]:
    """The pipeline as it is shipped."""
    before = torch.get_num_threads()
    made = CardiacCine()
    made.setup(dn.Runtime(device="cpu", weights=Path(bundle.__file__).parent, threads=1))
    yield made
    torch.set_num_threads(before)


def refusal(pipeline: CardiacCine, folder: Path, datasets: list[Dataset]) -> str:
    """What a job of these files says; fails if it says anything but why not."""
    request = Request(
        job_id=1, key="k", run="r", version="1", weights_digest="", incomplete=False, revision=0,
        pipeline=PipelineSpec(name="cardiac", class_name="", weights=None, options={}),
        paths=factories.write_series(folder / "in", datasets), created_at=datetime(2026, 1, 1, tzinfo=UTC),
        results=folder / "out", series_number=9000, device_serial="", default_charset="ISO_IR 100",
    )  # fmt: skip
    with pytest.raises(dn.Unsuitable) as caught:
        perform(pipeline, request, "", lambda _phase, _share: None)
    assert not list((folder / "out").glob("*/*")), "nothing was written"
    return caught.value.reason


def each_beat(images: odd_hearts.Images) -> list[Dataset]:
    """TriggerTime counted through from the first beat, 800 ms each."""
    found, slices = files(images), images.shape[1]
    for number, ds in enumerate(found):
        ds.TriggerTime = str(100 + 800 * (number // slices))
        del ds.NominalInterval, ds.HeartRate
    return found


def radial(images: odd_hearts.Images) -> list[Dataset]:
    """Long-axis planes around one axis: each its own direction."""
    found = []
    for k in range(images.shape[1]):
        turned = factories.tilted(cine.LONG_AXIS, 20.0 * k)
        one = files(images[:, k : k + 1], orientation=turned, series=f"radial {k}", name=str(k))
        found += one
    return found


def uneven(images: odd_hearts.Images) -> list[Dataset]:
    """Two phases of one plane never came."""
    slices = images.shape[1]
    return [ds for number, ds in enumerate(files(images)) if number % slices != 2 or number // slices < 6]


def heart(seed: int, slices: int = 6) -> odd_hearts.Images:
    made = simulate.simulate_stack(odd_hearts.SEED + seed, phases=8, pixels=64, pixel_mm=2.2, step_mm=STEP_MM)
    return made.images[:, :slices]


IR = {"InversionTime": "300"}
#: What it is, how it is made from a seed, and what the refusal must say.
BY_HEADER: dict[str, tuple[Callable[[int], list[Dataset]], str]] = {
    "late enhancement": (lambda s: files(odd_hearts.late_enhancement(s), values=IR), "late enhancement"),
    "late enhancement, by its sequence": (
        lambda s: files(odd_hearts.late_enhancement(s), values={"ScanningSequence": ["GR", "IR"]}), "late enhancement",
    ),
    "late enhancement, anonymised": (lambda s: files(odd_hearts.late_enhancement(s)), "phases"),
    "inversion times": (lambda s: files(odd_hearts.inversion_times(s), values=IR), "inversion-prepared"),
    "perfusion, one time after the R wave": (
        lambda s: files(odd_hearts.perfusion(s), values={"TriggerTime": "120"}), "phases|perfusion",
    ),
    "perfusion, counted from the first beat": (lambda s: each_beat(odd_hearts.perfusion(s)), "longer than a heartbeat"),
    "perfusion, prepared": (
        lambda s: files(odd_hearts.perfusion(s), values={"InversionTime": "100"}), "perfusion",
    ),
    "phase contrast by ImageType": (
        lambda s: files(odd_hearts.velocity(s), values={"ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"]}),
        "phase contrast",
    ),
    "phase contrast by SequenceName": (
        lambda s: files(odd_hearts.velocity(s), values={"SequenceName": "fl2d1_v150in"}), "phase contrast",
    ),
    "three long-axis planes": (lambda s: files(odd_hearts.long_axis(s, slices=3)), "at most 3 parallel planes"),
    "radial long-axis planes": (lambda s: radial(odd_hearts.long_axis(s, slices=6)), "slices|planes|stack"),
    "unequal phases": (lambda s: uneven(heart(s)), "phases"),
    "scouts": (lambda _: cine.scouts(), "phases|cine"),
}  # fmt: skip
BY_PIXELS: dict[str, tuple[Callable[[int], list[Dataset]], str]] = {
    "inversion times, anonymised": (lambda s: files(odd_hearts.inversion_times(s)), "an inversion recovers"),
    "velocities, anonymised": (
        lambda s: files(odd_hearts.velocity(s), rescaled=True), "below zero: velocities",
    ),
    "velocities without their zero": (lambda s: files(odd_hearts.velocity(s)), "jump from phase to phase: velocities"),
    "empty": (lambda _: files(np.zeros((8, 6, 64, 64), np.float32)), "empty"),
    "one value": (lambda _: files(np.full((8, 6, 64, 64), 700.0, np.float32)), "empty"),
}  # fmt: skip
BY_CONTENT: dict[str, tuple[Callable[[int], list[Dataset]], str]] = {
    "late enhancement again and again": (
        lambda s: files(odd_hearts.late_enhancement(s, phases=8)), "not a short-axis stack|no contraction",
    ),
    "perfusion, disguised as one beat": (
        lambda s: files(odd_hearts.perfusion(s, beats=16)), "not a short-axis stack|contrast agent|no contraction",
    ),
    "horizontal long-axis stack": (
        lambda s: files(odd_hearts.long_axis(s), step=8.0), "not a short-axis stack|no contraction",
    ),
    "vertical long-axis stack": (
        lambda s: files(odd_hearts.long_axis(s, horizontal=False), step=8.0), "not a short-axis stack|no contraction",
    ),
    "phantom": (lambda s: files(odd_hearts.phantom(s, "phantom")), "not a short-axis stack|no contraction"),
    "pulsating phantom": (
        lambda s: files(odd_hearts.phantom(s, "pulsating_phantom")), "not a short-axis stack|no contraction",
    ),
    "noise": (lambda s: files(odd_hearts.phantom(s, "noise")), "jump from phase to phase|not a short-axis stack"),
    "heart that stands still": (lambda s: files(odd_hearts.phantom(s, "still_heart")), "no contraction|not a short"),
    "atria only": (lambda s: files(odd_hearts.phantom(s, "beside_the_heart")), "not a short-axis stack|no contraction"),
}  # fmt: skip


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("what", BY_HEADER)
def test_what_its_header_gives_away(pipeline: CardiacCine, tmp_path: Path, what: str, seed: int) -> None:
    make, reason = BY_HEADER[what]
    assert re.search(reason, refusal(pipeline, tmp_path, make(seed)))


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("what", BY_PIXELS)
def test_what_only_its_pixels_give_away(pipeline: CardiacCine, tmp_path: Path, what: str, seed: int) -> None:
    make, reason = BY_PIXELS[what]
    assert re.search(reason, refusal(pipeline, tmp_path, make(seed)))


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("what", BY_CONTENT)
def test_what_only_the_network_can_tell(pipeline: CardiacCine, tmp_path: Path, what: str, seed: int) -> None:
    make, reason = BY_CONTENT[what]
    assert re.search(reason, refusal(pipeline, tmp_path, make(seed)))


@pytest.mark.parametrize("seed", range(8))
def test_no_simulated_cine_is_refused_by_the_gates(seed: int) -> None:
    made = simulate.simulate_stack(simulate.TEST_SEED + seed, phases=8, pixels=64, pixel_mm=2.8, step_mm=16.0)
    assert gate.why_not(made.images) == ""


def test_contrast_that_fills_the_cavity_is_no_blood_of_a_cine() -> None:
    images = np.full((6, 3, 20, 20), 100.0, np.float32)
    cavity = np.zeros((3, 20, 20), bool)
    cavity[1, 8:12, 8:12] = True
    assert gate.why_not_blood(images, cavity) == "" == gate.why_not_blood(images, np.zeros_like(cavity))
    images[3:, cavity] = 350.0
    assert "brightens 3.5-fold" in gate.why_not_blood(images, cavity)
