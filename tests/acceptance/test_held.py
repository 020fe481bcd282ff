"""A result that its pipeline wants a person to see first: through the running node, and by an operator's hand."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from dicomnode.config import Destination
from dicomnode.dispatch import send_files
from dicomnode.domain import DeliveryState, JobState
from dicomnode.store import deliveries, jobs
from tests.acceptance.harness import RunningNode, cli, destination, rule
from tests.acceptance.test_orthanc import validated
from tests.acceptance.test_results_kit import KOS, SC, SEG, SR3D, classes
from tests.conftest import REPOSITORY
from tests.factories import ct_series, write_series
from tests.peers.found import SECRET
from tests.peers.orthanc import Orthanc
from tests.peers.pacs import Pacs, wait_until
from tests.peers.webhook import Receiver

WHY = "the toy is not sure of its lesions"
DOUBTFUL = {"doubtful": {"class": "tests.toys:Doubtful"}}
#: Longer than the outbox sleeps: what has not gone by then does not go [s].
PATIENCE = 4.0


def site(tmp_path: Path, to: dict[str, Any], **sections: Any) -> RunningNode:
    return RunningNode(
        tmp_path / "node", rules=[rule(pipeline="doubtful")], pipelines=DOUBTFUL, destinations={"PACS": to}, **sections
    )


def send(node: RunningNode, folder: Path, datasets: list[Any]) -> list[Path]:
    paths = write_series(folder, datasets)
    here = Destination(ae_title="AINODE", host="127.0.0.1", port=node.port)
    assert not [one.problem for one in send_files(here, "CT1", paths) if one.problem]
    return paths


def held(node: RunningNode, uid: str) -> jobs.Job:
    found: jobs.Job = node.until(lambda: [job for job in node.jobs(uid) if job.state is JobState.HELD])[-1]
    return found


def states(node: RunningNode, job: jobs.Job) -> set[DeliveryState]:
    with node.database.read() as connection:
        return {one.state for one in deliveries.of_job(connection, job.id)}


def test_nothing_leaves_before_a_person_decides_not_even_after_a_crash(tmp_path: Path) -> None:
    datasets = ct_series(8, rows=64, columns=64, values=SECRET, charset="ISO_IR 100")
    uid = str(datasets[0].SeriesInstanceUID)
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    with Pacs(tmp_path / "pacs") as pacs, Receiver() as receiver:
        hook = {"triage": {"kind": "webhook", "url": receiver.url, "secret_file": str(secret)}}
        node = site(tmp_path, destination(pacs.port), notify=hook)
        try:
            node.start(fault="after-result-commit")
            send(node, tmp_path / "in", datasets)
            assert node.process is not None
            node.process.wait(90)  # it dies right after the job was held
            node.kill()
            node.start()
            job = held(node, uid)
            time.sleep(PATIENCE)
            assert not pacs.received and not receiver.requests
            assert states(node, job) == {DeliveryState.HELD}
            listed = cli(node, "jobs", "list", "--state", "held")
            assert "held" in listed and WHY in listed
            shown = cli(node, "jobs", "show", str(job.id))
            assert f"held because  {WHY}" in shown and "5 held" in shown and f"job_held: {WHY}" in shown
            assert "held" in failed(node, "jobs", "retry", str(job.id))
            assert node.stop() == 0  # the decision falls while the node is down, and is kept
            assert "5 deliveries go out" in cli(node, "jobs", "release", str(job.id), "--by", "A. Reader")
            node.start()
            node.wait_closed(uid)
            wait_until(lambda: bool(receiver.requests), 60, node.tail())
            assert "only a held job" in failed(node, "jobs", "release", str(job.id))
            time.sleep(PATIENCE)
            shown = cli(node, "jobs", "show", str(job.id))
            assert "result_released: by A. Reader" in shown and "5 delivered" in shown
        finally:
            node.__exit__()
    assert len(pacs.received) == 5 == len({one.sop_instance_uid for one in pacs.received}), "everything, once"
    assert len(receiver.requests) == 1
    assert "SECRET" not in node.log.read_text()


def failed(node: RunningNode, *words: str) -> str:
    """What a command that must fail says on standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "dicomnode", *words, "--config", str(node.file)],
        capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert done.returncode != 0, done.stdout
    return " ".join(done.stderr.split())


def test_rejected_it_never_leaves_and_later_images_replace_what_waits(tmp_path: Path) -> None:
    rejected = ct_series(8, rows=64, columns=64)
    replaced = ct_series(8, rows=64, columns=64, series="other", seed=2)
    with Pacs(tmp_path / "pacs") as pacs, site(tmp_path, destination(pacs.port)) as node:
        send(node, tmp_path / "in", rejected)
        job = held(node, str(rejected[0].SeriesInstanceUID))
        assert "never made" in cli(node, "jobs", "reject", str(job.id), "--by", "A. Reader", "--why", "streaks")
        assert "only a held job" in failed(node, "jobs", "release", str(job.id))
        send(node, tmp_path / "other", replaced[:6])
        first = held(node, str(replaced[0].SeriesInstanceUID))
        send(node, tmp_path / "late", replaced[6:])
        node.until(lambda: [j.state for j in node.jobs(first.series_uid)] == [JobState.SUPERSEDED, JobState.HELD])
        assert "superseded" in failed(node, "jobs", "release", str(first.id))
        second = held(node, first.series_uid)
        cli(node, "jobs", "release", str(second.id))  # while the node runs
        node.wait_closed(first.series_uid)
        time.sleep(PATIENCE)
        assert "result_rejected: by A. Reader: streaks" in cli(node, "jobs", "show", str(job.id))
        assert states(node, job) == states(node, first) == {DeliveryState.CANCELLED}
        with node.database.read() as connection:
            wanted = {one.sop_instance_uid for one in deliveries.of_job(connection, second.id)}
    assert {one.sop_instance_uid for one in pacs.received} == wanted


def test_a_released_result_arrives_whole_and_valid_in_a_real_archive(tmp_path: Path) -> None:
    datasets = ct_series(8, rows=64, columns=64)
    uid = str(datasets[0].SeriesInstanceUID)
    with Orthanc(tmp_path) as pacs, site(tmp_path, destination(pacs.port, "ORTHANC")) as node:
        sources = send(node, tmp_path / "in", datasets)
        job = held(node, uid)
        time.sleep(PATIENCE)
        assert pacs.datasets() == []
        cli(node, "jobs", "release", str(job.id), "--by", "A. Reader")
        node.wait_closed(uid)
        there = pacs.datasets()
        assert classes(there) == {SEG: 1, SR3D: 2, KOS: 1, SC: 1}
        validated(sources, write_series(tmp_path / "results", there))
