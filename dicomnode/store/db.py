"""The database: SQLite beside the spool by default, PostgreSQL for many nodes. One transaction a move."""

from __future__ import annotations

import logging
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError

from dicomnode.errors import StoreError

logger = logging.getLogger(__name__)

_MIGRATIONS: Final = Path(__file__).parent / "migrations"
#: How long a writer waits for another process's transaction [s].
BUSY_TIMEOUT_S: Final = 30
#: File systems on which SQLite's shared-memory file cannot work (sqlite.org/wal.html).
_NETWORK_FILE_SYSTEMS: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "afs", "ceph"})


class Database:
    """An open database.

    Parameters
    ----------
    url
        SQLAlchemy URL.
    durable
        False lets SQLite commit without waiting for the disk (``synchronous=NORMAL``). Only the receiver's index asks
        for it: its rows are rebuilt from the spool, which is the log of images.
    """

    def __init__(self, url: str, *, durable: bool = True) -> None:
        try:
            self.engine: Engine = create_engine(url, pool_pre_ping=not url.startswith("sqlite"))
        except ModuleNotFoundError as error:
            raise StoreError(f"{error.name} is not installed; install dicomnode[postgres]") from error
        self.sqlite = self.engine.dialect.name == "sqlite"
        if self.sqlite:
            event.listen(self.engine, "connect", _pragmas(durable=durable))
            event.listen(self.engine, "begin", _begin)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction that will write: takes the write lock at once, commits at the end or rolls back."""
        with self.engine.connect().execution_options(immediate=True) as connection, connection.begin():
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One consistent look that blocks nobody."""
        with self.engine.connect() as connection, connection.begin():
            yield connection

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()


def _pragmas(*, durable: bool) -> Any:  # noqa: ANN401 - SQLAlchemy's listener type
    def connect(raw: sqlite3.Connection, _record: object) -> None:
        raw.isolation_level = None  # transactions are ours, not the driver's
        raw.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_S * 1000}")
        raw.execute("PRAGMA journal_mode = WAL")
        raw.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        raw.execute("PRAGMA foreign_keys = ON")

    return connect


def _begin(connection: Connection) -> None:
    immediate = connection.get_execution_options().get("immediate", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def url_of(setting: str, data: Path) -> str:
    """SQLAlchemy URL of the ``node.database`` setting."""
    if setting != "sqlite":
        return setting.replace("postgresql://", "postgresql+psycopg://", 1)
    return f"sqlite:///{data / 'node.db'}"


def open_database(setting: str, data: Path, *, durable: bool = True) -> Database:
    """Open the node's database; refuses SQLite on a network file system, where it would lose data."""
    if setting == "sqlite":
        data.mkdir(parents=True, exist_ok=True)
        kind = file_system(data)
        if kind in _NETWORK_FILE_SYSTEMS:
            raise StoreError(
                f"{data} is on {kind}: SQLite needs a local disk. Move node.data, or set node.database to PostgreSQL"
            )
    return Database(url_of(setting, data), durable=durable)


def file_system(folder: Path) -> str:
    """Type of the file system that holds ``folder`` (Linux's name for it), or ``unknown``."""
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown"
    resolved = folder.resolve()
    best, kind = "", "unknown"
    for line in mounts:
        _, point, name = line.split(" ")[:3]
        point = point.replace("\\040", " ")
        if resolved.is_relative_to(point) and len(point) >= len(best):
            best, kind = point, name
    return kind


def migrate(database: Database) -> None:
    """Bring the schema up to date; an SQLite file is copied aside first.

    Run by the node at start, and by `dicomnode check --migrate`.
    """
    # Loaded here because the receiver opens the database too and must not pay 12 MB for what only the node does.
    from alembic import command
    from alembic.config import Config as AlembicConfig
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    config = AlembicConfig()
    config.set_main_option("script_location", str(_MIGRATIONS))
    head = ScriptDirectory.from_config(config).get_current_head()
    try:
        with database.engine.connect() as connection:
            now = MigrationContext.configure(connection).get_current_revision()
    except OperationalError as error:
        raise StoreError(f"cannot open the database: {error.orig}") from error
    if now == head:
        return
    if database.sqlite and now is not None:
        file = Path(make_url(str(database.engine.url)).database or "")
        backup = file.with_name(f"{file.name}.before-{head}")
        _copy(database, file, backup)
        logger.info("Database copied before migration", extra={"action": "database_backup", "file": backup.name})
    with database.write() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    logger.info("Database schema is up to date", extra={"action": "database_migrated", "revision": head})


def _copy(database: Database, file: Path, backup: Path) -> None:
    with database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copy2(file, backup)
