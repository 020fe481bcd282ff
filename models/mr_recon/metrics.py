"""Figures of merit of a reconstruction: magnitudes, after one least-squares scale."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

Image = NDArray[np.float64]

#: Edge of the window of SSIM [pixels] (Wang, IEEE Trans Image Process 2004, 13:600), and its constants.
WINDOW: Final = 7
K1, K2 = 0.01, 0.03
#: Width of HFEN's Laplacian of Gaussian [pixels] (Ravishankar, IEEE Trans Med Imaging 2011, 30:1028).
SIGMA: Final = 1.5


def magnitudes(image: Tensor, reference: Tensor) -> tuple[Image, Image]:
    """Both magnitudes, (row, column), the first scaled to the second by least squares."""
    a, b = (one.detach().abs().double().cpu().numpy() for one in (image, reference))
    return a * (float((a * b).sum()) / max(float((a * a).sum()), np.finfo(float).tiny)), b


def nmse(image: Image, reference: Image) -> float:
    """Squared error over the energy of the reference."""
    return float(((image - reference) ** 2).sum() / (reference**2).sum())


def psnr(image: Image, reference: Image) -> float:
    """Decibels; the peak is the reference's maximum."""
    return float(20 * np.log10(reference.max()) - 10 * np.log10(((image - reference) ** 2).mean()))


def ssim(image: Image, reference: Image) -> float:
    """Structural similarity, its range the reference's maximum, its covariances unbiased."""
    size, unbiased = float(reference.max()), WINDOW**2 / (WINDOW**2 - 1)

    def mean(x: Image) -> Image:
        return np.asarray(ndimage.uniform_filter(x, WINDOW))

    a, b = mean(image), mean(reference)
    va, vb = (unbiased * (mean(x * x) - m * m) for x, m in ((image, a), (reference, b)))
    both = unbiased * (mean(image * reference) - a * b)
    c1, c2 = (K1 * size) ** 2, (K2 * size) ** 2
    share = ((2 * a * b + c1) * (2 * both + c2)) / ((a * a + b * b + c1) * (va + vb + c2))
    edge = WINDOW // 2
    return float(share[edge:-edge, edge:-edge].mean())


def hfen(image: Image, reference: Image) -> float:
    """High-frequency error: of the Laplacian of Gaussian, over that of the reference."""
    difference = ndimage.gaussian_laplace(image - reference, SIGMA)
    return float(np.linalg.norm(difference) / np.linalg.norm(ndimage.gaussian_laplace(reference, SIGMA)))


def figures(image: Tensor, reference: Tensor) -> dict[str, float]:
    """All of them by name."""
    a, b = magnitudes(image, reference)
    return {"psnr": psnr(a, b), "ssim": ssim(a, b), "nmse": nmse(a, b), "hfen": hfen(a, b)}
