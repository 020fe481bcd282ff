"""The command line as a person meets it: exit codes, errors on standard error, offline runs and explanations."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydicom import dcmread

from tests import factories
from tests.acceptance.harness import SHIFT, rule
from tests.conftest import REPOSITORY
from tests.peers.pacs import Pacs


def run(*words: str | Path, cwd: Path | None = None, limit_s: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dicomnode", *map(str, words)], capture_output=True, text=True, timeout=limit_s, cwd=cwd,
        check=False, env={**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "200", "DICOMNODE_CONFIG": ""},
    )  # fmt: skip


@pytest.fixture
def configured(tmp_path: Path) -> Path:
    import yaml

    path = tmp_path / "node.yaml"
    settings = {
        "node": {"data": str(tmp_path / "data")}, "rules": [rule()], "pipelines": SHIFT,
        "destinations": {"PACS": {"ae_title": "PACS", "host": "127.0.0.1", "port": 9}},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(settings))
    return path


def test_without_a_configuration_it_says_where_it_looked(tmp_path: Path) -> None:
    done = run("serve", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert "node.yaml" in done.stderr and "deploy/node.yaml" in done.stderr


def test_a_wrong_configuration_lists_every_problem_and_exits_2(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("node: {ae_titel: X}\nrules: [{name: a}]\n")
    done = run("check", "--config", tmp_path / "bad.yaml")
    assert done.returncode == 2 and "did you mean 'ae_title'?" in done.stderr and "rules.0.when" in done.stderr


def test_a_keyword_no_dictionary_knows_is_an_error_with_a_suggestion(configured: Path) -> None:
    configured.write_text(configured.read_text().replace("Modality", "Modallity"))
    done = run("check", "--config", configured)
    assert done.returncode == 2 and "Modality" in done.stderr


def test_check_prints_options_with_defaults_and_fails_when_a_destination_is_silent(configured: Path) -> None:
    done = run("check", "--config", configured)
    assert done.returncode == 0 and "hu" in done.stdout and "1.0" in done.stdout
    done = run("check", "--echo", "--config", configured)
    assert done.returncode == 1 and "destination PACS" in done.stderr


def test_route_explains_a_folder_and_says_no_with_1(configured: Path, tmp_path: Path) -> None:
    factories.write_series(tmp_path / "ct", factories.ct_series(n=4))
    factories.write_series(tmp_path / "mr", factories.mr_series(n=3))
    done = run("route", "--explain", tmp_path / "ct", "--config", configured)
    assert done.returncode == 0 and "rule all CT: MATCHES" in done.stdout and "series.slices=4" in done.stdout
    done = run("route", "--explain", tmp_path / "mr", "--config", configured)
    assert done.returncode == 1 and "wants CT, saw MR" in done.stdout
    assert "PHANTOM-1" not in done.stdout


def test_run_offline_writes_objects_and_names_what_it_cannot_use(tmp_path: Path) -> None:
    factories.write_series(tmp_path / "in", factories.ct_series(n=4))
    (tmp_path / "in" / "notes.txt").write_text("not DICOM")
    words = ["run", tmp_path / "in", "--pipeline", "tests.toys:Shift", "--option", "hu=5", "--out", tmp_path / "out"]
    done = run(*words)
    assert done.returncode == 0, done.stderr
    made = sorted((tmp_path / "out").rglob("*.dcm"))
    assert len(made) == 4 and "notes.txt is left out" in done.stderr
    assert dcmread(made[0]).ImageType[0] == "DERIVED"
    done = run(*words[:4], "tests.toys:Picky", "--out", tmp_path / "none")
    assert done.returncode == 2 or "not for this pipeline" in done.stderr


def test_run_says_no_when_the_pipeline_does(tmp_path: Path) -> None:
    factories.write_series(tmp_path / "in", factories.ct_series(n=4))
    done = run("run", tmp_path / "in", "--pipeline", "tests.toys:Picky", "--out", tmp_path / "out")
    assert done.returncode == 1 and "not for this pipeline: does not like 4 slices" in done.stderr
    done = run("run", tmp_path / "in", "--pipeline", "tests.toys:Shift", "--option", "huu=5")
    assert done.returncode == 3 and "did you mean 'hu'?" in done.stderr


def test_send_and_echo_by_hand(tmp_path: Path) -> None:
    factories.write_series(tmp_path / "in", factories.ct_series(n=3))
    with Pacs(tmp_path / "pacs") as pacs:
        peer = f"PACS@127.0.0.1:{pacs.port}"
        assert "answers C-ECHO" in run("echo", peer).stdout
        done = run("send", tmp_path / "in", "--to", peer)
        assert done.returncode == 0 and "3 of 3 objects accepted" in done.stdout
        pacs.status_of = {item.sop_instance_uid: 0xC000 for item in pacs.received[:1]}
        done = run("send", tmp_path / "in", "--to", peer)
        assert (
            done.returncode == 1 and "2 of 3" in done.stdout and "0xC000" in done.stderr.upper().replace("0XC", "0xC")
        )
    done = run("echo", peer)
    assert done.returncode == 1 and done.stdout == ""


@pytest.mark.slow
def test_the_demo_runs_to_its_end(tmp_path: Path) -> None:
    done = run("demo", "--dir", tmp_path / "demo", limit_s=400)
    assert done.returncode == 0, done.stdout + done.stderr
    for expected in (
        "rule head CT, denoise: MATCHES", "rule head CT, hemorrhage: MATCHES", "no   Modality: wants CT, saw MR",
        "Intracranial hemorrhage: present", "Intracranial hemorrhage: absent", "AI hemorrhage, RUO", "AI denoised, RUO",
        "AI marks", "AI summary, RUO", "AI key images, RUO",
    ):  # fmt: skip
        assert expected in done.stdout, expected
    for picture in ("before-after.png", "summary-DEMO-1.png", "summary-DEMO-2.png"):
        assert (tmp_path / "demo" / picture).stat().st_size > 1000
