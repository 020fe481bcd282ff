"""One run, from files to durable objects: volumes -> pipeline -> encode -> check -> result folder.

Used by the slots' processes and by ``dicomnode run``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dicomnode import faults
from dicomnode.domain import Output
from dicomnode.encode.identity import EncodeContext
from dicomnode.encode.image import encode_images
from dicomnode.errors import ResultInvalid, SeriesError, UndecodablePixels, Unsuitable
from dicomnode.execute.executor import Request
from dicomnode.pipeline import ImageSeries, Pipeline, Result
from dicomnode.store.results import ResultFolder
from dicomnode.volumes import series as volumes


@dataclass(frozen=True, slots=True, kw_only=True)
class Performed:
    """What came out of a run."""

    outputs: Sequence[Output]
    quality: dict[str, float]
    notes: tuple[str, ...]


def perform(
    pipeline: Pipeline[Any], request: Request, weights_digest: str, progress: Callable[[str, float], None]
) -> Performed:
    """Run ``pipeline`` on the files of ``request``; its objects are durable when this returns.

    Raises
    ------
    Unsuitable
        The series cannot be, or should not be, this pipeline's input.
    NodeError
        Everything else that can go wrong with a name.
    """
    clock = time.monotonic
    began = clock()
    progress("reading", 0.0)
    if request.incomplete and not pipeline.accepts_incomplete:
        raise Unsuitable("instances of this series are missing, and the pipeline needs all of them")
    try:
        source = volumes.load(request.paths, incomplete=request.incomplete, default_charset=request.default_charset)
    except UndecodablePixels:
        raise
    except SeriesError as error:
        raise Unsuitable(f"{type(error).__name__}: {error}") from error
    read = clock()
    progress("computing", 0.1)
    result = pipeline.run(source.images)
    check_result(result, source.images)
    computed = clock()
    progress("writing", 0.9)
    context = EncodeContext(
        job_key=request.key,
        algorithm=pipeline.algorithm,
        weights_digest=weights_digest,
        when=request.created_at,
        series_number=request.series_number,
        device_serial=request.device_serial,
        incomplete=request.incomplete,
        revision=request.revision + 1,  # objects count from 1
        predecessor=request.predecessor,
    )
    with ResultFolder(request.results, request.job_id, request.run) as folder:
        for image in result.images:
            for index, dataset in enumerate(encode_images(source, Result(images=(image,)), context)):
                folder.add(dataset, role=image.role, index=index)
        faults.reached("after-encode")
        outputs = folder.commit()
    written = clock()
    timing = {
        "seconds_reading": read - began,
        "seconds_computing": computed - read,
        "seconds_writing": written - computed,
    }
    return Performed(
        outputs=outputs,
        quality={**{name: float(value) for name, value in result.quality.items()}, **timing},
        notes=(*source.notes, *result.notes),
    )


def check_result(result: Result, series: ImageSeries) -> None:
    """Hold a result against the contract; raises `ResultInvalid` naming what breaks it. Nothing is silently fixed."""
    if not isinstance(result, Result):
        raise ResultInvalid(f"run() returned {type(result).__name__}, not Result")
    roles = [image.role for image in result.images]
    if len(set(roles)) != len(roles):
        raise ResultInvalid(f"two images have the role {max(set(roles), key=roles.count)!r}")
    for image in result.images:
        if image.array.shape != series.array.shape or image.array.dtype != np.float32:
            raise ResultInvalid(
                f"image {image.role!r} is {image.array.dtype} {image.array.shape}, "
                f"the series is float32 {series.array.shape}"
            )
        if not np.isfinite(image.array).all():
            raise ResultInvalid(f"image {image.role!r} holds values that are not finite")
        if np.ptp(image.array) == 0 and np.ptp(series.array) > 0:
            raise ResultInvalid(f"image {image.role!r} is constant, the series is not")
