"""``python -m dicomnode.receive.mrd``: the MRD listener; the node starts it and keeps its standard input open."""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys

from dicomnode import log
from dicomnode.errors import NodeError
from dicomnode.parent import die_with
from dicomnode.receive.child import poke, say
from dicomnode.receive.mrd.server import MrdServer
from dicomnode.receive.mrd.settings import MrdSettings


def main(arguments: list[str] | None = None) -> int:
    """Run until standard input closes or a signal comes."""
    parser = argparse.ArgumentParser(prog="python -m dicomnode.receive.mrd", description=__doc__)
    parser.add_argument("--child", type=int, required=True, metavar="FD", help=argparse.SUPPRESS)
    parser.add_argument("--parent", type=int, metavar="PID", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.parent:
        die_with(options.parent)
    settings = MrdSettings.from_json(sys.stdin.readline())
    log.setup(settings.log_level, style=settings.log_style)
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.signal(signal.SIGTERM, lambda *_: poke(waker))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the node stops its children in order
    try:
        server = MrdServer(settings, lambda: poke(options.child))
    except NodeError as error:
        say({"failed": str(error)})
        return 1
    server.start()
    say({"port": server.port})
    select.select([woken, sys.stdin.fileno()], [], [])
    server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
