"""``python -m dicomnode.receive``: the receiver alone.

With ``--port`` and ``--data`` it takes whatever is sent to 127.0.0.1, for benchmarks and experiments. The node starts
it with ``--child``, gives it its settings on standard input and keeps that open as long as it wants to receive.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import resource
import select
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dicomnode.parent import die_with
from dicomnode.receive.child import poke, say

if TYPE_CHECKING:
    from dicomnode.receive.settings import Settings

#: One busy thread (the committer) must not keep the others from the interpreter for the usual 5 ms: ingest study, 6.
_SWITCH_INTERVAL: Final = 0.0002


def main(arguments: list[str] | None = None) -> int:
    """Run until standard input closes (child) or a signal comes."""
    options = _options(arguments)
    if options.parent:
        die_with(options.parent)
    # pydicom loads numpy when it can. The receiver never decodes pixels, and numpy would be a fifth of its memory.
    sys.modules["numpy"] = None  # type: ignore[assignment]
    sys.setswitchinterval(_SWITCH_INTERVAL)
    with contextlib.suppress(ValueError, OSError):
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if options.child is None:
        return _run(_standalone(options), None, lifeline=None)
    from dicomnode.receive.settings import Settings

    return _run(Settings.from_json(sys.stdin.readline()), options.child, lifeline=sys.stdin.fileno())


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m dicomnode.receive", description=__doc__)
    parser.add_argument("--port", type=int, default=11112)
    parser.add_argument("--data", type=Path, default=Path("dicomnode-data"))
    parser.add_argument("--ae-title", default="ANY-SCP")
    parser.add_argument("--engine", choices=("streaming", "stock"), default="streaming")
    parser.add_argument("--durability", choices=("instance", "deferred", "none"), default="instance")
    parser.add_argument("--max-pdu", type=int, default=131072)
    parser.add_argument("--log", choices=("debug", "info", "warning", "error"), default="warning")
    parser.add_argument("--child", type=int, metavar="FD", help=argparse.SUPPRESS)
    parser.add_argument("--parent", type=int, metavar="PID", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _standalone(options: argparse.Namespace) -> Settings:
    from dicomnode.receive.settings import Settings

    return Settings(
        data=str(options.data),
        database="sqlite",
        address="127.0.0.1",
        port=options.port,
        ae_titles=(options.ae_title,),
        engine=options.engine,
        durability=options.durability,
        sources={},
        accept_unknown_sources=True,
        max_associations=256,
        max_pdu=options.max_pdu,
        refuse_below_mb=200,
        accept_above_mb=300,
        log_level=options.log,
    )


def _run(settings: Settings, poke_fd: int | None, *, lifeline: int | None) -> int:
    from dicomnode import log
    from dicomnode.errors import NodeError
    from dicomnode.receive.receiver import Receiver

    log.setup(settings.log_level, style=settings.log_style)
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    for number in (signal.SIGTERM, signal.SIGINT):
        # Ctrl-C at a terminal reaches the whole group; the node then stops its children in order, by their lifeline.
        ignored = number == signal.SIGINT and lifeline is not None
        signal.signal(number, signal.SIG_IGN if ignored else lambda *_: poke(waker))
    try:
        if lifeline is None:
            _migrate(settings)
        receiver = Receiver(settings, lambda: poke(poke_fd))
    except NodeError as error:
        say({"failed": str(error)})
        return 1
    gc.collect()
    gc.freeze()  # the library's tables are not searched for garbage again and again
    receiver.start()
    say({"port": receiver.port})
    select.select([woken] if lifeline is None else [woken, lifeline], [], [])
    receiver.stop()
    sys.stderr.flush()
    os._exit(0)  # the library's threads are not daemons; what matters is on the disk


def _migrate(settings: Settings) -> None:
    from dicomnode.store.db import migrate, open_database

    database = open_database(settings.database, Path(settings.data))
    migrate(database)
    database.close()


if __name__ == "__main__":
    sys.exit(main())
