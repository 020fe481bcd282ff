"""``dicomnode series``: what arrived, what was decided, and why."""

from __future__ import annotations

import argparse

from dicomnode.cli.common import Commands, add_config, ago, command, err, load_config, open_store, out, table, when
from dicomnode.cli.route import print_verdicts
from dicomnode.errors import StoreError
from dicomnode.store import events, jobs, series
from dicomnode.store.db import Database


def add(commands: Commands) -> None:
    """Add the command."""
    sub = command(
        commands, "series", "list the series that arrived, or show one with every decision about it",
        """
        dicomnode series
        dicomnode series 1.2.840.113619.2.55.1
        """, _series,
    )  # fmt: skip
    sub.add_argument("series_uid", nargs="?", metavar="SeriesInstanceUID", help="show this one")
    sub.add_argument("--limit", type=int, default=50, help="how many at the most (default: 50)")
    add_config(sub)


def _series(arguments: argparse.Namespace) -> int:
    database = open_store(load_config(arguments))
    if arguments.series_uid:
        return _show(database, arguments.series_uid)
    with database.read() as connection:
        found = series.latest(connection, arguments.limit)
    rows = table("series", "modality", "images", "state", "complete by", "from", "last image", "why")
    for one in found:
        mark = " (incomplete)" if one.incomplete else ""
        rows.add_row(
            one.series_uid, one.modality, str(one.instances), one.state.value + mark,
            one.completion.value if one.completion else "", one.calling_ae, ago(one.last_at), one.reason,
        )  # fmt: skip
    out.print(rows)
    if not found:
        err.print("nothing has arrived yet")
    return 0


def _show(database: Database, series_uid: str) -> int:
    with database.read() as connection:
        one = series.get(connection, series_uid)
        if one is None:
            raise StoreError(f"no series {series_uid} has arrived")
        log = events.of(connection, series_uid=series_uid)
        made = jobs.of_series(connection, series_uid)
    rows = table("", "")
    for name, value in (
        ("series", one.series_uid), ("study", one.study_uid), ("state", one.state.value), ("modality", one.modality),
        ("images", one.instances), ("revision", one.revision), ("from", one.calling_ae),
        ("first image", when(one.first_at)),
        ("last image", when(one.last_at)), ("expected", one.expected), 
        ("complete by", one.completion and f"{one.completion}: {one.proof}"),
        ("incomplete", one.incomplete or ""), ("reason", one.reason), ("decided", when(one.decided_at)),
    ):  # fmt: skip
        if value not in ("", None):
            rows.add_row(name, str(value))
    out.print(rows)
    if one.verdicts:
        out.print()
        print_verdicts(one.verdicts)
    for job in made:
        out.print(
            f"\njob {job.id}: {job.pipeline}, {job.state}" + (f" ({job.error})" if job.error else ""), markup=False
        )
    out.print()
    for event in log:
        out.print(f"{when(event.at)}  {event.action}: {event.text}", markup=False)
    return 0
