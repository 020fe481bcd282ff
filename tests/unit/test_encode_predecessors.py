"""A newer result names what it replaces at the same destination, in the flavour that lies there."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import update

from dicomnode.config import Config
from dicomnode.domain import Band, DeliveryState, Flavour, ObjectKind, Output
from dicomnode.encode.result import encode_result
from dicomnode.execute.request import request_of
from dicomnode.store import deliveries, jobs, schema
from dicomnode.volumes.series import load
from tests import factories, phantoms

SR3D = "1.2.840.10008.5.1.4.1.1.88.34"
REPORT, MARKS, PHASES = ObjectKind.REPORT, ObjectKind.MARKS, ObjectKind.PHASES
ANY, BINARY, LABELMAP = Flavour.ANY, Flavour.BINARY, Flavour.LABELMAP


def config(tmp_path, second="labelmap") -> Config:
    peer = {"ae_title": "PACS", "host": "127.0.0.1", "objects": ["report", "marks", "phases"]}
    return Config.model_validate(
        {
            "node": {"data": str(tmp_path)},
            "pipelines": {"ich": {"class": "tests.toys:Bleeding"}},
            "destinations": {"ONE": peer, "TWO": {**peer, "segmentation": second}},
        }
    )


def queued(connection, at, revision):
    new = jobs.NewJob(
        key=f"key {revision}", series_uid="1.2.3", study_uid="1.2", revision=revision, rule="r", pipeline="ich",
        version="1", weights_digest="", config_digest="", class_name="tests.toys:Bleeding", options={},
        send_to=["ONE", "TWO"], inputs=[], incomplete=False, completion="counted", band=Band.ROUTINE,
    )  # fmt: skip
    job_id = jobs.enqueue(connection, new, at)
    return jobs.get(connection, job_id)


def output(kind, flavour, number) -> Output:
    return Output(
        role="report", index=0, sop_class_uid=SR3D, sop_instance_uid=f"1.2.9.{number}", series_uid=f"1.2.8.{number}",
        study_uid="1.2", path=Path(f"1/1/{number}.dcm"), size=1, sha256="", kind=kind, flavour=flavour,
    )  # fmt: skip


def earlier(database, clock, made, sent) -> None:
    """A first result whose objects reached destinations: (destination, number of the object)."""
    with database.write() as connection:
        job = queued(connection, clock(), 0)
        connection.execute(update(schema.job).where(schema.job.c.id == job.id).values(state="running", attempt=1))
        job = jobs.get(connection, job.id)
        assert jobs.finish(connection, job, made, clock(), quality={}, notes=[])
        for one in deliveries.of_job(connection, job.id):
            arrived = (one.destination, one.sop_instance_uid.rpartition(".")[2]) in sent
            state = DeliveryState.DELIVERED if arrived else DeliveryState.CANCELLED
            table = schema.delivery
            connection.execute(update(table).where(table.c.id == one.id).values(state=state.value))


def named(database, clock, settings) -> dict:
    """Kind and flavour -> last number of what a new result of it replaces."""
    with database.write() as connection:
        request = request_of(connection, settings, queued(connection, clock(), 1), clock())
    return {what: [uid.rpartition(".")[2] for *_, uid in found] for what, found in request.replaces.items()}


BOTH = [output(REPORT, BINARY, 1), output(REPORT, LABELMAP, 2), output(MARKS, ANY, 3), output(PHASES, ANY, 4)]


def test_each_flavour_replaces_its_own(database, clock, tmp_path):
    earlier(database, clock, BOTH, {("ONE", "1"), ("ONE", "3"), ("TWO", "2"), ("TWO", "3"), ("TWO", "4")})
    found = named(database, clock, config(tmp_path))
    assert found[REPORT, BINARY] == ["1"] and found[REPORT, LABELMAP] == ["2"]
    assert found[REPORT, ANY] == ["1", "2"], "a report for all of them replaces both"
    assert found[MARKS, ANY] == ["3"] and found[PHASES, ANY] == ["4"]


@pytest.mark.parametrize(
    ("made", "sent"),
    [
        ([output(REPORT, BINARY, 1)], {("ONE", "1"), ("TWO", "1")}),  # the profile was changed since
        (BOTH, {("ONE", "1"), ("TWO", "1")}),  # it refused the label map
        ([output(REPORT, ANY, 1)], {("ONE", "1"), ("TWO", "1")}),  # a negative has one flavour
    ],
)
def test_a_destination_that_has_another_flavour_has_that_replaced(database, clock, tmp_path, made, sent):
    earlier(database, clock, made, sent)
    found = named(database, clock, config(tmp_path))
    assert found[REPORT, BINARY] == ["1"] and found[REPORT, LABELMAP] == ["1"]


def test_what_never_arrived_is_not_replaced(database, clock, tmp_path):
    earlier(database, clock, BOTH, {("ONE", "1")})
    found = named(database, clock, config(tmp_path))
    assert found[MARKS, ANY] == [] and found[REPORT, ANY] == ["1"]


def test_the_reports_say_so(tmp_path):
    source = load(factories.write_series(tmp_path, factories.ct_series(4)))
    replaces = {
        (REPORT, BINARY): [("1.2", "1.2.8.1", SR3D, "1.2.9.1")],
        (REPORT, LABELMAP): [("1.2", "1.2.8.2", SR3D, "1.2.9.2")],
    }
    context, result = phantoms.context(revision=2), phantoms.bleeding(source.images)
    objects = encode_result(source, result, context, kinds=[REPORT], labelmap=True, replaces=replaces)
    seen = {}
    for one in objects:
        if one.kind is REPORT:
            (study,) = one.dataset.PredecessorDocumentsSequence
            (item,) = study.ReferencedSeriesSequence[0].ReferencedSOPSequence
            seen[one.flavour] = item.ReferencedSOPInstanceUID
    assert seen == {BINARY: "1.2.9.1", LABELMAP: "1.2.9.2"}
