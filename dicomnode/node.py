"""The only place that knows every room: builds them from the configuration, starts them, stops them in order.

Start: database, receiver process, MRD listener, assembler, dispatcher, outbox, notifier, housekeeping.
Stop: the receiver first (no new work), then the rooms along the flow, so that what was acknowledged is in the table.
"""

from __future__ import annotations

import faulthandler
import fcntl
import logging
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Final

from pydicom import Dataset

from dicomnode import __version__
from dicomnode.assemble.assembler import Assembler
from dicomnode.config import Config, Destination, MrdQuery, Query
from dicomnode.dispatch import Outbox, count_instances, echo, find_study
from dicomnode.dispatch.notify import Notifier
from dicomnode.errors import ConfigError, NodeError
from dicomnode.execute.dispatcher import Dispatcher
from dicomnode.execute.slots import local_executor
from dicomnode.housekeep import Housekeeper
from dicomnode.receive.process import ListeningProcess, ReceiverProcess
from dicomnode.rounds import together
from dicomnode.rules import check_rules
from dicomnode.store import results, schema
from dicomnode.store.db import Database, migrate, open_database

if TYPE_CHECKING:
    from dicomnode.receive.mrd.filer import RawFiler
    from dicomnode.receive.mrd.process import MRDProcess

logger = logging.getLogger(__name__)

#: Pause before a receiver that died is started again [s].
_RESTART_S: Final = 0.5
#: Longest orderly stop; less than what systemd and container engines are told to wait (deploy/) [s].
STOP_S: Final = 75.0


class Node:
    """One running node."""

    def __init__(self, config: Config) -> None:
        check_rules(config.rules)
        self.config = config
        self._stop = threading.Event()
        self._lock: IO[str] | None = None
        data = config.node.data
        try:
            for name in ("spool", "quarantine", "results", "raw"):
                (data / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"node.data: cannot use {data}: {error.strerror}") from error
        self._lock = _lock(data)
        self.database: Database = open_database(config.node.database, data)
        migrate(self.database)
        self._sweep_results(data / "results")
        self.receiver = ReceiverProcess(config)
        self.outbox = Outbox(config, self.database)
        self.notifier = Notifier(config, self.database)
        self.dispatcher = Dispatcher(config, self.database, local_executor(config), on_stored=self._stored)
        self.assembler = Assembler(config, self.database, count=self._count, on_queued=self.dispatcher.wake)
        self.housekeeper = Housekeeper(config, self.database, echo=self._echo)
        self.mrd: MRDProcess | None = None
        self.filer: RawFiler | None = None
        self._watches = [threading.Thread(target=self._supervise, args=(self.receiver, self.assembler.wake))]
        if config.mrd is not None:
            self._take_raw_data(config)

    def _take_raw_data(self, config: Config) -> None:
        """Build the rooms of raw k-space; a node without them does not load what they need (h5py, ismrmrd)."""
        from dicomnode.execute import stream
        from dicomnode.receive.mrd.filer import RawFiler
        from dicomnode.receive.mrd.process import MRDProcess

        self.mrd = MRDProcess(config, stream.command(config))
        self.filer = RawFiler(config, self.database, find=self._find, on_filed=self.assembler.wake)
        self._watches.append(threading.Thread(target=self._supervise, args=(self.mrd, self.filer.wake)))

    def _stored(self) -> None:
        """A job ended: what it made may leave, and what it found may be told."""
        self.outbox.wake()
        self.notifier.wake()

    def _count(self, query: Query, study_uid: str, series_uid: str) -> int | None:
        return count_instances(query, self.config.node.ae_title, study_uid, series_uid)

    def _find(self, query: MrdQuery, study_uid: str) -> Dataset | None:
        return find_study(query, self.config.node.ae_title, study_uid)

    def _echo(self, destination: Destination) -> str:
        return echo(destination, destination.calling_ae_title or self.config.node.ae_title)

    def _sweep_results(self, folder: Path) -> None:
        """Delete run folders that a crash left before their commit."""
        with self.database.read() as connection:
            rows = connection.execute(schema.output.select().with_only_columns(schema.output.c.path))
            known = {Path(row.path).parent.parts[-2:] for row in rows}
        swept = results.sweep(folder, {(job, run) for job, run in known})
        if swept:
            logger.info("Unfinished runs swept", extra={"action": "results_swept", "runs": swept})

    def start(self) -> None:
        """Start every room; returns when the receiver listens."""
        self.receiver.start()
        if self.mrd is not None and self.filer is not None:
            self.mrd.start()
            self.filer.start()
        self.dispatcher.start()
        self.assembler.start()
        self.outbox.start()
        self.notifier.start()
        self.housekeeper.start()
        for watch in self._watches:
            watch.start()
        logger.info(
            "Node is up",
            extra={
                "action": "node_up", "version": __version__, "ae_title": self.config.node.ae_title,
                "port": self.config.receive.port, "rules": len(self.config.rules),
            },
        )  # fmt: skip

    def _supervise(self, child: ListeningProcess, wake: Callable[[], None]) -> None:
        """Pass a listener's pokes on, and start it again if it dies."""
        while not self._stop.is_set():
            if child.wait(1.0):
                wake()
            if not child.alive and not self._stop.is_set():
                logger.error(
                    "A listener died: %s; starting it again", child.name, extra={"action": "receiver_restarted"}
                )
                self._stop.wait(_RESTART_S)
                try:
                    child.start()
                except (NodeError, OSError) as error:
                    extra = {"action": "receiver_failed", "error": str(error)}
                    logger.error("%s does not start; trying again", child.name, extra=extra)

    def stop(self) -> None:
        """Stop every room along the flow; what is unfinished is in the table and goes on at the next start."""
        if self._stop.is_set():
            return
        self._stop.set()
        for watch in self._watches:
            if watch.is_alive():
                watch.join(10)
        self.receiver.close()
        if self.mrd is not None:
            self.mrd.close()
        if self.filer is not None:
            self.filer.stop()
        self.assembler.stop()
        self.dispatcher.stop()
        together(self.outbox.stop, self.notifier.stop, self.housekeeper.stop)
        self.database.close()
        if self._lock is not None:
            self._lock.close()
        logger.info("Node is down", extra={"action": "node_down"})

    def run(self) -> int:
        """Start, wait for SIGTERM or SIGINT, stop. Return the exit code.

        A stop that takes longer than ``STOP_S`` is ended hard, with code 1 and the place of every thread on standard
        error: all that is unfinished is in the table or the spool, as after a power cut.
        """
        told = threading.Event()

        def tell(_number: int, _frame: FrameType | None) -> None:
            told.set()

        signal.signal(signal.SIGTERM, tell)
        signal.signal(signal.SIGINT, tell)
        try:
            self.start()
            while not told.wait(1.0):  # looks again, should the kernel have given the signal to another thread
                pass
        finally:
            faulthandler.dump_traceback_later(STOP_S, exit=True)
            self.stop()
        return 0


def _lock(data: Path) -> IO[str]:
    """Hold the data folder: two nodes on one spool would answer for each other."""
    handle = (data / "node.lock").open("w", encoding="ascii")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        handle.close()
        raise ConfigError(f"node.data: another node already uses {data}") from error
    return handle
