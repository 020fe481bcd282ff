"""The published deep cascade d5_c5 (Schlemper, IEEE Trans Med Imaging 2018, 37:491), to be compared with.

The weights are not part of this package: ``d5_c5.npz`` of github.com/js3611/Deep-MRI-Reconstruction, Apache-2.0. Five
cascades of five 3 by 3 convolutions, 2-64-64-64-64-2 channels, ReLU between them; each adds to its image and then takes
what was measured as it is. One coil, undersampled along the rows, maximum of the image about one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from models.mr_recon.linops import Sense

CASCADES, LAYERS = 5, 5
#: Percentile of |A^H y| that is made one: a maximum would follow a single bright pixel.
PERCENTILE: Final = 0.995


class Cascade:
    """The network; its filters are those of a convolution, so they are flipped for torch's correlation."""

    def __init__(self, file: Path) -> None:
        with np.load(file) as kept:
            arrays = [torch.from_numpy(kept[f"arr_{k}"]) for k in range(2 * CASCADES * LAYERS)]
        self.weights = [w.flip((-2, -1)).contiguous() for w in arrays[0::2]]
        self.biases = arrays[1::2]

    @torch.inference_mode()
    def __call__(self, operator: Sense, y: Tensor) -> Tensor:
        """(1, ky, kx) of one coil whose map is one to (row, column)."""
        right = operator.adjoint(y)
        scale = torch.quantile(right.abs().flatten(), PERCENTILE)
        right = right / scale
        x = right
        for cascade in range(CASCADES):
            channels = torch.view_as_real(x).movedim(-1, 0)[None]
            for layer in range(LAYERS):
                k = cascade * LAYERS + layer
                channels = functional.conv2d(channels, self.weights[k], self.biases[k], padding=1)
                if layer < LAYERS - 1:
                    channels = functional.relu(channels)
            x = x + torch.view_as_complex(channels[0].movedim(0, -1).contiguous())
            x = x + right - operator.normal(x)
        return x * scale
