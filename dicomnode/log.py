"""Log lines an operator can search: JSON with an ``action`` and UIDs, and never a patient's name, ID or birth date.

A module logs with ``logger.info("human sentence", extra={"action": "series_complete", "series_uid": uid})``. Every
action is listed in ``deploy/OPERATING.md``; a test compares.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Final, TextIO

_STANDARD: Final = frozenset(logging.LogRecord("", 0, "", 0, "", (), None).__dict__) | {
    "message",
    "asctime",
    "taskName",
}

#: Keys that must not be logged at any level (patient identity).
FORBIDDEN: Final = frozenset(
    {
        "patient_name",
        "patient_id",
        "patient_birth_date",
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "password",
        "secret",
    }
)


class JSONFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, room, text, then what was given as ``extra``."""

    def format(self, record: logging.LogRecord) -> str:
        """Render one record; patient attributes given by mistake are masked."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "room": record.name.removeprefix("dicomnode."),
            "text": record.getMessage(),
        }
        line.update(_extras(record))
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """The same for a person at a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Render one record as time, level, text and key=value pairs."""
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
        pairs = " ".join(f"{key}={value}" for key, value in _extras(record).items())
        line = f"{time} {record.levelname[0]} {record.getMessage()}" + (f"  [{pairs}]" if pairs else "")
        return line + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


def _extras(record: logging.LogRecord) -> dict[str, object]:
    return {
        key: "(withheld)" if key in FORBIDDEN else value
        for key, value in record.__dict__.items()
        if key not in _STANDARD
    }


def setup(level: str = "INFO", *, style: str = "json", stream: TextIO | None = None) -> None:
    """Send the node's log to ``stream`` (default: standard error). Called once per process by whoever owns it."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JSONFormatter() if style == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # pynetdicom and pydicom put data set contents into their lines, and what pynetdicom calls an error the rooms report
    # with an action; alembic and APScheduler are noise.
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
    for name in ("pydicom", "highdicom", "alembic", "apscheduler", "sqlalchemy", "matplotlib", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
