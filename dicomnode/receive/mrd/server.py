"""The MRD listener: lets in who is on the allow-list, and gives each session a thread."""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from ipaddress import IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Final

from dicomnode.errors import NodeError
from dicomnode.receive.mrd.session import House, Session
from dicomnode.receive.mrd.settings import MrdSettings
from dicomnode.receive.mrd.storing import recover
from dicomnode.receive.mrd.workers import Workers
from dicomnode.receive.watermark import Watermark
from dicomnode.store.raw import RawStore
from dicomnode.volumes import wire

logger = logging.getLogger(__name__)

#: TCP keep-alive: a cable that was pulled is noticed after so long idle, by so many probes so far apart [s, s, 1].
_KEEPALIVE: Final = (30, 10, 3)
#: How long sessions may take to end at stop [s]: their clients are told, their files are finished.
GRACE: Final = 10.0
_BUSY_S: Final = 1.0


def _now() -> datetime:
    return datetime.now(UTC)


class MrdServer:
    """Everything the MRD process consists of: start it, stop it.

    Parameters
    ----------
    poke
        Called when a measurement lies ready to be filed.
    """

    def __init__(self, settings: MrdSettings, poke: Callable[[], None] = lambda: None) -> None:
        data = Path(settings.data)
        data.mkdir(parents=True, exist_ok=True)
        self.settings = settings
        self.workers = Workers(settings.worker, settings.spare)
        store = RawStore(data)
        watermark = Watermark(data, settings.refuse_below_mb, settings.accept_above_mb)
        self._house = House(settings, store, self.workers, watermark, _now, poke)
        self._allowed = [ip_network(one) for one in settings.allow]
        self._sessions: dict[Session, threading.Thread] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        family = socket.AF_INET6 if ":" in settings.address else socket.AF_INET
        try:
            self._listener = socket.create_server((settings.address, settings.port), family=family, backlog=16)
        except OSError as error:
            where = f"{settings.address}:{settings.port}"
            raise NodeError(f"cannot listen for MRD on {where}: {error.strerror}") from error
        self._thread = threading.Thread(target=self._accept, name="mrd-accept", daemon=True)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._listener.getsockname()[1])

    @property
    def sessions(self) -> int:
        """How many sessions run."""
        with self._lock:
            return len(self._sessions)

    def start(self) -> None:
        """Take up what a dead listener left, then let clients in."""
        if recover(self._house.store, archive=self.settings.archive):
            self._house.poke()
        self.workers.start()
        self._thread.start()
        extra = {"action": "mrd_ready", "port": self.port, "configs": list(self.settings.configs)}
        logger.info("Listening for MRD on port %d", self.port, extra=extra)

    def stop(self, grace: float = GRACE) -> None:
        """Let nobody in, end every session with CLOSE, keep what came."""
        if self._stop.is_set():
            return
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(5)
        self._listener.close()
        deadline = time.monotonic() + grace
        with self._lock:
            running = dict(self._sessions)
        for session in running:
            session.asked_to_stop = True
        for thread in running.values():
            thread.join(max(0.1, deadline - time.monotonic()))
        self.workers.stop()
        logger.info("MRD listener stopped", extra={"action": "mrd_stopped", "unfinished": self.sessions})

    def _accept(self) -> None:
        self._listener.setblocking(False)
        while not self._stop.is_set():
            readable, _, _ = select.select([self._listener], [], [], 0.2)
            if not readable:
                continue
            try:
                connection, address = self._listener.accept()
            except OSError as error:  # out of descriptors, or gone before it was taken
                logger.error("No MRD connection taken: %s", error.strerror, extra={"action": "mrd_accept_failed"})
                self._stop.wait(0.2)
                continue
            self._greet(connection, str(address[0]))

    def _greet(self, connection: socket.socket, peer: str) -> None:
        """Let a client in, or say why not."""
        if not self._may_come(peer):
            logger.warning(
                "%s may not stream MRD here; see mrd.allow", peer, extra={"action": "mrd_peer_refused", "peer": peer}
            )
            connection.close()
            return
        if self.sessions >= self.settings.max_sessions:
            logger.warning("MRD session refused: too many", extra={"action": "mrd_busy", "peer": peer})
            words = f"{self.settings.max_sessions} sessions run (mrd.max_sessions); try again"
            with contextlib.suppress(OSError), connection:
                connection.settimeout(_BUSY_S)
                connection.sendall(wire.text(wire.Kind.TEXT, words) + wire.CLOSE)
                connection.shutdown(socket.SHUT_WR)
            return
        _keep_alive(connection)
        try:
            session = Session(self._house, connection, peer)
        except OSError:
            connection.close()
            return
        thread = threading.Thread(target=self._serve, args=(session,), name=f"mrd-{session.name}", daemon=True)
        with self._lock:
            self._sessions[session] = thread
        thread.start()

    def _serve(self, session: Session) -> None:
        try:
            session.serve()
        finally:
            with self._lock:
                del self._sessions[session]

    def _may_come(self, peer: str) -> bool:
        address = ip_address(peer.partition("%")[0])
        if isinstance(address, IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        return any(address in network for network in self._allowed)


def _keep_alive(connection: socket.socket) -> None:
    idle, between, probes = _KEEPALIVE
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, between)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, probes)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
