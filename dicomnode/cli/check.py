"""``dicomnode check``: whether a configuration is going to work."""

from __future__ import annotations

import argparse
import dataclasses
from datetime import UTC, datetime
from typing import Final

from dicomnode.cli.common import Commands, add_config, command, err, find_config, open_store, out, table
from dicomnode.config import Config, load
from dicomnode.dispatch import echo
from dicomnode.dispatch.notify import sender
from dicomnode.domain import ObjectKind
from dicomnode.errors import NodeError, PipelineNotLoadable
from dicomnode.execute import loader
from dicomnode.pipeline import StreamingPipeline
from dicomnode.rules import check_rules
from dicomnode.store.db import migrate

#: Kinds whose objects refer to the segmentation of the same result.
_POINTING: Final = (ObjectKind.REPORT, ObjectKind.KEY_IMAGES)


def add(commands: Commands) -> None:
    """Add the command."""
    sub = command(
        commands, "check", "check the configuration, load every pipeline, and print options with their defaults",
        """
        dicomnode check --config node.yaml
        dicomnode check --echo            # also C-ECHO every destination
        dicomnode check --migrate         # also bring a PostgreSQL schema up to date
        """, _check,
    )  # fmt: skip
    add_config(sub)
    sub.add_argument("--echo", action="store_true", help="C-ECHO every destination")
    sub.add_argument("--migrate", action="store_true", help="bring the database schema up to date")


def _check(arguments: argparse.Namespace) -> int:
    path = find_config(arguments.config)
    config = load(path)
    check_rules(config.rules)
    out.print(f"{path}: {len(config.rules)} rules, {len(config.pipelines)} pipelines, "
              f"{len(config.sources)} sources, {len(config.destinations)} destinations")  # fmt: skip
    _profiles(config)
    wrong = _pipelines(config) + _hooks(config) + _mrd(config)
    if arguments.migrate:
        migrate(open_store(config))
        out.print("database schema is up to date")
    if arguments.echo:
        wrong += _echo(config)
    return 1 if wrong else 0


def _profiles(config: Config) -> None:
    """Warn of profiles that are allowed, and yet send what a viewer cannot follow, or nothing."""
    for name, destination in config.destinations.items():
        kinds = set(destination.objects)
        pointing = [kind for kind in _POINTING if kind in kinds]
        if pointing and ObjectKind.SEGMENTATION not in kinds:
            err.print(
                f"destination {name}: what it takes of {' and '.join(pointing)} refers to segmentations that it is "
                "never sent; add segmentation to its objects, or let it take marks and summary instead",
                style="yellow",
            )
        if kinds == {ObjectKind.PHASES}:
            err.print(
                f"destination {name}: it takes phases alone, which only a cine of single images has: of everything "
                "else nothing is sent to it",
                style="yellow",
            )


def _pipelines(config: Config) -> int:
    wrong = 0
    for name, settings in config.pipelines.items():
        try:
            cls = loader.load_class(settings.class_)
            digest = loader.check_weights(loader.weights_folder(cls, settings.weights))
            used = [rule for rule in config.rules if rule.pipeline == name]
            for options in [settings.options, *({**settings.options, **rule.options} for rule in used)]:
                loader.make_options(cls, options)
        except NodeError as error:
            err.print(f"pipeline {name}: {error}", style="red")
            wrong += 1
            continue
        out.print(f"\npipeline {name}: {cls.algorithm.name} {cls.algorithm.version}, weights {digest[:12] or 'none'}, "
                  f"used by {len(used)} rules")  # fmt: skip
        rows = table("option", "type", "default", "set to")
        for field in dataclasses.fields(cls.Options):
            default = field.default if field.default is not dataclasses.MISSING else ""
            rows.add_row(field.name, str(field.type), str(default), str(settings.options.get(field.name, "")))
        out.print(rows)
    return wrong


def _mrd(config: Config) -> int:
    """Whether the names a scanner may ask for stand for pipelines that work line by line."""
    wrong = 0
    for name, one in config.mrd.configs.items() if config.mrd else ():
        settings = config.pipelines[one.pipeline]
        try:
            cls = loader.load_class(settings.class_)
            loader.make_options(cls, {**settings.options, **one.options})
            if not issubclass(cls, StreamingPipeline):
                raise PipelineNotLoadable(f"{settings.class_} does not work on k-space line by line")
        except NodeError as error:
            err.print(f"mrd config {name}: {error}", style="red")
            wrong += 1
        else:
            out.print(f"mrd config {name}: pipeline {one.pipeline}")
    return wrong


def _hooks(config: Config) -> int:
    wrong = 0
    for name, hook in config.notify.items():
        try:
            sender(hook, lambda: datetime.now(UTC)).check()
        except NodeError as error:
            err.print(f"hook {name}: {error}", style="red")
            wrong += 1
        else:
            out.print(f"hook {name}: {hook.kind}, told of findings to communicate within {' or '.join(hook.urgency)}")
    return wrong


def _echo(config: Config) -> int:
    wrong = 0
    for name, destination in config.destinations.items():
        problem = echo(destination, destination.calling_ae_title or config.node.ae_title)
        wrong += bool(problem)
        (err if problem else out).print(f"destination {name}: {problem or 'answers C-ECHO'}")
    return wrong
