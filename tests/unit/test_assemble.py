"""Assembly and routing against a real store: the same jobs whatever the order of arrival, and every decision kept."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from sqlalchemy import update

from dicomnode import config
from dicomnode.assemble.assembler import Assembler
from dicomnode.cli.route import _header
from dicomnode.domain import Association, AssociationEnd, Completion, Instance, JobState, SeriesState
from dicomnode.store import events, instances, jobs, pipelines, schema, series
from dicomnode.store.db import Database, migrate, open_database
from dicomnode.store.pipelines import PipelineInfo
from tests import factories
from tests.conftest import Clock

CT_RULE = {"name": "ct", "when": {"Modality": "CT"}, "pipeline": "shift", "send_to": ["PACS"]}
ONE = factories.ct_series(n=4)
TWO = factories.ct_series(n=3, series="two", seed=2)
MR = factories.mr_series(n=3)
EVERYTHING = [*ONE, *TWO, *MR]


class Site:
    """A store with a spool, and an assembler whose clock moves only when told."""

    def __init__(self, folder: Path, rules: Sequence[dict[str, Any]] = (CT_RULE,), **sections: Any) -> None:
        self.config = config.Config.model_validate({
            "node": {"data": str(folder)}, "rules": list(rules),
            "pipelines": {"shift": {"class": "tests.toys:Shift"}, "other": {"class": "tests.toys:Picky"}},
            "destinations": {name: {"ae_title": name, "host": "127.0.0.1"} for name in ("PACS", "SECOND")}, **sections,
        })  # fmt: skip
        self.database: Database = open_database("sqlite", folder)
        migrate(self.database)
        self.clock = Clock()
        self.counted: dict[str, int] = {}
        self.assembler = Assembler(self.config, self.database, count=self._count, clock=self.clock)
        self.spool = folder / "spool"
        self.spool.mkdir()
        self.associations = 0
        self.patient = "p"
        with self.database.write() as connection:
            pipelines.describe(connection, [
                PipelineInfo(name=name, class_name="c", algorithm=name, version="1", weights_digest="",
                             accepts_incomplete=True) for name in ("shift", "other")
            ], self.clock())  # fmt: skip

    def _count(self, _query: object, _study: str, series_uid: str) -> int | None:
        return self.counted.get(series_uid)

    def restart(self) -> None:
        """A node that comes back knows only the table."""
        self.assembler.stop()
        self.assembler = Assembler(self.config, self.database, count=self._count, clock=self.clock)

    def close(self) -> None:
        self.assembler.stop()
        self.database.close()

    def send(self, datasets: Sequence[Dataset], *, end: AssociationEnd | None = AssociationEnd.RELEASED) -> int:
        """Store instances as one association would bring them."""
        self.associations += 1
        now = self.clock()
        with self.database.write() as connection:
            instances.open_association(connection, Association(
                id=self.associations, calling_ae="CT1", called_ae="A", address="127.0.0.1", opened_at=now,
            ))  # fmt: skip
            for dataset in datasets:
                instances.record(connection, [self._instance(dataset)])
            if end is not None:
                instances.close_association(connection, self.associations, end, now)
        return self.associations

    def _instance(self, dataset: Dataset) -> Instance:
        uid = str(dataset.SOPInstanceUID)
        if not (self.spool / f"{uid}.dcm").exists():
            dataset.save_as(self.spool / f"{uid}.dcm", enforce_file_format=True)
        return Instance(
            sop_instance_uid=uid, sop_class_uid=str(dataset.SOPClassUID), transfer_syntax_uid="1",
            study_uid=str(dataset.StudyInstanceUID), series_uid=str(dataset.SeriesInstanceUID), path=f"{uid}.dcm",
            size=1,
            received_at=self.clock(), association_id=self.associations, calling_ae="CT1", patient_key=self.patient,
            header=_header(dataset),
        )  # fmt: skip

    def settle(self, seconds: float = 30) -> None:
        """Let time pass as the sweep would see it."""
        for _ in range(4):
            self.sweep()
            self.clock.advance(seconds / 4)
        self.sweep()

    def sweep(self) -> None:
        """Look once, and again when the archive has answered."""
        self.assembler.sweep()
        for _, _, future in list(self.assembler._asked.values()):
            future.exception(timeout=10)
        self.assembler.sweep()

    def get(self, datasets: Sequence[Dataset]) -> series.Series:
        with self.database.read() as connection:
            found = series.get(connection, str(datasets[0].SeriesInstanceUID))
        assert found is not None
        return found

    def jobs(self) -> list[jobs.Job]:
        with self.database.read() as connection:
            return sorted(jobs.latest(connection, limit=1000), key=lambda job: job.key)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    made: list[Site] = []

    def make(**sections: Any) -> Site:
        made.append(Site(tmp_path / str(len(made)), **sections))
        return made[-1]

    yield make
    for one in made:
        one.close()


def keys_after(arrival: Sequence[int], cuts: set[int]) -> set[str]:
    """Keys of the jobs after everything arrived in this order, cut into associations at these places."""
    folder = Path(tempfile.mkdtemp())
    made = Site(folder / "node")
    try:
        batch: list[Dataset] = []
        for place, index in enumerate(arrival):
            batch.append(EVERYTHING[index])
            if place in cuts:
                made.send(batch)
                batch = []
        made.send(batch)
        made.settle()
        return {job.key for job in made.jobs()}
    finally:
        made.close()
        shutil.rmtree(folder)


EXPECTED = keys_after(range(len(EVERYTHING)), set())


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    order=st.permutations(range(len(EVERYTHING))),
    twice=st.lists(st.integers(0, len(EVERYTHING) - 1), max_size=5),
    cuts=st.sets(st.integers(0, 14), max_size=3),
)
def test_any_order_duplication_and_interleaving_gives_the_same_jobs(
    order: list[int], twice: list[int], cuts: set[int]
) -> None:
    assert len(EXPECTED) == 2
    assert keys_after([*order, *twice], cuts) == EXPECTED


def test_rules_that_ask_for_the_same_work_share_one_job(site: Callable[..., Site]) -> None:
    rules = [
        {**CT_RULE, "name": "b", "send_to": ["SECOND"], "priority": "urgent"},
        CT_RULE,
        {**CT_RULE, "name": "other options", "options": {"hu": 7}},
        {**CT_RULE, "name": "other pipeline", "pipeline": "other"},
    ]
    forward, backward = site(rules=rules), site(rules=rules[::-1])
    for made in (forward, backward):
        made.send(ONE)
        made.settle()
    shared = [job for job in forward.jobs() if job.rule == "b + ct"]
    assert len(forward.jobs()) == 3 and list(shared[0].send_to) == ["PACS", "SECOND"] and shared[0].band == 2
    assert [(j.key, j.rule, j.send_to) for j in forward.jobs()] == [(j.key, j.rule, j.send_to) for j in backward.jobs()]


def test_a_count_that_is_not_reached_waits_although_the_stack_is_regular(site: Callable[..., Site]) -> None:
    query = {"ae_title": "PACS", "host": "127.0.0.1"}
    made = site(sources=[{"ae_title": "CT1", "query": query}])
    made.counted[str(ONE[0].SeriesInstanceUID)] = 4
    made.send(ONE[:3])
    for _ in range(10):
        made.settle(20)
    assert made.get(ONE).state is SeriesState.ASSEMBLING and not made.jobs()
    made.send(ONE[3:])
    made.sweep()
    assert made.get(ONE).completion is Completion.COUNTED and made.get(ONE).expected == 4


def test_what_never_comes_is_taken_at_the_cap_and_marked(site: Callable[..., Site]) -> None:
    made = site(sources=[{"ae_title": "CT1", "query": {"ae_title": "PACS", "host": "127.0.0.1"}}])
    made.counted[str(ONE[0].SeriesInstanceUID)] = 9
    made.send(ONE)
    for _ in range(10):
        made.settle(100)
    one = made.get(ONE)
    assert one.completion is Completion.CAP and one.incomplete and "4 of 9" in one.proof
    assert made.jobs()[0].incomplete


def test_an_aborted_association_is_not_a_complete_series(site: Callable[..., Site]) -> None:
    made = site()
    made.send(ONE, end=AssociationEnd.ABORTED)
    made.settle(20)
    assert made.get(ONE).state is SeriesState.ASSEMBLING
    made.settle(60)
    assert made.get(ONE).incomplete and made.get(ONE).completion is Completion.QUIET


def test_while_the_sender_is_connected_a_regular_stack_waits_for_quiet(site: Callable[..., Site]) -> None:
    made = site()
    number = made.send(ONE, end=None)
    made.assembler.sweep()
    assert made.get(ONE).state is SeriesState.RECEIVING
    with made.database.write() as connection:
        instances.close_association(connection, number, AssociationEnd.RELEASED, made.clock())
    made.assembler.sweep()
    assert made.get(ONE).completion is Completion.REGULAR


def test_a_missing_slice_marks_the_series_and_its_jobs_incomplete(site: Callable[..., Site]) -> None:
    made = site()
    made.send([dataset for index, dataset in enumerate(factories.ct_series(n=12)) if index != 5])
    made.settle(60)
    assert made.jobs()[0].incomplete and "missing" in made.jobs()[0].completion


def test_a_late_image_supersedes_and_a_sender_that_does_that_is_no_longer_trusted(site: Callable[..., Site]) -> None:
    made = site()
    made.send(ONE[:3])
    made.assembler.sweep()
    made.clock.advance(5)
    made.send(ONE[3:])
    made.settle()
    states = {job.revision: job.state for job in made.jobs()}
    assert states == {0: JobState.SUPERSEDED, 1: JobState.QUEUED}
    made.send(TWO)
    made.assembler.sweep()
    assert made.get(TWO).state is SeriesState.ASSEMBLING, "its release proves nothing any more"
    made.settle()
    assert made.get(TWO).completion is Completion.QUIET


def test_the_quiet_period_follows_the_senders_own_pauses(site: Callable[..., Site]) -> None:
    made = site()
    with made.database.write() as connection:
        for _ in range(10):
            series.learn_gap(connection, "CT1", 1.5)
    made.send(ONE[:1])
    made.send(ONE[1:])
    made.assembler.sweep()
    made.clock.advance(timedelta(seconds=4.6).total_seconds())
    made.assembler.sweep()
    one = made.get(ONE)
    assert one.completion is Completion.QUIET and "learned from 10 series" in one.proof


def test_nothing_is_routed_before_a_slot_said_which_versions_it_loaded(site: Callable[..., Site]) -> None:
    made = site()
    with made.database.write() as connection:
        pipelines.describe(connection, [], made.clock())
    made.send(ONE)
    made.settle()
    assert made.get(ONE).state is SeriesState.COMPLETE


def test_a_header_that_cannot_be_read_rejects_the_series_and_the_next_goes_on(site: Callable[..., Site]) -> None:
    made = site()
    made.send(ONE)
    for path in made.spool.glob("*.dcm"):
        path.write_bytes(b"not DICOM at all")
    made.send(TWO)
    made.settle()
    assert made.get(ONE).state is SeriesState.REJECTED and "cannot be routed" in made.get(ONE).reason
    assert made.get(TWO).state is SeriesState.ROUTED


def test_every_decision_is_in_the_log_of_the_series(site: Callable[..., Site]) -> None:
    made = site()
    made.send(MR)
    made.settle()
    with made.database.read() as connection:
        told = [event.action for event in events.of(connection, series_uid=str(MR[0].SeriesInstanceUID))]
    assert told == ["series_complete", "series_unrouted"]
    verdict = made.get(MR).verdicts
    assert verdict is not None and verdict[0]["conditions"][0]["seen"] == "MR"


QUERIED = [{"ae_title": "CT1", "query": {"ae_title": "PACS", "host": "127.0.0.1"}}]


def test_an_answer_to_an_older_count_proves_nothing(site: Callable[..., Site]) -> None:
    made = site(sources=QUERIED)
    made.counted[str(ONE[0].SeriesInstanceUID)] = 3  # the archive is being filled at the same time
    made.send(ONE[:2], end=None)
    made.assembler.sweep()
    made.clock.advance(1.5)
    made.assembler.sweep()  # asks at two, and is told three
    made.send(ONE[2:3], end=None)
    made.counted[str(ONE[0].SeriesInstanceUID)] = 4
    for _ in range(3):
        made.clock.advance(0.6)
        made.sweep()
    assert made.get(ONE).state is SeriesState.RECEIVING and not made.jobs()


def test_a_garbled_count_leaves_the_other_proofs(site: Callable[..., Site]) -> None:
    made = site(sources=QUERIED)

    def garbled(*_: object) -> int:
        raise ValueError("abc")

    made.assembler._count = garbled
    made.send(ONE)
    made.settle()
    assert made.get(ONE).completion is Completion.REGULAR and made.jobs()


def test_a_disk_that_hiccups_rejects_no_series(site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch) -> None:
    from dicomnode.assemble import route

    made = site()

    def fails(*_: object, **__: object) -> Dataset:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(route, "dcmread", fails)
        made.send(ONE)
        made.settle()
        assert made.get(ONE).state is SeriesState.COMPLETE
    made.settle()
    assert made.get(ONE).state is SeriesState.ROUTED


def test_an_identity_conflict_stops_what_the_study_has_under_way(site: Callable[..., Site]) -> None:
    made = site()
    made.send(ONE)
    made.settle()
    made.patient = "q"
    made.send(TWO)
    made.settle()
    assert made.get(TWO).state is SeriesState.REJECTED and "--discard" in made.get(TWO).reason
    assert [job.state for job in made.jobs()] == [JobState.CANCELLED]


def test_what_was_withheld_with_its_objects_is_computed_anew_under_other_uids(site: Callable[..., Site]) -> None:
    made = site()
    made.send(ONE)
    made.settle()
    (before,) = made.jobs()
    table = schema.job
    with made.database.write() as connection:
        connection.execute(update(table).where(table.c.id == before.id).values(state=JobState.STORED.value))
    made.patient = "q"
    made.send(TWO)
    made.settle()
    with made.database.write() as connection:
        instances.forget(connection, [str(ds.SOPInstanceUID) for ds in (*ONE, *TWO)])
    made.patient = "p"
    for _ in range(2):
        made.send(ONE)
        made.settle(60)
    assert made.get(ONE).state is SeriesState.ROUTED
    first, second = sorted(made.jobs(), key=lambda job: job.id)
    assert [first.state, second.state] == [JobState.SUPERSEDED, JobState.QUEUED]
    assert first.key == before.key != second.key and first.inputs == second.inputs


@pytest.mark.parametrize("settled", ["p", "q"])
def test_once_a_conflict_is_settled_the_same_images_make_a_job_again(site: Callable[..., Site], settled: str) -> None:
    """Whichever of the two it was: corrected at the source, discarded here, and sent under the same UIDs."""
    made = site()
    made.send(ONE)
    made.settle()
    made.patient = "q"
    made.send(TWO)
    made.settle()
    with made.database.write() as connection:
        instances.forget(connection, [str(ds.SOPInstanceUID) for ds in (*ONE, *TWO)])
    made.patient = settled
    made.send(ONE)
    made.settle(60)
    assert made.get(ONE).state is SeriesState.ROUTED
    first, second = sorted(made.jobs(), key=lambda job: job.id)
    assert [first.state, second.state] == [JobState.SUPERSEDED, JobState.QUEUED]


@pytest.mark.parametrize("ended", [JobState.DEAD, JobState.UNSUITABLE])
def test_images_that_come_again_after_a_job_without_result_make_one(site: Callable[..., Site], ended: JobState) -> None:
    """So it is where its input was damaged, or past its retention: "send the series again" must help."""
    made = site()
    made.send(ONE)
    made.settle()
    (before,) = made.jobs()
    table = schema.job
    with made.database.write() as connection:
        connection.execute(update(table).where(table.c.id == before.id).values(state=ended.value))
    for _ in range(2):  # once it has been computed, a third time adds nothing
        with made.database.write() as connection:
            instances.forget(connection, [str(ds.SOPInstanceUID) for ds in ONE])
        made.send(ONE)
        made.settle(60)
        assert made.get(ONE).state is SeriesState.ROUTED
        first, second = sorted(made.jobs(), key=lambda job: job.id)
        assert [first.state, second.key] == [JobState.SUPERSEDED, before.key] and first.key != before.key
        with made.database.write() as connection:
            connection.execute(update(table).where(table.c.id == second.id).values(state=JobState.STORED.value))


def test_the_same_images_of_another_patient_are_another_job(site: Callable[..., Site]) -> None:
    """Results are known by UIDs that hang on the key: those of one patient must never carry another one's name."""
    made = site()
    made.send(ONE)
    made.settle()
    (before,) = made.jobs()
    with made.database.write() as connection:
        instances.forget(connection, [str(ds.SOPInstanceUID) for ds in ONE])
    made.patient = "q"
    made.send(ONE)
    made.settle(60)
    (after,) = [job for job in made.jobs() if job.id != before.id]
    assert after.key != before.key and after.inputs == before.inputs


def test_images_sent_again_after_their_retention_do_not_replace_the_whole_by_a_part(site: Callable[..., Site]) -> None:
    made = site()
    made.send(ONE)
    made.settle()
    with made.database.write() as connection:
        instances.forget(connection, [str(ds.SOPInstanceUID) for ds in ONE])
    made.send(ONE[:2])
    made.settle(60)
    one = made.get(ONE)
    assert one.state is SeriesState.REJECTED and "past their retention" in one.reason
    assert [job.state for job in made.jobs()] == [JobState.QUEUED], "the result of the whole stands"
    made.send(ONE[2:])
    made.settle(60)
    assert made.get(ONE).state is SeriesState.ROUTED
    assert [job.state for job in made.jobs()] == [JobState.QUEUED], "the same images make the same job"


def test_downtime_is_not_the_senders_silence(site: Callable[..., Site]) -> None:
    made = site()
    made.send(ONE[:1])
    made.send(ONE[1:2])
    made.clock.advance(1200)
    made.restart()
    made.assembler.sweep()
    assert made.get(ONE).state is SeriesState.ASSEMBLING, "first seen only now"
