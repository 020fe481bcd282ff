"""A package on disk: the members' weights as safetensors, and a manifest with networks, views and digest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import yaml
from safetensors.torch import load_file, save_file

from models.cardiac.net import Logits, UNet, build

MANIFEST: Final = "manifest.yaml"
WEIGHTS: Final = "weights.safetensors"
#: A second look of the same network at a finer grid: hearts then seem larger to it by this much.
CLOSER: Final = 1.2

#: What every manifest of this model says beside the figures.
STATEMENT: Final[dict[str, Any]] = {
    "name": "cardiac-cine",
    "version": "0.3.0",
    "licence": "Apache-2.0",
    "intended_use": "research use only; not a medical device; not for diagnosis of patients",
    "input": {
        "modality": "MR, bSSFP cine in short axis",
        "units": "any",
        "axes": "phase, slice, row, column",
        "pixel_spacing_mm": [0.6, 2.5],
        "phases": [8, 60],
        "slices": [5, 24],
    },
    "labels": {"1": "right ventricle", "2": "myocardium", "3": "left ventricle"},
}


class WeightsMismatchError(Exception):
    """The weights file is not the one its manifest describes: restore both from the same release."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One look of one network at a slice."""

    net: Callable[[torch.Tensor], Logits]
    pixels: int
    pixel_mm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """What a manifest says."""

    name: str
    version: str
    #: Digest of the weights file, or of the first of an imported network.
    sha256: str
    #: The whole manifest.
    manifest: Mapping[str, Any]


def save(states: dict[str, dict[str, torch.Tensor]], described: dict[str, Any], folder: Path) -> None:
    """Write weights by member and the manifest into ``folder``."""
    tensors = {
        f"{m}.{k}": v.detach().cpu().float().contiguous() for m, state in states.items() for k, v in state.items()
    }
    file = folder / WEIGHTS
    save_file(tensors, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    manifest = STATEMENT | {"files": {WEIGHTS: {"sha256": digest}}} | described
    manifest |= {"metrics": {"training": "training.json", "evaluation": "evaluation.json"}}
    (folder / MANIFEST).write_text(yaml.safe_dump(manifest, sort_keys=False, width=110))


def read(folder: Path) -> Package:
    """The package in ``folder`` without its weights."""
    manifest = yaml.safe_load((Path(folder) / MANIFEST).read_text())
    files = manifest["files"]
    digest = files.get(WEIGHTS, next(iter(files.values())))["sha256"]
    return Package(name=manifest["name"], version=manifest["version"], sha256=digest, manifest=manifest)


def load(folder: Path, device: torch.device) -> tuple[Package, tuple[View, ...]]:
    """The package in ``folder`` and its views, in eval mode on ``device``.

    Raises
    ------
    WeightsMismatchError
        If the file's sha256 is not the manifest's.
    """
    package, file = read(folder), Path(folder) / WEIGHTS
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if digest != package.sha256:
        raise WeightsMismatchError(f"{file.name}: sha256 is {digest}, the manifest says {package.sha256}")
    states, views = tensors_of(folder), []
    for name, member in package.manifest["members"].items():
        net = loaded(member["arguments"], states[name], device)
        views += [
            View(net=net, pixels=int(view["pixels"]), pixel_mm=float(view["pixel_mm"])) for view in member["views"]
        ]
    return package, tuple(views)


def tensors_of(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Weights by member of the package in ``folder``."""
    tensors = load_file(Path(folder) / WEIGHTS)
    return {
        name: {key[len(name) + 1 :]: value for key, value in tensors.items() if key.startswith(name + ".")}
        for name in read(folder).manifest["members"]
    }


def loaded(arguments: dict[str, Any], state: dict[str, torch.Tensor], device: torch.device) -> UNet:
    """A network with weights, in eval mode on ``device``."""
    net = build(arguments)
    net.load_state_dict(state)
    net.requires_grad_(False)
    net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net.eval()


def views_of(pixels: int, pixel_mm: float) -> list[dict[str, float]]:
    """How a member looks at slices: as it was trained, and closer."""
    return [{"pixels": pixels, "pixel_mm": pixel_mm}, {"pixels": pixels, "pixel_mm": round(pixel_mm / CLOSER, 4)}]
