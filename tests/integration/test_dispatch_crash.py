"""kill -9 in the middle of a delivery: nothing is lost, nothing leaves under a second UID."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.factories import ct_series
from tests.peers.pacs import Pacs
from tests.peers.results import job_state, open_migrated, states, store_job

ROOT = Path(__file__).parents[2]
#: A node that has nothing but its outbox, and ends when everything is delivered.
NODE = """
import sys, time
from pathlib import Path
from dicomnode.config import Config
from dicomnode.dispatch import Outbox
from tests.peers.results import open_migrated, states

data, port = Path(sys.argv[1]), int(sys.argv[2])
place = {"ae_title": "PACS", "host": "127.0.0.1", "port": port, "timeout": 5, "backoff_s": 0.2}
database = open_migrated(data)
outbox = Outbox(Config.model_validate({"destinations": {"pacs": place}}), database)
outbox.start()
end = time.monotonic() + 30
while set(states(database)) != {"delivered"} and time.monotonic() < end:
    time.sleep(0.02)
outbox.stop()
"""


def run_node(data: Path, port: int, fault: str = "") -> int:
    environment = {**os.environ, "DICOMNODE_FAULT": fault, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", NODE, str(data), str(port)]
    return subprocess.run(command, env=environment, timeout=60, check=False).returncode


@pytest.mark.parametrize("time", [1, 3, 8])
def test_killed_after_the_peer_took_an_object_and_before_that_is_written_down(tmp_path, time):
    data, series = tmp_path / "node", ct_series(n=8)
    database = open_migrated(data)
    with Pacs(tmp_path / "pacs") as pacs:
        job_id = store_job(database, data, series, ["pacs"])
        assert run_node(data, pacs.port, f"mid-delivery:{time}") == -9
        assert len(pacs.uids) == time
        assert states(database).count("delivered") < time
        assert run_node(data, pacs.port) == 0
        assert states(database) == ["delivered"] * 8
        assert job_state(database, job_id) == "closed"
        assert list(dict.fromkeys(pacs.uids)) == [ds.SOPInstanceUID for ds in series]
        # What was not yet written down came twice, byte for byte the same.
        assert 8 < len(pacs.uids) <= 8 + time
        assert len({(item.sop_instance_uid, item.sha256) for item in pacs.stored}) == 8
    database.close()


def test_killed_again_and_again_it_still_gets_everything_through(tmp_path):
    data, series = tmp_path / "node", ct_series(n=6)
    database = open_migrated(data)
    with Pacs(tmp_path / "pacs") as pacs:
        store_job(database, data, series, ["pacs"])
        for _ in range(5):
            assert run_node(data, pacs.port, "mid-delivery:2") == -9
        assert run_node(data, pacs.port) == 0
        assert states(database) == ["delivered"] * 6
        assert {item.sop_instance_uid for item in pacs.stored} == {ds.SOPInstanceUID for ds in series}
        assert len({item.sha256 for item in pacs.stored}) == 6
    database.close()
