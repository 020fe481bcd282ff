"""One dispatcher decides what starts: a leader row with a lease and an epoch that every commit checks."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import Connection, insert, select, update

from dicomnode.errors import StaleEpoch
from dicomnode.store import schema


def acquire(connection: Connection, holder: str, now: datetime, lease: timedelta) -> int | None:
    """Become the leader if nobody holds an unexpired lease. Return the new epoch, or None."""
    table, seconds = schema.leader, now.timestamp()
    row = connection.execute(select(table).where(table.c.id == 1).with_for_update()).first()
    until = (now + lease).timestamp()
    if row is None:
        connection.execute(insert(table).values(id=1, holder=holder, epoch=1, until=until))
        return 1
    if row.holder != holder and row.until > seconds:
        return None
    epoch = int(row.epoch) + 1
    connection.execute(update(table).where(table.c.id == 1).values(holder=holder, epoch=epoch, until=until))
    return epoch


def renew(connection: Connection, epoch: int, now: datetime, lease: timedelta) -> None:
    """Prolong the lease; raises `StaleEpoch` if another leader took over."""
    table = schema.leader
    done = connection.execute(
        update(table).where(table.c.id == 1, table.c.epoch == epoch).values(until=(now + lease).timestamp())
    )
    if done.rowcount != 1:
        raise StaleEpoch("another dispatcher holds the lease; this one stops")


def release(connection: Connection, epoch: int) -> None:
    """Give the lease up on an orderly stop, so that a standby need not wait for it."""
    table = schema.leader
    connection.execute(update(table).where(table.c.id == 1, table.c.epoch == epoch).values(until=0.0))
