"""The receiver as a process of its own: one busy Python thread beside it would cost it nine tenths of its rate.

The child is executed, not forked from a multiprocessing server: it then loads nothing of what the node's main module
loads (pydantic, alembic, numpy: 40 MB). Its standard input carries the settings and is its lifeline: when the node is
gone, however it went, the child ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from dicomnode.errors import NodeError
from dicomnode.receive.settings import Settings

if TYPE_CHECKING:
    from dicomnode.config import Config


class _Told(Protocol):
    """Settings of a child: it listens on ``port``, and reads them as one line."""

    @property
    def port(self) -> int: ...

    def to_json(self) -> str: ...


class ListeningProcess:
    """Starts, watches and stops a listener. May be started again after it died; `port` and `fileno` then stay.

    Parameters
    ----------
    module
        What the child executes.
    name
        What it is called in messages.
    """

    def __init__(self, settings: _Told, *, module: str, name: str) -> None:
        self._told, self._module, self.name = settings, module, name
        #: Where it listens, known once started.
        self.port = settings.port
        self._process: subprocess.Popen[bytes] | None = None
        self._wake, self._poke = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(self._poke, False)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """Process ID of the last start."""
        return self._process.pid if self._process else None

    @property
    def exit_code(self) -> int | None:
        """How it ended; None while it runs or before the first start."""
        return self._process.poll() if self._process else None

    def fileno(self) -> int:
        """Readable when rows were committed: for select, or `multiprocessing.connection.wait`. See `wait`."""
        return self._wake

    def wait(self, timeout: float) -> bool:
        """Wait until rows were committed since the last call; False after ``timeout`` seconds without."""
        ready, _, _ = select.select([self._wake], [], [], timeout)
        if not ready:
            return False
        while True:
            try:
                if len(os.read(self._wake, 4096)) < 4096:
                    return True
            except BlockingIOError:
                return True

    def start(self, timeout: float = 30) -> None:
        """Start it and return when it listens.

        When called from the main thread, the kernel kills the child with it; a child of another thread relies on the
        lifeline alone, because the kernel would take the end of that thread for the end of the node.

        Raises
        ------
        NodeError
            It does not listen within ``timeout`` seconds; the message says why.
        """
        if self.alive:
            raise NodeError(f"{self.name} runs already")
        command = [sys.executable, "-m", self._module, "--child", str(self._poke)]
        if threading.current_thread() is threading.main_thread():
            command += ["--parent", str(os.getpid())]
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[self._poke],
            env={**os.environ, "PYTHONPATH": _python_path()},
        )
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(self._told.to_json().encode() + b"\n")
            self._process.stdin.flush()
            self.port = self._listens_on(timeout)
        except (OSError, NodeError) as error:
            self.stop(1)
            raise NodeError(f"{self.name} did not start: {error}") from error

    def stop(self, timeout: float = 20) -> None:
        """End it: objects on their way finish, the last rows are written; killed after ``timeout`` seconds."""
        process = self._process
        if process is None:
            return
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        for last_resort in (signal.SIGTERM, signal.SIGKILL):
            try:
                process.wait(timeout)
                break
            except subprocess.TimeoutExpired:
                process.send_signal(last_resort)
                timeout = 2.0
        process.wait()
        if process.stdout is not None:
            process.stdout.close()

    def close(self) -> None:
        """Stop it and let go of the pipe that wakes the node."""
        self.stop()
        for descriptor in (self._wake, self._poke):
            os.close(descriptor)

    def _listens_on(self, timeout: float) -> int:
        """Read the child's one line: the port, or why not."""
        assert self._process is not None
        assert self._process.stdout is not None
        descriptor, line, deadline = self._process.stdout.fileno(), b"", time.monotonic() + timeout
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise NodeError(f"it did not listen within {timeout:g} s")
            part = os.read(descriptor, 4096)
            if not part:
                raise NodeError(f"it ended with code {self._process.wait()} before it listened")
            line += part
        answer = json.loads(line)
        if "failed" in answer:
            raise NodeError(answer["failed"])
        return int(answer["port"])


class ReceiverProcess(ListeningProcess):
    """The Storage SCP.

    Parameters
    ----------
    config
        The node's configuration, or the settings alone.
    """

    def __init__(self, config: Config | Settings) -> None:
        self.settings = config if isinstance(config, Settings) else Settings.of(config)
        super().__init__(self.settings, module="dicomnode.receive", name="the receiver")


def _python_path() -> str:
    """Where the child finds this package, also when the node runs from a checkout."""
    here = str(Path(__file__).resolve().parents[2])
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != here]
    return os.pathsep.join([here, *others])
