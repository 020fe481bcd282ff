"""The outbox: one thread per destination sends what its delivery rows ask for.

What is certain: an object leaves under the UID it was rendered with, as often as it takes; one destination never waits
for another; inside a study the order of the rows is kept. Outcomes are written as they happen, except that acceptances
which follow each other within 50 ms share a transaction: each costs a flush of the disk, and what a crash leaves
unwritten is only sent again, the same bytes under the same UID.

What dies: an object that was refused for good (context, SOP class, content), or refused for lack of resources, or
fatal to the association, `max_attempts` times while the peer answered about others. What never dies: an object that
nobody was there to take. A PACS may be down for a weekend.
"""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian
from sqlalchemy.exc import OperationalError

from dicomnode import faults
from dicomnode.config import Config, Destination
from dicomnode.dispatch import contexts, files, scu
from dicomnode.dispatch.convert import Encoding
from dicomnode.dispatch.files import File
from dicomnode.dispatch.scu import Outcome
from dicomnode.domain import FALLS_BACK_TO, Flavour, ObjectKind
from dicomnode.errors import ContextNotAccepted, DispatchError, StoreRefused
from dicomnode.rounds import Rounds, together
from dicomnode.store import deliveries
from dicomnode.store.db import Database
from dicomnode.store.deliveries import Delivery

logger = logging.getLogger(__name__)

#: Pace at which a destination's rows are looked at when nothing wakes it [s].
_POLL_S: Final = 2.0
#: Objects that go out on one association.
_BATCH: Final = 500
#: Acceptances are written at least this often while objects go out [s].
_WRITE_EVERY_S: Final = 0.05
#: After this long a stop cuts the association that is in the way [s].
_GRACE_S: Final = 10.0
#: Kinds without which a result is still whole: skipped where an archive does not know them.
_DISPENSABLE: Final = (
    ObjectKind.KEY_IMAGES,
    ObjectKind.SUMMARY,
    ObjectKind.MARKS,
    ObjectKind.PRESENTATION,
    ObjectKind.PARAMETRIC_MAP,
    ObjectKind.PHASES,
)
_SYNTAXES: Final = {
    "explicit": "",  # what results are written in
    "implicit": str(ImplicitVRLittleEndian),
    "deflated": str(DeflatedExplicitVRLittleEndian),
}
#: Refused: not authorized (PS3.7 annex C): about this node, not about the object.
_NOT_AUTHORIZED: Final = 0x0124


def _now() -> datetime:
    return datetime.now(UTC)


def backoff(destination: Destination, failures: int, jitter: float) -> timedelta:
    """Pause after so many failures in a row: doubled each time up to the cap, less up to a half by ``jitter`` 0..1."""
    longest = min(destination.backoff_s * 2.0 ** min(failures - 1, 32), destination.max_backoff_s)
    return timedelta(seconds=longest * (1.0 - 0.5 * jitter))


class Outbox:
    """The service; `start` puts back what a crash left in sending.

    Parameters
    ----------
    jitter
        0..1; spreads the retries of many nodes that lost the same PACS.
    """

    def __init__(
        self,
        config: Config,
        database: Database,
        clock: Callable[[], datetime] = _now,
        *,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.config, self.database, self.clock = config, database, clock
        results = config.node.data / "results"
        self.lanes = [
            Lane(name, one, one.calling_ae_title or config.node.ae_title, database, clock, jitter, results)
            for name, one in config.destinations.items()
        ]

    def start(self) -> None:
        """Put back what was being sent when the node stopped, and begin to send."""
        with self.database.write() as connection:
            number = deliveries.put_back(connection, self.clock())
            waiting = deliveries.unsent(connection)
        if number:
            logger.info("Deliveries put back", extra={"action": "deliveries_put_back", "objects": number})
        for name in sorted(set(waiting) - set(self.config.destinations)):
            logger.error(
                "Objects wait for a destination that the configuration does not know",
                extra={"action": "destination_unknown", "destination": name, "objects": waiting[name]},
            )
        for lane in self.lanes:
            lane.rounds.start()

    def wake(self) -> None:
        """Look for new deliveries now. Does not shorten the pause of a destination that is down."""
        for lane in self.lanes:
            lane.rounds.wake()

    def stop(self) -> None:
        """End every thread after the object it is sending; what is left stays pending."""
        for lane in self.lanes:
            lane.rounds.stop()
        together(*(lane.join for lane in self.lanes))


class Lane:
    """Everything about one destination."""

    def __init__(
        self,
        name: str,
        destination: Destination,
        calling_ae: str,
        database: Database,
        clock: Callable[[], datetime],
        jitter: Callable[[], float],
        results: Path,
    ) -> None:
        self._results = results
        self.name, self.destination, self.calling_ae = name, destination, calling_ae
        self.database, self.clock, self._jitter = database, clock, jitter
        self.rounds = Rounds(f"outbox-{name}", self.step, self._fault, recover=self._recover)
        self._link: scu.Link | None = None
        self._failures = 0
        self._resume_at: datetime | None = None
        # Whether the peer has answered about any object since it was last lost, and the studies whose objects were on
        # their way when it was: together they tell an object that kills the peer from a peer that dies by itself.
        self._answered = False
        self._suspects: set[str] = set()
        # Jobs of the batch in hand whose label maps were refused.
        self._fallen_back: set[int] = set()
        self._encoding = Encoding(
            transfer_syntax_uid=_SYNTAXES[destination.transfer_syntax], character_set=destination.character_set
        )
        self._accepted: list[tuple[Delivery, int, str]] = []
        self._written_at = 0.0

    # -- the thread

    def _fault(self, error: Exception) -> None:
        extra = {"action": "outbox_error", "destination": self.name}
        logger.error("Sending failed", extra=extra, exc_info=error)

    def _recover(self) -> float:
        """After a fault no row may stay in sending: this thread alone sends to this destination."""
        self._accepted.clear()
        while True:
            try:
                with self.database.write() as connection:
                    deliveries.put_back(connection, self.clock(), self.name)
            except OperationalError:
                if self.rounds.sleep(1.0):
                    return 0.0
            else:
                return _POLL_S

    def join(self) -> None:
        """Wait for the thread; a peer that holds it is cut off."""
        self.rounds.join(_GRACE_S)
        link = self._link
        if self.rounds.alive and link is not None:
            link.cut()
        self.rounds.join(self.destination.timeout + _GRACE_S)

    # -- one round

    def step(self) -> float:
        """Send what is due, once. Return how long there is nothing to do [s]."""
        now = self.clock()
        if self._resume_at is not None and now < self._resume_at:
            return min((self._resume_at - now).total_seconds(), _POLL_S)
        self._resume_at = None
        with self.database.write() as connection:
            batch = deliveries.start(connection, deliveries.due(connection, self.name, now, _BATCH), now)
            later = None if batch else deliveries.next_due(connection, self.name)
        if not batch:
            wait = _POLL_S if later is None else (later - now).total_seconds()
            return min(max(wait, 0.01), _POLL_S)
        batch.sort(key=lambda delivery: delivery.study_uid in self._suspects)  # stable: else in the rows' order
        self._send(self._readable(batch))
        return 0.0

    def _readable(self, batch: Sequence[Delivery]) -> deque[tuple[Delivery, File]]:
        """Pair deliveries with their files; unreadable ones are set aside, those beyond one association handed back."""
        found: dict[str, tuple[Delivery, File]] = {}
        for delivery in batch:
            try:
                found[delivery.sop_instance_uid] = (delivery, files.read(self._results / delivery.path))
            except DispatchError as error:
                self._kill(delivery, error)
        parts = list(contexts.batches([file for _, file in found.values()], self._encoding.transfer_syntax_uid))
        first = parts[0] if parts else []
        rest = [found[file.sop_instance_uid][0] for part in parts[1:] for file in part]
        self._hand_back(rest)
        return deque(found[file.sop_instance_uid] for file in first)

    def _send(self, left: deque[tuple[Delivery, File]]) -> None:
        """Send a batch on one association. Whatever happens, no delivery stays in sending."""
        if not left:
            return
        self._fallen_back.clear()
        held: set[str] = set()
        skipped: list[Delivery] = []
        try:
            to_send = [file for _, file in left]
            with scu.connect(self.destination, self.calling_ae, to_send, encoding=self._encoding) as link:
                self._link = link
                while left and not self.rounds.stopping:
                    delivery, file = left[0]
                    if self._withdrawn(delivery):
                        pass
                    elif delivery.study_uid in held:
                        skipped.append(delivery)
                    else:
                        outcome = link.send(file)
                        faults.reached("mid-delivery")
                        if not self._record(delivery, outcome):
                            held.add(delivery.study_uid)
                    left.popleft()
                    if self._resume_at is not None:
                        break
        except ContextNotAccepted as error:
            for delivery, _ in left:
                self._not_taken(delivery, error)
            left.clear()
        except scu.ASSOCIATION_ERRORS as error:
            # An error without an object in flight (link is None) is about the destination alone.
            self._lost(left, error, in_flight=self._link is not None)
        finally:
            self._link = None
        self._write()
        self._hand_back([*skipped, *(delivery for delivery, _ in left)])

    # -- outcomes

    def _record(self, delivery: Delivery, outcome: Outcome) -> bool:
        """Write one outcome down. Return whether later objects of the same study may go now."""
        if outcome.status is not None:
            self._back(delivery)
        error = outcome.error
        if error is None:
            self._accepted.append((delivery, outcome.status or 0, outcome.note))
            if time.monotonic() - self._written_at >= _WRITE_EVERY_S:
                self._write()
            self._log("info", "Object delivered", "object_delivered", delivery, status=outcome.status)
            return True
        if isinstance(error, StoreRefused) and error.status == _NOT_AUTHORIZED:
            pause = timedelta(seconds=self.destination.max_backoff_s)
            self._resume_at = self.clock() + pause
            self._postpone(delivery, error, pause)
            return False
        if isinstance(error, StoreRefused) and error.retry and not self._worn_out(delivery):
            self._postpone(delivery, error, backoff(self.destination, delivery.attempt + 1, self._jitter()))
            return False
        self._not_taken(delivery, error)
        return True

    def _not_taken(self, delivery: Delivery, error: DispatchError) -> None:
        """Find out what else can be done about an object that this destination will never take."""
        if isinstance(error, ContextNotAccepted):
            refused = delivery.flavour in FALLS_BACK_TO and delivery.kind in (ObjectKind.SEGMENTATION, ObjectKind.IMAGE)
            if self._withdrawn(delivery) or (refused and self._fall_back(delivery, error)):
                return
            if delivery.kind in _DISPENSABLE:
                with self.database.write() as connection:
                    deliveries.skip(connection, delivery, self.clock(), str(error))
                self._log("warning", "Object skipped", "object_skipped", delivery, error=str(error))
                return
        self._kill(delivery, error)

    def _withdrawn(self, delivery: Delivery) -> bool:
        """Whether its row was cancelled meanwhile, because the flavour was refused in which its job was sent first."""
        return delivery.flavour in FALLS_BACK_TO and delivery.job_id in self._fallen_back

    def _fall_back(self, delivery: Delivery, error: DispatchError) -> bool:
        with self.database.write() as connection:
            done = deliveries.fall_back(connection, delivery, self.destination.objects, self.clock(), str(error))
        if done:
            self._fallen_back.add(delivery.job_id)
            if delivery.flavour is Flavour.ENHANCED:
                self._log("warning", "Single frames instead", "reconstruction_fell_back", delivery, error=str(error))
            else:
                self._log(
                    "warning", "Binary segmentation instead", "segmentation_fell_back", delivery, error=str(error)
                )
        return done

    def _write(self) -> None:
        """Write down what was accepted."""
        if self._accepted:
            with self.database.write() as connection:
                deliveries.delivered_together(connection, self._accepted, self.clock())
            self._accepted.clear()
        self._written_at = time.monotonic()

    def _lost(self, left: deque[tuple[Delivery, File]], error: DispatchError, *, in_flight: bool) -> None:
        """Pause the destination; the object that was on its way is tried again, after the others."""
        self._failures += 1
        pause = backoff(self.destination, self._failures, self._jitter())
        self._resume_at = self.clock() + pause
        text = f"{error} (failure {self._failures} in a row)"
        logger.warning(
            "Destination lost; trying again later",
            extra={
                "action": "destination_down", "destination": self.name, "error": str(error),
                "error_class": type(error).__name__, "failures": self._failures,
                "pause_s": round(pause.total_seconds(), 1), "waiting": len(left),
            },
        )  # fmt: skip
        answered, self._answered = self._answered, False
        if in_flight and left:
            delivery, _ = left[0]
            self._suspects.add(delivery.study_uid)
            if answered:
                left.popleft()
                if self._worn_out(delivery):
                    self._kill(delivery, error)
                else:
                    self._postpone(delivery, error, backoff(self.destination, delivery.attempt + 1, self._jitter()))
        self._hand_back([delivery for delivery, _ in left], text)
        left.clear()

    def _back(self, delivery: Delivery) -> None:
        """Note that the peer answered, so it is up."""
        if self._failures:
            extra = {"action": "destination_back", "destination": self.name, "failures": self._failures}
            logger.info("Destination answers again", extra=extra)
        self._failures, self._resume_at, self._answered = 0, None, True
        self._suspects.discard(delivery.study_uid)

    def _worn_out(self, delivery: Delivery) -> bool:
        return delivery.attempt + 1 >= self.destination.max_attempts

    def _postpone(self, delivery: Delivery, error: DispatchError, pause: timedelta) -> None:
        status = error.status if isinstance(error, StoreRefused) else None
        with self.database.write() as connection:
            deliveries.postpone(connection, delivery, self.clock(), pause, str(error), status)
        self._log(
            "warning", "Object postponed", "object_postponed", delivery, status=status,
            error_class=type(error).__name__, pause_s=round(pause.total_seconds(), 1),
        )  # fmt: skip

    def _kill(self, delivery: Delivery, error: DispatchError) -> None:
        status = error.status if isinstance(error, StoreRefused) else None
        with self.database.write() as connection:
            deliveries.kill(connection, delivery, self.clock(), str(error), status)
        # What the peer said in its own words stays out of the log: it may quote the patient. The row has it.
        self._log(
            "error", "Object set aside", "object_dead", delivery, status=status, error_class=type(error).__name__,
            error="" if isinstance(error, StoreRefused) else str(error),
        )  # fmt: skip

    def _hand_back(self, batch: Sequence[Delivery], error: str = "") -> None:
        batch = [delivery for delivery in batch if not self._withdrawn(delivery)]
        if batch:
            with self.database.write() as connection:
                deliveries.hand_back(connection, batch, self.clock(), error)

    def _log(self, level: str, text: str, action: str, delivery: Delivery, **more: object) -> None:
        extra = {
            "action": action, "destination": self.name, "sop_instance_uid": delivery.sop_instance_uid,
            "series_uid": delivery.series_uid, "study_uid": delivery.study_uid, "job_id": delivery.job_id,
            "attempt": delivery.attempt + 1, **{key: value for key, value in more.items() if value not in (None, "")},
        }  # fmt: skip
        logger.log(logging.getLevelNamesMapping()[level.upper()], text, extra=extra)
