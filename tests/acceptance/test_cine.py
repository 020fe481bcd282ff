"""A cine through the running node into a real Orthanc: a series per slice, and a real patient with his scouts."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from highdicom.seg import Segmentation
from pydicom import dcmread
from pydicom.uid import MRImageStorage

from dicomnode.config import Destination
from dicomnode.dispatch import send_files
from tests import cine, factories
from tests.acceptance.harness import RunningNode, cli, destination, rule
from tests.acceptance.test_cli import run
from tests.acceptance.test_results_kit import KOS, SC, SEG, SR3D, classes
from tests.peers.orthanc import Orthanc

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "mr-cardiac-scd"
PIPELINE = {"beating": {"class": "tests.toys:Beating"}}
KIT = {SEG: 2, SR3D: 3, KOS: 1, SC: 1}


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Any]:
    made: list[tuple[Orthanc, RunningNode]] = []

    def start(profile: dict[str, Any] | None = None, **sections: Any) -> tuple[Orthanc, RunningNode]:
        pacs = Orthanc(tmp_path)
        pacs.start()
        to = {"PACS": destination(pacs.port, "ORTHANC") | (profile or {})}
        node = RunningNode(tmp_path / "node", pipelines=PIPELINE, destinations=to, **sections)
        made.append((pacs, node))
        node.start()
        return pacs, node

    yield start
    for pacs, node in made:
        node.__exit__()
        pacs.stop()


def send(node: RunningNode, paths: list[Path]) -> None:
    here = Destination(ae_title="AINODE", host="127.0.0.1", port=node.port)
    assert not [one.problem for one in send_files(here, "MR1", paths) if one.problem]


def test_a_series_per_slice_becomes_one_job_whose_masks_lie_on_their_phases(tmp_path: Path, started: Any) -> None:
    when = {"Modality": "MR", "series.phases": {"min": 8}}
    rules = [rule("cine", when, pipeline="beating", scope="study")]
    pacs, node = started(rules=rules, assemble={"study_quiet_s": 4})
    datasets = cine.series_per_slice(7, 8)
    paths = factories.write_series(tmp_path / "sent", [*datasets, *cine.scouts()])
    send(node, paths)
    (job,) = node.wait_closed(str(datasets[0].StudyInstanceUID))
    assert job.inputs == sorted(ds.SOPInstanceUID for ds in datasets)
    there = pacs.datasets()
    assert classes(there) == KIT
    times = {ds.SOPInstanceUID: round(float(ds.TriggerTime)) for ds in datasets}
    painted = {}
    for ds in there:
        if ds.SOPClassUID == SEG:
            seg = Segmentation.from_dataset(ds)
            series = ds.ReferencedSeriesSequence
            sources = [one.ReferencedSOPInstanceUID for item in series for one in item.ReferencedInstanceSequence]
            voxels = seg.get_pixels_by_source_instance(
                sources, combine_segments=True, assert_missing_frames_are_empty=True
            )
            assert np.count_nonzero(voxels)
            painted[ds.SeriesDescription] = {times[uid] for uid in sources}
    assert painted == {"AI heart, ED, RUO": {10}, "AI heart, ES, RUO": {430}}
    assert f"job {job.id}: beating, closed" in cli(node, "series", str(datasets[0].SeriesInstanceUID))
    said = cli(node, "route", "--explain", str(tmp_path / "sent"))
    assert "cine makes one job of all it wants (7 series here), 4 s after the last image of the study" in said


def test_phases_stand_as_series_of_their_own_where_the_profile_asks_for_them(tmp_path: Path, started: Any) -> None:
    rules = [rule("cine", {"Modality": "MR"}, pipeline="beating")]
    pacs, node = started(rules=rules, profile={"objects": ["phases", "summary"]})
    datasets = cine.one_series(7, 8)
    send(node, factories.write_series(tmp_path / "sent", datasets))
    (job,) = node.wait_closed(str(datasets[0].SeriesInstanceUID))
    there = pacs.datasets()
    assert classes(there) == {MRImageStorage: 14, SEG: 2, SR3D: 1, SC: 1}
    pixels = {str(ds.SOPInstanceUID): ds.pixel_array for ds in datasets}
    phase_of = {}
    for ds in there:
        if ds.SOPClassUID == MRImageStorage:
            origin = str(ds.SourceImageSequence[0].ReferencedSOPInstanceUID)
            np.testing.assert_array_equal(ds.pixel_array, pixels[origin])
            phase_of[str(ds.SeriesInstanceUID)] = ds.SeriesDescription.split("[")[1][:2]
    on = {ds.SeriesDescription[-7:-5]: str(ds.ReferencedSeriesSequence[0].SeriesInstanceUID)
          for ds in there if ds.SOPClassUID == SEG}  # fmt: skip
    assert {word: phase_of[uid] for word, uid in on.items()} == {"ED": "ED", "ES": "ES"}
    assert "18 objects for PACS" in cli(node, "jobs", "show", str(job.id))


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_a_real_patient_whose_uids_begin_with_zeros(tmp_path: Path, started: Any) -> None:
    archive = DATA / "SCD0000101.tar.xz"
    if not archive.exists():
        pytest.skip("shared data is absent")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    folder = tmp_path / "SCD0000101"
    paths = [*folder.glob("sax/*.dcm"), *(one for one in folder.glob("localizers/**/*") if one.is_file())]
    rules = [rule("cine", {"Modality": "MR"}, pipeline="beating")]
    pacs, node = started(rules=rules, receive={"leading_zero_uids": "accept"})
    send(node, paths)
    (job,) = node.wait_closed(str(dcmread(paths[0], stop_before_pixels=True).SeriesInstanceUID), limit_s=180)
    assert any("leading zeros" in note for note in job.notes)
    assert any("3 times" in note and "another direction" in note for note in job.notes)  # his scouts
    assert classes(pacs.datasets()) == KIT


def test_one_runs_it_by_hand_on_a_folder_of_series(tmp_path: Path) -> None:
    factories.write_series(tmp_path / "exam", [*cine.series_per_slice(7, 8), *cine.scouts()])
    words = ("run", str(tmp_path / "exam"), "--pipeline", "tests.toys:Beating", "--out", str(tmp_path / "out"))
    done = run(*words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("study ") and "toy-beating 1.0.0 made 7 objects" in done.stdout
