"""``dicomnode route --explain``: the rule lab on the command line."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError

from dicomnode.assemble.route import representative
from dicomnode.cli.common import Commands, add_config, command, dicom_files, err, load_config, open_store, out
from dicomnode.config import Config
from dicomnode.domain import INDEX_TAGS
from dicomnode.errors import StoreError
from dicomnode.rules import check_rules, evaluate, is_regular_stack, series_facts
from dicomnode.store import instances, series

#: Series UID -> indexed headers, the header rules read, facts that only the node knows.
Found = dict[str, tuple[list[dict[str, str]], Dataset, dict[str, str]]]


#: Longer elements are not read: raw data carries a whole measurement in one [bytes].
_DEFER = 65536


def add(commands: Commands) -> None:
    """Add the command."""
    sub = command(
        commands, "route", "print, for each rule, each condition, the value seen, and why yes or no",
        """
        dicomnode route --explain /data/exam              # every series in a folder
        dicomnode route --explain 1.2.840.113619.2.55.1   # a series the node has received
        dicomnode route /data/exam                        # just the names of the rules that match
        """, _route,
    )  # fmt: skip
    sub.add_argument("what", metavar="FOLDER|SeriesInstanceUID")
    sub.add_argument("--explain", action="store_true", help="print every condition, not only the outcome")
    sub.add_argument("--source", default="", metavar="AE", help="for a folder: who would have sent it (series.source)")
    add_config(sub)


def _route(arguments: argparse.Namespace) -> int:
    config = load_config(arguments)
    check_rules(config.rules)
    place = Path(arguments.what)
    found = _from_folder(place, arguments.source) if place.exists() else _from_store(config, arguments.what)
    matched = 0
    of_study = {rule.name for rule in config.rules if rule.scope == "study"}
    studies: Counter[tuple[str, str]] = Counter()
    for series_uid, (headers, first, told) in sorted(found.items()):
        facts = {**series_facts(headers, first), **told}
        stack = is_regular_stack(headers)
        verdicts = [asdict(verdict) for verdict in evaluate(config.rules, first, facts)]
        wanted = [verdict["rule"] for verdict in verdicts if verdict["matched"]]
        matched += len(wanted)
        studies.update((str(first.get("StudyInstanceUID")), name) for name in wanted if name in of_study)
        out.print(f"series {series_uid}: {len(headers)} instances; wanted by: {', '.join(wanted) or 'no rule'}")
        if arguments.explain:
            out.print(f"  geometry: {stack.reason}")
            out.print("  facts: " + ", ".join(f"{name}={value}" for name, value in facts.items()))
            print_verdicts(verdicts)
    for (study_uid, name), count in sorted(studies.items()):
        quiet = f"{config.assemble.study_quiet_s:g} s after the last image of the study"
        out.print(f"study {study_uid}: {name} makes one job of all it wants ({count} series here), {quiet}")
    if not found:
        err.print(f"no DICOM series in {arguments.what}")
    return 0 if matched else 1


def print_verdicts(verdicts: Sequence[Mapping[str, Any]]) -> None:
    """Print each rule's verdict with each condition, the value seen, and why."""
    for verdict in verdicts:
        out.print(f"  rule {verdict['rule']}: {'MATCHES' if verdict['matched'] else 'does not match'}")
        for one in verdict["conditions"]:
            mark = "yes" if one["ok"] else "no "
            out.print(f"    {mark}  {one['keyword']}: wants {one['wanted']}, saw {one['seen']} - {one['why']}")


def _header(dataset: Dataset) -> dict[str, str]:
    """Return what the receiver would have indexed of this header."""
    header = {}
    for tag, keyword in INDEX_TAGS.items():
        element = dataset.get(tag)
        if element is not None and element.value not in (None, "") and not keyword.startswith(("Patient", "Issuer")):
            value = element.value
            several = isinstance(value, Sequence) and not isinstance(value, str)
            header[keyword] = "\\".join(map(str, value)) if several else str(value)
    return header


def _from_folder(folder: Path, source: str) -> Found:
    told = {"series.source": source, "series.incomplete": "no"}
    found: Found = {}
    for path in dicom_files(folder):
        try:
            dataset = dcmread(path, stop_before_pixels=True, defer_size=_DEFER)
        except (InvalidDicomError, OSError, ValueError) as error:
            err.print(f"{path.name} is left out: {error}")
            continue
        uid = str(dataset.get("SeriesInstanceUID", "(no SeriesInstanceUID)"))
        found.setdefault(uid, ([], dataset, told))[0].append(_header(dataset))
    return found


def _from_store(config: Config, series_uid: str) -> Found:
    with open_store(config).read() as connection:
        one = series.get(connection, series_uid)
        if one is None:
            raise StoreError(f"{series_uid} is neither a folder nor a series this node has received")
        held = instances.of_series(connection, series_uid)
    if not held:
        raise StoreError(f"the images of {series_uid} are past their retention; see dicomnode series {series_uid}")
    first = dcmread(config.node.data / "spool" / representative(held).path, stop_before_pixels=True)
    told = {"series.source": one.calling_ae, "series.incomplete": "yes" if one.incomplete else "no"}
    return {series_uid: ([dict(item.header) for item in held], first, told)}
