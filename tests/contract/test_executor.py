"""One suite for every Executor: ready before offered, one event for each end, loss noticed, kill is at once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from dicomnode.execute import executor
from dicomnode.execute.executor import Executor, PipelineSpec, Request
from dicomnode.execute.local import LocalExecutor
from dicomnode.execute.worker import SlotSettings
from tests import factories

PIPELINES = {
    name: PipelineSpec(name=name, class_name=f"tests.toys:{cls}", weights=None, options={})
    for name, cls in {
        "shift": "Shift", "picky": "Picky", "broken": "Broken", "hungry": "Hungry", "poison": "Poison",
        "nan": "NotFinite", "unloadable": "Unloadable",
    }.items()
}  # fmt: skip


def local(slots: int) -> LocalExecutor:
    return LocalExecutor([
        SlotSettings(
            slot=str(number), device="cpu", threads=1, pipelines=list(PIPELINES.values()), log_level="error",
            log_style="text", parent=os.getpid(),
        )
        for number in range(slots)
    ])  # fmt: skip


@pytest.fixture(scope="module", params=[local])
def made(request: pytest.FixtureRequest) -> Iterator[Executor]:
    """One executor with two slots, shared because its processes take seconds to start."""
    one = request.param(2)
    yield one
    one.close()


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return factories.write_series(tmp_path_factory.mktemp("series"), factories.ct_series(n=4))


def until(one: Executor, done: Callable[[list[executor.Event]], Any], limit_s: float = 120) -> list[executor.Event]:
    seen: list[executor.Event] = []
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        seen += one.poll(0.2)
        if done(seen):
            return seen
    raise AssertionError(f"not within {limit_s} s; saw {seen}")


class Bench:
    """The executor, with what a dispatcher would remember."""

    def __init__(self, one: Executor, paths: Sequence[Path], results: Path) -> None:
        self.one, self.paths, self.results, self.number = one, paths, results, 0

    def slot(self) -> str:
        return self.ready_slots(1)[0]

    def ready_slots(self, wanted: int) -> list[str]:
        free: list[str] = [name for name, slot in self.one._slots.items() if slot.ready]  # type: ignore[attr-defined]
        while len(free) < wanted:
            until(self.one, lambda seen: any(isinstance(e, executor.Ready) for e in seen))
            free = [name for name, slot in self.one._slots.items() if slot.ready]  # type: ignore[attr-defined]
        return free

    def request(self, pipeline: str, **options: object) -> Request:
        self.number += 1
        spec = PIPELINES[pipeline]
        return Request(
            job_id=self.number, key=f"key-{self.number}", run="1-1-0",
            pipeline=PipelineSpec(name=spec.name, class_name=spec.class_name, weights=None, options=options),
            version="1.0.0", weights_digest="",
            paths=self.paths, incomplete=False, revision=0, created_at=datetime(2026, 1, 2, tzinfo=UTC),
            results=self.results, series_number=9000, device_serial="TEST", default_charset="ISO_IR 100",
        )  # fmt: skip

    def run(self, pipeline: str, **options: object) -> list[executor.Event]:
        slot, request = self.slot(), self.request(pipeline, **options)
        self.one.start(slot, request)
        ends = (executor.Done, executor.Refused, executor.Failed, executor.Lost)
        return until(self.one, lambda seen: any(isinstance(e, ends) and e.job_id == request.job_id for e in seen))


@pytest.fixture
def bench(made: Executor, paths: list[Path], tmp_path: Path) -> Bench:
    return Bench(made, paths, tmp_path / "results")


def test_a_slot_is_ready_only_after_it_described_every_pipeline(paths: list[Path]) -> None:
    one = local(1)
    try:
        events = until(one, lambda seen: seen)
    finally:
        one.close()
    assert isinstance(events[0], executor.Ready)
    infos = {info.name: info for info in events[0].pipelines}
    assert infos["shift"].version == "1.0.0" and not infos["shift"].error and infos["shift"].accepts_incomplete
    assert "weights.safetensors" in infos["unloadable"].error
    assert set(infos) == set(PIPELINES)


def test_a_run_starts_then_ends_with_durable_outputs(bench: Bench) -> None:
    events = bench.run("shift", hu=3)
    kinds = [type(event) for event in events]
    assert kinds.index(executor.Started) < kinds.index(executor.Done)
    done = next(event for event in events if isinstance(event, executor.Done))
    assert len(done.outputs) == 4 and done.quality["shift_hu"] == 3
    for output in done.outputs:
        assert (bench.results / output.path).stat().st_size == output.size


@pytest.mark.parametrize(
    ("pipeline", "error_class", "transient"),
    [("broken", "PipelineFailed", False), ("hungry", "OutOfMemory", True), ("nan", "ResultInvalid", False)],
)
def test_a_failure_is_named_and_leaves_the_slot_usable(
    bench: Bench, pipeline: str, error_class: str, transient: bool
) -> None:
    failed = next(event for event in bench.run(pipeline) if isinstance(event, executor.Failed))
    assert (failed.failure.error_class, failed.failure.transient) == (error_class, transient)
    assert "Traceback" in failed.failure.trace
    assert not list(bench.results.rglob("*.dcm")), "a failed run leaves no objects"
    assert any(isinstance(event, executor.Done) for event in bench.run("shift"))


def test_a_refusal_is_an_outcome_with_its_reason(bench: Bench) -> None:
    refused = next(event for event in bench.run("picky") if isinstance(event, executor.Refused))
    assert refused.reason == "does not like 4 slices"


def test_a_worker_that_dies_is_reported_with_its_job_and_replaced(bench: Bench) -> None:
    lost = next(event for event in bench.run("poison") if isinstance(event, executor.Lost))
    assert lost.job_id == bench.number and "killed" in lost.reason
    assert any(isinstance(event, executor.Done) for event in bench.run("shift"))


def test_a_slot_killed_while_idle_is_replaced(bench: Bench) -> None:
    slot = bench.slot()
    process = bench.one._slots[slot].process  # type: ignore[attr-defined]
    os.kill(process.pid, signal.SIGKILL)
    events = until(bench.one, lambda seen: any(isinstance(e, executor.Lost) for e in seen))
    assert next(e for e in events if isinstance(e, executor.Lost)).job_id is None
    assert any(isinstance(event, executor.Done) for event in bench.run("shift"))


def test_kill_ends_a_running_job_without_an_event_for_it(bench: Bench) -> None:
    slot, request = bench.slot(), bench.request("shift", seconds=60)
    bench.one.start(slot, request)
    until(bench.one, lambda seen: any(isinstance(e, executor.Started) for e in seen))
    began = time.monotonic()
    bench.one.kill(slot)
    assert time.monotonic() - began < 10
    events = until(bench.one, lambda seen: any(isinstance(e, executor.Ready) and e.slot == slot for e in seen))
    assert not [e for e in events if getattr(e, "job_id", None) == request.job_id]


def test_two_slots_run_at_the_same_time(bench: Bench) -> None:
    slots = bench.ready_slots(2)
    requests = [bench.request("shift", seconds=1.5) for _ in slots]
    for slot, request in zip(slots, requests, strict=True):
        bench.one.start(slot, request)
    kinds = [type(e) for e in until(bench.one, lambda seen: sum(isinstance(e, executor.Done) for e in seen) == 2)]
    assert kinds.index(executor.Done) > max(i for i, kind in enumerate(kinds) if kind is executor.Started)


def test_progress_is_told(bench: Bench) -> None:
    phases = {e.phase for e in bench.run("shift", seconds=0.3) if isinstance(e, executor.Progress)}
    assert {"reading", "sleeping", "writing"} <= phases


def test_wake_ends_a_waiting_poll(bench: Bench) -> None:
    bench.ready_slots(2)
    bench.one.wake()
    began = time.monotonic()
    bench.one.poll(30)
    assert time.monotonic() - began < 5
