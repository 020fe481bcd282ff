"""The service: looks at open series, decides, and makes one job per matching rule in the same transaction."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Final

from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from dicomnode.assemble import route
from dicomnode.assemble.completeness import Decision, Signals, Wait, decide, quiet_period
from dicomnode.assemble.parts import parts_here
from dicomnode.config import Config, Query
from dicomnode.dicom import RAW_DATA_STORAGE
from dicomnode.domain import AssociationEnd, Instance, SeriesState
from dicomnode.errors import IllegalMove
from dicomnode.rounds import Rounds
from dicomnode.rules import is_regular_stack
from dicomnode.store import instances, series
from dicomnode.store.db import Database
from dicomnode.store.series import Series

logger = logging.getLogger(__name__)

#: Pace of the sweep when nothing wakes it [s].
_SWEEP_S: Final = 0.5
#: A source is not asked again for the same series before this [s].
_COUNT_AGAIN_S: Final = 2.0
#: While the sender is connected, never ask before this: an archive that is being filled at the same time knows no more
#: than we do, and its count would equal ours by accident.
_COUNT_AFTER_QUIET_S: Final = 1.0

#: A sender that added to a series after its release is not believed for this long.
_TRUST_AGAIN: Final = timedelta(days=30)
#: A series of a connected sender is not looked at while images pour in: each look reads all of its rows.
_POURING_S: Final = 0.5

#: (where to ask, StudyInstanceUID, SeriesInstanceUID) -> number of instances, None if there is no answer.
Count = Callable[[Query, str, str], int | None]


def _now() -> datetime:
    return datetime.now(UTC)


class Assembler:
    """One thread that sweeps the open series; woken by the receiver, timed by nothing but the table.

    Parameters
    ----------
    count
        Asks an archive how many instances a series has.
    on_queued
        Called after jobs were queued (wakes the dispatcher).
    """

    def __init__(
        self,
        config: Config,
        database: Database,
        *,
        count: Count,
        on_queued: Callable[[], None] = lambda: None,
        clock: Callable[[], datetime] = _now,
    ) -> None:
        self.config, self.database, self.clock, self.on_queued = config, database, clock, on_queued
        self._count = count
        self._seen: dict[str, tuple[int, datetime]] = {}
        self._began = clock()
        self._router = route.Router(config, database, clock)
        self._asked: dict[str, tuple[datetime, int, Future[int | None]]] = {}
        self._geometry: dict[str, tuple[int, bool, str, bool]] = {}
        self._counted: dict[str, tuple[int, tuple[int, int] | None]] = {}
        # What was waited for at the last look, so that thousands of waiting series cost nothing.
        self._waits: dict[str, tuple[int, bool, datetime]] = {}
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="count")
        self._rounds = Rounds("assembler", self._round, self._fault)

    def start(self) -> None:
        """Begin to sweep."""
        self._rounds.start()

    def wake(self) -> None:
        """Sweep now."""
        self._rounds.wake()

    def stop(self) -> None:
        """End the thread after the sweep it is in."""
        self._rounds.stop()
        self._rounds.join(60)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _round(self) -> float:
        self.sweep()
        return _SWEEP_S

    def _fault(self, error: Exception) -> None:
        logger.error("Assembly sweep failed", extra={"action": "assembler_error"}, exc_info=error)

    def sweep(self) -> int:
        """Look at every open series once. Return how many were decided."""
        with self.database.read() as connection:
            open_series = series.in_states(connection, SeriesState.RECEIVING, SeriesState.ASSEMBLING)
            connected = instances.connected_senders(connection)
            waiting = series.in_states(connection, SeriesState.COMPLETE)
        decided = 0
        for one in open_series:
            waits = self._waits.get(one.series_uid)
            here = one.calling_ae in connected
            if waits is not None and waits[:2] == (one.instances, here) and self.clock() < waits[2]:
                continue
            if here and (self.clock() - one.last_at).total_seconds() < _POURING_S:
                continue
            try:
                decided += self._look(one, connected=here)
            except IllegalMove:
                continue  # an instance arrived between the look and the decision: the next sweep sees it
            except OperationalError:
                raise
            except Exception:  # one series must not stop the next
                logger.exception("Series cannot be assembled", extra={"action": "assembler_error", "series_uid": one.series_uid})  # fmt: skip  # noqa: E501
        queued = sum(self._route(one) for one in waiting)
        if decided:
            with self.database.read() as connection:
                waiting = series.in_states(connection, SeriesState.COMPLETE)
            queued += sum(self._route(one) for one in waiting)
        if queued:
            self.on_queued()
        return decided

    def _route(self, one: Series) -> int:
        try:
            return self._router.route(one)
        except IllegalMove:
            return 0
        except OperationalError:
            raise
        except OSError:  # a full file table, a disk that hiccups: the series is not at fault
            logger.exception("Spool cannot be read; trying again", extra={"action": "assembler_error", "series_uid": one.series_uid})  # fmt: skip  # noqa: E501
            return 0
        except Exception as error:  # a series that cannot be routed is rejected, visibly
            logger.exception("Series cannot be routed", extra={"action": "series_rejected", "series_uid": one.series_uid})  # fmt: skip  # noqa: E501
            with suppress(IllegalMove), self.database.write() as connection:  # it may have changed meanwhile
                reason = f"cannot be routed: {type(error).__name__}: {error}"
                series.move(connection, one, SeriesState.REJECTED, self.clock(), reason)
            return 0

    # -- one series

    def _look(self, one: Series, *, connected: bool) -> bool:
        with self.database.read() as connection:
            held = instances.of_series(connection, one.series_uid)
            signals = self._signals(connection, one, held, connected=connected)
            gaps = series.gaps(connection, one.calling_ae)
        source = self.config.source(one.calling_ae)
        quiet_s, origin = quiet_period(self.config.assemble, source.quiet_s if source else None, gaps)
        verdict = decide(signals, self.config.assemble, quiet_s, origin)
        if isinstance(verdict, Wait):
            pause = min(verdict.look_again_s, _COUNT_AFTER_QUIET_S) if signals.asking else verdict.look_again_s
            self._waits[one.series_uid] = (one.instances, connected, self.clock() + timedelta(seconds=pause))
        if isinstance(verdict, Wait) and (connected or one.state is SeriesState.ASSEMBLING):
            return False
        with self.database.write() as connection:
            if one.state is SeriesState.RECEIVING:
                series.move(connection, one, SeriesState.ASSEMBLING, self.clock(), "its sender is done for now")
                one = replace(one, state=SeriesState.ASSEMBLING)
            if isinstance(verdict, Decision):
                self._complete(connection, one, held, verdict, signals.expected)
        return isinstance(verdict, Decision)

    def _complete(
        self, connection: Connection, one: Series, held: list[Instance], decision: Decision, expected: int | None
    ) -> None:
        now = self.clock()
        series.move(
            connection, one, SeriesState.COMPLETE, now, decision.reason, completion=decision.completion.value,
            proof=decision.reason,
            incomplete=decision.incomplete, expected=expected, decided_at=now.timestamp(),
        )  # fmt: skip
        times = [item.received_at.timestamp() for item in held]
        if len(times) > 1:
            pause = max(later - earlier for earlier, later in pairwise(times))
            series.learn_gap(connection, one.calling_ae, pause)
        for cache in (self._asked, self._geometry, self._counted, self._waits, self._seen):
            cache.pop(one.series_uid, None)
        logger.info(
            "Series complete",
            extra={
                "action": "series_complete", "series_uid": one.series_uid, "by": decision.completion.value,
                "reason": decision.reason, "instances": len(held), "revision": one.revision,
                "incomplete": decision.incomplete,
            },
        )  # fmt: skip

    def _signals(self, connection: Connection, one: Series, held: list[Instance], *, connected: bool) -> Signals:
        now = self.clock()
        last_end = instances.association_end(connection, held[-1].association_id) if held else None
        # Counted from when this count was first seen here: rows that come late, or a node that was down, are not the
        # sender's silence.
        seen = self._seen.get(one.series_uid)
        if seen is None or seen[0] != len(held):
            seen = self._seen[one.series_uid] = (len(held), now)
        quiet_for = (now - max(one.last_at, seen[1])).total_seconds()
        regular, geometry, holes = self._regular(one, held)
        expected, asking = self._expected(one, quiet_for, connected=connected)
        announced = max((_number(item.header.get("ImagesInAcquisition", "")) for item in held), default=0)
        return Signals(
            instances=len(held),
            quiet_for_s=quiet_for,
            open_for_s=(now - max(one.first_at, self._began)).total_seconds(),  # the same holds for the cap
            expected=expected,
            asking=asking,
            announced=announced or None,
            last_end=AssociationEnd(last_end) if last_end else None,
            associations=len({item.association_id for item in held}),
            sender_connected=connected,
            regular=regular,
            geometry=geometry,
            holes=holes,
            sender_reopened=series.reopened(connection, one.calling_ae, now - _TRUST_AGAIN),
            parts=self._parts(one, held),
        )

    def _parts(self, one: Series, held: list[Instance]) -> tuple[int, int] | None:
        """Parts of wrapped raw data; read again only when the count changed."""
        if not held or any(item.sop_class_uid != RAW_DATA_STORAGE for item in held):
            return None
        known = self._counted.get(one.series_uid)
        if known is None or known[0] != len(held):
            spool = self.config.node.data / "spool"
            known = len(held), parts_here(spool / item.path for item in held)
            self._counted[one.series_uid] = known
        return known[1]

    def _regular(self, one: Series, held: list[Instance]) -> tuple[bool, str, bool]:
        """Whether the positions are a gap-free stack; computed again only when the count changed."""
        known = self._geometry.get(one.series_uid)
        if known is None or known[0] != len(held):
            headers: list[Mapping[str, str]] = [item.header for item in held]
            stack = is_regular_stack(headers)
            known = (len(held), stack.regular, stack.reason, stack.holes)
            self._geometry[one.series_uid] = known
        return known[1:]

    def _expected(self, one: Series, quiet_for_s: float, *, connected: bool) -> tuple[int | None, bool]:
        """What the archive counts, asked off this thread, and whether its answer is still awaited."""
        source = self.config.source(one.calling_ae)
        if source is None or source.query is None:
            return None, False
        asked = self._asked.get(one.series_uid)
        if asked is not None and not asked[2].done():
            return None, True
        answer = _answer(one, asked[2]) if asked is not None else None
        # Only an answer to a question that was asked at this count proves anything: an archive that is being filled
        # at the same time would agree with us by accident.
        if answer is not None and asked is not None and asked[1] == one.instances and answer <= one.instances:
            return answer, False
        stale = asked is None or asked[1] != one.instances
        rested = asked is None or (self.clock() - asked[0]).total_seconds() >= _COUNT_AGAIN_S
        if stale and connected and quiet_for_s < _COUNT_AFTER_QUIET_S:
            return answer, True
        if stale or (rested and answer is not None):
            future = self._pool.submit(self._count, source.query, one.study_uid, one.series_uid)
            self._asked[one.series_uid] = (self.clock(), one.instances, future)
            future.add_done_callback(lambda _: self._answered(one.series_uid))
            return answer, True
        return answer, False

    def _answered(self, series_uid: str) -> None:
        self._waits.pop(series_uid, None)
        self._rounds.wake()


def _answer(one: Series, asked: Future[int | None]) -> int | None:
    """What the archive said; nothing usable counts as no answer."""
    error = asked.exception()
    if error is None:
        return asked.result()
    extra = {"action": "count_failed", "series_uid": one.series_uid, "error": f"{type(error).__name__}: {error}"}
    logger.warning("Archive gave no usable count", extra=extra)
    return None


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        return 0
