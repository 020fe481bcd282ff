"""What the dispatcher needs of whatever runs jobs, on this machine or on many.

One contract suite (``tests/contract/test_executor.py``) runs on every implementation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from dicomnode.domain import USUAL_KINDS, Flavour, ObjectKind, Output
from dicomnode.store.jobs import Failure
from dicomnode.store.pipelines import PipelineInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineSpec:
    """A configured pipeline, as a slot loads it."""

    name: str
    class_name: str
    weights: Path | None
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One run, self-contained and picklable; bulk data travels as paths."""

    job_id: int
    #: Identity of the job's input and algorithm; every UID of its results derives from it.
    key: str
    #: Name of this run's result folder; no two runs share one.
    run: str
    pipeline: PipelineSpec
    #: Version and weights the job was made for.
    version: str
    weights_digest: str
    paths: Sequence[Path]
    incomplete: bool
    revision: int
    #: When the job was created: the content date and time of its results, so that a re-run is byte-identical.
    created_at: datetime
    results: Path
    series_number: int
    device_serial: str
    default_charset: str
    #: Series Instance UID of the result this one replaces; empty if none was sent.
    predecessor: str = ""
    #: Its reports and marks by the kind and flavour of what replaces them: study, series, SOP class, instance UID.
    replaces: Mapping[tuple[ObjectKind, Flavour], Sequence[tuple[str, str, str, str]]] = field(default_factory=dict)
    #: The site has accepted UIDs with leading zeros: results may repeat them.
    leading_zero_uids: bool = False
    #: Kinds of objects that some destination takes.
    kinds: Sequence[ObjectKind] = USUAL_KINDS
    #: Some destination wants segmentations as label maps.
    labelmap: bool = False
    #: Some destination wants images from k-space as multi-frame objects.
    enhanced: bool = False


@dataclass(frozen=True, slots=True)
class Ready:
    """The slot's process is warm and may be given a job."""

    slot: str
    pipelines: Sequence[PipelineInfo]


@dataclass(frozen=True, slots=True)
class Started:
    """The worker took the job up; its time limit runs from here."""

    slot: str
    job_id: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is."""

    slot: str
    job_id: int
    phase: str
    fraction: float


@dataclass(frozen=True, slots=True)
class Done:
    """The run's objects are durable in its result folder."""

    slot: str
    job_id: int
    outputs: Sequence[Output]
    quality: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()
    findings: Sequence[Mapping[str, Any]] = ()
    #: Why a person must look before anything is sent; empty: nobody must.
    hold: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """The input is not for this algorithm."""

    slot: str
    job_id: int
    reason: str
    #: SOP Instance UIDs of inputs that are damaged: they are set aside.
    damaged: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """The run raised."""

    slot: str
    job_id: int
    failure: Failure


@dataclass(frozen=True, slots=True)
class Lost:
    """The slot's process died; ``job_id`` is what it was running. A new process is being started."""

    slot: str
    job_id: int | None
    reason: str


Event = Ready | Started | Progress | Done | Refused | Failed | Lost


class Executor(Protocol):
    """Slots that run one job at a time each. Used from one thread, except `wake`."""

    def slots(self) -> Sequence[str]:
        """Names of all slots, whether ready or not."""

    def start(self, slot: str, request: Request) -> None:
        """Give a ready slot a job."""

    def poll(self, timeout_s: float) -> Sequence[Event]:
        """Wait for events until one comes, `wake` is called or the time is over."""

    def wake(self) -> None:
        """End a waiting `poll` early; may be called from any thread."""

    def kill(self, slot: str) -> None:
        """End the slot's process at once and start another; no event follows for its job."""

    def close(self) -> None:
        """End every process."""
