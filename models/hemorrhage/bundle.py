"""A package on disk: weights as safetensors, and a manifest with networks, thresholds, calibration and digest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import yaml
from safetensors.torch import load_file, save_file

from models.hemorrhage.net import Networks, build

MANIFEST: Final = "manifest.yaml"
WEIGHTS: Final = "weights.safetensors"

#: What every manifest of this model says beside the figures.
STATEMENT: Final[dict[str, Any]] = {
    "name": "intracranial-hemorrhage",
    "version": "0.4.0",
    "licence": "Apache-2.0",
    "intended_use": "research use only; not a medical device; not for diagnosis or triage of patients",
    "input": {
        "modality": "CT of the head without contrast",
        "units": "HU",
        "axes": "slice, row, column; the slice nearest the vertex first",
        "slice_thickness_mm": [0.5, 10.0],
        "pixel_spacing_mm": [0.3, 1.0],
    },
    "training_data": "procedurally generated heads (simulate.py); no patient image",
}

#: Post-processing as first written into a manifest; ``detect`` reads the manifest, never this. Sources: ml-ct 1.3,
#: and the sweep over calibration heads that CARD.md tells of.
POSTPROCESSING: Final[dict[str, Any]] = {
    "seed_probability": 0.5,  # hysteresis: a lesion needs a voxel above this
    "grow_probability": 0.3,  # and goes on as far as this
    "wide_probability": {"subarachnoid": 0.05},  # of its own class: lesions of this class go on as far as this
    "minimum_ml": {
        "epidural": 0.3,
        "subdural": 1.0,
        "subarachnoid": 0.5,
        "intraparenchymal": 0.3,
        "intraventricular": 0.3,
    },
    "certain_probability": 0.99,  # above it the smaller volume is enough
    "certain_minimum_ml": 0.3,
    "cavity_probability": 0.5,
    "part_share": 0.15,  # the part of a lesion inside a ventricle is a lesion of its own from this share on
    "part_ml": 0.2,  # and from this volume on
    "opinion_share": 0.25,  # pixels that are called otherwise than the rest are a lesion of their own likewise
    "opinion_ml": 1.0,
    "shape_weight": 1.0,  # of the lesion network's logarithm of probability beside the pixels'
    "ventricle_probability": 0.3,
    "ventricle_overlap": 0.1,  # of a lesion called intraventricular
    "vertex_bone_share": 0.5,  # of a lesion's voxels with bone above or below: it then needs asymmetry
    "vertex_asymmetry_hu": 8.0,
    "vertex_brain_hu": 20.0,  # with only bone across, against brain; a real head's rim is 14 HU brighter (data.rim)
    "rim_mm": 2.8,  # a lesion reaches at least this far from bone: thinner is the inner table's bright rim
    "mirror": True,  # mean of the slice and its mirror image
}


class WeightsMismatchError(Exception):
    """The weights file is not the one its manifest describes: restore both from the same release."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """What a manifest says."""

    name: str
    version: str
    #: Digest of the weights file.
    sha256: str
    #: Thresholds on study probabilities by name of the operating point and of the finding ("any" and the classes).
    operating_points: Mapping[str, Mapping[str, float]]
    #: Temperature and bias by finding.
    calibration: Mapping[str, Any]
    #: Thresholds of the post-processing, see ``POSTPROCESSING``.
    postprocessing: Mapping[str, Any]
    #: The whole manifest.
    manifest: Mapping[str, Any]


def save(networks: Networks, folder: Path, arguments: dict[str, Any], calibration: dict[str, Any]) -> None:
    """Write weights and manifest into ``folder``."""
    file = folder / WEIGHTS
    tensors = {}
    for prefix, net in (("slices", networks.slices), ("study", networks.study), ("lesions", networks.lesions)):
        for key, value in net.state_dict().items():
            tensors[f"{prefix}.{key}"] = value.detach().cpu().float().contiguous()
    save_file(tensors, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    count = sum(int(value.numel()) for value in tensors.values())
    network = {"arguments": arguments, "parameters": count}
    manifest = STATEMENT | {"files": {WEIGHTS: {"sha256": digest}}, "network": network}
    manifest |= {"postprocessing": POSTPROCESSING} | calibration
    manifest |= {"metrics": {"training": "training.json", "evaluation": "evaluation.json"}}
    (folder / MANIFEST).write_text(yaml.safe_dump(manifest, sort_keys=False, width=110))


def read(folder: Path) -> Package:
    """The package in ``folder`` without its weights."""
    manifest = yaml.safe_load((Path(folder) / MANIFEST).read_text())
    return Package(
        name=manifest["name"],
        version=manifest["version"],
        sha256=manifest["files"][WEIGHTS]["sha256"],
        operating_points=manifest["operating_points"],
        calibration=manifest["calibration"],
        postprocessing=manifest["postprocessing"],
        manifest=manifest,
    )


def load(folder: Path, device: torch.device) -> tuple[Package, Networks]:
    """The package in ``folder`` and its networks, in eval mode on ``device``.

    Raises
    ------
    WeightsMismatchError
        If the file's sha256 is not the manifest's, or the manifest is of an earlier release.
    """
    package, file = read(folder), Path(folder) / WEIGHTS
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if digest != package.sha256:
        raise WeightsMismatchError(f"{file.name}: sha256 is {digest}, the manifest says {package.sha256}")
    missing = sorted(set(POSTPROCESSING) - set(package.postprocessing))
    if missing:
        raise WeightsMismatchError(
            f"{MANIFEST} of {package.name} {package.version} says nothing of {', '.join(missing)} in postprocessing: "
            "these weights are of an earlier release; install those of this one"
        )
    networks = build(package.manifest["network"]["arguments"])
    tensors = load_file(file)
    for prefix, net in (("slices", networks.slices), ("study", networks.study), ("lesions", networks.lesions)):
        net.load_state_dict({key[len(prefix) + 1 :]: v for key, v in tensors.items() if key.startswith(prefix + ".")})
        for parameter in net.parameters():
            parameter.requires_grad_(False)
        net.to(device).eval()
    return package, networks
