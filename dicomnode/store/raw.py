"""Raw measurements on their way to becoming DICOM: MRD files with a side file that says what is known of each.

::

    <data>/raw/<name>.stream      what a scanner is sending now, message by message: the journal of a session
    <data>/raw/<name>.h5          a whole measurement, on the disk
    <data>/raw/<name>.json        where it came from, whether it is held and why; without it the file does not count
    <data>/raw/<name>.like.dcm    patient and study, once a person has named them

A file lies here until it has been filed in the spool as DICOM raw data. What is held stays until a person releases or
removes it; no retention time applies.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from dicomnode.errors import StoreError
from dicomnode.store.spool import sync_folder

_NAME: Final = re.compile(r"[A-Za-z0-9-]{1,80}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What is known of one raw measurement."""

    name: str
    at: datetime
    #: Who sent it: an address, or ``file``.
    source: str
    #: Config it was sent with; empty for files.
    config: str = ""
    readouts: int = 0
    #: Why it is not whole; empty: it is.
    incomplete: str = ""
    #: Why it waits for a person; empty: it is about to be filed.
    held: str = ""
    #: A person named the study, and takes it as it is.
    released: bool = False


class RawStore:
    """The folder of raw measurements.

    Parameters
    ----------
    data
        The node's data folder.
    """

    def __init__(self, data: Path) -> None:
        self.folder = data / "raw"
        self.folder.mkdir(parents=True, exist_ok=True)
        sync_folder(data)

    def new_name(self, at: datetime) -> str:
        """A name nothing has yet."""
        return f"{at.astimezone(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"

    def journal(self, name: str) -> Path:
        """Where a session's messages go while they come."""
        return self.folder / f"{_checked(name)}.stream"

    def payload(self, name: str) -> Path:
        """The MRD file."""
        return self.folder / f"{_checked(name)}.h5"

    def like(self, name: str) -> Path:
        """The patient and study a person named."""
        return self.folder / f"{_checked(name)}.like.dcm"

    def keep(self, part: Path, item: Measurement) -> None:
        """Take in a finished MRD file (closed, on the same file system), durably. ``part`` is gone afterwards."""
        sync_file(part)
        part.replace(self.payload(item.name))
        self.note(item)

    def note(self, item: Measurement) -> None:
        """Write the side file anew, durably."""
        record = {**asdict(item), "at": item.at.isoformat()}
        temporary = self.folder / f"{item.name}.{threading.get_ident()}.tmp"
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(record, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._side(item.name))
        sync_folder(self.folder)

    def hold(self, item: Measurement, reason: str) -> Measurement:
        """New -> held."""
        held = replace(item, held=reason)
        self.note(held)
        return held

    def release(self, item: Measurement) -> Measurement:
        """Held -> to be filed with the identity that `like` has."""
        free = replace(item, held="", released=True)
        self.note(free)
        return free

    def remove(self, name: str) -> None:
        """Forget a measurement: it was filed, or a person does not want it."""
        for path in (self._side(name), self.payload(name), self.like(name)):
            path.unlink(missing_ok=True)
        sync_folder(self.folder)

    def has(self, name: str) -> bool:
        """Whether a measurement of that name lies here, file and side file."""
        return self._side(name).is_file() and self.payload(name).is_file()

    def get(self, name: str) -> Measurement:
        """One measurement; raises `StoreError` if there is none of that name."""
        found = self._read(self._side(name))
        if found is None:
            raise StoreError(f"there is no raw measurement {name!r}; dicomnode raw list shows them")
        return found

    def items(self) -> Iterator[Measurement]:
        """Every measurement, oldest first."""
        for path in sorted(self.folder.glob("*.json")):
            found = self._read(path)
            if found is not None:
                yield found

    def journals(self) -> list[Path]:
        """Journals that lie here: of sessions that run, or of a listener that died."""
        return sorted(self.folder.glob("*.stream"))

    def _side(self, name: str) -> Path:
        return self.folder / f"{_checked(name)}.json"

    def _read(self, path: Path) -> Measurement | None:
        if not path.with_suffix(".h5").is_file():
            return None
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            return Measurement(**{**record, "name": path.stem, "at": datetime.fromisoformat(record["at"])})
        except (OSError, ValueError, KeyError, TypeError) as error:
            at = datetime.fromtimestamp(path.with_suffix(".h5").stat().st_mtime, UTC)
            why = f"its side file cannot be read ({error}); name its study to release it"
            return Measurement(name=path.stem, at=at, source="", held=why)


def sync_file(path: Path) -> None:
    """Return when the bytes of a file are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise StoreError(f"{name[:90]!r} is not the name of a raw measurement; dicomnode raw list shows them")
    return name
