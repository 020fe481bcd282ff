"""``dicomnode serve``."""

from __future__ import annotations

import argparse

from dicomnode import log
from dicomnode.cli.common import Commands, add_config, command, load_config
from dicomnode.node import Node


def add(commands: Commands) -> None:
    """Add the command."""
    sub = command(
        commands, "serve", "run the node until it is told to stop (SIGTERM or Ctrl-C)",
        """
        dicomnode serve --config /etc/dicomnode/node.yaml
        DICOMNODE_CONFIG=node.yaml dicomnode serve
        """, _serve,
    )  # fmt: skip
    add_config(sub)


def _serve(arguments: argparse.Namespace) -> int:
    config = load_config(arguments)
    log.setup(config.node.log.level, style=config.node.log.style)
    return Node(config).run()
