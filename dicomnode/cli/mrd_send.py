"""``dicomnode mrd-send``: play a scanner that streams an MRD file, for demos, tests and load."""

from __future__ import annotations

import argparse
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import h5py
import ismrmrd
import numpy as np
from ismrmrd.hdf5 import acquisition_header_dtype
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from dicomnode.cli.common import Commands, command, err, out
from dicomnode.errors import ConfigError, PeerUnreachable
from dicomnode.kspace import Flag
from dicomnode.volumes import wire
from dicomnode.volumes.mrd import xml_of
from dicomnode.volumes.wire import Cutter, Kind, ProtocolError

_MOST: Final = 2**31
_LAST: Final = 1 << (Flag.LAST_IN_MEASUREMENT - 1)
_FLAGS: Final = struct.Struct("<Q")


@dataclass(kw_only=True)
class Answer:
    """What came back from an MRD server."""

    images: list[ismrmrd.Image] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    #: The server said CLOSE.
    closed: bool = False
    #: When the first and the last image came, and the CLOSE [monotonic s].
    first_image_at: float | None = None
    last_image_at: float | None = None
    closed_at: float | None = None


class Player:
    """One session as a client: sends in the caller's thread, listens in another.

    Parameters
    ----------
    timeout_s
        Of connecting, and of each wait for the server.
    """

    def __init__(self, host: str, port: int, timeout_s: float = 60) -> None:
        try:
            self.socket = socket.create_connection((host, port), timeout_s)
        except OSError as error:
            raise PeerUnreachable(f"no MRD server answers at {host}:{port}: {error.strerror or error}") from error
        self.answer = Answer()
        self._timeout_s = timeout_s
        self._thread = threading.Thread(target=self._listen, name="mrd-answers", daemon=True)
        self._thread.start()

    def send(self, data: bytes) -> bool:
        """Send bytes; False if the server does not take them any more."""
        try:
            self.socket.sendall(data)
        except OSError:
            return False
        return True

    def wait(self) -> Answer:
        """Wait for the server's CLOSE or the end of the connection."""
        self._thread.join(self._timeout_s)
        return self.answer

    def cut(self) -> None:
        """Drop the connection without a word, as a scanner does that loses power."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.shutdown(socket.SHUT_RD)
        self.socket.close()
        self._thread.join(5)

    def close(self) -> None:
        """Close the connection."""
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:  # the server was first
            pass
        finally:
            self.socket.close()
        self._thread.join(5)

    def _listen(self) -> None:
        cutter = Cutter(_MOST)
        try:
            while not self.answer.closed and (data := self.socket.recv(1 << 18)):
                cutter.feed(data)
                while not self.answer.closed and (message := cutter.next()) is not None:
                    self._hear(message)
        except (OSError, ProtocolError) as error:
            if not self.answer.closed:
                self.answer.texts.append(f"(connection: {error})")

    def _hear(self, message: wire.Message) -> None:
        now = time.monotonic()
        if message.kind is Kind.CLOSE:
            self.answer.closed, self.answer.closed_at = True, now
        elif message.kind is Kind.TEXT:
            self.answer.texts.append(message.text)
        elif message.kind is Kind.IMAGE:
            self.answer.images.append(ismrmrd.Image.from_bytes(message.body))
            self.answer.first_image_at = self.answer.first_image_at or now
            self.answer.last_image_at = now


def readouts_of(path: Path) -> list[bytes]:
    """Every readout of an MRD file as an ACQUISITION message."""
    found = []
    kind = Kind.ACQUISITION.to_bytes(2, "little")
    with h5py.File(path, "r") as file:
        group = file["dataset"] if "dataset" in file else file[next(iter(file))]
        table = group["data"]
        for start in range(0, len(table), 256):
            rows = table[start : start + 256]
            for head, row in zip(_heads(rows["head"]), rows, strict=True):
                samples, trajectory = (np.asarray(row[name], np.float32).tobytes() for name in ("data", "traj"))
                found.append(b"".join((kind, head.tobytes(), trajectory, samples)))
    return found


def _heads(rows: NDArray[np.void]) -> NDArray[np.void]:
    """Headers as they go over the wire: packed, whatever layout the file's writer chose."""
    made = np.zeros(len(rows), acquisition_header_dtype)
    for name in made.dtype.fields or ():
        if name == "idx":
            for counter in made["idx"].dtype.fields or ():
                made["idx"][counter] = rows["idx"][counter]
        elif name in (rows.dtype.fields or ()):
            made[name] = rows[name]
    return made


def without_last_flag(message: bytes) -> bytes:
    """The same readout, not marked as the last of the measurement."""
    (flags,) = _FLAGS.unpack_from(message, 4)
    return message[:4] + _FLAGS.pack(flags & ~_LAST) + message[12:]


def spoilt(readouts: Sequence[bytes], arguments: argparse.Namespace) -> list[bytes]:
    """What a bad day does to a stream."""
    chance = random.Random(arguments.seed)  # noqa: S311 - a replay must be repeatable
    kept = list(readouts)
    for number in sorted(chance.sample(range(len(kept)), min(arguments.drop, len(kept))), reverse=True):
        del kept[number]
    if arguments.shuffle:
        chance.shuffle(kept)
    if arguments.drop_last_flag:
        kept = [without_last_flag(one) for one in kept]
    return kept[: arguments.disconnect_after] if arguments.disconnect_after is not None else kept


def paced(messages: Sequence[bytes], rate: float) -> Iterator[bytes]:
    """Yield messages, so many a second; 0: as fast as they are taken."""
    began = time.monotonic()
    for number, message in enumerate(messages):
        if rate > 0:
            time.sleep(max(0.0, began + number / rate - time.monotonic()))
        yield message


def add(commands: Commands) -> None:
    """Add the command."""
    sub = command(
        commands, "mrd-send", "stream an MRD file to an MRD server as a scanner does, and show what comes back",
        """
        dicomnode mrd-send brain.h5 --port 9002
        dicomnode mrd-send brain.h5 --config default --rate 200 --out images.h5
        dicomnode mrd-send brain.h5 --drop 5 --shuffle --drop-last-flag
        dicomnode mrd-send brain.h5 --disconnect-after 60
        """, _send,
    )  # fmt: skip
    sub.add_argument("file", type=Path, metavar="FILE", help="MRD (ISMRMRD HDF5) file")
    sub.add_argument("--host", default="127.0.0.1")
    sub.add_argument("--port", type=int, default=9002)
    sub.add_argument("--config", default="default", help="config name to ask for (default: default)")
    sub.add_argument("--rate", type=float, default=0, metavar="LINES_PER_S", help="readouts a second (default: all)")
    sub.add_argument("--timeout", type=float, default=120, metavar="S", help="longest wait for the server")
    sub.add_argument("--out", type=Path, metavar="FILE", help="write the images that come back to this MRD file")
    sub.add_argument("--seed", type=int, default=0, help="of --shuffle and --drop")
    sub.add_argument("--shuffle", action="store_true", help="send the readouts in another order")
    sub.add_argument("--drop", type=int, default=0, metavar="N", help="leave out N readouts")
    sub.add_argument("--drop-last-flag", action="store_true", help="mark no readout as the last")
    sub.add_argument("--disconnect-after", type=int, metavar="N", help="drop the connection after N readouts")
    sub.add_argument("--double-close", action="store_true", help="say CLOSE twice")
    sub.add_argument("--no-close", action="store_true", help="close the connection without saying CLOSE")


def _send(arguments: argparse.Namespace) -> int:
    try:
        header, readouts = xml_of(arguments.file), readouts_of(arguments.file)
    except OSError as error:
        raise ConfigError(f"{arguments.file} cannot be read: {error.strerror or error}") from error
    readouts = spoilt(readouts, arguments)
    player = Player(arguments.host, arguments.port, arguments.timeout)
    taken = player.send(wire.config_file(arguments.config) + wire.text(Kind.HEADER, header))
    columns = (TextColumn("streaming"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err) as bar:
        shown = bar.add_task("", total=len(readouts))
        for message in paced(readouts, arguments.rate):
            taken = taken and player.send(message)
            if not taken or player.answer.closed:
                break
            bar.advance(shown)
    if arguments.disconnect_after is not None:
        player.cut()
        out.print(f"disconnected after {len(readouts)} readouts")
        return 0
    ended = time.monotonic()
    if arguments.no_close:
        player.socket.shutdown(socket.SHUT_WR)
    else:
        player.send(wire.CLOSE * (2 if arguments.double_close else 1))
    answer = player.wait()
    player.close()
    return _report(answer, ended, arguments.out)


def _report(answer: Answer, ended: float, target: Path | None) -> int:
    for words in answer.texts:
        err.print(f"server: {words}")
    for image in answer.images:
        head, meta = image.getHead(), image.meta
        where = ", ".join(f"{value:.1f}" for value in head.position)
        out.print(
            f"image {head.image_series_index}.{head.image_index}: {head.matrix_size[0]} x {head.matrix_size[1]}, "
            f"slice {head.slice}, phase {head.phase}, contrast {head.contrast}, centre ({where}) mm, "
            f"{meta.get('ReconstructionMethod', 'as it was sent')}"
        )
    if target is not None and answer.images:
        with ismrmrd.Dataset(str(target), create_if_needed=True) as file:
            for image in answer.images:
                file.append_image(f"image_{image.image_series_index}", image)
    if answer.first_image_at is not None:
        out.print(f"first image {answer.first_image_at - ended:+.2f} s after the last readout")
    if not answer.closed:
        err.print("the server did not say CLOSE")
        return 3
    out.print(f"{len(answer.images)} image(s), then CLOSE {(answer.closed_at or ended) - ended:.2f} s after the end")
    return 0 if answer.images else 1
