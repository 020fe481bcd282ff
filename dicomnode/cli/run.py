"""``dicomnode run``: one pipeline on a folder, offline, without a node."""

from __future__ import annotations

import argparse
import os
import socket
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from dicomnode import dicom
from dicomnode.cli.common import Commands, add_config, command, dicom_files, err, find_config, out
from dicomnode.cli.wrap import add_identity, objects_of
from dicomnode.config import load
from dicomnode.errors import ConfigError, NodeError, Unsuitable
from dicomnode.execute import loader, slots
from dicomnode.execute.executor import PipelineSpec, Request
from dicomnode.execute.perform import Performed, perform
from dicomnode.pipeline import CineSeries, Pipeline, Runtime

#: First bytes of an HDF5 file (HDF5 File Format Specification, "Format Signature").
_HDF5 = b"\x89HDF\r\n\x1a\n"


def add(commands: Commands) -> None:
    """Add the command."""
    sub = command(
        commands, "run", "run one pipeline on every series (or cine) of a folder and write the objects it makes",
        """
        dicomnode run /data/head --pipeline pipelines.ct_denoise:CTDenoising --out /data/results
        dicomnode run /data/head --pipeline ct_denoise --option strength=0.4   # by its name in the configuration
        dicomnode run scan.h5 --like image.dcm --pipeline pipelines.mr_recon:MRReconstruction   # raw k-space
        """, _run,
    )  # fmt: skip
    sub.add_argument("folder", type=Path, metavar="FOLDER", help="DICOM files, or one MRD file of raw k-space")
    sub.add_argument("--pipeline", required=True, metavar="NAME|module:Class")
    sub.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="may be given several times")
    sub.add_argument("--out", type=Path, default=Path("results"), help="folder for the objects (default: results)")
    sub.add_argument("--device", help="cpu or cuda:N (default: a GPU if there is one)")
    add_identity(sub.add_argument_group("of an MRD file: whose it is"))
    add_config(sub)


def _options(given: list[str]) -> dict[str, Any]:
    options = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals:
            raise ConfigError(f"--option {one!r} must be NAME=VALUE")
        options[name] = yaml.safe_load(value)
    return options


def _spec(arguments: argparse.Namespace) -> PipelineSpec:
    options = _options(arguments.option)
    if ":" in arguments.pipeline:
        return PipelineSpec(name=arguments.pipeline, class_name=arguments.pipeline, weights=None, options=options)
    config = load(find_config(arguments.config))
    settings = config.pipelines.get(arguments.pipeline)
    if settings is None:
        known = ", ".join(config.pipelines) or "none"
        raise ConfigError(f"pipeline {arguments.pipeline!r} is not configured (known: {known})")
    options = {**settings.options, **options}
    return PipelineSpec(name=arguments.pipeline, class_name=settings.class_, weights=settings.weights, options=options)


def _inputs(folder: Path, keyword: str) -> dict[str, list[Path]]:
    """Files by series or study."""
    found: dict[str, list[Path]] = {}
    for path in dicom_files(folder):
        try:
            dataset = dcmread(path, stop_before_pixels=True, specific_tags=[keyword])
        except (InvalidDicomError, OSError, ValueError) as error:
            err.print(f"{path.name} is left out: {error}")
            continue
        found.setdefault(str(dataset.get(keyword, "")), []).append(path)
    return found


def _run(arguments: argparse.Namespace) -> int:
    if not _is_hdf5(arguments.folder):
        return _run_on(arguments, arguments.folder)
    with tempfile.TemporaryDirectory(prefix="dicomnode-run-") as temporary:
        objects_of(arguments.folder, arguments, Path(temporary))
        return _run_on(arguments, Path(temporary))


def _is_hdf5(path: Path) -> bool:
    """Whether ``path`` is a file of raw k-space rather than DICOM."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_HDF5)) == _HDF5


def _run_on(arguments: argparse.Namespace, given: Path) -> int:
    spec = _spec(arguments)
    cls = loader.load_class(spec.class_name)
    # A cine may be spread over the series of a study.
    kind = "study" if cls.input_type is CineSeries else "series"
    found = _inputs(given, f"{kind.title()}InstanceUID")
    if not found:
        raise ConfigError(f"no DICOM series in {given}")
    device = arguments.device or ("cuda:0" if slots.gpus() else "cpu")
    folder = loader.weights_folder(cls, spec.weights)
    digest = loader.check_weights(folder)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%"),
        TimeElapsedColumn(),
    )
    failed = 0
    with Progress(*columns, console=err) as bar:
        shown = bar.add_task("loading", total=1.0)
        threads = os.cpu_count() or 1
        pipeline = cls(loader.make_options(cls, spec.options))
        runtime = Runtime(
            device=device, weights=folder, threads=threads,
            progress=lambda phase, fraction: bar.update(shown, description=phase, completed=fraction),
        )  # fmt: skip
        pipeline.setup(runtime)
        for number, (uid, paths) in enumerate(sorted(found.items()), 1):
            request = _request(spec, arguments.out, number, uid, paths, digest)
            try:
                performed = perform(pipeline, request, digest, runtime.progress)
            except Unsuitable as error:
                err.print(f"{kind} {uid}: not for this pipeline: {error.reason}")
                failed += 1
            except NodeError as error:
                err.print(f"{kind} {uid}: {type(error).__name__}: {error}")
                failed += 1
            else:
                _report(f"{kind} {uid}", performed, pipeline, arguments.out)
    return 1 if failed else 0


def _request(spec: PipelineSpec, results: Path, number: int, uid: str, paths: list[Path], digest: str) -> Request:
    now = datetime.now(UTC)
    return Request(
        job_id=number,
        # A run by hand is its own job: the time makes its UIDs differ from the node's and from the last run's.
        key=dicom.digest(uid, spec.class_name, digest, now.isoformat(), *map(str, paths)),
        run=now.strftime("%Y%m%dT%H%M%S"),
        pipeline=spec,
        version="unknown",
        weights_digest=digest,
        paths=paths,
        incomplete=False,
        revision=0,
        created_at=now,
        results=results,
        series_number=9000,
        device_serial=socket.gethostname(),
        default_charset="ISO_IR 100",
        leading_zero_uids=True,  # whoever runs it has accepted the files
    )


def _report(what: str, performed: Performed, pipeline: Pipeline[Any], results: Path) -> None:
    name = f"{pipeline.algorithm.name} {pipeline.algorithm.version}"
    folder = results / performed.outputs[0].path.parent if performed.outputs else "(nothing)"
    out.print(f"{what}: {name} made {len(performed.outputs)} objects in {folder}")
    for key, value in performed.quality.items():
        out.print(f"  {key}: {value:.4g}")
    for note in performed.notes:
        out.print(f"  note: {note}")
    if performed.hold:
        out.print(f"  a node would hold this for review: {performed.hold}")
