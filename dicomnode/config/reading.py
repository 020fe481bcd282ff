"""One YAML file becomes one checked, frozen `Config`; every problem is reported at once, with its path."""

from __future__ import annotations

import types
import typing
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ValidationError

from dicomnode.config.model import Config, near
from dicomnode.errors import ConfigError


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    """Known keys of the model at a pydantic error location, for a spelling suggestion."""
    here: Any = Config
    for step in location:
        while typing.get_origin(here) in (types.UnionType, typing.Union, Annotated):
            parts = [part for part in typing.get_args(here) if part is not type(None)]
            here = parts[0]
        origin = typing.get_origin(here)
        if origin in (list, dict):
            here = typing.get_args(here)[-1]
        elif isinstance(here, type) and issubclass(here, BaseModel):
            found = next((f for name, f in here.model_fields.items() if step in (name, f.alias)), None)
            if found is None:
                return []
            here = found.annotation
    while typing.get_origin(here) in (types.UnionType, typing.Union, Annotated):
        here = next(part for part in typing.get_args(here) if part is not type(None))
    if isinstance(here, type) and issubclass(here, BaseModel):
        return [field.alias or name for name, field in here.model_fields.items()]
    return []


def _explain(error: ValidationError) -> list[str]:
    lines = []
    for problem in error.errors():
        path = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            *parents, key = problem["loc"]
            lines.append(f"{path}: unknown key{near(str(key), _fields_at(tuple(parents)))}")
        elif not path:
            lines += problem["msg"].removeprefix("Value error, ").splitlines()
        else:
            seen = "" if problem["type"] == "missing" else f" (is {problem['input']!r})"
            lines.append(f"{path}: {problem['msg'].removeprefix('Value error, ')}{seen}")
    return lines


def parse(text: str, *, name: str = "configuration") -> Config:
    """Check YAML text and return the `Config`; raise `ConfigError` that lists every problem."""
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} is not YAML: {error}") from error
    if raw is not None and not isinstance(raw, dict):
        raise ConfigError(
            f"{name}: the top level must be keys such as node, receive, rules; it is {type(raw).__name__}"
        )
    try:
        return Config.model_validate(raw or {})
    except ValidationError as error:
        problems = "\n".join(f"  {line}" for line in _explain(error))
        raise ConfigError(f"{name} has problems:\n{problems}") from error


def load(path: Path) -> Config:
    """Read and check a configuration file."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from error
    return parse(text, name=str(path))
