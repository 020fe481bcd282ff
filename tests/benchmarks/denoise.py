"""A CT series through the node with the denoising pipeline: seconds, peak memory, and BM3D on some of its slices.

    python -m tests.benchmarks.denoise [--slices 300] [--size 512] [--spacing 1] [--threads 2] [--device cpu]

The node runs as a subprocess; DCMTK's storescp stands for the PACS. BM3D (non-commercial licence, never a dependency)
is timed in the same run where it is installed, on ``--bm3d`` slices, and extrapolated to the series.

With ``--record`` what was measured is kept in FILE at once, and a run that was interrupted goes on from there.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dicomnode.config import Destination
from dicomnode.dispatch import send_files
from models.ct_denoise import baselines, projection, simulate
from models.ct_denoise.phantoms import clean_image
from tests import factories
from tests.acceptance.harness import RunningNode, destination, rule
from tests.benchmarks.overhead import storescp
from tests.peers.pacs import Pacs

#: Slices that are simulated; the series repeats them.
DISTINCT = 6


def images(slices: int, size: int) -> np.ndarray:
    """Simulated noisy slices (slice, row, column) [HU]."""
    made = []
    for seed in range(DISTINCT):
        clean = clean_image(simulate.EVALUATION_SEED + 700 + seed, size, 0.7, torch.device("cpu"))
        noise = simulate.insert_noise(clean[None], 0.7, sigma_hu=15.0, seed=seed)[0]
        made.append((projection.apply_kernel(clean, projection.KERNELS["std"], 0.7) + noise).clamp(-1024, 3000).numpy())
    return np.stack([made[index % DISTINCT] for index in range(slices)])


class Memory(threading.Thread):
    """Watches one session: the highest sum of resident sets, the highest single one [MB], and CPU time spent [s]."""

    def __init__(self, session: int) -> None:
        super().__init__(daemon=True)
        self.session, self.together, self.single = session, 0.0, 0.0
        self.begun_s, self.ended_s = float("inf"), 0.0
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.1):
            sizes, ticks = [], 0
            for folder in Path("/proc").glob("[0-9]*"):
                try:
                    fields = (folder / "stat").read_text().rpartition(")")[2].split()
                    if int(fields[3]) == self.session:
                        sizes.append(int(fields[21]) * 4096 / 1e6)
                        ticks += int(fields[11]) + int(fields[12])
                except (OSError, ValueError):
                    continue
            seconds = ticks / os.sysconf("SC_CLK_TCK")
            self.begun_s, self.ended_s = min(self.begun_s, seconds), max(self.ended_s, seconds)
            self.together, self.single = max(self.together, sum(sizes)), max([self.single, *sizes])


def through_the_node(
    array: np.ndarray, spacing_mm: float, folder: Path, threads: int, device: str, limit_s: float
) -> dict[str, float]:
    """Seconds and memory of one series from its first image sent to its last result accepted."""
    made = factories.ct_series(
        n=len(array),
        rows=array.shape[1],
        columns=array.shape[2],
        hu=array,
        step=spacing_mm,
        thickness=f"{spacing_mm:g}",
    )
    uid = str(made[0].SeriesInstanceUID)
    with Pacs(folder / "count", ae_title="COUNT") as counter, storescp(folder / "pacs") as port:
        counter.claims[uid] = len(array)
        paths = factories.write_series(folder / "in", made)
        sources = [{"ae_title": "CT1", "query": {"ae_title": "COUNT", "host": "127.0.0.1", "port": counter.port}}]
        node = RunningNode(
            folder / "node",
            rules=[rule() | {"pipeline": "denoise"}],
            destinations={"PACS": destination(port)},
            sources=sources,
            execute={"slots": [device], "threads": threads},
            pipelines={"denoise": {"class": "pipelines.ct_denoise:CTDenoising"}},
        )
        with node:
            node.until(lambda: node.actions()["slot_ready"], 120)
            assert node.process is not None
            memory = Memory(node.process.pid)
            memory.start()
            begun = time.monotonic()
            here = Destination(ae_title="AINODE", host="127.0.0.1", port=node.port)
            outcomes = send_files(here, "CT1", paths)
            assert not [one.problem for one in outcomes if one.problem]
            sent = time.monotonic()
            job = node.wait_closed(uid, limit_s=limit_s)[0]
            closed = time.monotonic()
            memory.done.set()
    found = {
        "first image sent -> last acknowledged [s]": sent - begun,
        "last acknowledged -> last object accepted [s]": closed - sent,
        "CPU time of all the node's processes [s]": memory.ended_s - memory.begun_s,
        "peak memory, largest process [MB]": memory.single,
        "peak memory, all processes, shared pages counted [MB]": memory.together,
    }
    parts = ("seconds_reading", "seconds_computing", "seconds_writing")
    return {f"job: {name.replace('_', ' ')}": job.quality[name] for name in parts} | found


class Record:
    """What was measured, in a file if there is one, so that nothing is measured twice."""

    def __init__(self, file: Path | None, run: dict[str, Any]) -> None:
        self.file, self.kept = file, {"run": run}
        if file is not None and file.exists():
            self.kept = json.loads(file.read_text())
            if self.kept["run"] != run:
                raise SystemExit(f"{file} is of another run ({self.kept['run']}): remove it or name another")

    def keep(self, name: str, value: object) -> None:
        """Write ``value`` down."""
        self.kept[name] = value
        if self.file is not None:
            self.file.write_text(json.dumps(self.kept, indent=1) + "\n")


def time_bm3d(array: np.ndarray, count: int, record: Record) -> None:
    """Wall and CPU seconds of BM3D on the first ``count`` slices, each kept as soon as it is known."""
    method = baselines.bm3d_method(None)
    if method is None:
        print("  BM3D is not installed")
        return
    times = record.kept.get("bm3d", [])
    for plane in array[len(times) : count]:
        begun, worked = time.monotonic(), time.process_time()
        method(torch.from_numpy(plane), 15.0)
        times = [*times, [time.monotonic() - begun, time.process_time() - worked]]
        record.keep("bm3d", times)
    wall, cpu = (float(np.mean([one[part] for one in times])) for part in (0, 1))
    print(f"  BM3D, per slice ({len(times)} measured): {wall:.1f} s, {cpu:.1f} CPU-s")
    print(f"  BM3D, extrapolated to the series: {wall * len(array):.0f} s, {cpu * len(array):.0f} CPU-s")


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--size", type=int, default=512, help="rows and columns")
    parser.add_argument("--spacing", type=float, default=1.0, help="of the slices [mm]; up to 2 neighbours are used")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N")
    parser.add_argument("--bm3d", type=int, default=6, help="slices that BM3D is timed on")
    parser.add_argument("--limit", type=float, default=1800.0, help="longest wait for the node [s]")
    parser.add_argument("--record", type=Path, help="file to keep what was measured in, and to go on from")
    arguments = parser.parse_args()
    run = {name: getattr(arguments, name) for name in ("slices", "size", "spacing", "threads", "device")}
    record = Record(arguments.record, run)
    array = images(arguments.slices, arguments.size)
    load = os.getloadavg()[0]
    size, spacing = f"{arguments.size} x {arguments.size}", f"{arguments.spacing:g} mm apart"
    print(f"{arguments.slices} slices of {size}, {spacing}, {arguments.threads} threads:")
    if "node" not in record.kept:
        with tempfile.TemporaryDirectory() as name:
            place, limit = Path(name), arguments.limit
            found = through_the_node(array, arguments.spacing, place, arguments.threads, arguments.device, limit)
        record.keep("node", found | {"load average of the machine before": load})
    for name, value in record.kept["node"].items():
        print(f"  {name:56} {value:8.1f}")
    time_bm3d(array, arguments.bm3d, record)


if __name__ == "__main__":
    main()
