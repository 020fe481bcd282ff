"""Test-only: die at a named point, to prove that a crash there loses nothing.

``DICOMNODE_FAULT=after-fsync`` in the environment makes the first process that reaches the point ``after-fsync`` kill
itself with SIGKILL; ``after-fsync:3`` does so at the third time. Without the variable a point costs one comparison.
"""

from __future__ import annotations

import itertools
import os
import signal
from typing import Final

_POINT, _, _TIMES = os.environ.get("DICOMNODE_FAULT", "").partition(":")
_FATAL: Final = int(_TIMES or 1)
_visits: Final = itertools.count(1)


def reached(point: str) -> None:
    """Say that the process stands at ``point``; does nothing unless a test asked for a crash there."""
    if point == _POINT and next(_visits) == _FATAL:
        os.kill(os.getpid(), signal.SIGKILL)
