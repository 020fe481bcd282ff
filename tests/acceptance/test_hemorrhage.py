"""Hemorrhage detection through a real PACS: a negative said out loud, bleeds as segmentation, reports and pictures."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import generate_uid

from dicomnode.cli import simulated
from dicomnode.config import Destination
from dicomnode.dispatch import send_files
from tests.acceptance.harness import RunningNode, destination
from tests.acceptance.test_orthanc import HEAD_CT, unpacked, validated
from tests.acceptance.test_results_kit import KOS, SC, SEG, SR3D, classes, texts
from tests.conftest import EVALUATION_DATA, REPOSITORY
from tests.factories import write_series
from tests.peers.dcmtk import free_port
from tests.peers.orthanc import Orthanc

#: CID 240.
PRESENT = "52101004"
RULE = HEAD_CT | {"name": "head CT, hemorrhage", "pipeline": "hemorrhage", "priority": "urgent"}
PIPELINES = {"hemorrhage": {"class": "pipelines.hemorrhage:HemorrhageDetection"}}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Orthanc, RunningNode]]:
    """An Orthanc that auto-routes to a node that answers back to it."""
    node_port = free_port()
    lua = {"LuaScripts": [str(REPOSITORY / "deploy" / "orthanc-autoroute.lua")], "StableAge": 1}
    with Orthanc(tmp_path, modalities={"dicomnode": ("AINODE", node_port)}, settings=lua) as pacs:
        query: dict[str, Any] = {"ae_title": "ORTHANC", "host": "127.0.0.1", "port": pacs.port}
        node = RunningNode(
            tmp_path / "node", rules=[RULE], pipelines=PIPELINES,
            sources=[{"ae_title": "ORTHANC", "addresses": ["127.0.0.1"], "query": query}],
            destinations={"PACS": destination(pacs.port, "ORTHANC")},
            receive={"port": node_port, "unknown_sources": "reject"}, execute={"threads": 2},
        )  # fmt: skip
        node.port = node_port
        with node:
            yield pacs, node


def through(pacs: Orthanc, node: RunningNode, paths: list[Path], folder: Path) -> tuple[list[Dataset], list[Path]]:
    """Push a series into the PACS; return what came back to it, and the files of that."""
    source = dcmread(paths[0], stop_before_pixels=True)
    outcomes = send_files(Destination(ae_title="ORTHANC", host="127.0.0.1", port=pacs.port), "CTSCANNER", paths)
    assert not [one.problem for one in outcomes if one.problem]
    node.wait_closed(str(source.SeriesInstanceUID), limit_s=240)
    there = [
        ds for ds in pacs.datasets()
        if ds.StudyInstanceUID == source.StudyInstanceUID and ds.SeriesInstanceUID != source.SeriesInstanceUID
    ]  # fmt: skip
    return there, write_series(folder, there)


def stored(paths: list[Path]) -> list[Dataset]:
    return sorted((dcmread(path) for path in paths), key=lambda ds: float(ds.ImagePositionPatient[2]), reverse=True)


def with_values(originals: list[Dataset], hu: np.ndarray, folder: Path) -> list[Path]:
    """The series again under new UIDs, its pixels replaced by ``hu`` (slice, row, column) where they differ."""
    series, study, changed = generate_uid(), generate_uid(), []
    for original, plane in zip(originals, hu, strict=True):
        before = original.pixel_array.astype(np.float32) * float(original.RescaleSlope)
        before += float(original.RescaleIntercept)
        after = np.where(np.abs(plane - before) > 0.5, plane, before) - float(original.RescaleIntercept)
        original.PixelData = np.rint(after / float(original.RescaleSlope)).astype(original.pixel_array.dtype).tobytes()
        original.SeriesInstanceUID, original.StudyInstanceUID = series, study
        original.SOPInstanceUID = original.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        changed.append(original)
    return write_series(folder, changed)


@pytest.mark.slow
def test_the_real_head_without_blood_is_reported_and_never_flagged(
    tmp_path: Path, site: tuple[Orthanc, RunningNode]
) -> None:
    pacs, node = site
    paths = unpacked(EVALUATION_DATA / "ct-head-ge" / "ct-head-ge.tar.xz", tmp_path / "ge")
    there, files = through(pacs, node, paths, tmp_path / "results")
    assert classes(there)[SC] == 1 and classes(there)[SR3D] >= 1, "silence is never a negative"
    validated(paths, files)
    [job] = node.jobs(str(dcmread(paths[0]).SeriesInstanceUID))
    # Absent is what it ought to say; undetermined, with what it outlined, is what weights that see specks must say.
    said = {finding["presence"] for finding in job.findings}
    assert said <= {"absent", "undetermined"} and not any(finding["urgency"] for finding in job.findings)
    assert (said == {"absent"}) == (job.quality["outlined_ml"] < 1.0)
    reports = " ".join(texts(ds) for ds in there if ds.SOPClassUID == SR3D)
    assert PRESENT not in reports and "never tested on a patient with a real hemorrhage" in reports


@pytest.mark.slow
def test_bleeds_painted_into_the_real_head_come_back_as_every_kind_of_object(
    tmp_path: Path, site: tuple[Orthanc, RunningNode]
) -> None:
    paint = pytest.importorskip("models.hemorrhage.paint")
    from models.hemorrhage import cases

    pacs, node = site
    paths = unpacked(EVALUATION_DATA / "ct-head-ge" / "ct-head-ge.tar.xz", tmp_path / "ge")
    head = paint.Head.of(cases.real(EVALUATION_DATA, "ct-head-ge"))
    study = paint.intraparenchymal(head, 15.2, 0)
    originals = stored(paths)
    painted = with_values(originals, study.hu, tmp_path / "painted")
    there, files = through(pacs, node, painted, tmp_path / "results")
    assert {**classes(there), SR3D: 0} == {SEG: 1, SR3D: 0, KOS: 1, SC: 1} and classes(there)[SR3D] in (2, 3)
    validated(painted, files)
    [seg] = [ds for ds in there if ds.SOPClassUID == SEG]
    found = overlay(seg, originals)
    truth = study.truth > 0
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.7, "on the right slices, on the blood"
    reports = [ds for ds in there if ds.SOPClassUID == SR3D]
    assert any(PRESENT in texts(ds) for ds in reports) and any("SCOORD" in texts(ds) for ds in reports)


def overlay(seg: Dataset, originals: list[Dataset]) -> np.ndarray:
    """Voxels of any segment on the planes of the source, placed by the image each frame names."""
    place = {str(ds.SOPInstanceUID): index for index, ds in enumerate(originals)}
    found = np.zeros((len(originals), seg.Rows, seg.Columns), bool)
    frames = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    for frame, group in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        [image] = group.DerivationImageSequence[0].SourceImageSequence
        found[place[str(image.ReferencedSOPInstanceUID)]] |= frame > 0
    return found


@pytest.mark.slow
def test_a_simulated_head_with_blood_is_found_where_it_bleeds(
    tmp_path: Path, site: tuple[Orthanc, RunningNode]
) -> None:
    pacs, node = site
    scan: Any = simulated.head(bleeding=True)
    datasets = list(simulated.head_ct(datetime(2026, 1, 5, tzinfo=UTC), scan, patient_id="P1", name="Test^One"))
    there, files = through(pacs, node, write_series(tmp_path / "sent", datasets), tmp_path / "results")
    assert {**classes(there), SR3D: 0} == {SEG: 1, SR3D: 0, KOS: 1, SC: 1} and classes(there)[SR3D] in (2, 3)
    validated(sorted((tmp_path / "sent").iterdir()), files)
    [seg] = [ds for ds in there if ds.SOPClassUID == SEG]
    found, truth = overlay(seg, datasets), (scan.labels > 0) & (scan.labels < 255)
    clear = scan.labels != 255
    assert 2 * (found & truth).sum() / ((found & clear).sum() + truth.sum()) > 0.7
