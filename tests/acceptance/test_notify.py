"""A finding through the running node to a webhook and an interface engine, and back out of the world again."""

from __future__ import annotations

from pathlib import Path

from dicomnode.config import Destination
from dicomnode.dispatch import send_files
from dicomnode.domain import SeriesState
from tests.acceptance.harness import RunningNode, cli, destination, rule
from tests.factories import ct_series, write_series
from tests.peers.found import SECRET
from tests.peers.mllp import Engine
from tests.peers.pacs import Pacs, wait_until
from tests.peers.webhook import Receiver


def site(tmp_path: Path, pacs: Pacs, receiver: Receiver, engine: Engine) -> RunningNode:
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    return RunningNode(
        tmp_path / "node",
        rules=[rule(pipeline="wavering")],
        pipelines={"wavering": {"class": "tests.toys:Wavering"}},
        destinations={"PACS": destination(pacs.port)},
        notify={
            "triage": {"kind": "webhook", "url": receiver.url, "secret_file": str(secret)},
            "engine": {"kind": "hl7", "host": "127.0.0.1", "port": engine.port},
        },
    )


def test_a_finding_is_told_once_and_taken_back_when_late_slices_change_it(tmp_path):
    with Pacs(tmp_path / "pacs") as pacs, Receiver() as receiver, Engine() as engine:
        with site(tmp_path, pacs, receiver, engine) as node:
            assert "hook triage: webhook" in cli(node, "check")
            datasets = ct_series(8, rows=64, columns=64, values=SECRET, charset="ISO_IR 100")
            paths = write_series(tmp_path / "head", datasets)
            here = Destination(ae_title="AINODE", host="127.0.0.1", port=node.port)
            assert not [one.problem for one in send_files(here, "CT1", paths[:6]) if one.problem]
            wait_until(lambda: receiver.requests and engine.messages, 60, node.tail())
            assert receiver.bodies[0]["type"].endswith("positive")
            assert receiver.bodies[0]["patient"]["id"] == SECRET["PatientID"]
            assert receiver.bodies[0]["algorithm"] == {"name": "toy-wavering", "version": "1.0.0"}

            assert not [one.problem for one in send_files(here, "CT1", paths[6:]) if one.problem]
            wait_until(lambda: len(receiver.requests) > 1 and len(engine.messages) > 1, 60, node.tail())
            node.wait_closed(str(datasets[0].SeriesInstanceUID))
            shown = cli(node, "jobs", "show", "1")
            assert "notification_sent" in shown
        assert [one["type"].rpartition(".")[2] for one in receiver.bodies] == ["positive", "retraction"]
        assert receiver.bodies[1]["replaces"] == receiver.bodies[0]["id"]
        assert "|272519000^Absent^SCT|" in engine.messages[1] and len(engine.messages) == 2
        log = node.log.read_text()
        assert node.actions()["notification_sent"] == 4 and "door_to_notification_s" in log
        assert "SECRET" not in log and SECRET["PatientBirthDate"] not in log


def test_a_finding_is_taken_back_when_the_study_turns_out_to_carry_two_patients(tmp_path):
    with Pacs(tmp_path / "pacs") as pacs, Receiver() as receiver, Engine() as engine:
        with site(tmp_path, pacs, receiver, engine) as node:
            datasets = ct_series(6, rows=64, columns=64, values=SECRET, charset="ISO_IR 100")
            others = ct_series(2, rows=64, columns=64, series="other", values=SECRET | {"PatientID": "SOMEBODY-ELSE"})
            here = Destination(ae_title="AINODE", host="127.0.0.1", port=node.port)
            head = write_series(tmp_path / "head", datasets)
            assert not [one.problem for one in send_files(here, "CT1", head) if one.problem]
            wait_until(lambda: receiver.requests and engine.messages, 60, node.tail())
            late = write_series(tmp_path / "late", others)
            assert not [one.problem for one in send_files(here, "CT1", late) if one.problem]
            node.wait_series(str(others[0].SeriesInstanceUID), SeriesState.REJECTED)
            wait_until(lambda: len(receiver.requests) > 1 and len(engine.messages) > 1, 60, node.tail())
        assert [one["type"].rpartition(".")[2] for one in receiver.bodies] == ["positive", "retraction"]
        assert receiver.bodies[1]["patient"]["id"] == SECRET["PatientID"]
        assert "several patient identities" in receiver.bodies[1]["reason"]
        assert "|373068000^Undetermined^SCT|" in engine.messages[1] and len(engine.messages) == 2
        assert "SOMEBODY-ELSE" not in node.log.read_text()
