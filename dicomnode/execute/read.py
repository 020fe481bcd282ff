"""The files of a request as what its pipeline is given."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dicomnode.errors import SeriesError, UndecodablePixels, UnreadableRawData, Unsuitable
from dicomnode.execute.executor import Request
from dicomnode.inputs import CineSeries
from dicomnode.kspace import KSpace
from dicomnode.pipeline import Pipeline
from dicomnode.volumes import measurement
from dicomnode.volumes import series as volumes
from dicomnode.volumes.cine import CineSource, load_cine
from dicomnode.volumes.measurement import SourceMeasurement
from dicomnode.volumes.series import SourceSeries

#: Everything a pipeline's input may be read as.
AnySource = SourceSeries | CineSource | SourceMeasurement


@contextmanager
def reading(pipeline: Pipeline[Any], request: Request) -> Iterator[AnySource]:
    """The input of ``pipeline``; what its files were unwrapped to is gone when the block is left.

    A process that is killed leaves a folder beside the run's own, which the next start of the node sweeps up.

    Raises
    ------
    Unsuitable
        The series cannot be this pipeline's input.
    UndecodablePixels, UnreadableRawData
        It could be, were it not damaged.
    """
    if pipeline.input_type is not KSpace:
        yield _images(pipeline, request)
        return
    folder = request.results / str(request.job_id) / f"{request.run}.raw"
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        source = _measurement(request, folder)
        if source.kspace.incomplete and not pipeline.accepts_incomplete:
            raise Unsuitable("the scanner's stream ended before it was complete, and the pipeline needs all of it")
        yield source
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def given(source: AnySource) -> Any:  # noqa: ANN401 - what `Pipeline.run` takes
    """What the pipeline sees of ``source``."""
    if isinstance(source, SourceMeasurement):
        return source.kspace
    return source.series if isinstance(source, CineSource) else source.images


def _images(pipeline: Pipeline[Any], request: Request) -> SourceSeries | CineSource:
    load = load_cine if pipeline.input_type is CineSeries else volumes.load
    try:
        return load(request.paths, incomplete=request.incomplete, default_charset=request.default_charset)
    except UndecodablePixels:
        raise
    except SeriesError as error:
        raise Unsuitable(f"{type(error).__name__}: {error}") from error


def _measurement(request: Request, folder: Path) -> SourceMeasurement:
    target = folder / "measurement.h5"
    try:
        return measurement.load(
            request.paths, target, incomplete=request.incomplete, default_charset=request.default_charset
        )
    except UnreadableRawData:
        raise
    except SeriesError as error:
        raise Unsuitable(f"{type(error).__name__}: {error}") from error
