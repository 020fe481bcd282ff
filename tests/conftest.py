"""Fixtures only: a temporary store, a clock that stands still, a free port."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dicomnode.store.db import Database, migrate, open_database

# Torch's threads wait for each other by spinning: beside a second test worker on two cores that is five times the
# processor time for the same tests. A node's slots have the threads that its configuration says all the same.
os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).parents[1]
#: Evaluation data beside the checkout; tests that need it skip without it.
EVALUATION_DATA = REPOSITORY.parent / "shared" / "data"


class Clock:
    """A clock that moves only when told."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> datetime:
        self.now += timedelta(seconds=seconds)
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = open_database("sqlite", tmp_path / "node")
    migrate(made)
    yield made
    made.close()


@pytest.fixture
def free_port() -> Callable[[], int]:
    def free() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    return free


def missing_peer(what: str) -> None:
    """Skip on a laptop; fail where every peer must be there."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} is missing, and CI must have it")
    pytest.skip(f"{what} is not installed")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Benchmarks run only when asked for by name (-m benchmark)."""
    if "benchmark" in (config.option.markexpr or ""):
        return
    skip = pytest.mark.skip(reason="benchmark: run make bench")
    for item in items:
        if "benchmark" in item.keywords:
            item.add_marker(skip)
