"""``dicomnode send`` and ``dicomnode echo``: talk to a peer by hand."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from dicomnode.cli.common import Commands, add_config, command, dicom_files, err, find_config, out
from dicomnode.config import Config, Destination, load
from dicomnode.dispatch import echo, send_files
from dicomnode.errors import ConfigError


def add(commands: Commands) -> None:
    """Add the commands."""
    text = "destination of the configuration, or AE@host:port"
    sub = command(
        commands, "send", "send every DICOM file of a folder by C-STORE",
        """
        dicomnode send /data/exam --to PACS
        dicomnode send /data/exam --to ORTHANC@127.0.0.1:4242 --from CTSCANNER1
        """, _send,
    )  # fmt: skip
    sub.add_argument("folder", type=Path)
    sub.add_argument("--to", required=True, metavar="PEER", help=text)
    sub.add_argument("--from", dest="calling", default="", metavar="AE", help="calling AE title (default: the node's)")
    add_config(sub)
    sub = command(
        commands, "echo", "verify a peer by C-ECHO",
        """
        dicomnode echo PACS
        dicomnode echo ORTHANC@127.0.0.1:4242
        """, _echo,
    )  # fmt: skip
    sub.add_argument("peer", metavar="PEER", help=text)
    sub.add_argument("--from", dest="calling", default="", metavar="AE", help="calling AE title (default: the node's)")
    add_config(sub)


def peer_of(text: str, arguments: argparse.Namespace) -> tuple[Destination, str]:
    """Return the peer and the AE title to call it with."""
    title, at, address = text.partition("@")
    if at:
        host, colon, port = address.rpartition(":")
        if not colon or not port.isdigit():
            raise ConfigError(f"{text!r} must be AE@host:port")
        return Destination(ae_title=title, host=host, port=int(port)), arguments.calling or "DICOMNODE"
    config: Config = load(find_config(arguments.config))
    if text not in config.destinations:
        known = ", ".join(config.destinations) or "none"
        raise ConfigError(f"{text!r} is not a destination of the configuration (known: {known}); or write AE@host:port")
    found = config.destinations[text]
    return found, arguments.calling or found.calling_ae_title or config.node.ae_title


def _send(arguments: argparse.Namespace) -> int:
    peer, calling = peer_of(arguments.to, arguments)
    paths = dicom_files(arguments.folder)
    columns = (TextColumn("sending"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err) as bar:
        shown = bar.add_task("", total=len(paths))
        outcomes = send_files(peer, calling, paths, lambda _: bar.advance(shown))
    problems = Counter(one.problem for one in outcomes if one.problem)
    for problem, number in problems.items():
        err.print(f"{number} x {problem}")
    taken = sum(not one.problem for one in outcomes)
    out.print(f"{taken} of {len(paths)} objects accepted by {peer.ae_title}")
    return 0 if taken == len(paths) and paths else 1


def _echo(arguments: argparse.Namespace) -> int:
    peer, calling = peer_of(arguments.peer, arguments)
    problem = echo(peer, calling)
    if problem:
        err.print(f"{peer.ae_title} at {peer.host}:{peer.port}: {problem}")
        return 1
    out.print(f"{peer.ae_title} at {peer.host}:{peer.port} answers C-ECHO")
    return 0
