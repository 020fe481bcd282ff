"""What the MRD listener and the worker of a session say to each other, and how.

The bulk goes through a file: the listener appends what comes from the scanner to the session's journal, and tells the
worker how long it is. So a slow worker never holds the scanner up, nothing is copied twice, and a message to it is
small enough to be sent without waiting. Planes come back through the channel.
"""

from __future__ import annotations

import pickle
import select
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from dicomnode.pipeline import Reconstruction

_head = struct.Struct("<Q")
_PIECE: Final = 1 << 20
#: For the rest of a message of some hundred bytes [s].
_REST_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    """Listener to worker: a measurement begins."""

    #: Name under ``mrd.configs``.
    config: str
    #: The session's journal: MRD messages, the header among them, as they came.
    journal: str


@dataclass(frozen=True, slots=True)
class Upto:
    """Listener to worker: the journal holds so many bytes of whole messages."""

    size: int


@dataclass(frozen=True, slots=True)
class End:
    """Listener to worker: the journal holds so many bytes, and no more come."""

    size: int
    incomplete: bool


@dataclass(frozen=True, slots=True)
class Given:
    """Worker to listener: planes."""

    reconstructions: Sequence[Reconstruction]


@dataclass(frozen=True, slots=True)
class Refused:
    """Worker to listener: the measurement is not for this pipeline, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Failed:
    """Worker to listener: the pipeline failed, and how."""

    reason: str


@dataclass(frozen=True, slots=True)
class Finished:
    """Worker to listener: everything has been given."""

    notes: Sequence[str] = ()


Command = Begin | Upto | End
Event = Given | Refused | Failed | Finished


class Channel:
    """One end of a socket pair. Both ends are ours, so what comes is unpickled.

    Parameters
    ----------
    end
        Taken over; reading never waits for the rest of a message.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._in = bytearray()
        #: The other end is gone.
        self.closed = False

    def fileno(self) -> int:
        """Readable when something came."""
        return self._socket.fileno()

    def close(self) -> None:
        """Let go of it."""
        self.closed = True
        self._socket.close()

    def tell(self, command: Command) -> bool:
        """Send something small without waiting; False if there was no room, and it was not sent."""
        packed = _packed(command)
        try:
            sent = self._socket.send(packed, socket.MSG_DONTWAIT)
            if sent < len(packed):  # room for a part of a few bytes is about to become room for all of them
                self._socket.settimeout(_REST_S)
                self._socket.sendall(packed[sent:])
        except (OSError, TimeoutError):
            return False
        finally:
            if not self.closed:
                self._socket.settimeout(None)
        return True

    def send(self, message: Command | Event) -> None:
        """Send all of it, as long as it takes; raises OSError if the other end is gone."""
        self._socket.sendall(_packed(message))

    def received(self) -> list[Command | Event]:
        """Every whole message that is here, without waiting."""
        while not self.closed:
            try:
                piece = self._socket.recv(_PIECE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError:
                piece = b""
            if not piece:
                self.closed = True
            self._in += piece
        found: list[Command | Event] = []
        while len(self._in) >= _head.size:
            end = _head.size + _head.unpack_from(self._in)[0]
            if len(self._in) < end:
                break
            found.append(pickle.loads(self._in[_head.size : end]))  # noqa: S301 - from our own process
            del self._in[:end]
        return found

    def wait(self, timeout_s: float) -> list[Command | Event]:
        """Wait until at least one message is here, or the time is over, or the other end is gone."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = self.received()
            left = deadline - time.monotonic()
            if found or self.closed or left <= 0:
                return found
            select.select([self._socket], [], [], left)


def _packed(message: Command | Event) -> bytes:
    raw = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return _head.pack(len(raw)) + raw
