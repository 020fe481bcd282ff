"""Whatever a ``weights`` folder holds, our own package or an imported one, as something that segments stacks."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from models.cardiac import bundle, foreign
from models.cardiac.nnunet import NnUNet
from models.cardiac.segment import Seen, Segmenter


class Looks(Protocol):
    """What sees a stack."""

    def look(self, images: NDArray[np.float32], spacing: tuple[float, float]) -> Seen:
        """See (phase, slice, row, column) images with (row, column) ``spacing`` [mm]."""


def load(folder: Path, device: torch.device) -> tuple[bundle.Package, Looks]:
    """The package in ``folder``, ready to segment on ``device``.

    Raises
    ------
    WeightsMismatchError
        If a file is not the one that the manifest describes.
    ForeignModelError
        If an imported network cannot be loaded, with what to do.
    """
    package = bundle.read(folder)
    given = package.manifest.get("foreign")
    if given is None:
        package, views = bundle.load(folder, device)
        return package, Segmenter(views, device)
    for name, entry in package.manifest["files"].items():
        if foreign.digest(Path(folder) / name) != entry["sha256"]:
            raise bundle.WeightsMismatchError(f"{name}: its sha256 is not the manifest's; import the model again")
    described = foreign.describe(given)
    if described.format == "nnunet":
        return package, NnUNet(Path(folder), described, device)
    file = Path(folder) / next(iter(package.manifest["files"]))
    net = foreign.net_of(file, described, device)
    views = tuple(
        bundle.View(net=net, pixels=described.pixels, pixel_mm=round(described.pixel_mm / closer, 4))
        for closer in (1.0, bundle.CLOSER)
    )
    return package, Segmenter(views, device)
