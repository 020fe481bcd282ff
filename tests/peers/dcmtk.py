"""DCMTK's programs as peers: `storescp` with its failures, `dcmsend`, `storescu`."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import pytest


def require(program: str) -> str:
    """Path of an installed program. Skip the test without it; fail where ``CI`` is set, because CI installs it."""
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(f"{program} is not installed, and CI must have it")
        pytest.skip(f"{program} is not installed")
    return path


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class StoreSCP:
    """``storescp`` on a free port, writing into ``folder``; ``options`` such as ``--abort-after``."""

    def __init__(self, folder: Path, *options: str, ae_title: str = "STORESCP") -> None:
        self.program = require("storescp")
        self.folder, self.options, self.ae_title = folder / "storescp", options, ae_title
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> StoreSCP:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()

    def start(self, *options: str) -> None:
        """Start with the given options, or those of the constructor, and wait until it listens."""
        command = [
            self.program, "--aetitle", self.ae_title, "--output-directory", str(self.folder), "+xa",
            *(options or self.options), str(self.port),
        ]  # fmt: skip
        with self.folder.with_suffix(".log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        end = time.monotonic() + 20
        while time.monotonic() < end and self.process.poll() is None:
            # A bare connection would count as an association for some of its options: look at the listening socket.
            if _listens(self.port):
                return
            time.sleep(0.02)
        raise AssertionError("storescp did not start: " + self.folder.with_suffix(".log").read_text())

    def stop(self) -> None:
        """End it."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(10)
            self.process = None

    @property
    def files(self) -> list[Path]:
        """What it stored."""
        return sorted(path for path in self.folder.iterdir() if path.is_file())


def _listens(port: int) -> bool:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        if any(line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A" for line in lines):
            return True
    return False


def send(
    program: str, called: str, port: int, paths: Sequence[Path], *options: str
) -> subprocess.CompletedProcess[str]:
    """Send with ``dcmsend`` or ``storescu``, each file in its own transfer syntax where the program can."""
    command = [require(program), "-v", "-aec", called, *options, "127.0.0.1", str(port), *map(str, paths)]
    environment = {**os.environ, "TCP_NODELAY": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
