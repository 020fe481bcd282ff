"""Weights on disk: safetensors, and a manifest that names the network, its arguments and the digest."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Final

import torch
import yaml
from safetensors.torch import load_file, save_file

from models.ct_denoise.net import DenoiseUNet, build

MANIFEST: Final = "manifest.yaml"
WEIGHTS: Final = "weights.safetensors"

#: What every manifest of this model says beside the figures.
STATEMENT: Final[dict[str, Any]] = {
    "name": "ct-denoising",
    "version": "1.3.0",
    "licence": "Apache-2.0",
    "intended_use": "research use only; not a medical device",
    "input": {
        "modality": "CT",
        "units": "HU",
        "axes": "slice, row, column; each slice by itself, its estimates with those of neighbours 0.4 to 2 mm away",
        "value_range_hu": [-1024, 2000],
        "pixel_spacing_mm": [0.4, 1.0],
        "noise_hu": [1, 45],
    },
    "training_data": "computer-generated images with simulated CT noise (simulate.py); no patient image",
}


class WeightsMismatchError(Exception):
    """The weights file is not the one its manifest describes: restore both from the same release."""


def save(net: DenoiseUNet, folder: Path, name: str, arguments: dict[str, Any], trained_on: str = "") -> None:
    """Write the weights of ``net`` and the manifest into ``folder``.

    ``trained_on``: what is to be said of the training data and of the licence that follows from it; empty: simulated
    images only, as in `STATEMENT`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / WEIGHTS
    save_file({key: value.detach().cpu().float().contiguous() for key, value in net.state_dict().items()}, file)
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    network = {"network": name, "arguments": arguments, "parameters": sum(p.numel() for p in net.parameters())}
    manifest = STATEMENT | {"files": {WEIGHTS: {"sha256": found}}, "network": network}
    if trained_on:
        manifest |= {"version": STATEMENT["version"] + "+local", "licence": "none given", "training_data": trained_on}
    manifest |= {"metrics": {"training": "training.json", "evaluation": "evaluation.json"}}
    (folder / MANIFEST).write_text(yaml.safe_dump(manifest, sort_keys=False, width=110))


def digest(folder: Path) -> str:
    """sha256 of the weights in ``folder``, as its manifest states it."""
    return str(yaml.safe_load((Path(folder) / MANIFEST).read_text())["files"][WEIGHTS]["sha256"])


def load(weights: Path, device: str | torch.device = "cpu") -> DenoiseUNet:
    """The network of the folder ``weights``, in eval mode on ``device``.

    Raises
    ------
    WeightsMismatchError
        If the file's sha256 is not the manifest's.
    """
    folder = Path(weights)
    manifest = yaml.safe_load((folder / MANIFEST).read_text())
    file, wanted = folder / WEIGHTS, digest(folder)
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != wanted:
        raise WeightsMismatchError(f"{file.name}: sha256 is {found}, the manifest says {wanted}")
    network = manifest["network"]
    net = build(network["network"], network["arguments"])
    net.load_state_dict(load_file(file))
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    net.to(torch.device(device)).eval()
    return net
