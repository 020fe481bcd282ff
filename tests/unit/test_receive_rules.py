"""Who comes in, when the disk is full, what a command set says: the small parts of receiving, without sockets."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from dicomnode.config import Config
from dicomnode.receive import dimse
from dicomnode.receive.policy import Policy
from dicomnode.receive.settings import Settings
from dicomnode.receive.watermark import Watermark
from tests.peers.parrot import element, store_rq
from tests.peers.receiving import settings


def test_settings_survive_the_way_to_the_child_process() -> None:
    config = Config.model_validate(
        {
            "receive": {"called_ae_titles": ["OTHER"], "max_object_mb": 10, "durability": "deferred"},
            "sources": [{"ae_title": "CT1", "addresses": ["10.0.0.0/8", "::1"]}, {"ae_title": "CT2"}],
        }
    )
    made = Settings.of(config)
    assert Settings.from_json(made.to_json()) == made
    assert made.ae_titles == ("DICOMNODE", "OTHER") and made.max_object == 10_000_000
    assert made.sources == {"CT1": ("10.0.0.0/8", "::1"), "CT2": ()}


@pytest.mark.parametrize(
    ("calling", "address", "code"),
    [
        ("CT1", "10.1.2.3", None),
        ("CT1", "::ffff:10.1.2.3", None),
        ("CT1", "192.168.0.1", "address-not-allowed"),
        ("CT1", "fe80::1%eth0", None),
        ("CT2", "203.0.113.9", None),
        ("CT3", "10.1.2.3", "calling-ae-unknown"),
        ("", "10.1.2.3", "calling-ae-unknown"),
    ],
)
def test_sources_are_matched_by_title_and_network(calling: str, address: str, code: str | None) -> None:
    policy = Policy(
        settings(Path(), sources={"CT1": ("10.0.0.0/8", "fe80::/10"), "CT2": ()}, accept_unknown_sources=False)
    )
    rejection = policy.judge("NODE", calling, address)
    assert (rejection.code if rejection else None) == code


def test_watermark_has_two_marks_and_looks_seldom(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    state = {"free": 300_000_000, "now": 0.0, "looks": 0}

    def free(_: Path) -> int:
        state["looks"] += 1
        return int(state["free"])

    mark = Watermark(Path(), 100, 200, free=free, clock=lambda: state["now"])
    seen = []
    for now, megabytes in ((0, 300), (0.1, 50), (0.3, 50), (0.6, 150), (0.9, 200), (1.2, 150), (1.5, 99)):
        state["now"], state["free"] = now, megabytes * 1_000_000
        seen.append(mark.open)
    assert seen == [True, True, False, False, True, True, False]
    assert state["looks"] == 6
    assert [record.action for record in caplog.records] == ["disk_low", "disk_recovered", "disk_low"]  # type: ignore[attr-defined]


def test_command_sets_read_and_answer() -> None:
    raw = store_rq(513, "1.2.840.10008.5.1.4.1.1.2", "1.2.3")
    request = dimse.command(raw)
    assert request is not None
    assert (request.field, dimse.uid(request.sop_instance), request.has_data_set) == (1, "1.2.3", True)
    answer = dimse.response(5, request, 0xA700)
    assert answer[:6] == b"\4\0" + (len(answer) - 6).to_bytes(4, "big") and answer[10:12] == b"\5\3"
    assert element(0x900, b"\0\xa7") in answer and element(0x120, b"\1\2") in answer


@pytest.mark.parametrize(
    "raw", [b"", b"\0" * 7, b"\0\0\0\1\xff\0\0\0\1\0", element(0x100, b"\1\0"), b"\2\0\0\0\0\0\0\0"]
)
def test_bytes_that_are_no_command_set_are_not_read_as_one(raw: bytes) -> None:
    assert dimse.command(raw) is None


def test_overlong_uids_are_not_echoed_so_that_the_answer_fits_any_pdu() -> None:
    request = dimse.command(store_rq(1, "1" * 5000, "2" * 5000))
    assert request is not None
    assert len(dimse.response(1, request, 0)) < 200


def test_a_handed_back_command_is_framed_as_it_came() -> None:
    assert dimse.reframed(3, b"abcd", 10) == b"\4\0\0\0\0\x14\0\0\0\6\3\3abcd"
