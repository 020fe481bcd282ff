"""``dicomnode jobs``: look at the queue, and an operator's moves."""

from __future__ import annotations

import argparse
import getpass
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection

from dicomnode.cli.common import Commands, add_config, ago, command, err, load_config, open_store, out, table, when
from dicomnode.domain import Band, JobState, Output
from dicomnode.errors import IllegalMove
from dicomnode.store import deliveries, events, jobs, outputs, review
from dicomnode.store.jobs import Job


def add(commands: Commands) -> None:
    """Add the command and its parts."""
    sub = command(
        commands, "jobs", "list, show, retry or cancel jobs; release or reject held results",
        """
        dicomnode jobs list
        dicomnode jobs list --state dead --state running
        dicomnode jobs show 17
        dicomnode jobs retry 17        # a dead job runs again; dead deliveries of a stored job are sent again
        dicomnode jobs cancel 17
        dicomnode jobs list --state held   # results that a person must look at before they are sent
        dicomnode jobs release 17 --by "A. Reader"
        dicomnode jobs reject 17 --why "outline crosses the valve"
        """,
    )  # fmt: skip
    parts = sub.add_subparsers(metavar="WHAT", required=True)
    one = command(parts, "list", "the newest jobs", "dicomnode jobs list --limit 200", _list)
    one.add_argument("--state", action="append", choices=[state.value for state in JobState], help="only these")
    one.add_argument("--limit", type=int, default=50, help="how many at the most (default: 50)")
    add_config(one)
    for name, text, action in (
        ("show", "everything about one job: why it ran, what it made, where that went", _show),
        ("retry", "queue a dead, cancelled or unsuitable job again", _retry),
        ("cancel", "cancel a queued or running job", _cancel),
    ):
        one = command(parts, name, text, f"dicomnode jobs {name} 17", action)
        one.add_argument("job", type=int, help="number of the job")
        add_config(one)
    for name, text, action in (
        ("release", "send everything of a held job", _release),
        ("reject", "never send anything of a held job", _reject),
    ):
        one = command(parts, name, text, f'dicomnode jobs {name} 17 --by "A. Reader"', action)
        one.add_argument("job", type=int, help="number of the job")
        one.add_argument("--by", help="who looked and decided (default: the name you are logged in with)")
        if name == "reject":
            one.add_argument("--why", default="", help="kept with the decision; no patient's name")
        add_config(one)


def _list(arguments: argparse.Namespace) -> int:
    states = [JobState(state) for state in arguments.state or []]
    with open_store(load_config(arguments)).read() as connection:
        found = jobs.latest(connection, states, arguments.limit)
        counts = jobs.counts(connection)
    rows = table("job", "state", "band", "pipeline", "rule", "attempt", "progress", "since", "series", "note")
    for job in found:
        progress = f"{job.phase} {job.fraction:.0%}" if job.state is JobState.RUNNING else ""
        rows.add_row(
            str(job.id), job.state.value, Band(job.band).name.lower(), job.pipeline, job.rule, str(job.attempt),
            progress, ago(job.finished_at or job.started_at or job.created_at), job.series_uid,
            (job.hold if job.state is JobState.HELD else job.error)[:80],
        )  # fmt: skip
    out.print(rows)
    err.print(", ".join(f"{number} {state}" for state, number in sorted(counts.items())) or "no jobs yet")
    return 0


def _job(connection: Connection, number: int) -> Job:
    found = jobs.get(connection, number)
    if found is None:
        raise IllegalMove(f"there is no job {number}; see dicomnode jobs list")
    return found


def _show(arguments: argparse.Namespace) -> int:
    with open_store(load_config(arguments)).read() as connection:
        job = _job(connection, arguments.job)
        made = outputs.of_job(connection, job.id)
        sent = deliveries.of_job(connection, job.id)
        log = events.of(connection, job_id=job.id)
    rows = table("", "")
    for name, value in (
        ("job", job.id), ("state", job.state.value), ("rule", job.rule), ("band", Band(job.band).name.lower()),
        ("pipeline", f"{job.pipeline} {job.version}"), ("weights", job.weights_digest[:16]),
        ("options", dict(job.options)),
        ("series", job.series_uid), ("study", job.study_uid), ("revision", job.revision),
        ("inputs", f"{len(job.inputs)} instances" + (" (incomplete)" if job.incomplete else "")),
        ("complete by", job.completion), ("key", job.key), ("attempt", job.attempt), ("lost", job.lost_count),
        ("created", when(job.created_at)), ("started", when(job.started_at)), ("finished", when(job.finished_at)),
        ("slot", job.slot), ("held because", job.hold), ("released", when(job.released_at)),
        ("error", f"{job.error_class}: {job.error}" if job.error else ""),
        ("quality", ", ".join(f"{key} {value:.4g}" for key, value in job.quality.items())),
        ("notes", "; ".join(job.notes)), ("findings", "\n".join(map(in_words, job.findings))),
    ):  # fmt: skip
        if value not in ("", None):
            rows.add_row(name, str(value))
    out.print(rows)
    if job.trace:
        err.print(job.trace)
    _print_objects(made, sent)
    for event in log:
        out.print(f"{when(event.at)}  {event.action}: {event.text}")
    return 0


def _print_objects(made: list[Output], sent: list[deliveries.Delivery]) -> None:
    if made:
        out.print(f"\n{len(made)} objects in results/{made[0].path.parent}:")
    for (kind, flavour, uid), number in Counter((one.kind, one.flavour, one.series_uid) for one in made).items():
        out.print(f"  {number} {' '.join(filter(None, (flavour, kind)))}, series {uid}")
    states = Counter((one.destination, one.state.value, one.error) for one in sent)
    for (destination, state, error), number in sorted(states.items()):
        out.print(f"{destination}: {number} {state}" + (f" ({error})" if error else ""))


def in_words(one: Mapping[str, Any]) -> str:
    """One finding in words: a score is what the network said, not a chance for this patient."""
    score = "" if one.get("probability") is None else f", score {one['probability']:.2f}"
    urgency = f", urgent within {one['urgency']}" if one.get("urgency") else ""
    reason = f": {one['reason']}" if one.get("reason") else ""
    return f"{one['code'][2]}: {one['presence']}{score}{urgency}{reason}"


def _retry(arguments: argparse.Namespace) -> int:
    with open_store(load_config(arguments)).write() as connection:
        jobs.retry(connection, _job(connection, arguments.job), datetime.now(UTC))
    out.print(f"job {arguments.job} is queued again")
    return 0


def _cancel(arguments: argparse.Namespace) -> int:
    with open_store(load_config(arguments)).write() as connection:
        job = _job(connection, arguments.job)
        jobs.cancel(connection, job, datetime.now(UTC))
    running = job.state is JobState.RUNNING
    out.print(f"job {arguments.job} " + ("is asked to stop" if running else "is cancelled"))
    return 0


def _release(arguments: argparse.Namespace) -> int:
    settings = load_config(arguments)
    with open_store(settings).write() as connection:
        job = _job(connection, arguments.job)
        sent = review.release(connection, job, _who(arguments), settings.notify, datetime.now(UTC))
    out.print(f"job {arguments.job} is released: {sent} deliveries go out")
    return 0


def _reject(arguments: argparse.Namespace) -> int:
    with open_store(load_config(arguments)).write() as connection:
        job = _job(connection, arguments.job)
        ended = review.reject(connection, job, _who(arguments), arguments.why, datetime.now(UTC))
    out.print(f"job {arguments.job} is rejected: its {ended} deliveries are never made")
    return 0


def _who(arguments: argparse.Namespace) -> str:
    return str(arguments.by or getpass.getuser())
