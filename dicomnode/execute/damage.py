"""Inputs that turned out to be damaged when they were read: set aside in quarantine, so that sound ones can come.

Nothing is lost on the way: a file gets its second name in quarantine, then the rows change in one transaction, then it
loses its first name. Whatever a crash leaves is done again: by the job, which runs again, or by the re-scan at start.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, func, select, update

from dicomnode.dicom import digest
from dicomnode.domain import Quarantined
from dicomnode.store import instances, schema
from dicomnode.store.jobs import Job
from dicomnode.store.quarantine import Quarantine

logger = logging.getLogger(__name__)

#: Begins the names of such files.
_CODE: Final = "damaged"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAside:
    """One damaged input: where it lay, and what is said of it."""

    path: Path
    item: Quarantined


def keep(connection: Connection, data: Path, uids: Sequence[str], reason: str, at: datetime) -> list[SetAside]:
    """Give the files of the instances ``uids`` a second name in quarantine.

    Parameters
    ----------
    reason
        What is wrong with them and what to do, in a sentence for the operator.
    """
    table, folder = schema.instance, Quarantine(data)
    kept = []
    for row in connection.execute(select(table).where(table.c.sop_instance_uid.in_(list(uids)))):
        path = data / "spool" / row.path
        if path.exists():
            item = folder.keep_too(
                path, code=_CODE, reason=f"{row.sop_instance_uid}: {reason}", sop_instance_uid=row.sop_instance_uid,
                series_uid=row.series_uid, calling_ae=row.calling_ae, at=at,
            )  # fmt: skip
            kept.append(SetAside(path=path, item=item))
    return kept


def came_anew(connection: Connection, job: Job, uids: Sequence[str]) -> bool:
    """Whether one of the instances ``uids`` came after this attempt had begun: then it is not what was found damaged.

    So it is where another job of the series found the same damage first, and sound data came before this one had ended.
    """
    table = schema.instance
    last = connection.scalar(select(func.max(table.c.received_at)).where(table.c.sop_instance_uid.in_(list(uids))))
    return last is not None and job.started_at is not None and last >= job.started_at.timestamp()


def record(connection: Connection, job: Job, kept: Sequence[SetAside]) -> None:
    """Forget the instances, note where their files are, and let the same UIDs make a job again.

    The job made nothing, so that no object carries a UID that hangs on its key: sound data under the same UIDs gets it.
    """
    if not kept:
        return
    known = instances.quarantine_names(connection)
    for one in kept:
        if one.item.name not in known:  # sent again as damaged as before: it lies there already
            instances.quarantine(connection, one.item)
    instances.forget(connection, [one.item.sop_instance_uid for one in kept])
    table = schema.series
    for series_uid, number in Counter(one.item.series_uid for one in kept).items():  # a study's job reads several
        counted = table.c.instances - number
        connection.execute(update(table).where(table.c.series_uid == series_uid).values(instances=counted))
    table = schema.job
    retired = digest("damaged input", job.key, str(job.id))
    connection.execute(update(table).where(table.c.id == job.id).values(key=retired))


def clear(kept: Sequence[SetAside]) -> None:
    """Take the first names away, now that everything is recorded."""
    for one in kept:
        one.path.unlink(missing_ok=True)
        extra = {
            "action": "instance_quarantined", "kept_as": one.item.name, "sop_instance_uid": one.item.sop_instance_uid,
            "series_uid": one.item.series_uid, "reason": one.item.reason,
        }  # fmt: skip
        logger.error("Damaged input set aside", extra=extra)


def told(reason: str, kept: Sequence[SetAside]) -> str:
    """The outcome of the job, in a sentence."""
    return f"{reason} (set aside in quarantine: {', '.join(one.item.name for one in kept)})" if kept else reason
