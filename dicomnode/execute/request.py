"""What a worker is told about a job: its input, the result it replaces, and which objects somebody takes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, or_, select

from dicomnode.config import Config
from dicomnode.domain import DeliveryState, Flavour, ObjectKind
from dicomnode.errors import StoreError
from dicomnode.execute.executor import PipelineSpec, Request
from dicomnode.store import deliveries, outputs, revisions, schema
from dicomnode.store.deliveries import Delivery
from dicomnode.store.jobs import Job

#: Study, series, SOP class and SOP instance UID.
Document = tuple[str, str, str, str]
#: A destination has the object.
_THERE: Final = frozenset({DeliveryState.DELIVERED, DeliveryState.COMMITTED})


def request_of(connection: Connection, config: Config, job: Job, now: datetime) -> Request:
    """Put together what the worker needs.

    Raises
    ------
    StoreError
        The pipeline is no longer configured, or an input file is gone.
    """
    settings = config.pipelines.get(job.pipeline)
    if settings is None:
        raise StoreError(f"pipeline {job.pipeline!r} is no longer configured; add it and retry job {job.id}")
    data = config.node.data
    older = revisions.predecessor(connection, job)
    previous = outputs.of_job(connection, older.id) if older is not None else []
    sent = deliveries.of_job(connection, older.id) if older is not None else []
    destinations = [config.destinations[to] for to in job.send_to if to in config.destinations]
    return Request(
        job_id=job.id,
        key=job.key,
        run=f"{job.epoch}-{job.attempt}-{job.lost_count}-{int(now.timestamp() * 1000)}",
        pipeline=PipelineSpec(
            name=job.pipeline, class_name=job.class_name, weights=settings.weights, options=job.options
        ),
        version=job.version,
        weights_digest=job.weights_digest,
        paths=input_paths(connection, job, data / "spool"),
        incomplete=job.incomplete,
        revision=job.revision,
        created_at=job.created_at,
        results=data / "results",
        series_number=config.node.series_number + 100 * list(config.pipelines).index(job.pipeline),
        device_serial=config.node.ae_title,
        default_charset=config.node.default_charset,
        leading_zero_uids=config.receive.leading_zero_uids == "accept",
        predecessor=next((one.series_uid for one in previous if one.kind is ObjectKind.IMAGE), ""),
        replaces={
            (kind, flavour): replaced(sent, kind, flavour)
            for kind in (ObjectKind.REPORT, ObjectKind.MARKS, ObjectKind.PHASES)
            for flavour in Flavour
        },
        kinds=[kind for kind in ObjectKind if any(kind in one.objects for one in destinations)],
        labelmap=any(one.segmentation == Flavour.LABELMAP.value for one in destinations),
        enhanced=any(one.reconstructions == Flavour.ENHANCED.value for one in destinations),
    )


def replaced(sent: Sequence[Delivery], kind: ObjectKind, flavour: Flavour) -> list[Document]:
    """Documents of an earlier result that a new one of ``kind`` and ``flavour`` takes the place of.

    What lies at the destinations of that flavour: both flavours where the new one goes to all of them, and the other
    one where a destination has only that (its profile was changed, or it refused label maps).
    """
    there = {one.sop_instance_uid: one for one in sent if one.kind is kind and one.state in _THERE}
    alike = [one for one in there.values() if flavour is Flavour.ANY or one.flavour in (flavour, Flavour.ANY)]
    return [(one.study_uid, one.series_uid, one.sop_class_uid, one.sop_instance_uid) for one in alike or there.values()]


def input_paths(connection: Connection, job: Job, spool: Path) -> list[Path]:
    """Files of the job's input, in the order of its UIDs; raises `StoreError` if one is gone."""
    table = schema.instance
    of_job = or_(table.c.series_uid == job.series_uid, table.c.study_uid == job.series_uid)  # or a job of a study
    query = select(table.c.sop_instance_uid, table.c.path).where(of_job)
    known = {row.sop_instance_uid: spool / row.path for row in connection.execute(query)}
    gone = [uid for uid in job.inputs if uid not in known]
    if gone:
        raise StoreError(
            f"{len(gone)} inputs of job {job.id} are no longer kept (first: {gone[0]}); send the series again"
        )
    return [known[uid] for uid in job.inputs]
