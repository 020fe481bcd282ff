"""What denoising does to another algorithm: hemorrhage detection on heads as they are and denoised (ml-ct 4.1).

The node never does this by itself: a detector is given the original series. The figure says what would happen to a
reader's second algorithm that is pointed at the wrong series.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from models.ct_denoise.net import DenoiseUNet, precision
from models.hemorrhage import cases, detect, evaluate
from models.hemorrhage.cases import Study

#: The pipeline's default strength for heads.
HEAD_STRENGTH: Final = 0.5
#: Volumes below this [mL] are compared by their difference, not by their ratio.
SMALL_ML: Final = 1.0


def _studies(data: Path, cache: Path, simulated: int) -> Iterator[Study]:
    head = cases.real(data, "ct-head-ge", "real negative")
    real = () if head is None else (head,)
    return chain(real, evaluate.some_painted(data), cases.synthetic(simulated, cache / "test"))


def _denoised(net: DenoiseUNet, study: Study) -> Study:
    """The same head with every slice denoised as the pipeline does it."""
    slices = []
    with torch.inference_mode(), precision(torch.device("cpu")):
        for plane in torch.from_numpy(study.hu):
            slices.append((plane - net.noise(plane[None, None], HEAD_STRENGTH)[0, 0]).float().numpy())
    return replace(study, hu=np.stack(slices))


def on_hemorrhage(net: DenoiseUNet, data: Path, cache: Path, simulated: int = 10) -> list[dict[str, Any]]:
    """Probability and volume of hemorrhage before and after denoising; one row a head.

    Parameters
    ----------
    data
        Folder of evaluation data; without it only simulated heads are measured.
    cache
        Folder of simulated heads that can be made again.
    simulated
        How many simulated heads, half of them bleeding.
    """
    detector = detect.load(Path(detect.__file__).parent, torch.device("cpu"))
    rows: list[dict[str, Any]] = []
    for study in _studies(data, cache, simulated):
        found = [evaluate.detect(detector, one)[0] for one in (study, _denoised(net, study))]
        volumes = [study.volume_ml(one.labels > 0) for one in found]
        row = {"group": study.group, "name": study.name, "ml": volumes[0], "ml_denoised": volumes[1]}
        row |= {"probability": found[0].study["any"], "probability_denoised": found[1].study["any"]}
        row["shift_of_probability"] = row["probability_denoised"] - row["probability"]
        row["shift_of_volume"] = (volumes[1] - volumes[0]) / max(volumes[0], SMALL_ML)
        rows.append(row)
    return rows
