"""From "module:Class" and options to a pipeline, with one clear error for each way it can be wrong."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, get_type_hints

import yaml

from dicomnode.errors import NodeError, PipelineNotLoadable
from dicomnode.pipeline import Pipeline, Runtime

#: Folder that holds the ``models`` package: weights are named relative to it.
ROOT: Final = Path(__file__).resolve().parents[2]
#: Longest LO (PS3.5 6.2): names are written into ManufacturerModelName, uncut, or two algorithms would look alike.
_MAX_NAME: Final = 64
#: What the job's record keeps of a version.
_MAX_VERSION: Final = 32


def load_class(name: str) -> type[Pipeline[Any]]:
    """Import "module:Class" and check that it is a pipeline."""
    module_name, _, class_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise PipelineNotLoadable(f"cannot import {module_name}: {type(error).__name__}: {error}") from error
    found = getattr(module, class_name, None)
    if found is None:
        close = difflib.get_close_matches(class_name, dir(module), 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise PipelineNotLoadable(f"{module_name} has no {class_name}{hint}")
    if not (isinstance(found, type) and issubclass(found, Pipeline)):
        raise PipelineNotLoadable(f"{name} is not a dicomnode.pipeline.Pipeline")
    if not hasattr(found, "algorithm"):
        raise PipelineNotLoadable(f"{name} sets no algorithm")
    for what, text, longest in (
        ("name", found.algorithm.name, _MAX_NAME),
        ("version", found.algorithm.version, _MAX_VERSION),
    ):
        if not 0 < len(text) <= longest or not text.isprintable() or "\\" in text:
            raise PipelineNotLoadable(
                f"the algorithm {what} of {name} has {len(text)} characters ({text[:_MAX_NAME]!r}): 1 to {longest} are "
                "possible, without a backslash or control characters; shorten it in the pipeline"
            )
    return found


def make_options(cls: type[Pipeline[Any]], options: Mapping[str, Any]) -> object:
    """Fill the class's Options; unknown names and wrong types are all named at once."""
    fields = {field.name: field for field in dataclasses.fields(cls.Options)}
    problems = []
    hints = get_type_hints(cls.Options)
    for name, value in options.items():
        if name not in fields:
            close = difflib.get_close_matches(name, fields, 1)
            hint = f" (did you mean {close[0]!r}?)" if close else f" (known: {', '.join(fields) or 'none'})"
            problems.append(f"unknown option {name!r}{hint}")
        elif hints[name] in (int, float, str, bool) and not _fits(value, hints[name]):
            problems.append(f"option {name!r} must be {hints[name].__name__}, is {value!r}")
    if not problems:
        try:
            return cls.Options(**options)
        except (TypeError, ValueError) as error:
            problems.append(str(error))
    raise PipelineNotLoadable(f"options of {cls.__name__}: {'; '.join(problems)}")


def _fits(value: object, wanted: type) -> bool:
    if wanted is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, wanted) and not (wanted is int and isinstance(value, bool))


def weights_folder(cls: type[Pipeline[Any]], configured: Path | None) -> Path:
    """Folder of the weights: the configured one, else what the class names; ROOT if there are none."""
    return configured if configured is not None else ROOT / cls.algorithm.weights


def check_weights(folder: Path) -> str:
    """Compare every file of ``manifest.yaml`` with its SHA-256 and return the digest of all of them.

    A folder without a manifest has no weights: empty digest.
    """
    manifest = folder / "manifest.yaml"
    if not manifest.is_file():
        return ""
    try:
        files = yaml.safe_load(manifest.read_text(encoding="utf-8"))["files"]
        wanted = {str(name): str(entry["sha256"]) for name, entry in files.items()}
    except (OSError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise PipelineNotLoadable(f"{manifest} does not list files with sha256: {error}") from error
    for name, sha256 in wanted.items():
        try:
            seen = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        except OSError as error:
            raise PipelineNotLoadable(f"weights {folder / name} are missing: {error}") from error
        if seen != sha256:
            raise PipelineNotLoadable(f"weights {folder / name} do not match the manifest (sha256 {seen[:12]}...)")
    return hashlib.sha256("".join(f"{name}{sha}" for name, sha in sorted(wanted.items())).encode()).hexdigest()


def load_pipeline(
    class_name: str, weights: Path | None, options: Mapping[str, Any], runtime: Callable[[Path], Runtime]
) -> tuple[Pipeline[Any], str]:
    """Make a pipeline that is ready to run; returns it and the digest of its weights.

    Parameters
    ----------
    runtime
        What the pipeline is given, by the folder of its weights.
    """
    cls = load_class(class_name)
    folder = weights_folder(cls, weights)
    digest = check_weights(folder)
    pipeline = cls(make_options(cls, options))
    try:
        pipeline.setup(runtime(folder))
    except NodeError:
        raise
    except Exception as error:
        raise PipelineNotLoadable(f"setup of {class_name} failed: {type(error).__name__}: {error}") from error
    return pipeline, digest
