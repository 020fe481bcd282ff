"""Folders that MRD files are put into: one that has stopped growing is taken, then moved to ``done`` or ``failed``."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from dicomnode.config.mrd import Watch
from dicomnode.errors import NodeError
from dicomnode.store.raw import Measurement, RawStore
from dicomnode.volumes.mrd import open_mrd

logger = logging.getLogger(__name__)

_SUFFIXES: Final = frozenset({".h5", ".hdf5", ".mrd"})
#: Hexadecimal digits of the content's digest in a measurement's name: the same file put in twice is the same one.
_DIGITS: Final = 24
#: Sizes and times that are looked at again and again are few; pauses between two looks are not shorter [s].
_LOOK_EVERY: Final = 1.0


class Watcher:
    """One folder.

    Parameters
    ----------
    monotonic
        Clock of the settling; tests put their own.
    """

    def __init__(
        self,
        settings: Watch,
        store: RawStore,
        clock: Callable[[], datetime],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._settle_s = settings.folder, settings.settle_s
        self._store, self._clock, self._monotonic = store, clock, monotonic
        #: Size and modification time when it was last seen to change, and when that was.
        self._seen: dict[Path, tuple[tuple[int, int], float]] = {}
        self._next_look = 0.0
        self._missing = False

    def sweep(self) -> int:
        """Take the files that have settled; returns how many."""
        now = self._monotonic()
        if now < self._next_look:
            return 0
        self._next_look = now + _LOOK_EVERY
        try:
            paths = sorted(path for path in self._folder.iterdir() if path.suffix.lower() in _SUFFIXES)
            self._missing = False
        except OSError as error:
            if not self._missing:
                extra = {"action": "watch_failed", "folder": str(self._folder), "error": error.strerror}
                logger.error("Watched folder cannot be read", extra=extra)
            self._missing = True
            return 0
        self._seen = {path: seen for path, seen in self._seen.items() if path in paths}
        return sum(self._look(path, now) for path in paths)

    def _look(self, path: Path, now: float) -> bool:
        try:
            status = path.stat()
        except OSError:  # gone meanwhile
            return False
        state = (status.st_size, status.st_mtime_ns)
        known = self._seen.get(path)
        if known is None or known[0] != state:
            self._seen[path] = (state, now)
            return False
        if now - known[1] < self._settle_s or not path.is_file():
            return False
        del self._seen[path]
        self._take(path)
        return True

    def _take(self, path: Path) -> None:
        part = self._store.folder / f"watched-{os.getpid()}.part"
        try:
            shutil.copyfile(path, part)
            readouts = _readouts(part)
            with part.open("rb") as file:
                name = "file-" + hashlib.file_digest(file, "sha256").hexdigest()[:_DIGITS]
            if not self._store.has(name):
                at = datetime.fromtimestamp(path.stat().st_mtime, UTC)
                self._store.keep(part, Measurement(name=name, at=at, source="file", readouts=readouts))
        except NodeError as error:
            self._put_away(path, "failed", str(error))
            return
        finally:
            part.unlink(missing_ok=True)
        self._put_away(path, "done", "")
        extra = {"action": "watch_taken", "name_of_raw": name, "readouts": readouts}
        logger.info("MRD file taken from a watched folder", extra=extra)

    def _put_away(self, path: Path, folder: str, reason: str) -> None:
        """Move a file out of the way; a text beside it says why it failed."""
        target = path.parent / folder / path.name
        target.parent.mkdir(exist_ok=True)
        number = 1
        while target.exists():
            target = target.with_name(f"{path.stem}-{number}{path.suffix}")
            number += 1
        path.rename(target)
        if reason:
            target.with_name(target.name + ".txt").write_text(reason + "\n", encoding="utf-8")
            extra = {"action": "watch_refused", "file": target.name, "reason": reason}
            logger.warning("MRD file cannot be used: %s", reason, extra=extra)


def _readouts(path: Path) -> int:
    """How many readouts a file has; reads one, so that a file that is none is found out here."""
    count, readouts = 0, open_mrd(path).readouts
    for _ in readouts:
        count = len(readouts)  # type: ignore[arg-type]  # an MRD file knows
        break
    if not count:
        raise NodeError(f"{path.name} holds no readouts")
    return count
