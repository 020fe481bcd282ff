"""Result folders: objects of one run are written aside, made durable together and appear under one rename."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import TracebackType

from pydicom import Dataset

from dicomnode.domain import Flavour, ObjectKind, Output
from dicomnode.errors import DiskFull, StoreError


class ResultFolder:
    """``<results>/<job>/<run>``, written as ``<run>.part`` until `commit`.

    Leaving the block without a commit deletes what was written. Objects are written and hashed by a second thread while
    the caller encodes the next one: both release the interpreter.
    """

    def __init__(self, results: Path, job_id: int, run: str) -> None:
        self.final = results / str(job_id) / run
        self.part = self.final.with_name(f"{run}.part")
        self._written: list[Future[Output]] = []
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="results")

    def __enter__(self) -> ResultFolder:
        shutil.rmtree(self.part, ignore_errors=True)
        self.part.mkdir(parents=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        shutil.rmtree(self.part, ignore_errors=True)

    def add(
        self,
        dataset: Dataset,
        *,
        role: str,
        index: int,
        kind: ObjectKind = ObjectKind.IMAGE,
        flavour: Flavour = Flavour.ANY,
    ) -> None:
        """Write one object (Part 10, in the transfer syntax its file meta names)."""
        buffer = BytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
        raw = buffer.getbuffer()
        output = Output(
            role=role,
            index=index,
            sop_class_uid=str(dataset.SOPClassUID),
            sop_instance_uid=str(dataset.SOPInstanceUID),
            series_uid=str(dataset.SeriesInstanceUID),
            study_uid=str(dataset.StudyInstanceUID),
            path=Path(self.final.parent.name, self.final.name, f"{len(self._written):05d}.dcm"),
            size=len(raw),
            sha256="",
            kind=kind,
            flavour=flavour,
        )
        self._written.append(self._pool.submit(self._write, raw, output))

    def _write(self, raw: memoryview, output: Output) -> Output:
        try:
            (self.part / output.path.name).write_bytes(raw)
        except OSError as error:
            raise DiskFull(f"cannot write result {output.sop_instance_uid}: {error}") from error
        return replace(output, sha256=hashlib.sha256(raw).hexdigest())

    def commit(self) -> list[Output]:
        """Make every object durable, then visible under the final name. Paths are relative to the results folder."""
        if self.final.exists():
            raise StoreError(f"{self.final} exists: two runs share a name")
        outputs = [one.result() for one in self._written]
        sync_folder(self.part)
        self.part.rename(self.final)
        for folder in (self.final.parent, self.final.parent.parent):
            fsync(folder)
        return outputs


def sync_folder(folder: Path) -> None:
    """Flush every file of a folder and its names: one ``syncfs`` call, far cheaper than an fsync a file."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
            code = ctypes.get_errno()
            raise StoreError(f"cannot flush {folder}: {os.strerror(code)}")
    finally:
        os.close(descriptor)


def fsync(path: Path) -> None:
    """Flush one file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(results: Path, known: set[tuple[str, str]]) -> int:
    """At start: delete run folders that no committed job owns; ``known`` are (job, run). Return how many."""
    swept = 0
    for run in results.glob("*/*"):
        if (run.parent.name, run.name) not in known:
            shutil.rmtree(run, ignore_errors=True)
            swept += 1
    return swept
