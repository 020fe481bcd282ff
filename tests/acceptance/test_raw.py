"""Raw k-space through the running node: raw data objects in, MR images in the archive, every refusal explained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from pydicom import Dataset, dcmread
from pydicom.uid import EnhancedMRImageStorage

from dicomnode.cli import main
from dicomnode.config import Destination
from dicomnode.dicom import RAW_DATA_STORAGE
from dicomnode.dispatch import send_files
from dicomnode.domain import Completion, JobState, SeriesState
from tests import factories
from tests.acceptance.harness import RunningNode, cli, destination
from tests.conftest import EVALUATION_DATA
from tests.mrd_factory import Scan
from tests.peers.orthanc import Orthanc
from tests.peers.pacs import Pacs
from tests.raw_scans import like, point_scan, seen_at, wrapped

PIPELINES = {
    "plain": {"class": "tests.raw_scans:PlainRSS"},
    "mr_recon": {"class": "pipelines.mr_recon:MRReconstruction"},
}


def rule(pipeline: str, **when: Any) -> dict[str, Any]:
    when = when or {"series.raw": "mrd"}
    return {"name": f"k-space, {pipeline}", "when": when, "pipeline": pipeline, "send_to": ["PACS"]}


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    with Orthanc(tmp_path) as made:
        yield made


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[Pacs]:
    with Pacs(tmp_path / "pacs") as made:
        yield made


@pytest.fixture
def refusing(tmp_path: Path) -> Iterator[Pacs]:
    """An archive that does not know Enhanced MR."""
    with Pacs(tmp_path / "old", refuse=(EnhancedMRImageStorage,)) as made:
        yield made


def send(node: RunningNode, paths: list[Path]) -> str:
    """Send the parts; return their series."""
    here = Destination(ae_title="AINODE", host="127.0.0.1", port=node.port)
    outcomes = send_files(here, "MR1", paths)
    assert not [one.problem for one in outcomes if one.problem]
    return str(dcmread(paths[0], specific_tags=["SeriesInstanceUID"]).SeriesInstanceUID)


def images(archive: Orthanc) -> list[list[Dataset]]:
    """Everything the archive has, by series."""
    return [archive.datasets(one["MainDicomTags"]["SeriesInstanceUID"]) for one in archive.series()]


@pytest.mark.slow
def test_a_scanners_own_file_becomes_images_in_the_archive(tmp_path: Path, orthanc: Orthanc) -> None:
    source = EVALUATION_DATA / "mr-twix-siemens" / "gre.dat"
    if not source.is_file():
        pytest.skip("evaluation data mr-twix-siemens is not beside the checkout")
    pytest.importorskip("twixtools")
    image, file = tmp_path / "image.dcm", tmp_path / "scan.h5"
    like(AccessionNumber="A-17").save_as(image, enforce_file_format=True)
    to, only = {"PACS": destination(orthanc.port, "ORTHANC")}, {"mr_recon": PIPELINES["mr_recon"]}
    with RunningNode(tmp_path / "node", rules=[rule("mr_recon")], destinations=to, pipelines=only) as node:
        assert main(["mrd-convert", str(source), str(file)]) == 0
        peer = f"AINODE@127.0.0.1:{node.port}"
        said = cli(node, "wrap", str(file), "--like", str(image), "--send", peer, "--out", str(tmp_path / "raw"))
        assert "1 of 1 accepted by AINODE" in said
        (raw,) = [dcmread(path) for path in (tmp_path / "raw").iterdir()]
        uid = str(raw.SeriesInstanceUID)
        job = node.wait_closed(uid, limit_s=300)[0]
        one = node.series(uid)
        assert one is not None and one.completion is Completion.COUNTED and "1 of 1 part" in one.proof
        explained = cli(node, "route", "--explain", uid)
        assert "series.raw: wants mrd, saw mrd" in explained and "MATCHES" in explained
        assert node.stop() == 0
        log = node.log.read_text()
    ((made,),) = images(orthanc)
    assert made.SOPClassUID == "1.2.840.10008.5.1.4.1.1.4", "the raw object stays here"
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "StudyInstanceUID", "AccessionNumber"):
        assert made.get(keyword) == raw.get(keyword), keyword
    assert made.SourceInstanceSequence[0].ReferencedSOPInstanceUID == raw.SOPInstanceUID
    assert made.FrameOfReferenceUID == "1.3.12.2.1107.5.2.19.45385.1.20210622151635693.0.0.0", "the scanner's own"
    assert (made.Rows, made.Columns, float(made.EchoTime)) == (160, 160, 3.0)
    assert "mr-reconstruction" in str(made.SoftwareVersions) and job.state is JobState.CLOSED
    pixels = made.pixel_array.astype(float)
    body = pixels > 0.3 * np.percentile(pixels, 98)
    assert 0.65 < body.sum() * 1.25**2 / (np.pi * 95**2) < 1.0, "the phantom, 190 mm across"
    assert str(raw.PatientID) not in log and str(raw.PatientName).split("^")[0] not in log


@pytest.mark.slow
def test_points_are_where_they_were_in_the_archives_images(tmp_path: Path, orthanc: Orthanc) -> None:
    scans = [point_scan(-41.3, 25.7), point_scan(36.9, -12.2, matrix=(63, 47))]
    to = {"PACS": destination(orthanc.port, "ORTHANC")}
    rules = [rule("plain"), rule("mr_recon")]
    with RunningNode(tmp_path / "node", rules=rules, destinations=to, pipelines=PIPELINES) as node:
        for number, (scan, _) in enumerate(scans):
            file = scan.write(tmp_path / f"{number}.h5")
            uid = send(node, wrapped(tmp_path / f"raw{number}", file, like(StudyInstanceUID=f"1.2.3.{number}")))
            node.wait_closed(uid, number=2, limit_s=300)
    found = images(orthanc)
    assert len(found) == 4
    for (image,) in found:
        scan, where = scans[int(str(image.StudyInstanceUID)[-1])]
        assert np.linalg.norm(seen_at(image, scan) - where) < 0.01, image.SeriesDescription


@pytest.mark.slow
def test_enhanced_objects_in_the_archive_are_the_single_frame_series_pixel_for_pixel(
    tmp_path: Path, orthanc: Orthanc, refusing: Pacs
) -> None:
    one = destination(orthanc.port, "ORTHANC")
    to = {
        "PACS": one,
        "RESEARCH": {**one, "reconstructions": "enhanced"},
        "OLD": {**destination(refusing.port), "reconstructions": "enhanced"},
    }
    rules = [{**rule("mr_recon"), "send_to": list(to)}]
    scan = Scan(phases=3, slices=2, coils=4, noise=0.01, noise_lines=4, trigger_ticks=40, position=(5.0, -12.0, 30.0))
    only = {"mr_recon": PIPELINES["mr_recon"]}
    with RunningNode(tmp_path / "node", rules=rules, destinations=to, pipelines=only) as node:
        uid = send(node, wrapped(tmp_path / "raw", scan.write(tmp_path / "scan.h5")))
        node.wait_closed(uid, limit_s=300)
        assert node.actions()["reconstruction_fell_back"] == 1
    series = sorted(images(orthanc), key=len)
    assert [len(one) for one in series] == [1, 6] and len(refusing.stored) == 6
    ((whole,), singles) = series
    assert whole.SOPClassUID == EnhancedMRImageStorage and int(whole.NumberOfFrames) == 6
    singles.sort(key=lambda ds: int(ds.InstanceNumber))
    for single, pixels, group in zip(singles, whole.pixel_array, whole.PerFrameFunctionalGroupsSequence, strict=True):
        assert np.array_equal(single.pixel_array, pixels)
        assert group.PlanePositionSequence[0].ImagePositionPatient == single.ImagePositionPatient
        assert group.PlaneOrientationSequence[0].ImageOrientationPatient == single.ImageOrientationPatient
        delay = group.CardiacSynchronizationSequence[0].NominalCardiacTriggerDelayTime
        assert delay == float(single.TriggerTime)
    path = tmp_path / "whole.dcm"
    whole.save_as(path)
    seen = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
    assert np.array_equal(np.sort(seen.reshape(6, -1), 0), np.sort(whole.pixel_array.reshape(6, -1), 0))
    assert {ds.SOPInstanceUID for ds in singles} == {item.sop_instance_uid for item in refusing.stored}


def test_a_late_part_completes_it_and_no_silence_does(tmp_path: Path, pacs: Pacs) -> None:
    paths = wrapped(tmp_path / "raw", Scan(slices=2).write(tmp_path / "scan.h5"), part_bytes=100_000)
    assert len(paths) > 2
    only, to = {"plain": PIPELINES["plain"]}, {"PACS": destination(pacs.port)}
    with RunningNode(tmp_path / "node", rules=[rule("plain")], destinations=to, pipelines=only) as node:
        uid = send(node, paths[1:])
        # Two more seconds than the quiet period of this node: silence proves nothing here.
        later = factories.ct_series(n=3)
        node.until(lambda: node.series(uid))
        send(node, factories.write_series(tmp_path / "ct", later))
        node.wait_series(str(later[0].SeriesInstanceUID), SeriesState.UNROUTED)
        one = node.series(uid)
        assert one is not None and one.state in (SeriesState.RECEIVING, SeriesState.ASSEMBLING) and not node.jobs(uid)
        send(node, paths[:1])
        node.wait_closed(uid)
        one = node.series(uid)
        assert one is not None and one.completion is Completion.COUNTED and not one.incomplete
        assert one.proof == f"{len(paths)} of {len(paths)} parts of the raw data are here"
    assert len(pacs.received) == 2 and {item.sop_class_uid for item in pacs.received} != {RAW_DATA_STORAGE}


def test_raw_data_of_others_is_kept_and_explained(tmp_path: Path, pacs: Pacs) -> None:
    file = Scan().write(tmp_path / "scan.h5")
    (unwanted,) = wrapped(tmp_path / "one", file, series="1.2.3.1")
    (wanted,) = wrapped(tmp_path / "two", file, like(StudyInstanceUID="1.2.3.9"), series="1.2.3.2")
    for path, name in ((unwanted, "ACME"), (wanted, "Other")):
        ds = dcmread(path)
        ds.CreatorVersionUID, ds.Manufacturer = "1.2.3.4", name
        ds.save_as(path)
    rules = [rule("plain"), rule("plain", SOPClassUID="RawDataStorage", Manufacturer="Other")]
    rules[1]["name"] = "too wide"
    only, to = {"plain": PIPELINES["plain"]}, {"PACS": destination(pacs.port)}
    with RunningNode(tmp_path / "node", rules=rules, destinations=to, pipelines=only) as node:
        one = node.wait_series(send(node, [unwanted]), SeriesState.UNROUTED)
        assert "raw data of another maker" in one.reason and "dicomnode wrap" in one.reason
        uid = send(node, [wanted])
        (job,) = node.until(lambda: [job for job in node.jobs(uid) if job.state is JobState.UNSUITABLE])
        assert "Raw Data Storage of Other, whose content only its maker can read" in job.error
        assert "saw foreign" in cli(node, "route", "--explain", uid)
    assert not pacs.received


def test_damaged_raw_data_is_set_aside_disturbs_nothing_and_may_come_again(tmp_path: Path, pacs: Pacs) -> None:
    (damaged,) = wrapped(tmp_path / "bad", Scan().write(tmp_path / "bad.h5"))
    sound = damaged.read_bytes()
    raw = bytearray(damaged.read_bytes())
    raw[-1000:-900] = bytes(100)
    damaged.write_bytes(raw)
    healthy = wrapped(tmp_path / "good", Scan(seed=2, slices=3).write(tmp_path / "good.h5"))
    only, to = {"plain": PIPELINES["plain"]}, {"PACS": destination(pacs.port)}
    with RunningNode(tmp_path / "node", rules=[rule("plain")], destinations=to, pipelines=only) as node:
        uid = send(node, [damaged])
        node.wait_closed(send(node, healthy))
        (job,) = node.until(lambda: [job for job in node.jobs(uid) if job.state is JobState.UNSUITABLE])
        assert "SHA-256" in job.error and "send it again" in job.error and "quarantine" in job.error
        assert list((node.data / "results").glob("*/*.raw")) == []
        (kept,) = (node.data / "quarantine").glob("*.dcm")
        assert kept.read_bytes()[-1100:-900] == raw[-1100:-900] and kept.stem in job.error, "its bytes are not lost"
        listed = cli(node, "quarantine")
        assert "SHA-256" in listed and str(dcmread(damaged).SOPInstanceUID)[-20:] in listed.replace("\n", "")
        assert not list((node.data / "spool").glob(f"*/{dcmread(damaged).SOPInstanceUID}.dcm"))
        damaged.write_bytes(sound)
        send(node, [damaged])
        done = node.wait_closed(uid)
        assert done[0].id != job.id and done[0].inputs == job.inputs
        # A restart changes nothing: the rows say what the folders hold.
        assert node.stop() == 0
        node.start()
        assert cli(node, "quarantine").count("damaged-") == listed.count("damaged-")
    assert len(pacs.received) == 4
