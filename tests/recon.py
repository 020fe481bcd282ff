"""MR reconstruction as tests run it, and how far its images are from the truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dicomnode import pipeline as dn
from pipelines.mr_recon import MRReconstruction
from tests.mrd_factory import Scan


def pipeline(weights: Path = Path("no-weights"), **options: Any) -> MRReconstruction:
    """A pipeline that is ready; without weights unless a folder of some is given."""
    made = MRReconstruction(MRReconstruction.Options(**options))
    made.setup(dn.Runtime(device="cpu", weights=weights))
    return made


def error(scan: Scan, plane: dn.ReconstructedPlane) -> float:
    """Normalised root mean square error after one scale, to the object as its coils see it together."""
    rows, columns = plane.array.shape
    seen = np.sqrt((np.abs(scan.maps(columns, rows)) ** 2).sum(0)) * scan.truth(columns, rows, plane.phase)
    image = plane.array.astype(np.float64)
    image *= (image * seen).sum() / (image**2).sum()
    return float(np.linalg.norm(image - seen) / np.linalg.norm(seen))
