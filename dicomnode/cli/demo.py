"""``dicomnode demo``: the main job end to end on an embedded default, in a few minutes, on simulated images."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
import yaml
from PIL import Image
from pydicom import Dataset

from dicomnode import config
from dicomnode.cli import phantom
from dicomnode.cli.common import Commands, command, err, out
from dicomnode.cli.pacs import StandInPACS, in_plane_order
from dicomnode.cli.route import print_verdicts
from dicomnode.config import Config, Destination
from dicomnode.dispatch import send_files
from dicomnode.domain import JobState
from dicomnode.store import deliveries, jobs, outputs, series
from dicomnode.store.db import Database, open_database

_MODALITY: Final = "DEMOCT"
_DONE: Final = (JobState.CLOSED, JobState.DEAD, JobState.UNSUITABLE)


def add(commands: Commands) -> None:
    """Add the command."""
    sub = command(
        commands, "demo", "run node, PACS stand-in and simulated scanner on this machine and show what happens",
        """
        dicomnode demo
        dicomnode demo --dir my-demo --slices 40
        """, _demo,
    )  # fmt: skip
    sub.add_argument("--dir", type=Path, default=Path(".demo"), help="where everything is written (default: .demo)")
    sub.add_argument("--slices", type=int, default=24, help="slices of the simulated head CT (default: 24)")
    sub.add_argument("--timeout", type=float, default=240, help="give up after so many seconds (default: 240)")


def _settings(folder: Path, node_port: int, pacs_port: int) -> dict[str, object]:
    pacs = {"ae_title": "DEMOPACS", "host": "127.0.0.1", "port": pacs_port}
    return {
        "node": {"ae_title": "DICOMNODE", "data": str(folder / "node"), "log": {"style": "text"}},
        "receive": {"address": "127.0.0.1", "port": node_port, "refuse_below_mb": 200, "accept_above_mb": 250},
        "sources": [{"ae_title": _MODALITY, "addresses": ["127.0.0.1"], "query": pacs}],
        "rules": [
            {
                "name": "head CT, denoise",
                "when": {"Modality": "CT", "StudyDescription": {"matches": "(?i)head"}, "series.slices": {"min": 3}},
                "pipeline": "ct_denoise",
                "send_to": ["PACS"],
            },
        ],
        "pipelines": {"ct_denoise": {"class": "pipelines.ct_denoise:CTDenoising"}},
        "destinations": {"PACS": pacs},
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _node(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``dicomnode serve`` as an operator would, its log in a file."""
    with (folder / "node.log").open("wb") as log:
        arguments = [sys.executable, "-m", "dicomnode", "serve", "--config", str(folder / "node.yaml")]
        process = subprocess.Popen(arguments, stdout=log, stderr=log)  # noqa: S603 - our own interpreter and module
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _demo(arguments: argparse.Namespace) -> int:
    folder: Path = arguments.dir.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "sent").mkdir(parents=True)
    now = datetime.now(UTC)
    head = list(phantom.head_ct(now, slices=arguments.slices))
    localizer = list(phantom.unwanted(now, head[0].StudyInstanceUID))
    paths = []
    for number, dataset in enumerate([*head, *localizer]):
        paths.append(folder / "sent" / f"{number:03d}.dcm")
        dataset.save_as(paths[-1], enforce_file_format=True)
    with StandInPACS(folder / "pacs") as pacs:
        port = _free_port()
        settings = _settings(folder, port, pacs.port)
        (folder / "node.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
        loaded = config.load(folder / "node.yaml")
        for dataset in head:
            pacs.add(dataset)
        out.print(f"1. A node, a PACS stand-in and a scanner on this machine; everything is in {folder}")
        with _node(folder) as process:
            _send(process, Destination(ae_title="DICOMNODE", host="127.0.0.1", port=port), paths, arguments.timeout)
            database = open_database(loaded.node.database, loaded.node.data)
            ok = _wait(process, database, head[0].SeriesInstanceUID, arguments.timeout)
            _story(loaded, database, [head[0].SeriesInstanceUID, localizer[0].SeriesInstanceUID])
            database.close()
        received = pacs.received()
    if not ok or not received:
        err.print(f"the result did not arrive; see {folder / 'node.log'}")
        return 3
    return _show(folder, head, received)


def _send(process: subprocess.Popen[bytes], node: Destination, paths: list[Path], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection((node.host, node.port), 1):
            break
        time.sleep(0.2)
    began = time.monotonic()
    outcomes = send_files(node, _MODALITY, paths)
    taken = Counter(one.problem or "accepted" for one in outcomes)
    out.print(f"2. {_MODALITY} pushed {len(paths)} objects by C-STORE in {time.monotonic() - began:.1f} s: "
              + ", ".join(f"{number} {what}" for what, number in taken.items()))  # fmt: skip


def _wait(process: subprocess.Popen[bytes], database: Database, series_uid: str, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    shown = ""
    while time.monotonic() < deadline and process.poll() is None:
        with database.read() as connection:
            found = jobs.of_series(connection, series_uid)
        if found:
            phase = f"{found[-1].state} {found[-1].phase if found[-1].state is JobState.RUNNING else ''}".strip()
            if phase != shown:
                err.print(f"   job {found[-1].id}: {phase}")
                shown = phase
            if found[-1].state in _DONE:
                return found[-1].state is JobState.CLOSED
        time.sleep(0.2)
    return False


def _story(loaded: Config, database: Database, uids: list[str]) -> None:
    with database.read() as connection:
        out.print("3. What the node decided, and why:")
        for uid in uids:
            one = series.get(connection, uid)
            if one is None:
                continue
            out.print(
                f"\n  {one.modality} series with {one.instances} images ({uid[:24]}...): {one.state}", markup=False
            )
            if one.completion:
                out.print(f"  complete by {one.completion}: {one.proof}", markup=False)
            print_verdicts(one.verdicts or [])
            for job in jobs.of_series(connection, uid):
                made, sent = outputs.of_job(connection, job.id), deliveries.of_job(connection, job.id)
                states = Counter(f"{delivery.state} to {delivery.destination}" for delivery in sent)
                out.print(f"  job {job.id}: {job.pipeline} {job.version}, {job.state}: {len(made)} objects, "
                          + ", ".join(f"{number} {what}" for what, number in states.items()), markup=False)  # fmt: skip
                out.print(
                    "  quality: " + ", ".join(f"{key} {value:.3g}" for key, value in job.quality.items()), markup=False
                )
                for note in [*job.notes, job.error]:
                    out.print(f"  note: {note}" if note else "", markup=False, end="\n" if note else "")
    out.print(f"\n   (ask again with: dicomnode series --config {loaded.node.data.parent / 'node.yaml'})")


def _show(folder: Path, head: list[Dataset], received: dict[str, list[Path]]) -> int:
    uid, paths = next(iter(received.items()))
    result = in_plane_order(paths)
    middle = len(head) // 2
    before, after = (_hounsfield(one[middle]) for one in (sorted(head, key=lambda ds: ds.InstanceNumber), result))
    truth = phantom.head(len(head))[middle]
    brain = (truth > 20) & (truth < 60)
    picture = folder / "before-after.png"
    _picture([before, after, before - after], picture)
    out.print(
        f"4. The PACS holds {len(paths)} derived images: {result[0].SeriesDescription!r}, series {uid}", markup=False
    )
    error = [float(np.sqrt(np.mean((image - truth)[brain] ** 2))) for image in (before, after)]
    out.print(f"   error against the noise-free truth in the brain: {error[0]:.1f} HU before, {error[1]:.1f} HU after")
    out.print("5. Where to look:")
    for what, place in (
        ("configuration", "node.yaml"), ("log", "node.log"), ("sent by the scanner", "sent"),
        ("received by the PACS", "pacs"), ("before, after, difference", picture.name),
    ):  # fmt: skip
        out.print(f"   {what:26} {folder / place}", markup=False)
    return 0


def _hounsfield(dataset: Dataset) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.asarray(dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept), np.float64)


def _picture(images: list[np.ndarray[tuple[int, ...], np.dtype[np.float64]]], path: Path) -> None:
    """Write images side by side: window 0..80 HU, the last (a difference) -40..40 HU."""
    windows = [(0.0, 80.0)] * (len(images) - 1) + [(-40.0, 40.0)]
    grey = [np.clip((image - low) / (high - low), 0, 1) for image, (low, high) in zip(images, windows, strict=True)]
    Image.fromarray((np.hstack(grey) * 255).astype(np.uint8)).save(path)
