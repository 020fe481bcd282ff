"""HL7 messages: whatever a header holds, the message is valid 2.5.1 and says it exactly, or leaves it out."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest
from hl7apy.consts import VALIDATION_LEVEL
from hl7apy.parser import parse_message
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydicom.sr.codedict import codes

from dicomnode.config import Hl7
from dicomnode.dispatch.notify_hl7 import acknowledged, render
from dicomnode.dispatch.notify_message import Identity, Message
from dicomnode.errors import PeerUnreachable
from dicomnode.store.notifications import Kind, Notification, State
from tests.peers.found import finding

WHEN = datetime(2026, 1, 5, 10, 20, 30, tzinfo=UTC)
HOOK = Hl7(kind="hl7", host="h")


def message(findings=None, algorithm="ich", **identity):
    who = {
        "patient_id": "1", "issuer": "", "patient_name": "A^B", "birth_date": "19700101", "sex": "M",
        "accession_number": "A", "accession_issuer": "", "placer_order": "", "filler_order": "", "study_time": "",
    }  # fmt: skip
    one = Notification(
        id=1, study_uid="1.2", series_uid="1.3", job_id=1, algorithm=algorithm, version="1", hook="h", sequence=0,
        kind=Kind.POSITIVE, state=State.PENDING, attempt=1, refusals=0, not_before=WHEN, error="", order_key="",
        content={"findings": findings or [finding()], "retracted": [], "replaces": ""}, created_at=WHEN, sent_at=None,
    )  # fmt: skip
    return Message(notification=one, identity=Identity(**(who | identity)))


def fields(text):
    parse_message(text, validation_level=VALIDATION_LEVEL.STRICT).validate()
    return {line.split("|")[0]: line.split("|") for line in text.rstrip("\r").split("\r")}


def plain(text):
    return re.sub(r"\\([FSTRE])\\", lambda match: "|^&~\\"["FSTRE".index(match[1])], text)


@pytest.mark.parametrize(
    ("identity", "segment", "number", "wanted"),
    [
        ({"issuer": "I" * 64}, "PID", 3, "1^^^&" + "I" * 64 + "&L^MR"),
        ({"issuer": "HOSPITAL"}, "PID", 3, "1^^^HOSPITAL^MR"),
        ({"patient_name": ""}, "PID", 5, "^^^^^^U"),
        ({"patient_name": "^^^^"}, "PID", 5, "^^^^^^U"),
        ({"patient_name": "Yamada^Tarou=山田^太郎="}, "PID", 5, "Yamada^Tarou^^^^^L^A~山田^太郎^^^^^L^I"),
        ({"patient_name": "F~|^G&g"}, "PID", 5, "F\\R\\\\F\\^G\\T\\g^^^^^L"),
        ({"birth_date": "19700230"}, "PID", 7, ""),
        ({"birth_date": "19501399"}, "PID", 7, ""),
        ({"sex": "X"}, "PID", 8, "U"),
        ({"study_time": "20260105101010"}, "OBR", 7, "20260105101010"),
        ({"study_time": "20260105101060"}, "OBR", 7, "202601051010"),
        ({"study_time": "20260105"}, "OBR", 7, "20260105"),
        ({"study_time": "2026-01-05"}, "OBR", 7, ""),
        ({"study_time": "101010"}, "OBR", 7, ""),
        ({"accession_number": "1\r2\x0b\x1c"}, "OBR", 18, "1 2  "),
        ({"placer_order": "p" * 64}, "OBR", 2, "p" * 64),
        ({"filler_order": "FILL"}, "OBR", 3, "FILL"),
    ],
)  # fmt: skip
def test_odd_headers_make_valid_messages(identity, segment, number, wanted):
    assert fields(render(message(**identity), HOOK))[segment][number] == wanted


def test_long_meanings_are_cut_and_long_names_kept():
    found = fields(render(message([finding(["1", "99", "m" * 300])], algorithm="a" * 64), HOOK))
    assert found["OBR"][4] == "a" * 64 + "^AI " + "a" * 64 + "^L"


@settings(max_examples=40, deadline=None)
@example(patient_id="0", name="", issuer="000000000000000000|")  # longer than a namespace once escaped
@given(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=64).filter(
        lambda text: any(one.isprintable() and one != " " for one in text)
    ),
    st.text(st.characters(codec="utf-8"), max_size=64),
    st.text(st.characters(codec="utf-8"), max_size=40),
)
def test_any_text_is_said_exactly_but_for_control_characters(patient_id, name, issuer):
    found = fields(render(message(patient_id=patient_id, patient_name=name, issuer=issuer), HOOK))
    wanted = "".join(one if one.isprintable() else " " for one in patient_id)
    assert plain(found["PID"][3].split("^")[0]) == wanted
    assert set(found) == {"MSH", "PID", "ORC", "OBR", "NTE", "OBX"}, "nothing starts a segment of its own"


@pytest.mark.parametrize(
    "answer",
    [
        "MSH|^~\\&|E||||1||ACK|1|P|2.5.1\rMSA|AA|KEY\r",
        "MSH|^~\\&|E||||1||ACK|1|P|2.9\rMSA|AA|KEY",
        "MSH|^~\\&|E||||1||ACK|1|P|2.3\nMSA|AA|KEY|fine\nERR|x",
        "MSA|AA|KEY\r",
    ],
)
def test_an_acknowledgement_in_any_version_is_understood(answer):
    assert acknowledged(answer.encode(), "KEY") == "AA"


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400", b"MSH|^~\\&|E\r", b"MSA|AA|OTHER\r", b"MSA\r", b"\xff\xfe"])
def test_what_acknowledges_nothing_is_no_answer(answer):
    with pytest.raises(PeerUnreachable):
        acknowledged(answer, "KEY")


def test_presence_is_said_in_the_codes_of_cid_240():
    wanted = {"present": codes.cid240.Present, "absent": codes.cid240.Absent, "undetermined": codes.cid240.Undetermined}
    for presence, code in wanted.items():
        assert f"|{code.value}^{code.meaning}^SCT|" in render(message([finding(presence=presence)]), HOOK)
