"""What has been received: associations, instances, quarantine. Written by the receiver, in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from dicomnode.domain import Association, AssociationEnd, Instance, Quarantined, SeriesState
from dicomnode.store import schema
from dicomnode.store.events import note

_LATE = (SeriesState.COMPLETE, SeriesState.ROUTED, SeriesState.UNROUTED, SeriesState.REJECTED)


def open_association(connection: Connection, association: Association) -> None:
    """Record that a sender is connected; its series cannot be called released while it is."""
    connection.execute(
        insert(schema.association).values(
            id=association.id,
            calling_ae=association.calling_ae,
            called_ae=association.called_ae,
            address=association.address,
            opened_at=association.opened_at.timestamp(),
        )
    )


def close_association(connection: Connection, association_id: int, end: AssociationEnd, at: datetime) -> None:
    """Record how it ended; series it carried may now be released."""
    connection.execute(
        update(schema.association)
        .where(schema.association.c.id == association_id)
        .values(closed_at=at.timestamp(), ended=end.value)
    )


def close_leftover_associations(connection: Connection, at: datetime) -> int:
    """At start: whatever was open when the receiver died was aborted."""
    return connection.execute(
        update(schema.association)
        .where(schema.association.c.closed_at.is_(None))
        .values(closed_at=at.timestamp(), ended=AssociationEnd.ABORTED.value)
    ).rowcount


def record(connection: Connection, instances: Sequence[Instance]) -> int:
    """File instances and open or reopen their series. Return how many were new.

    What is known already is left alone, but for a file that the re-scan found first (association 0): one that comes by
    an association belongs to it, or a sender that calls while the node starts would prove nothing by its end.
    """
    wanted = {instance.sop_instance_uid: instance for instance in instances}
    table = schema.instance
    for known, association_id in list(_known(connection, list(wanted))):
        instance = wanted.pop(known)
        if not association_id and instance.association_id:
            by = table.update().where(table.c.sop_instance_uid == known)
            connection.execute(by.values(association_id=instance.association_id))
    if not wanted:
        return 0
    connection.execute(insert(schema.instance), [_row(instance) for instance in wanted.values()])
    by_series: dict[str, list[Instance]] = {}
    for instance in wanted.values():
        by_series.setdefault(instance.series_uid, []).append(instance)
    for series_uid, arrived in by_series.items():
        _receive(connection, series_uid, arrived)
    return len(wanted)


def _known(connection: Connection, uids: list[str]) -> Iterator[tuple[str, int]]:
    """Those of the UIDs that have a row, and its association."""
    table = schema.instance
    for start in range(0, len(uids), 500):  # SQLite takes a limited number of parameters
        part = uids[start : start + 500]
        found = select(table.c.sop_instance_uid, table.c.association_id).where(table.c.sop_instance_uid.in_(part))
        yield from ((row[0], row[1]) for row in connection.execute(found))


def kept(connection: Connection, uids: Sequence[str]) -> set[str]:
    """Those of the UIDs that have a row."""
    return {uid for uid, _ in _known(connection, list(uids))}


def _row(instance: Instance) -> dict[str, Any]:
    return {
        "sop_instance_uid": instance.sop_instance_uid,
        "sop_class_uid": instance.sop_class_uid,
        "transfer_syntax_uid": instance.transfer_syntax_uid,
        "study_uid": instance.study_uid,
        "series_uid": instance.series_uid,
        "path": instance.path,
        "size": instance.size,
        "received_at": instance.received_at.timestamp(),
        "association_id": instance.association_id,
        "calling_ae": instance.calling_ae,
        "patient_key": instance.patient_key,
        "header": dict(instance.header),
    }


def _receive(connection: Connection, series_uid: str, arrived: list[Instance]) -> None:
    """Open the series, or reopen it as a new revision if it had been decided."""
    table, last = schema.series, arrived[-1]
    times = [instance.received_at.timestamp() for instance in arrived]
    row = connection.execute(select(table).where(table.c.series_uid == series_uid)).first()
    if row is None:
        connection.execute(
            insert(table).values(
                series_uid=series_uid,
                study_uid=last.study_uid,
                state=SeriesState.RECEIVING.value,
                calling_ae=last.calling_ae,
                modality=last.header.get("Modality", "")[:16],
                instances=len(arrived),
                first_at=min(times),
                last_at=max(times),
            )
        )
        return
    changes: dict[str, Any] = {
        "instances": table.c.instances + len(arrived),
        "last_at": max(row.last_at, *times),
        "calling_ae": last.calling_ae,
        "state": SeriesState.RECEIVING.value,
    }
    if row.state in _LATE:
        # The cap counts from the first image of this revision, not from the first image ever.
        changes |= {
            "revision": row.revision + 1,
            "completion": None,
            "proof": "",
            "incomplete": False,
            "first_at": min(times),
        }
        text = f"{len(arrived)} late instance(s) after it was {row.state}: revision {row.revision + 1}"
        note(connection, last.received_at, "series_reopened", text, series_uid=series_uid)
    connection.execute(update(table).where(table.c.series_uid == series_uid).values(**changes))


def of_series(connection: Connection, series_uid: str) -> list[Instance]:
    """Every instance of a series, in order of arrival."""
    table = schema.instance
    rows = connection.execute(
        select(table).where(table.c.series_uid == series_uid).order_by(table.c.received_at, table.c.sop_instance_uid)
    )
    return [_instance(row) for row in rows]


def _instance(row: Row[Any]) -> Instance:
    return Instance(
        sop_instance_uid=row.sop_instance_uid,
        sop_class_uid=row.sop_class_uid,
        transfer_syntax_uid=row.transfer_syntax_uid,
        study_uid=row.study_uid,
        series_uid=row.series_uid,
        path=row.path,
        size=row.size,
        received_at=datetime.fromtimestamp(row.received_at, UTC),
        association_id=row.association_id,
        calling_ae=row.calling_ae,
        patient_key=row.patient_key,
        header=row.header,
    )


def paths(connection: Connection) -> set[str]:
    """Every spool path the table knows (for the start-up re-scan)."""
    return set(connection.scalars(select(schema.instance.c.path)))


def paths_of_study(connection: Connection, study_uid: str, limit: int = 20) -> list[str]:
    """Spool paths of some instances of a study, those that came last first."""
    table = schema.instance
    return list(
        connection.scalars(
            select(table.c.path)
            .where(table.c.study_uid == study_uid)
            .order_by(table.c.received_at.desc(), table.c.sop_instance_uid)
            .limit(limit)
        )
    )


def connected_senders(connection: Connection) -> set[str]:
    """Calling AE titles that have an association open now, whatever it carries."""
    table = schema.association
    return set(connection.scalars(select(table.c.calling_ae).where(table.c.closed_at.is_(None)).distinct()))


def association_end(connection: Connection, association_id: int) -> str | None:
    """How one association ended (a value of `AssociationEnd`); None while it is open or if it is not known."""
    table = schema.association
    return connection.scalar(select(table.c.ended).where(table.c.id == association_id))


def patients_of_study(connection: Connection, study_uid: str) -> int:
    """How many patients one Study Instance UID carries; more than one is an identity conflict."""
    keys = select(func.count(schema.instance.c.patient_key.distinct())).where(schema.instance.c.study_uid == study_uid)
    return int(connection.scalar(keys) or 0)


def quarantine(connection: Connection, item: Quarantined) -> None:
    """Record an object that was set aside."""
    connection.execute(
        insert(schema.quarantine).values(
            name=item.name,
            code=item.code,
            reason=item.reason,
            sop_instance_uid=item.sop_instance_uid,
            series_uid=item.series_uid,
            calling_ae=item.calling_ae,
            status=item.status,
            at=item.at.timestamp(),
        )
    )
    text = f"quarantined as {item.name}: {item.reason}"
    note(connection, item.at, "instance_quarantined", text, series_uid=item.series_uid[:64])


def quarantined(connection: Connection, limit: int = 100) -> list[Quarantined]:
    """What lies in quarantine, newest first."""
    rows = connection.execute(select(schema.quarantine).order_by(schema.quarantine.c.at.desc()).limit(limit))
    return [
        Quarantined(
            name=row.name,
            code=row.code,
            reason=row.reason,
            sop_instance_uid=row.sop_instance_uid,
            series_uid=row.series_uid,
            calling_ae=row.calling_ae,
            at=datetime.fromtimestamp(row.at, UTC),
            status=row.status,
        )
        for row in rows
    ]


def quarantine_names(connection: Connection) -> set[str]:
    """Every name the quarantine table knows (for the start-up re-scan)."""
    return set(connection.scalars(select(schema.quarantine.c.name)))


def forget(connection: Connection, uids: Sequence[str]) -> None:
    """Drop the rows of instances whose files were deleted after their retention time."""
    for start in range(0, len(uids), 500):
        part = uids[start : start + 500]
        connection.execute(delete(schema.instance).where(schema.instance.c.sop_instance_uid.in_(part)))
