"""Child processes that must not outlive whoever started them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h


def die_with(parent: int) -> None:
    """Ask the kernel to end this process with the thread that started it; end now if ``parent`` is gone already.

    In a container the parent is process 1, so "my parent is 1" does not mean that it died.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the parent process is gone")
