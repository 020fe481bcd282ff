"""One run, from files to durable objects: volumes -> pipeline -> encode -> check -> result folder.

Used by the slots' processes and by ``dicomnode run``.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dicomnode import faults
from dicomnode.domain import Output
from dicomnode.encode.identity import EncodeContext, repeated
from dicomnode.encode.result import encode_result, left_out
from dicomnode.errors import Unsuitable
from dicomnode.execute.contract import check_result
from dicomnode.execute.executor import Request
from dicomnode.execute.read import AnySource, given, reading
from dicomnode.pipeline import Pipeline, Result
from dicomnode.store.results import ResultFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class Performed:
    """What came out of a run."""

    outputs: Sequence[Output]
    quality: dict[str, float]
    notes: tuple[str, ...]
    findings: Sequence[dict[str, Any]] = ()
    #: Why a person must look before anything is sent; empty: nobody must.
    hold: str = ""


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
    with reading(pipeline, request) as source:
        series = given(source)
        read = clock()
        progress("computing", 0.1)
        result = pipeline.run(series)
        check_result(result, series)
    computed = clock()
    progress("writing", 0.9)
    context = _context(pipeline, request, weights_digest, incomplete=request.incomplete or series.incomplete)
    reduced: list[str] = []
    with ResultFolder(request.results, request.job_id, request.run) as folder, warnings.catch_warnings():
        # pydicom warns of each UID with leading zeros; the note says it once.
        warnings.filterwarnings("ignore", "Invalid value for VR UI", UserWarning)
        objects = encode_result(
            source,
            result,
            context,
            kinds=request.kinds,
            labelmap=request.labelmap,
            enhanced=request.enhanced,
            replaces=request.replaces,
            say=reduced.append,
        )
        for one in objects:
            folder.add(one.dataset, role=one.role, index=one.index, kind=one.kind, flavour=one.flavour)
        faults.reached("after-encode")
        outputs = folder.commit()
    timing = {
        "seconds_reading": read - began,
        "seconds_computing": computed - read,
        "seconds_writing": clock() - computed,
    }
    quality, unkept = quality_of(result)
    missing = [*filter(None, [left_out(source, result, context, request.kinds)]), *reduced]
    return Performed(
        outputs=outputs,
        quality={**quality, **timing},
        notes=(*source.notes, *_repeated_uids(source), *result.notes, *missing, *unkept),
        findings=findings_of(result),
        hold=result.hold,
    )


def _context(pipeline: Pipeline[Any], request: Request, weights_digest: str, *, incomplete: bool) -> EncodeContext:
    return EncodeContext(
        job_key=request.key,
        algorithm=pipeline.algorithm,
        weights_digest=weights_digest,
        when=request.created_at,
        series_number=request.series_number,
        device_serial=request.device_serial,
        incomplete=incomplete,
        revision=request.revision + 1,  # objects count from 1
        predecessor=request.predecessor,
        leading_zero_uids=request.leading_zero_uids,
    )


def _repeated_uids(source: AnySource) -> list[str]:
    """What validators will say of the results, and why."""
    if not repeated(source.headers):
        return []
    return ["UIDs of the source have leading zeros, which PS3.5 9.1 forbids: results repeat them, as the site accepts"]


def quality_of(result: Result) -> tuple[dict[str, float], list[str]]:
    """Numbers for the job's record, and a note on each that JSON cannot hold: it must not cost the job its findings."""
    numbers = {name: float(value) for name, value in result.quality.items()}
    unkept = [f"quality {name} is {value}: not kept" for name, value in numbers.items() if not math.isfinite(value)]
    return {name: value for name, value in numbers.items() if math.isfinite(value)}, unkept


def findings_of(result: Result) -> list[dict[str, Any]]:
    """What was found, as the job's record keeps it: without identity, and plain enough for JSON."""
    return [
        {
            "code": [one.code.value, one.code.scheme_designator, one.code.meaning],
            "presence": one.presence.value,
            "probability": None if one.probability is None else float(one.probability),
            "urgency": one.urgency.value if one.urgency else None,
            "reason": one.reason,
        }
        for one in result.findings
    ]
