"""The rules of the house that no linter knows: sizes, broad excepts, prints, what receiving loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

MODULES = sorted(
    path
    for room in ("dicomnode", "pipelines")
    for path in (REPOSITORY / room).rglob("*.py")
    if "versions" not in path.parts
)
MAX_MODULE, MAX_FUNCTION = 400, 60
#: Where anything may be raised by code that is not ours, and every failure must become an answer or a log line.
BOUNDARIES = {
    "rounds.py",  # the loop of every service
    "assemble/assembler.py", "assemble/route.py", "execute/dispatcher.py", "execute/loader.py",
    "execute/worker.py", "receive/association.py", "receive/committer.py", "receive/__main__.py", "receive/adopt.py",
    "receive/reader.py", "receive/intake.py", "receive/receiver.py", "dispatch/association.py", "dispatch/scu.py",
    "dispatch/convert.py",  # pydicom raises many kinds while it reads and writes
    "encode/beside.py",  # what may be left out, whatever highdicom makes of it
    "dispatch/files.py", "dispatch/notify.py", "receive/server.py", "rules/attributes.py", "rules/facts.py",
    "execute/stream.py", "receive/mrd/session.py", "receive/mrd/filer.py",
}  # fmt: skip


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            yield node


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_modules_and_functions_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_MODULE, f"{path.name} is over {MAX_MODULE} lines: split it by noun"
    for function in functions(ast.parse(text)):
        length = (function.end_lineno or 0) - function.lineno + 1
        reason = "longer than a page because" in (ast.get_docstring(function) or "")
        assert length <= MAX_FUNCTION or reason, f"{path.name}: {function.name} has {length} lines"


def test_broad_excepts_stand_only_at_boundaries() -> None:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler):
                names = {getattr(part, "id", "") for part in ast.walk(node.type)} if node.type else {"bare"}
                if names & {"Exception", "BaseException", "bare"}:
                    where = "/".join(path.relative_to(REPOSITORY).parts[1:])
                    assert where in BOUNDARIES, f"{where}:{node.lineno} catches everything"


def test_receiving_loads_neither_torch_nor_the_encoders() -> None:
    wanted = "('torch', 'highdicom', 'dicomnode.encode')"
    code = f"import sys, dicomnode.receive.receiver; print([m for m in {wanted} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stdout.strip() == "[]"


def test_the_nodes_own_process_does_not_load_torch() -> None:
    code = "import sys, dicomnode.node; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stdout.strip() == "False"
