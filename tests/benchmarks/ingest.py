"""How fast are series taken in, beside storescp and Orthanc? Interleaved rounds on one machine; the ratios count.

Every receiver is started once, then each round sends the whole workload to each of them in turn and empties its store.
A row gives the median rate, its ratio to the reference (median of the ratios inside one round), the receiver's CPU
time for an object and its peak memory. Receivers whose name ends in ~nodelay run with TCP_NODELAY=1.

examples:
    python -m tests.benchmarks.ingest                 everything, about 20 minutes
    python -m tests.benchmarks.ingest --quick         a fifth of the objects, 3 rounds
    python -m tests.benchmarks.ingest --only ct,mr --senders 1 --receivers node,orthanc~nodelay
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tests import factories
from tests.benchmarks.receivers import REPOSITORY, Peak, Receiver, available

#: name -> (full number of objects, quick number)
WORKLOADS = {"ct": (500, 100), "mr": (2000, 400), "mf": (1, 1)}
TUNED = ["node", "node-deferred", "storescp~nodelay", "storescp-fork~nodelay", "orthanc~nodelay"]
INSTALLED = ["node", "node-deferred", "storescp", "orthanc"]


@dataclass(frozen=True)
class Run:
    """One workload sent to one receiver once."""

    scenario: str
    receiver: str
    round: int
    #: Objects (or associations) a second.
    rate: float
    megabytes_per_second: float
    #: Receiver's CPU time for an object [ms].
    cpu: float
    #: Peak memory [MB].
    memory: float


def make(folder: Path, kind: str, count: int) -> Path:
    """Write a workload: CT of 0.53 MB, MR of 35 KB, or one multi-frame object of 150 MB."""
    target = folder / f"{kind}-{count}"
    if target.exists():
        return target
    target.mkdir(parents=True)
    noise = np.random.default_rng(1)
    if kind == "mf":
        template = factories.enhanced_ct(n=4, rows=512, columns=512)
        template.NumberOfFrames = 286
        template.PixelData = noise.integers(0, 4096, 286 * 512 * 512, dtype=np.uint16).tobytes()
        template.save_as(target / "0.dcm", enforce_file_format=True)
        return target
    size = 512 if kind == "ct" else 128
    series = factories.ct_series if kind == "ct" else factories.mr_series
    [template] = series(n=1, rows=size, columns=size)
    template.private_block(0x0029, "BENCH", create=True).add_new(0x20, "OB", bytes(2048))
    pool = [noise.integers(0, 4096, size * size, dtype=np.uint16).tobytes() for _ in range(20)]
    for number in range(count):
        ds = deepcopy(template) if number == 0 else template
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = factories.uid("bench", kind, number)
        ds.InstanceNumber, ds.PixelData = number + 1, pool[number % len(pool)]
        ds.save_as(target / f"{number:05d}.dcm", enforce_file_format=True)
    return target


def blast(port: int, folder: Path, senders: int, extra: list[str]) -> float:
    """Send with the cheap sender; seconds of the slowest association."""
    command = [sys.executable, "-m", "tests.benchmarks.blast", str(port), str(folder), *extra]
    started = [
        subprocess.Popen(
            [*command, "--slice", f"{number}/{senders}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        for number in range(senders)
    ]
    try:
        for process in started:
            assert process.stdout is not None
            if process.stdout.readline().strip() != "ready":
                raise RuntimeError("a sender failed before the start")
        for process in started:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        said = [process.communicate(timeout=300)[0] for process in started]
        if any(process.returncode for process in started):
            raise RuntimeError(f"senders ended with {[process.returncode for process in started]}")
        return max(float(json.loads(line)["wall"]) for line in said)
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
                process.wait()


def dcmsend(port: int, folder: Path) -> float:
    """Send with dcmsend as installed; seconds of the whole process."""
    start = time.perf_counter()
    command = ["dcmsend", "-aec", "ANY-SCP", "+sd", "127.0.0.1", str(port), str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=300)
    return time.perf_counter() - start


def once(scenario: Scenario, receiver: Receiver, number: int) -> Run:
    """Send the workload once, check that everything arrived, and empty the store."""
    before = receiver.cpu()
    with Peak(receiver) as peak:
        if scenario.associations:
            seconds = blast(receiver.port, scenario.folder, 1, ["--associations", str(scenario.associations)])
        elif scenario.dcmsend:
            seconds = dcmsend(receiver.port, scenario.folder)
        else:
            seconds = blast(receiver.port, scenario.folder, scenario.senders, [])
        used = receiver.cpu() - before
    sizes = [] if scenario.associations else [path.stat().st_size for path in scenario.folder.glob("*.dcm")]
    count = scenario.associations or len(sizes)
    if receiver.kept() < 0.97 * sum(sizes):
        raise RuntimeError(f"{receiver.name} lost something")
    receiver.empty()
    return Run(
        scenario=scenario.title,
        receiver=receiver.name,
        round=number,
        rate=count / seconds,
        megabytes_per_second=sum(sizes) / seconds / 1e6,
        cpu=used / count * 1e3,
        memory=peak.megabytes,
    )


@dataclass(frozen=True)
class Scenario:
    """What is sent, by how many, to whom."""

    title: str
    folder: Path
    receivers: list[str]
    reference: str
    senders: int = 1
    dcmsend: bool = False
    associations: int = 0


def play(scenario: Scenario, rounds: int, work: Path) -> list[Run]:
    """All rounds of one scenario; a receiver that fails is reported and left out of that round."""
    runs: list[Run] = []
    names = [name for name in scenario.receivers if available(name)]
    receivers = {name: Receiver(name, work) for name in names}
    try:
        for receiver in receivers.values():
            receiver.wait()
        time.sleep(0.5)
        for number in range(-1, rounds):  # the first round warms up: caches, lazily made folders
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                try:
                    run = once(scenario, receivers[name], number)
                    runs += [run] if number >= 0 else []
                except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                    print(f"# {name}, round {number}: {error}", file=sys.stderr)
    finally:
        for receiver in receivers.values():
            receiver.stop()
    return runs


def table(scenario: Scenario, runs: list[Run]) -> None:
    """Print one scenario."""
    by_name = {name: [run for run in runs if run.receiver == name] for name in scenario.receivers}
    reference = {run.round: run.rate for run in by_name.get(scenario.reference, [])}
    print(f"\n{scenario.title}   (ratio to {scenario.reference})")
    print(f"{'receiver':24s}{'a second':>10s}{'MB/s':>8s}{'ratio':>8s}{'(range)':>14s}{'CPU ms':>8s}{'MB':>7s}")
    for name, mine in by_name.items():
        if not mine:
            print(f"{name:24s}  not measured")
            continue
        ratios = [run.rate / reference[run.round] for run in mine if run.round in reference] or [float("nan")]
        middle = {key: statistics.median(asdict(run)[key] for run in mine) for key in ("rate", "cpu", "memory")}
        speed = statistics.median(run.megabytes_per_second for run in mine)
        spread = f"{min(ratios):.2f}..{max(ratios):.2f}"
        print(
            f"{name:24s}{middle['rate']:10.1f}{speed:8.1f}{statistics.median(ratios):8.2f}{spread:>14s}"
            f"{middle['cpu']:8.2f}{middle['memory']:7.0f}"
        )


def scenarios(options: argparse.Namespace, work: Path) -> list[Scenario]:
    """What was asked for on the command line."""
    chosen, found = options.only.split(","), []
    counts = {kind: (quick if options.quick else full) for kind, (full, quick) in WORKLOADS.items()}
    tuned = options.receivers.split(",") if options.receivers else TUNED
    installed = options.receivers.split(",") if options.receivers else INSTALLED
    reference = next((name for name in tuned if name.startswith("storescp~")), tuned[-1])
    for kind, senders in ((kind, senders) for senders in options.senders for kind in ("ct", "mr", "mf")):
        if kind not in chosen or (kind == "mf" and senders > 1):
            continue
        # Plain storescp serves one association at a time: with several senders only the forking one can be compared.
        names = [name for name in tuned if senders == 1 or not name.startswith("storescp~")]
        against = reference if senders == 1 else next((n for n in names if "fork" in n), names[-1])
        title = f"{kind.upper()} x {counts[kind]}, {senders} sender{'s' * (senders > 1)}"
        found.append(Scenario(title, make(work, kind, counts[kind]), names, against, senders))
    if "dcmsend" in chosen and shutil.which("dcmsend"):
        folder = make(work, "ct", counts["ct"] // 5)
        title = f"CT x {counts['ct'] // 5}, dcmsend and all peers as installed"
        found.append(Scenario(title, folder, installed, installed[-1], dcmsend=True))
    if "installed" in chosen:
        folder = make(work, "ct", counts["ct"] // 5)
        found.append(Scenario(f"CT x {counts['ct'] // 5}, peers as installed", folder, installed, installed[-1]))
    if "associations" in chosen:
        found.append(
            Scenario("Associations, one after the other", make(work, "ct", 1), tuned, reference, associations=50)
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a fifth of the objects, 3 rounds")
    parser.add_argument("--rounds", type=int, help="rounds of each scenario (default 5, quick 3)")
    parser.add_argument("--senders", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--only", default="ct,mr,mf,dcmsend,installed,associations", help="which scenarios")
    parser.add_argument("--receivers", help="comma separated, instead of the usual ones")
    parser.add_argument("--work", type=Path, help="folder for data and stores (default: a temporary one)")
    parser.add_argument("--json", type=Path, help="append every run as a line of JSON")
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp(prefix="ingest-"))
    print(f"{platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    try:
        for scenario in scenarios(options, work):
            runs = play(scenario, options.rounds or (3 if options.quick else 5), work)
            table(scenario, runs)
            if options.json:
                with options.json.open("a") as file:
                    file.writelines(json.dumps(asdict(run)) + "\n" for run in runs)
    finally:
        if options.work is None:
            shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
