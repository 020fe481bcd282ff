"""Other denoisers to compare with. For evaluation only: nothing shipped imports this module.

Every method takes a slice (row, column) [HU] and its noise [HU], and returns a slice. BM3D's package is licensed for
non-commercial use: it is looked for at run time, never required and never part of the product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.ct_denoise.noise import gaussian_blur

Method = Callable[[Tensor, float], Tensor]

#: Standard deviation of the Gaussian baseline [pixel].
GAUSSIAN: Final = 0.8
#: DnCNN was trained on [0, 1] images with noise of 25/255 (KAIR model zoo).
DNCNN_SIGMA: Final = 25.0 / 255.0
#: HU -> TS-DenseNet's input: ((HU + 1024) / 4096 - mean) / std (the repository's own normalisation).
TS_MEAN: Final = 0.1225
TS_STD: Final = 0.1188
#: Layers of the blocks of TS-DenseNet.
TS_BLOCKS: Final = (4, 8, 4)
_BN_EPSILON: Final = 1e-5


def identity(image: Tensor, _sigma: float) -> Tensor:
    """Do nothing: the method that no denoiser may lose to."""
    return image


def gaussian(image: Tensor, _sigma: float) -> Tensor:
    """Gaussian of `GAUSSIAN` pixels."""
    return gaussian_blur(image[None, None], GAUSSIAN)[0, 0]


def _shifts(image: Tensor, reach: int) -> list[Tensor]:
    padded = F.pad(image[None, None], (reach,) * 4, mode="reflect")[0, 0]
    rows, columns = image.shape
    return [padded[y : y + rows, x : x + columns] for y in range(2 * reach + 1) for x in range(2 * reach + 1)]


def bilateral(image: Tensor, sigma: float) -> Tensor:
    """Bilateral filter: 1.5 pixels in space, 2.5 sigma in HU (Tomasi and Manduchi 1998)."""
    reach, total, weights = 3, torch.zeros_like(image), torch.zeros_like(image)
    for index, other in enumerate(_shifts(image, reach)):
        dy, dx = divmod(index, 2 * reach + 1)
        near = math.exp(-((dy - reach) ** 2 + (dx - reach) ** 2) / (2.0 * 1.5**2))
        weight = near * torch.exp(-((other - image) ** 2) / (2.0 * (2.5 * sigma) ** 2))
        total, weights = total + weight * other, weights + weight
    return total / weights


def non_local_means(image: Tensor, sigma: float) -> Tensor:
    """Non-local means: 5 x 5 patches, 15 x 15 search, h = 0.8 sigma (Buades et al. 2005)."""
    reach, total, weights = 7, torch.zeros_like(image), torch.zeros_like(image)
    for other in _shifts(image, reach):
        distance = F.avg_pool2d(((other - image) ** 2)[None, None], 5, 1, 2, count_include_pad=False)[0, 0]
        weight = torch.exp(-(distance - 2.0 * sigma**2).clamp(min=0.0) / (0.8 * sigma) ** 2)
        total, weights = total + weight * other, weights + weight
    return total / weights


def bm3d_method(spectrum: Tensor | None) -> Method | None:
    """BM3D with the true noise spectrum E|FFT(noise)|^2 (row, column), or white where None; None if not installed."""
    try:
        import bm3d  # development side only: non-commercial licence
    except ImportError:
        return None
    vars(np).setdefault("trapz", np.trapezoid)  # bm4d 4.2.5 still uses the name NumPy 2.4 removed

    def run(image: Tensor, sigma: float) -> Tensor:
        given = sigma if spectrum is None else spectrum.double().numpy()
        return torch.from_numpy(np.asarray(bm3d.bm3d(image.double().numpy(), given))).float().reshape(image.shape)

    return run


def dncnn(weights: Path) -> Method:
    """DnCNN of ``weights`` (17 convolutions, KAIR): the slice is scaled so that its noise is the trained one."""
    state: Mapping[str, Tensor] = torch.load(weights, map_location="cpu", weights_only=True)
    layers = sorted({int(key.split(".")[1]) for key in state})

    def run(image: Tensor, sigma: float) -> Tensor:
        scale = DNCNN_SIGMA / max(sigma, 0.5)
        features = (image * scale)[None, None]
        for layer in layers:
            features = F.conv2d(features, state[f"model.{layer}.weight"], state[f"model.{layer}.bias"], padding=1)
            features = F.relu(features) if layer != layers[-1] else features
        return image - features[0, 0] / scale

    return run


def _unit(state: Mapping[str, Tensor], x: Tensor, convolution: str, norm: str) -> Tensor:
    """Convolution, batch norm, ReLU, by the names of their weights."""
    weight = state[f"{convolution}.weight"]
    x = F.conv2d(x, weight, state[f"{convolution}.bias"], padding=weight.shape[-1] // 2)
    mean, variance = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
    return F.relu(F.batch_norm(x, mean, variance, state[f"{norm}.weight"], state[f"{norm}.bias"], eps=_BN_EPSILON))


def _densenet(state: Mapping[str, Tensor], x: Tensor, stage: str) -> Tensor:
    root = f"{stage}.features"
    x = _unit(state, x, f"{root}.conv-input", f"{root}.norm-input")
    for block, layers in enumerate(TS_BLOCKS, 1):
        for layer in range(1, layers + 1):
            name = f"{root}.denseblock-{block}.denselayer-{layer}"
            new = _unit(state, x, f"{name}.conv{layer}-1", f"{name}.norm{layer}-1")
            new = _unit(state, new, f"{name}.conv{layer}-2", f"{name}.norm{layer}-2")
            x = torch.cat((x, new), 1)
        if block < len(TS_BLOCKS):
            x = _unit(state, x, f"{root}.transition-{block}.conv-trans", f"{root}.transition-{block}.norm-trans")
    x = _unit(state, x, f"{root}.conv1-output", f"{root}.norm-output")
    return F.conv2d(x, state[f"{root}.conv2-output.weight"], state[f"{root}.conv2-output.bias"], padding=1)


def ts_densenet(weights: Path) -> Method:
    """TS-DenseNet of ``weights`` (a state dict): two DenseNets, each takes its prediction from its input."""
    state: Mapping[str, Tensor] = torch.load(weights, map_location="cpu", weights_only=True)

    def run(image: Tensor, _sigma: float) -> Tensor:
        x = (((image + 1024.0) / 4096.0 - TS_MEAN) / TS_STD)[None, None]
        first = x - _densenet(state, x, "F")
        second = first - _densenet(state, first, "S")
        return (second[0, 0] * TS_STD + TS_MEAN) * 4096.0 - 1024.0

    return run
