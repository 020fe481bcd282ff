"""Everything the receiver process consists of, put together: start in this order, stop in the opposite one."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from dicomnode.errors import NodeError
from dicomnode.receive.adopt import adopt
from dicomnode.receive.committer import Committer
from dicomnode.receive.intake import Intake
from dicomnode.receive.server import Server, application_entity
from dicomnode.receive.settings import Settings
from dicomnode.receive.watermark import Watermark
from dicomnode.store import instances
from dicomnode.store.db import open_database
from dicomnode.store.quarantine import Quarantine
from dicomnode.store.spool import Spool

logger = logging.getLogger(__name__)

#: How long objects that are on their way in may take at stop [s].
GRACE: Final = 5.0
#: How long the last rows may take at stop [s]; the next start finds the files anyway.
_LAST_ROWS: Final = 10.0


def _now() -> datetime:
    return datetime.now(UTC)


class Receiver:
    """A Storage SCP with its spool; the database must be migrated.

    Parameters
    ----------
    poke
        Called whenever rows were committed.
    """

    def __init__(self, settings: Settings, poke: Callable[[], None] = lambda: None) -> None:
        self.settings = settings
        data = Path(settings.data)
        data.mkdir(parents=True, exist_ok=True)
        self._database = open_database(settings.database, data, durable=False)
        self.spool, self.quarantine = Spool(data), Quarantine(data)
        self.watermark = Watermark(data, settings.refuse_below_mb, settings.accept_above_mb)
        self.committer = Committer(self._database, self.spool, settings.durability, self._rescan, poke)
        intake = Intake(settings, self.spool, self.quarantine, self.watermark, self.committer, _now)
        self._began = _now()
        self._left_over, self._stopped = True, False
        try:
            self.server = Server(application_entity(intake), (settings.address, settings.port), intake)
        except OSError as error:
            self._database.close()
            raise NodeError(f"cannot listen on {settings.address}:{settings.port}: {error.strerror}") from error
        self._accepting = threading.Thread(
            target=self.server.serve_forever, args=(0.1,), name="receive-accept", daemon=True
        )

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.server.server_address[1])

    def start(self) -> None:
        """Clear away what a dead receiver left unfinished, then let senders in."""
        removed = self.spool.remove_leftovers()
        self.quarantine.remove_leftovers()
        if removed:
            extra = {"action": "leftovers_removed", "files": removed}
            logger.info("%d half-received file(s) of an earlier run removed", removed, extra=extra)
        self.committer.start()
        self._accepting.start()
        logger.info(
            "Receiving as %s on port %d",
            self.settings.ae_titles[0],
            self.port,
            extra={
                "action": "receiver_ready",
                "port": self.port,
                "engine": self.settings.engine,
                "durability": self.settings.durability,
            },
        )

    def stop(self, grace: float = GRACE) -> None:
        """Let nobody in, let what is on its way finish for ``grace`` seconds, end associations, write the last rows."""
        if self._stopped:
            return
        self._stopped = True
        self.server.close_door()
        for association in self.server.associations:
            association.stop_soon()
        if not self._emptied(grace):
            for association in self.server.associations:
                association.cut()
            self._emptied(1.0)
        complete = self.committer.stop(_LAST_ROWS)
        self._database.close()
        self.spool.close()
        logger.info("Receiver stopped", extra={"action": "receiver_stopped", "rows_complete": complete})

    def _emptied(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        while self.server.associations:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def _rescan(self) -> None:
        """The committer's first task: what is in the folders gets its row."""
        if self._left_over:
            with self._database.write() as connection:
                instances.close_leftover_associations(connection, self._began)
            self._left_over = False
        adopt(self._database, self.spool, self.quarantine, leading_zeros=self.settings.accept_leading_zeros)
