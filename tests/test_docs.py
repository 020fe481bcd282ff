"""Documents that must not drift: log actions, commands, the README's promises."""

from __future__ import annotations

import argparse
import re
import subprocess

from dicomnode import cli
from tests.conftest import REPOSITORY

SOURCES = sorted((REPOSITORY / "dicomnode").rglob("*.py"))


def actions() -> set[str]:
    """Every action a log line or a decision may carry."""
    found: set[str] = set()
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        found |= set(re.findall(r'"action": "(\w+)"', text))
        if path.parent.name != "cli":
            found |= set(re.findall(r'action = "(\w+)"', text))
        found |= set(re.findall(r'note\(\s*\w+, [\w.]+(?:\(\))?, "(\w+)"', text))
        found |= set(re.findall(r'_log\(\s*"\w+",\s*f?"[^"]*",\s*"(\w+)"', text))
    return found


def test_every_log_action_is_in_the_runbook_and_nothing_else() -> None:
    runbook = (REPOSITORY / "deploy" / "OPERATING.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in runbook.splitlines() if line.startswith("| `")]
    documented = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert len(actions()) > 50, "the search found too little: has the way of logging changed?"
    assert actions() - documented == set(), "undocumented"
    made_up = {name for name in documented - actions() if not re.search(rf"\b{name}\b", _all_sources())}
    assert made_up == set(), "documented, but nothing says it"


def _all_sources() -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in SOURCES) + " job_retry job_dead"


def test_every_command_has_help_with_an_example() -> None:
    found = _commands(cli.parser())
    assert set(found) == set(cli.COMMANDS)
    for name, sub in found.items():
        assert f"dicomnode {name}" in sub.format_help().partition("examples:")[2], f"{name} shows no example"


def test_a_command_is_found_where_it_is_looked_for() -> None:
    for name in cli.COMMANDS:
        assert name in _commands(cli.parser(name)), f"{name} is not added by the module that COMMANDS names"


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return dict(next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction)).choices)


def test_the_readme_names_every_command_and_file_it_points_at() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    for path in re.findall(r"`((?:deploy|pipelines|models|tests)/[\w./-]+)`", readme):
        assert (REPOSITORY / path.rstrip("/")).exists(), path
    for command in ("check", "serve", "route", "run", "series", "jobs", "quarantine", "send", "echo"):
        assert f"dicomnode {command}" in readme, command


def test_no_document_or_source_names_a_path_of_one_machine() -> None:
    done = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    texts = [
        REPOSITORY / name for name in done.stdout.split() if name.endswith((".py", ".md", ".yaml", ".toml", ".sh"))
    ]
    for path in texts:
        if path.name != "test_docs.py" and path.is_file():
            found = re.search(r"/root/|/home/\w|/work/", path.read_text(encoding="utf-8"))
            assert found is None, f"{path}: {found and found.group()}"
