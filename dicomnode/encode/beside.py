"""What is made beside the objects of record: where one of it cannot be written, the rest goes out without it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Final, TypeVar

from dicomnode.errors import EncodingError

logger = logging.getLogger(__name__)

#: Takes a sentence on what of a result is not there, for the job's record.
Say = Callable[[str], None]
#: What is written, of whatever form.
Made = TypeVar("Made")

#: Characters of a reason in the job's notes; the log has all of it.
_TOLD: Final = 400


def all_or_none(made: Iterable[Made], what: str, series_uid: str, say: Say) -> list[Made] | None:
    """Everything of ``made``; None, and said why, if any of it cannot be written.

    Parameters
    ----------
    what
        Name of these objects, and what happens without them, for the reader of the note.

    Raises
    ------
    OSError, MemoryError
        The disk or the memory is at fault, not the objects: the job is tried again.
    """
    try:
        return list(made)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        why = str(error) if isinstance(error, EncodingError) else f"{type(error).__name__}: {error}"
        extra = {"action": "result_reduced", "series_uid": series_uid, "left_out": what, "reason": why}
        logger.exception("Part of a result cannot be written and is left out", extra=extra)
        say(f"Left out: {what}. {why[:_TOLD]}")
        return None
