"""One MRD session, from its first byte to CLOSE: what may come when, what is kept, what is answered.

::

    config (1 or 2) -> header (3) -> acquisitions, images, waveforms, texts -> CLOSE
    connect and close; config and close                                        normal: somebody asks whether we are here
    end without CLOSE        whole if LAST_IN_MEASUREMENT was seen, else kept and marked incomplete
    anything else            TEXT with the reason, CLOSE; what came is kept and marked incomplete

CLOSE is answered whatever happens, and only when what came is on the disk. One thread serves a session; it waits for
the client and for the worker at once, and for nothing else.
"""

from __future__ import annotations

import logging
import re
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Final

import ismrmrd

from dicomnode.errors import NodeError, Unsuitable
from dicomnode.receive.mrd.live import Live
from dicomnode.receive.mrd.settings import MrdSettings
from dicomnode.receive.mrd.storing import Storing
from dicomnode.receive.mrd.workers import Workers
from dicomnode.receive.watermark import Watermark
from dicomnode.store.quarantine import printable
from dicomnode.store.raw import RawStore
from dicomnode.volumes import wire
from dicomnode.volumes.mrd import header_of, identity_of
from dicomnode.volumes.wire import Cutter, Kind, Message, ProtocolError

logger = logging.getLogger(__name__)

_RECEIVE: Final = 1 << 18
#: How often the clocks are looked at while nothing happens [s].
_TICK: Final = 0.25
#: After our CLOSE: how long the client may still talk before the socket is closed on it [s].
_LINGER: Final = 2.0
#: Answers that a client has not taken yet hold the worker's planes back beyond this [bytes].
_MOST_UNSENT: Final = 256 * 2**20
#: What a config name looks like; anything else is refused even where unknown names have a meaning.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class State(Enum):
    """What may come next."""

    CONFIG = "config"
    HEADER = "header"
    DATA = "data"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class House:
    """What every session of the process shares."""

    settings: MrdSettings
    store: RawStore
    workers: Workers
    watermark: Watermark
    clock: Callable[[], datetime]
    #: Called when a measurement lies ready to be filed.
    poke: Callable[[], None]


class Session:
    """Serves one connection until it is over.

    Parameters
    ----------
    peer
        Address of the client, for the log.
    """

    def __init__(self, house: House, connection: socket.socket, peer: str) -> None:
        self._house, self._socket, self.peer = house, connection, peer
        self.name = house.store.new_name(house.clock())
        self._cutter = Cutter(house.settings.max_message)
        self._state = State.CONFIG
        self._config = ""
        self._began = self._heard = time.monotonic()
        self._out: deque[memoryview] = deque()
        self._unsent = 0
        self._storing: Storing | None = None
        self._live: Live | None = None
        self._received = self._images = 0
        self._talked = False
        #: The client is gone without a goodbye, or takes nothing.
        self._gone = False
        #: Set from another thread: the node stops.
        self.asked_to_stop = False

    # -- life

    def serve(self) -> None:
        """Run the session. Raises nothing; the socket is closed afterwards."""
        self._socket.setblocking(False)
        reason = ""
        try:
            reason = self._receive()
        except (ProtocolError, NodeError) as error:
            reason = str(error)
        except OSError as error:
            reason = f"it cannot be kept: {error.strerror or error}"
        except Exception as error:  # the boundary of the session: the client gets a reason and CLOSE whatever happens
            logger.exception("MRD session failed", extra={"action": "mrd_session_failed", "session": self.name})
            reason = f"internal error ({type(error).__name__})"
        try:
            self._end(reason)
        except Exception:  # as above: nothing may leave the socket or the worker behind
            logger.exception("MRD session failed", extra={"action": "mrd_session_failed", "session": self.name})
            self._goodbye("internal error; what came is kept")
        finally:
            if self._live is not None:
                self._live.end()
            if self._storing is not None:
                self._storing.close()
            self._linger()
            self._socket.close()

    def _receive(self) -> str:
        """Take messages until the client has said everything; returns what went wrong, or nothing."""
        while not self._over:
            self._check_clocks()
            if not self._exchange(_TICK):
                return self._disconnected()
            while not self._over and (message := self._cutter.next()) is not None:
                self._heard = time.monotonic()
                self._talked = True
                self._take(message)
            self._flush()
        return ""

    @property
    def _over(self) -> bool:
        """The client has said everything."""
        return self._state is State.ENDED

    def _disconnected(self) -> str:
        """The client's end is closed and it had not said CLOSE."""
        if self._state is State.DATA and self._storing is not None:
            if self._storing.journal.last_seen and not self._cutter.pending:
                return ""
            return f"the connection ended after {self._storing.journal.readouts} readouts, before the last one"
        return "" if not self._cutter.pending else "the connection ended in the middle of a message"

    def _check_clocks(self) -> None:
        settings, now = self._house.settings, time.monotonic()
        if self.asked_to_stop:
            raise ProtocolError("the node stops")
        if now - self._began > settings.session_timeout:
            raise ProtocolError(f"a session lasts {settings.session_timeout:g} s at most (mrd.timeouts.session)")
        limit = settings.idle_timeout if self._talked else settings.first_timeout
        if now - self._heard > limit:
            which = "idle" if self._talked else "first"
            raise ProtocolError(f"nothing came for {limit:g} s (mrd.timeouts.{which})")

    # -- what comes

    def _take(self, message: Message) -> None:
        self._received += len(message.body) + 2
        if self._received > self._house.settings.max_session:
            raise ProtocolError(f"the session is larger than {self._house.settings.max_session} bytes (max_session_mb)")
        kind = message.kind
        if kind is Kind.CLOSE:
            self._keep(message)
            self._state = State.ENDED
        elif kind in (Kind.CONFIG_FILE, Kind.CONFIG_TEXT):
            self._configure(message)
        elif self._state is State.CONFIG and kind is not Kind.TEXT:
            raise ProtocolError(f"{kind.name} before a config")
        elif kind is Kind.HEADER:
            self._open(message)
        elif kind is Kind.TEXT:  # free text may name a patient: kept, never logged
            self._keep(message)
        elif self._state is State.HEADER:
            raise ProtocolError(f"{kind.name} before the header")
        else:
            self._data(message)

    def _configure(self, message: Message) -> None:
        if self._state is not State.CONFIG:
            raise ProtocolError("a second config")
        settings, asked = self._house.settings, message.text.strip()
        if asked in settings.configs:
            self._config = asked
        else:
            known = ", ".join(settings.configs)
            named = bool(_NAME.fullmatch(asked)) or message.kind is Kind.CONFIG_TEXT
            if not settings.default or not named:
                logger.warning(
                    "MRD session from %s asks for a config that is not on the list",
                    self.peer,
                    extra={"action": "mrd_config_refused", "session": self.name, "config": printable(asked[:64])},
                )
                raise ProtocolError(f"config {asked[:64]!r} is not one of this node's; it knows {known}")
            self._config = settings.default
            self._say(f"config {asked[:64]!r} is not known here: {settings.default!r} is used instead")
        self._state = State.HEADER
        self._first = message

    def _open(self, message: Message) -> None:
        """The header: from here on there is something to keep."""
        if self._state is not State.HEADER:
            raise ProtocolError("a second header")
        if not self._house.watermark.open:
            raise ProtocolError("the node's disk is nearly full; nothing is taken until there is room")
        header_of(message.raw_text)
        identity = identity_of(message.raw_text)
        if self._house.settings.archive and not (identity.get("StudyInstanceUID") and identity.get("PatientID")):
            self._say("the header names no patient and study: unless they are found, images are not archived before a "
                      "person names them (dicomnode raw)")  # fmt: skip
        self._storing = Storing(self._house.store, self.name)
        self._state = State.DATA
        self._keep(self._first)
        self._keep(message)
        logger.info(
            "MRD session from %s: config %s",
            self.peer,
            self._config,
            extra={"action": "mrd_session", "session": self.name, "config": self._config, "peer": self.peer},
        )

    def _data(self, message: Message) -> None:
        self._keep(message)
        if message.kind is Kind.IMAGE:  # images of the scanner's own pass through
            self._send(message.packed())
            self._images += 1
        elif message.kind is Kind.ACQUISITION and self._live is None:
            head = ismrmrd.AcquisitionHeader.from_buffer_copy(message.body)
            self._live = Live(self._house, self._config, self._storing_path(), head)

    def _keep(self, message: Message) -> None:
        if self._storing is not None:
            self._storing.journal.add(message)

    def _storing_path(self) -> str:
        assert self._storing is not None
        return str(self._storing.journal.path)

    def _flush(self) -> None:
        """Let the worker see what came, and write the file when nobody waits."""
        if self._storing is None:
            return
        size = self._storing.journal.flush()
        if self._live is not None:
            self._live.upto(size)
        self._storing.follow()

    # -- what goes

    def _send(self, data: bytes) -> None:
        if not self._gone:
            self._out.append(memoryview(data))
            self._unsent += len(data)

    def _say(self, words: str) -> None:
        self._send(wire.text(Kind.TEXT, words))

    def _exchange(self, timeout_s: float) -> bool:
        """Wait for the client or the worker; False once the client's end is closed."""
        live = self._live
        readers: list[socket.socket | Live] = [] if self._over else [self._socket]
        if live is not None and live.running and self._unsent < _MOST_UNSENT:
            readers.append(live)
        writers = [self._socket] if self._out else []
        readable, writable, _ = select.select(readers, writers, [], timeout_s)
        if writable:
            self._push()
        if live is not None and live in readable:
            for answer in live.answers():
                self._send(answer)
        if self._socket not in readable:
            return True
        try:
            data = self._socket.recv(_RECEIVE)
        except BlockingIOError:
            return True
        except OSError:  # reset: nobody is left to answer
            self._gone = True
            return False
        self._cutter.feed(data)
        return bool(data)

    def _push(self) -> None:
        """Send what the client takes now."""
        try:
            while self._out:
                sent = self._socket.send(self._out[0])
                self._unsent -= sent
                if sent < len(self._out[0]):
                    self._out[0] = self._out[0][sent:]
                    return
                self._out.popleft()
        except BlockingIOError:
            return
        except OSError:
            self._gone = True
            self._out.clear()
            self._unsent = 0

    # -- the end

    def _end(self, reason: str) -> None:
        """Answer what can be answered, keep what came, then say CLOSE."""
        self._state = State.ENDED
        storing = self._storing
        incomplete = "" if storing is not None and storing.journal.last_seen else reason
        if reason:
            logger.warning(
                "MRD session from %s ended: %s",
                self.peer,
                reason,
                extra={"action": "mrd_session_broken", "session": self.name, "reason": reason},
            )
            self._say(reason)
        if storing is not None:
            size = storing.journal.flush()
            if self._live is not None and not self._gone:
                self._live.finish(size, incomplete=bool(incomplete))
            storing.follow(everything=True)
            if self._live is not None and not self._gone:
                self._answer(storing)
            storing.settle(
                config=self._config, source=self.peer, at=self._house.clock(), incomplete=incomplete,
                archive=self._house.settings.archive,
            )  # fmt: skip
            self._house.poke()
        self._goodbye("")
        logger.info(
            "MRD session from %s is over",
            self.peer,
            extra={
                "action": "mrd_session_over", "session": self.name, "bytes": self._received,
                "readouts": storing.journal.readouts if storing else 0,
                "images": self._images + (self._live.images if self._live else 0),
                "seconds": round(time.monotonic() - self._began, 2),
            },
        )  # fmt: skip

    def _answer(self, storing: Storing) -> None:
        """Wait for the worker; if it does not deliver, answer with the plain reconstruction."""
        live = self._live
        assert live is not None
        while live.running and not self._gone:
            live.check_deadline(asked_to_stop=self.asked_to_stop)
            self._exchange(_TICK)
        if live.problem and not self._gone:
            self._say(f"{live.problem}; the plain reconstruction answers instead")
            try:
                for answer in live.plain(storing.file()):
                    self._send(answer)
                    self._exchange(0.0)
            except (Unsuitable, NodeError, OSError) as error:
                self._say(f"no image can be made: {error}")

    def _goodbye(self, words: str) -> None:
        """CLOSE, and everything that is still to be sent before it; a client that takes nothing is given up."""
        if words:
            self._say(words)
        self._send(wire.CLOSE)
        waited = time.monotonic()
        unsent = self._unsent
        while self._out and not self._gone:
            _, writable, _ = select.select([], [self._socket], [], _TICK)
            if writable:
                self._push()
            if self._unsent < unsent:
                waited, unsent = time.monotonic(), self._unsent
            if time.monotonic() - waited > self._house.settings.idle_timeout or self.asked_to_stop:
                self._gone = True

    def _linger(self) -> None:
        """Read on until the client closes: closing first would make the kernel throw away what it has not read."""
        end = time.monotonic() + _LINGER
        try:
            if not self._gone:
                self._socket.shutdown(socket.SHUT_WR)
            while not self._gone and (left := end - time.monotonic()) > 0:
                readable, _, _ = select.select([self._socket], [], [], left)
                if not readable or not self._socket.recv(_RECEIVE):
                    return
        except OSError:
            return
