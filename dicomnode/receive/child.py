"""What the receiver processes have in common as children of the node."""

from __future__ import annotations

import contextlib
import json
import os
import sys


def say(answer: dict[str, object]) -> None:
    """Tell the node one thing, on standard output."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def poke(descriptor: int | None) -> None:
    """Wake whoever waits for the other end of a pipe."""
    if descriptor is not None:
        with contextlib.suppress(BlockingIOError, BrokenPipeError):  # full: the reader has enough to wake it
            os.write(descriptor, b"\n")
