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
from pydicom import Dataset, dcmread
from pydicom.uid import SecondaryCaptureImageStorage

from dicomnode import config
from dicomnode.cli import simulated
from dicomnode.cli.common import Commands, command, err, out
from dicomnode.cli.jobs import in_words
from dicomnode.cli.pacs import StandInPACS, in_plane_order, read_in_plane_order
from dicomnode.cli.route import print_verdicts
from dicomnode.config import Config, Destination
from dicomnode.dispatch import send_files
from dicomnode.domain import JobState
from dicomnode.store import deliveries, jobs, outputs, series
from dicomnode.store.db import Database, open_database

_MODALITY: Final = "DEMOCT"
_DONE: Final = (JobState.CLOSED, JobState.HELD, JobState.DEAD, JobState.UNSUITABLE)


def add(commands: Commands) -> None:
    """Add the command."""
    sub = command(
        commands, "demo", "run node, PACS stand-in and simulated scanner on this machine and show what happens",
        """
        dicomnode demo
        dicomnode demo --dir my-demo
        """, _demo,
    )  # fmt: skip
    sub.add_argument("--dir", type=Path, default=Path(".demo"), help="where everything is written (default: .demo)")
    sub.add_argument("--timeout", type=float, default=300, help="give up after so many seconds (default: 300)")


def _settings(folder: Path, node_port: int, pacs_port: int) -> dict[str, object]:
    pacs = {"ae_title": "DEMOPACS", "host": "127.0.0.1", "port": pacs_port}
    head = {"Modality": "CT", "StudyDescription": {"matches": "(?i)head"}, "series.slices": {"min": 3}}
    return {
        "node": {"ae_title": "DICOMNODE", "data": str(folder / "node"), "log": {"style": "text"}},
        "receive": {"address": "127.0.0.1", "port": node_port, "refuse_below_mb": 200, "accept_above_mb": 250},
        "sources": [{"ae_title": _MODALITY, "addresses": ["127.0.0.1"], "query": pacs}],
        "rules": [
            {"name": "head CT, denoise", "when": head, "pipeline": "ct_denoise", "send_to": ["PACS"]},
            {
                "name": "head CT, hemorrhage",
                "when": {**head, "ContrastBolusAgent": "absent"},
                "pipeline": "hemorrhage",
                "send_to": ["PACS"],
                "priority": "urgent",
            },
        ],
        "pipelines": {
            "ct_denoise": {"class": "pipelines.ct_denoise:CTDenoising"},
            "hemorrhage": {"class": "pipelines.hemorrhage:HemorrhageDetection"},
        },
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
    err.print("simulating two heads, one with blood (some seconds) ...")
    heads = [
        list(simulated.head_ct(now, simulated.head(bleeding=bleeding), patient_id=patient_id, name=name))
        for bleeding, patient_id, name in ((True, "DEMO-1", "Demo^One"), (False, "DEMO-2", "Demo^Two"))
    ]
    localizer = list(simulated.unwanted(now, heads[0][0].StudyInstanceUID))
    paths = []
    for number, dataset in enumerate([*heads[0], *heads[1], *localizer]):
        paths.append(folder / "sent" / f"{number:03d}.dcm")
        dataset.save_as(paths[-1], enforce_file_format=True)
    with StandInPACS(folder / "pacs") as pacs:
        port = _free_port()
        settings = _settings(folder, port, pacs.port)
        (folder / "node.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
        loaded = config.load(folder / "node.yaml")
        for dataset in (*heads[0], *heads[1]):
            pacs.add(dataset)
        out.print(f"1. A node, a PACS stand-in and a scanner on this machine; everything is in {folder}")
        uids = [str(head[0].SeriesInstanceUID) for head in heads]
        with _node(folder) as process:
            _send(process, Destination(ae_title="DICOMNODE", host="127.0.0.1", port=port), paths, arguments.timeout)
            database = open_database(loaded.node.database, loaded.node.data)
            ok = _wait(process, database, uids, arguments.timeout)
            _story(loaded, database, [*uids, str(localizer[0].SeriesInstanceUID)])
            database.close()
        received = pacs.received()
    if not ok or not received:
        err.print(f"the results did not all arrive; see {folder / 'node.log'}")
        return 3
    return _show(folder, heads, received)


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


def _wait(process: subprocess.Popen[bytes], database: Database, uids: list[str], timeout_s: float) -> bool:
    """Until every job of these series ended; whether all of them were delivered."""
    deadline = time.monotonic() + timeout_s
    shown: dict[int, str] = {}
    while time.monotonic() < deadline and process.poll() is None:
        with database.read() as connection:
            found = [jobs.of_series(connection, uid) for uid in uids]
        for job in [one for of_one in found for one in of_one]:
            phase = f"{job.pipeline} {job.state} {job.phase if job.state is JobState.RUNNING else ''}".strip()
            if phase != shown.get(job.id):
                err.print(f"   job {job.id}: {phase}")
                shown[job.id] = phase
        if all(of_one and all(job.state in _DONE for job in of_one) for of_one in found):
            return all(job.state is JobState.CLOSED for of_one in found for job in of_one)
        time.sleep(0.2)
    return False


def _story(loaded: Config, database: Database, uids: list[str]) -> None:
    with database.read() as connection:
        out.print("3. What the node decided, and why:")
        for uid in uids:
            one = series.get(connection, uid)
            if one is None:
                continue
            out.print(f"\n  {one.modality} series with {one.instances} images ({uid[:24]}...): {one.state}")
            if one.completion:
                out.print(f"  complete by {one.completion}: {one.proof}")
            print_verdicts(one.verdicts or [])
            for job in jobs.of_series(connection, uid):
                made, sent = outputs.of_job(connection, job.id), deliveries.of_job(connection, job.id)
                states = Counter(f"{delivery.state} to {delivery.destination}" for delivery in sent)
                out.print(f"  job {job.id}: {job.pipeline} {job.version}, {job.state}: {len(made)} objects, "
                          + ", ".join(f"{number} {what}" for what, number in states.items()))  # fmt: skip
                for finding in job.findings:
                    out.print(f"  finding: {in_words(finding)}")
                quality = ", ".join(f"{key} {value:.3g}" for key, value in job.quality.items())
                out.print(f"  quality: {quality}")
                for note in [*job.notes, job.error]:
                    out.print(f"  note: {note}" if note else "", end="\n" if note else "")
    out.print(f"\n   (ask again with: dicomnode series --config {loaded.node.data.parent / 'node.yaml'})")


def _show(folder: Path, heads: list[list[Dataset]], received: dict[str, list[Path]]) -> int:
    out.print("4. The PACS holds, beside what the scanner sent:")
    pictures = []
    for paths in received.values():
        first = dcmread(paths[0])
        out.print(
            f"   {first.PatientID} {first.Modality:3} {len(paths):3} x {first.SeriesDescription!r}, "
            f"series {str(first.SeriesInstanceUID)[:24]}...",
        )  # fmt: skip
        if first.SOPClassUID == SecondaryCaptureImageStorage:
            pictures.append((f"summary page of {first.PatientID}", f"summary-{first.PatientID}.png"))
            Image.fromarray(first.pixel_array).save(folder / pictures[-1][1])
        elif first.Modality == "CT" and first.PatientID == heads[0][0].PatientID:
            result = read_in_plane_order(paths)
            middle = len(result) // 2
            before = _hounsfield(in_plane_order(heads[0])[middle])
            after = _hounsfield(result[middle])
            pictures.append(("before, after, difference", "before-after.png"))
            _picture([before, after, before - after], folder / pictures[-1][1])
    out.print("5. Where to look:")
    for what, place in (
        ("configuration", "node.yaml"), ("log", "node.log"), ("sent by the scanner", "sent"),
        ("received by the PACS", "pacs"), *sorted(pictures),
    ):  # fmt: skip
        out.print(f"   {what:26} {folder / place}")
    return 0


def _hounsfield(dataset: Dataset) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.asarray(dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept), np.float64)


def _picture(images: list[np.ndarray[tuple[int, ...], np.dtype[np.float64]]], path: Path) -> None:
    """Write images side by side: window 0..80 HU, the last (a difference) -40..40 HU."""
    windows = [(0.0, 80.0)] * (len(images) - 1) + [(-40.0, 40.0)]
    grey = [np.clip((image - low) / (high - low), 0, 1) for image, (low, high) in zip(images, windows, strict=True)]
    Image.fromarray((np.hstack(grey) * 255).astype(np.uint8)).save(path)
