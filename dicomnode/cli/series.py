"""``dicomnode series``: what arrived, what was decided, and why."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime

from dicomnode.cli.common import Commands, add_config, ago, command, err, load_config, open_store, out, table, when
from dicomnode.cli.route import print_verdicts
from dicomnode.config import Config
from dicomnode.errors import ConfigError, StoreError
from dicomnode.store import decisions, events, jobs, series
from dicomnode.store.db import Database


def add(commands: Commands) -> None:
    """Add the command."""
    sub = command(
        commands, "series", "list the series that arrived, or show one with every decision about it",
        """
        dicomnode series
        dicomnode series 1.2.840.113619.2.55.1
        dicomnode series 1.2.840.113619.2.55.1 --again     # decide again, after a rule was corrected
        dicomnode series 1.2.840.113619.2.55.1 --discard   # forget its images, after an identity was corrected
        """, _series,
    )  # fmt: skip
    sub.add_argument("series_uid", nargs="?", metavar="SeriesInstanceUID", help="show this one")
    sub.add_argument("--limit", type=int, default=50, help="how many at the most (default: 50)")
    move = sub.add_mutually_exclusive_group()
    move.add_argument(
        "--again",
        action="store_true",
        help="route a decided series by the rules and weights as they are now; a new result replaces the old one",
    )
    move.add_argument(
        "--discard",
        action="store_true",
        help="delete its received images and set results on them aside, so that it can be sent anew",
    )
    add_config(sub)


def _series(arguments: argparse.Namespace) -> int:
    config = load_config(arguments)
    database = open_store(config)
    if arguments.again or arguments.discard:
        if not arguments.series_uid:
            raise ConfigError("--again and --discard need a SeriesInstanceUID")
        return _again(database, arguments.series_uid) if arguments.again else _discard(config, arguments.series_uid)
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
        # A job of a whole study is filed under the study's UID.
        made = [*jobs.of_series(connection, series_uid), *jobs.of_series(connection, one.study_uid)]
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
        out.print(f"\njob {job.id}: {job.pipeline}, {job.state}" + (f" ({job.error})" if job.error else ""))
    out.print()
    for event in log:
        out.print(f"{when(event.at)}  {event.action}: {event.text}")
    return 0


def _again(database: Database, series_uid: str) -> int:
    with database.write() as connection:
        decisions.decide_again(connection, series_uid, datetime.now(UTC))
    out.print(f"series {series_uid} is routed again; jobs that would compute the same stand")
    return 0


def _discard(config: Config, series_uid: str) -> int:
    with open_store(config).write() as connection:
        gone = decisions.discard(connection, config.node.data / "spool", series_uid, config.notify, datetime.now(UTC))
    out.print(f"{gone.images} images of series {series_uid} are gone; it can be sent anew")
    if gone.results:
        numbers = ", ".join(map(str, gone.results))
        out.print(f"results on it are set aside, and what was told of them is taken back: jobs {numbers}")
    if gone.settled:
        out.print(f"the rest of its study is decided again, series {', '.join(gone.settled)}")
    return 0
