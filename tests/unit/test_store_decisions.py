"""An operator has a series decided again, or its images forgotten: no two results stand side by side, none is stuck."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydicom import Dataset
from sqlalchemy import update

from dicomnode.assemble.assembler import Assembler
from dicomnode.cli import main
from dicomnode.config import Config
from dicomnode.domain import DeliveryState, JobState, Output, SeriesState
from dicomnode.errors import StoreError
from dicomnode.store import decisions, instances, jobs, notifications, pipelines, revisions, schema, series
from tests import factories
from tests.peers.found import ABSENT
from tests.unit.test_assemble import CT_RULE, ONE, TWO, Site
from tests.unit.test_assemble_study import RULE, SLICES, end, uids, wait
from tests.unit.test_assemble_study import site as site
from tests.unit.test_store_notifications import BLEED, HOOKS, tell


def delivered(node: Site, findings: Sequence[dict[str, Any]] = ()) -> jobs.Job:
    """The newest job with an object that its destination has."""
    job = max(node.jobs(), key=lambda one: one.id)
    table = schema.job
    with node.database.write() as connection:
        connection.execute(update(table).where(table.c.id == job.id).values(state=JobState.RUNNING.value))
        running = jobs.get(connection, job.id)
        assert running is not None
        one = Output(
            role="image", index=0, sop_class_uid="1", sop_instance_uid=f"2.25.{job.id}", study_uid=job.study_uid,
            series_uid=f"2.25.9{job.id}", path=Path(str(job.id), "a", "0.dcm"), size=1, sha256="",
        )  # fmt: skip
        assert jobs.finish(connection, running, [one], node.clock(), quality={}, notes=[], findings=findings)
        notifications.announce(connection, running, findings, HOOKS.notify, node.clock())
        connection.execute(
            update(schema.delivery)
            .where(schema.delivery.c.job_id == job.id)
            .values(state=DeliveryState.DELIVERED.value)
        )
        connection.execute(update(table).where(table.c.id == job.id).values(state=JobState.CLOSED.value))
        found = jobs.get(connection, job.id)
    assert found is not None
    return found


def again(node: Site, group: Sequence[Dataset]) -> None:
    with node.database.write() as connection:
        decisions.decide_again(connection, str(group[0].SeriesInstanceUID), node.clock())


def discard(node: Site, group: Sequence[Dataset]) -> decisions.Discarded:
    with node.database.write() as connection:
        return decisions.discard(connection, node.spool, str(group[0].SeriesInstanceUID), HOOKS.notify, node.clock())


def changed(node: Site, **rule: object) -> None:
    """The node comes back with another rule."""
    document = node.config.model_dump(by_alias=True, exclude_unset=True)
    document["rules"] = [CT_RULE | rule]
    node.assembler.stop()
    node.config = Config.model_validate(document)
    node.assembler = Assembler(node.config, node.database, count=node._count, clock=node.clock)


def one_by_one(node: Site) -> list[jobs.Job]:
    return sorted(node.jobs(), key=lambda job: job.id)


def test_a_routed_series_decided_again_by_the_same_rules_keeps_its_result(site: Callable[..., Site]) -> None:
    node = site(rules=[CT_RULE])
    node.send(ONE)
    node.settle()
    before = delivered(node)
    node.clock.advance(60)
    again(node, ONE)
    node.settle()
    assert node.get(ONE).state is SeriesState.ROUTED
    assert [(job.id, job.state) for job in node.jobs()] == [(before.id, JobState.CLOSED)]


def test_what_an_operator_has_computed_again_names_what_it_replaces(site: Callable[..., Site]) -> None:
    """A corrected rule has other options: its result must not stand beside the old one as if both were meant."""
    node = site(rules=[CT_RULE])
    node.send(ONE)
    node.settle()
    before = delivered(node)
    changed(node, options={"strength": 2})
    again(node, ONE)
    node.settle()
    first, second = one_by_one(node)
    assert [first.state, second.state] == [JobState.SUPERSEDED, JobState.QUEUED]
    assert (first.revision, second.revision) == (0, 1)
    with node.database.read() as connection:
        replaced = revisions.predecessor(connection, second)
    assert replaced is not None and replaced.id == before.id


def test_what_another_rule_made_is_not_named_as_replaced(site: Callable[..., Site]) -> None:
    node = site(rules=[CT_RULE | {"name": "beside", "options": {"strength": 3}}])
    node.send(ONE)
    node.settle()
    delivered(node)
    changed(node, options={"strength": 2})
    again(node, ONE)
    node.settle()
    newest = one_by_one(node)[-1]
    with node.database.read() as connection:
        assert newest.rule == "ct" and revisions.predecessor(connection, newest) is None


def test_a_cancelled_job_does_not_run_beside_the_newer_one(site: Callable[..., Site]) -> None:
    node = site(rules=[CT_RULE])
    node.send(ONE[:3])
    node.settle()
    end(node, JobState.CANCELLED)
    node.send(ONE[3:])
    node.settle(60)
    first, second = one_by_one(node)
    assert [first.state, second.state] == [JobState.SUPERSEDED, JobState.QUEUED]
    with node.database.write() as connection, pytest.raises(StoreError, match=r"newer images.* --again"):
        jobs.retry(connection, first, node.clock())


def test_deciding_again_costs_the_sender_no_trust(site: Callable[..., Site]) -> None:
    node = site(rules=[CT_RULE])
    node.send(ONE)
    node.settle()
    again(node, ONE)
    with node.database.read() as connection:
        assert series.reopened(connection, "CT1", node.clock() - timedelta(days=1)) == 0
    node.settle()
    node.send([*TWO[:2]])
    node.settle()
    node.send(TWO[2:])
    with node.database.read() as connection:
        assert series.reopened(connection, "CT1", node.clock() - timedelta(days=1)) == 1


def test_a_series_without_images_cannot_be_decided_again(site: Callable[..., Site]) -> None:
    node = site(rules=[CT_RULE])
    node.send(ONE)
    node.settle()
    with node.database.write() as connection:
        instances.forget(connection, uids(ONE))
    with pytest.raises(StoreError, match="images are no longer kept; send it again"):
        again(node, ONE)
    node.send(TWO[:1], end=None)
    with pytest.raises(StoreError, match="receiving: it is decided when it is complete"):
        again(node, TWO)


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.RUNNING])
def test_images_that_a_job_is_about_to_read_are_not_discarded(site: Callable[..., Site], state: JobState) -> None:
    node = site(rules=[CT_RULE])
    node.send(ONE)
    node.settle()
    end(node, state)
    with pytest.raises(StoreError, match=f"which is {state}.*dicomnode jobs cancel 1"):
        discard(node, ONE)
    assert len(list(node.spool.iterdir())) == len(ONE)


def test_a_routed_series_is_discarded_and_replaced_once_it_comes_anew(site: Callable[..., Site]) -> None:
    """Its result has the wrong patient's name: the same images come again under the right one."""
    node = site(rules=[CT_RULE])
    node.send(ONE)
    node.settle()
    before = delivered(node)
    assert discard(node, ONE) == decisions.Discarded(images=len(ONE), results=[before.id], settled=[])
    assert not list(node.spool.iterdir()) and node.get(ONE).instances == 0
    node.patient = "corrected"
    node.send(ONE)
    node.settle(60)
    assert node.get(ONE).instances == len(ONE)
    first, second = one_by_one(node)
    assert [first.state, second.state] == [JobState.SUPERSEDED, JobState.QUEUED]
    with node.database.read() as connection:
        replaced = revisions.predecessor(connection, second)
    assert replaced is not None and replaced.id == before.id


@pytest.mark.parametrize("made", [False, True])
def test_what_a_conflict_withheld_is_computed_once_the_wrong_series_is_discarded(
    site: Callable[..., Site], made: bool
) -> None:
    """Whether its job had waited, or its objects were on their way."""
    node = site()
    for group in SLICES[:5]:
        node.send(group)
    wait(node, 70)
    if made:
        end(node, JobState.STORED)
    node.patient = "somebody else"
    node.send(SLICES[5])
    wait(node, 75)
    (withheld,) = node.jobs()
    assert withheld.state is (JobState.SUPERSEDED if made else JobState.CANCELLED)
    assert set(discard(node, SLICES[5]).settled) == {str(group[0].SeriesInstanceUID) for group in SLICES[:5]}
    wait(node, 70)
    first, second = one_by_one(node)
    assert [first.state, second.state] == [JobState.SUPERSEDED, JobState.QUEUED]
    assert second.inputs == uids(*SLICES[:5]) and second.key != withheld.key
    assert {node.get(group).state for group in SLICES[:5]} == {SeriesState.ROUTED}
    node.patient = "p"
    node.send(SLICES[5])
    wait(node, 70)
    assert max(node.jobs(), key=lambda job: job.id).inputs == uids(*SLICES)


def test_a_study_that_was_rejected_whole_makes_one_job_once_it_is_settled(site: Callable[..., Site]) -> None:
    node = site()
    for group in SLICES[:5]:
        node.send(group)
    node.patient = "somebody else"
    node.send(SLICES[5])
    wait(node, 75)
    assert node.jobs() == [] and node.get(SLICES[0]).state is SeriesState.REJECTED
    discard(node, SLICES[5])
    wait(node, 70)
    (job,) = node.jobs()
    assert job.inputs == uids(*SLICES[:5])


def test_what_was_delivered_before_a_conflict_stands_when_it_is_settled(site: Callable[..., Site]) -> None:
    node = site(rules=[CT_RULE])
    node.send(ONE)
    node.settle()
    before = delivered(node)
    node.patient = "q"
    node.send(TWO)
    node.settle()
    with node.database.write() as connection, pytest.raises(StoreError, match="several patient identities"):
        jobs.retry(connection, before, node.clock())
    discard(node, TWO)
    node.settle()
    assert node.get(ONE).state is SeriesState.ROUTED
    assert [(job.id, job.state) for job in node.jobs()] == [(before.id, JobState.CLOSED)]


def test_an_operator_says_it_on_the_command_line(
    site: Callable[..., Site], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = site(rules=[CT_RULE])
    file = tmp_path / "node.yaml"
    file.write_text(yaml.safe_dump(node.config.model_dump(mode="json", by_alias=True, exclude_unset=True)))
    node.send(ONE)
    node.settle()
    words = ["series", str(ONE[0].SeriesInstanceUID), "--config", str(file)]
    assert main([*words, "--discard"]) == 3
    assert "dicomnode jobs cancel 1" in capsys.readouterr().err
    assert main(["jobs", "cancel", "1", "--config", str(file)]) == 0
    node.patient = "q"
    node.send(TWO)
    node.settle()
    assert main([*words, "--discard"]) == 0
    shown = capsys.readouterr().out
    assert "4 images" in shown and f"decided again, series {TWO[0].SeriesInstanceUID}" in shown
    assert main([*words, "--again"]) == 3
    assert "send it again" in capsys.readouterr().err


def told(node: Site) -> list[tuple[str, int]]:
    """Send what is due: which kinds of message, with how many findings."""
    return [(one.kind.value, len(one.content["findings"])) for one in tell(node.database, node.clock)]


def with_a_bleed_told(site: Callable[..., Site]) -> Site:
    """The first series has a result, and somebody was told of it."""
    node = site(rules=[CT_RULE])
    node.send(ONE)
    node.settle()
    delivered(node, BLEED)
    assert told(node) == [("positive", 2)]
    return node


def test_what_was_found_on_discarded_images_is_taken_back_and_never_said_of_the_other_patient(
    site: Callable[..., Site],
) -> None:
    """The first series carried the wrong name: nothing of it may be told when the other one has a result."""
    node = with_a_bleed_told(site)
    node.patient = "q"
    node.send(TWO)
    node.settle()
    assert told(node) == [("retraction", 0)]
    assert discard(node, ONE).settled == [str(TWO[0].SeriesInstanceUID)]
    node.settle()
    delivered(node, [ABSENT])
    assert told(node) == []


def test_what_stands_after_a_conflict_is_told_again(site: Callable[..., Site]) -> None:
    node = site(rules=[CT_RULE])
    node.send(ONE)
    node.settle()
    delivered(node, BLEED)
    node.patient = "q"
    node.send(TWO)
    assert told(node) == [("positive", 2)]
    node.settle()
    assert told(node) == [("retraction", 0)]
    discard(node, TWO)
    assert told(node) == [("correction", 2)]
    node.settle()
    assert told(node) == []


def test_discarding_one_series_takes_back_nothing_that_another_one_shows_too(site: Callable[..., Site]) -> None:
    node = site(rules=[CT_RULE])
    for group in (ONE, TWO):
        node.send(group)
        node.settle()
        delivered(node, BLEED)
    assert told(node) == [("positive", 2)]
    discard(node, ONE)
    assert told(node) == []
    discard(node, TWO)
    (last,) = tell(node.database, node.clock)
    assert last.kind is notifications.Kind.RETRACTION and "discarded" in last.content["reason"]


def unanswered(node: Site) -> None:
    """The next message is tried, and its receiver is down."""
    with node.database.write() as connection:
        one = notifications.claim(connection, "triage", node.clock())
        assert one is not None
        later = node.clock() + timedelta(minutes=30)
        notifications.postpone(connection, one, later, "connection refused", refused=False)


def test_a_positive_whose_receiver_is_down_is_still_sent_when_another_series_is_discarded(
    site: Callable[..., Site],
) -> None:
    node = site(rules=[CT_RULE])
    node.send(ONE)
    node.settle()
    delivered(node, BLEED)
    unanswered(node)
    node.send(TWO)
    node.settle()
    delivered(node, [ABSENT])
    discard(node, TWO)
    node.clock.advance(3600)
    assert told(node) == [("positive", 2)]


def test_what_a_conflict_took_back_in_vain_is_told_again_once_it_is_settled(site: Callable[..., Site]) -> None:
    """Nobody knows whether the first message came through: it is taken back from one patient, and said of the other."""
    node = site(rules=[CT_RULE])
    node.send(ONE)
    node.settle()
    delivered(node, BLEED)
    unanswered(node)
    node.patient = "q"
    node.send(TWO)
    node.settle()
    discard(node, TWO)
    node.clock.advance(3600)
    assert told(node) == [("retraction", 0), ("correction", 2)]


def test_a_finding_is_taken_back_from_the_wrong_patient_though_the_right_one_has_it(site: Callable[..., Site]) -> None:
    """The retraction has not gone out when the same images come with the corrected identity."""
    node = with_a_bleed_told(site)
    discard(node, ONE)
    node.patient = "corrected"
    node.send(ONE)
    node.settle(60)
    delivered(node, BLEED)
    assert told(node) == [("retraction", 0), ("correction", 2)]


def test_a_finding_on_images_past_their_retention_stands_when_another_series_is_discarded(
    site: Callable[..., Site],
) -> None:
    node = with_a_bleed_told(site)
    with node.database.write() as connection:
        instances.forget(connection, uids(ONE))
    node.send(TWO)
    node.settle()
    delivered(node, [ABSENT])
    discard(node, TWO)
    assert told(node) == []


def test_a_finding_whose_series_is_computed_anew_stands_when_another_one_is_discarded(
    site: Callable[..., Site],
) -> None:
    node = site(rules=[CT_RULE])
    node.send(ONE[:3])
    node.settle()
    delivered(node, BLEED)
    assert told(node) == [("positive", 2)]
    node.send(TWO)
    node.settle()
    delivered(node, [ABSENT])
    node.send(ONE[3:])
    node.settle(60)
    assert one_by_one(node)[-1].state is JobState.QUEUED
    discard(node, TWO)
    assert told(node) == []


def test_what_an_older_version_said_stands_when_another_series_is_discarded(site: Callable[..., Site]) -> None:
    node = site(rules=[CT_RULE])
    node.send(ONE)
    node.settle()
    delivered(node, BLEED)
    with node.database.write() as connection:
        known = pipelines.described(connection).values()
        pipelines.describe(connection, [replace(info, version="2") for info in known], node.clock())
    again(node, ONE)
    node.settle(60)
    delivered(node, BLEED)
    assert told(node) == [("positive", 2), ("positive", 2)]  # of either version
    node.send(TWO)
    node.settle(60)
    delivered(node, [ABSENT])
    discard(node, TWO)
    assert told(node) == []


def overtaken(node: Site, monkeypatch: pytest.MonkeyPatch, gone: Sequence[Dataset]) -> None:
    """``gone`` is discarded while the router decides about the next series: after its look, before it writes."""
    router, done = node.assembler._router, list[decisions.Discarded]()
    decide = router._of_study

    def then(*one: Any) -> list[jobs.NewJob]:
        found = decide(*one)
        if not done:
            done.append(discard(node, gone))
        return found

    monkeypatch.setattr(router, "_of_study", then)


def test_a_router_that_saw_a_conflict_does_not_bring_it_back(
    site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = site(rules=[CT_RULE])
    node.send(ONE)
    node.settle()
    delivered(node, BLEED)
    node.patient = "q"
    node.send(TWO)
    node.settle()
    node.patient = "p"
    third = factories.ct_series(n=3, series="three", seed=5)
    node.send(third)
    overtaken(node, monkeypatch, TWO)
    node.settle()
    assert {node.get(group).state for group in (ONE, third)} == {SeriesState.ROUTED}
    assert told(node) == [("positive", 2)]


def test_a_study_job_reads_no_images_that_were_discarded_meanwhile(
    site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = site(rules=[RULE])
    for group in SLICES:
        node.send(group)
    overtaken(node, monkeypatch, SLICES[5])
    wait(node, 75)
    assert [job.inputs for job in node.jobs()] == [uids(*SLICES[:5])]


def test_a_discard_that_fails_leaves_the_images(site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch) -> None:
    node = site(rules=[CT_RULE])
    node.send(ONE)
    node.settle()
    delivered(node)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(instances, "forget", fail)
        with pytest.raises(OSError, match="disk full"):
            discard(node, ONE)
    assert len(list(node.spool.iterdir())) == node.get(ONE).instances == len(ONE)
    assert discard(node, ONE).images == len(ONE)


def test_a_series_whose_files_are_gone_says_so_and_comes_anew(site: Callable[..., Site]) -> None:
    """A discard was interrupted before its commit, or an image was answered as known while it ran."""
    node = site(rules=[CT_RULE])
    node.send(ONE)
    node.settle()
    delivered(node)
    for file in node.spool.iterdir():
        file.unlink()
    again(node, ONE)
    node.settle()
    found = node.get(ONE)
    assert found.state is SeriesState.REJECTED and "the files of series" in found.reason and "--discard" in found.reason
    discard(node, ONE)
    node.send(ONE)
    node.settle(60)
    assert node.get(ONE).state is SeriesState.ROUTED
    assert one_by_one(node)[-1].state is JobState.QUEUED


def test_a_complete_series_is_discarded_before_it_is_routed(site: Callable[..., Site]) -> None:
    node = site(rules=[RULE])
    for group in SLICES:
        node.send(group)
    wait(node, 30)
    assert node.get(SLICES[0]).state is SeriesState.COMPLETE
    discard(node, SLICES[0])
    wait(node, 45)
    (job,) = node.jobs()
    assert job.inputs == uids(*SLICES[1:])
    node.send(SLICES[0])
    wait(node, 70)
    assert one_by_one(node)[-1].inputs == uids(*SLICES)


@pytest.mark.parametrize("state", [JobState.CANCELLED, JobState.REJECTED, JobState.DEAD])
def test_images_that_come_anew_are_computed_however_the_job_before_ended(
    site: Callable[..., Site], state: JobState
) -> None:
    """Corrected images have the UIDs and the patient of those that were wrong: the same input, by its key."""
    node = site(rules=[CT_RULE])
    node.send(ONE)
    node.settle()
    end(node, state)
    discard(node, ONE)
    node.send(ONE)
    node.settle(60)
    first, second = one_by_one(node)
    assert first.state is (state if state is JobState.REJECTED else JobState.SUPERSEDED)
    assert second.state is JobState.QUEUED and second.key != first.key


@pytest.mark.parametrize("state", [JobState.CLOSED, JobState.CANCELLED, JobState.DEAD])
def test_a_study_goes_on_without_the_series_that_was_discarded(site: Callable[..., Site], state: JobState) -> None:
    node = site(rules=[RULE])
    for group in SLICES:
        node.send(group)
    wait(node, 70)
    end(node, state)
    assert len(discard(node, SLICES[5]).settled) == 5
    wait(node, 75)
    first, second = one_by_one(node)
    assert [first.state, second.state] == [JobState.SUPERSEDED, JobState.QUEUED]
    assert second.inputs == uids(*SLICES[:5])
    node.send(SLICES[5])
    wait(node, 75)
    assert one_by_one(node)[-1].inputs == uids(*SLICES)


def test_every_series_of_a_study_can_be_discarded_one_after_the_other(site: Callable[..., Site]) -> None:
    node = site(rules=[RULE])
    for group in SLICES:
        node.send(group)
    wait(node, 70)
    delivered(node)
    assert [len(discard(node, group).results) for group in SLICES] == [1, 0, 0, 0, 0, 0]
    wait(node, 75)
    assert len(node.jobs()) == 1 and not list(node.spool.iterdir())


def test_a_discarded_series_may_come_back_with_fewer_images(site: Callable[..., Site]) -> None:
    node = site(rules=[CT_RULE])
    node.send(ONE)
    node.settle()
    delivered(node)
    discard(node, ONE)
    node.send(ONE[:3])
    node.settle(60)
    assert node.get(ONE).state is SeriesState.ROUTED
    assert one_by_one(node)[-1].inputs == uids(ONE[:3])


def test_a_corrected_rule_makes_a_study_job_of_fewer_series(site: Callable[..., Site]) -> None:
    """Images that are kept are not gone because the rule does not want them any more."""
    node = site(rules=[RULE])
    for group in SLICES:
        node.send(group)
    wait(node, 70)
    delivered(node)
    unwanted = str(SLICES[5][0].SeriesInstanceUID)
    changed(node, **RULE | {"when": RULE["when"] | {"SeriesInstanceUID": {"not": unwanted}}})
    for group in SLICES:
        again(node, group)
    wait(node, 75)
    assert one_by_one(node)[-1].inputs == uids(*SLICES[:5])
