"""The start-up re-scan: whatever lies in the spool and the quarantine gets its row; half-written files do not stay."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Final

from dicomnode.dicom import OUT_OF_RESOURCES
from dicomnode.domain import Instance, Quarantined
from dicomnode.errors import ReceiveError, StoreError
from dicomnode.receive.reader import read_instance
from dicomnode.store import instances
from dicomnode.store.db import Database
from dicomnode.store.quarantine import Quarantine
from dicomnode.store.spool import Part, Spool

logger = logging.getLogger(__name__)

_BATCH: Final = 500


def adopt(database: Database, spool: Spool, quarantine: Quarantine, *, leading_zeros: bool) -> tuple[int, int]:
    """Insert rows for files that the tables lack; short transactions, so that nobody waits for a long scan.

    Returns
    -------
    adopted
        Instances that got their row.
    set_aside
        Files that could not be read and went to quarantine: nobody was promised that they are kept.
    """
    with database.read() as connection:
        known = instances.paths(connection)
    found: list[Instance] = []
    adopted = set_aside = 0
    for name in spool.files():
        if name in known:
            continue
        try:
            found.append(read_instance(spool, name, leading_zeros=leading_zeros))
        except FileNotFoundError:
            continue  # deleted meanwhile
        except (ReceiveError, StoreError) as error:
            _set_aside(spool, quarantine, name, error)
            set_aside += 1
        if len(found) >= _BATCH:
            adopted += _record(database, found)
            found = []
    adopted += _record(database, found)
    _list_quarantine(database, quarantine)
    if adopted or set_aside:
        logger.warning(
            "The spool held %d instance(s) without a row; %d file(s) could not be read and are in quarantine",
            adopted,
            set_aside,
            extra={"action": "spool_adopted", "adopted": adopted, "set_aside": set_aside},
        )
    return adopted, set_aside


def _record(database: Database, found: list[Instance]) -> int:
    if not found:
        return 0
    with database.write() as connection:
        return instances.record(connection, found)


def _list_quarantine(database: Database, quarantine: Quarantine) -> None:
    with database.read() as connection:
        listed = instances.quarantine_names(connection)
    missing = [item for item in quarantine.items() if item.name not in listed]
    if missing:
        with database.write() as connection:
            for item in missing:
                instances.quarantine(connection, item)


def _set_aside(spool: Spool, quarantine: Quarantine, name: str, error: ReceiveError | StoreError) -> Quarantined:
    path = spool.folder / name
    return quarantine.keep(
        Part.found(path),
        code="unreadable-file",
        reason=f"spool file {name} could not be read at start: {error}",
        status=error.status if isinstance(error, ReceiveError) else OUT_OF_RESOURCES,
        sop_instance_uid=path.stem,
        series_uid="",
        calling_ae="",
        at=datetime.now(UTC),
    )
