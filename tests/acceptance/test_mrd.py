"""Raw k-space through a running node: images to the scanner and to the archive; identity, crashes, lost scanners."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
import pytest
import yaml
from pydicom import Dataset, dcmread
from sqlalchemy import select

from dicomnode.cli.mrd_send import Player
from dicomnode.dicom import RAW_DATA_STORAGE
from dicomnode.domain import JobState
from dicomnode.store import schema
from dicomnode.store.raw import RawStore
from dicomnode.volumes.raw import part_of
from tests import factories
from tests.acceptance.harness import RunningNode, cli, destination, free_port, rule
from tests.conftest import REPOSITORY
from tests.mrd_factory import Scan
from tests.peers.pacs import Pacs
from tests.peers.scanner import SUBJECT, opening, readouts

SCAN = Scan(
    matrix=(64, 48), fov=(256.0, 192.0), coils=4, slices=3, noise=0.005, position=(5.0, -12.0, 30.0),
    read_dir=(0.0, 1.0, 0.0), phase_dir=(0.0, 0.0, -1.0), slice_dir=(-1.0, 0.0, 0.0),
)  # fmt: skip
RULE = rule("raw k-space", when={"SOPClassUID": RAW_DATA_STORAGE}, pipeline="recon")
STUDY = "1.2.840.99.7"


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[Pacs]:
    with Pacs(tmp_path / "pacs") as made:
        yield made


class ScanningNode(RunningNode):
    """A node whose MRD listener listens too."""

    starts = 0

    def start(self, fault: str = "", limit_s: float = 60) -> None:
        super().start(fault, limit_s)
        self.starts += 1
        self.until(lambda: self.actions()["node_up"] == self.starts, limit_s)


def node_of(tmp_path: Path, pacs: Pacs, pipeline: str = "tests.mrd_toys:Fourier", **mrd: Any) -> ScanningNode:
    return ScanningNode(
        tmp_path / "node",
        pipelines={"recon": {"class": pipeline}},
        rules=[RULE],
        destinations={"PACS": destination(pacs.port)},
        mrd={"port": free_port(), "configs": {"default": {"pipeline": "recon"}}, "deadline_s": 120, **mrd},
    )


def mrd_port(node: RunningNode) -> int:
    return int(yaml.safe_load(node.file.read_text())["mrd"]["port"])


def mrd_send(node: RunningNode, file: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dicomnode", "mrd-send", str(file), "--port", str(mrd_port(node)), *words],
        capture_output=True, text=True, timeout=180, check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "200"},
    )  # fmt: skip


def raw_series(node: RunningNode) -> list[str]:
    with node.database.read() as connection:
        table = schema.instance
        rows = connection.execute(table.select().where(table.c.sop_class_uid == RAW_DATA_STORAGE))
        return sorted({row.series_uid for row in rows})


def raw_path(node: RunningNode, series_uid: str) -> str:
    with node.database.read() as connection:
        table = schema.instance
        return str(connection.scalar(select(table.c.path).where(table.c.series_uid == series_uid)))


def delivered(pacs: Pacs) -> list[Dataset]:
    found = [dcmread(item.path) for item in pacs.received]
    return sorted(found, key=lambda ds: int(ds.InstanceNumber))


def test_a_scan_comes_back_to_the_scanner_and_goes_to_the_archive(tmp_path: Path, pacs: Pacs) -> None:
    file = SCAN.write(tmp_path / "scan.h5", SUBJECT)
    with node_of(tmp_path, pacs) as node:
        done = mrd_send(node, file, "--out", str(tmp_path / "images.h5"), "--timeout", "150")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "3 image(s), then CLOSE" in done.stdout
        [series] = node.until(lambda: raw_series(node))
        node.wait_closed(series, limit_s=120)
        assert node.stop() == 0
    log = node.log.read_text()
    assert "KS-1" not in log and "KSPACE" not in log
    images = delivered(pacs)
    assert len(images) == 3 and {ds.Modality for ds in images} == {"MR"}
    assert {(ds.PatientID, str(ds.StudyInstanceUID)) for ds in images} == {("KS-1", STUDY)}
    with ismrmrd.Dataset(str(tmp_path / "images.h5"), create_if_needed=False) as answered:
        for number, ds in enumerate(images):
            live = answered.read_image("image_1", number)
            # Same pixels, same place, said in two formats.
            assert np.array_equal(ds.pixel_array, live.data[0, 0])
            rows, columns = ds.pixel_array.shape
            dy, dx = (float(value) for value in ds.PixelSpacing)
            along, down = (
                np.array(ds.ImageOrientationPatient[:3], float),
                np.array(ds.ImageOrientationPatient[3:], float),
            )
            centre = np.array(ds.ImagePositionPatient, float) + columns // 2 * dx * along + rows // 2 * dy * down
            assert np.allclose(centre, live.position, atol=0.01)


@pytest.mark.slow
def test_phase_images_are_the_same_for_the_scanner_and_in_both_forms_for_the_archive(
    tmp_path: Path, pacs: Pacs
) -> None:
    file = SCAN.write(tmp_path / "scan.h5", SUBJECT)
    options = {"images": ["magnitude", "phase"], "learned": False}
    to = {"PACS": destination(pacs.port), "RESEARCH": {**destination(pacs.port), "reconstructions": "enhanced"}}
    node = ScanningNode(
        tmp_path / "node",
        pipelines={"recon": {"class": "pipelines.mr_recon:MRReconstruction"}},
        rules=[{**RULE, "options": options, "send_to": list(to)}],
        destinations=to,
        mrd={
            "port": free_port(),
            "configs": {"default": {"pipeline": "recon", "options": options}},
            "deadline_s": 120,
        },
    )
    with node:
        done = mrd_send(node, file, "--out", str(tmp_path / "images.h5"), "--timeout", "200")
        assert done.returncode == 0 and "6 image(s), then CLOSE" in done.stdout, done.stdout + done.stderr
        [series] = node.until(lambda: raw_series(node))
        node.wait_closed(series, limit_s=200)
    found = [dcmread(item.path) for item in pacs.received]
    assert len(found) == 8, "three planes and one object of both"
    with ismrmrd.Dataset(str(tmp_path / "images.h5"), create_if_needed=False) as answered:
        for name, component, kind in (
            ("image_1", "M", ismrmrd.IMTYPE_MAGNITUDE),
            ("image_2", "P", ismrmrd.IMTYPE_PHASE),
        ):
            those = [ds for ds in found if ds.ImageType[2] == component]
            (whole,) = (ds for ds in those if "NumberOfFrames" in ds)
            singles = sorted((ds for ds in those if ds is not whole), key=lambda ds: int(ds.InstanceNumber))
            for number, (single, frame) in enumerate(zip(singles, whole.pixel_array, strict=True)):
                live = answered.read_image(name, number)
                assert live.image_type == kind
                if component == "P":
                    assert float(live.meta["WindowWidth"]) == float(single.WindowWidth) == 8192
                assert np.array_equal(live.data[0, 0], single.pixel_array) and np.array_equal(frame, single.pixel_array)
    phase = next(ds for ds in found if ds.ImageType[2] == "P" and "NumberOfFrames" not in ds)
    mapping = phase.RealWorldValueMappingSequence[0]
    radians = phase.pixel_array * mapping.RealWorldValueSlope
    assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "rad"
    assert -3.1417 < radians.min() < -1 and 1 < radians.max() < 3.1417


def test_without_identity_it_is_held_then_named_and_delivered(tmp_path: Path, pacs: Pacs) -> None:
    file = SCAN.write(tmp_path / "scan.h5")
    [image] = factories.ct_series(n=1, patient_id="KS-9")
    [like] = factories.write_series(tmp_path / "like", [image])
    with node_of(tmp_path, pacs) as node:
        done = mrd_send(node, file, "--timeout", "150")
        assert done.returncode == 0 and "names no patient" in done.stderr
        [item] = node.until(lambda: [one for one in RawStore(node.data).items() if one.held])
        assert "neither patient nor study" in cli(node, "raw", "list")
        assert not pacs.received and not raw_series(node)
        node.stop()
        node.start()
        assert item.name in cli(node, "raw", "show", item.name), "held survives a restart"
        assert "belongs to study" in cli(node, "raw", "identify", item.name, "--like", str(like))
        [series] = node.until(lambda: raw_series(node))
        node.wait_closed(series, limit_s=120)
        cli(node, "raw", "list")
    assert {(ds.PatientID, ds.StudyInstanceUID) for ds in delivered(pacs)} == {("KS-9", image.StudyInstanceUID)}


def test_a_measurement_nobody_wants_is_removed(tmp_path: Path, pacs: Pacs) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    with node_of(tmp_path, pacs, watch=[{"folder": str(folder), "settle_s": 0.5}]) as node:
        SCAN.write(tmp_path / "scan.bin").rename(folder / "scan.h5")
        [item] = node.until(lambda: [one for one in RawStore(node.data).items() if one.held])
        assert (folder / "done" / "scan.h5").is_file()
        assert "is deleted" in cli(node, "raw", "remove", item.name)
        cli(node, "raw", "show", item.name, code=3)
        assert not list(RawStore(node.data).items())


@pytest.mark.slow
def test_a_node_killed_in_mid_session_loses_nothing_it_was_given(tmp_path: Path, pacs: Pacs) -> None:
    file = SCAN.write(tmp_path / "scan.h5", SUBJECT)
    node = node_of(tmp_path, pacs)
    try:
        node.start()
        player = Player("127.0.0.1", mrd_port(node))
        lines = readouts(SCAN)
        player.send(opening(SCAN) + b"".join(lines[:100]))
        store = RawStore(node.data)
        wanted = len(opening(SCAN)) + sum(map(len, lines[:100]))
        node.until(lambda: store.journals() and store.journals()[0].stat().st_size == wanted)
        node.kill()
        player.close()
        node.start()
        [series] = node.until(lambda: raw_series(node))
        node.wait_closed(series, limit_s=120)
        assert not part_of(dcmread(node.data / "spool" / raw_path(node, series))).complete
        # What CLOSE was answered to is there, wherever the node dies after it.
        for known, fault in enumerate(("raw-placed", "before-route-commit"), 2):
            node.kill()
            node.start(fault=fault)
            done = mrd_send(node, file, "--timeout", "150")
            assert done.returncode == 0, done.stdout + done.stderr
            time.sleep(3)
            node.kill()
            node.start()  # all is done before the next fault, or what is left over from this one would meet it
            found = node.until(lambda known=known: len(raw_series(node)) == known and raw_series(node))
            for one in found:
                node.wait_closed(one, limit_s=120)
        assert not list(store.items()) and not store.journals()
        assert node.stop() == 0
    finally:
        node.kill()


def test_a_listener_that_dies_is_started_again(tmp_path: Path, pacs: Pacs) -> None:
    file = SCAN.write(tmp_path / "scan.h5", SUBJECT)
    with node_of(tmp_path, pacs) as node:
        pid = next(
            int(entry.name)
            for entry in Path("/proc").iterdir()
            if entry.name.isdigit()
            and b"dicomnode.receive.mrd" in (entry / "cmdline").read_bytes()
            and _parent(int(entry.name)) == node.process.pid  # type: ignore[union-attr]
        )
        os.kill(pid, signal.SIGKILL)
        node.until(lambda: node.actions()["mrd_ready"] == 2)
        assert mrd_send(node, file, "--timeout", "150").returncode == 0


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.slow
def test_the_shipped_pipeline_reconstructs_a_generated_phantom(tmp_path: Path, pacs: Pacs) -> None:
    file = tmp_path / "phantom.h5"
    made = subprocess.run(
        ["ismrmrd_generate_cartesian_shepp_logan", "-o", str(file), "-m", "64", "-c", "4"],
        capture_output=True, check=False,
    )  # fmt: skip
    if made.returncode:
        pytest.skip("ismrmrd-tools are not installed")
    with node_of(tmp_path, pacs, pipeline="pipelines.mr_recon:MRReconstruction") as node:
        done = mrd_send(node, file, "--timeout", "200")
        # Its direction cosines are zero: the pipeline refuses to place it, and the scanner gets a plain image.
        assert done.returncode == 0, done.stdout + done.stderr
        assert "plain reconstruction" in done.stderr and "1 image(s), then CLOSE" in done.stdout
        scan = SCAN.write(tmp_path / "scan.h5", SUBJECT)
        done = mrd_send(node, scan, "--timeout", "200")
        assert done.returncode == 0 and "plain" not in done.stderr, done.stdout + done.stderr
        [series] = node.until(lambda: raw_series(node))
        job = node.wait_closed(series, limit_s=200)[0]
        assert job.state is JobState.CLOSED
    assert len(delivered(pacs)) == 3
