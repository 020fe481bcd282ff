"""The node's MRD path beside a bare server on the same stream: time to CLOSE, and to the first image.

    python -m tests.benchmarks.mrd [--case path linear learned] [--matrix 192] [--coils 8] [--slices 4] [--rounds 3]

The bare server does what such a server does at the least: receive, keep nothing, one FFT and root sum of squares a
slice, 16 bits. The node journals every byte, writes and flushes an MRD file before it says CLOSE, and reconstructs in
another process. In the case *path* its pipeline is the same transform, so that the difference is the path's. *linear*
and *learned* are the shipped pipeline on undersampled scans (R=2: CG-SENSE; R=4: the network): what a scanner waits
for is its first image, counted from the last line of the first slice, against a limit each.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np

from dicomnode.cli.mrd_send import Player, paced
from dicomnode.execute import loader
from dicomnode.kspace import Flag
from dicomnode.pipeline import Runtime
from dicomnode.volumes import wire
from dicomnode.volumes.wire import CLOSE, Cutter, Kind
from tests.acceptance.harness import RunningNode, free_port
from tests.mrd_factory import Scan
from tests.peers.scanner import SUBJECT, opening, readouts

#: Limits of the first image, after the last line of its slice, on two cores [s].
LIMITS = {"linear": 5.0, "learned": 20.0}
MR_RECON = "pipelines.mr_recon:MRReconstruction"
#: Pipeline, its options, and what of the scan differs.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "path": ("tests.mrd_toys:Fourier", {}, {}),
    "linear": (MR_RECON, {"learned": False}, {"acceleration": 2, "acs": 24, "noise": 0.02, "noise_lines": 32}),
    "learned": (MR_RECON, {}, {"acceleration": 4, "acs": 24, "noise": 0.02, "noise_lines": 32}),
}


@dataclass(frozen=True)
class Timing:
    """Of one session [s]."""

    #: First byte sent until CLOSE came.
    whole: float
    #: Last line of the first slice sent until the first image came.
    first_image: float
    #: Last line sent until the last image came.
    last_image: float
    images: int
    #: Whether a network shaped the first of them.
    learned: bool


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


def play(port: int, start: bytes, lines: list[bytes], first: int, rate: float) -> Timing:
    """One session; line ``first`` is the last of its slice."""
    player = Player("127.0.0.1", port, 300)
    began = time.monotonic()
    player.send(start)
    slice_ended = began
    for number, message in enumerate(paced(lines, rate)):
        player.send(message)
        if number == first:
            slice_ended = time.monotonic()
    ended = time.monotonic()
    player.send(CLOSE)
    answer = player.wait()
    player.close()
    assert answer.closed and answer.closed_at and answer.first_image_at and answer.last_image_at, answer.texts
    assert not [text for text in answer.texts if "plain" in text], answer.texts
    return Timing(
        answer.closed_at - began,
        answer.first_image_at - slice_ended,
        answer.last_image_at - ended,
        len(answer.images),
        answer.images[0].meta.get("ReconstructionLearned") == "yes",
    )


def measure(node: RunningNode, port: int, name: str, arguments: argparse.Namespace, sessions: int) -> int:
    """Run one case and print medians, ranges and the ratio; how many sessions the node has had then."""
    _, _, changes = CASES[name]
    size = (arguments.matrix, arguments.matrix)
    scan = Scan(matrix=size, coils=arguments.coils, slices=arguments.slices, **changes)
    lines, start = readouts(scan), opening(scan, config=name, subject=SUBJECT)
    first = next(n for n, line in enumerate(scan.readouts()) if line.has(Flag.LAST_IN_SLICE))
    found: dict[str, list[Timing]] = {"bare server": [], "node": []}
    with bare_server(scan) as bare:
        play(bare, start, lines, first, 0)
        for number in range(arguments.rounds + 1):
            # Each session has its own worker: the next one is warm, as it is between two scans.
            node.until(lambda had=sessions: node.actions()["mrd_worker_ready"] > had, 300)
            sessions += 1
            if not number:  # the first session warms everything else
                play(port, start, lines, first, 0)
                continue
            found["bare server"].append(play(bare, start, lines, first, arguments.rate))
            found["node"].append(play(port, start, lines, first, arguments.rate))
    amount = f"{len(lines)} lines, {sum(map(len, lines)) / 1e6:.0f} MB, {scan.slices} slices of {size[0]} x {size[1]}"
    print(
        f"{name}: {amount}, {scan.coils} coils, R={scan.acceleration}, {arguments.rounds} rounds; "
        f"load {os.getloadavg()[0]:.1f}"
    )
    for server, timings in found.items():
        for what in ("whole", "first_image", "last_image"):
            values = [getattr(one, what) for one in timings]
            print(
                f"  {server:12} {what:12} {statistics.median(values):7.2f} s  ({min(values):.2f} .. {max(values):.2f})"
            )
    ratio = statistics.median(t.whole for t in found["node"]) / statistics.median(t.whole for t in found["bare server"])
    print(f"  node / bare server, first byte to CLOSE: {ratio:.2f}")
    print(f"  processor time of a slice: {processor_seconds(name, replace(scan, slices=1)):.2f} s")
    if name in LIMITS:
        assert all(timing.learned == (name == "learned") for timing in found["node"]), "another method was taken"
        worst = max(timing.first_image for timing in found["node"])
        print(
            f"  first image within {LIMITS[name]:g} s: {'met' if worst <= LIMITS[name] else 'MISSED'} ({worst:.2f} s)"
        )
    return sessions


def processor_seconds(name: str, scan: Scan) -> float:
    """Processor time of the first slice in this process, the second time: what a busy machine does not change much."""
    class_name, options, _ = CASES[name]

    def runtime(folder: Path) -> Runtime:
        return Runtime(device="cpu", weights=folder)

    pipeline: Any = loader.load_pipeline(class_name, None, options, runtime)[0]
    lines, spent = scan.readouts(), 0.0
    for _ in range(2):
        stream, began = pipeline.begin(scan.header()), time.process_time()
        for line in lines:
            if stream.add(line):
                break
        spent = time.process_time() - began
    return spent


def main() -> None:
    """Run the cases that were asked for, on one node."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--matrix", type=int, default=192, help="the network is for 112 to 224 rows")
    parser.add_argument("--coils", type=int, default=8)
    parser.add_argument("--slices", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=0, help="lines a second; 0: as fast as they are taken")
    parser.add_argument("--threads", type=int, default=2, help="of the session's worker")
    arguments = parser.parse_args()
    port = free_port()
    section = {
        "port": port,
        "configs": {name: {"pipeline": name, "options": CASES[name][1]} for name in arguments.case},
        "deadline_s": 300,
        "threads": arguments.threads,
    }
    pipelines = {name: {"class": CASES[name][0]} for name in arguments.case}
    with (
        tempfile.TemporaryDirectory() as folder,
        RunningNode(Path(folder) / "node", pipelines=pipelines, rules=[], mrd=section) as node,
    ):
        node.until(lambda: node.actions()["mrd_ready"])
        sessions = 0
        for name in arguments.case:
            sessions = measure(node, port, name, arguments, sessions)


if __name__ == "__main__":
    main()
