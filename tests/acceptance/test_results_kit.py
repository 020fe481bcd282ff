"""Findings through the running node into a real Orthanc: segmentation, reports, marks, key images and summary page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset

from dicomnode.config import Destination
from dicomnode.dispatch import send_files
from dicomnode.domain import JobState
from dicomnode.store import deliveries, events
from dicomnode.volumes.series import load
from tests import phantoms
from tests.acceptance.harness import RunningNode, cli, destination, rule
from tests.acceptance.test_orthanc import validated
from tests.factories import ct_series, write_series
from tests.peers.orthanc import Orthanc

SEG, LABELMAP = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"
GSPS, MAP = "1.2.840.10008.5.1.4.1.1.11.1", "1.2.840.10008.5.1.4.1.1.30"
SR3D, KOS, SC = "1.2.840.10008.5.1.4.1.1.88.34", "1.2.840.10008.5.1.4.1.1.88.59", "1.2.840.10008.5.1.4.1.1.7"


def site(tmp_path: Path, *, says: str = "bleeding", settings: dict[str, Any] | None = None, **profile: Any) -> Any:
    pacs = Orthanc(tmp_path, settings=settings)
    pacs.start()
    node = RunningNode(
        tmp_path / "node",
        rules=[rule(pipeline="bleeding")],
        pipelines={"bleeding": {"class": "tests.toys:Bleeding", "options": {"says": says}}},
        destinations={"PACS": destination(pacs.port, "ORTHANC") | profile},
    )
    node.start()
    return pacs, node


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Any]:
    made: list[tuple[Orthanc, RunningNode]] = []

    def start(**more: Any) -> tuple[Orthanc, RunningNode]:
        made.append(site(tmp_path, **more))
        return made[-1]

    yield start
    for pacs, node in made:
        node.__exit__()
        pacs.stop()


def send(node: RunningNode, folder: Path, datasets: list[Dataset]) -> list[Path]:
    paths = write_series(folder, datasets)
    here = Destination(ae_title="AINODE", host="127.0.0.1", port=node.port)
    assert not [one.problem for one in send_files(here, "CT1", paths) if one.problem]
    return paths


def classes(datasets: list[Dataset]) -> Counter[str]:
    return Counter(str(ds.SOPClassUID) for ds in datasets)


def texts(ds: Dataset) -> str:
    """Everything a report says, flattened."""
    found = []
    for element in ds.iterall():
        if element.VR not in ("SQ", "OB", "OW"):
            found.append(str(element.value))
    return " ".join(found)


def test_a_positive_result_arrives_whole_and_valid(tmp_path: Path, started: Any) -> None:
    pacs, node = started()
    datasets = ct_series(8, rows=64, columns=64, values={"IssuerOfPatientID": "HOSPITAL"})
    sources = send(node, tmp_path / "sent", datasets)
    job = node.wait_closed(str(datasets[0].SeriesInstanceUID))[0]
    there = pacs.datasets()
    assert classes(there) == {SEG: 1, SR3D: 2, KOS: 1, SC: 1}
    results = write_series(tmp_path / "results", there)
    validated(sources, results)
    for ds in there:
        first = datasets[0]
        assert (ds.PatientID, ds.IssuerOfPatientID, ds.StudyInstanceUID) == (
            first.PatientID, first.IssuerOfPatientID, first.StudyInstanceUID,
        )  # fmt: skip
        assert ds.ContentQualification == "RESEARCH" and "RUO" in ds.SeriesDescription
    [seg] = [ds for ds in there if ds.SOPClassUID == SEG]
    assert [one.SegmentLabel for one in seg.SegmentSequence] == ["Intraparenchymal hemorrhage", "Subdural hemorrhage"]
    assert seg.pixel_array.any()
    assert len({str(ds.SeriesInstanceUID) for ds in there}) == 5, "one object a series: OHIF loads only the last"
    shown = cli(node, "jobs", "show", str(job.id))
    assert "Intracranial hemorrhage: present, score 0.97, urgent within minutes" in shown
    assert "1 binary segmentation" in shown and "1 marks" in shown


def test_a_negative_result_is_said_out_loud(tmp_path: Path, started: Any) -> None:
    pacs, node = started(says="not_bleeding")
    datasets = ct_series(8, rows=64, columns=64)
    sources = send(node, tmp_path / "sent", datasets)
    node.wait_closed(str(datasets[0].SeriesInstanceUID))
    there = pacs.datasets()
    assert classes(there) == {SR3D: 1, SC: 1}
    validated(sources, write_series(tmp_path / "results", there))
    [report] = [ds for ds in there if ds.SOPClassUID == SR3D]
    assert "Clinical finding absent" in texts(report) and "272519000" in texts(report)


def test_what_cannot_be_evaluated_is_never_called_absent(tmp_path: Path, started: Any) -> None:
    pacs, node = started(says="not_evaluated")
    datasets = ct_series(8, rows=64, columns=64)
    send(node, tmp_path / "sent", datasets)
    node.wait_closed(str(datasets[0].SeriesInstanceUID))
    [report] = [ds for ds in pacs.datasets() if ds.SOPClassUID == SR3D]
    said = texts(report)
    assert "373068000" in said and "streaks of metal" in said
    assert "272519000" not in said and "Clinical finding absent" not in said


def test_an_archive_that_refuses_label_maps_gets_the_binary_segmentation(tmp_path: Path, started: Any) -> None:
    pacs, node = started(settings={"UnknownSopClassAccepted": False}, segmentation="labelmap")
    datasets = ct_series(8, rows=64, columns=64)
    send(node, tmp_path / "sent", datasets)
    job = node.wait_closed(str(datasets[0].SeriesInstanceUID))[0]
    there = pacs.datasets()
    assert classes(there) == {SEG: 1, SR3D: 2, KOS: 1, SC: 1}
    [seg] = [ds for ds in there if ds.SOPClassUID == SEG]
    reports = [ds for ds in there if ds.SOPClassUID in (SR3D, KOS)]
    assert sum(str(seg.SOPInstanceUID) in texts(ds) for ds in reports) == 2, "report and key images name what is there"
    with node.database.read() as connection:
        assert "delivery_fell_back" in [one.action for one in events.of(connection, job_id=job.id)]


def test_an_archive_that_knows_label_maps_gets_one(tmp_path: Path, started: Any) -> None:
    pacs, node = started(settings={"UnknownSopClassAccepted": True}, segmentation="labelmap", objects=["segmentation"])
    datasets = ct_series(8, rows=64, columns=64)
    send(node, tmp_path / "sent", datasets)
    node.wait_closed(str(datasets[0].SeriesInstanceUID))
    [seg] = pacs.datasets()
    assert seg.SOPClassUID == LABELMAP
    assert set(np.unique(seg.pixel_array)) == {0, 1, 2}


def test_a_late_image_makes_a_report_that_names_the_one_it_replaces(tmp_path: Path, started: Any) -> None:
    pacs, node = started(objects=["report"])
    datasets = ct_series(8, rows=64, columns=64)
    send(node, tmp_path / "sent", datasets[:-1])
    uid = str(datasets[0].SeriesInstanceUID)
    node.wait_closed(uid)
    [first] = pacs.datasets()
    send(node, tmp_path / "late", datasets[-1:])
    node.until(lambda: len(pacs.uids()) == 2)
    [second] = [ds for ds in pacs.datasets() if ds.SOPInstanceUID != first.SOPInstanceUID]
    [study] = second.PredecessorDocumentsSequence
    named = study.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    assert named == first.SOPInstanceUID


def test_presentation_states_and_maps_go_to_whom_asks_for_them_and_to_nobody_else(tmp_path: Path) -> None:
    asks, does_not = Orthanc(tmp_path / "asks"), Orthanc(tmp_path / "does-not")
    with asks, does_not:
        wanted = ["segmentation", "presentation", "parametric_map"]
        node = RunningNode(
            tmp_path / "node",
            rules=[rule(pipeline="bleeding", send_to=["ASKS", "DOES_NOT"])],
            pipelines={"bleeding": {"class": "tests.toys:Bleeding", "options": {"says": "mapped"}}},
            destinations={
                "ASKS": destination(asks.port, "ORTHANC") | {"objects": wanted},
                "DOES_NOT": destination(does_not.port, "ORTHANC"),
            },
        )
        with node:
            datasets = ct_series(8, rows=64, columns=64, values={"IssuerOfPatientID": "HOSPITAL"})
            sources = send(node, tmp_path / "sent", datasets)
            job = node.wait_closed(str(datasets[0].SeriesInstanceUID))[0]
            shown = cli(node, "jobs", "show", str(job.id))
        assert "1 presentation" in shown and "1 parametric_map" in shown
        there = asks.datasets()
        assert classes(there) == {SEG: 1, GSPS: 1, MAP: 1}
        assert classes(does_not.datasets()) == {SEG: 1, SR3D: 2, KOS: 1, SC: 1}, "off unless the profile names them"
    validated(sources, write_series(tmp_path / "results", there))
    (state,) = [ds for ds in there if ds.SOPClassUID == GSPS]
    (one,) = [ds for ds in there if ds.SOPClassUID == MAP]
    assert len(state.GraphicAnnotationSequence) == 3 and "RUO" in state.SeriesDescription
    images = load(sources).images
    values = phantoms.mapped(images).parametric_maps[0].values
    for frame, read in zip(
        one.PerFrameFunctionalGroupsSequence,
        np.frombuffer(one.FloatPixelData, "<f4").reshape(values.shape),
        strict=True,
    ):
        place = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
        np.testing.assert_array_equal(read, values[np.linalg.norm(images.positions - place, axis=1).argmin()])


def test_an_object_that_fails_the_gate_stops_its_job_alone(tmp_path: Path, started: Any) -> None:
    pacs, node = started(says="outside_the_gate")
    bad, good = ct_series(8, rows=64, columns=64), ct_series(4, rows=64, columns=64, series="other", study="other")
    send(node, tmp_path / "bad", bad)
    uid = str(bad[0].SeriesInstanceUID)
    [job] = node.until(lambda: [one for one in node.jobs(uid) if one.state is JobState.DEAD])
    assert job.error_class == "EncodingError" and job.error
    with node.database.read() as connection:
        assert deliveries.of_job(connection, job.id) == []
    assert pacs.uids() == set()
    send(node, tmp_path / "good", good)
    node.until(lambda: node.jobs(str(good[0].SeriesInstanceUID)))
