"""A package on disk: weights as safetensors, and a manifest with network, trained domain and digest.

One coil may have weights of its own beside those for several: what it lacks is another problem than unfolding.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.mr_recon import symmetry
from models.mr_recon.domain import Domain
from models.mr_recon.linops import Sense
from models.mr_recon.net import Shape, Unrolled

MANIFEST: Final = "manifest.yaml"
WEIGHTS: Final = "weights.safetensors"
#: For one coil alone.
SINGLE: Final = "single.safetensors"
#: The one architecture this code knows; weights of another are refused.
ARCHITECTURE: Final = "unrolled-cg-unet"
#: How many reflections of a measurement are reconstructed and averaged, with one coil and with several.
VARIANTS_SINGLE, VARIANTS = 4, 2

#: What every manifest of this model says beside the figures.
STATEMENT: Final[dict[str, Any]] = {
    "name": "mr-reconstruction",
    "version": "0.2.0",
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
    #: Of one coil alone; None: the same as of several.
    single: Unrolled | None = None
    #: The whole manifest.
    manifest: Mapping[str, Any]

    def net_for(self, coils: int) -> Unrolled:
        """The network for measurements with ``coils`` coils."""
        return self.single if coils == 1 and self.single is not None else self.net

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
            (..., row, column), each the mean over reflections of its measurement.
        """
        leading, coils = y.shape[:-3], y.shape[-3]
        maps = maps.expand(*leading, *maps.shape[-3:]).flatten(0, -4) if leading else maps[None]
        mask = mask.expand(*leading, *mask.shape[-3:]).flatten(0, -4) if leading else mask[None]
        measured = y.flatten(0, -4) if leading else y[None]
        net, images = self.net_for(coils), []
        for one in range(len(measured)):
            operator = Sense(maps[one : one + 1], mask[one : one + 1])
            right = operator.adjoint(measured[one : one + 1])
            images.append(symmetry.averaged(net, operator.normal, right, VARIANTS_SINGLE if coils == 1 else VARIANTS))
        return torch.cat(images).reshape(*leading, *y.shape[-2:])


def digest_of(file: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _write(net: Unrolled, file: Path) -> dict[str, Any]:
    """Write the weights of ``net`` into ``file``; returns what a manifest says of the network."""
    tensors = {key: value.detach().cpu().float().contiguous() for key, value in net.state_dict().items()}
    save_file(tensors, file)
    count = sum(int(value.numel()) for value in tensors.values())
    return {"architecture": ARCHITECTURE, "arguments": asdict(net.shape), "parameters": count}


def _describe(manifest: Mapping[str, Any], folder: Path) -> None:
    (folder / MANIFEST).write_text(yaml.safe_dump(dict(manifest), sort_keys=False, width=110))


def save(net: Unrolled, folder: Path, domain: Mapping[str, Any], training_data: str) -> None:
    """Write weights and manifest into ``folder``; ``domain`` is the record that ``Domain.of`` reads."""
    network = _write(net, folder / WEIGHTS)
    manifest = STATEMENT | {"training_data": training_data}
    manifest |= {"files": {WEIGHTS: {"sha256": digest_of(folder / WEIGHTS)}}}
    manifest |= {"network": network, "domain": dict(domain)}
    manifest |= {"metrics": {"training": "training.json", "evaluation": "evaluation.json"}}
    _describe(manifest, folder)


def add_single(
    net: Unrolled, package: Path, folder: Path, acceleration: Mapping[str, list[float]], training_data: str
) -> None:
    """Write the package in ``package`` with weights for one coil into ``folder``, which may be the same.

    Parameters
    ----------
    acceleration
        Least and most trained acceleration by pattern.
    """
    if folder.resolve() != package.resolve():
        shutil.copyfile(package / WEIGHTS, folder / WEIGHTS)
    manifest = yaml.safe_load((package / MANIFEST).read_text()) | STATEMENT
    manifest["single"] = _write(net, folder / SINGLE) | {"training_data": training_data}
    manifest["files"][SINGLE] = {"sha256": digest_of(folder / SINGLE)}
    manifest["domain"]["single"] = {name: list(pair) for name, pair in acceleration.items()}
    manifest["metrics"]["training_single"] = "training-single.json"
    _describe(manifest, folder)


def load(folder: Path, device: torch.device) -> Learned:
    """The package in ``folder``, its networks in eval mode on ``device``.

    Raises
    ------
    WeightsMismatchError
        If a file's sha256 is not the manifest's, or the architecture is unknown.
    """
    manifest = yaml.safe_load((Path(folder) / MANIFEST).read_text())
    net = _read(Path(folder) / WEIGHTS, manifest, manifest["network"], device)
    alone = manifest.get("single")
    return Learned(
        name=manifest["name"],
        version=manifest["version"],
        sha256=manifest["files"][WEIGHTS]["sha256"],
        domain=Domain.of(manifest["domain"]),
        net=net,
        single=None if alone is None else _read(Path(folder) / SINGLE, manifest, alone, device),
        manifest=manifest,
    )


def _read(file: Path, manifest: Mapping[str, Any], network: Mapping[str, Any], device: torch.device) -> Unrolled:
    stated, digest = manifest["files"][file.name]["sha256"], digest_of(file)
    if digest != stated:
        raise WeightsMismatchError(f"{file.name}: sha256 is {digest}, the manifest says {stated}")
    if network["architecture"] != ARCHITECTURE:
        raise WeightsMismatchError(f"architecture {network['architecture']!r} is not {ARCHITECTURE!r}")
    net = Unrolled(Shape(**network["arguments"]))
    net.load_state_dict(load_file(file))
    return net.requires_grad_(requires_grad=False).to(device).eval()
