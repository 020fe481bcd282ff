"""What the profiles of destinations make of a job's objects, and what is said where that is nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dicomnode.cli import main
from dicomnode.config import Config
from dicomnode.domain import Flavour, ObjectKind, Output
from dicomnode.execute import profiles


def config_of(**objects: list[str]) -> Config:
    peer = {"ae_title": "PEER", "host": "127.0.0.1"}
    return Config.model_validate(
        {"destinations": {name: {**peer, "objects": kinds} for name, kinds in objects.items()}}
    )


def made(*kinds: ObjectKind) -> list[Output]:
    return [
        Output(
            role=kind.value, index=0, sop_class_uid="1", sop_instance_uid=f"1.{number}", series_uid="1", study_uid="1",
            path=Path("0.dcm"), size=1, sha256="", kind=kind, flavour=Flavour.ANY,
        )
        for number, kind in enumerate(kinds)
    ]  # fmt: skip


def test_a_destination_that_gets_nothing_of_a_result_is_named() -> None:
    config = config_of(OHIF=["phases"], PACS=["report", "summary"], GONE=["report"])
    outputs = made(ObjectKind.REPORT)
    assert profiles.unserved(config, ["OHIF", "PACS"], outputs) == [
        "Nothing is sent to OHIF: it takes phases, and this result has none"
    ]
    assert profiles.unserved(config, ["PACS", "removed since"], []) == [
        "Nothing is sent to PACS: it takes report, summary, and this result has none"
    ]
    assert profiles.unserved(config, ["OHIF"], made(ObjectKind.PHASES)) == []


@pytest.mark.parametrize(
    ("objects", "warned"),
    [
        (["report", "summary"], "takes of report refers to segmentations"),
        (["report", "key_images", "marks"], "takes of report and key_images refers to segmentations"),
        (["phases"], "it takes phases alone"),
        (["phases", "summary"], ""),
        (["marks", "summary"], ""),
        (["report", "segmentation", "key_images"], ""),
    ],
)
def test_a_profile_that_sends_what_leads_nowhere_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], objects: list[str], warned: str
) -> None:
    file = tmp_path / "node.yaml"
    peer = {"ae_title": "PEER", "host": "127.0.0.1", "objects": objects}
    file.write_text(yaml.safe_dump({"node": {"data": str(tmp_path)}, "destinations": {"PEER": peer}}))
    assert main(["check", "--config", str(file)]) == 0, "it is allowed"
    shown = capsys.readouterr().err
    assert (warned in shown) if warned else ("destination" not in shown)
