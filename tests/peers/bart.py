"""BART (mrirecon.github.io/bart) as a peer: arrays in, one program, an array out."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.mr_recon.baselines import bart_axes, read_cfl, write_cfl
from tests.peers.dcmtk import require


def bart(folder: Path, tool: str, *options: str, given: tuple[Tensor, ...]) -> Tensor:
    """The first output of ``tool`` for arrays (coil, row, column); (coil, row, column) or (row, column)."""
    program = require("bart")
    names = []
    for number, array in enumerate(given):
        names.append(f"in{number}")
        write_cfl(folder / names[-1], bart_axes(array))
    subprocess.run([program, tool, *options, *names, "out"], cwd=folder, check=True, capture_output=True)
    found = read_cfl(folder / "out")
    found = found[:, :, 0, :, 0] if found.ndim > 4 else found[:, :, 0, :] if found.ndim == 4 else found[:, :, None]
    image = torch.from_numpy(np.ascontiguousarray(found.reshape(*found.shape[:2], -1).transpose(2, 1, 0)))
    return image[0] if len(image) == 1 else image
