"""When is a series complete? Pure: signals in, decision and its reason out.

The earliest proof wins: counted, released and regular, quiet, cap. See the architecture page for the reasons.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from dicomnode.config import Assemble
from dicomnode.domain import AssociationEnd, Completion

#: A stack of fewer planes is too short to call its steps regular.
MIN_REGULAR: Final = 3
#: So many gaps of a sender must be known before the learned quiet period replaces the configured one.
MIN_GAPS: Final = 5
#: The learned quiet period is this many times the 95th percentile of the sender's own longest pauses.
GAP_FACTOR: Final = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Signals:
    """What is known of a series that may or may not be complete."""

    #: Instances received.
    instances: int
    #: Seconds since the last new instance.
    quiet_for_s: float
    #: Seconds since the first instance of this revision.
    open_for_s: float
    #: NumberOfSeriesRelatedInstances of the archive, if it answered.
    expected: int | None
    #: The archive was asked and has not answered yet.
    asking: bool
    #: ImagesInAcquisition of the header, where it is larger than 0.
    announced: int | None
    #: How the association that carried the latest instance ended; None while it is open or if it is not known.
    last_end: AssociationEnd | None
    #: Associations that carried instances of this series.
    associations: int
    #: Any association of the sender is open.
    sender_connected: bool
    #: Positions form a gap-free stack, or a cine with equal phases.
    regular: bool
    #: Why, or why not.
    geometry: str
    #: Instances are known to be missing inside the stack.
    holes: bool
    #: Series of this sender that grew after they had been called complete.
    sender_reopened: int
    #: Of wrapped raw data: different parts received, and parts that each of them says there are.
    parts: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The series is complete (or as complete as it will get), by which signal, and why in one sentence."""

    completion: Completion
    reason: str
    incomplete: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Not proven yet: what is waited for, and when to look again at the latest [s]."""

    reason: str
    look_again_s: float


def quiet_period(settings: Assemble, configured_s: float | None, gaps: Sequence[float]) -> tuple[float, str]:
    """Quiet period of a sender [s], and where it comes from."""
    if configured_s is not None:
        return configured_s, "configured for this source"
    if len(gaps) < MIN_GAPS:
        return settings.quiet_s, f"default; {len(gaps)} of {MIN_GAPS} series known"
    worst = sorted(gaps)[math.ceil(0.95 * len(gaps)) - 1]
    learned = min(max(GAP_FACTOR * worst, settings.quiet_min_s), settings.quiet_max_s)
    return learned, f"learned from {len(gaps)} series"


def decide(signals: Signals, settings: Assemble, quiet_s: float, quiet_origin: str) -> Decision | Wait:
    """Return the decision, or what is waited for."""
    number = signals.instances
    if signals.parts is not None:
        return _counted_parts(signals, *signals.parts, settings)
    missing = signals.expected is not None and number < signals.expected
    if signals.expected is not None and not missing:
        reason = f"{number} instances received, the archive counts {signals.expected}"
        return Decision(completion=Completion.COUNTED, reason=reason)
    released = _released(signals)
    if released is None and not missing:
        reason = f"association released, {number} instances: {signals.geometry}"
        return Decision(completion=Completion.REGULAR, reason=reason)
    if signals.open_for_s >= settings.cap_s:
        return _capped(signals, settings)
    if missing:
        reason = f"{number} of {signals.expected} instances"
        return Wait(reason=reason, look_again_s=settings.cap_s - signals.open_for_s)
    return _quiet(signals, settings, quiet_s, quiet_origin, released or "")


def _counted_parts(signals: Signals, here: int, there: int, settings: Assemble) -> Decision | Wait:
    """Raw data counts itself: no other proof is better, and no silence makes up for a part."""
    if here >= there:
        plural = "parts of the raw data are" if there > 1 else "part of the raw data is"
        return Decision(completion=Completion.COUNTED, reason=f"{here} of {there} {plural} here")
    if signals.open_for_s >= settings.cap_s:
        reason = f"no proof within {settings.cap_s:g} s: {there - here} of {there} parts of the raw data never came"
        return Decision(completion=Completion.CAP, reason=reason, incomplete=True)
    reason = f"{here} of {there} parts of the raw data"
    return Wait(reason=reason, look_again_s=settings.cap_s - signals.open_for_s)


def _released(signals: Signals) -> str | None:
    """None if "released and regular" holds; else why not."""
    if signals.asking:
        return "the archive is being asked how many there are"
    if signals.last_end is not AssociationEnd.RELEASED:
        return "its association is not released"
    if signals.sender_connected:
        return "the sender has an association open"
    if signals.associations > 1:
        # Senders that open an association per image release after every one of them.
        return f"it came in {signals.associations} associations"
    if signals.sender_reopened:
        return f"this sender added to {signals.sender_reopened} series after a release"
    if signals.instances < MIN_REGULAR:
        return f"{signals.instances} instances are too few to be called regular"
    if signals.announced is not None and signals.instances < signals.announced:
        return f"ImagesInAcquisition announces {signals.announced}"
    return None if signals.regular else signals.geometry


def _quiet(signals: Signals, settings: Assemble, quiet_s: float, origin: str, unproven: str) -> Decision | Wait:
    aborted = signals.last_end is AssociationEnd.ABORTED
    if aborted:
        needed = max(quiet_s, settings.quiet_max_s)  # the sender may come back with the rest
    elif signals.last_end is None:
        needed = max(quiet_s, settings.quiet_s)  # still connected: the next object may be a large one on a slow line
    else:
        needed = quiet_s
    if signals.quiet_for_s < needed:
        reason = f"{signals.instances} instances; {unproven}; waiting for {needed:g} s of quiet"
        return Wait(reason=reason, look_again_s=needed - signals.quiet_for_s)
    reason = f"quiet for {needed:g} s ({origin}), {signals.instances} instances: {signals.geometry}"
    if aborted:
        reason += "; the last association was aborted and nobody sent the rest"
    if signals.announced is not None and signals.instances < signals.announced:
        reason += f"; ImagesInAcquisition announces {signals.announced}"
    return Decision(completion=Completion.QUIET, reason=reason, incomplete=aborted or signals.holes)


def _capped(signals: Signals, settings: Assemble) -> Decision:
    seen = f"{signals.instances}" + (f" of {signals.expected}" if signals.expected is not None else "")
    reason = f"no proof within {settings.cap_s:g} s: taken as it is with {seen} instances"
    return Decision(completion=Completion.CAP, reason=reason, incomplete=True)
