"""``dicomnode quarantine``: what was kept but will not be processed, and why."""

from __future__ import annotations

import argparse

from dicomnode.cli.common import Commands, add_config, command, err, load_config, open_store, out, table, when
from dicomnode.store import instances


def add(commands: Commands) -> None:
    """Add the command."""
    sub = command(
        commands, "quarantine", "list the objects that were received and kept, but not processed, and why",
        """
        dicomnode quarantine
        dicomnode quarantine --limit 500
        """, _list,
    )  # fmt: skip
    sub.add_argument("--limit", type=int, default=50, help="how many at the most (default: 50)")
    add_config(sub)


def _list(arguments: argparse.Namespace) -> int:
    config = load_config(arguments)
    with open_store(config).read() as connection:
        found = instances.quarantined(connection, arguments.limit)
    rows = table("at", "name", "from", "answered", "SOP instance", "why")
    for item in found:
        uid, status = item.sop_instance_uid, f"0x{item.status:04X}"
        rows.add_row(when(item.at), item.name, item.calling_ae, status, uid, f"{item.code}: {item.reason}")
    out.print(rows)
    if found:
        err.print(
            f"the files are in {config.node.data / 'quarantine'}; corrected at the source, they can be sent again"
        )
    else:
        err.print("the quarantine is empty")
    return 0
