"""What every command needs: where the configuration is, the database, tables and times for people."""

from __future__ import annotations

import argparse
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dicomnode import config
from dicomnode.config import Config
from dicomnode.errors import ConfigError
from dicomnode.store.db import Database, open_database

#: Results go to standard output, progress and errors to standard error.
out = Console(highlight=False, markup=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)

Commands = Any  # argparse's _SubParsersAction is private and generic over the parser


def command(
    commands: Commands,
    name: str,
    help_text: str,
    examples: str,
    action: Any = None,  # noqa: ANN401
) -> argparse.ArgumentParser:
    """Add a sub-command with examples under its help."""
    sub: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help_text,
        description=help_text,
        epilog="examples:\n" + "\n".join(f"  {line.strip()}" for line in examples.strip().splitlines()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if action is not None:
        sub.set_defaults(action=action)
    return sub


def add_config(sub: argparse.ArgumentParser) -> None:
    """Add ``--config``."""
    sub.add_argument(
        "--config", type=Path, metavar="FILE", help="configuration file (see the list in dicomnode --help)"
    )


def find_config(given: Path | None) -> Path:
    """Return the configuration file to use; raises `ConfigError` that names every place looked at."""
    places = [given] if given else []
    if not given:
        if os.environ.get("DICOMNODE_CONFIG"):
            places.append(Path(os.environ["DICOMNODE_CONFIG"]))
        places += [Path("node.yaml"), Path("/etc/dicomnode/node.yaml")]
    for place in places:
        if place is not None and place.is_file():
            return place
    looked = ", ".join(str(place) for place in places)
    raise ConfigError(f"no configuration file at {looked}; copy deploy/node.yaml and pass --config")


def load_config(arguments: argparse.Namespace) -> Config:
    """Read the configuration the command line points at."""
    return config.load(find_config(arguments.config))


def open_store(settings: Config) -> Database:
    """Open the node's database for reading and for an operator's moves."""
    if settings.node.database == "sqlite" and not (settings.node.data / "node.db").is_file():
        raise ConfigError(f"no node has run with data folder {settings.node.data} yet")
    return open_database(settings.node.database, settings.node.data)


def table(*columns: str, title: str = "") -> Table:
    """Build a plain table."""
    made = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def when(at: datetime | None) -> str:
    """Local time for people."""
    return "" if at is None else at.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def ago(at: datetime | None) -> str:
    """How long ago, in one unit."""
    if at is None:
        return ""
    seconds = (datetime.now(UTC) - at).total_seconds()
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{max(seconds, 0):.0f} s ago"


def dicom_files(folder: Path) -> list[Path]:
    """Every file below a folder (or the file itself) that could be DICOM, sorted."""
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise ConfigError(f"{folder} is neither a file nor a folder")
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "DICOMDIR")
