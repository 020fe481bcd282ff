"""A receiver in this process, with its folder, its rows and its log at hand."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from sqlalchemy import select

from dicomnode.receive.receiver import Receiver
from dicomnode.receive.settings import Settings
from dicomnode.store import schema
from dicomnode.store.db import migrate, open_database


def settings(data: Path, **changes: Any) -> Settings:
    """Settings of a receiver that takes everything on a free port of 127.0.0.1."""
    values: dict[str, Any] = {
        "data": str(data),
        "database": "sqlite",
        "address": "127.0.0.1",
        "port": 0,
        "ae_titles": ("NODE",),
        "sources": {},
        "accept_unknown_sources": True,
        "refuse_below_mb": 0,
        "accept_above_mb": 0,
    }
    return Settings(**(values | changes))


def until(condition: Callable[[], Any], timeout: float = 10, what: str = "it") -> Any:
    """Wait for something that another thread or process does; return what the condition returned."""
    deadline = time.monotonic() + timeout
    while not (result := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout} s"
        time.sleep(0.01)
    return result


class Receiving:
    """A started receiver."""

    def __init__(self, data: Path, **changes: Any) -> None:
        self.data = data
        self.database = open_database("sqlite", data)
        migrate(self.database)
        self.pokes = 0
        self.receiver = Receiver(settings(data, **changes), self._poked)

    def __enter__(self) -> Receiving:
        self.receiver.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.receiver.stop(1)
        self.database.close()

    def _poked(self) -> None:
        self.pokes += 1

    @property
    def port(self) -> int:
        return self.receiver.port

    def stored(self) -> dict[str, Path]:
        """Files of the spool by SOP Instance UID."""
        return {path.stem: path for path in (self.data / "spool").glob("??/*.dcm")}

    def incoming(self) -> list[Path]:
        return list((self.data / "spool").rglob("*.part"))

    def quarantined(self) -> list[str]:
        """Reason codes in the quarantine folder, each with its side file."""
        names = sorted(path.stem for path in (self.data / "quarantine").glob("*.dcm"))
        assert names == sorted(path.stem for path in (self.data / "quarantine").glob("*.json"))
        return [name.rpartition("-")[0] for name in names]

    def rows(self, table: str) -> list[dict[str, Any]]:
        with self.database.read() as connection:
            return [dict(row._mapping) for row in connection.execute(select(schema.metadata.tables[table]))]

    def wait_rows(self, table: str, count: int) -> list[dict[str, Any]]:
        """Rows of a table once there are ``count``."""
        until(lambda: len(self.rows(table)) >= count, what=f"{count} rows in {table}")
        return self.rows(table)

    def idle(self) -> None:
        """Wait until every association has ended."""
        until(lambda: not self.receiver.server.associations, what="the end of every association")


def data_set_of(path: Path) -> bytes:
    """The bytes behind a file's meta information."""
    raw = path.read_bytes()
    return raw[144 + int.from_bytes(raw[140:144], "little") :]
