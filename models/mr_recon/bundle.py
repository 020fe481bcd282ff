"""A package on disk: weights as safetensors, and a manifest with network, trained domain and digest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.mr_recon.domain import Domain
from models.mr_recon.linops import Sense
from models.mr_recon.net import Shape, Unrolled

MANIFEST: Final = "manifest.yaml"
WEIGHTS: Final = "weights.safetensors"
#: The one architecture this code knows; weights of another are refused.
ARCHITECTURE: Final = "unrolled-cg-unet"

#: What every manifest of this model says beside the figures.
STATEMENT: Final[dict[str, Any]] = {
    "name": "mr-reconstruction",
    "version": "0.1.0",
    "licence": "Apache-2.0",
    "intended_use": "research use only; not a medical device; not for primary diagnosis; keep the raw data",
    "input": {
        "modality": "MR, Cartesian k-space of one 2-D slice with coil maps, noise whitened, oversampling removed",
        "axes": "coil, ky, kx; centre at index N // 2; phase encoding along ky",
    },
}


class WeightsMismatchError(Exception):
    """The weights file is not the one its manifest describes: restore both from the same release."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """A learned reconstruction, ready to run."""

    name: str
    version: str
    #: Digest of the weights file.
    sha256: str
    domain: Domain
    net: Unrolled
    #: The whole manifest.
    manifest: Mapping[str, Any]

    @torch.inference_mode()
    def reconstruct(self, maps: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        """Reconstruct every leading axis on its own, one after the other: memory stays that of one image.

        Parameters
        ----------
        maps, y, mask
            (..., coil, row, column), (..., coil, ky, kx) and (..., 1, ky, kx), as ``Sense`` has them; leading axes of
            maps and mask may be missing.

        Returns
        -------
        Tensor
            (..., row, column).
        """
        leading = y.shape[:-3]
        maps = maps.expand(*leading, *maps.shape[-3:]).flatten(0, -4) if leading else maps[None]
        mask = mask.expand(*leading, *mask.shape[-3:]).flatten(0, -4) if leading else mask[None]
        measured = y.flatten(0, -4) if leading else y[None]
        images = []
        for one in range(len(measured)):
            operator = Sense(maps[one : one + 1], mask[one : one + 1])
            images.append(self.net(operator.normal, operator.adjoint(measured[one : one + 1])))
        return torch.cat(images).reshape(*leading, *y.shape[-2:])


def digest_of(file: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def save(net: Unrolled, folder: Path, domain: Mapping[str, Any], training_data: str) -> None:
    """Write weights and manifest into ``folder``; ``domain`` is the record that ``Domain.of`` reads."""
    file = folder / WEIGHTS
    tensors = {key: value.detach().cpu().float().contiguous() for key, value in net.state_dict().items()}
    save_file(tensors, file)
    count = sum(int(value.numel()) for value in tensors.values())
    network = {"architecture": ARCHITECTURE, "arguments": asdict(net.shape), "parameters": count}
    manifest = STATEMENT | {"training_data": training_data, "files": {WEIGHTS: {"sha256": digest_of(file)}}}
    manifest |= {"network": network, "domain": dict(domain)}
    manifest |= {"metrics": {"training": "training.json", "evaluation": "evaluation.json"}}
    (folder / MANIFEST).write_text(yaml.safe_dump(manifest, sort_keys=False, width=110))


def load(folder: Path, device: torch.device) -> Learned:
    """The package in ``folder``, its network in eval mode on ``device``.

    Raises
    ------
    WeightsMismatchError
        If the file's sha256 is not the manifest's, or the architecture is unknown.
    """
    manifest, file = yaml.safe_load((Path(folder) / MANIFEST).read_text()), Path(folder) / WEIGHTS
    stated, digest = manifest["files"][WEIGHTS]["sha256"], digest_of(file)
    if digest != stated:
        raise WeightsMismatchError(f"{file.name}: sha256 is {digest}, the manifest says {stated}")
    if manifest["network"]["architecture"] != ARCHITECTURE:
        raise WeightsMismatchError(f"architecture {manifest['network']['architecture']!r} is not {ARCHITECTURE!r}")
    net = Unrolled(Shape(**manifest["network"]["arguments"]))
    net.load_state_dict(load_file(file))
    net.requires_grad_(requires_grad=False).to(device).eval()
    return Learned(
        name=manifest["name"],
        version=manifest["version"],
        sha256=stated,
        domain=Domain.of(manifest["domain"]),
        net=net,
        manifest=manifest,
    )
