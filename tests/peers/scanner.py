"""A scanner that streams MRD: whole sessions and pieces of them, and a listener to send them to."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dicomnode.cli.mrd_send import Answer, Player
from dicomnode.config import parse
from dicomnode.execute import stream
from dicomnode.receive.mrd.server import MrdServer
from dicomnode.receive.mrd.settings import MrdSettings
from dicomnode.store.raw import Measurement, RawStore
from dicomnode.volumes import wire
from dicomnode.volumes.wire import Kind
from tests.mrd_factory import Scan, acquisition

#: subjectInformation and studyInformation of a header that says whose it is.
SUBJECT = (
    "<subjectInformation><patientName>KSPACE^TEST</patientName><patientID>KS-1</patientID></subjectInformation>"
    "<studyInformation><studyDate>2026-01-02</studyDate><studyInstanceUID>1.2.840.99.7</studyInstanceUID>"
    "</studyInformation>"
)
SMALL = Scan(matrix=(32, 24), coils=2)
FAULTS = ("raise", "die", "hang", "refuse")


def readouts(scan: Scan = SMALL) -> list[bytes]:
    """ACQUISITION messages."""
    kind = struct.pack("<H", Kind.ACQUISITION)
    return [kind + acquisition(one).to_bytes() for one in scan.readouts()]


def opening(scan: Scan = SMALL, config: str = "default", subject: str = SUBJECT) -> bytes:
    """Config and header."""
    return wire.config_file(config) + wire.text(Kind.HEADER, scan.xml(subject))


def session(scan: Scan = SMALL, config: str = "default", subject: str = SUBJECT) -> bytes:
    """A whole session, CLOSE and all."""
    return opening(scan, config, subject) + b"".join(readouts(scan)) + wire.CLOSE


def configs() -> dict[str, dict[str, Any]]:
    """The name ``default`` does what it should; the others fail each in their own way."""
    return {"default": {"pipeline": "fourier"}} | {
        fault: {"pipeline": "fourier", "options": {"fault": fault}} for fault in FAULTS
    }


class Listener:
    """An MRD server in this process, its measurements in ``data``."""

    def __init__(self, data: Path, *, workers: bool = True, **mrd: Any) -> None:

        section = {"port": 0, "configs": configs(), "deadline_s": 20, **mrd}
        config = parse(
            json.dumps(
                {
                    "node": {"data": str(data), "log": {"level": "warning"}},
                    "receive": {"refuse_below_mb": 0, "accept_above_mb": 0},
                    "execute": {"slots": ["cpu"], "threads": 1},
                    "pipelines": {"fourier": {"class": "tests.mrd_toys:Fourier"}},
                    "mrd": section,
                }
            )
        )
        self.config, self.store = config, RawStore(data)
        self.pokes = 0
        command = stream.command(config) if workers else []
        self.server = MrdServer(MrdSettings.of(config, command), self._poke)

    def _poke(self) -> None:
        self.pokes += 1

    def __enter__(self) -> Listener:
        self.server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.stop(5)

    @property
    def port(self) -> int:
        return self.server.port

    def player(self, timeout_s: float = 60) -> Player:
        return Player("127.0.0.1", self.port, timeout_s)

    def play(self, data: bytes, *, timeout_s: float = 60) -> Answer:
        """Send everything, wait for CLOSE, leave."""
        player = self.player(timeout_s)
        player.send(data)
        answer = player.wait()
        player.close()
        return answer

    def kept(self) -> list[Measurement]:
        return list(self.store.items())

    def until_idle(self, timeout_s: float = 30) -> None:
        until(lambda: self.server.sessions == 0, timeout_s)


def until(done: Callable[[], Any], timeout_s: float = 30, what: str = "") -> Any:
    end = time.monotonic() + timeout_s
    while not (found := done()):
        assert time.monotonic() < end, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)
    return found
