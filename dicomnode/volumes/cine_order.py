"""The time of an image in the heartbeat, and which images were acquired together."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pydicom import Dataset

from dicomnode.errors import DuplicatePositions
from dicomnode.volumes import frames
from dicomnode.volumes.cine_kinds import number
from dicomnode.volumes.geometry import Placement

#: What gives the time after the R wave [ms], in the order of trust.
TIMES: Final = ("TriggerTime", "NominalCardiacTriggerDelayTime", "ActualCardiacTriggerDelayTime")
#: What gives the order of the phases only. InstanceNumber counts if CardiacNumberOfImages says how many belong to one.
_ORDERS: Final = ("TemporalPositionIndex", "TemporalPositionIdentifier", "InstanceNumber")
#: The slowest heart: a longer series of phases is none of one beat (20 beats a minute) [ms].
_MAX_BEAT_MS: Final = 3000.0
#: Images that follow each other by no less than this were taken one per beat (150 beats a minute) [s].
_ONE_PER_BEAT_S: Final = 0.4
#: A date perhaps, hours, minutes, seconds, a zone perhaps.
_TIME: Final = re.compile(r"(?:\d{8})?(\d{2})(\d{2})(\d{2}(?:\.\d*)?)(?:[+-]\d{4})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """One image: a plane at a moment."""

    #: Index of its header, and frame number counted from 1; 0 for a single-frame object.
    header: int
    frame: int
    place: Placement
    #: SeriesInstanceUID; with the instance where it has frames.
    group: str
    #: Time [ms], or rank, by the keyword that says it.
    times: Mapping[str, float]
    #: AcquisitionNumber, and the date and time of acquisition as text that sorts; empty if absent.
    acquisition: str
    when: str
    #: InstanceNumber, or the frame number.
    number: int
    #: CardiacNumberOfImages; 0 if absent.
    expected: int
    #: Why it is no phase of a cine; empty if nothing speaks against it.
    why_not: str


def shot(header: Dataset, index: int, frame: int, why_not: str) -> Shot:
    """Read off a header what decides where the image belongs.

    Raises
    ------
    MissingAttribute
        Position, orientation or spacing is absent.
    """
    place = frames.placement(header, frame)
    times = {keyword: value for keyword in (*TIMES, *_ORDERS) if (value := number(header, frame, keyword)) is not None}
    if frame:
        times["InstanceNumber"] = float(frame)
    acquired = frames.find(header, frame, "FrameAcquisitionDateTime") or frames.find(
        header, frame, "AcquisitionDateTime"
    )
    date, time = (str(frames.find(header, frame, f"Acquisition{part}") or "") for part in ("Date", "Time"))
    return Shot(
        header=index,
        frame=frame,
        place=place,
        group=f"{header.SeriesInstanceUID} {header.SOPInstanceUID if frame else ''}",
        times=times,
        acquisition=str(frames.find(header, frame, "AcquisitionNumber") or ""),
        when=str(acquired) if acquired else date + time,
        number=frame or int(number(header, frame, "InstanceNumber") or 0),
        expected=int(number(header, frame, "CardiacNumberOfImages") or 0),
        why_not=why_not,
    )


def interval(header: Dataset, frame: int) -> float | None:
    """Length of the heartbeat [ms]; None if the scanner does not say it."""
    for keyword in ("NominalInterval", "RRIntervalTimeNominal"):
        said = number(header, frame, keyword)
        if said and said > 0:
            return said
    rate = number(header, frame, "HeartRate")
    return 60000.0 / rate if rate and rate > 0 else None


def key_of(shots: Sequence[Shot]) -> str:
    """Keyword that orders all of ``shots``: the most trusted one that every one of them has; empty if none does."""
    for keyword in (*TIMES, *_ORDERS):
        if all(keyword in shot.times for shot in shots):
            if keyword == "InstanceNumber" and not _counted(shots):
                continue
            return keyword
    return ""


def _counted(shots: Sequence[Shot]) -> bool:
    """Whether the scanner says that so many images make one beat (planes of one stack have the same number)."""
    expected = {shot.expected for shot in shots}
    return len(expected) == 1 and min(expected) > 0 and len(shots) % min(expected) == 0


def latest(shots: Sequence[Shot]) -> tuple[str, int]:
    """Sorts acquisitions by time, then by number."""
    return max(shot.when for shot in shots), max(shot.number for shot in shots)


def one_per_beat(shots: Sequence[Shot]) -> str:
    """Says so if the images were taken in different heartbeats, one in each: first-pass perfusion."""
    seconds = sorted({time for shot in shots if (time := _seconds(shot.when)) is not None})
    if seconds and len(seconds) >= len(shots) / 2 and seconds[-1] - seconds[0] >= _ONE_PER_BEAT_S * (len(shots) - 1):
        return f"{len(shots)} images of a plane taken over {seconds[-1] - seconds[0]:.0f} s: one per beat, as perfusion"
    return ""


def too_long(shots: Sequence[Shot], key: str) -> str:
    """Says so if the times reach farther than a heartbeat."""
    if key not in TIMES:
        return ""
    values = [shot.times[key] for shot in shots]
    span = max(values) - min(values)
    return f"{key} runs over {span:.0f} ms, longer than a heartbeat" if span > _MAX_BEAT_MS else ""


def acquisitions(shots: Sequence[Shot], least: int) -> list[list[Shot]]:
    """Images of one plane by acquisition: by series, and inside it where a phase comes twice.

    Parameters
    ----------
    least
        Images that one of the parts must have: another may have been stopped early.

    Raises
    ------
    DuplicatePositions
        A phase comes twice and nothing tells the acquisitions apart.
    """
    found = []
    for group in _by(shots, lambda one: one.group):
        if len(group) < least or not _repeated(group):
            found.append(group)
            continue
        parts = next((parts for parts in _splits(group) if _apart(parts, least)), None)
        twice = _same_phase(group)
        if parts is None and twice and len({one.times[key_of(group)] for one in group}) >= least:
            first, second = twice
            raise DuplicatePositions(
                f"{first.place.label} and {second.place.label} are the same phase of one plane, and nothing tells "
                "their acquisitions apart; send one of them only"
            )
        found += parts or [group]
    return found


def _repeated(shots: Sequence[Shot]) -> bool:
    key = key_of(shots)
    if not key:
        return False
    twice = len({shot.times[key] for shot in shots}) < len(shots)
    expected = {shot.expected for shot in shots}
    more = len(expected) == 1 and 0 < min(expected) < len(shots)
    return twice or more


def _splits(shots: Sequence[Shot]) -> list[list[list[Shot]]]:
    """Ways to part images that repeat a phase."""
    return [_by(shots, lambda one: one.acquisition), _by(shots, lambda one: one.when), _runs(shots), _counts(shots)]


def _apart(parts: Sequence[Sequence[Shot]], least: int) -> bool:
    return len(parts) > 1 and any(len(part) >= least for part in parts) and not any(map(_same_phase, parts))


def _same_phase(shots: Sequence[Shot]) -> tuple[Shot, ...]:
    """Two images of one phase; nothing if there are none."""
    key = key_of(shots)
    seen: dict[float, Shot] = {}
    for one in shots:
        if key and one.times[key] in seen:
            return seen[one.times[key]], one
        if key:
            seen[one.times[key]] = one
    return ()


def _by(shots: Sequence[Shot], name: Callable[[Shot], str]) -> list[list[Shot]]:
    groups: dict[str, list[Shot]] = {}
    for one in shots:
        groups.setdefault(name(one), []).append(one)
    return [groups[key] for key in sorted(groups)]


def _runs(shots: Sequence[Shot]) -> list[list[Shot]]:
    """In the order of InstanceNumber: a new acquisition begins where the time goes back."""
    key = key_of(shots)
    parts: list[list[Shot]] = []
    for one in sorted(shots, key=lambda one: one.number):
        if parts and one.times[key] > parts[-1][-1].times[key]:
            parts[-1].append(one)
        else:
            parts.append([one])
    return parts


def _counts(shots: Sequence[Shot]) -> list[list[Shot]]:
    """In the order of InstanceNumber: so many each as CardiacNumberOfImages says."""
    ordered, expected = sorted(shots, key=lambda one: one.number), shots[0].expected
    if key_of(shots) != "InstanceNumber" or not 0 < expected < len(ordered):
        return [ordered]
    return [ordered[start : start + expected] for start in range(0, len(ordered), expected)]


def _seconds(when: str) -> float | None:
    """Time of day of a date and time, or of a time alone [s]; None if it does not say seconds."""
    found = _TIME.fullmatch(when)
    if found is None:
        return None
    hours, minutes, seconds = (float(part) for part in found.groups())
    return hours * 3600 + minutes * 60 + seconds
