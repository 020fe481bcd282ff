"""Raw data on its way to a job: when all of it is there, and what rules may ask of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pydicom import dcmread

from dicomnode.assemble.completeness import Decision, Signals, Wait, decide
from dicomnode.assemble.parts import parts_here
from dicomnode.config import Assemble, Rule
from dicomnode.domain import AssociationEnd, Completion
from dicomnode.rules import evaluate, series_facts
from tests import factories
from tests.raw_scans import wrapped

SETTINGS = Assemble()
QUIET = Signals(
    instances=3, quiet_for_s=1e4, open_for_s=1.0, expected=None, asking=False, announced=None,
    last_end=AssociationEnd.RELEASED, associations=1, sender_connected=False, regular=False,
    geometry="3 of 3 instances do not say where they lie", holes=False, sender_reopened=0,
)  # fmt: skip


@pytest.fixture
def parts(tmp_path):
    (tmp_path / "scan.h5").write_bytes(bytes(range(250)))
    return wrapped(tmp_path / "raw", tmp_path / "scan.h5", part_bytes=100)


def test_parts_count_themselves(parts, tmp_path):
    assert parts_here(parts) == (3, 3)
    assert parts_here(parts[1:]) == (2, 3)
    assert parts_here([*parts[1:], parts[2]]) == (2, 3), "a part that came twice is one part"
    (tmp_path / "scan.h5").write_bytes(b"another measurement")
    other = wrapped(tmp_path / "other", tmp_path / "scan.h5")
    assert parts_here([*parts, *other]) is None
    ds = dcmread(parts[0])
    ds.CreatorVersionUID = "1.2.3"
    ds.save_as(parts[0])
    assert parts_here(parts) is None


def test_all_parts_are_proof_enough_and_silence_is_none():
    here = decide(replace(QUIET, quiet_for_s=0.0, sender_connected=True, parts=(3, 3)), SETTINGS, 10, "default")
    assert isinstance(here, Decision) and here.completion is Completion.COUNTED and not here.incomplete
    assert here.reason == "3 of 3 parts of the raw data are here"
    waiting = decide(replace(QUIET, parts=(2, 3)), SETTINGS, 10, "default")
    assert isinstance(waiting, Wait) and "2 of 3 parts" in waiting.reason
    capped = decide(replace(QUIET, parts=(2, 3), open_for_s=SETTINGS.cap_s), SETTINGS, 10, "default")
    assert isinstance(capped, Decision) and capped.completion is Completion.CAP and capped.incomplete
    assert "1 of 3 parts of the raw data never came" in capped.reason


def test_rules_may_ask_whether_it_is_raw_data_and_whose(parts):
    ours = dcmread(parts[0])
    foreign = dcmread(parts[0])
    foreign.CreatorVersionUID = "1.2.3"
    image = factories.mr_series(1)[0]
    facts = [series_facts([{}], ds) for ds in (ours, foreign, image)]
    assert [one.get("series.raw") for one in facts] == ["mrd", "foreign", None]
    rules = [
        Rule.model_validate({"name": name, "when": when, "pipeline": "p", "send_to": ["PACS"]})
        for name, when in (
            ("raw", {"series.raw": "mrd"}),
            ("class", {"SOPClassUID": "RawDataStorage"}),
            ("images", {"Modality": "MR", "series.raw": "absent"}),
        )
    ]
    wanted = [
        [verdict.rule for verdict in evaluate(rules, ds, fact) if verdict.matched]
        for ds, fact in zip((ours, foreign, image), facts, strict=True)
    ]
    assert wanted == [["raw", "class"], ["class"], ["images"]]
