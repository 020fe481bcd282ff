"""Rows behind the answers: one thread writes what is durable, in batches and in order, and pokes the node.

The files are the log. While the database is locked or away, rows wait here; when too many wait they are dropped and the
spool is scanned again once it is back. Nothing in this module can make a sender wait or lose an object.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from dicomnode.domain import Association, AssociationEnd, Instance, Quarantined
from dicomnode.faults import reached
from dicomnode.store import instances
from dicomnode.store.db import Database
from dicomnode.store.spool import Spool

logger = logging.getLogger(__name__)

#: How long rows are gathered after the first one [s]: a hundred times the cost of a transaction, unnoticed by a person.
_GATHER: Final = 0.05
#: The same when the flush is deferred: what a power cut may cost (see `config.Receive.durability`).
_GATHER_DEFERRED: Final = 0.1
_LARGEST_BATCH: Final = 1000
#: Rows that may wait for a database that is away, about 1.5 KB each.
_MOST_WAITING: Final = 20_000
_RETRY_AFTER: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Closed:
    """An association that ended."""

    association_id: int
    end: AssociationEnd
    at: datetime


Entry = Association | _Closed | Instance | Quarantined


class Committer:
    """The thread that owns the receiver's side of the database.

    Parameters
    ----------
    first
        What the thread does before anything else, and again when rows had to be dropped: the re-scan.
    poke
        Called after every commit.
    """

    def __init__(
        self,
        database: Database,
        spool: Spool,
        durability: str,
        first: Callable[[], None],
        poke: Callable[[], None],
    ) -> None:
        self._database, self._spool, self._durability = database, spool, durability
        self._first, self._poke = first, poke
        self._entries: queue.SimpleQueue[Entry | Callable[[], Instance] | None] = queue.SimpleQueue()
        self._waiting: list[Entry] = []
        self._rescan, self._away = True, False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="receive-committer", daemon=True)

    def start(self) -> None:
        """Start writing."""
        self._thread.start()

    def stop(self, timeout: float) -> bool:
        """Write what waits and end; False when the database did not take it in time."""
        self._stop.set()
        self._entries.put(None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def opened(self, association: Association) -> None:
        """An association was accepted."""
        self._entries.put(association)

    def closed(self, association_id: int, end: AssociationEnd, at: datetime) -> None:
        """It ended."""
        self._entries.put(_Closed(association_id, end, at))

    def received(self, row: Callable[[], Instance]) -> None:
        """An instance was filed; its row is made here, behind the answer."""
        self._entries.put(row)

    def quarantined(self, item: Quarantined) -> None:
        """An object was set aside."""
        self._entries.put(item)

    def _run(self) -> None:
        while True:
            written = True
            try:
                self._gather()
                if self._waiting or self._rescan:
                    self._flush()
                    written = self._write()
            except Exception:  # service loop: rows wait, files are safe, receiving goes on
                logger.exception("Rows could not be written", extra={"action": "commit_failed"})
                written = False
            if self._stop.is_set() and (not written or (not self._waiting and self._entries.empty())):
                return
            if not written:
                self._stop.wait(_RETRY_AFTER)

    def _gather(self) -> None:
        """Wait for a first entry, then a little for company."""
        if not self._waiting and not self._rescan:
            self._keep(self._entries.get())
            self._stop.wait(_GATHER_DEFERRED if self._durability == "deferred" else _GATHER)
        while len(self._waiting) < _LARGEST_BATCH or self._away:
            try:
                self._keep(self._entries.get_nowait())
            except queue.Empty:
                return

    def _keep(self, entry: Entry | Callable[[], Instance] | None) -> None:
        if entry is None:
            return
        self._waiting.append(entry() if callable(entry) else entry)
        if len(self._waiting) > _MOST_WAITING:
            logger.error(
                "%d rows wait for the database: dropped, the spool will be scanned when it is back",
                len(self._waiting),
                extra={"action": "rows_dropped"},
            )
            self._waiting = [kept for kept in self._waiting if isinstance(kept, Association | _Closed)]
            self._rescan = True

    def _flush(self) -> None:
        """Deferred: no row before the file is on the disk."""
        if self._durability == "deferred" and any(isinstance(entry, Instance) for entry in self._waiting):
            self._spool.sync_everything()

    def _write(self) -> bool:
        """Commit what waits; False when the database is away."""
        try:
            if self._rescan:
                self._first()
                self._rescan = False
            self._commit(self._waiting)
        except (OperationalError, InterfaceError) as error:
            if not self._away:
                logger.error(
                    "The database is not available, receiving goes on without it: %s",
                    error.orig,
                    extra={"action": "database_away"},
                )
            self._away = True
            return False
        except DBAPIError:
            self._one_by_one()
        if self._away:
            logger.info("The database is back", extra={"action": "database_back"})
            self._away = False
        if self._waiting:
            self._waiting = []
            reached("after-row")
        self._poke()
        return True

    def _commit(self, entries: list[Entry]) -> None:
        if not entries:
            return
        received = [entry for entry in entries if isinstance(entry, Instance)]
        with self._database.write() as connection:
            for entry in entries:
                if isinstance(entry, Association):
                    instances.open_association(connection, entry)
            instances.record(connection, received)
            _record_quarantined(connection, [entry for entry in entries if isinstance(entry, Quarantined)])
            for entry in entries:
                if isinstance(entry, _Closed):
                    instances.close_association(connection, entry.association_id, entry.end, entry.at)

    def _one_by_one(self) -> None:
        """The database takes the batch for wrong: keep the one bad row from holding up the rest."""
        for entry in self._waiting:
            try:
                self._commit([entry])
            except DBAPIError:
                logger.exception("A row was refused and is left out", extra={"action": "row_refused"})


def _record_quarantined(connection: Connection, items: list[Quarantined]) -> None:
    """File new quarantine items; the same object set aside again has the same name."""
    if not items:
        return
    known = instances.quarantine_names(connection)
    for item in items:
        if item.name not in known:
            known.add(item.name)
            instances.quarantine(connection, item)
