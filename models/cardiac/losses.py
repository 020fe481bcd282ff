"""The loss: marginal likelihood over what is known of a pixel, overlap of what is known wholly, slice position.

Real contours say less than simulated labels: Sunnybrook has no right ventricle, and at end systole no epicardium. A
pixel therefore carries a code for the set of classes that it may be, and the likelihood is that of the set (ml-mr 2.4).
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from models.cardiac.net import Logits

#: Codes 0 to 3 are the classes themselves; then: background or RV, and anything but the left cavity.
OUTSIDE: Final = 4
NOT_LV: Final = 5
#: (code, class) which classes a code allows.
ALLOWED: Final = (
    (True, False, False, False),
    (False, True, False, False),
    (False, False, True, False),
    (False, False, False, True),
    (True, True, False, False),
    (True, True, True, False),
)
#: A slice whose position nobody knows.
UNKNOWN_POSITION: Final = -1


def terms(logits: Logits, codes: Tensor, positions: Tensor) -> dict[str, Tensor]:
    """Parts of the loss from codes (slice, row, column) and positions (slice,)."""
    pixels = logits.pixels.float()
    log_p = functional.log_softmax(pixels, 1)
    allowed = torch.tensor(ALLOWED, device=codes.device)[codes.long()].movedim(-1, 1)
    likelihood = torch.logsumexp(log_p.masked_fill(~allowed, -torch.inf), 1)
    known = positions != UNKNOWN_POSITION
    place = functional.cross_entropy(logits.positions.float(), positions.clamp_min(0), reduction="none")
    return {
        "likelihood": -likelihood.mean(),
        "overlap": overlap(log_p.exp(), codes),
        "position": 0.1 * (place * known).sum() / known.sum().clamp_min(1),
    }


def overlap(p: Tensor, codes: Tensor) -> Tensor:
    """1 - soft Dice, mean over RV, whole left ventricle and its cavity, each over the slices where it is wholly known.

    The left ventricle is taken with its cavity, not the ring of muscle: the Dice of a thin ring is best where its outer
    outline takes in what is doubtful.
    """
    known = (
        ((1,), ~(codes >= OUTSIDE).any((1, 2))),
        ((2, 3), ~(codes == NOT_LV).any((1, 2))),
        ((3,), torch.ones_like(codes[:, 0, 0]) > 0),
    )
    parts = []
    for classes, whole in known:
        slices = whole.view(-1, 1, 1).float()
        truth = torch.stack([codes == k for k in classes]).any(0).float() * slices
        called = torch.stack([p[:, k] for k in classes]).sum(0) * slices
        both = 2.0 * (truth * called).sum()
        parts.append(1.0 - (both + 1.0) / (truth.sum() + called.sum() + 1.0))
    return torch.stack(parts).mean()
