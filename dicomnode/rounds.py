"""A service's thread: one round after another until it is stopped. No fault ends it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from sqlalchemy.exc import OperationalError

logger = logging.getLogger(__name__)

#: Pause after a fault, unless the service says otherwise [s].
_RETRY_S = 1.0


def together(*waits: Callable[[], None]) -> None:
    """Call all at once, and return when the last has returned: what waits on many peers waits as long as for one."""
    threads = [threading.Thread(target=wait) for wait in waits]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class Rounds:
    """Calls ``step`` until it is stopped; sleeps as long as that says, or until it is woken.

    Parameters
    ----------
    step
        One round; returns how long there is nothing to do [s].
    fault
        Told of what ``step`` did not foresee, a database that does not answer excepted: to log it.
    recover
        Called after every fault: puts right what the round left, returns how long to wait [s]. Nothing shortens that
        wait but `stop`.
    ended
        Called by the thread as its last act.
    """

    def __init__(
        self,
        name: str,
        step: Callable[[], float],
        fault: Callable[[Exception], None],
        *,
        recover: Callable[[], float] = lambda: _RETRY_S,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        self._step, self._fault, self._recover, self._ended = step, fault, recover, ended
        self._woken, self._stopping = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=name)

    @property
    def stopping(self) -> bool:
        """Whether it was asked to end."""
        return self._stopping.is_set()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self) -> None:
        """Begin the next round now."""
        self._woken.set()

    def stop(self) -> None:
        """Ask the thread to end after the round it is in."""
        self._stopping.set()
        self._woken.set()

    def join(self, timeout: float) -> None:
        """Wait for its end, ``timeout`` seconds at the most; returns at once if it never began."""
        if self.alive:
            self._thread.join(timeout)

    def sleep(self, seconds: float) -> bool:
        """Wait within a round; returns at once, and true, when it is to end."""
        return self._stopping.wait(seconds)

    def _run(self) -> None:
        while not self.stopping:
            try:
                pause = self._step()
            except OperationalError as error:
                text = "Database does not answer; trying again"
                logger.error(text, extra={"action": "database_unavailable", "error": str(error.orig)})
            except Exception as error:  # noqa: BLE001 - the boundary of every service: one bad item must not stop the next
                self._fault(error)
            else:
                if pause > 0:
                    self._woken.wait(pause)
                self._woken.clear()
                continue
            self._put_right()
        self._ended()

    def _put_right(self) -> None:
        """Nothing else is begun before this is done, however often it takes."""
        while not self.stopping:
            try:
                pause = self._recover()
            except Exception as error:  # noqa: BLE001 - as above: what puts right may meet the same trouble
                self._fault(error)
                self.sleep(_RETRY_S)
            else:
                self.sleep(pause)
                return
