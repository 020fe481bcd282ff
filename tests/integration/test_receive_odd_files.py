"""All the odd real files there are, sent by DCMTK in their own transfer syntax."""

from __future__ import annotations

import re
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.conftest import EVALUATION_DATA
from tests.peers.dcmtk import require
from tests.peers.receiving import Receiving, data_set_of

ARCHIVE = EVALUATION_DATA / "dicom-odd" / "dicom-odd.tar.xz"
#: Proposes the file's own syntax only, so that storescu neither decodes nor converts.
_PROPOSALS = {
    "1.2.840.10008.1.2": "-xi",
    "1.2.840.10008.1.2.2": "-xb",
    "1.2.840.10008.1.2.1.99": "-xd",
    "1.2.840.10008.1.2.4.50": "-xy",
    "1.2.840.10008.1.2.4.51": "-xx",
    "1.2.840.10008.1.2.4.57": "-xs",
    "1.2.840.10008.1.2.4.70": "-xs",
    "1.2.840.10008.1.2.4.80": "-xt",
    "1.2.840.10008.1.2.4.81": "-xu",
    "1.2.840.10008.1.2.4.90": "-xv",
    "1.2.840.10008.1.2.4.91": "-xw",
    "1.2.840.10008.1.2.5": "-xr",
}


def proposal(path: Path) -> str:
    found = re.search(rb"\x02\x00\x10\x00UI..([\d.]+)", path.read_bytes()[:2000], re.DOTALL)
    return _PROPOSALS.get(found.group(1).decode() if found else "", "-x=")


@pytest.mark.slow
def test_every_odd_file_is_stored_or_refused_and_nothing_sticks(tmp_path: Path) -> None:
    if not ARCHIVE.exists():
        pytest.skip(f"{ARCHIVE.name} is not beside the checkout")
    program = require("storescu")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path / "odd", filter="data")
    files = sorted(path for path in (tmp_path / "odd").rglob("*") if path.is_file())
    assert len(files) >= 251
    outcomes: dict[str, list[str]] = {"stored": [], "refused": [], "not sent": []}
    walked: dict[str, int] = {}
    with Receiving(tmp_path / "node", durability="deferred") as node:
        for path in files:
            sent = subprocess.run(
                [program, "-v", "-R", "-aec", "NODE", proposal(path), "127.0.0.1", str(node.port), str(path)],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=60,
                check=False,
            )
            answers = re.findall(r"Received Store Response \((.*)\)", sent.stdout + sent.stderr)
            if not answers:
                outcomes["not sent"].append(path.name)
            elif answers[0].startswith("Success"):
                outcomes["stored"].append(path.name)
            else:
                assert re.search(r"Refused|Error|Unknown Status: 0x(111|a7|a9|c0)|Cannot", answers[0]), answers
                outcomes["refused"].append(path.name)
            if answers:
                node.idle()
            for uid, stored in node.stored().items():  # many files are one image in several syntaxes: make room
                walked[uid] = len(data_set_of(stored))
                stored.unlink()
        node.idle()
        assert node.incoming() == []
        assert len(outcomes["stored"]) > 180, outcomes
        assert 0 < len(outcomes["refused"]) == len(node.quarantined())
        rows = node.wait_rows("instance", len(walked))
        assert {row["sop_instance_uid"] for row in rows} == set(walked)
        good = tmp_path / "odd" / "dicom-odd" / "pydicom" / "test_files" / "CT_small.dcm"
        again = subprocess.run([program, "-aec", "NODE", "127.0.0.1", str(node.port), good], check=False)
        assert again.returncode == 0
