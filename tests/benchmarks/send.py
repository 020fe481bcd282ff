#!/usr/bin/env python3
"""Compare our Storage SCU with dcmsend and storescu, side by side against the same receivers.

DCMTK's senders are whole processes, from start to exit (their start-up is a few milliseconds). Ours runs in a process
of its own too and takes its time from before the files are looked at until the association is released, because the
node starts once. Names ending in ~nd run with
TCP_NODELAY=1 in their environment. Rounds are interleaved and each round begins with another sender; a ratio is taken
within a round, to the first sender. A round in which an object did not arrive counts as lost.

Example: tests/benchmarks/send.py --rounds 7 --kinds ct,mr --receivers storescp~nd,storescp
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.factories import ct_series, write_series  # noqa: E402
from tests.peers.dcmtk import _listens, free_port  # noqa: E402

#: Rows and columns of one object; 16 bits a pixel.
KINDS = {"ct": (300, 512, 512), "mr": (400, 128, 128)}
SENDERS = ("dcmsend~nd", "storescu~nd", "dcmsend", "storescu", "streaming", "stock")

#: What a run of one of our engines does, as a program of its own.
OURS = """
import sys, time
from pathlib import Path
from dicomnode.config import Destination
from dicomnode.dispatch import send_files
engine, port, folder = sys.argv[1:]
peer = Destination(ae_title="ANY-SCP", host="127.0.0.1", port=int(port), timeout=60)
began, cpu = time.perf_counter(), time.process_time()
found = send_files(peer, "BENCH", sorted(Path(folder).glob("*.dcm")), engine=engine)
print(time.perf_counter() - began, time.process_time() - cpu)
sys.exit(any(one.problem for one in found))
"""


@dataclass
class Run:
    """One sender, one round."""

    rate: float
    cpu_ms: float


def make(kind: str, folder: Path, number: int | None) -> list[Path]:
    """Write the objects: one series of noise, which compresses as little as a scanner's."""
    n, rows, columns = KINDS[kind]
    return write_series(folder, ct_series(n=number or n, rows=rows, columns=columns, series=kind))


def command(sender: str, port: int, folder: Path) -> tuple[list[str], dict[str, str]]:
    """Return the command line and environment of a sender."""
    program, _, nodelay = sender.partition("~")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if nodelay:
        environment["TCP_NODELAY"] = "1"
    else:
        environment.pop("TCP_NODELAY", None)
    if program in ("streaming", "stock"):
        return [sys.executable, "-c", OURS, program, str(port), str(folder)], environment
    options = ["--max-send-pdu", "131072", "+sd", *(["-R"] if program == "storescu" else [])]
    return [program, "-aec", "ANY-SCP", *options, "127.0.0.1", str(port), str(folder)], environment


def timed(sender: str, port: int, folder: Path) -> tuple[float, float, bool]:
    """Run a sender; return wall time, CPU time [s] and whether it was content."""
    line, environment = command(sender, port, folder)
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(line, env=environment, capture_output=True, timeout=600, check=False)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if sender in ("streaming", "stock") and done.stdout:
        wall, cpu = map(float, done.stdout.split())
    return wall, cpu, done.returncode == 0


@contextmanager
def receiver(name: str, work: Path) -> Iterator[tuple[int, Path]]:
    """Start a receiver; yield its port and the folder it fills.

    ``storescp`` writes bit-preserving files in a process for each association; ``storescp~nd`` answers without delay.
    """
    folder, port = work / f"received-{name}", free_port()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    environment = dict(os.environ)
    if name.endswith("~nd"):
        environment["TCP_NODELAY"] = "1"
    else:
        environment.pop("TCP_NODELAY", None)
    line = ["storescp", "-aet", "ANY-SCP", "--fork", "+B", "+xa", "-pdu", "131072", "-od", str(folder), str(port)]
    process = subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 20
        while not _listens(port):
            if time.monotonic() > end or process.poll() is not None:
                raise SystemExit(f"receiver {name} did not start")
            time.sleep(0.02)
        yield port, folder
    finally:
        process.terminate()
        process.wait(20)


def measure(arguments: argparse.Namespace, kind: str, name: str, work: Path) -> dict[str, list[Run | None]]:
    """Run every sender in every round against one receiver."""
    folder = work / kind
    paths = make(kind, folder, arguments.number)
    senders = arguments.senders
    runs: dict[str, list[Run | None]] = {sender: [] for sender in senders}
    with receiver(name, work) as (port, received):
        for number in range(arguments.rounds + 1):  # the first round warms caches and is not counted
            at = number % len(senders)
            for sender in senders[at:] + senders[:at]:
                wall, cpu, content = timed(sender, port, folder)
                arrived = len(list(received.iterdir()))
                for path in received.iterdir():
                    path.unlink()
                ok = content and arrived == len(paths)
                run = Run(len(paths) / wall, cpu / len(paths) * 1e3) if ok else None
                if number:
                    runs[sender].append(run)
    return runs


def report(title: str, runs: dict[str, list[Run | None]], size: float, reference: str) -> None:
    """Print one table."""
    print(f"\n{title}; ratio to {reference} in the same round")
    print(f"{'sender':14s} {'obj/s':>8s} {'MB/s':>7s} {'CPU ms/obj':>11s} {'ratio':>6s} {'min..max':>12s} {'lost':>5s}")
    for sender, found in runs.items():
        good = [run for run in found if run is not None]
        if not good:
            print(f"{sender:14s} failed in every round")
            continue
        ratios = [a.rate / b.rate for a, b in zip(found, runs[reference], strict=True) if a and b] or [float("nan")]
        rate = statistics.median(run.rate for run in good)
        cpu = statistics.median(run.cpu_ms for run in good)
        spread = f"{min(ratios):.2f}..{max(ratios):.2f}"
        print(
            f"{sender:14s} {rate:8.0f} {rate * size:7.0f} {cpu:11.2f} {statistics.median(ratios):6.2f} {spread:>12s} "
            f"{len(found) - len(good):5d}"
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds (one more warms up)")
    parser.add_argument("--number", type=int, help="objects in a series (default: 300 CT, 400 MR)")
    parser.add_argument("--kinds", default="ct,mr", help="ct (0.5 MB an object), mr (32 KB)")
    parser.add_argument("--senders", default=",".join(SENDERS), help="comma-separated; the first is the reference")
    parser.add_argument("--receivers", default="storescp~nd", help="storescp~nd, storescp")
    parser.add_argument("--work", type=Path, help="folder for the data (default: a temporary one; use a RAM disk)")
    arguments = parser.parse_args(argv)
    arguments.senders = arguments.senders.split(",")
    for program in {sender.partition("~")[0] for sender in arguments.senders} - {"streaming", "stock"}:
        if shutil.which(program) is None:
            parser.error(f"{program} is not installed (Debian: dcmtk)")
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}; "
          f"{arguments.rounds} rounds, medians")  # fmt: skip
    with tempfile.TemporaryDirectory(dir=arguments.work) as work:
        for kind in arguments.kinds.split(","):
            number, rows, columns = KINDS[kind]
            size = rows * columns * 2 / 1e6
            for name in arguments.receivers.split(","):
                runs = measure(arguments, kind, name, Path(work))
                title = f"{kind}: {arguments.number or number} objects of {size:.2f} MB to {name}"
                report(title, runs, size, arguments.senders[0])


if __name__ == "__main__":
    main()
