"""The clock: APScheduler in memory, idempotent sweeps only. A missed tick is only late, never lost."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from apscheduler.schedulers.background import BackgroundScheduler
from sqlalchemy import ColumnElement, select

from dicomnode.config import Config, Destination
from dicomnode.domain import JobState, SeriesState
from dicomnode.store import deliveries, instances, schema
from dicomnode.store.db import Database

logger = logging.getLogger(__name__)

#: A series in one of these needs its files no more, once no job does.
_DECIDED = (SeriesState.ROUTED, SeriesState.UNROUTED, SeriesState.REJECTED)
#: How long it is remembered who connected: longer than any series stays open.
_ASSOCIATIONS = timedelta(days=30)
_ENDED = (JobState.CLOSED, JobState.CANCELLED, JobState.REJECTED, JobState.SUPERSEDED, JobState.UNSUITABLE)


def _now() -> datetime:
    return datetime.now(UTC)


class Housekeeper:
    """Retention, disk watermark and C-ECHO of the destinations.

    Parameters
    ----------
    echo
        Verifies one destination; returns an empty string or what is wrong.
    """

    def __init__(
        self,
        config: Config,
        database: Database,
        *,
        echo: Callable[[Destination], str],
        clock: Callable[[], datetime] = _now,
    ) -> None:
        self.config, self.database, self.echo, self.clock = config, database, echo, clock
        self._reachable: dict[str, bool] = {}
        self._stopping = threading.Event()
        self._scheduler = BackgroundScheduler(
            timezone=UTC, job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None}
        )

    def start(self) -> None:
        """Begin to tick."""
        add = self._scheduler.add_job
        add(self.retain, "interval", hours=1, next_run_time=self.clock() + timedelta(minutes=1))
        add(self.watch_disk, "interval", minutes=1)
        add(self.verify_destinations, "interval", minutes=2, next_run_time=self.clock() + timedelta(seconds=2))
        self._scheduler.start()

    def stop(self) -> None:
        """Stop ticking; a sweep, and the C-ECHO of one destination, ends first."""
        self._stopping.set()
        if self._scheduler.running:
            self._scheduler.shutdown(wait=True)

    def verify_destinations(self) -> None:
        """C-ECHO every destination and log when one goes or comes back."""
        for name, destination in self.config.destinations.items():
            if self._stopping.is_set():
                return
            wrong = self.echo(destination)
            if self._reachable.get(name) == (not wrong):
                continue
            self._reachable[name] = not wrong
            if wrong:
                logger.warning("Destination does not answer", extra={"action": "destination_down", "destination": name, "reason": wrong})  # fmt: skip  # noqa: E501
            else:
                logger.info("Destination answers", extra={"action": "destination_up", "destination": name})

    def watch_disk(self) -> None:
        """Warn before the receiver has to refuse."""
        free_mb = shutil.disk_usage(self.config.node.data).free / 1e6
        if free_mb < 2 * self.config.receive.accept_above_mb:
            logger.warning("Disk fills up", extra={"action": "disk_low", "free_mb": round(free_mb)})

    def retain(self) -> None:
        """Delete files past their retention time. Undelivered, running, held and dead work keeps its files."""
        now = self.clock()
        images = self._images(now - timedelta(days=self.config.retention.images_days))
        results = self._results(now - timedelta(days=self.config.retention.results_days))
        kept = self._quarantine(now - timedelta(days=self.config.retention.quarantine_days))
        self._associations(now - _ASSOCIATIONS)
        if images or results or kept:
            extra = {"action": "retention", "images": images, "results": results, "quarantined": kept}
            logger.info("Old files deleted", extra=extra)

    def _images(self, before: datetime) -> int:
        table, job, instance = schema.series, schema.job, schema.instance
        busy = select(job.c.series_uid).where(job.c.state.not_in([state.value for state in _ENDED]))
        old = (
            table.c.state.in_([state.value for state in _DECIDED]),
            table.c.last_at < before.timestamp(),
            table.c.series_uid.not_in(busy),
            table.c.study_uid.not_in(busy),  # a job of a study is filed under its UID
        )
        with self.database.read() as connection:
            uids = list(connection.scalars(select(table.c.series_uid).where(*old).join(
                instance, instance.c.series_uid == table.c.series_uid).distinct()))  # fmt: skip
        return sum(self._forget(uid, old) for uid in uids)

    def _forget(self, uid: str, old: tuple[ColumnElement[bool], ...]) -> int:
        """Delete one series' images under the write lock, so that none of it can arrive in between."""
        table = schema.series
        with self.database.write() as connection:
            if connection.scalar(select(table.c.series_uid).where(table.c.series_uid == uid, *old)) is None:
                return 0
            held = instances.of_series(connection, uid)
            for item in held:
                (self.config.node.data / "spool" / item.path).unlink(missing_ok=True)
            instances.forget(connection, [item.sop_instance_uid for item in held])
        return len(held)

    def _results(self, before: datetime) -> int:
        job, delivery = schema.job, schema.delivery
        unsent = select(delivery.c.job_id).where(delivery.c.state.not_in([state.value for state in deliveries.FINAL]))
        old = select(job.c.id).where(
            job.c.state.in_([state.value for state in _ENDED]),
            job.c.finished_at < before.timestamp(),
            job.c.id.not_in(unsent),
        )
        folder = self.config.node.data / "results"
        with self.database.read() as connection:
            found = [folder / str(job_id) for job_id in connection.scalars(old) if (folder / str(job_id)).is_dir()]
        for one in found:
            shutil.rmtree(one, ignore_errors=True)
        return len(found)

    def _associations(self, before: datetime) -> None:
        table = schema.association
        with self.database.write() as connection:
            connection.execute(table.delete().where(table.c.closed_at < before.timestamp()))

    def _quarantine(self, before: datetime) -> int:
        table = schema.quarantine
        with self.database.write() as connection:
            names = list(connection.scalars(select(table.c.name).where(table.c.at < before.timestamp())))
            connection.execute(table.delete().where(table.c.name.in_(names)))
        folder = self.config.node.data / "quarantine"
        for name in names:
            for path in folder.glob(f"{name}*"):
                path.unlink(missing_ok=True)
        return len(names)
