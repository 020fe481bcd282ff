"""One run, from files to durable objects: volumes -> pipeline -> encode -> check -> result folder.

Used by the slots' processes and by ``dicomnode run``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dicomnode import faults
from dicomnode.domain import Output
from dicomnode.encode.identity import EncodeContext
from dicomnode.encode.result import encode_result
from dicomnode.errors import SeriesError, UndecodablePixels, Unsuitable
from dicomnode.execute.contract import check_result
from dicomnode.execute.executor import Request
from dicomnode.pipeline import Pipeline, Result
from dicomnode.store.results import ResultFolder
from dicomnode.volumes import series as volumes


@dataclass(frozen=True, slots=True, kw_only=True)
class Performed:
    """What came out of a run."""

    outputs: Sequence[Output]
    quality: dict[str, float]
    notes: tuple[str, ...]
    findings: Sequence[dict[str, Any]] = ()


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
        objects = encode_result(
            source, result, context, kinds=request.kinds, labelmap=request.labelmap, replaces=request.replaces
        )
        for one in objects:
            folder.add(one.dataset, role=one.role, index=one.index, kind=one.kind, flavour=one.flavour)
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
        findings=findings_of(result),
    )


def findings_of(result: Result) -> list[dict[str, Any]]:
    """What was found, as the job's record keeps it: without identity, and plain enough for JSON."""
    return [
        {
            "code": [one.code.value, one.code.scheme_designator, one.code.meaning],
            "presence": one.presence.value,
            "probability": one.probability,
            "urgency": one.urgency.value if one.urgency else None,
            "reason": one.reason,
        }
        for one in result.findings
    ]
