"""``dicomnode raw``: measurements of k-space that wait for a person, and the person's word on them."""

from __future__ import annotations

import argparse
from pathlib import Path

from pydicom import Dataset

from dicomnode.cli.common import Commands, add_config, command, err, load_config, out, table, when
from dicomnode.config import Config
from dicomnode.dicom import valid_uid
from dicomnode.dispatch import find_study
from dicomnode.errors import ConfigError
from dicomnode.receive.mrd.filer import release
from dicomnode.receive.mrd.identity import Matcher, identity_in
from dicomnode.store.db import open_database
from dicomnode.store.raw import Measurement, RawStore
from dicomnode.volumes.mrd import header_of, identity_of, xml_of


def add(commands: Commands) -> None:
    """Add the command."""
    sub = command(
        commands, "raw", "list, show, identify or remove measurements of k-space that are held",
        """
        dicomnode raw list
        dicomnode raw show 20260101T120000-1a2b3c4d
        dicomnode raw identify 20260101T120000-1a2b3c4d --like image.dcm
        dicomnode raw identify 20260101T120000-1a2b3c4d --study 1.2.840.1
        dicomnode raw remove 20260101T120000-1a2b3c4d
        """,
    )  # fmt: skip
    moves = sub.add_subparsers(title="moves", metavar="MOVE", required=True)
    for name, text, action in (
        ("list", "every measurement that is held or about to be filed", _list),
        ("show", "one measurement: what is known of it, and why it is held", _show),
        ("identify", "say whose it is: it is then filed, routed and reconstructed", _identify),
        ("remove", "delete a measurement for good", _remove),
    ):
        move = moves.add_parser(name, help=text, description=text)
        move.set_defaults(action=action)
        add_config(move)
        if name != "list":
            move.add_argument("name", metavar="NAME")
        if name == "identify":
            whose = move.add_mutually_exclusive_group(required=True)
            whose.add_argument("--like", type=Path, metavar="FILE", help="any DICOM object of the same study")
            whose.add_argument("--study", metavar="UID", help="a study that this node or the archive knows")


def _store(arguments: argparse.Namespace) -> tuple[Config, RawStore]:
    config = load_config(arguments)
    if not config.node.data.is_dir():
        raise ConfigError(f"no node has run with data folder {config.node.data} yet")
    return config, RawStore(config.node.data)


def _state(item: Measurement) -> str:
    return f"held: {item.held}" if item.held else "about to be filed"


def _list(arguments: argparse.Namespace) -> int:
    _, store = _store(arguments)
    rows = table("at", "name", "from", "readouts", "state")
    found = list(store.items())
    for item in found:
        state = _state(item) + (f"; incomplete: {item.incomplete}" if item.incomplete else "")
        rows.add_row(when(item.at), item.name, item.source, str(item.readouts), state)
    out.print(rows)
    if not found:
        err.print("no raw measurement waits")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    _, store = _store(arguments)
    item = store.get(arguments.name)
    path = store.payload(item.name)
    lines = {
        "received": when(item.at),
        "from": item.source or "unknown",
        "config": item.config or "-",
        "readouts": str(item.readouts),
        "bytes": str(path.stat().st_size),
        "whole": f"no: {item.incomplete}" if item.incomplete else "yes",
        "state": _state(item),
        "file": str(path),
    }
    xml = xml_of(path)
    for number, encoding in enumerate(header_of(xml).encodings):
        size = " x ".join(map(str, encoding.encoded_matrix))
        lines[f"encoding {number}"] = f"{encoding.trajectory}, {size}, acceleration {encoding.acceleration}"
    # The header's own words for whose it is: for the person who has to decide, never for a log.
    lines |= {f"header {keyword}": value for keyword, value in sorted(identity_of(xml).items())}
    for name, value in lines.items():
        out.print(f"{name:24} {value}")
    return 0


def _identify(arguments: argparse.Namespace) -> int:
    config, store = _store(arguments)
    store.get(arguments.name)
    like = (
        identity_in(arguments.like, config.node.default_charset) if arguments.like else _study(config, arguments.study)
    )
    item = release(store, arguments.name, like)
    out.print(f"{item.name} belongs to study {like.StudyInstanceUID}; the node files it at once, or at its next start")
    return 0


def _study(config: Config, uid: str) -> Dataset:
    if not valid_uid(uid, leading_zeros=True):
        raise ConfigError(f"{uid!r} is not a UID")
    if config.mrd is None:
        raise ConfigError("the configuration has no section mrd")
    database = open_database(config.node.database, config.node.data)
    try:
        matcher = Matcher(
            config.mrd.identity, database, config.node.data,
            lambda query, study: find_study(query, config.node.ae_title, study), config.node.default_charset,
        )  # fmt: skip
        found = matcher.match({"StudyInstanceUID": uid})
    finally:
        database.close()
    if found.like is None:
        raise ConfigError(f"{found.reason}; send an image of it to the node first, or use --like FILE")
    return found.like


def _remove(arguments: argparse.Namespace) -> int:
    _, store = _store(arguments)
    store.get(arguments.name)
    store.remove(arguments.name)
    out.print(f"{arguments.name} is deleted")
    return 0
