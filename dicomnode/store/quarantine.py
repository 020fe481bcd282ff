"""What was received but will not be processed, kept with its reason beside it.

::

    <data>/quarantine/<code>-<digest>.dcm    the bytes as they came, behind a preamble and file meta
    <data>/quarantine/<code>-<digest>.json   why, and what was answered

The name is made of the reason and the content: a sender that repeats the same refused object for days fills no disk.
The side file is written first, so an object never lies there unexplained, and the table can be rebuilt from the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from dicomnode.domain import Quarantined
from dicomnode.store.spool import Part, rename_new, sync_folder

#: Hexadecimal digits of the content digest in a name.
_DIGITS: Final = 24
#: What is kept of a UID that is not one.
_LONGEST_UID: Final = 128
#: Code and reason of an object whose side file was lost.
_UNEXPLAINED: Final = ("unexplained", "found in the quarantine folder without its side file")


class Quarantine:
    """The folder of objects set aside.

    Parameters
    ----------
    data
        The node's data folder; the same file system as the spool.
    """

    def __init__(self, data: Path) -> None:
        self.folder = data / "quarantine"
        self.folder.mkdir(parents=True, exist_ok=True)
        sync_folder(data)

    def keep(
        self,
        part: Part,
        *,
        code: str,
        reason: str,
        status: int,
        sop_instance_uid: str,
        series_uid: str,
        calling_ae: str,
        at: datetime,
    ) -> Quarantined:
        """Move a received file here, durably, and say what was recorded. ``part`` is gone afterwards."""
        item = Quarantined(
            name=f"{code}-{_digest_of(part)}",
            code=code,
            reason=reason,
            sop_instance_uid=printable(sop_instance_uid),
            series_uid=printable(series_uid),
            calling_ae=calling_ae,
            at=at,
            status=status,
        )
        if self._explain(item):
            os.fsync(part.fd)
            if rename_new(part.path, str(self._object(item.name))):
                part.close()
        part.discard()
        sync_folder(self.folder)
        return item

    def keep_too(
        self,
        path: Path,
        *,
        code: str,
        reason: str,
        sop_instance_uid: str,
        series_uid: str,
        calling_ae: str,
        at: datetime,
    ) -> Quarantined:
        """Give a file that was accepted, and turned out to be damaged, a second name here, durably.

        Its first one is the caller's to take away once all that is recorded.
        """
        with path.open("rb") as file:
            name = f"{code}-{hashlib.file_digest(file, 'sha256').hexdigest()[:_DIGITS]}"
        item = Quarantined(
            name=name, code=code, reason=reason, sop_instance_uid=printable(sop_instance_uid),
            series_uid=printable(series_uid), calling_ae=calling_ae, at=at, status=0,
        )  # fmt: skip
        if self._explain(item):
            os.link(path, self._object(name))
        sync_folder(self.folder)
        return item

    def remove_leftovers(self) -> None:
        """Delete side files whose object never came: a crash in between. Only while nothing is being received."""
        for path in self.folder.glob("*.tmp"):
            path.unlink()
        for path in self.folder.glob("*.json"):
            if not self._object(path.stem).exists():
                path.unlink()

    def items(self) -> Iterator[Quarantined]:
        """Everything that lies here, explained."""
        for path in sorted(self.folder.glob("*.dcm")):
            yield self._read(path.stem)

    def _object(self, name: str) -> Path:
        return self.folder / f"{name}.dcm"

    def _explain(self, item: Quarantined) -> bool:
        """Write the side file; False when the same object lies here already."""
        if self._object(item.name).exists():
            return False
        record = {
            "name": item.name,
            "code": item.code,
            "reason": item.reason,
            "status": f"0x{item.status:04X}",
            "sop_instance_uid": item.sop_instance_uid,
            "series_uid": item.series_uid,
            "calling_ae": item.calling_ae,
            "at": item.at.isoformat(),
        }
        temporary = self.folder / f"{item.name}.{os.urandom(4).hex()}.tmp"
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(record, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.folder / f"{item.name}.json")
        return True

    def _read(self, name: str) -> Quarantined:
        side = self.folder / f"{name}.json"
        try:
            record = json.loads(side.read_text(encoding="utf-8"))
            return Quarantined(
                name=name,
                code=str(record["code"]),
                reason=str(record["reason"]),
                sop_instance_uid=str(record["sop_instance_uid"]),
                series_uid=str(record["series_uid"]),
                calling_ae=str(record["calling_ae"]),
                at=datetime.fromisoformat(record["at"]),
                status=int(record["status"], 16),
            )
        except (OSError, ValueError, KeyError, TypeError):
            code, reason = _UNEXPLAINED
            at = datetime.fromtimestamp(self._object(name).stat().st_mtime, UTC)
            return Quarantined(
                name=name,
                code=code,
                reason=reason,
                sop_instance_uid="",
                series_uid="",
                calling_ae="",
                at=at,
                status=0,
            )


def printable(text: str) -> str:
    """Make text from the network fit for tables and logs."""
    return "".join(character if character.isprintable() else "?" for character in text)[:_LONGEST_UID]


def _digest_of(part: Part) -> str:
    os.lseek(part.fd, 0, os.SEEK_SET)
    with os.fdopen(os.dup(part.fd), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:_DIGITS]
