"""The outbox: one row per object and destination, and the moves of its state machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update

from dicomnode.domain import DELIVERY_MOVES, FALLS_BACK_TO, DeliveryState, Flavour, JobState, ObjectKind
from dicomnode.errors import IllegalMove
from dicomnode.store import schema
from dicomnode.store.events import note

#: A delivery in one of these needs nothing more.
FINAL = (DeliveryState.DELIVERED, DeliveryState.COMMITTED, DeliveryState.CANCELLED)
#: A flavour that may be refused, and what goes instead, in words.
_FORMS = {
    Flavour.LABELMAP: ("label map", "binary segmentation"),
    Flavour.ENHANCED: ("Enhanced MR", "single-frame series"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One object on its way to one destination."""

    id: int
    job_id: int
    study_uid: str
    destination: str
    state: DeliveryState
    #: How often the destination was offered this object. Calls that found nobody do not count: see `hand_back`.
    attempt: int
    not_before: datetime
    status: int | None
    error: str
    sop_class_uid: str
    sop_instance_uid: str
    series_uid: str
    path: Path
    kind: ObjectKind
    flavour: Flavour


_QUERY = select(
    schema.delivery,
    schema.output.c.sop_class_uid,
    schema.output.c.sop_instance_uid,
    schema.output.c.series_uid,
    schema.output.c.path,
    schema.output.c.kind,
    schema.output.c.flavour,
).join(schema.output, schema.output.c.id == schema.delivery.c.output_id)


def _delivery(row: Row[Any]) -> Delivery:
    return Delivery(
        id=row.id,
        job_id=row.job_id,
        study_uid=row.study_uid,
        destination=row.destination,
        state=DeliveryState(row.state),
        attempt=row.attempt,
        not_before=datetime.fromtimestamp(row.not_before, UTC),
        status=row.status,
        error=row.error,
        sop_class_uid=row.sop_class_uid,
        sop_instance_uid=row.sop_instance_uid,
        series_uid=row.series_uid,
        path=Path(row.path),
        kind=ObjectKind(row.kind),
        flavour=Flavour(row.flavour),
    )


def add(
    connection: Connection,
    output_id: int,
    job_id: int,
    study_uid: str,
    destination: str,
    at: datetime,
    *,
    held: bool = False,
) -> None:
    """Ask for one object to be sent to one destination; ``held``: once a person has let its job go."""
    connection.execute(
        insert(schema.delivery).values(
            output_id=output_id,
            job_id=job_id,
            study_uid=study_uid,
            destination=destination,
            state=(DeliveryState.HELD if held else DeliveryState.PENDING).value,
            not_before=at.timestamp(),
            updated_at=at.timestamp(),
        )
    )


def due(connection: Connection, destination: str, now: datetime, limit: int = 500) -> list[Delivery]:
    """Objects to send to a destination now, oldest first, order kept inside a study.

    A study whose earliest unsent object still waits for its next try is left out whole: what comes later in a study
    may refer to what comes first. Other studies go on.
    """
    table = schema.delivery
    waiting = table.alias("waiting")
    held = (
        select(waiting.c.study_uid)
        .where(
            waiting.c.destination == destination,
            waiting.c.state.in_([DeliveryState.PENDING.value, DeliveryState.SENDING.value]),
            waiting.c.not_before > now.timestamp(),
        )
        .distinct()
    )
    query = (
        _QUERY.where(
            table.c.destination == destination,
            table.c.state == DeliveryState.PENDING.value,
            table.c.not_before <= now.timestamp(),
            table.c.study_uid.not_in(held),
        )
        .order_by(table.c.id)
        .limit(limit)
    )
    return [_delivery(row) for row in connection.execute(query)]


def next_due(connection: Connection, destination: str) -> datetime | None:
    """When the next pending object of a destination may be tried; a study waits as a whole, see `due`."""
    table = schema.delivery
    studies = (
        select(func.max(table.c.not_before).label("free_at"))
        .where(table.c.destination == destination, table.c.state == DeliveryState.PENDING.value)
        .group_by(table.c.study_uid)
        .subquery()
    )
    seconds = connection.scalar(select(func.min(studies.c.free_at)))
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def of_job(connection: Connection, job_id: int) -> list[Delivery]:
    """Every delivery of a job."""
    query = _QUERY.where(schema.delivery.c.job_id == job_id).order_by(schema.delivery.c.id)
    return [_delivery(row) for row in connection.execute(query)]


def _move(connection: Connection, delivery: Delivery, to: DeliveryState, at: datetime, **values: object) -> None:
    if to not in DELIVERY_MOVES[delivery.state]:
        raise IllegalMove(f"delivery {delivery.id} of {delivery.sop_instance_uid}: {delivery.state} -> {to}")
    table = schema.delivery
    done = connection.execute(
        update(table)
        .where(table.c.id == delivery.id, table.c.state == delivery.state.value)
        .values(state=to.value, updated_at=at.timestamp(), **values)
    )
    if done.rowcount != 1:
        raise IllegalMove(f"delivery {delivery.id} of {delivery.sop_instance_uid} moved meanwhile")


def start(connection: Connection, deliveries: Sequence[Delivery], at: datetime) -> list[Delivery]:
    """pending -> sending, for a batch that goes out on one association. Return the batch as it now is."""
    for delivery in deliveries:
        _move(connection, delivery, DeliveryState.SENDING, at)
    return [replace(delivery, state=DeliveryState.SENDING) for delivery in deliveries]


def delivered(connection: Connection, delivery: Delivery, at: datetime, status: int, remark: str = "") -> None:
    """sending -> delivered: the destination acknowledged; it does no storage commitment.

    ``remark`` is what it said while taking the object, for example that it coerced attributes.
    """
    delivered_together(connection, [(delivery, status, remark)], at)


def delivered_together(connection: Connection, accepted: Sequence[tuple[Delivery, int, str]], at: datetime) -> None:
    """`delivered` for several: delivery, status, remark. Each job is looked at once."""
    for delivery, status, remark in accepted:
        attempt = delivery.attempt + 1
        _move(connection, delivery, DeliveryState.DELIVERED, at, attempt=attempt, status=status, error=remark[:2000])
        if remark:
            text = f"{delivery.sop_instance_uid} to {delivery.destination}: {remark}"
            note(connection, at, "delivery_remark", text, job_id=delivery.job_id)
    for job_id in {delivery.job_id for delivery, _, _ in accepted}:
        _close_job(connection, job_id, at)


def postpone(
    connection: Connection,
    delivery: Delivery,
    at: datetime,
    pause: timedelta,
    error: str,
    status: int | None = None,
) -> None:
    """sending -> pending, attempt + 1: the destination would not take this object now; try again after a pause."""
    _move(
        connection, delivery, DeliveryState.PENDING, at, attempt=delivery.attempt + 1,
        not_before=(at + pause).timestamp(), error=error[:2000], status=status,
    )  # fmt: skip
    _withhold_superseded(connection, at)


def hand_back(connection: Connection, deliveries: Sequence[Delivery], at: datetime, error: str = "") -> None:
    """sending -> pending, no attempt counted: these were not offered (the destination is down, or the node stops)."""
    for delivery in deliveries:
        _move(connection, delivery, DeliveryState.PENDING, at, error=(error or delivery.error)[:2000])
    _withhold_superseded(connection, at)


def kill(connection: Connection, delivery: Delivery, at: datetime, error: str, status: int | None = None) -> None:
    """sending -> dead: it will not be taken; an operator may `retry` it."""
    attempt = delivery.attempt + 1
    _move(connection, delivery, DeliveryState.DEAD, at, attempt=attempt, error=error[:2000], status=status)
    text = f"{delivery.sop_instance_uid} to {delivery.destination}: {error}"
    note(connection, at, "delivery_dead", text, job_id=delivery.job_id)


def skip(connection: Connection, delivery: Delivery, at: datetime, why: str) -> None:
    """sending -> cancelled: the destination does not know this kind of object, and the result is whole without it."""
    _move(connection, delivery, DeliveryState.CANCELLED, at, attempt=delivery.attempt + 1, error=why[:2000])
    text = f"{delivery.kind} to {delivery.destination}: {why}"
    note(connection, at, "delivery_skipped", text, job_id=delivery.job_id)
    _close_job(connection, delivery.job_id, at)


def fall_back(connection: Connection, delivery: Delivery, kinds: Sequence[ObjectKind], at: datetime, why: str) -> bool:
    """Send a destination that refused one flavour of a job (LABELMAP, ENHANCED) the plainer one instead.

    Every delivery of the refused flavour to it that has not arrived is cancelled, whatever state it is in.

    Parameters
    ----------
    kinds
        What the destination takes.

    Returns
    -------
    bool
        False, having changed nothing, if the job has no plainer flavour.
    """
    table, output = schema.delivery, schema.output
    instead = connection.execute(
        select(output.c.id)
        .where(
            output.c.job_id == delivery.job_id,
            output.c.flavour == FALLS_BACK_TO[delivery.flavour].value,
            output.c.kind.in_([kind.value for kind in kinds]),
        )
        .order_by(output.c.id)
    ).all()
    if not instead:
        return False
    refused = select(output.c.id).where(output.c.job_id == delivery.job_id, output.c.flavour == delivery.flavour.value)
    unfinished = [DeliveryState.PENDING.value, DeliveryState.SENDING.value, DeliveryState.DEAD.value]
    connection.execute(
        update(table)
        .where(
            table.c.destination == delivery.destination,
            table.c.output_id.in_(refused),
            table.c.state.in_(unfinished),
        )
        .values(state=DeliveryState.CANCELLED.value, error=why[:2000], updated_at=at.timestamp())
    )
    there = set(
        connection.scalars(
            select(table.c.output_id).where(
                table.c.job_id == delivery.job_id, table.c.destination == delivery.destination
            )
        )
    )
    for row in instead:
        if row.id not in there:
            add(connection, row.id, delivery.job_id, delivery.study_uid, delivery.destination, at)
    form, plainer = _FORMS[delivery.flavour]
    text = f"{delivery.destination} takes no {form}; the {plainer} goes instead: {why}"
    note(connection, at, "delivery_fell_back", text, job_id=delivery.job_id)
    _withhold_superseded(connection, at)
    return True


def put_back(connection: Connection, at: datetime, destination: str | None = None) -> int:
    """At start, or after a fault: what was being sent is sent again, with the same UID."""
    table = schema.delivery
    query = update(table).where(table.c.state == DeliveryState.SENDING.value)
    if destination is not None:
        query = query.where(table.c.destination == destination)
    number = connection.execute(query.values(state=DeliveryState.PENDING.value, updated_at=at.timestamp())).rowcount
    _withhold_superseded(connection, at)
    return number


def _withhold_superseded(connection: Connection, at: datetime) -> None:
    """pending -> cancelled for what was on its way when its job was superseded and came back unsent."""
    table = schema.delivery
    superseded = select(schema.job.c.id).where(schema.job.c.state == JobState.SUPERSEDED.value)
    connection.execute(
        update(table)
        .where(table.c.state == DeliveryState.PENDING.value, table.c.job_id.in_(superseded))
        .values(state=DeliveryState.CANCELLED.value, updated_at=at.timestamp())
    )


def retry_dead(connection: Connection, job_id: int, at: datetime) -> int:
    """dead -> pending for every dead delivery of a job; tries are counted anew."""
    table = schema.delivery
    number = connection.execute(
        update(table)
        .where(table.c.job_id == job_id, table.c.state == DeliveryState.DEAD.value)
        .values(state=DeliveryState.PENDING.value, attempt=0, not_before=at.timestamp(), updated_at=at.timestamp())
    ).rowcount
    if number:
        note(connection, at, "delivery_retried", f"{number} dead deliveries are sent again", job_id=job_id)
    return number


def let_go(connection: Connection, job_id: int, at: datetime) -> int:
    """held -> pending: a person released the job."""
    table = schema.delivery
    return connection.execute(
        update(table)
        .where(table.c.job_id == job_id, table.c.state == DeliveryState.HELD.value)
        .values(state=DeliveryState.PENDING.value, not_before=at.timestamp(), updated_at=at.timestamp())
    ).rowcount


def cancel_unsent(connection: Connection, job_id: int, at: datetime) -> int:
    """Pending or held -> cancelled: a newer revision superseded the job before these left, or a person rejected it."""
    table = schema.delivery
    return connection.execute(
        update(table)
        .where(table.c.job_id == job_id, table.c.state.in_([DeliveryState.PENDING.value, DeliveryState.HELD.value]))
        .values(state=DeliveryState.CANCELLED.value, updated_at=at.timestamp())
    ).rowcount


def _close_job(connection: Connection, job_id: int, at: datetime) -> None:
    """Move the job stored -> closed once nothing of it is left to deliver."""
    table = schema.delivery
    left = connection.scalar(
        select(func.count())
        .select_from(table)
        .where(table.c.job_id == job_id, table.c.state.not_in([state.value for state in FINAL]))
    )
    if left:
        return
    done = connection.execute(
        update(schema.job)
        .where(schema.job.c.id == job_id, schema.job.c.state == JobState.STORED.value)
        .values(state=JobState.CLOSED.value, finished_at=at.timestamp())
    )
    if done.rowcount:
        note(connection, at, "job_closed", "every object was accepted by every destination", job_id=job_id)


def unsent(connection: Connection) -> dict[str, int]:
    """How many objects wait for each destination."""
    table = schema.delivery
    waiting = [DeliveryState.PENDING.value, DeliveryState.SENDING.value]
    query = select(table.c.destination, func.count()).where(table.c.state.in_(waiting)).group_by(table.c.destination)
    return {row[0]: row[1] for row in connection.execute(query)}


def counts(connection: Connection) -> dict[tuple[str, str], int]:
    """How many deliveries are in each state, by destination."""
    table = schema.delivery
    query = select(table.c.destination, table.c.state, func.count()).group_by(table.c.destination, table.c.state)
    return {(destination, state): number for destination, state, number in connection.execute(query)}
