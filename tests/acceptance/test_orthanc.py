"""The main job on real images through a real PACS: Orthanc routes, the node denoises, Orthanc has the result."""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread

from dicomnode.config import Destination
from dicomnode.dispatch import send_files
from dicomnode.domain import SeriesState
from tests.acceptance.harness import RunningNode, cli, destination
from tests.conftest import EVALUATION_DATA, REPOSITORY
from tests.peers.dcmtk import free_port, require
from tests.peers.orthanc import Orthanc

HEAD_CT = {
    "name": "head CT by content",
    # This series has no SeriesDescription and no BodyPartExamined.
    "when": {
        "Modality": "CT", "SeriesDescription": "absent", "StudyDescription": {"matches": "(?i)head"},
        "series.orientation": "axial", "series.slices": {"min": 20}, "ContrastBolusAgent": "absent",
    },
    "pipeline": "ct_denoise",
    "send_to": ["PACS"],
}  # fmt: skip
DENOISE = {"ct_denoise": {"class": "pipelines.ct_denoise:CTDenoising"}}


def unpacked(archive: Path, folder: Path) -> list[Path]:
    if not archive.is_file():
        pytest.skip(f"evaluation data {archive.parent.name} is not beside the checkout")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Orthanc, RunningNode]]:
    """An Orthanc that auto-routes to a node that answers back to it."""
    node_port = free_port()
    lua = {"LuaScripts": [str(REPOSITORY / "deploy" / "orthanc-autoroute.lua")], "StableAge": 1}
    with Orthanc(tmp_path, modalities={"dicomnode": ("AINODE", node_port)}, settings=lua) as pacs:
        query: dict[str, Any] = {"ae_title": "ORTHANC", "host": "127.0.0.1", "port": pacs.port}
        sources = [{"ae_title": "ORTHANC", "addresses": ["127.0.0.1"], "query": query}]
        node = RunningNode(
            tmp_path / "node", rules=[HEAD_CT], sources=sources, pipelines=DENOISE,
            destinations={"PACS": destination(pacs.port, "ORTHANC")},
            receive={"port": node_port, "unknown_sources": "reject"}, execute={"threads": 2},
        )  # fmt: skip
        node.port = node_port
        with node:
            yield pacs, node


def validated(sources: list[Path], results: list[Path]) -> None:
    """dciodvfy on every result, dcentvfy over sources and results: no error."""
    require("dciodvfy")
    for path in results:
        said = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True, errors="replace")
        assert not [line for line in (said.stdout + said.stderr).splitlines() if line.startswith("Error")]
    said = subprocess.run(["dcentvfy", *sources, *results], capture_output=True, text=True, errors="replace")
    assert not [line for line in (said.stdout + said.stderr).splitlines() if line.startswith("Error")]


@pytest.mark.slow
def test_the_real_head_ct_is_routed_denoised_and_back_beside_the_original(
    tmp_path: Path, site: tuple[Orthanc, RunningNode]
) -> None:
    pacs, node = site
    paths = unpacked(EVALUATION_DATA / "ct-head-ge" / "ct-head-ge.tar.xz", tmp_path / "ge")
    sources = [dcmread(path) for path in paths]
    uid = str(sources[0].SeriesInstanceUID)
    outcomes = send_files(Destination(ae_title="ORTHANC", host="127.0.0.1", port=pacs.port), "CTSCANNER", paths)
    assert not [one.problem for one in outcomes if one.problem]
    job = node.wait_closed(uid, limit_s=180)[0]
    assert node.series(uid).completion == "counted"  # type: ignore[union-attr]
    explained = cli(node, "route", "--explain", uid)
    assert "MATCHES" in explained and "StudyDescription" in explained
    derived = pacs.datasets(node_result(pacs, uid))
    assert len(derived) == len(sources) == 28
    folder = tmp_path / "results"
    folder.mkdir()
    for number, dataset in enumerate(derived):
        dataset.save_as(folder / f"{number}.dcm")
    validated(paths, sorted(folder.iterdir()))
    compare(sources, derived)
    assert "tilt" in " ".join([*job.notes, explained]).lower() or "18.5" in explained
    # Its own result came back through the PACS's routing at most as far as Orthanc: no second job anywhere.
    assert len(node.jobs(uid)) == 1 and len(pacs.series()) == 2


def node_result(pacs: Orthanc, source_uid: str) -> str:
    uids = {one["MainDicomTags"]["SeriesInstanceUID"] for one in pacs.series()}
    (result,) = uids - {source_uid}
    return str(result)


def compare(sources: list[Dataset], derived: list[Dataset]) -> None:
    """Every slice pairs with its source, geometry untouched, and the noise is lower where the head is."""
    by_uid = {str(ds.SOPInstanceUID): ds for ds in sources}
    lower = 0
    for result in derived:
        source = by_uid[str(result.SourceImageSequence[0].ReferencedSOPInstanceUID)]
        for keyword in (
            "ImagePositionPatient",
            "ImageOrientationPatient",
            "PixelSpacing",
            "InstanceNumber",
            "PatientID",
        ):
            assert str(result[keyword].value) == str(source[keyword].value), keyword
        assert result.StudyInstanceUID == source.StudyInstanceUID and result.ContentQualification == "RESEARCH"
        before, after = source.pixel_array.astype(float), result.pixel_array.astype(float)
        tissue = (before > 0) & (before < 80)
        assert abs(np.median(after[tissue]) - np.median(before[tissue])) <= 1.0
        # Steps between neighbours, edges capped: noise, not anatomy.
        steps = [np.minimum(np.abs(np.diff(image, axis=1))[tissue[:, 1:]], 15).mean() for image in (before, after)]
        lower += int(steps[1] < steps[0])
    assert lower >= 0.9 * len(derived), "less noise on nearly every slice"


@pytest.mark.slow
def test_the_abdomen_with_empty_uids_is_quarantined_and_disturbs_nothing(
    tmp_path: Path, site: tuple[Orthanc, RunningNode]
) -> None:
    _, node = site
    head = unpacked(EVALUATION_DATA / "ct-head-ge" / "ct-head-ge.tar.xz", tmp_path / "ge")
    abdomen = unpacked(EVALUATION_DATA / "ct-body-siemens" / "ct-body-siemens.tar.xz", tmp_path / "siemens")
    here = Destination(ae_title="AINODE", host="127.0.0.1", port=node.port)
    assert not [one.problem for one in send_files(here, "ORTHANC", head[:14]) if one.problem]
    refused = send_files(here, "ORTHANC", abdomen)  # DCMTK's senders leave such files out; this one has their file meta
    assert {one.status for one in refused} <= {0xA900, 0xC000} and len(refused) == 20
    listed = cli(node, "quarantine", "--limit", "100")
    assert listed.count("0xA900") + listed.count("0xC000") == len(abdomen) == 20
    assert "empty" in listed or "absent" in listed
    assert not [one.problem for one in send_files(here, "ORTHANC", head[14:]) if one.problem]
    one = node.wait_series(str(dcmread(head[0]).SeriesInstanceUID), SeriesState.ROUTED, SeriesState.RECEIVING,
                           SeriesState.ASSEMBLING, SeriesState.COMPLETE)  # fmt: skip
    node.until(lambda: node.series(one.series_uid).instances == 28)  # type: ignore[union-attr]
    assert len(list((node.data / "quarantine").glob("*.dcm"))) == 20
