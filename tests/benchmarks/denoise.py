"""A CT series through the node with the denoising pipeline: seconds, peak memory, and BM3D on some of its slices.

    python -m tests.benchmarks.denoise [--slices 300] [--size 512] [--threads 2] [--device cpu]

The node runs as a subprocess; DCMTK's storescp stands for the PACS. BM3D (non-commercial licence, never a dependency)
is timed in the same run where it is installed, on ``--bm3d`` slices, and extrapolated to the series.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from pathlib import Path

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
    """Watches the processes of one session: the highest sum of resident sets, and the highest single one [MB]."""

    def __init__(self, session: int) -> None:
        super().__init__(daemon=True)
        self.session, self.together, self.single = session, 0.0, 0.0
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.1):
            sizes = []
            for folder in Path("/proc").glob("[0-9]*"):
                try:
                    fields = (folder / "stat").read_text().rpartition(")")[2].split()
                    if int(fields[3]) == self.session:
                        sizes.append(int(fields[21]) * 4096 / 1e6)
                except (OSError, ValueError):
                    continue
            self.together, self.single = max(self.together, sum(sizes)), max([self.single, *sizes])


def through_the_node(array: np.ndarray, folder: Path, threads: int, device: str) -> None:
    made = factories.ct_series(n=len(array), rows=array.shape[1], columns=array.shape[2], hu=array)
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
            job = node.wait_closed(uid, limit_s=900)[0]
            closed = time.monotonic()
            memory.done.set()
    for name in ("seconds_reading", "seconds_computing", "seconds_writing"):
        print(f"  {name:48} {job.quality[name]:8.1f} s")
    print(f"  {'first image sent -> last acknowledged':48} {sent - begun:8.1f} s")
    print(f"  {'last acknowledged -> last object accepted':48} {closed - sent:8.1f} s")
    print(f"  {'peak memory, largest process':48} {memory.single:8.0f} MB")
    print(f"  {'peak memory, all processes (shared pages counted)':48} {memory.together:8.0f} MB")


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--size", type=int, default=512, help="rows and columns")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N")
    parser.add_argument("--bm3d", type=int, default=2, help="slices that BM3D is timed on")
    arguments = parser.parse_args()
    array = images(arguments.slices, arguments.size)
    print(f"{arguments.slices} slices of {arguments.size} x {arguments.size}, {arguments.threads} threads:")
    with tempfile.TemporaryDirectory() as name:
        through_the_node(array, Path(name), arguments.threads, arguments.device)
    method = baselines.bm3d_method(None)
    if method is None:
        print("  BM3D is not installed")
        return
    begun, worked = time.monotonic(), time.process_time()
    for plane in array[: arguments.bm3d]:
        method(torch.from_numpy(plane), 15.0)
    wall, cpu = (
        (now - then) / arguments.bm3d for now, then in ((time.monotonic(), begun), (time.process_time(), worked))
    )
    print(f"  BM3D, per slice ({arguments.bm3d} measured): {wall:.1f} s, {cpu:.1f} CPU-s")
    print(f"  BM3D, extrapolated to the series: {wall * arguments.slices:.0f} s, {cpu * arguments.slices:.0f} CPU-s")


if __name__ == "__main__":
    main()
