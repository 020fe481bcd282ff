"""Where one session's messages are kept: the journal while they come, the MRD file when it is over."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from dicomnode.receive.mrd.journal import Converter, Journal
from dicomnode.store.raw import Measurement, RawStore

logger = logging.getLogger(__name__)

#: The file is brought up to the journal so often, or when it is so far behind [s, bytes].
_FOLLOW_EVERY: Final = 0.2
_FOLLOW_BYTES: Final = 4 * 2**20


class Storing:
    """Keeps one session.

    Parameters
    ----------
    name
        Of the measurement in the store.
    """

    def __init__(self, store: RawStore, name: str) -> None:
        self._store, self.name = store, name
        self.journal = Journal(store.journal(name))
        self._part = store.payload(name).with_suffix(".part")
        self._converter = Converter(self.journal.path, self._part)
        self._followed, self._followed_size = time.monotonic(), 0
        self._finished = self._settled = False

    def follow(self, *, everything: bool = False) -> None:
        """Bring the file up to the journal if it is time to."""
        size, now = self.journal.size, time.monotonic()
        behind = size - self._followed_size
        if everything or behind > _FOLLOW_BYTES or (behind and now - self._followed > _FOLLOW_EVERY):
            self._converter.advance(size)
            self._followed, self._followed_size = now, size

    def file(self) -> Path:
        """The MRD file, whole as far as the journal has come; nothing can be added after."""
        if not self._finished:
            self.follow(everything=True)
            self._converter.finish()
            self._finished = True
        return self._part

    def settle(self, *, config: str, source: str, at: datetime, incomplete: str, archive: bool) -> None:
        """Put the file into the store, durably, if there is something to reconstruct in it."""
        part = self.file()
        if self.journal.readouts and archive:
            self._store.keep(
                part,
                Measurement(
                    name=self.name, at=at, source=source, config=config, readouts=self.journal.readouts,
                    incomplete=incomplete,
                ),
            )  # fmt: skip
        # Before anybody can file it: a journal that outlived its file would be filed a second time.
        self.journal.path.unlink()
        self._settled = True

    def close(self) -> None:
        """Let go. A journal whose file was not settled stays, for the next start to recover."""
        self.journal.close()
        if not self._finished:
            self._converter.discard()
        if self._settled:
            self._part.unlink(missing_ok=True)


def recover(store: RawStore, *, archive: bool) -> int:
    """Make measurements of the journals that a dead listener left; returns how many. Only while no session runs."""
    for part in store.folder.glob("*.part"):
        part.unlink()
    number = 0
    for path in store.journals():
        if store.has(path.stem):  # it was settled, and the journal was about to be deleted
            path.unlink()
            continue
        part = store.payload(path.stem).with_suffix(".part")
        converter = Converter(path, part)
        converter.recover()
        converter.finish()
        if converter.readouts and converter.has_header and archive:
            whole = converter.last_seen or converter.closed
            item = Measurement(
                name=path.stem, at=datetime.fromtimestamp(path.stat().st_mtime, UTC), source="",
                readouts=converter.readouts,
                incomplete="" if whole else f"the node ended in mid-session, after {converter.readouts} readouts",
            )  # fmt: skip
            store.keep(part, item)
            number += 1
        part.unlink(missing_ok=True)
        path.unlink()
    if number:
        extra = {"action": "mrd_recovered", "measurements": number}
        logger.warning("%d measurement(s) of a listener that died were recovered", number, extra=extra)
    return number
