"""The node as an operator runs it: a subprocess with a configuration file, watched through its own database."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from dicomnode.domain import JobState, SeriesState
from dicomnode.store import deliveries, jobs, series
from dicomnode.store.db import Database, open_database
from tests.conftest import REPOSITORY

SHIFT = {"shift": {"class": "tests.toys:Shift"}}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RunningNode:
    """``dicomnode serve`` on a free port, its data and log in ``folder``."""

    def __init__(self, folder: Path, **sections: Any) -> None:
        self.folder, self.data = folder, folder / "data"
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        settings: dict[str, Any] = {
            "node": {"ae_title": "AINODE", "data": str(self.data), "log": {"style": "json"}},
            "receive": {"address": "127.0.0.1", "port": self.port, "unknown_sources": "accept", "refuse_below_mb": 0,
                        "accept_above_mb": 0},
            "assemble": {"quiet_s": 2, "quiet_min_s": 1, "quiet_max_s": 3},
            "execute": {"slots": ["cpu"], "threads": 1, "backoff_s": 0.1},
            "pipelines": SHIFT,
        }  # fmt: skip
        for name, section in sections.items():
            settings[name] = {**settings.get(name, {}), **section} if isinstance(section, dict) else section
        self.file = folder / "node.yaml"
        self.file.write_text(yaml.safe_dump(settings), encoding="utf-8")
        self.log = folder / "node.log"
        self.program = [sys.executable, "-m", "dicomnode"]
        self.process: subprocess.Popen[bytes] | None = None
        self._database: Database | None = None

    # -- life

    def start(self, fault: str = "", limit_s: float = 60) -> None:
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "DICOMNODE_FAULT": fault}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.program, "serve", "--config", str(self.file)],
                stdout=log, stderr=log, env=environment, start_new_session=True,
            )  # fmt: skip
        end = time.monotonic() + limit_s
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            assert self.process.poll() is None, self.tail()
            assert time.monotonic() < end, self.tail()
            time.sleep(0.05)

    def stop(self) -> int:
        """SIGTERM, as systemd does; waits as long as that."""
        if self.process is None:
            return 0
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(90)
        self.process = None
        return code

    def kill(self) -> None:
        """SIGKILL to the whole process tree, as a power cut of the machine's software."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)
            self.process = None
            self._until_deaf()

    def _until_deaf(self) -> None:
        """The receiver is a child: while the kernel still takes it apart, its port answers for a node that is dead."""
        end = time.monotonic() + 30
        with contextlib.suppress(OSError):
            while time.monotonic() < end:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                time.sleep(0.02)

    def __enter__(self) -> RunningNode:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            code, said = self.stop(), self.tail()
            assert code != 1 or "Timeout (" not in said, f"the node hung when it was told to stop\n{said}"
        finally:
            self.kill()
            if self._database is not None:
                self._database.close()

    # -- looking

    @property
    def database(self) -> Database:
        if self._database is None:
            self._database = open_database("sqlite", self.data)
        return self._database

    def tail(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-4000:] if self.log.exists() else ""

    def until(self, done: Callable[[], Any], limit_s: float = 60) -> Any:
        end = time.monotonic() + limit_s
        while True:
            found = done()
            if found:
                return found
            assert time.monotonic() < end, f"not within {limit_s} s\n{self.state()}\n{self.tail()}"
            time.sleep(0.05)

    def state(self) -> str:
        with self.database.read() as connection:
            lines = [
                f"series {s.series_uid[-12:]} {s.state} {s.instances} {s.reason}" for s in series.latest(connection)
            ]
            lines += [f"job {j.id} {j.state} {j.attempt} {j.error}" for j in jobs.latest(connection)]
            lines.append(str(deliveries.counts(connection)))
        return "\n".join(lines)

    def series(self, uid: str) -> series.Series | None:
        with self.database.read() as connection:
            return series.get(connection, uid)

    def jobs(self, series_uid: str) -> list[jobs.Job]:
        with self.database.read() as connection:
            return jobs.of_series(connection, series_uid)

    def wait_closed(self, series_uid: str, number: int = 1, limit_s: float = 90) -> list[jobs.Job]:
        """Until so many jobs of the series are closed."""

        def closed() -> list[jobs.Job]:
            found = [job for job in self.jobs(series_uid) if job.state is JobState.CLOSED]
            return found if len(found) >= number else []

        found: list[jobs.Job] = self.until(closed, limit_s)
        return found

    def wait_series(self, series_uid: str, *states: SeriesState, limit_s: float = 60) -> series.Series:
        def there() -> series.Series | None:
            one = self.series(series_uid)
            return one if one is not None and one.state in states else None

        found: series.Series = self.until(there, limit_s)
        return found

    def actions(self) -> Counter[str]:
        """How often each action stands in the log."""
        import json

        found: Counter[str] = Counter()
        for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                found[json.loads(line).get("action", "")] += 1
        return found


def rule(name: str = "all CT", when: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"name": name, "when": when or {"Modality": "CT"}, "pipeline": "shift", "send_to": ["PACS"], **more}


def destination(port: int, ae_title: str = "PACS") -> dict[str, Any]:
    return {"ae_title": ae_title, "host": "127.0.0.1", "port": port, "backoff_s": 0.2, "max_backoff_s": 1, "timeout": 5}


def cli(node: RunningNode, *words: str, code: int = 0) -> str:
    """Run a dicomnode command against the node's configuration; return its standard output."""
    done = subprocess.run(
        [sys.executable, "-m", "dicomnode", *words, "--config", str(node.file)],
        capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "200"},
    )  # fmt: skip
    assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def uids(datasets: Sequence[Any]) -> set[str]:
    return {str(dataset.SOPInstanceUID) for dataset in datasets}
