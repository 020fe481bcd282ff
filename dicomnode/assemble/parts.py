"""How many parts of a wrapped measurement are here: raw data objects say themselves how many there are."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dicomnode.errors import SeriesError
from dicomnode.volumes import raw


def parts_here(paths: Iterable[Path]) -> tuple[int, int] | None:
    """(different parts among ``paths``, parts there are); None where they do not say, or not the same.

    Payloads are not read: whether they are what they should be is for the slot that unwraps them.
    """
    try:
        found = [raw.part_of(raw.read_header(path)) for path in paths]
    except SeriesError:
        return None  # foreign or damaged raw data: only silence can end its series
    measurements = {(part.total_sha256, part.parts) for part in found}
    if len(measurements) != 1:
        return None
    return len({part.number for part in found}), found[0].parts
