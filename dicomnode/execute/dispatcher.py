"""The leader's loop: claim what goes next, hand it to a free slot, record how it ended."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from dicomnode import faults
from dicomnode.config import Config
from dicomnode.domain import JobState
from dicomnode.errors import PipelineTimeout, StaleEpoch, StoreError
from dicomnode.execute import damage, executor, profiles
from dicomnode.execute.executor import Event, Executor
from dicomnode.execute.request import request_of
from dicomnode.rounds import Rounds
from dicomnode.store import jobs, leader, notifications, pipelines, schema
from dicomnode.store.db import Database
from dicomnode.store.jobs import Failure, Job, RetryPolicy

logger = logging.getLogger(__name__)

#: How long a leader that stops answering is still believed; a standby takes over after it [s].
LEASE: Final = timedelta(seconds=15)
_RENEW_S: Final = 4.0
#: Longest wait for an event; other processes' job inserts are seen at this pace at the latest [s].
_POLL_S: Final = 0.25
_PROGRESS_S: Final = 1.0
#: After these a slot's process is replaced: a CUDA context does not recover, and memory may be leaked or split up.
_RECYCLE: Final = frozenset({"OutOfMemory", "DeviceFailed", "PipelineFailed"})

#: How a run ends.
_Outcome = executor.Done | executor.Refused | executor.Failed | executor.Lost


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(slots=True)
class _Run:
    job: Job
    #: None until the worker said "started" [monotonic s].
    deadline: float | None = None
    progress_at: float = 0.0


class Dispatcher:
    """Owns the executor and the one thread that uses it.

    Parameters
    ----------
    on_stored
        Called after a job's results and deliveries were committed (wakes the outbox).
    """

    def __init__(
        self,
        config: Config,
        database: Database,
        slots: Executor,
        *,
        on_stored: Callable[[], None] = lambda: None,
        clock: Callable[[], datetime] = _now,
    ) -> None:
        self.config, self.database, self.executor = config, database, slots
        self.on_stored, self.clock = on_stored, clock
        self.epoch: int | None = None
        self._holder = f"{socket.gethostname()}:{os.getpid()}"
        self._renewed = 0.0
        self._runs: dict[str, _Run] = {}
        self._free: set[str] = set()
        self._events: deque[Event] = deque()
        self._infos: dict[str, pipelines.PipelineInfo] = {}
        self._policy = RetryPolicy(max_attempts=config.execute.max_attempts, backoff_s=config.execute.backoff_s)
        self._rounds = Rounds("dispatcher", self._round, self._fault, ended=self._shut)

    def start(self) -> None:
        """Begin to lead and to dispatch."""
        self._rounds.start()

    def wake(self) -> None:
        """Look for new jobs now."""
        self.executor.wake()

    def stop(self) -> None:
        """Stop dispatching and end the slots; what was running goes back to the queue."""
        self._rounds.stop()
        self.executor.wake()
        self._rounds.join(60)

    @property
    def ready(self) -> bool:
        """Whether at least one slot has become ready since the start."""
        return bool(self._infos)

    def _round(self) -> float:
        self.step()
        return 0.0

    def _fault(self, error: Exception) -> None:
        logger.error("Dispatcher step failed", extra={"action": "dispatcher_error"}, exc_info=error)

    def step(self) -> None:
        """One turn: lead, take events, enforce limits, start jobs."""
        if not self._lead():
            self._rounds.sleep(_POLL_S)
            return
        self._events.extend(self.executor.poll(0 if self._events else _POLL_S))
        while self._events:
            # Taken off only when it is recorded: an outcome must survive a database that is away for a moment.
            try:
                self._take(self._events[0])
            except OperationalError:
                raise
            except Exception as error:  # one event must not hold up the next, nor its slot and job for ever
                logger.exception("Event could not be recorded", extra={"action": "dispatcher_error"})
                self._give_up(self._events[0].slot, error)
            self._events.popleft()
        self._enforce()
        self._assign()

    # -- leadership

    def _lead(self) -> bool:
        now = time.monotonic()
        if self.epoch is None:
            with self.database.write() as connection:
                self.epoch = leader.acquire(connection, self._holder, self.clock(), LEASE)
                released = [] if self.epoch is None else jobs.release_orphans(connection, self.epoch, self.clock())
                if self.epoch is not None:
                    # What an earlier start loaded may be another version: nothing is routed before a slot says.
                    pipelines.describe(connection, [], self.clock())
            if self.epoch is not None:
                self._renewed = now
                logger.info("Leading", extra={"action": "leading", "epoch": self.epoch, "released_jobs": len(released)})
        elif now - self._renewed > _RENEW_S:
            try:
                with self.database.write() as connection:
                    leader.renew(connection, self.epoch, self.clock(), LEASE)
                    mine = [run.job.id for run in self._runs.values()]
                    jobs.release_forgotten(connection, self.epoch, mine, self.clock())
                self._renewed = now
            except StaleEpoch:
                logger.error("Another dispatcher leads; dropping every run", extra={"action": "leadership_lost"})
                for slot in list(self._runs):
                    self._kill(slot)
                self.epoch = None
        return self.epoch is not None

    def _shut(self) -> None:
        self.executor.close()
        if self.epoch is None:
            return
        with self.database.write() as connection:
            jobs.release_orphans(connection, self.epoch + 1, self.clock())
            leader.release(connection, self.epoch)

    # -- events

    def _take(self, event: Event) -> None:
        if isinstance(event, executor.Ready):
            self._ready(event)
            return
        run = self._runs.get(event.slot)
        if run is None or run.job.id != event.job_id:
            if isinstance(event, executor.Lost):
                self._free.discard(event.slot)
                logger.error("Slot process died while idle", extra={"action": "slot_lost", "slot": event.slot, "reason": event.reason})  # fmt: skip  # noqa: E501
            return
        if isinstance(event, executor.Started):
            run.deadline = time.monotonic() + self.config.pipelines[run.job.pipeline].timeout_s
        elif isinstance(event, executor.Progress):
            self._progress(run, event)
        else:
            self._end(run.job, event)
            del self._runs[event.slot]
            if isinstance(event, executor.Failed) and event.failure.error_class in _RECYCLE:
                self.executor.kill(event.slot)
            elif not isinstance(event, executor.Lost):
                self._free.add(event.slot)

    def _ready(self, event: executor.Ready) -> None:
        self._free.add(event.slot)
        infos = {info.name: info for info in event.pipelines}
        if infos != self._infos:
            self._infos = infos
            with self.database.write() as connection:
                pipelines.describe(connection, list(event.pipelines), self.clock())
        logger.info("Slot is ready", extra={"action": "slot_ready", "slot": event.slot})

    def _progress(self, run: _Run, event: executor.Progress) -> None:
        now = time.monotonic()
        if now - run.progress_at >= _PROGRESS_S:
            run.progress_at = now
            with self.database.write() as connection:
                jobs.progress(connection, run.job, event.phase, event.fraction)

    def _end(self, job: Job, event: _Outcome) -> None:
        now, extra = self.clock(), {"job_id": job.id, "series_uid": job.series_uid, "pipeline": job.pipeline}
        event = self._unless_replaced(job, event)
        stored, kept = False, self._damaged(event, now)
        with self.database.write() as connection:
            match event:
                case executor.Done():
                    notes = [*event.notes, *profiles.unserved(self.config, job.send_to, event.outputs)]
                    stored = jobs.finish(
                        connection, job, event.outputs, now, quality=event.quality, notes=notes,
                        findings=event.findings, hold=event.hold, takes=profiles.takes(self.config, event.outputs),
                    )  # fmt: skip
                    if stored and not event.hold:
                        notifications.announce(connection, job, event.findings, self.config.notify, now)
                    line = ("Job stored", "job_stored", f"{len(event.outputs)} objects")
                    if event.hold:
                        line = ("Result waits for a person", "job_held", event.hold)
                case executor.Refused():
                    reason = damage.told(event.reason, kept)
                    if jobs.unsuitable(connection, job, reason, now):
                        # What an older revision said no longer holds.
                        notifications.announce(connection, job, [], self.config.notify, now)
                        damage.record(connection, job, kept)
                    else:
                        kept = []  # a stale attempt decides nothing
                    line = ("Input is not for this pipeline", "job_unsuitable", reason)
                case executor.Failed():
                    state = jobs.fail(connection, job, event.failure, self._policy, now)
                    action = "job_dead" if state is JobState.DEAD else "job_retry"
                    line = ("Job failed", action, f"{event.failure.error_class}: {event.failure.message}")
                case executor.Lost():
                    state = jobs.lose(connection, job, event.reason, now)
                    action = "job_poison" if state is JobState.DEAD else "job_lost"
                    line = ("Worker died under a job", action, event.reason)
        text, action, detail = line
        logger.info(text, extra={"action": action, "detail": detail, **extra})
        damage.clear(kept)
        if stored:
            faults.reached("after-result-commit")
            self.on_stored()

    def _unless_replaced(self, job: Job, event: _Outcome) -> _Outcome:
        """A try on damaged input that is no longer what lies under those UIDs is made again, with what came."""
        if not isinstance(event, executor.Refused) or not event.damaged:
            return event
        with self.database.read() as connection:
            if not damage.came_anew(connection, job, event.damaged):
                return event
        message = f"its input was sent again while it ran, which found: {event.reason}"
        failure = Failure(error_class="InputReplaced", message=message, transient=True)
        return executor.Failed(event.slot, event.job_id, failure)

    def _damaged(self, event: Event, now: datetime) -> list[damage.SetAside]:
        """Files of inputs that the worker found damaged, kept in quarantine too before anything is recorded."""
        if not isinstance(event, executor.Refused) or not event.damaged:
            return []
        with self.database.read() as connection:
            return damage.keep(connection, self.config.node.data, event.damaged, event.reason, now)

    # -- limits

    def _enforce(self) -> None:
        now = time.monotonic()
        for slot, run in list(self._runs.items()):
            if run.deadline is not None and now > run.deadline:
                self._timeout(slot, run)
        if not self._runs:
            return
        with self.database.read() as connection:
            cancels = jobs.cancels_asked(connection)
            mine = select(schema.job.c.id).where(
                schema.job.c.id.in_([run.job.id for run in self._runs.values()]),
                schema.job.c.state == JobState.RUNNING.value,
            )
            alive = set(connection.scalars(mine))
        for slot, run in list(self._runs.items()):
            if run.job.id in cancels or run.job.id not in alive:
                self._kill(slot)
                with self.database.write() as connection:
                    jobs.cancelled(connection, run.job, self.clock())
                logger.info("Job cancelled", extra={"action": "job_cancelled", "job_id": run.job.id})

    def _timeout(self, slot: str, run: _Run) -> None:
        limit = self.config.pipelines[run.job.pipeline].timeout_s
        error = PipelineTimeout(
            f"ran longer than {limit:g} s and was ended; raise pipelines.{run.job.pipeline}.timeout_s"
        )
        self._kill(slot)
        failure = Failure(error_class="PipelineTimeout", message=str(error), transient=error.transient)
        self._end(run.job, executor.Failed(slot, run.job.id, failure))

    def _give_up(self, slot: str, error: Exception) -> None:
        """End a run whose outcome cannot be recorded; it is tried again as often as any transient failure."""
        run = self._runs.get(slot)
        if run is None:
            return
        self._kill(slot)
        message = f"its outcome could not be recorded: {type(error).__name__}: {error}"
        failure = Failure(error_class=type(error).__name__, message=message, transient=True)
        with self.database.write() as connection:
            jobs.fail(connection, run.job, failure, self._policy, self.clock())

    def _kill(self, slot: str) -> None:
        self._runs.pop(slot, None)
        self._free.discard(slot)
        self.executor.kill(slot)

    # -- starting

    def _assign(self) -> None:
        while self._free:
            running = [run.job.pipeline for run in self._runs.values()]
            full = [name for name, one in self.config.pipelines.items() if running.count(name) >= one.limit]
            slot = min(self._free)
            assert self.epoch is not None  # step() returns before this when another node leads
            with self.database.read() as connection:
                waiting = connection.scalar(
                    select(schema.job.c.id).where(schema.job.c.state == JobState.QUEUED.value).limit(1)
                )
            if waiting is None:
                return
            with self.database.write() as connection:
                job = jobs.claim(connection, self.clock(), self.epoch, slot, full)
            if job is None:
                return
            faults.reached("after-claim")
            self._begin(slot, job)

    def _begin(self, slot: str, job: Job) -> None:
        extra = {"job_id": job.id, "series_uid": job.series_uid, "pipeline": job.pipeline, "slot": slot}
        try:
            with self.database.read() as connection:
                request = request_of(connection, self.config, job, self.clock())
        except StoreError as error:
            failure = Failure(error_class=type(error).__name__, message=str(error), transient=error.transient)
            with self.database.write() as connection:
                jobs.fail(connection, job, failure, self._policy, self.clock())
            logger.error("Job cannot start", extra={"action": "job_dead", "detail": str(error), **extra})
            return
        self._free.discard(slot)
        self._runs[slot] = _Run(job)
        self.executor.start(slot, request)
        logger.info("Job started", extra={"action": "job_started", "attempt": job.attempt, **extra})
