"""Through the running node: series in by C-STORE, results out, decisions explained, nothing disturbed by bad input."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import dcmread

from dicomnode.config import Destination
from dicomnode.dispatch import send_files
from dicomnode.domain import Completion, DeliveryState, JobState, SeriesState
from dicomnode.store import deliveries
from tests import factories
from tests.acceptance.harness import RunningNode, cli, destination, rule
from tests.peers.pacs import Pacs


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[Pacs]:
    with Pacs(tmp_path / "pacs") as made:
        yield made


def peer(node: RunningNode) -> Destination:
    return Destination(ae_title="AINODE", host="127.0.0.1", port=node.port)


def send(node: RunningNode, folder: Path, datasets: list, calling: str = "CT1") -> None:  # type: ignore[type-arg]
    paths = factories.write_series(folder, datasets)
    outcomes = send_files(peer(node), calling, paths)
    assert not [one.problem for one in outcomes if one.problem]


def test_a_series_goes_in_and_its_result_comes_back_once(tmp_path: Path, pacs: Pacs) -> None:
    made = factories.ct_series(n=6)
    uid = str(made[0].SeriesInstanceUID)
    to = {"PACS": destination(pacs.port)}
    patient = {"quiet_s": 30, "quiet_max_s": 30}  # so that a busy machine's silence proves nothing here
    with RunningNode(tmp_path / "node", rules=[rule()], destinations=to, assemble=patient) as node:
        send(node, tmp_path / "in", made)
        job = node.wait_closed(uid)[0]
        one = node.series(uid)
        assert one is not None and one.completion is Completion.REGULAR and not one.incomplete
        assert "rule all CT: MATCHES" in cli(node, "series", uid)
        assert "closed" in cli(node, "jobs", "list")
        shown = cli(node, "jobs", "show", str(job.id))
        assert "complete by" in shown and "6 delivered" in shown
        # The PACS routes everything back, results too: no second job, no job on the result.
        send(node, tmp_path / "again", made)
        back = [dcmread(item.path) for item in pacs.received]
        outcomes = send_files(peer(node), "PACS", [item.path for item in pacs.received])
        assert not [one.problem for one in outcomes if one.problem]
        result = node.wait_series(str(back[0].SeriesInstanceUID), SeriesState.UNROUTED)
        assert "own result" in result.reason
        assert len(node.jobs(uid)) == 1
        assert node.stop() == 0
    assert len(pacs.received) == 6
    assert {item.sop_instance_uid for item in pacs.received}.isdisjoint({str(ds.SOPInstanceUID) for ds in made})
    log = node.log.read_text()
    assert str(made[0].PatientID) not in log and str(made[0].PatientName).split("^")[0] not in log


def test_a_series_no_rule_wants_is_visible(tmp_path: Path, pacs: Pacs) -> None:
    made = factories.ct_series(n=3)
    rules = [rule(when={"Modality": "MR"})]
    with RunningNode(tmp_path / "node", rules=rules, destinations={"PACS": destination(pacs.port)}) as node:
        send(node, tmp_path / "in", made)
        node.wait_series(str(made[0].SeriesInstanceUID), SeriesState.UNROUTED)
        shown = cli(node, "series", str(made[0].SeriesInstanceUID))
        assert "no rule wants it" in shown and "wants MR" in shown and "saw CT" in shown


def test_the_count_of_the_archive_proves_completeness(tmp_path: Path, pacs: Pacs) -> None:
    made = factories.ct_series(n=5)
    pacs.claims[str(made[0].SeriesInstanceUID)] = 5
    sources = [{"ae_title": "CT1", "query": {"ae_title": "PACS", "host": "127.0.0.1", "port": pacs.port, "timeout": 3}}]
    rules, to = [rule()], {"PACS": destination(pacs.port)}
    with RunningNode(tmp_path / "node", rules=rules, destinations=to, sources=sources) as node:
        send(node, tmp_path / "in", made[:3])
        uid = str(made[0].SeriesInstanceUID)
        node.until(lambda: node.series(uid))
        assert not node.jobs(uid), "three of five are not complete, however regular"
        send(node, tmp_path / "rest", made[3:])
        node.wait_closed(uid)
        one = node.series(uid)
        assert one is not None and one.completion is Completion.COUNTED and one.expected == 5


def test_a_late_image_makes_a_new_revision_that_replaces_the_first(tmp_path: Path, pacs: Pacs) -> None:
    made = factories.ct_series(n=6)
    uid = str(made[0].SeriesInstanceUID)
    with RunningNode(tmp_path / "node", rules=[rule()], destinations={"PACS": destination(pacs.port)}) as node:
        send(node, tmp_path / "in", made[:5])
        node.wait_closed(uid)
        send(node, tmp_path / "late", made[5:])
        node.until(lambda: [job.state for job in node.jobs(uid)] == [JobState.SUPERSEDED, JobState.CLOSED])
        second = node.jobs(uid)[-1]
        assert second.revision == 1 and len(second.inputs) == 6
    by_series = Counter(item.series_uid for item in pacs.received)
    assert sorted(by_series.values()) == [5, 6], "two results, never a mixture"
    newest = dcmread(next(item.path for item in pacs.received if by_series[item.series_uid] == 6))
    assert "replaces series" in newest.DerivationDescription


def test_two_series_interleaved_and_one_bad_object_among_them(tmp_path: Path, pacs: Pacs) -> None:
    one = factories.ct_series(n=4)
    two = factories.ct_series(n=4, seed=2, series="other")
    paths = factories.write_series(tmp_path / "in", [ds for pair in zip(one, two, strict=True) for ds in pair])
    broken = paths[3]
    broken.write_bytes(broken.read_bytes()[:-3000])  # truncated pixel data
    with RunningNode(tmp_path / "node", rules=[rule()], destinations={"PACS": destination(pacs.port)}) as node:
        outcomes = send_files(peer(node), "CT1", paths)
        assert [outcome.status for outcome in outcomes if outcome.problem] == [0xC000]
        node.wait_closed(str(one[0].SeriesInstanceUID))
        assert "truncated" in cli(node, "quarantine")
        healthy = node.wait_series(str(two[0].SeriesInstanceUID), SeriesState.ROUTED, limit_s=30)
        assert healthy.instances == 3


def test_a_pacs_that_is_down_gets_everything_when_it_is_back(tmp_path: Path, pacs: Pacs) -> None:
    made = factories.ct_series(n=4)
    uid = str(made[0].SeriesInstanceUID)
    with Pacs(tmp_path / "second", ae_title="SECOND") as second:
        to = {"PACS": destination(pacs.port), "SECOND": destination(second.port, "SECOND")}
        rules = [rule(send_to=["PACS", "SECOND"])]
        with RunningNode(tmp_path / "node", rules=rules, destinations=to) as node:
            pacs.stop()
            send(node, tmp_path / "in", made)
            node.until(lambda: len(second.received) == 4)
            assert node.jobs(uid)[0].state is JobState.STORED
            pacs.start()
            node.wait_closed(uid)
            with node.database.read() as connection:
                states = {d.state for d in deliveries.of_job(connection, node.jobs(uid)[0].id)}
            assert states == {DeliveryState.DELIVERED}
    assert {i.sop_instance_uid for i in pacs.received} == {i.sop_instance_uid for i in second.received}


def test_two_patients_in_one_study_stop_it(tmp_path: Path, pacs: Pacs) -> None:
    one, two = factories.ct_series(n=3), factories.ct_series(n=3, seed=2, series="other", patient_id="SOMEBODY-ELSE")
    with RunningNode(tmp_path / "node", rules=[rule()], destinations={"PACS": destination(pacs.port)}) as node:
        send(node, tmp_path / "in", [*one, *two])
        rejected = node.wait_series(str(two[0].SeriesInstanceUID), SeriesState.REJECTED)
        assert "different patient identities" in rejected.reason
        node.wait_series(str(one[0].SeriesInstanceUID), SeriesState.REJECTED)
    assert not pacs.received


def test_a_second_node_on_the_same_data_folder_is_refused(tmp_path: Path) -> None:
    with RunningNode(tmp_path / "node") as node:
        other = RunningNode(tmp_path / "other", node={"ae_title": "X", "data": str(node.data)})
        with pytest.raises(AssertionError, match="another node already uses"):
            other.start()


def test_a_stop_that_hangs_is_ended_and_says_where(tmp_path: Path) -> None:
    node = RunningNode(tmp_path / "node")
    stuck = "import sys, time; from dicomnode import cli, node; node.STOP_S = 1.0; "
    stuck += "node.Outbox.stop = lambda _: time.sleep(3600); sys.exit(cli.main())"
    node.program = [sys.executable, "-c", stuck]
    with pytest.raises(AssertionError, match="hung when it was told to stop"), node:
        pass
    said = node.tail()
    assert "Timeout (0:00:01)!" in said and "in stop" in said and "node_down" not in said
