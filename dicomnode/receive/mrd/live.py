"""The live reconstruction of one session: its worker, what it answered, and what stands in when it does not."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import ismrmrd

from dicomnode.channel import Begin, End, Failed, Finished, Given, Refused, Upto
from dicomnode.errors import NodeError
from dicomnode.receive.mrd import plain
from dicomnode.receive.mrd.answers import Answers

if TYPE_CHECKING:
    from dicomnode.receive.mrd.session import House
    from dicomnode.receive.mrd.workers import Worker

logger = logging.getLogger(__name__)

#: The worker hears of new lines at most so often [s]: it reads them from the journal in one go.
_TELL_EVERY: Final = 0.02


class Live:
    """One measurement being reconstructed.

    Parameters
    ----------
    config
        Name under ``mrd.configs``.
    journal
        The session's journal.
    head
        Header of the first acquisition.
    """

    def __init__(self, house: House, config: str, journal: str, head: ismrmrd.AcquisitionHeader) -> None:
        self._deadline_s = house.settings.deadline
        self._answers = Answers()
        self._answers.measurement_uid = int(head.measurement_uid)
        self._answers.table_position = list(head.patient_table_position)
        self._given: set[plain.Counters] = set()
        self._told, self._told_size = 0.0, 0
        self._end: End | None = None
        self._end_told = False
        self._late = 0.0
        #: Why the worker's answer is missing or not whole; empty: it is not.
        self.problem = ""
        #: Images answered.
        self.images = 0
        self._config = config
        self._worker: Worker | None = None
        try:
            self._worker = house.workers.take()
            self._worker.channel.send(Begin(config=config, journal=journal))
        except (NodeError, OSError) as error:
            self._fail(str(error))
        #: The worker has more to say.
        self.running = not self.problem

    def fileno(self) -> int:
        """Readable when the worker said something."""
        assert self._worker is not None
        return self._worker.channel.fileno()

    def upto(self, size: int) -> None:
        """The journal has grown."""
        now = time.monotonic()
        if self.running and self._worker is not None and size > self._told_size and now - self._told > _TELL_EVERY:
            self._worker.channel.tell(Upto(size))
            self._told, self._told_size = now, size

    def finish(self, size: int, *, incomplete: bool) -> None:
        """Nothing more comes; from now on the deadline counts."""
        self._end = End(size, incomplete)
        self._late = time.monotonic() + self._deadline_s
        self._tell_end()

    def _tell_end(self) -> None:
        if self._worker is not None and self._end is not None and not self._end_told:
            self._end_told = self._worker.channel.tell(self._end)

    def check_deadline(self, *, asked_to_stop: bool) -> None:
        """Give the worker up when it is late, or when the node stops."""
        self._tell_end()
        if self.running and (time.monotonic() > self._late or asked_to_stop):
            why = "the node stops" if asked_to_stop else f"no answer within {self._deadline_s:g} s (mrd.deadline_s)"
            self._fail(why)

    def answers(self) -> Iterator[bytes]:
        """IMAGE messages of what the worker has said since the last call."""
        assert self._worker is not None
        for event in self._worker.channel.received():
            match event:
                case Given():
                    for made in event.reconstructions:
                        self._given.update(plain.counters(plane) for plane in made.planes)
                        self.images += len(made.planes)
                        yield from self._answers.pack(made)
                case Refused():
                    self._fail(f"the measurement is not for this reconstruction: {event.reason}")
                case Failed():
                    self._fail(f"the reconstruction failed: {event.reason}")
                case Finished():
                    self.running = False
        if self._worker.channel.closed and self.running:
            self._fail("the reconstruction's process died")

    def plain(self, path: Path) -> Iterator[bytes]:
        """IMAGE messages of the plain reconstruction, of the images that the worker did not give."""
        for made in plain.reconstruct(path, frozenset(self._given)):
            self.images += len(made.planes)
            yield from self._answers.pack(made, [f"{self.problem}; plain reconstruction"])

    def end(self) -> None:
        """End the worker; the next session gets another."""
        self.running = False
        if self._worker is not None:
            self._worker.end()

    def _fail(self, why: str) -> None:
        self.problem, self.running = why, False
        logger.error(
            "Live reconstruction gave up: %s",
            why,
            extra={"action": "mrd_fallback", "config": self._config, "reason": why},
        )
