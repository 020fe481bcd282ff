"""Is there room on the disk? Asked before an object is accepted, answered from a look that is at most a moment old."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

logger = logging.getLogger(__name__)

#: How long one look at the disk is good for [s]: objects that arrive in the meantime are far smaller than the reserve.
_LOOK_EVERY: Final = 0.2
_MB: Final = 1_000_000


def free_bytes(folder: Path) -> int:
    """Bytes that may still be written below ``folder``."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


class Watermark:
    """Closed below one amount of free space, open again above another.

    Parameters
    ----------
    refuse_below_mb, accept_above_mb
        The two amounts [10^6 bytes].
    free, clock
        Where the free space [bytes] and the time [s] come from; tests put their own.
    """

    def __init__(
        self,
        folder: Path,
        refuse_below_mb: int,
        accept_above_mb: int,
        *,
        free: Callable[[Path], int] = free_bytes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._free, self._clock = folder, free, clock
        self._low, self._high = refuse_below_mb * _MB, accept_above_mb * _MB
        self._lock = threading.Lock()
        self._open, self._looked = True, float("-inf")

    @property
    def open(self) -> bool:
        """Whether an object may be accepted now."""
        if self._clock() - self._looked >= _LOOK_EVERY:
            self._look()
        return self._open

    def _look(self) -> None:
        with self._lock:
            if self._clock() - self._looked < _LOOK_EVERY:
                return
            self._looked = self._clock()
            free = self._free(self._folder)
            was, self._open = self._open, free >= (self._low if self._open else self._high)
            now = self._open
        if was and not now:
            logger.error(
                "Only %d MB are free: objects are refused (0xA700) until %d MB are",
                free // _MB,
                self._high // _MB,
                extra={"action": "disk_low", "free_mb": free // _MB},
            )
        elif now and not was:
            logger.info("Objects are accepted again", extra={"action": "disk_recovered", "free_mb": free // _MB})
