"""The slot's process: loads every configured pipeline once, then runs one job after the other.

The only room besides pipelines and models that pays for torch.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from dicomnode import log
from dicomnode.errors import (
    DeviceFailed,
    NodeError,
    OutOfMemory,
    PipelineFailed,
    PipelineNotLoadable,
    UnreadableRawData,
    Unsuitable,
)
from dicomnode.execute import executor, loader
from dicomnode.execute.executor import PipelineSpec, Request
from dicomnode.parent import die_with
from dicomnode.pipeline import Pipeline, Runtime
from dicomnode.store.jobs import Failure
from dicomnode.store.pipelines import PipelineInfo

logger = logging.getLogger(__name__)

#: The kernel's out-of-memory killer takes the worker before the listener.
_OOM_SCORE_ADJ: Final = 800
#: Loaded before the slot is called ready: a plotting library alone takes a second, which is not the first job's.
_WARM: Final = ("dicomnode.execute.perform", "dicomnode.encode.page")
#: Warm pipelines kept per process: one a configured pipeline, and as many again for rules with options of their own.
_CACHE: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotSettings:
    """What a slot's process is told at its start."""

    slot: str
    #: ``cpu`` or ``cuda:N``.
    device: str
    threads: int
    pipelines: Sequence[PipelineSpec]
    log_level: str
    log_style: str
    #: Process ID of the node. In a container that is 1, so "my parent is 1" does not mean that it died.
    parent: int


def main(connection: Connection, settings: SlotSettings) -> None:
    """Entry of the process (`multiprocessing` spawn)."""
    die_with(settings.parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the node's: it stops the slots in order
    Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE_ADJ), encoding="ascii")
    log.setup(settings.log_level, style=settings.log_style)
    device = settings.device
    if device.startswith("cuda"):
        os.environ["CUDA_VISIBLE_DEVICES"] = device.partition(":")[2] or "0"
        device = "cuda:0"
    import torch  # the device must be chosen before torch is loaded

    torch.set_num_threads(settings.threads)
    Worker(connection, settings, device).serve()


class Worker:
    """Answers requests until the pipe closes."""

    def __init__(self, connection: Connection, settings: SlotSettings, device: str) -> None:
        self.connection, self.settings, self.device = connection, settings, device
        self._warm: dict[str, tuple[Pipeline[Any], str]] = {}
        self._progress: Callable[[str, float], None] = lambda _phase, _fraction: None

    def serve(self) -> None:
        """Load, say "ready", run."""
        for name in _WARM:
            importlib.import_module(name)
        infos = [self._describe(spec) for spec in self.settings.pipelines]
        self.connection.send(executor.Ready(self.settings.slot, infos))
        while True:
            try:
                request: Request = self.connection.recv()
            except EOFError:
                return
            self._answer(request)

    def _describe(self, spec: PipelineSpec) -> PipelineInfo:
        try:
            pipeline, digest = self._load(spec)
        except NodeError as error:
            logger.error("Pipeline cannot be loaded", extra={"action": "pipeline_broken", "pipeline": spec.name, "error": str(error)})  # fmt: skip  # noqa: E501
            return PipelineInfo(
                name=spec.name, class_name=spec.class_name, algorithm="", version="unknown", weights_digest="",
                accepts_incomplete=False, error=str(error),
            )  # fmt: skip
        return PipelineInfo(
            name=spec.name,
            class_name=spec.class_name,
            algorithm=pipeline.algorithm.name,
            version=pipeline.algorithm.version,
            weights_digest=digest,
            accepts_incomplete=pipeline.accepts_incomplete,
        )

    def _load(self, spec: PipelineSpec) -> tuple[Pipeline[Any], str]:
        """Return a warm pipeline for these options, and the digest of its weights."""
        key = json.dumps([spec.class_name, str(spec.weights), dict(spec.options)], sort_keys=True, default=str)
        if key in self._warm:
            return self._warm[key]
        pipeline, digest = loader.load_pipeline(
            spec.class_name,
            spec.weights,
            spec.options,
            lambda folder: Runtime(
                device=self.device,
                weights=folder,
                threads=self.settings.threads,
                progress=lambda phase, fraction: self._progress(phase, fraction),
            ),
        )
        if len(self._warm) >= _CACHE:
            del self._warm[next(iter(self._warm))]
        self._warm[key] = pipeline, digest
        return self._warm[key]

    def _answer(self, request: Request) -> None:
        from dicomnode.execute.perform import perform

        slot, job_id, send = self.settings.slot, request.job_id, self.connection.send
        send(executor.Started(slot, job_id))
        self._progress = _throttled(lambda phase, fraction: send(executor.Progress(slot, job_id, phase, fraction)))
        try:
            pipeline, digest = self._load(request.pipeline)
            _same_algorithm(pipeline, digest, request)
            performed = perform(pipeline, request, digest, self._progress)
        except Unsuitable as error:
            send(executor.Refused(slot, job_id, error.reason))
        except UnreadableRawData as error:
            refused = executor.Refused(slot, job_id, f"{type(error).__name__}: {error}", error.damaged)
            send(refused if error.damaged else executor.Failed(slot, job_id, failure_of(error)))
        except Exception as error:  # noqa: BLE001 - the boundary of the child: every failure becomes an event
            send(executor.Failed(slot, job_id, failure_of(error)))
        else:
            send(
                executor.Done(
                    slot, job_id, performed.outputs, performed.quality, performed.notes, performed.findings,
                    performed.hold,
                )
            )  # fmt: skip
        finally:
            self._progress = lambda _phase, _fraction: None


def _same_algorithm(pipeline: Pipeline[Any], digest: str, request: Request) -> None:
    """Refuse to compute under the name of another version: job key, UIDs and record say which one it was made for."""
    wanted, found = (request.version, request.weights_digest), (pipeline.algorithm.version, digest)
    if wanted != found and request.version != "unknown":
        raise PipelineNotLoadable(
            f"the job was made for version {wanted[0]} with weights {wanted[1][:12] or 'none'}, this worker has "
            f"{found[0]} with {found[1][:12] or 'none'}; send the series again or restore that version"
        )


def failure_of(error: BaseException) -> Failure:
    """Name an exception for the job's record; memory running out is worth another try."""
    trace = "".join(traceback.format_exception(error))
    named: NodeError
    if isinstance(error, NodeError):
        named = error
    elif isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        named = OutOfMemory(f"{type(error).__name__}: {error}")
    elif type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error):
        named = DeviceFailed(f"{type(error).__name__}: {error}")
    else:
        named = PipelineFailed(f"{type(error).__name__}: {error}")
    return Failure(error_class=type(named).__name__, message=str(named), trace=trace, transient=named.transient)


def _throttled(send: Callable[[str, float], None], every_s: float = 0.5) -> Callable[[str, float], None]:
    last: tuple[str, float] = ("", 0.0)

    def progress(phase: str, fraction: float) -> None:
        nonlocal last
        now = time.monotonic()
        if phase != last[0] or now - last[1] >= every_s:
            last = (phase, now)
            send(phase, min(max(fraction, 0.0), 1.0))

    return progress
