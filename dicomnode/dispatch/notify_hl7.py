"""Tell an interface engine: HL7 v2.5.1 ORU^R01 over MLLP. hl7apy builds and checks messages and reads answers.

Fields follow IHE's use of ORU for imaging results: the accession number stands in OBR-18 (placer field 1) and, where
the study names no filler order, in OBR-3. MSH-10 is the idempotency key: the same for every try of a message.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from hl7apy.base_datatypes import ST
from hl7apy.consts import VALIDATION_LEVEL
from hl7apy.core import Message as Hl7Message
from hl7apy.exceptions import HL7apyException
from hl7apy.parser import parse_segment

from dicomnode.config import Hl7
from dicomnode.dispatch.notify_message import RESEARCH, Identity, Message
from dicomnode.errors import NotificationRefused, PeerUnreachable
from dicomnode.store.notifications import Kind, Notification

_VERSION: Final = "2.5.1"
# MLLP's frame (HL7 v2 implementation guide, appendix C).
START: Final = b"\x0b"
END: Final = b"\x1c\x0d"
#: No acknowledgement is longer.
_MAX_ANSWER: Final = 65536
#: CID 240.
_PRESENCES: Final = {
    "present": ("52101004", "Present"),
    "absent": ("272519000", "Absent"),
    "undetermined": ("373068000", "Undetermined"),
}
#: HD.1 and CWE.2 in 2.5.1.
_MAX_NAMESPACE: Final = 20
_MAX_MEANING: Final = 199
#: PID-5 must not be empty: a name of type "unspecified" (table 0200).
_NAMELESS: Final = "^^^^^^U"
_ACCEPTED: Final = ("AA", "CA")
_CHANGES: Final = {
    Kind.CORRECTION: "CORRECTION of an earlier message about this study.",
    Kind.RETRACTION: "RETRACTION: what an earlier message said about this study no longer holds.",
}


class Hl7Sender:
    """Sends messages to one interface engine, each on a connection of its own."""

    def __init__(self, hook: Hl7) -> None:
        self._hook = hook
        self._context = ssl.create_default_context(cafile=hook.ca_file) if hook.tls else None

    def send(self, message: Message) -> None:
        """Send one message; returns when it was acknowledged (AA or CA).

        Raises
        ------
        PeerUnreachable
            No answer, or not the answer to this message. The engine may have it all the same.
        NotificationRefused
            AE, AR, CE or CR; or the message cannot be said in HL7.
        """
        try:
            raw = render(message, self._hook).encode()
        except (HL7apyException, ValueError) as error:
            raise NotificationRefused(f"the message cannot be written as HL7: {type(error).__name__}") from None
        try:
            answer = self._exchange(START + raw + END)
        except (OSError, ssl.SSLError) as error:
            raise PeerUnreachable(f"no answer from the interface engine: {type(error).__name__}") from None
        code = acknowledged(answer, message.notification.key)
        if code not in _ACCEPTED:
            raise NotificationRefused(f"the interface engine answered {code}")

    def check(self) -> None:
        """Nothing more is needed than what the constructor has read."""

    def close(self) -> None:
        """Nothing is kept open."""

    def _exchange(self, framed: bytes) -> bytes:
        address = (self._hook.host, self._hook.port)
        with socket.create_connection(address, timeout=self._hook.timeout) as plain:
            if self._context is None:
                return _talk(plain, framed, self._hook.timeout)
            with self._context.wrap_socket(plain, server_hostname=self._hook.host) as secured:
                return _talk(secured, framed, self._hook.timeout)


def _talk(connection: socket.socket, framed: bytes, timeout: float) -> bytes:
    end = time.monotonic() + timeout
    connection.sendall(framed)
    received = b""
    while END not in received:
        connection.settimeout(max(end - time.monotonic(), 0.001))  # of all parts together: some drip
        part = connection.recv(4096)
        if not part or len(received) > _MAX_ANSWER:
            raise ConnectionError("closed before the end of the answer")
        received += part
    return received[: received.index(END)].lstrip(START)


def acknowledged(answer: bytes, key: str) -> str:
    """Code of an acknowledgement (MSA-1).

    Only MSA is read, in this version's grammar, because engines answer in whatever version they are set to.

    Raises
    ------
    PeerUnreachable
        It is no acknowledgement, or one of another message.
    """
    text = answer.decode("utf-8", errors="replace").replace("\n", "\r")
    line = next((line for line in text.split("\r") if line.startswith("MSA")), "")
    try:
        msa = parse_segment(line, version=_VERSION)
        code, of = str(msa.msa_1.value), str(msa.msa_2.value)
    except (HL7apyException, AttributeError):
        raise PeerUnreachable("the interface engine's answer is no acknowledgement") from None
    if of != key:
        raise PeerUnreachable("the interface engine acknowledged another message")
    return code


def render(message: Message, hook: Hl7) -> str:
    """The message in ER7: the same for every try."""
    one, who = message.notification, message.identity
    final = "F" if one.kind is Kind.POSITIVE else "C"
    when = one.created_at.strftime("%Y%m%d%H%M%S+0000")
    made = Hl7Message("ORU_R01", version=_VERSION, validation_level=VALIDATION_LEVEL.STRICT)
    _fill(
        made.msh,
        {
            3: hook.sending_application, 4: hook.sending_facility, 5: hook.receiving_application,
            6: hook.receiving_facility, 7: when, 9: "ORU^R01^ORU_R01", 10: one.key, 11: hook.processing_id,
            18: "UNICODE UTF-8",
        },
    )  # fmt: skip
    result = made.add_group("ORU_R01_PATIENT_RESULT")
    _fill(result.add_group("ORU_R01_PATIENT").add_segment("PID"), _patient(who))
    order = result.add_group("ORU_R01_ORDER_OBSERVATION")
    filler = _text(who.filler_order or who.accession_number)
    _fill(order.add_segment("ORC"), {1: "RE", 2: _text(who.placer_order), 3: filler})
    _fill(
        order.add_segment("OBR"),
        {
            1: "1", 2: _text(who.placer_order), 3: filler, 4: _components(one.algorithm, f"AI {one.algorithm}", "L"),
            7: _time(who.study_time), 18: _text(who.accession_number), 22: when, 24: "RAD", 25: final,
        },
    )  # fmt: skip
    said = [RESEARCH, f"{one.algorithm} {one.version}", _CHANGES.get(one.kind, ""), one.content.get("reason", "")]
    for number, words in enumerate((words for words in said if words), 1):
        _fill(order.add_segment("NTE"), {1: str(number), 2: "L", 3: _text(words)})
    for number, fields in enumerate(_observations(one, final), 1):
        _fill(order.add_group("ORU_R01_OBSERVATION").add_segment("OBX"), {1: str(number), **fields})
    made.validate()
    text: str = made.to_er7()
    return text + "\r"


def _patient(who: Identity) -> dict[int, str]:
    return {
        1: "1",
        3: f"{_text(who.patient_id)}^^^{_authority(who.issuer)}^MR",
        5: _name(who.patient_name) or _NAMELESS,
        7: _time(who.birth_date),
        8: {"M": "M", "F": "F", "O": "O"}.get(who.sex, "U"),
    }


def _authority(issuer: str) -> str:
    """HD of an issuer: a namespace where it is short enough to be one, escapes counted, else a local identifier."""
    text = _text(issuer)
    return text if len(text) <= _MAX_NAMESPACE else f"&{text}&L"


def _time(value: str) -> str:
    """DA, or DA and TM joined, as far as it is a time: hl7apy refuses a message with an impossible one."""
    for length, pattern in ((14, "%Y%m%d%H%M%S"), (12, "%Y%m%d%H%M"), (8, "%Y%m%d")):
        part = value[:length]
        try:
            # strptime takes single digits for months and hours: 19501399 would be January the 3rd, at 9:09
            if len(part) == length and datetime.strptime(part, pattern):
                return part
        except ValueError:
            continue
    return ""


def _observations(one: Notification, final: str) -> list[dict[int, str]]:
    """OBX of every finding, what was taken back after what holds, and of the study they were found in."""
    found = [
        *({"status": final, "flag": _flag(finding), **finding} for finding in one.content["findings"]),
        *({"status": "C", "flag": "", **finding} for finding in one.content["retracted"]),
    ]
    fields = [_finding(finding) for finding in found]
    study = {2: "ST", 3: "110180^Study Instance UID^DCM", 5: one.study_uid, 11: final}
    return [*fields, study]


def _finding(finding: Mapping[str, Any]) -> dict[int, str]:
    value, scheme, meaning = finding["code"]
    presence, word = _PRESENCES[finding["presence"]]
    return {
        2: "CWE",
        3: _components(value, meaning[:_MAX_MEANING], scheme),
        5: _components(presence, word, "SCT"),
        8: finding["flag"],
        11: finding["status"],
    }


def _flag(finding: Mapping[str, Any]) -> str:
    """OBX-8, table 0078, of what is present: very abnormal where somebody should know within minutes."""
    return "AA" if finding["urgency"] == "minutes" else "A"


def _name(name: str) -> str:
    """PN to XPN: suffix and prefix change places, and every group of letters becomes a repetition."""
    said = []
    for group, code in zip(name.split("="), ("A", "I", "P"), strict=False):
        family, given, middle, prefix, suffix = [*group.split("^"), *[""] * 5][:5]
        if group.strip("^ "):
            said.append(_components(family, given, middle, suffix, prefix, "", "L", code if "=" in name else ""))
    return "~".join(said)


def _components(*parts: str) -> str:
    return "^".join(_text(part) for part in parts).rstrip("^")


def _text(text: str) -> str:
    """Text with HL7's delimiters escaped, and without control characters, which would end a segment or a frame."""
    plain = "".join(one if one.isprintable() else " " for one in text)
    return str(ST(plain, validation_level=VALIDATION_LEVEL.TOLERANT).to_er7())


def _fill(segment: Any, fields: Mapping[int, str]) -> None:  # noqa: ANN401 - hl7apy has no types
    """Set fields by number, repetitions parted by ``~``; empty ones stay out."""
    for number, value in sorted(fields.items()):
        field = f"{segment.name}_{number}".lower()
        first, *further = value.split("~")
        if first:
            setattr(segment, field, first)
        for repetition in further:
            segment.add_field(field).value = repetition
