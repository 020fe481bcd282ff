"""The processes that reconstruct while lines arrive: one a session, and some kept warm for the next ones."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from typing import Final

from dicomnode.channel import Channel
from dicomnode.errors import NodeError

logger = logging.getLogger(__name__)

#: Pause before a spare that died by itself is replaced [s]; doubled up to a minute.
_RESTART_S: Final = 1.0
_RESTART_MAX_S: Final = 60.0
#: How long starting a process may take [s].
_START_S: Final = 10.0


class Worker:
    """One process and the channel to it."""

    def __init__(self, command: Sequence[str]) -> None:
        ours, theirs = socket.socketpair()
        try:
            words = [*command, "--channel", str(theirs.fileno()), "--parent", str(os.getpid())]
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])  # noqa: S603 - the node's own command
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self.channel = Channel(ours)
        self.started = time.monotonic()

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process.poll() is None

    def end(self) -> None:
        """End it at once."""
        self.channel.close()
        self.process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in a driver: SIGKILL waits for the kernel
            self.process.wait(10)


class Workers:
    """Keeps spare workers warm. One thread starts every process, because a process ends with the thread it came from.

    Parameters
    ----------
    command
        Starts a worker; empty: there are none.
    spare
        How many are kept ready.
    """

    def __init__(self, command: Sequence[str], spare: int) -> None:
        self._command, self._wanted = list(command), spare
        self._spares: list[Worker] = []
        self._asked: queue.Queue[queue.Queue[Worker | None] | None] = queue.Queue()
        self._stop = threading.Event()
        self._failures = 0
        self._not_before = 0.0
        self._thread = threading.Thread(target=self._run, name="mrd-workers", daemon=True)

    def start(self) -> None:
        """Begin to warm."""
        self._thread.start()

    def stop(self) -> None:
        """End the spares and their thread; workers of sessions end with their sessions."""
        self._stop.set()
        self._asked.put(None)
        if self._thread.is_alive():
            self._thread.join(15)

    def take(self) -> Worker:
        """A worker of one's own, warm if one is; raises NodeError if there is none to be had."""
        if not self._command:
            raise NodeError("no live reconstruction is configured")
        answer: queue.Queue[Worker | None] = queue.Queue()
        self._asked.put(answer)
        try:
            found = answer.get(timeout=_START_S)
        except queue.Empty:
            found = None
        if found is None:
            raise NodeError("no worker process could be started")
        return found

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                try:
                    asked = self._asked.get(timeout=self._tend())
                except queue.Empty:
                    continue
                if asked is not None:
                    asked.put(self._spares.pop(0) if self._spares else self._started())
        finally:
            for worker in self._spares:
                worker.end()

    def _tend(self) -> float:
        """Replace spares that died, start those that are missing; returns when to look again [s]."""
        now = time.monotonic()
        for worker in [one for one in self._spares if not one.alive]:
            self._spares.remove(worker)
            self._failures += 1
            pause = min(_RESTART_S * 2.0**self._failures, _RESTART_MAX_S)
            self._not_before = now + pause
            logger.error(
                "A spare worker died with %s; another is started in %g s",
                worker.process.poll(),
                pause,
                extra={"action": "mrd_worker_lost"},
            )
            worker.end()
        if self._command and now >= self._not_before:
            while len(self._spares) < self._wanted and (made := self._started()) is not None:
                self._spares.append(made)
        if self._spares and now - self._spares[0].started > _RESTART_MAX_S:
            self._failures = 0
        return 1.0

    def _started(self) -> Worker | None:
        try:
            return Worker(self._command)
        except OSError as error:
            logger.error("No worker process: %s", error.strerror, extra={"action": "mrd_worker_lost"})
            self._not_before = time.monotonic() + _RESTART_S
            return None
