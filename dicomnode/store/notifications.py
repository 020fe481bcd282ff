"""Who is told of a positive urgent finding, and whom that must be taken back from. Without anybody's identity.

Of one study, algorithm, version and hook there is one chain of messages: at most one ``positive``, then only what
makes it true again: ``correction`` where something that was said no longer holds, or an urgent finding was not said;
``retraction`` where nothing urgent is left. What a chain should say follows from the newest result of every series of
the study, so that it does not depend on the order in which results come.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import ColumnElement, Connection, Row, func, insert, select, update

from dicomnode.config import Hook
from dicomnode.dicom import digest
from dicomnode.store import schema
from dicomnode.store.events import note
from dicomnode.store.statements import Finding, Statement, code_of, newest, presence_now, present

if TYPE_CHECKING:
    from dicomnode.store.jobs import Job

#: Length of a message's key: MSH-10 holds 20 characters (HL7 v2.5.1, 2.14.9.10).
_KEY: Final = 20


class Kind(StrEnum):
    """What a message does."""

    POSITIVE = "positive"
    CORRECTION = "correction"
    RETRACTION = "retraction"


class State(StrEnum):
    """Where a message stands: pending -> sent, dead (refused, or old news) or suppressed (never sent, and why)."""

    PENDING = "pending"
    SENT = "sent"
    DEAD = "dead"
    SUPPRESSED = "suppressed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Notification:
    """One message as the table has it."""

    id: int
    study_uid: str
    series_uid: str
    job_id: int
    algorithm: str
    version: str
    hook: str
    sequence: int
    kind: Kind
    state: State
    attempt: int
    refusals: int
    not_before: datetime
    error: str
    #: Digest of the order it was sent for; empty before its first try.
    order_key: str
    #: ``findings`` that hold, ``retracted`` ones with their presence now, ``replaces``: key of the message before.
    content: Mapping[str, Any]
    created_at: datetime
    sent_at: datetime | None

    @property
    def key(self) -> str:
        """Idempotency key: the same for every try, so that a receiver can tell a repetition."""
        whole = digest(self.study_uid, self.algorithm, self.version, self.hook, str(self.sequence))
        return whole[:_KEY].upper()

    @property
    def told(self) -> bool:
        """Whether somebody has it or may have it, now or later: it was not suppressed, or only after an earlier try."""
        return self.state is not State.SUPPRESSED or self.attempt > 1


def _row(row: Row[Any]) -> Notification:
    values = dict(row._mapping)
    values["kind"], values["state"] = Kind(row.kind), State(row.state)
    for name in ("not_before", "created_at", "sent_at"):
        values[name] = None if values[name] is None else datetime.fromtimestamp(values[name], UTC)
    return Notification(**values)


# -- what is to be said


def announce(
    connection: Connection,
    job: Job,
    findings: Sequence[Finding],
    hooks: Mapping[str, Hook],
    at: datetime,
    reason: str = "",
) -> int:
    """Queue what ``hooks`` must be told now that ``job`` has ended with ``findings``. Return the number of messages.

    Call it in the transaction that stores the job; also for a job that found its input unsuitable, with no findings:
    what an older revision said then no longer holds. Where it is not a result that changed, what takes something back
    says the ``reason``.
    """
    if not hooks:
        return 0
    names, algorithm = _pipelines(connection, job.pipeline)
    statements = newest(connection, job, findings, names)
    number = 0
    for name, hook in hooks.items():
        versions = {job.version, *_versions_told(connection, job.study_uid, algorithm, name)}
        for version in sorted(versions):
            chain = _Chain(connection, job, algorithm, version, name, at)
            number += chain.bring_up_to_date(statements, hook.urgency, reason)
    return number


def _pipelines(connection: Connection, name: str) -> tuple[list[str], str]:
    """Every configured pipeline with the algorithm of pipeline ``name``, and the algorithm's name."""
    table = schema.pipeline
    algorithm = connection.scalar(select(table.c.algorithm).where(table.c.name == name)) or name
    return [name, *connection.scalars(select(table.c.name).where(table.c.algorithm == algorithm))], algorithm


def _versions_told(connection: Connection, study_uid: str, algorithm: str, hook: str) -> list[str]:
    table = schema.notification
    query = select(table.c.version).where(
        table.c.study_uid == study_uid, table.c.algorithm == algorithm, table.c.hook == hook
    )
    return list(connection.scalars(query.distinct()))


class _Chain:
    """The messages to one hook about one study by one version of an algorithm."""

    def __init__(self, connection: Connection, job: Job, algorithm: str, version: str, hook: str, at: datetime) -> None:
        self._connection, self._job, self._at = connection, job, at
        self._algorithm, self._version, self._hook = algorithm, version, hook
        table = schema.notification
        query = select(table).where(
            table.c.study_uid == job.study_uid, table.c.algorithm == algorithm,
            table.c.version == version, table.c.hook == hook,
        )  # fmt: skip
        every = [_row(row) for row in connection.execute(query.order_by(table.c.sequence))]
        self._next = every[-1].sequence + 1 if every else 0
        #: Messages that somebody has, or may have.
        self._told = [one for one in every if one.told]

    def bring_up_to_date(self, statements: Sequence[Statement], urgencies: Sequence[str], reason: str) -> int:
        """Queue the message that is missing, if one is. Return 1 then, else 0."""
        seen = present(statements)
        if self._version == self._job.version:
            wanted = present([one for one in statements if one.version == self._version])
        else:  # an older version says nothing new; what it said stands as long as any version sees it
            wanted = {code: one for code, one in self._said().items() if code in seen}
        if not any(one["urgency"] in urgencies for one in wanted.values()):
            wanted = {}
        if self._holds(wanted, urgencies):
            return 0
        self._withdraw_unsent()
        if self._holds(wanted, urgencies):
            return 0
        self._insert(wanted, statements, reason)
        return 1

    def _said(self) -> dict[tuple[str, str], Finding]:
        """What the last message says."""
        return {code_of(one): one for one in self._told[-1].content["findings"]} if self._told else {}

    def _holds(self, wanted: Mapping[tuple[str, str], Finding], urgencies: Sequence[str]) -> bool:
        """Whether the last message is true and misses nothing urgent."""
        said = self._said()
        true = all(code in wanted and wanted[code]["urgency"] == one["urgency"] for code, one in said.items())
        return true and all(code in said for code, one in wanted.items() if one["urgency"] in urgencies)

    def _withdraw_unsent(self) -> None:
        """pending -> suppressed for messages at the end of the chain that nobody can have: never tried.

        One that says why it takes something back goes out: the same finding may be another patient's by now.
        """
        table = schema.notification
        while self._told and self._told[-1].state is State.PENDING and self._told[-1].attempt == 0:
            if self._told[-1].content.get("reason"):
                break
            done = self._connection.execute(
                update(table)
                .where(table.c.id == self._told[-1].id, table.c.state == State.PENDING.value, table.c.attempt == 0)
                .values(state=State.SUPPRESSED.value, error="a newer result came before it was sent")
            )
            if done.rowcount != 1:
                break
            self._told.pop()

    def _insert(self, wanted: Mapping[tuple[str, str], Finding], statements: Sequence[Statement], reason: str) -> None:
        gone = [one for code, one in self._said().items() if code not in wanted]
        kind = Kind.POSITIVE if not self._told else Kind.CORRECTION if wanted else Kind.RETRACTION

        def now(one: Finding) -> str:
            return "undetermined" if reason else presence_now(one, statements)

        content: dict[str, Any] = {
            "findings": [dict(one) for one in wanted.values()],
            "retracted": [{**one, "presence": now(one), "probability": None} for one in gone],
            "replaces": self._told[-1].key if self._told else "",
        }
        if gone and reason:
            content["reason"] = reason
        job, seconds = self._job, self._at.timestamp()
        self._connection.execute(
            insert(schema.notification).values(
                study_uid=job.study_uid, series_uid=job.series_uid, job_id=job.id, algorithm=self._algorithm,
                version=self._version, hook=self._hook, sequence=self._next, kind=kind.value,
                state=State.PENDING.value, not_before=seconds, content=content, created_at=seconds,
            )
        )  # fmt: skip
        text = f"{kind} to {self._hook}: {', '.join(one['code'][2] for one in wanted.values()) or 'nothing urgent'}"
        note(self._connection, self._at, "notification_queued", text, series_uid=job.series_uid, job_id=job.id)


# -- sending


def claim(connection: Connection, hook: str, now: datetime, lease: timedelta = timedelta(0)) -> Notification | None:
    """The message to ``hook`` that goes next, its try counted; None if nothing is due.

    A message waits until the one before it in its chain has an outcome. For as long as ``lease`` nobody else claims it,
    since another node may serve the same hook; one whose outcome is not recorded by then is due again.
    """
    table = schema.notification
    row = connection.execute(
        select(table)
        .where(*_next_of_chains(hook), table.c.not_before <= now.timestamp())
        .order_by(table.c.id)
        .limit(1)
        .with_for_update(skip_locked=True)  # SQLite has no such clause and needs none: the transaction is immediate
    ).first()
    if row is None:
        return None
    changes = {"attempt": row.attempt + 1, "not_before": (now + lease).timestamp()}
    connection.execute(update(table).where(table.c.id == row.id).values(**changes))
    return get(connection, row.id)


def _next_of_chains(hook: str) -> tuple[ColumnElement[bool], ...]:
    """The pending messages to ``hook`` before which none of their chain is pending."""
    table, before = schema.notification, schema.notification.alias()
    earlier = select(before.c.id).where(
        before.c.study_uid == table.c.study_uid,
        before.c.algorithm == table.c.algorithm,
        before.c.version == table.c.version,
        before.c.hook == table.c.hook,
        before.c.sequence < table.c.sequence,
        before.c.state == State.PENDING.value,
    )
    return table.c.hook == hook, table.c.state == State.PENDING.value, ~earlier.exists()


def get(connection: Connection, notification_id: int) -> Notification | None:
    """One message, or None."""
    row = connection.execute(select(schema.notification).where(schema.notification.c.id == notification_id)).first()
    return None if row is None else _row(row)


def of_study(connection: Connection, study_uid: str) -> list[Notification]:
    """Every message about a study, oldest first."""
    table = schema.notification
    query = select(table).where(table.c.study_uid == study_uid).order_by(table.c.id)
    return [_row(row) for row in connection.execute(query)]


def next_due(connection: Connection, hook: str) -> datetime | None:
    """When the next message to a hook may go; None if none waits."""
    seconds = connection.scalar(select(func.min(schema.notification.c.not_before)).where(*_next_of_chains(hook)))
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def unsent(connection: Connection) -> dict[str, int]:
    """How many messages wait for each hook."""
    hook, state = schema.notification.c.hook, schema.notification.c.state
    query = select(hook, func.count()).where(state == State.PENDING.value).group_by(hook)
    return {row[0]: row[1] for row in connection.execute(query)}


def door(connection: Connection, one: Notification) -> datetime | None:
    """When the first image of the series' revision came in; None if nobody knows any more."""
    seconds = connection.scalar(select(schema.series.c.first_at).where(schema.series.c.series_uid == one.series_uid))
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def order_elsewhere(connection: Connection, one: Notification, order_key: str) -> bool:
    """Whether a message about another study went out for the same order; if not, this one is for it now."""
    table = schema.notification
    other = connection.scalar(
        select(table.c.id)
        .where(
            table.c.order_key == order_key, table.c.study_uid != one.study_uid,
            table.c.state.in_([State.SENT.value, State.PENDING.value]),
        )
        .limit(1)
    )  # fmt: skip
    if other is None:
        connection.execute(update(table).where(table.c.id == one.id).values(order_key=order_key))
    return other is not None


def sent(connection: Connection, one: Notification, at: datetime) -> None:
    """pending -> sent."""
    _end(connection, one, State.SENT, "", sent_at=at.timestamp())
    note(connection, at, "notification_sent", f"{one.kind} to {one.hook}", series_uid=one.series_uid, job_id=one.job_id)


def postpone(connection: Connection, one: Notification, until: datetime, why: str, *, refused: bool) -> None:
    """Stay pending until later; ``refused`` by somebody who answered, or not heard of."""
    table = schema.notification
    values = {"not_before": until.timestamp(), "error": why[:2000], "refusals": one.refusals + refused}
    connection.execute(update(table).where(table.c.id == one.id).values(**values))


def die(connection: Connection, one: Notification, at: datetime, why: str) -> None:
    """pending -> dead: it was refused too often, or is old news."""
    _end(connection, one, State.DEAD, why)
    text = f"{one.kind} to {one.hook}: {why}"
    note(connection, at, "notification_dead", text, series_uid=one.series_uid, job_id=one.job_id)


def suppress(connection: Connection, one: Notification, at: datetime, why: str) -> None:
    """pending -> suppressed, and with it what follows it in its chain, unless somebody may have any of it."""
    table = schema.notification
    nobody_told = one.kind is Kind.POSITIVE and one.attempt <= 1
    of_it = table.c.sequence >= one.sequence if nobody_told else table.c.id == one.id
    connection.execute(
        update(table)
        .where(
            table.c.study_uid == one.study_uid, table.c.algorithm == one.algorithm, table.c.version == one.version,
            table.c.hook == one.hook, of_it, table.c.state == State.PENDING.value,
        )
        .values(state=State.SUPPRESSED.value, error=why[:2000])
    )  # fmt: skip
    text = f"{one.kind} to {one.hook} was not sent: {why}"
    note(connection, at, "notification_suppressed", text, series_uid=one.series_uid, job_id=one.job_id)


def _end(connection: Connection, one: Notification, state: State, why: str, **values: float) -> None:
    table = schema.notification
    connection.execute(update(table).where(table.c.id == one.id).values(state=state.value, error=why[:2000], **values))
