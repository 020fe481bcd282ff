"""The dispatcher with real slot processes: order, limits, timeout, cancel, crash, chaos."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from dicomnode import config
from dicomnode.domain import Band, Instance, JobState
from dicomnode.execute.dispatcher import Dispatcher
from dicomnode.execute.local import LocalExecutor
from dicomnode.execute.slots import local_executor
from dicomnode.store import deliveries, events, instances, jobs, outputs, pipelines
from dicomnode.store.db import Database, migrate, open_database
from dicomnode.store.jobs import NewJob
from tests import factories

TOYS = {"shift": "Shift", "slow": "Shift", "picky": "Picky", "broken": "Broken", "hungry": "Hungry", "poison": "Poison"}


class Bench:
    """A store with one series in it, and a dispatcher that is started and stopped at will."""

    def __init__(self, folder: Path, *, slots: int = 1, **execute: object) -> None:
        toys = {
            name: {
                "class": f"tests.toys:{cls}",
                "limit": 1 if name == "slow" else 9,
                "timeout_s": 3 if name == "slow" else 60,
            }
            for name, cls in TOYS.items()
        }
        self.config = config.Config.model_validate({
            "node": {"data": str(folder), "log": {"level": "error", "style": "text"}},
            "pipelines": toys,
            "destinations": {
                "PACS": {"ae_title": "PACS", "host": "127.0.0.1"},
                "CINE": {"ae_title": "CINE", "host": "127.0.0.1", "objects": ["phases"]},
            },
            "execute": {"slots": ["cpu"] * slots, "threads": 1, "backoff_s": 0.05, **execute},
        })  # fmt: skip
        self.database: Database = open_database("sqlite", folder)
        migrate(self.database)
        self.uids = self._series(folder / "spool")
        self.dispatcher: Dispatcher | None = None
        self.number = 0

    def _series(self, spool: Path) -> list[str]:
        made = factories.ct_series(n=4)
        paths = factories.write_series(spool, made)
        with self.database.write() as connection:
            instances.record(connection, [
                Instance(
                    sop_instance_uid=str(ds.SOPInstanceUID), sop_class_uid=str(ds.SOPClassUID), transfer_syntax_uid="1",
                    study_uid="1", series_uid="1.2", path=str(path.relative_to(spool)), size=1,
                    received_at=datetime.now(UTC), association_id=1, calling_ae="A", patient_key="p",
                )
                for ds, path in zip(made, paths, strict=True)
            ])  # fmt: skip
        return sorted(str(ds.SOPInstanceUID) for ds in made)

    def start(self) -> LocalExecutor:
        executor = local_executor(self.config)
        self.dispatcher = Dispatcher(self.config, self.database, executor)
        self.dispatcher.start()
        return executor

    def stop(self) -> None:
        if self.dispatcher is not None:
            self.dispatcher.stop()
            self.dispatcher = None

    def add(self, pipeline: str, band: Band = Band.ROUTINE, **options: Any) -> int:
        self.number += 1
        job = NewJob(
            key=f"{pipeline}-{self.number}", series_uid="1.2", study_uid="1", revision=0, rule="r", pipeline=pipeline,
            version="1.0.0", weights_digest="", config_digest="", class_name=f"tests.toys:{TOYS[pipeline]}",
            options=options,
            send_to=["CINE", "PACS"], inputs=self.uids, incomplete=False, completion="counted", band=band,
        )  # fmt: skip
        with self.database.write() as connection:
            job_id = jobs.enqueue(connection, job, datetime.now(UTC))
        assert job_id is not None
        if self.dispatcher is not None:
            self.dispatcher.wake()
        return job_id

    def get(self, job_id: int) -> jobs.Job:
        with self.database.read() as connection:
            found = jobs.get(connection, job_id)
        assert found is not None
        return found

    def until(self, done: Callable[[], Any], limit_s: float = 90) -> None:
        end = time.monotonic() + limit_s
        while not done():
            assert time.monotonic() < end, [(j.id, j.state, j.error) for j in self.all()]
            time.sleep(0.02)

    def all(self) -> Sequence[jobs.Job]:
        with self.database.read() as connection:
            return jobs.latest(connection, limit=1000)

    def wait(self, job_id: int, *states: JobState) -> jobs.Job:
        self.until(lambda: self.get(job_id).state in states)
        return self.get(job_id)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "node", max_attempts=2)
    yield made
    made.stop()
    made.database.close()


def test_every_way_a_run_can_end_is_recorded_and_the_next_job_runs(bench: Bench) -> None:
    bench.start()
    ends = {name: bench.add(name) for name in ("picky", "broken", "hungry", "poison", "shift")}
    assert bench.wait(ends["picky"], JobState.UNSUITABLE).error == "does not like 4 slices"
    broken = bench.wait(ends["broken"], JobState.DEAD)
    assert broken.attempt == 1 and "broken on purpose" in broken.error and "Traceback" in broken.trace
    hungry = bench.wait(ends["hungry"], JobState.DEAD)
    assert hungry.attempt == 2 and hungry.error_class == "OutOfMemory"
    poison = bench.wait(ends["poison"], JobState.DEAD)
    assert poison.lost_count == 3 and poison.error_class == "WorkerLost"
    done = bench.wait(ends["shift"], JobState.STORED)
    assert "Nothing is sent to CINE: it takes phases, and this result has none" in done.notes
    with bench.database.read() as connection:
        made, sent = outputs.of_job(connection, done.id), deliveries.of_job(connection, done.id)
        assert [info.version for info in pipelines.described(connection).values()] == ["1.0.0"] * len(TOYS)
    assert len(made) == len(sent) == 4 and all(
        (bench.config.node.data / "results" / one.path).is_file() for one in made
    )


def test_stat_goes_next_and_a_pipeline_keeps_its_limit(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "node", slots=2)
    for _ in range(3):
        bench.add("slow", seconds=0.6)
    for _ in range(3):
        bench.add("shift", seconds=0.3)
    try:
        bench.start()
        bench.until(lambda: any(job.state is JobState.RUNNING for job in bench.all()))
        stat = bench.add("shift", Band.STAT)
        seen: list[list[str]] = []

        def finished() -> bool:
            seen.append([job.pipeline for job in bench.all() if job.state is JobState.RUNNING])
            return all(job.state is JobState.STORED for job in bench.all())

        bench.until(finished)
        assert max(running.count("slow") for running in seen) == 1
        later = [j for j in bench.all() if j.id != stat and j.started_at and j.started_at > bench.get(stat).created_at]
        assert all(bench.get(stat).started_at <= job.started_at for job in later)  # type: ignore[operator]
    finally:
        bench.stop()
        bench.database.close()


def test_a_job_over_its_time_is_ended_and_tried_again(bench: Bench) -> None:
    bench.start()
    job = bench.wait(bench.add("slow", seconds=60), JobState.DEAD)
    assert job.attempt == 2 and job.error_class == "PipelineTimeout" and "timeout_s" in job.error
    assert bench.wait(bench.add("shift"), JobState.STORED)


def test_cancel_ends_a_running_job(bench: Bench) -> None:
    bench.start()
    job_id = bench.add("shift", seconds=60)
    bench.wait(job_id, JobState.RUNNING)
    with bench.database.write() as connection:
        jobs.cancel(connection, bench.get(job_id), datetime.now(UTC))
    bench.wait(job_id, JobState.CANCELLED)
    assert bench.wait(bench.add("shift"), JobState.STORED)


def test_stopping_puts_a_running_job_back_and_nothing_is_counted_against_it(bench: Bench) -> None:
    bench.start()
    job_id = bench.add("shift", seconds=60)
    bench.wait(job_id, JobState.RUNNING)
    bench.stop()
    job = bench.get(job_id)
    assert job.state is JobState.QUEUED and job.attempt == 0 and job.lost_count == 0


def test_inputs_that_are_gone_are_named(bench: Bench) -> None:
    with bench.database.write() as connection:
        instances.forget(connection, bench.uids[:1])
    bench.start()
    job = bench.wait(bench.add("shift"), JobState.DEAD)
    assert "no longer kept" in job.error and bench.uids[0] in job.error


def test_an_end_that_the_database_would_not_take_is_recorded_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refused = jobs.finish, []

    def finish(*given: Any, **more: Any) -> bool:
        if not refused:
            refused.append(1)
            raise OperationalError("commit", {}, Exception("database is locked"))
        return real(*given, **more)

    monkeypatch.setattr(jobs, "finish", finish)
    bench.start()
    job = bench.wait(bench.add("shift"), JobState.STORED)
    assert refused and job.attempt == 1


def test_an_end_that_cannot_be_recorded_at_all_frees_the_slot_and_ends_dead(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finish(*_: Any, **__: Any) -> bool:
        raise ValueError("no such row")

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "finish", finish)
        bench.start()
        job = bench.wait(bench.add("shift"), JobState.DEAD)
    assert job.attempt == 2 and "no such row" in job.error
    assert bench.wait(bench.add("shift"), JobState.STORED)


def test_a_worker_ends_when_its_parent_is_not_the_node_and_lives_when_the_node_is_process_1() -> None:
    code = "import os, sys; from dicomnode import parent; parent.die_with(int(sys.argv[1])); print('lives')"
    for parent, lives in ((os.getpid(), True), (os.getpid() + 1, False)):
        done = subprocess.run([sys.executable, "-c", code, str(parent)], capture_output=True, text=True, check=False)
        assert ("lives" in done.stdout) == lives, done.stderr


@pytest.mark.slow
def test_chaos_kills_lose_no_job_and_compute_none_twice(tmp_path: Path) -> None:
    """Random SIGKILL of slot processes and restarts of the dispatcher while 18 jobs run, some over their time."""
    rng = random.Random(5)
    bench = Bench(tmp_path / "node", slots=2, max_attempts=2)
    good = [bench.add("shift", seconds=0.2) for _ in range(16)]
    late = [bench.add("slow", seconds=30) for _ in range(2)]
    executor = bench.start()
    try:
        end = time.monotonic() + 30
        while time.monotonic() < end and any(bench.get(job).state is JobState.QUEUED for job in good):
            time.sleep(rng.uniform(0.5, 2.0))
            if rng.random() < 0.15:
                bench.stop()
                executor = bench.start()
                continue
            alive = [slot.process.pid for slot in executor._slots.values() if slot.process and slot.ready]
            if alive and rng.random() < 0.5:
                os.kill(rng.choice(alive), signal.SIGKILL)
        bench.until(
            lambda: all(bench.get(job).state not in (JobState.QUEUED, JobState.RUNNING) for job in good + late), 120
        )
        poison = [job for job in good if bench.get(job).state is JobState.DEAD]
        assert all(bench.get(job).lost_count == 3 for job in poison), "only a job that lost three workers may die"
        with bench.database.read() as connection:
            for job in set(good) - set(poison):
                assert bench.get(job).state is JobState.STORED
                assert len(outputs.of_job(connection, job)) == 4
                assert [e.action for e in events.of(connection, job_id=job)].count("job_stored") == 1
        assert all(bench.get(job).state is JobState.DEAD for job in late)
    finally:
        bench.stop()
        bench.database.close()
