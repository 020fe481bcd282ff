"""The receivers that are compared, how each is started, and what it used."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")
REPOSITORY = Path(__file__).parents[2]
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"


def node(*options: str) -> Callable[[int, Path], list[str]]:
    return lambda port, out: [
        sys.executable, "-m", "dicomnode.receive", "--port", str(port), "--data", str(out), *options,
    ]  # fmt: skip


def storescp(*options: str) -> Callable[[int, Path], list[str]]:
    return lambda port, out: ["storescp", *options, "-od", str(out), str(port)]


def orthanc(port: int, out: Path) -> list[str]:
    settings = {
        "Name": "BENCH", "StorageDirectory": str(out), "IndexDirectory": str(out), "DicomAet": "ANY-SCP",
        "DicomPort": port, "HttpPort": port + 1, "DicomAlwaysAllowStore": True, "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False, "Plugins": [],
    }  # fmt: skip
    (out / "orthanc.json").write_text(json.dumps(settings))
    return [shutil.which("Orthanc", path=PATH) or "Orthanc", str(out / "orthanc.json")]


#: Name -> command. A name that ends in ``~nodelay`` is started with TCP_NODELAY=1, which DCMTK's network layer obeys:
#: as installed it waits 40 ms an object for a delayed acknowledgement. Both comparisons are honest; the second is hard.
RECEIVERS: dict[str, Callable[[int, Path], list[str]]] = {
    "node": node(),
    "node-deferred": node("--durability", "deferred"),
    "node-stock": node("--engine", "stock"),
    "storescp": storescp(),
    "storescp-fork": storescp("--fork"),
    "orthanc": orthanc,
}
_PROGRAMS = {"storescp": "storescp", "storescp-fork": "storescp", "orthanc": "Orthanc"}


def available(name: str) -> bool:
    """Whether what it needs is installed."""
    program = _PROGRAMS.get(name.removesuffix("~nodelay"))
    return program is None or shutil.which(program, path=PATH) is not None


class Receiver:
    """One receiver, running, with an empty folder."""

    def __init__(self, name: str, work: Path) -> None:
        self.name = name
        self.kind = name.removesuffix("~nodelay")
        self.out = work / f"out-{name.replace('~', '-')}"
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir(parents=True)
        self.port = _two_free_ports()
        self.log = (work / f"log-{name.replace('~', '-')}.txt").open("wb")
        command = RECEIVERS[self.kind](self.port, self.out)
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        if name != self.kind:
            environment["TCP_NODELAY"] = "1"
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, env=environment, start_new_session=True
        )

    def wait(self, limit: float = 40) -> None:
        """Until it listens."""
        end = time.monotonic() + limit
        while time.monotonic() < end:
            if self.process.poll() is not None:
                break
            try:
                socket.create_connection(("127.0.0.1", self.port), 0.5).close()
                return
            except OSError:
                time.sleep(0.05)
        raise RuntimeError(f"{self.name} did not start: see {self.log.name}")

    def kept(self) -> int:
        """Bytes in its store."""
        return sum(path.stat().st_size for path in self._objects())

    def empty(self) -> None:
        """Throw away what it stored."""
        if self.kind == "orthanc":
            base = f"http://127.0.0.1:{self.port + 1}/patients"
            with urllib.request.urlopen(base) as answer:
                patients = json.load(answer)
            for patient in patients:
                urllib.request.urlopen(urllib.request.Request(f"{base}/{patient}", method="DELETE")).close()
            return
        for path in self._objects():
            path.unlink(missing_ok=True)

    def _objects(self) -> list[Path]:
        names = ("orthanc.json", "index", "index-wal", "index-shm", "node.db", "node.db-wal", "node.db-shm")
        return [path for path in self.out.rglob("*") if path.is_file() and path.name not in names]

    def stop(self) -> None:
        """End it and delete its folder."""
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.log.close()
        shutil.rmtree(self.out, ignore_errors=True)

    def cpu(self) -> float:
        """CPU seconds of its processes so far, reaped children included."""
        return sum(sum(map(int, stat[11:15])) for stat in _tree(self.process.pid).values()) / _TICK


class Peak(threading.Thread):
    """Watches the peak memory (proportional set size, MB) of a receiver's processes."""

    def __init__(self, receiver: Receiver, every: float = 0.25) -> None:
        super().__init__(daemon=True)
        self.receiver, self.every, self.megabytes = receiver, every, 0.0
        self._stop_asked = threading.Event()

    def __enter__(self) -> Peak:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_asked.set()
        self.join()

    def run(self) -> None:
        while not self._stop_asked.wait(self.every):
            self.megabytes = max(self.megabytes, sum(map(_pss, _tree(self.receiver.process.pid))))


def _pss(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
    except (OSError, StopIteration):
        return 0.0


def _tree(root: int) -> dict[int, list[str]]:
    """Process ID -> fields of /proc/PID/stat behind the name, of a process and its descendants."""
    stats: dict[int, list[str]] = {}
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            stats[int(entry)] = fields
            children.setdefault(int(fields[1]), []).append(int(entry))
    found, waiting = {}, [root]
    while waiting:
        pid = waiting.pop()
        if pid in stats:
            found[pid] = stats[pid]
        waiting += children.get(pid, [])
    return found


def _two_free_ports() -> int:
    """A free port whose successor is free as well: Orthanc's HTTP interface takes that."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            try:
                second.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port
