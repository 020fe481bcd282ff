"""The crash matrix: SIGKILL at every durable step, restart, and nothing acknowledged is lost or delivered twice."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path

import pytest

from dicomnode.config import Destination
from dicomnode.dispatch import send_files
from dicomnode.domain import JobState
from dicomnode.store import deliveries, instances
from tests import factories
from tests.acceptance.harness import RunningNode, destination, rule
from tests.peers.pacs import Pacs

#: Where the node is killed, and how often that point is passed before. Each stands for one durable step.
POINTS = [
    "after-rename:3", "after-fsync:3", "before-answer:3", "after-answer:3", "mid-association:3", "after-row",
    "before-route-commit", "after-claim", "after-encode", "after-result-commit", "mid-delivery:3",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_kill_at_every_durable_step(tmp_path: Path, point: str) -> None:
    made = factories.ct_series(n=6, rows=400, columns=400)  # larger than the receive buffer
    paths = factories.write_series(tmp_path / "in", made)
    uid = str(made[0].SeriesInstanceUID)
    with Pacs(tmp_path / "pacs") as pacs:
        node = RunningNode(tmp_path / "node", rules=[rule()], destinations={"PACS": destination(pacs.port)})
        try:
            node.start(fault=point)
            here = Destination(ae_title="AINODE", host="127.0.0.1", port=node.port, timeout=5)
            first = send_files(here, "CT1", paths)
            acknowledged = {path for path, one in zip(paths, first, strict=True) if not one.problem}
            _until_it_bites(node)
            node.kill()
            node.start()
            stored = {path.stem for path in (node.data / "spool").rglob("*.dcm")}
            promised = {str(ds.SOPInstanceUID) for ds, path in zip(made, paths, strict=True) if path in acknowledged}
            assert promised <= stored, "acknowledged, and not in the spool"
            node.until(lambda: promised <= _indexed(node))
            again = send_files(here, "CT1", paths)
            assert not [one.problem for one in again if one.problem], "a resend after the crash is harmless"
            jobs = node.wait_closed(uid)
            node.until(lambda: all(j.state in (JobState.CLOSED, JobState.SUPERSEDED) for j in node.jobs(uid)))
            assert len(jobs[-1].inputs) == 6
            with node.database.read() as connection:
                wanted = {d.sop_instance_uid for d in deliveries.of_job(connection, jobs[-1].id)}
            assert node.stop() == 0
        finally:
            node.kill()
    contents = defaultdict(set)
    for item in pacs.received:
        contents[item.sop_instance_uid].add(item.sha256)
    assert wanted <= set(contents), "every object of the result arrived"
    assert all(len(digests) == 1 for digests in contents.values()), "one UID, one content"
    finals = [item.series_uid for item in pacs.received if item.sop_instance_uid in wanted]
    assert len(set(finals)) == 1 and len(wanted) == 6, "the result is one series of six objects"
    assert not list((node.data / "spool").rglob("*.part")), "no leftovers"


def _indexed(node: RunningNode) -> set[str]:
    with node.database.read() as connection:
        return {Path(path).stem for path in instances.paths(connection)}


def _until_it_bites(node: RunningNode, limit_s: float = 30) -> None:
    """Until the fault was reached: the node died, or it noticed that a part of it did."""
    end = time.monotonic() + limit_s
    noticed = {"receiver_restarted", "job_lost", "slot_lost", "job_poison"}
    while time.monotonic() < end:
        if node.process is not None and node.process.poll() is not None:
            return
        if noticed & set(node.actions()):
            return
        time.sleep(0.1)
    raise AssertionError(f"the fault was never reached\n{node.state()}\n{node.tail()}")
