"""Physics bench: a uniform water disc and inserts, scanned by the simulator, through any denoiser.

Every figure compares output with input on the same noise, so that the noise itself cancels where it may.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from models.ct_denoise import metrics, projection, simulate
from models.ct_denoise.noise import gaussian_blur
from models.ct_denoise.phantoms import Draw
from models.ct_denoise.projection import Kernel

#: A denoiser of slices (slice, row, column) [HU]; of a bench with a `Beside`, it is also given the planes beside each,
#: (slice, 2, row, column).
Denoiser = Callable[..., Tensor]

SIZE: Final = 288
PIXEL_MM: Final = 0.7
#: Radius of the water disc [mm].
BODY_MM: Final = 92.0
#: Discs of the transfer function: HU over the background, all of this radius [mm], on a circle of this radius [mm].
CONTRASTS: Final = (200.0, 100.0, 50.0, 20.0, 10.0)
DISC_MM: Final = 14.0
RING_MM: Final = 56.0
#: The MITA low-contrast inserts: diameter [mm], contrast [HU].
INSERTS: Final = ((3.0, 14.0), (5.0, 7.0), (7.0, 5.0), (10.0, 3.0))
#: Cancellous bone like a vertebral body's: radius [mm], HU over water, scales of its net [mm], and where that is read.
BONE_MM: Final = 20.0
BONE_HU: Final = 150.0
BONE_NET_MM: Final = (0.6, 1.5)
BONE_READ_MM: Final = 17.0
#: Rows and columns in the middle of the disc, where noise is measured.
CORE: Final = slice(SIZE // 2 - 40, SIZE // 2 + 40)
#: The slices beside those of the bench: their seeds are this far from them.
BESIDE: Final = (400_000, 800_000)
#: Seeds of the bench, apart from training and from the other evaluations.
SEED: Final = 3_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Noise-free images and noise of one scan protocol; (realisation, row, column) and (row, column) [HU]."""

    body: Tensor
    discs: Tensor
    inserts: Tensor
    noise: Tensor
    kernel: Kernel

    @classmethod
    def make(cls, sigma_hu: float, realisations: int, kernel: Kernel) -> Bench:
        """Scan the disc ``realisations`` times at ``sigma_hu`` in the centre."""
        body = _disc((0.0, 0.0), BODY_MM) * 1040.0 - 1000.0
        discs = sum(
            (c * _disc(p, DISC_MM) for c, p in zip(CONTRASTS, places(len(CONTRASTS)), strict=True)), torch.zeros(())
        )
        inserts = sum((c * _disc(p, d / 2.0) for (d, c), p in zip(INSERTS, places(4), strict=True)), torch.zeros(()))
        noise = [
            simulate.insert_noise(body[None], PIXEL_MM, sigma_hu=sigma_hu, seed=SEED + index, kernel=kernel)[0]
            for index in range(realisations)
        ]
        filtered = [projection.apply_kernel(part, kernel, PIXEL_MM) for part in (body, discs, inserts)]
        return cls(body=filtered[0], discs=filtered[1], inserts=filtered[2], noise=torch.stack(noise), kernel=kernel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """The slices beside those of a bench: the same disc, noise of their own."""

    #: (realisation, 2, row, column) [HU].
    noise: Tensor
    #: Share of the objects that they hold: 0 for objects that lie in one slice only, 1 for those that run through.
    share: float = 0.0

    @classmethod
    def make(cls, sigma_hu: float, realisations: int, kernel: Kernel) -> Beside:
        """Scan the slices beside those of `Bench.make`."""
        body = (_disc((0.0, 0.0), BODY_MM) * 1040.0 - 1000.0)[None]
        noise = [
            simulate.insert_noise(body, PIXEL_MM, sigma_hu=sigma_hu, seed=SEED + far + index, kernel=kernel)[0]
            for index in range(realisations)
            for far in BESIDE
        ]
        return cls(noise=torch.stack(noise).unflatten(0, (realisations, 2)))


def places(count: int) -> list[tuple[float, float]]:
    """Centres (y, x) [mm] of ``count`` objects on the ring."""
    angle = np.arange(count) * 2.0 * np.pi / count + 0.3
    return [(float(RING_MM * np.sin(a)), float(RING_MM * np.cos(a))) for a in angle]


def pixel(place: tuple[float, float]) -> tuple[float, float]:
    """Row and column of a place in mm."""
    return place[0] / PIXEL_MM + (SIZE - 1) / 2.0, place[1] / PIXEL_MM + (SIZE - 1) / 2.0


def _disc(place: tuple[float, float], radius_mm: float) -> Tensor:
    axis = (torch.arange(SIZE) - (SIZE - 1) / 2.0) * PIXEL_MM
    distance = torch.sqrt((axis[:, None] - place[0]) ** 2 + (axis[None] - place[1]) ** 2)
    return ((radius_mm - distance) / PIXEL_MM + 0.5).clamp(0.0, 1.0)


def cancellous(bench: Bench, denoise: Denoiser, rms_hu: float) -> float:
    """Share of the net of cancellous bone, ``rms_hu`` strong, that ``denoise`` leaves: fine structure, not noise."""
    draw = Draw(SEED, SIZE, PIXEL_MM, torch.device("cpu"))
    net = draw.field(BONE_NET_MM[0]) + 0.4 * draw.field(BONE_NET_MM[1])
    disc, inside = _disc((0.0, 0.0), BONE_MM), _disc((0.0, 0.0), BONE_READ_MM) > 0.5
    plain, made = (projection.apply_kernel(disc * part, bench.kernel, PIXEL_MM) for part in (BONE_HU, net))
    made = made * (rms_hu / made[inside].std())
    kept = applied(bench, denoise, plain + made) - applied(bench, denoise, plain)
    return float((kept.mean(0) * made)[inside].sum() / made[inside].square().sum())


def applied(bench: Bench, denoise: Denoiser, objects: Tensor | float, beside: Beside | None = None) -> Tensor:
    """What ``denoise`` makes of the bench's slices with ``objects`` (row, column) [HU] in them."""
    images = bench.body + bench.noise + objects
    if beside is None:
        return denoise(images)
    return denoise(images, bench.body + beside.noise + beside.share * objects)


def disc(place: tuple[float, float], radius_mm: float, kernel: Kernel) -> Tensor:
    """A disc of height 1 through ``kernel`` (row, column)."""
    return projection.apply_kernel(_disc(place, radius_mm), kernel, PIXEL_MM)


def run(bench: Bench, denoise: Denoiser, beside: Beside | None = None) -> dict[str, float]:
    """Noise, spectrum, transfer function, inserts kept, bias and false blobs of ``denoise`` against its input.

    ``beside``: ``denoise`` is given the slices beside too.
    """
    plain_in = bench.body + bench.noise
    plain = applied(bench, denoise, 0.0, beside)
    discs = (applied(bench, denoise, bench.discs, beside) - plain).mean(0)
    inserts = (applied(bench, denoise, bench.inserts, beside) - plain).mean(0)
    found: dict[str, float] = {}
    left, given = _deviations(plain)[:, CORE, CORE], _deviations(bench.noise)[:, CORE, CORE]
    found["noise_in_hu"], found["noise_out_hu"] = noise_in(bench), float(left.std())
    found["noise_reduction"] = 1.0 - found["noise_out_hu"] / found["noise_in_hu"]
    before, after = (metrics.mean_frequency(*metrics.noise_spectrum(part, PIXEL_MM)) for part in (given, left))
    found["spectrum_shift"] = after / before - 1.0
    found["mean_shift_hu"] = float((plain - plain_in)[:, CORE, CORE].mean())
    for contrast, place in zip(CONTRASTS, places(len(CONTRASTS)), strict=True):
        pair = [metrics.ttf50(part, pixel(place), DISC_MM, PIXEL_MM) for part in (bench.discs, discs)]
        found[f"ttf50_{contrast:.0f}"] = pair[1] / pair[0]
    for (diameter, contrast), place in zip(INSERTS, places(4), strict=True):
        mask = metrics.disc_mask((SIZE, SIZE), pixel(place), diameter / 2.0 / PIXEL_MM)
        found[f"insert_{diameter:.0f}mm_{contrast:.0f}hu"] = float(inserts[mask].mean() / bench.inserts[mask].mean())
    found["false_blobs"] = false_blobs(left)
    found["false_blobs_gaussian"] = false_blobs(gaussian_of_equal_noise(given, found["noise_out_hu"]))
    return found


def noise_in(bench: Bench) -> float:
    """Noise of the bench's images in the middle of the disc [HU]."""
    return float(_deviations(bench.noise)[:, CORE, CORE].std())


def _deviations(images: Tensor) -> Tensor:
    """Deviations from the mean over realisations, scaled so that their variance is unbiased."""
    return (images - images.mean(0)) * (len(images) / max(1, len(images) - 1)) ** 0.5


def gaussian_of_equal_noise(noise: Tensor, sigma_hu: float) -> Tensor:
    """``noise`` (realisation, row, column) blurred by the Gaussian that leaves ``sigma_hu``."""
    low, high = 0.0, 6.0
    for _ in range(20):
        middle = 0.5 * (low + high)
        if float(gaussian_blur(noise[:, None], max(middle, 0.05)).std()) > sigma_hu:
            low = middle
        else:
            high = middle
    return gaussian_blur(noise[:, None], max(high, 0.05))[:, 0]


def false_blobs(noise: Tensor) -> float:
    """Blobs of 2 to 8 mm beyond 3 standard deviations, per realisation of (realisation, row, column)."""
    count = 0
    for one in noise:
        for sign in (1.0, -1.0):
            labels, found = ndimage.label((sign * one / noise.std() > 3.0).numpy())
            area = np.bincount(labels.ravel(), minlength=found + 1)[1:] * PIXEL_MM**2
            diameter = 2.0 * np.sqrt(area / np.pi)
            count += int(((diameter >= 2.0) & (diameter <= 8.0)).sum())
    return count / len(noise)


def observer(
    denoise: Denoiser,
    *,
    sigma_hu: float,
    repeats: int,
    diameter_mm: float,
    contrast_hu: float,
    kernel: Kernel,
    share: float | None = None,
) -> dict[str, Sequence[float]]:
    """d' of a disc in the centre after / before ``denoise``: ratio, lower and upper 95 % limit, CHO and NPW.

    ``share``: of the disc in the slices beside, where ``denoise`` is given any.
    """
    body = projection.apply_kernel(_disc((0.0, 0.0), BODY_MM) * 1040.0 - 1000.0, kernel, PIXEL_MM)
    signal = projection.apply_kernel(contrast_hu * _disc((0.0, 0.0), diameter_mm / 2.0), kernel, PIXEL_MM)
    window = slice(SIZE // 2 - 32, SIZE // 2 + 32)
    parts: dict[str, list[Tensor]] = {"in+": [], "in-": [], "out+": [], "out-": []}
    for index in range(repeats):
        noises = [
            simulate.insert_noise(
                body[None], PIXEL_MM, sigma_hu=sigma_hu, seed=SEED + 50_000 + far + index, kernel=kernel
            )
            for far in ((0,) if share is None else (0, *BESIDE))
        ]
        present = signal if index % 2 else torch.zeros(())
        image = body + noises[0][0] + present
        cut = slice(SIZE // 2 - 80, SIZE // 2 + 80)
        inner = slice(80 - 32, 80 + 32)
        name = "+" if index % 2 else "-"
        parts["in" + name].append(image[window, window])
        given = [image[None, cut, cut]]
        if share is not None:
            given.append((body + torch.cat(noises[1:]) + share * present)[None, :, cut, cut])
        parts["out" + name].append(denoise(*given)[0, inner, inner])
    stacks = {key: torch.stack(value).double() for key, value in parts.items()}
    channels = metrics.laguerre_gauss(64, metrics.CHANNEL_WIDTH * diameter_mm / PIXEL_MM)
    channelled = {key: torch.einsum("nij,cij->nc", value, channels) for key, value in stacks.items()}
    template = signal[window, window].double()
    template = template - template.mean()
    scores = {key: metrics.npw_scores(value, template)[:, None] for key, value in stacks.items()}
    return {
        name: metrics.ratio_interval((kept["in+"], kept["in-"]), (kept["out+"], kept["out-"]))
        for name, kept in (("cho", channelled), ("npw", scores))
    }
