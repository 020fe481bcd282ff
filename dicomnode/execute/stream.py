"""The worker of one MRD session: reconstructs while lines arrive, in a process of its own that ends with its session.

The MRD listener starts it ahead of need by `command`, keeps it warm, and ends it by SIGKILL. It follows the session's
journal as far as the listener says that it is whole, so it may be slow without anybody waiting for it.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import ismrmrd
import numpy as np

from dicomnode import log
from dicomnode.channel import Begin, Channel, End, Event, Failed, Finished, Given, Refused, Upto
from dicomnode.errors import NodeError, PipelineNotLoadable
from dicomnode.execute import loader
from dicomnode.kspace import Readout
from dicomnode.parent import die_with
from dicomnode.pipeline import Pipeline, Runtime, Stream, StreamingPipeline, Unsuitable
from dicomnode.volumes import wire
from dicomnode.volumes.mrd import header_of, readout_of

if TYPE_CHECKING:
    from dicomnode.config import Config

logger = logging.getLogger("dicomnode.execute.stream")

#: The kernel's out-of-memory killer takes a session's worker before the listener, and after a slot's (800).
_OOM_SCORE_ADJ: Final = 700
#: Read from the journal at a time [bytes].
_PIECE: Final = 4 * 2**20


def command(config: Config) -> list[str]:
    """Command line that starts a worker for any of the configured names; the listener adds how it is reached."""
    from dicomnode.execute import slots  # the worker itself needs neither configuration nor database

    assert config.mrd is not None
    device = slots.devices(config)[0]
    settings = {
        "device": device,
        "threads": config.mrd.threads or config.execute.threads or len(os.sched_getaffinity(0)),
        "log_level": config.node.log.level,
        "log_style": config.node.log.style,
        "configs": {
            name: {
                "class": config.pipelines[one.pipeline].class_,
                "weights": str(config.pipelines[one.pipeline].weights or ""),
                "options": {**config.pipelines[one.pipeline].options, **one.options},
            }
            for name, one in config.mrd.configs.items()
        },
    }
    return [sys.executable, "-m", "dicomnode.execute.stream", "--settings", json.dumps(settings, default=str)]


def main(arguments: list[str] | None = None) -> int:
    """Entry of the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", required=True)
    parser.add_argument("--channel", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    options = parser.parse_args(arguments)
    die_with(options.parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the node's: it stops its processes in order
    Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE_ADJ), encoding="ascii")
    settings = json.loads(options.settings)
    log.setup(settings["log_level"], style=settings["log_style"])
    device = settings["device"]
    if device.startswith("cuda"):
        os.environ["CUDA_VISIBLE_DEVICES"] = device.partition(":")[2] or "0"
        device = "cuda:0"
    import torch  # the device must be chosen before torch is loaded

    torch.set_num_threads(settings["threads"])
    channel = Channel(socket.socket(fileno=options.channel))
    pipelines = {name: _load(one, device, settings["threads"]) for name, one in settings["configs"].items()}
    logger.info("A session worker is warm", extra={"action": "mrd_worker_ready", "device": settings["device"]})
    follower = Follower(channel)
    follower.start()
    begin = follower.begun()
    if begin is not None:
        run(pipelines[begin.config], begin, follower, channel)
        follower.until_closed()
    return 0


def _load(one: Mapping[str, Any], device: str, threads: int) -> StreamingPipeline | NodeError:
    """A warm pipeline, or why there is none: other names may still work."""

    def runtime(folder: Path) -> Runtime:
        return Runtime(device=device, weights=folder, threads=threads)

    try:
        weights = Path(one["weights"]) if one["weights"] else None
        pipeline: Pipeline[Any] = loader.load_pipeline(one["class"], weights, one["options"], runtime)[0]
        if not isinstance(pipeline, StreamingPipeline):
            return PipelineNotLoadable(f"{one['class']} does not work line by line (StreamingPipeline)")
    except NodeError as error:
        logger.error(
            "Pipeline cannot be loaded",
            extra={"action": "pipeline_broken", "pipeline": one["class"], "error": str(error)},
        )
        return error
    return pipeline


class Follower:
    """Keeps up with the listener, so that what it says never has to wait: how far the journal may be read."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._news = threading.Condition()
        self._begin: Begin | None = None
        self._size = 0
        self._end: End | None = None
        self._gone = False
        self._thread = threading.Thread(target=self._listen, name="stream-follower", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def begun(self) -> Begin | None:
        """Wait for a measurement; None when the listener is gone."""
        with self._news:
            self._news.wait_for(lambda: self._begin is not None or self._gone)
            return self._begin

    def more(self, size: int) -> tuple[int, End | None]:
        """Wait until the journal has more than ``size`` bytes, or its end is known; returns both."""
        with self._news:
            self._news.wait_for(lambda: self._size > size or self._end is not None or self._gone)
            if self._gone:
                sys.exit("the listener is gone")
            return self._size, self._end

    def until_closed(self) -> None:
        """Wait for the listener to let go: what was sent to it may still be on its way."""
        with self._news:
            self._news.wait_for(lambda: self._gone)

    def _listen(self) -> None:
        while not self._gone:
            for message in self._channel.wait(60.0):
                with self._news:
                    if isinstance(message, Begin):
                        self._begin = message
                    elif isinstance(message, Upto):
                        self._size = max(self._size, message.size)
                    elif isinstance(message, End):
                        self._size, self._end = message.size, message
                    self._news.notify_all()
            if self._channel.closed:
                with self._news:
                    self._gone = True
                    self._news.notify_all()


def run(pipeline: StreamingPipeline | NodeError, begin: Begin, follower: Follower, channel: Channel) -> None:
    """Reconstruct one measurement and say how it went."""
    outcome: Event
    try:
        if isinstance(pipeline, NodeError):
            raise pipeline
        outcome = Finished(_reconstruct(pipeline, Path(begin.journal), follower, channel))
    except Unsuitable as error:
        outcome = Refused(error.reason)
    except Exception as error:  # the boundary of the process: the listener answers in another way
        logger.exception("Live reconstruction failed", extra={"action": "mrd_worker_failed", "config": begin.config})
        outcome = Failed(f"{type(error).__name__}: {error}")
    channel.send(outcome)


def _reconstruct(pipeline: StreamingPipeline, journal: Path, follower: Follower, channel: Channel) -> tuple[str, ...]:
    stream: Stream | None = None
    end: list[End] = []
    for message in _messages(journal, follower, end):
        if message.kind is wire.Kind.HEADER:
            stream = pipeline.begin(header_of(message.raw_text))
        elif message.kind is wire.Kind.ACQUISITION and stream is not None and message.channels:
            given = stream.add(_readout(message.body))
            if given:
                channel.send(Given(tuple(given)))
    if stream is None:
        raise Unsuitable("the measurement has no header")
    rest = stream.finish(incomplete=end[0].incomplete)
    if rest:
        channel.send(Given(tuple(rest)))
    return stream.result().notes


def _messages(journal: Path, follower: Follower, ended: list[End]) -> Iterator[wire.Message]:
    """Every message of the journal as it grows; ``ended`` then says how it ended."""
    cutter, at = wire.Cutter(2**63), 0  # lengths were held against the limit before they got into the journal
    with journal.open("rb", buffering=0) as file:
        while True:
            size, end = follower.more(at)
            while at < size:
                piece = file.read(min(_PIECE, size - at))
                at += len(piece)
                cutter.feed(piece)
                while (message := cutter.next()) is not None:
                    yield message
            if end is not None and at >= end.size:
                ended.append(end)
                return


def _readout(body: bytes) -> Readout:
    """One acquisition, as a pipeline is given it. The samples are copied once, so that they may be written to."""
    head = ismrmrd.AcquisitionHeader.from_buffer_copy(body)
    values = np.frombuffer(body, np.float32, offset=wire.ACQUISITION_HEAD).copy()
    cut = head.number_of_samples * head.trajectory_dimensions
    data = values[cut:].view(np.complex64).reshape(head.active_channels, head.number_of_samples)
    trajectory = values[:cut].reshape(head.number_of_samples, head.trajectory_dimensions)
    return readout_of(ismrmrd.Acquisition(head, data, trajectory))


if __name__ == "__main__":
    sys.exit(main())
