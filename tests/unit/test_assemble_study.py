"""A rule of a whole study makes one job over its series, once the study is quiet, and another one when more comes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from sqlalchemy import update

from dicomnode.dispatch import notify_webhook
from dicomnode.domain import JobState, SeriesState
from dicomnode.execute.request import input_paths
from dicomnode.housekeep import Housekeeper
from dicomnode.store import instances, jobs, outputs, revisions, schema
from tests import cine, factories
from tests.unit.test_assemble import CT_RULE, Site
from tests.unit.test_notify_hl7 import message

RULE = {
    "name": "cine",
    "when": {"Modality": "MR", "series.phases": {"min": 8}},
    "pipeline": "shift",
    "send_to": ["PACS"],
    "scope": "study",
}
FOUND = cine.series_per_slice(6, 8, step=9.0)
SLICES = [FOUND[index::6] for index in range(6)]
SCOUT = factories.mr_series(3, series="scout", step=10.0)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    made: list[Site] = []

    def make(**sections: Any) -> Site:
        made.append(Site(tmp_path / str(len(made)), **({"rules": [RULE]} | sections)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def uids(*groups: list[Dataset]) -> list[str]:
    return sorted(str(ds.SOPInstanceUID) for group in groups for ds in group)


def wait(node: Site, seconds: float) -> None:
    """Let time pass and look as often as the node would."""
    for _ in range(int(seconds)):
        node.clock.advance(1)
        node.sweep()


def test_one_job_over_all_matching_series_once_the_study_is_quiet(site: Callable[..., Site]) -> None:
    node = site()
    for group in (*SLICES, SCOUT):
        node.send(group)
        wait(node, 20)
    assert node.jobs() == []
    assert node.get(SLICES[0]).state is SeriesState.COMPLETE
    assert node.get(SCOUT).state is SeriesState.UNROUTED  # no rule of the study wants it: it waits for nobody
    wait(node, 45)
    (job,) = node.jobs()
    assert job.inputs == uids(*SLICES)
    assert job.series_uid == job.study_uid
    assert (job.revision, job.rule) == (0, "cine")
    assert job.completion.startswith("study quiet for 60 s, 6 series match; ")
    assert {node.get(group).state for group in SLICES} == {SeriesState.ROUTED}
    with node.database.read() as connection:
        paths = input_paths(connection, job, node.spool)
    assert sorted(path.stem for path in paths) == job.inputs


def test_any_order_of_series_gives_the_same_job(site: Callable[..., Site]) -> None:
    keys = set()
    for order in ([0, 1, 2, 3, 4, 5], [5, 2, 0, 1, 4, 3]):
        node = site()
        for index in order:
            node.send(SLICES[index])
        wait(node, 70)
        keys |= {job.key for job in node.jobs()}
    assert len(keys) == 1


def test_while_a_series_is_still_coming_its_study_waits(site: Callable[..., Site]) -> None:
    node = site()
    for group in SLICES[:5]:
        node.send(group)
    node.send(SLICES[5][:3], end=None)  # its association stays open, and nothing proves that it is whole
    wait(node, 9)
    assert node.get(SLICES[5]).state in {SeriesState.RECEIVING, SeriesState.ASSEMBLING}
    node.clock.advance(60)
    node.assembler._router.route(node.get(SLICES[0]))
    assert node.jobs() == []
    node.send(SLICES[5][3:])
    wait(node, 75)
    (job,) = node.jobs()
    assert job.inputs == uids(*SLICES)


def test_a_late_series_makes_a_new_revision_that_sets_the_first_job_aside(site: Callable[..., Site]) -> None:
    node = site()
    for group in SLICES[:5]:
        node.send(group)
    wait(node, 70)
    (first,) = node.jobs()
    node.send(SLICES[5])
    wait(node, 70)
    by_revision = sorted(node.jobs(), key=lambda job: job.revision)
    assert [job.revision for job in by_revision] == [0, 1]
    assert by_revision[0].id == first.id
    assert [job.state for job in by_revision] == [JobState.SUPERSEDED, JobState.QUEUED]
    assert by_revision[1].inputs == uids(*SLICES)
    with node.database.read() as connection:
        assert revisions.predecessor(connection, by_revision[1]) is None  # nothing of the first was sent


def test_a_late_image_of_one_series_makes_a_new_revision_of_the_study(site: Callable[..., Site]) -> None:
    node = site()
    for group in SLICES[:5]:
        node.send(group)
    node.send(SLICES[5][:-1] + SLICES[5][-1:][:0])
    wait(node, 90)
    node.send(SLICES[5][-1:])
    wait(node, 90)
    newest = max(node.jobs(), key=lambda job: job.revision)
    assert newest.revision == 1
    assert newest.inputs == uids(*SLICES)


def test_rules_of_a_series_go_on_beside_one_of_the_study(site: Callable[..., Site]) -> None:
    each = {"name": "each", "when": {"Modality": "MR"}, "pipeline": "shift", "send_to": ["PACS"]}
    node = site(rules=[RULE, each, CT_RULE])
    for group in (*SLICES, SCOUT):
        node.send(group)
    wait(node, 30)
    assert [job.series_uid for job in node.jobs()] == [str(SCOUT[0].SeriesInstanceUID)]
    wait(node, 60)
    found = node.jobs()
    assert sorted(job.rule for job in found) == ["cine", *["each"] * 7]
    assert {job.series_uid for job in found if job.rule == "each"} == {
        str(group[0].SeriesInstanceUID) for group in (*SLICES, SCOUT)
    }


def test_two_rules_of_a_study_make_two_jobs_and_equal_ones_share_one(site: Callable[..., Site]) -> None:
    rules = [RULE, {**RULE, "name": "same", "send_to": ["SECOND"]}, {**RULE, "name": "other", "pipeline": "other"}]
    node = site(rules=rules)
    for group in SLICES:
        node.send(group)
    wait(node, 75)
    assert sorted((job.rule, *job.send_to) for job in node.jobs()) == [
        ("cine + same", "PACS", "SECOND"), ("other", "PACS"),
    ]  # fmt: skip
    assert {job.revision for job in node.jobs()} == {0}


def test_a_restart_while_the_study_is_awaited_loses_nothing(site: Callable[..., Site]) -> None:
    node = site()
    for group in SLICES:
        node.send(group)
    wait(node, 30)
    node.restart()
    wait(node, 40)
    (job,) = node.jobs()
    assert job.inputs == uids(*SLICES)


def test_two_patients_in_a_study_stop_it(site: Callable[..., Site]) -> None:
    node = site()
    for group in SLICES[:5]:
        node.send(group)
    node.patient = "somebody else"
    node.send(SLICES[5])
    wait(node, 75)
    assert node.jobs() == []
    assert {node.get(group).state for group in SLICES} == {SeriesState.REJECTED}


def test_results_of_the_node_are_no_part_of_a_study(site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch) -> None:
    own = str(SLICES[2][0].SeriesInstanceUID)
    monkeypatch.setattr(outputs, "is_own_result", lambda _, series_uid: series_uid == own)
    node = site()
    for group in SLICES:
        node.send(group)
    wait(node, 75)
    (job,) = node.jobs()
    assert job.inputs == uids(*SLICES[:2], *SLICES[3:])
    assert node.get(SLICES[2]).state is SeriesState.UNROUTED


def test_images_are_kept_while_the_job_of_their_study_is_open(site: Callable[..., Site]) -> None:
    node = site()
    for group in SLICES:
        node.send(group)
    wait(node, 75)
    (job,) = node.jobs()
    later = node.clock() + timedelta(days=400)
    keeper = Housekeeper(node.config, node.database, echo=lambda _: "", clock=lambda: later)
    keeper.retain()
    assert len(list(node.spool.glob("*.dcm"))) == len(job.inputs)
    with node.database.write() as connection:
        jobs.move(connection, job, JobState.CANCELLED, finished_at=node.clock().timestamp())
    keeper.retain()
    assert not list(node.spool.glob("*.dcm"))


def test_a_part_never_replaces_the_whole(site: Callable[..., Site]) -> None:
    node = site()
    for group in SLICES[:5]:
        node.send(group)
    wait(node, 70)
    (job,) = node.jobs()
    with node.database.write() as connection:
        jobs.move(connection, job, JobState.CANCELLED, finished_at=node.clock().timestamp())
    node.clock.advance(400 * 86400)
    Housekeeper(node.config, node.database, echo=lambda _: "", clock=node.clock).retain()
    node.send(SLICES[5])
    wait(node, 75)
    assert [one.id for one in node.jobs()] == [job.id]


def test_an_announcement_of_a_study_names_no_one_series() -> None:
    of_series = message()
    one = of_series.notification
    of_study = replace(of_series, notification=replace(one, series_uid=one.study_uid))
    said = [json.loads(notify_webhook.render(each)) for each in (of_series, of_study)]
    assert [each["study_instance_uid"] for each in said] == ["1.2", "1.2"]
    assert [each["series_instance_uid"] for each in said] == ["1.3", None]


@pytest.mark.parametrize("ended", [JobState.DEAD, JobState.UNSUITABLE])
def test_a_job_without_a_result_keeps_no_later_series_from_being_computed(
    site: Callable[..., Site], ended: JobState
) -> None:
    node = site()
    for group in SLICES[:5]:
        node.send(group)
    wait(node, 70)
    end(node, ended)
    wait(node, 70)
    assert [job.state for job in node.jobs()] == [ended], "the same input does not run again by itself"
    node.send(SLICES[5])
    wait(node, 70)
    first, second = sorted(node.jobs(), key=lambda job: job.id)
    assert [first.state, second.state] == [JobState.SUPERSEDED, JobState.QUEUED]
    assert second.inputs == uids(*SLICES)


@pytest.mark.parametrize("ended", [JobState.DEAD, JobState.UNSUITABLE])
def test_a_series_that_comes_again_after_a_job_without_a_result_makes_one(
    site: Callable[..., Site], ended: JobState
) -> None:
    """So it is where an image was damaged, or the images were past their retention: "send it again" must help."""
    node = site()
    for group in SLICES:
        node.send(group)
    wait(node, 70)
    (before,) = node.jobs()
    end(node, ended)
    send_again(node, SLICES[5])
    wait(node, 70)
    first, second = sorted(node.jobs(), key=lambda job: job.id)
    assert [first.state, second.state] == [JobState.SUPERSEDED, JobState.QUEUED]
    assert (second.key, second.revision) == (before.key, 1)
    end(node, JobState.CLOSED)
    send_again(node, SLICES[5])
    wait(node, 70)
    assert len(node.jobs()) == 2, "what has a result is not computed again"


def end(node: Site, to: JobState) -> None:
    """End the newest job so."""
    newest = max(node.jobs(), key=lambda job: job.id)
    with node.database.write() as connection:
        connection.execute(update(schema.job).where(schema.job.c.id == newest.id).values(state=to.value))


def send_again(node: Site, group: list[Dataset]) -> None:
    """Send what is not kept any more."""
    with node.database.write() as connection:
        instances.forget(connection, uids(group))
    node.send(group)
