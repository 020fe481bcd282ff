"""The card's picture: input, output and their difference, of simulated slices: ``python -m models.ct_denoise.picture``.

The difference must show noise and no anatomy. ``--series`` pictures a real series the same way, for the eye only.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.ct_denoise import cases, projection, simulate
from models.ct_denoise.bundle import load
from models.ct_denoise.net import DenoiseUNet
from models.ct_denoise.phantoms import Draw, head_slice, random_shapes
from models.ct_denoise.projection import KERNELS

#: Side of a slice in the picture [pixel], and its pixel size [mm].
SIDE: Final = 250
PIXEL_MM: Final = (0.78, 1.2)
#: Noise [HU], window (centre, width) [HU] and strength of the two rows: a head, shapes like an abdomen's contrasts.
ROWS: Final = ((10.0, (40.0, 120.0), 0.5), (20.0, (40.0, 400.0), 0.6))
#: Width of the difference's window in standard deviations of the noise, and the grey levels kept: noise packs badly.
DIFFERENCE: Final = 6.0
LEVELS: Final = 48


def _grey(image: Tensor, centre: float, width: float) -> NDArray[np.uint8]:
    shown = ((image - centre) / width + 0.5).clamp(0.0, 1.0)
    return ((shown * (LEVELS - 1)).round() * (255.0 / (LEVELS - 1))).to(torch.uint8).numpy()


def row(
    net: DenoiseUNet, image: Tensor, window: tuple[float, float], strength: float, noise_hu: float
) -> NDArray[np.uint8]:
    """Input, output and difference of ``image`` (row, column) [HU], side by side."""
    with torch.inference_mode():
        removed = net.noise(image[None, None], strength)[0, 0]
    parts = (_grey(image, *window), _grey(image - removed, *window), _grey(removed, 0.0, DIFFERENCE * noise_hu))
    return np.concatenate(parts, axis=1)


def simulated(net: DenoiseUNet) -> NDArray[np.uint8]:
    """The picture of the card, (row, column)."""
    rows = []
    for index, (make, (noise_hu, window, strength)) in enumerate(zip((head_slice, random_shapes), ROWS, strict=True)):
        draw = Draw(simulate.EVALUATION_SEED + 9003 + index, SIDE, PIXEL_MM[index], torch.device("cpu"))
        clean = projection.apply_kernel(make(draw), KERNELS["std"], PIXEL_MM[index])
        noise = simulate.insert_noise(clean[None], PIXEL_MM[index], sigma_hu=noise_hu, seed=9100 + index)[0]
        rows.append(row(net, clean + noise, window, strength, noise_hu))
    return np.concatenate(rows, axis=0)


def main() -> None:
    """Write the picture."""
    from PIL import Image

    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=here)
    parser.add_argument("--out", type=Path, default=here / "difference.png")
    parser.add_argument("--series", type=Path, help="folder or .tar.xz of a real series instead; keep it to yourself")
    parser.add_argument("--slice", type=int, default=16)
    parser.add_argument("--window", type=float, nargs=2, default=(40.0, 100.0), metavar=("CENTRE", "WIDTH"))
    parser.add_argument("--strength", type=float, default=0.6)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    net = load(arguments.weights)
    if arguments.series is None:
        picture = simulated(net)
    else:
        series = cases.read_series(arguments.series)
        image = torch.where(series.padding, -1000.0, series.array)[arguments.slice]
        picture = row(net, image, tuple(arguments.window), arguments.strength, 5.0)
    Image.fromarray(picture).save(arguments.out, optimize=True)
    print(f"wrote {arguments.out}, {arguments.out.stat().st_size // 1024} kB")


if __name__ == "__main__":
    main()
