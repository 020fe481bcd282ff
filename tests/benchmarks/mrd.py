"""The node's MRD path beside a bare server on the same stream: time to CLOSE, and to the first image.

    python -m tests.benchmarks.mrd [--matrix 256] [--coils 8] [--slices 8] [--rounds 3] [--rate 0]

The bare server does what such a server does at the least: receive, keep nothing, one FFT and root sum of squares a
slice, 16 bits. The node journals every byte, writes and flushes an MRD file before it says CLOSE, and reconstructs in
another process; its pipeline here is the same transform, so that the difference is the path's. With ``--pipeline`` the
node runs another one, such as pipelines.mr_recon:MRReconstruction: the time then is that of its reconstruction.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ismrmrd
import numpy as np

from dicomnode.cli.mrd_send import Player, paced
from dicomnode.kspace import Flag
from dicomnode.volumes import wire
from dicomnode.volumes.wire import CLOSE, Cutter, Kind
from tests.acceptance.harness import RunningNode, free_port
from tests.mrd_factory import Scan
from tests.peers.scanner import SUBJECT, opening, readouts


@dataclass(frozen=True)
class Timing:
    """Of one session [s]."""

    #: First byte sent until CLOSE came.
    whole: float
    #: Last line sent until the first image came; negative: it came earlier.
    first_image: float
    #: Last line sent until the last image came.
    last_image: float
    images: int


@contextmanager
def bare_server(scan: Scan) -> Iterator[int]:
    """The least a server can do, on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    bare_session(connection, scan)

        threading.Thread(target=serve, daemon=True).start()
        yield int(listening.getsockname()[1])


def bare_session(connection: socket.socket, scan: Scan) -> None:
    cutter, lines = Cutter(2**30), {}
    last = 1 << (Flag.LAST_IN_SLICE - 1)
    while data := connection.recv(1 << 18):
        cutter.feed(data)
        while (message := cutter.next()) is not None:
            if message.kind is Kind.CLOSE:
                connection.sendall(CLOSE)
                return
            if message.kind is Kind.ACQUISITION:
                head = ismrmrd.AcquisitionHeader.from_buffer_copy(message.body)
                samples = np.frombuffer(message.body, np.complex64, offset=wire.ACQUISITION_HEAD)
                lines[head.idx.kspace_encode_step_1] = samples.reshape(head.active_channels, head.number_of_samples)
                if head.flags & last:
                    connection.sendall(bare_image(lines, scan))
                    lines = {}


def bare_image(lines: dict[int, np.ndarray], scan: Scan) -> bytes:
    space = np.zeros((scan.coils, scan.rows, scan.columns), np.complex64)
    for row, data in lines.items():
        space[:, row] = data
    images = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(space, axes=(1, 2)), axes=(1, 2)), axes=(1, 2))
    left = scan.columns // 2 - scan.matrix[0] // 2
    array = np.sqrt((np.abs(images[:, :, left : left + scan.matrix[0]]) ** 2).sum(0))
    stored = np.clip(array * 1e5, 0, 65535).astype(np.uint16)
    return struct.pack("<H", Kind.IMAGE) + ismrmrd.Image.from_array(stored, transpose=False).to_bytes()


def play(port: int, start: bytes, lines: list[bytes], rate: float) -> Timing:
    """One session."""
    player = Player("127.0.0.1", port, 300)
    began = time.monotonic()
    player.send(start)
    for message in paced(lines, rate):
        player.send(message)
    ended = time.monotonic()
    player.send(CLOSE)
    answer = player.wait()
    player.close()
    assert answer.closed and answer.closed_at and answer.first_image_at and answer.last_image_at, answer.texts
    assert not [text for text in answer.texts if "plain" in text], answer.texts
    return Timing(
        answer.closed_at - began, answer.first_image_at - ended, answer.last_image_at - ended, len(answer.images)
    )


def main() -> None:
    """Print medians, ranges and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--matrix", type=int, default=256)
    parser.add_argument("--coils", type=int, default=8)
    parser.add_argument("--slices", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=0, help="lines a second; 0: as fast as they are taken")
    parser.add_argument("--pipeline", default="tests.mrd_toys:Fourier")
    arguments = parser.parse_args()
    scan = Scan(matrix=(arguments.matrix, arguments.matrix), coils=arguments.coils, slices=arguments.slices)
    lines, start = readouts(scan), opening(scan, subject=SUBJECT)
    size = sum(map(len, lines)) / 1e6
    found: dict[str, list[Timing]] = {"bare server": [], "node": []}
    with tempfile.TemporaryDirectory() as name, bare_server(scan) as bare:
        port = free_port()
        section = {"port": port, "configs": {"default": {"pipeline": "recon"}}, "deadline_s": 300}
        pipelines = {"recon": {"class": arguments.pipeline}}
        with RunningNode(Path(name) / "node", pipelines=pipelines, rules=[], mrd=section) as node:
            node.until(lambda: node.actions()["mrd_ready"])
            play(bare, start, lines, 0)
            for number in range(arguments.rounds + 1):
                # Each session has its own worker: the next one is warm, as it is between two scans.
                node.until(lambda number=number: node.actions()["mrd_worker_ready"] > number, 120)
                if not number:  # the first session warms everything else
                    play(port, start, lines, 0)
                    continue
                found["bare server"].append(play(bare, start, lines, arguments.rate))
                found["node"].append(play(port, start, lines, arguments.rate))
    print(
        f"{len(lines)} lines, {size:.0f} MB, {arguments.slices} slices of {arguments.matrix} x {arguments.matrix}, "
        f"{arguments.coils} coils, {arguments.rounds} rounds; {arguments.pipeline}"
    )
    for server, timings in found.items():
        print(f"  {server}, {timings[0].images} images")
        for what in ("whole", "first_image", "last_image"):
            values = [getattr(one, what) for one in timings]
            print(f"    {what:12} {statistics.median(values):7.2f} s  ({min(values):.2f} .. {max(values):.2f})")
    ratio = statistics.median(t.whole for t in found["node"]) / statistics.median(t.whole for t in found["bare server"])
    print(f"  node / bare server, first byte to CLOSE: {ratio:.2f}")


if __name__ == "__main__":
    main()
