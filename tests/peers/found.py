"""Jobs that have found something, with the image they looked at in the spool: what the notifier finds in its turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from pydicom import Dataset
from sqlalchemy import update

from dicomnode.config import Config
from dicomnode.domain import Band, Instance
from dicomnode.store import instances, jobs, notifications, schema
from dicomnode.store.db import Database
from tests.factories import ct_series

HEMORRHAGE = ["1386000", "SCT", "Intracranial hemorrhage"]
SUBDURAL = ["35486000", "SCT", "Subdural hemorrhage"]
EPIDURAL = ["68752002", "SCT", "Epidural | hemorrhage"]
#: Values of the header that may stand nowhere but in a message.
SECRET = {
    "PatientID": "SECRET|ID",
    "PatientName": "SECRET^NAME^M^Dr^Jr",
    "PatientBirthDate": "19510203",
    "AccessionNumber": "SECRET-ACC",
    "PlacerOrderNumberImagingServiceRequest": "SECRET-PLACER",
    "IssuerOfPatientID": "HOSP&ITAL",
}


def finding(
    code: Sequence[str] = HEMORRHAGE,
    presence: str = "present",
    urgency: str | None = "minutes",
    probability: float | None = 0.97,
) -> dict[str, Any]:
    return {"code": list(code), "presence": presence, "probability": probability, "urgency": urgency, "reason": ""}


ABSENT = finding(presence="absent", urgency=None, probability=0.01)


def hooks(**given: Mapping[str, Any]) -> Config:
    return Config.model_validate({"notify": given})


def ended(
    database: Database,
    config: Config,
    findings: Sequence[Mapping[str, Any]] | None,
    at: datetime,
    *,
    study: str = "1.2",
    series: str = "1.2.3",
    revision: int = 0,
    version: str = "1.0",
    pipeline: str = "ich",
    inputs: Sequence[str] = (),
    state: str = "stored",
    rule: str = "test",
) -> int:
    """One job ends: its row, and what must be told, as `jobs.finish` does it. Return its id."""
    new = jobs.NewJob(
        key=f"{study}|{series}|{revision}|{version}|{pipeline}|{rule}", series_uid=series, study_uid=study,
        revision=revision, rule=rule, pipeline=pipeline, version=version, weights_digest="", config_digest="",
        class_name="tests:Test", options={}, send_to=[], inputs=list(inputs), incomplete=False, completion="counted",
        band=Band.ROUTINE,
    )  # fmt: skip
    with database.write() as connection:
        job_id = jobs.enqueue(connection, new, at)
        assert job_id is not None
        values = {"state": state, "findings": None if findings is None else list(findings)}
        connection.execute(update(schema.job).where(schema.job.c.id == job_id).values(**values))
        job = jobs.get(connection, job_id)
        assert job is not None
        if state in ("stored", "unsuitable"):
            notifications.announce(connection, job, findings or [], config.notify, at)
    return job_id


def received(database: Database, data: Path, at: datetime, *, missing: Sequence[str] = (), **values: Any) -> Dataset:
    """One image in the spool, with its row, received a minute ago. Return it."""
    charset = values.pop("charset", "ISO_IR 100")
    study = values.pop("study", "study")
    series = values.pop("series", "series")
    patient_key = values.pop("patient_key", "p")
    (ds,) = ct_series(
        1, rows=4, columns=4, study=study, series=series, charset=charset, missing=missing, values={**SECRET, **values}
    )
    path = data / "spool" / f"{ds.SOPInstanceUID}.dcm"
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    one = Instance(
        sop_instance_uid=ds.SOPInstanceUID, sop_class_uid=ds.SOPClassUID, transfer_syntax_uid="1",
        study_uid=ds.StudyInstanceUID, series_uid=ds.SeriesInstanceUID, path=path.name, size=path.stat().st_size,
        received_at=at - timedelta(seconds=60), association_id=1, calling_ae="CT", patient_key=patient_key,
    )  # fmt: skip
    with database.write() as connection:
        instances.record(connection, [one])
    return ds
