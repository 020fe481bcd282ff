"""Which messages a study's results call for: at most one positive, true at the end, in any order of events."""

from __future__ import annotations

import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from dicomnode.store import events, notifications, revisions, schema
from dicomnode.store.notifications import Kind, State
from dicomnode.store.pipelines import PipelineInfo, describe
from tests.peers.found import ABSENT, EPIDURAL, HEMORRHAGE, SUBDURAL, ended, finding, hooks
from tests.peers.results import open_migrated

HOOKS = hooks(triage={"kind": "webhook", "url": "https://x.example/", "secret_file": "/none"})
BLEED = [finding(), finding(SUBDURAL, urgency=None)]


def rows(database, study="1.2"):
    with database.read() as connection:
        return notifications.of_study(connection, study)


def kinds(database):
    return [one.kind.value for one in rows(database) if one.state is not State.SUPPRESSED]


def tell(database, clock, hook="triage"):
    """Send what is due, as a lane does."""
    told = []
    while True:
        with database.write() as connection:
            one = notifications.claim(connection, hook, clock())
            if one is None:
                return told
            notifications.sent(connection, one, clock())
            told.append(one)


def codes(one, part="findings"):
    return [found["code"][0] for found in one.content[part]]


def test_a_positive_urgent_finding_is_announced_with_what_else_is_present(database, clock):
    job_id = ended(database, HOOKS, [*BLEED, finding(EPIDURAL, "absent", None)], clock())
    (one,) = rows(database)
    assert (one.kind, one.state, one.sequence, one.job_id) == (Kind.POSITIVE, State.PENDING, 0, job_id)
    assert codes(one) == [HEMORRHAGE[0], SUBDURAL[0]] and one.content["retracted"] == []
    assert len(one.key) == 20 and one.key.isalnum()
    with database.read() as connection:
        assert "notification_queued" in [event.action for event in events.of(connection, job_id=job_id)]


@pytest.mark.parametrize(
    "findings", [[], [ABSENT], [finding(presence="undetermined")], [finding(urgency=None)], [finding(urgency="days")]]
)
def test_nothing_that_is_not_positive_and_urgent_is_announced(database, clock, findings):
    ended(database, HOOKS, findings, clock())
    assert rows(database) == []


def test_a_hook_may_ask_for_less_urgent_findings(database, clock):
    config = hooks(
        slow={"kind": "hl7", "host": "127.0.0.1", "urgency": ["days"]}, fast={"kind": "hl7", "host": "127.0.0.1"}
    )
    ended(database, config, [finding(urgency="days")], clock())
    assert [one.hook for one in rows(database)] == ["slow"]


def test_a_second_series_of_the_study_with_the_same_finding_is_told_once(database, clock):
    ended(database, HOOKS, BLEED, clock())
    ended(database, HOOKS, BLEED, clock(), series="1.2.4")
    ended(database, HOOKS, [ABSENT], clock(), series="1.2.5")
    assert kinds(database) == ["positive"]


def test_a_newer_revision_without_the_finding_retracts_it(database, clock):
    ended(database, HOOKS, BLEED, clock())
    (first,) = tell(database, clock)
    ended(database, HOOKS, [ABSENT], clock(), revision=1)
    (second,) = tell(database, clock)
    assert second.kind is Kind.RETRACTION and second.content["replaces"] == first.key != second.key
    assert second.content["findings"] == []
    assert [(one["code"][0], one["presence"]) for one in second.content["retracted"]] == [
        (HEMORRHAGE[0], "absent"), (SUBDURAL[0], "undetermined")
    ]  # fmt: skip
    assert second.content["retracted"][0]["probability"] is None
    ended(database, HOOKS, BLEED, clock(), revision=2)
    assert kinds(database) == ["positive", "retraction", "correction"], "never a second positive"


def test_an_unsuitable_newer_revision_retracts_too(database, clock):
    ended(database, HOOKS, BLEED, clock())
    tell(database, clock)
    ended(database, HOOKS, None, clock(), revision=1, state="unsuitable")
    ended(database, HOOKS, [ABSENT], clock(), series="1.2.4")
    assert kinds(database) == ["positive", "retraction"], "and the older revision does not come back"


def test_a_newer_revision_that_another_rule_took_retracts_too(database, clock):
    old = ended(database, HOOKS, BLEED, clock(), rule="head")
    tell(database, clock)
    with database.write() as connection:
        revisions.supersede(connection, "1.2.3", 1, clock())
    ended(database, HOOKS, [ABSENT], clock(), revision=1, rule="thin head")
    assert [one.kind for one in tell(database, clock)] == [Kind.RETRACTION], f"job {old} is superseded"


def test_what_a_superseded_job_found_stands_until_its_own_rule_has_looked_again(database, clock):
    ended(database, HOOKS, BLEED, clock(), rule="head")
    tell(database, clock)
    with database.write() as connection:
        revisions.supersede(connection, "1.2.3", 1, clock())
    ended(database, HOOKS, None, clock(), revision=1, rule="head", state="queued")
    ended(database, HOOKS, [ABSENT], clock(), revision=1, rule="thin head")
    assert tell(database, clock) == []


def test_the_finding_of_another_series_still_stands(database, clock):
    ended(database, HOOKS, BLEED, clock())
    ended(database, HOOKS, [finding()], clock(), series="1.2.4")
    tell(database, clock)
    ended(database, HOOKS, [ABSENT], clock(), revision=1)
    (last,) = tell(database, clock)
    assert last.kind is Kind.CORRECTION
    assert codes(last) == [HEMORRHAGE[0]] and codes(last, "retracted") == [SUBDURAL[0]]


@pytest.mark.parametrize(
    ("newer", "wanted"),
    [
        (BLEED, []),
        ([finding(probability=0.5), finding(SUBDURAL, urgency=None)], []),
        ([*BLEED, finding(EPIDURAL, urgency=None)], []),
        ([*BLEED, finding(EPIDURAL)], ["correction"]),
        ([finding()], ["correction"]),
        ([finding(urgency="hours"), finding(SUBDURAL, urgency=None)], ["correction"]),
    ],
)
def test_a_correction_goes_where_something_said_is_wrong_or_something_urgent_unsaid(database, clock, newer, wanted):
    ended(database, HOOKS, BLEED, clock())
    tell(database, clock)
    ended(database, HOOKS, newer, clock(), revision=1)
    assert [one.kind.value for one in tell(database, clock)] == wanted


def test_what_nobody_has_got_is_not_taken_back(database, clock):
    ended(database, HOOKS, BLEED, clock())
    ended(database, HOOKS, [ABSENT], clock(), revision=1)
    assert [one.state for one in rows(database)] == [State.SUPPRESSED]
    ended(database, HOOKS, [finding()], clock(), revision=2)
    assert [(one.kind, one.sequence) for one in tell(database, clock)] == [(Kind.POSITIVE, 1)]


def test_what_somebody_may_have_got_is_taken_back_after_it(database, clock):
    ended(database, HOOKS, BLEED, clock())
    with database.write() as connection:
        tried = notifications.claim(connection, "triage", clock())
        notifications.postpone(connection, tried, clock.now.replace(year=2027), "no answer", refused=False)
    ended(database, HOOKS, [ABSENT], clock(), revision=1)
    assert kinds(database) == ["positive", "retraction"]
    assert tell(database, clock) == [], "a retraction does not overtake what it retracts"
    with database.read() as connection:
        later = notifications.next_due(connection, "triage")
    assert later is not None and later.year == 2027, "else the lane asks a hundred times a second"
    clock.now = clock.now.replace(year=2028)
    assert [one.kind for one in tell(database, clock)] == [Kind.POSITIVE, Kind.RETRACTION]


def test_a_newer_version_speaks_for_itself_and_takes_back_what_it_no_longer_sees(database, clock):
    ended(database, HOOKS, BLEED, clock())
    tell(database, clock)
    ended(database, HOOKS, [finding()], clock(), revision=1, version="2.0")
    told = {one.version: one for one in tell(database, clock)}
    assert told["2.0"].kind is Kind.POSITIVE
    assert told["1.0"].kind is Kind.RETRACTION or codes(told["1.0"]) == [HEMORRHAGE[0]]
    ended(database, HOOKS, [ABSENT], clock(), revision=2, version="2.0")
    assert {one.version: one.kind for one in tell(database, clock)} == {
        "1.0": Kind.RETRACTION, "2.0": Kind.RETRACTION
    }  # fmt: skip


def test_two_pipelines_of_one_algorithm_are_one_voice(database, clock):
    infos = [
        PipelineInfo(
            name=name,
            class_name="a:B",
            algorithm="hemorrhage",
            version="1.0",
            weights_digest="",
            accepts_incomplete=False,
        )
        for name in ("ich", "ich_thin")
    ]
    with database.write() as connection:
        describe(connection, infos, clock())
    ended(database, HOOKS, BLEED, clock())
    ended(database, HOOKS, BLEED, clock(), pipeline="ich_thin")
    (one,) = rows(database)
    assert one.algorithm == "hemorrhage"


def test_a_hook_without_rows_and_an_empty_configuration_cost_nothing(database, clock):
    ended(database, hooks(), BLEED, clock())
    with database.read() as connection:
        assert connection.execute(select(schema.notification)).first() is None


def test_nothing_of_the_patient_is_in_the_table(database, clock):
    ended(database, HOOKS, BLEED, clock())
    assert set(rows(database)[0].content) == {"findings", "retracted", "replaces"}
    assert set(json.loads(json.dumps(rows(database)[0].content))["findings"][0]) == set(BLEED[0])


FINDINGS = st.lists(
    st.builds(
        finding,
        st.sampled_from([HEMORRHAGE, SUBDURAL, EPIDURAL]),
        st.sampled_from(["present", "present", "absent", "undetermined"]),
        st.sampled_from(["minutes", "hours", None]),
    ),
    max_size=3,
    unique_by=lambda one: one["code"][0],
)


@settings(max_examples=60, deadline=None)
@given(st.lists(FINDINGS, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_any_order_of_revisions_ends_in_a_true_last_message(revisions, random):
    order = list(range(len(revisions)))
    random.shuffle(order)
    at = datetime(2026, 1, 1, tzinfo=UTC)
    with tempfile.TemporaryDirectory() as folder:
        database = open_migrated(Path(folder))
        told = []
        for number in order:
            ended(database, HOOKS, revisions[number], at, revision=number)
            if random.random() < 0.5:
                told += tell(database, lambda: at)
        told += tell(database, lambda: at)
        every = rows(database)
        database.close()
    present = {one["code"][0]: one["urgency"] for one in revisions[-1] if one["presence"] == "present"}
    urgent = {code for code, urgency in present.items() if urgency}
    said = {one["code"][0]: one["urgency"] for one in told[-1].content["findings"]} if told else {}
    assert said.items() <= present.items(), "nothing is said that does not hold"
    assert urgent <= set(said), "nothing urgent is unsaid"
    assert bool(said) == bool(urgent)
    assert [one.kind for one in told].count(Kind.POSITIVE) == min(len(told), 1)
    assert [one.sequence for one in told] == sorted({one.sequence for one in told})
    assert len({one.key for one in every}) == len(every)
