"""Slots on this machine: one warm process each, started by `multiprocessing` spawn, ended by SIGKILL."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Final

from dicomnode.execute import worker
from dicomnode.execute.executor import Done, Event, Failed, Lost, Ready, Refused, Request
from dicomnode.execute.worker import SlotSettings

logger = logging.getLogger(__name__)

#: Pause before a slot whose process keeps dying is started again [s]; doubled up to a minute.
_RESTART_S: Final = 0.5
_RESTART_MAX_S: Final = 60.0


@dataclass(slots=True)
class _Slot:
    settings: SlotSettings
    process: SpawnProcess | None = None
    connection: Connection | None = None
    ready: bool = False
    job_id: int | None = None
    #: When the process must be ready [monotonic s].
    ready_by: float = 0.0
    #: When it may be started again [monotonic s].
    start_at: float = 0.0
    deaths: int = 0


@dataclass(slots=True)
class LocalExecutor:
    """The embedded executor.

    The thread that calls `poll` starts the processes, and they end with it: call from one thread that lives as long as
    the node.
    """

    settings: Sequence[SlotSettings]
    start_timeout_s: float = 300.0
    _slots: dict[str, _Slot] = field(init=False)
    _wake_read: int = field(init=False)
    _wake_write: int = field(init=False)

    def __post_init__(self) -> None:
        self._slots = {one.slot: _Slot(one) for one in self.settings}
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def slots(self) -> Sequence[str]:
        """Names of all slots."""
        return list(self._slots)

    def start(self, slot: str, request: Request) -> None:
        """Give a ready slot a job."""
        one = self._slots[slot]
        if not one.ready or one.job_id is not None or one.connection is None:
            raise RuntimeError(f"slot {slot} is not free")
        one.job_id = request.job_id
        with contextlib.suppress(OSError):  # a process that died meanwhile is noticed by poll, with the job
            one.connection.send(request)

    def wake(self) -> None:
        """End a waiting `poll` early."""
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._wake_write, b"w")

    def poll(self, timeout_s: float) -> Sequence[Event]:
        """Start what must be started, then wait for events."""
        now = time.monotonic()
        events: list[Event] = []
        for one in self._slots.values():
            if one.process is None and now >= one.start_at:
                self._spawn(one)
            elif one.process is not None and not one.ready and now > one.ready_by:
                events.append(self._dead(one, f"not ready within {self.start_timeout_s:g} s"))
        waiting: list[Connection | int] = [self._wake_read]
        for one in self._slots.values():
            if one.process is not None and one.connection is not None:
                waiting += [one.connection, one.process.sentinel]
        triggered = set(wait(waiting, 0 if events else timeout_s))
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)
        for one in self._slots.values():
            if one.process is not None and (one.connection in triggered or one.process.sentinel in triggered):
                events += self._read(one)
        return events

    def _read(self, one: _Slot) -> list[Event]:
        """Take every message that is there; a closed pipe means the process is gone."""
        assert one.connection is not None and one.process is not None
        events: list[Event] = []
        try:
            while one.connection.poll():
                event: Event = one.connection.recv()
                if isinstance(event, Ready):
                    one.ready, one.deaths = True, 0
                elif isinstance(event, Done | Refused | Failed):
                    one.job_id = None
                events.append(event)
        except (EOFError, OSError):
            one.process.join(5)
            code = one.process.exitcode
            events.append(self._dead(one, f"process ended with {code}" + (" (killed)" if code == -9 else "")))
        return events

    def _spawn(self, one: _Slot) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        one.process = context.Process(
            target=worker.main, args=(theirs, one.settings), name=f"slot-{one.settings.slot}", daemon=True
        )
        one.process.start()
        theirs.close()
        one.connection, one.ready = ours, False
        one.ready_by = time.monotonic() + self.start_timeout_s

    def _dead(self, one: _Slot, reason: str) -> Lost:
        lost = Lost(one.settings.slot, one.job_id, reason)
        was_ready = one.ready
        self._end(one)
        one.deaths += 0 if was_ready else 1  # one that never got ready is broken: do not spin
        pause = 0.0 if was_ready else min(_RESTART_S * 2.0**one.deaths, _RESTART_MAX_S)
        one.start_at = time.monotonic() + pause
        return lost

    def _end(self, one: _Slot) -> None:
        if one.process is not None:
            one.process.kill()
            one.process.join(10)
            if one.process.is_alive():
                # Stuck in the driver: SIGKILL waits for the kernel. The slot is started anew beside it.
                logger.error("Slot process does not end", extra={"action": "slot_stuck", "slot": one.settings.slot})
        if one.connection is not None:
            one.connection.close()
        one.process, one.connection, one.ready, one.job_id = None, None, False, None

    def kill(self, slot: str) -> None:
        """End the slot's process at once; `poll` starts another."""
        self._end(self._slots[slot])
        self._slots[slot].start_at = 0.0

    def close(self) -> None:
        """End every process."""
        for one in self._slots.values():
            self._end(one)
            one.start_at = float("inf")
