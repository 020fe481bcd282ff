"""What the node adds around inference: last image acknowledged -> job started, and job start -> last object accepted.

    python -m tests.benchmarks.overhead [--slices 300] [--size 512] [--rounds 5]

The node runs as a subprocess with a pipeline that computes next to nothing; DCMTK's storescp stands for the PACS.
The time inside ``run`` is taken off. Aims: < 0.3 s to the start when completeness is proven, < 1 s for 300 slices.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dicomnode.config import Destination
from dicomnode.dispatch import send_files
from tests import factories
from tests.acceptance.harness import RunningNode, destination, free_port, rule
from tests.peers.pacs import Pacs


@contextmanager
def storescp(folder: Path) -> Iterator[int]:
    """DCMTK's receiver on a free port, bit preserving and without Nagle's delay."""
    folder.mkdir()
    port = free_port()
    command = ["storescp", "+B", "-pdu", "131072", "-aet", "PACS", "-od", str(folder), str(port)]
    process = subprocess.Popen(command, env={"TCP_NODELAY": "1", "PATH": "/usr/bin:/bin"})
    try:
        time.sleep(0.5)
        yield port
    finally:
        process.terminate()
        process.wait(10)


def one_round(node: RunningNode, folder: Path, number: int, slices: int, size: int, counter: Pacs) -> dict[str, float]:
    """Send one series; return the seconds between the steps."""
    made = factories.ct_series(n=slices, rows=size, columns=size, series=f"{folder.name}-{number}", seed=number)
    series_uid = str(made[0].SeriesInstanceUID)
    counter.claims[series_uid] = slices
    paths = factories.write_series(folder / f"in-{number}", made)
    here = Destination(ae_title="AINODE", host="127.0.0.1", port=node.port)
    outcomes = send_files(here, "CT1", paths)
    acknowledged = time.time()
    assert not [one.problem for one in outcomes if one.problem]
    job = node.wait_closed(series_uid, limit_s=120)[0]
    assert job.started_at and job.finished_at
    computing = job.quality["seconds_computing"]
    shutil.rmtree(folder / f"in-{number}")
    return {
        "last acknowledged -> job started": job.started_at.timestamp() - acknowledged,
        "job started -> last accepted, less inference": (job.finished_at - job.started_at).total_seconds() - computing,
        "  of it reading": job.quality["seconds_reading"],
        "  of it writing": job.quality["seconds_writing"],
    }


def main() -> None:
    """Print the median and range of every step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--size", type=int, default=512, help="rows and columns")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, Pacs(Path(name) / "count", ae_title="COUNT") as counter:
        folder = Path(name)
        with storescp(folder / "pacs") as port:
            sources = [{"ae_title": "CT1", "query": {"ae_title": "COUNT", "host": "127.0.0.1", "port": counter.port}}]
            to = {"PACS": destination(port)}
            with RunningNode(folder / "node", rules=[rule()], destinations=to, sources=sources) as node:
                node.until(lambda: node.actions()["slot_ready"], 120)
                rounds = [
                    one_round(node, folder, number, arguments.slices, arguments.size, counter)
                    for number in range(arguments.rounds)
                ]
    print(f"{arguments.slices} slices of {arguments.size} x {arguments.size}, {arguments.rounds} rounds, seconds:")
    for step in rounds[0]:
        values = [one[step] for one in rounds]
        print(f"  {step:46} {statistics.median(values):6.2f}  ({min(values):.2f} .. {max(values):.2f})")


if __name__ == "__main__":
    main()
