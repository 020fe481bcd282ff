"""What was told about a study is taken back when nobody knows whose it is, or its images are discarded."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import groupby
from typing import Any, Final

from sqlalchemy import Connection, insert, update

from dicomnode.store import notifications, schema
from dicomnode.store.events import note
from dicomnode.store.notifications import Kind, Notification, State

#: In the message itself: it is not the finding that changed.
REASON: Final = "The study carries several patient identities: it is not certain whose finding this was."


def take_back(connection: Connection, study_uid: str, at: datetime, reason: str = REASON) -> int:
    """Queue a retraction to everybody who was told something of ``study_uid`` that still stands. Return how many.

    It says ``reason``, follows the message that it takes back, names the same job, and so goes to the patient and order
    of that message. Called again it adds nothing: at the end of every chain then stands what takes it back.
    """
    every = sorted(notifications.of_study(connection, study_uid), key=lambda one: (*_chain(one), one.sequence))
    return sum(_end(connection, list(chain), at, reason) for _, chain in groupby(every, _chain))


def _chain(one: Notification) -> tuple[str, str, str]:
    return one.algorithm, one.version, one.hook


def _end(connection: Connection, chain: Sequence[Notification], at: datetime, reason: str) -> int:
    """End one chain with a retraction, if its last message says anything. Return 1 then, else 0."""
    told = [one for one in chain if one.told]
    while told and told[-1].state is State.PENDING and told[-1].attempt == 0:
        _set(connection, told.pop(), State.SUPPRESSED, reason)
    if not told or not told[-1].content["findings"]:
        return 0
    last = told[-1]
    for one in told:
        if one.state is State.PENDING:  # it was tried, so somebody may have it; it is not tried again
            _set(connection, one, State.DEAD, reason)
    retracted = [{**one, "presence": "undetermined", "probability": None} for one in last.content["findings"]]
    content = {"findings": [], "retracted": retracted, "replaces": last.key, "reason": reason}
    seconds = at.timestamp()
    values: dict[str, Any] = {
        "study_uid": last.study_uid, "series_uid": last.series_uid, "job_id": last.job_id,
        "algorithm": last.algorithm, "version": last.version, "hook": last.hook, "sequence": chain[-1].sequence + 1,
        "kind": Kind.RETRACTION.value, "state": State.PENDING.value, "not_before": seconds, "content": content,
        "created_at": seconds,
    }  # fmt: skip
    connection.execute(insert(schema.notification).values(**values))
    text = f"{Kind.RETRACTION} to {last.hook}: {reason}"
    note(connection, at, "notification_queued", text, series_uid=last.series_uid, job_id=last.job_id)
    return 1


def _set(connection: Connection, one: Notification, state: State, why: str) -> None:
    table = schema.notification
    connection.execute(
        update(table)
        .where(table.c.id == one.id, table.c.state == State.PENDING.value)
        .values(state=state.value, error=why)
    )
