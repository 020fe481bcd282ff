"""How much unfolding amplifies noise: coils that are too alike for a pattern make CG-SENSE worse than no unfolding."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from models.mr_recon import checks
from models.mr_recon.linops import Sense

#: How many times unfolding may amplify noise before CG-SENSE gives way to compressed sensing: a real phantom in 2 coils
#: at R=2 has 8.8, and 15.8 dB against 28.2 dB by wavelets; with 8 coils at R=4 cine has 4.7 to 5.5, and 0.2 to 1.7 dB
#: less than by wavelets; with 16 coils at R=4 it has 3.2 to 3.6, and a real sphere 1.6.
AMPLIFICATION: Final = 6.0
#: Added to the eigenvalues of the coils' products, which are 1 or less in sum: what is below is beyond telling.
FLOOR: Final = 1e-4


def amplification(operator: Sense, y: Tensor, acceleration: float) -> float:
    """The g-factor (Pruessmann, Magn Reson Med 1999, 42:952) of the middle frame, its root mean square over the body.

    It is that of the regular lines alone, without the calibration's, and of exact unfolding: where coils are nearly
    equal the damping of CG-SENSE amplifies no noise, for it leaves the image folded.

    Parameters
    ----------
    operator, y
        The measurement (frame, coil, ky, kx) of one set of maps, or of one for every frame.
    acceleration
        Distance of the regular lines.
    """
    frame = len(y) // 2
    most = operator.mask[frame].max()
    maps = operator.maps if operator.maps.ndim == 3 else operator.maps[frame]
    image = checks.linear(Sense(maps, operator.mask[frame] / most), y[frame] / most).abs()
    body = image > checks.BODY * torch.quantile(image.flatten(), 0.99)
    return float(g_factor(maps, round(acceleration))[body].square().mean().sqrt())


def g_factor(maps: Tensor, acceleration: int) -> Tensor:
    """Real (row, column) of maps (coil, row, column): sqrt([(S^H S)^-1]_11 [S^H S]_11), S what folds together."""
    rows = maps.shape[-2]
    shifts = torch.tensor([round(k * rows / acceleration) for k in range(acceleration)], device=maps.device)
    at = (torch.arange(rows, device=maps.device)[:, None] + shifts) % rows
    folded = maps[:, at].permute(1, 3, 0, 2)  # (row, column, coil, image)
    products = folded.mH @ folded
    # images outside the maps' support are known to be nothing, and fold onto nothing
    empty = products.diagonal(dim1=-2, dim2=-1).real <= 0
    products = products + torch.diag_embed(torch.where(empty, 1.0, FLOOR)).to(products)
    inverse = torch.linalg.inv(products)
    return (inverse[..., 0, 0].real * products[..., 0, 0].real).clamp(min=1.0).sqrt()
