"""Notification against real peers on loopback: a webhook's receiver and an HL7 interface engine.

Rounds are driven by hand (`Lane.step`) under a clock that stands still.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hl7apy.consts import VALIDATION_LEVEL
from hl7apy.parser import parse_message
from sqlalchemy import insert

from dicomnode import log
from dicomnode.dispatch.notify import Notifier
from dicomnode.errors import ConfigError
from dicomnode.node import Node
from dicomnode.store import events, instances, notifications, revisions, schema
from dicomnode.store.notifications import State
from tests.conftest import REPOSITORY, missing_peer
from tests.factories import NAMES
from tests.peers import found
from tests.peers.found import ABSENT, SUBDURAL, ended, finding, received
from tests.peers.mllp import Engine
from tests.peers.pacs import wait_until
from tests.peers.results import open_migrated
from tests.peers.webhook import Receiver

SECRET = "correct horse battery staple"
BLEED = [finding(), finding(SUBDURAL, urgency=None, probability=0.7)]


class Rig:
    """A database with one received image, a clock, and a notifier made anew where a test restarts it."""

    def __init__(self, folder: Path, clock, **given):
        self.data, self.clock = folder / "node", clock
        self.database = open_migrated(self.data)
        self.config = found.hooks(**given)
        values = {"node": {"data": self.data}, "notify": self.config.model_dump(mode="json")["notify"]}
        self.config = self.config.model_validate(values)
        self.notifier = Notifier(self.config, self.database, clock)

    def receive(self, **values):
        return received(self.database, self.data, self.clock(), **values)

    def end(self, ds, findings, **changes):
        place = {"study": ds.StudyInstanceUID, "series": ds.SeriesInstanceUID, "inputs": [ds.SOPInstanceUID]}
        return ended(self.database, self.config, findings, self.clock(), **(place | changes))

    def step(self):
        return self.notifier.lanes[0].step()

    def drain(self):
        for _ in range(20):
            if self.step() > 0:
                return
        raise AssertionError("it never rests")

    def rows(self, ds):
        with self.database.read() as connection:
            return notifications.of_study(connection, ds.StudyInstanceUID)

    def states(self, ds):
        return [one.state.value for one in self.rows(ds)]


@pytest.fixture
def secret_file(tmp_path):
    path = tmp_path / "secret"
    path.write_text(SECRET + "\n")
    return path


@pytest.fixture
def receiver():
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def engine():
    with Engine() as engine:
        yield engine


@pytest.fixture
def rigs(tmp_path, clock):
    made = []

    def make(**given):
        made.append(Rig(tmp_path, clock, **given))
        return made[-1]

    yield make
    for rig in made:
        rig.notifier.stop()
        rig.database.close()


@pytest.fixture
def web(rigs, receiver, secret_file):
    return rigs(triage={"kind": "webhook", "url": receiver.url, "secret_file": str(secret_file), "timeout": 1})


@pytest.fixture
def hl7(rigs, engine):
    return rigs(engine={"kind": "hl7", "host": "127.0.0.1", "port": engine.port, "timeout": 1, "max_attempts": 3})


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for localhost that signs itself."""
    if shutil.which("openssl") is None:
        missing_peer("openssl")
    folder = tmp_path_factory.mktemp("tls")
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost "
        f"-keyout {folder}/key.pem -out {folder}/cert.pem"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_text((folder / "cert.pem").read_text() + (folder / "key.pem").read_text())
    return both


# -- webhook


def test_a_webhook_gets_the_finding_signed_with_the_order_and_the_patient(web, receiver):
    ds = web.receive()
    web.end(ds, BLEED)
    web.drain()
    headers, raw = receiver.requests[0]
    body = json.loads(raw)
    assert body["type"] == "dicomnode.finding.positive" and body["research_use_only"] is True
    assert body["patient"] == {
        "id": "SECRET|ID", "issuer": "HOSP&ITAL", "name": "SECRET^NAME^M^Dr^Jr", "birth_date": "19510203",
        "sex": str(ds.PatientSex),
    }  # fmt: skip
    assert body["order"]["accession_number"] == "SECRET-ACC"
    assert body["order"]["placer_order_number"] == "SECRET-PLACER"
    assert body["study_instance_uid"] == ds.StudyInstanceUID
    assert [one["code"]["value"] for one in body["findings"]] == ["1386000", "35486000"]
    assert body["findings"][0]["score"] == 0.97
    assert headers["webhook-id"] == headers["idempotency-key"] == body["id"] == web.rows(ds)[0].key
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + raw
    wanted = base64.b64encode(hmac.new(SECRET.encode(), signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{wanted}"
    assert web.states(ds) == ["sent"]


def test_a_secret_may_be_written_as_standard_webhooks_have_it(web, receiver, secret_file):
    secret_file.write_text("whsec_" + base64.b64encode(b"\x00\x01binary").decode())
    ds = web.receive()
    web.end(ds, BLEED)
    web.drain()
    headers, raw = receiver.requests[0]
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + raw
    wanted = base64.b64encode(hmac.new(b"\x00\x01binary", signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{wanted}"


def test_a_webhook_that_fails_twice_is_asked_again_with_growing_pauses_under_the_same_key(web, receiver, clock):
    receiver.script(503, 500)
    ds = web.receive()
    web.end(ds, BLEED)
    web.drain()
    assert len(receiver.requests) == 1 and web.states(ds) == ["pending"]
    clock.advance(4.9)
    web.drain()
    assert len(receiver.requests) == 1
    clock.advance(0.2)
    web.drain()
    clock.advance(9.9)
    web.drain()
    assert len(receiver.requests) == 2
    clock.advance(0.2)
    web.drain()
    assert web.states(ds) == ["sent"]
    assert len({headers["webhook-id"] for headers, _ in receiver.requests}) == 1
    assert len({body for _, body in receiver.requests}) == 1, "byte for byte the same"
    web.drain()
    assert len(receiver.requests) == 3


def test_a_webhook_that_does_not_answer_holds_everything_for_it_and_is_asked_for_ever(web, receiver, clock):
    receiver.script(0)
    first, other = web.receive(), web.receive(study="other", series="other", AccessionNumber="OTHER")
    web.end(first, BLEED)
    web.end(other, BLEED)
    web.step()
    assert web.rows(first)[0].refusals == 0 and web.rows(other)[0].attempt == 0
    web.step()
    assert len(receiver.requests) == 1
    clock.advance(5)
    web.drain()
    assert web.states(first) == web.states(other) == ["sent"]


@pytest.mark.parametrize("status", [301, 307, 400, 401, 404, 413])
def test_a_refusal_counts_and_a_redirect_is_one(rigs, receiver, secret_file, clock, status):
    web = rigs(triage={"kind": "webhook", "url": receiver.url, "secret_file": str(secret_file), "max_attempts": 2})
    receiver.script(status, status)
    ds = web.receive()
    job_id = web.end(ds, BLEED)
    web.drain()
    clock.advance(5)
    web.drain()
    assert web.states(ds) == ["dead"] and len(receiver.requests) == 2
    with web.database.read() as connection:
        assert f"answered {status}" in events.of(connection, job_id=job_id)[-1].text


def test_a_positive_nobody_took_in_time_is_old_news(rigs, secret_file, free_port, clock):
    url = f"http://127.0.0.1:{free_port()}/"
    web = rigs(triage={"kind": "webhook", "url": url, "secret_file": str(secret_file), "give_up_after_s": 60})
    ds = web.receive()
    web.end(ds, BLEED)
    web.step()
    clock.advance(61)
    web.drain()
    assert web.states(ds) == ["dead"] and "old news" in web.rows(ds)[0].error


def test_a_missing_secret_is_waited_for(web, receiver, secret_file, clock):
    secret_file.unlink()
    ds = web.receive()
    web.end(ds, BLEED)
    web.step()
    assert web.states(ds) == ["pending"] and "secret_file" in web.rows(ds)[0].error and receiver.requests == []
    secret_file.write_text("new")
    clock.advance(5)
    web.drain()
    assert web.states(ds) == ["sent"]


def test_tls_is_verified(rigs, secret_file, certificate, clock):
    with Receiver(certificate) as receiver:
        hook = {"kind": "webhook", "url": receiver.url, "secret_file": str(secret_file), "timeout": 2}
        rig = rigs(strict=hook, knowing={**hook, "ca_file": str(certificate)})
        ds = rig.receive()
        rig.end(ds, BLEED)
        strict, knowing = rig.notifier.lanes
        strict.step()
        assert receiver.requests == [] and "SSLError" in rig.rows(ds)[0].error
        knowing.step()
        assert len(receiver.requests) == 1
        assert rig.states(ds) == ["pending", "sent"]


# -- HL7


def segments(message):
    return [line.split("|") for line in message.rstrip("\r").split("\r")]


def test_an_engine_gets_a_valid_oru_keyed_on_the_order(hl7, engine):
    ds = hl7.receive()
    hl7.end(ds, [*BLEED, finding(found.EPIDURAL, urgency="hours")])
    hl7.drain()
    (message,) = engine.messages
    parse_message(message, validation_level=VALIDATION_LEVEL.STRICT).validate()
    by_name = {line[0]: line for line in segments(message)}
    assert by_name["MSH"][8:12] == ["ORU^R01^ORU_R01", hl7.rows(ds)[0].key, "P", "2.5.1"]
    assert by_name["MSH"][17] == "UNICODE UTF-8"
    pid = by_name["PID"]
    assert pid[3] == r"SECRET\F\ID^^^HOSP\T\ITAL^MR" and pid[5] == "SECRET^NAME^M^Jr^Dr^^L" and pid[7] == "19510203"
    obr = by_name["OBR"]
    assert (obr[2], obr[3], obr[18], obr[25]) == ("SECRET-PLACER", "SECRET-ACC", "SECRET-ACC", "F")
    notes = [line[3] for line in segments(message) if line[0] == "NTE"]
    assert notes[0].startswith("Research use only")
    observed = [line for line in segments(message) if line[0] == "OBX"]
    assert [line[1] for line in observed] == ["1", "2", "3", "4"]
    assert observed[0][3] == "1386000^Intracranial hemorrhage^SCT" and observed[0][5] == "52101004^Present^SCT"
    assert [line[8] for line in observed[:3]] == ["AA", "A", "A"] and {line[11] for line in observed} == {"F"}
    assert observed[1][3] == r"68752002^Epidural \F\ hemorrhage^SCT"
    assert observed[3][5] == ds.StudyInstanceUID


@pytest.mark.parametrize("charset", ["ISO_IR 192", "\\ISO 2022 IR 87", "ISO_IR 144"])
def test_a_name_in_any_letters_arrives_as_it_is(hl7, engine, charset):
    ds = hl7.receive(charset=charset, PatientName=NAMES[charset])
    hl7.end(ds, BLEED)
    hl7.drain()
    (pid,) = [line for line in segments(engine.messages[0]) if line[0] == "PID"]
    for group in NAMES[charset].split("="):
        assert "^".join(group.split("^")[:2]) in pid[5]


def test_a_retraction_says_what_no_longer_holds(hl7, engine):
    ds = hl7.receive()
    hl7.end(ds, BLEED)
    hl7.drain()
    hl7.end(ds, [ABSENT], revision=1)
    hl7.drain()
    last = segments(engine.messages[-1])
    observed = [line for line in last if line[0] == "OBX"]
    assert observed[0][3].startswith("1386000") and observed[0][5] == "272519000^Absent^SCT"
    assert observed[1][3].startswith("35486000") and observed[1][5] == "373068000^Undetermined^SCT"
    assert {line[11] for line in observed} == {"C"} and {line[8] for line in observed[:2]} == {""}
    assert any(line[0] == "NTE" and line[3].startswith("RETRACTION") for line in last)
    assert next(line for line in last if line[0] == "OBR")[25] == "C"
    parse_message(engine.messages[-1], validation_level=VALIDATION_LEVEL.STRICT).validate()


def test_rejections_are_tried_again_and_then_set_aside(hl7, engine, clock):
    engine.script("AE", "AR", "AE")
    ds = hl7.receive()
    hl7.end(ds, BLEED)
    for _ in range(4):
        hl7.drain()
        clock.advance(60)
    assert hl7.states(ds) == ["dead"] and len(engine.messages) == 3
    assert len(set(engine.messages)) == 1, "the same message, the same MSH-10"
    assert hl7.rows(ds)[0].error == "the interface engine answered AE"


@pytest.mark.parametrize("answer", ["silent", "close", "other"])
def test_no_answer_is_no_outcome(hl7, engine, clock, answer):
    engine.script(answer)
    ds = hl7.receive()
    hl7.end(ds, BLEED)
    hl7.step()
    assert hl7.states(ds) == ["pending"] and hl7.rows(ds)[0].refusals == 0
    clock.advance(5)
    hl7.drain()
    assert hl7.states(ds) == ["sent"] and len(set(engine.messages)) == 1


def test_mllp_inside_tls_is_verified(rigs, certificate):
    with Engine(certificate) as engine:
        hook = {"kind": "hl7", "host": "localhost", "port": engine.port, "timeout": 2, "tls": True}
        rig = rigs(strict=hook, knowing={**hook, "ca_file": str(certificate)})
        ds = rig.receive()
        rig.end(ds, BLEED)
        for lane in rig.notifier.lanes:
            lane.step()
        assert rig.states(ds) == ["pending", "sent"] and len(engine.messages) == 1


# -- who must not be told


@pytest.mark.parametrize(
    ("values", "missing", "why"),
    [
        ({"AccessionNumber": ""}, [], "no AccessionNumber"),
        ({}, ["AccessionNumber"], "no AccessionNumber"),
        ({"PatientID": ""}, [], "PatientID"),
        ({"PatientID": "unknown"}, [], "PatientID"),
        ({}, ["PatientID"], "PatientID"),
    ],
)
def test_a_study_that_names_nobody_is_not_announced_and_says_why(web, receiver, values, missing, why):
    ds = web.receive(missing=missing, **values)
    job_id = web.end(ds, BLEED)
    web.drain()
    assert receiver.requests == [] and web.states(ds) == ["suppressed"]
    with web.database.read() as connection:
        last = events.of(connection, job_id=job_id)[-1]
    assert last.action == "notification_suppressed" and why in last.text
    web.end(ds, [ABSENT], revision=1)
    assert web.states(ds) == ["suppressed"], "nobody was told, so nothing is taken back"


def test_an_accession_number_of_two_studies_is_told_for_the_first_only(web, receiver):
    first, second = web.receive(), web.receive(study="two", series="two")
    web.end(first, BLEED)
    web.drain()
    web.end(second, BLEED)
    web.drain()
    assert web.states(first) == ["sent"] and web.states(second) == ["suppressed"]
    web.end(first, [ABSENT], revision=1)
    web.drain()
    assert [one["type"].rpartition(".")[2] for one in receiver.bodies] == ["positive", "retraction"]


def test_a_study_with_two_patients_is_not_announced(web, receiver):
    from sqlalchemy import update

    from dicomnode.store import schema

    ds, other = web.receive(), web.receive(series="other")
    with web.database.write() as connection:
        one = schema.instance.c.sop_instance_uid == other.SOPInstanceUID
        connection.execute(update(schema.instance).where(one).values(patient_key="q"))
    web.end(ds, BLEED)
    web.drain()
    assert receiver.requests == [] and "several patient" in web.rows(ds)[0].error


def test_a_second_patient_in_the_study_takes_back_what_the_first_was_told(web, receiver):
    ds = web.receive()
    web.end(ds, BLEED)
    web.drain()
    received(web.database, web.data, web.clock(), series="another", PatientID="SOMEBODY-ELSE", patient_key="q")
    with web.database.write() as connection:
        assert instances.patients_of_study(connection, ds.StudyInstanceUID) == 2
        revisions.withhold_study(connection, str(ds.StudyInstanceUID), web.clock())
    web.drain()
    assert web.states(ds) == ["sent", "sent"]
    told = receiver.bodies[1]
    assert told["type"].endswith("retraction") and told["replaces"] == receiver.bodies[0]["id"]
    assert told["patient"] == receiver.bodies[0]["patient"], "whom the first message named, not the other one"
    assert "several patient identities" in told["reason"]


def test_what_takes_back_goes_to_whom_it_was_told_of_though_the_images_have_another_name_by_now(web, receiver):
    """The identity was corrected, and the same images came under it, before the hook answered again."""
    ds = web.receive()
    job_id = web.end(ds, BLEED)
    made = web.data / "results" / "1.dcm"
    made.parent.mkdir(parents=True, exist_ok=True)
    made.write_bytes((web.data / "spool" / f"{ds.SOPInstanceUID}.dcm").read_bytes())  # repeats the identity
    with web.database.write() as connection:
        connection.execute(
            insert(schema.output).values(
                job_id=job_id, role="report", number=0, sop_class_uid="1", sop_instance_uid="2.25.1", series_uid="2.25",
                study_uid=ds.StudyInstanceUID, path="1.dcm", size=1, sha256="0",
            )
        )  # fmt: skip
    web.drain()
    with web.database.write() as connection:
        revisions.withhold_study(connection, str(ds.StudyInstanceUID), web.clock())
        instances.forget(connection, [str(ds.SOPInstanceUID)])
    received(web.database, web.data, web.clock(), PatientID="SOMEBODY-ELSE", patient_key="q")
    web.drain()
    assert receiver.bodies[1]["type"].endswith("retraction")
    assert receiver.bodies[1]["patient"] == receiver.bodies[0]["patient"]


def test_without_a_file_that_says_whose_it_is_nothing_is_sent(web, receiver):
    ds = web.receive()
    web.end(ds, BLEED)
    for path in (web.data / "spool").iterdir():
        path.unlink()
    web.drain()
    assert receiver.requests == [] and web.states(ds) == ["suppressed"]


def test_a_file_that_cannot_be_read_now_is_read_again_later(web, receiver, clock):
    ds = web.receive()
    web.end(ds, BLEED)
    (path,) = (web.data / "spool").iterdir()
    path.rename(path.with_suffix(".aside"))
    path.mkdir()  # reading fails, and not because the file is gone
    web.drain()
    assert web.states(ds) == ["pending"] and web.rows(ds)[0].refusals == 1
    path.rmdir()
    path.with_suffix(".aside").rename(path)
    clock.advance(60)
    web.drain()
    assert web.states(ds) == ["sent"] and len(receiver.requests) == 1


def test_two_nodes_on_one_database_do_not_send_the_same_message_at_once(web, receiver, clock):
    ds = web.receive()
    web.end(ds, BLEED)
    other = Notifier(web.config, web.database, clock).lanes[0]
    seen = []
    send = web.notifier.lanes[0]._sender.send

    def sending(message):
        other.step()
        seen.append(len(receiver.requests))
        send(message)

    web.notifier.lanes[0]._sender.send = sending
    web.drain()
    assert seen == [0] and len(receiver.requests) == 1 and web.states(ds) == ["sent"]


# -- crashes, logs, the service

NODE = """
import json, sys, time
from pathlib import Path
from dicomnode.config import Config
from dicomnode.dispatch.notify import Notifier
from dicomnode.store import notifications
from tests.peers.results import open_migrated

data = Path(sys.argv[1])
database = open_migrated(data)
notifier = Notifier(Config.model_validate(json.loads(sys.argv[2])), database)
notifier.start()
end = time.monotonic() + 20
while time.monotonic() < end:
    with database.read() as connection:
        if not notifications.unsent(connection):
            break
    time.sleep(0.02)
notifier.stop()
"""


@pytest.mark.parametrize("kind", ["webhook", "hl7"])
def test_killed_between_the_answer_and_its_record_the_same_key_goes_again(tmp_path, rigs, kind, secret_file):
    with Receiver() as receiver, Engine() as engine:
        hook = {
            "webhook": {"kind": "webhook", "url": receiver.url, "secret_file": str(secret_file), "timeout": 1},
            "hl7": {"kind": "hl7", "host": "127.0.0.1", "port": engine.port, "timeout": 1},
        }[kind]
        rig = rigs(one=hook)
        # The subprocess has its own clock, to which a finding of the test's clock would be old news.
        import datetime

        rig.clock.now = datetime.datetime.now(datetime.UTC)
        ds = rig.receive()
        rig.end(ds, BLEED)
        settings = json.dumps(rig.config.model_dump(mode="json"))

        def run(fault):
            env = {**os.environ, "DICOMNODE_FAULT": fault, "PYTHONPATH": str(REPOSITORY)}
            command = [sys.executable, "-c", NODE, str(rig.data), settings]
            return subprocess.run(command, env=env, timeout=60, check=False).returncode

        assert run("mid-notification") == -9
        assert rig.states(ds) == ["pending"]
        assert run("") == 0
        assert rig.states(ds) == ["sent"]
        if kind == "webhook":
            assert len(receiver.requests) == 2 and len({headers["webhook-id"] for headers, _ in receiver.requests}) == 1
        else:
            assert len(engine.messages) == 2 and len(set(engine.messages)) == 1


@pytest.mark.parametrize("kind", ["web", "hl7"])
def test_no_log_line_no_row_and_no_decision_names_the_patient(request, kind, receiver, engine, clock, caplog):
    rig = request.getfixturevalue(kind)
    caplog.set_level(logging.DEBUG)
    receiver.script(400, 0)
    engine.script("AE", "silent")
    ds = rig.receive()
    rig.end(ds, BLEED)
    nobody = rig.receive(study="n", series="n", PatientID="UNKNOWN")
    rig.end(nobody, BLEED)
    for _ in range(4):
        rig.drain()
        clock.advance(60)
    assert rig.states(ds) == ["sent"] and rig.states(nobody) == ["suppressed"]
    lines = "\n".join(log.JSONFormatter().format(record) for record in caplog.records)
    assert "notification_sent" in lines and "notification_postponed" in lines
    dump = "\n".join(str(row) for row in _everything(rig.database))
    for secret in ("SECRET", "19510203"):
        assert secret not in lines and secret not in dump
    (sent,) = [one for one in caplog.records if getattr(one, "action", "") == "notification_sent"]
    assert sent.door_to_notification_s >= 60


def _everything(database):
    from sqlalchemy import select

    from dicomnode.store import schema

    with database.read() as connection:
        for table in (schema.notification, schema.event, schema.job):
            yield from connection.execute(select(table))


def test_a_fault_nobody_foresaw_is_logged_without_what_it_quotes_and_counted(web, receiver, clock, caplog, monkeypatch):
    ds = web.receive()
    web.end(ds, BLEED)

    def broken(message):
        raise RuntimeError(message.identity.patient_name)

    monkeypatch.setattr(web.notifier.lanes[0]._sender, "send", broken)
    for _ in range(12):
        web.step()
        clock.advance(300)
    assert web.states(ds) == ["dead"]
    lines = "\n".join(log.JSONFormatter().format(record) for record in caplog.records)
    assert "notify_error" in lines and "RuntimeError" in lines and "SECRET" not in lines


def test_threads_tell_when_woken_and_end_when_asked(rigs, receiver, engine, secret_file):
    rig = rigs(
        web={"kind": "webhook", "url": receiver.url, "secret_file": str(secret_file)},
        hl7={"kind": "hl7", "host": "127.0.0.1", "port": engine.port},
    )
    rig.notifier.start()
    time.sleep(0.1)
    ds = rig.receive()
    rig.end(ds, BLEED)
    rig.notifier.wake()
    wait_until(lambda: rig.states(ds) == ["sent", "sent"])
    began = time.monotonic()
    rig.notifier.stop()
    assert time.monotonic() - began < 2
    assert not any(lane.rounds.alive for lane in rig.notifier.lanes)


def test_a_stop_waits_no_longer_than_a_message_may_take(rigs, engine):
    rig = rigs(hl7={"kind": "hl7", "host": "127.0.0.1", "port": engine.port, "timeout": 1})
    engine.script("silent")
    ds = rig.receive()
    rig.end(ds, BLEED)
    rig.notifier.start()
    wait_until(lambda: engine.messages)
    began = time.monotonic()
    rig.notifier.stop()
    assert time.monotonic() - began < 3
    assert rig.states(ds) == [State.PENDING.value]


def test_a_hook_that_is_no_longer_configured_is_named_at_the_start(
    rigs, receiver, secret_file, tmp_path, clock, caplog
):
    rig = rigs(old={"kind": "webhook", "url": receiver.url, "secret_file": str(secret_file)})
    ds = rig.receive()
    rig.end(ds, BLEED)
    notifier = Notifier(found.hooks(), rig.database, clock)
    notifier.start()
    notifier.stop()
    assert [one.hook for one in caplog.records if getattr(one, "action", "") == "hook_unknown"] == ["old"]


def test_certificates_that_cannot_be_read_are_a_configuration_error(rigs):
    with pytest.raises(ConfigError, match="ca_file"):
        rigs(hl7={"kind": "hl7", "host": "h", "tls": True, "ca_file": "/none.pem"})


def test_the_node_starts_and_stops_its_notifier(tmp_path, free_port):
    values = {
        "node": {"data": str(tmp_path / "data")}, "receive": {"port": free_port(), "address": "127.0.0.1"},
        "notify": {"engine": {"kind": "hl7", "host": "127.0.0.1"}},
    }  # fmt: skip
    node = Node(found.hooks().model_validate(values))
    node.start()
    assert node.notifier.lanes[0].rounds.alive
    node.stop()
    assert not node.notifier.lanes[0].rounds.alive
