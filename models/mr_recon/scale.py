"""One factor from image values to stored integers, for a whole series."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

#: The body: pixels above this part of the 99th percentile.
BODY: Final = 0.1
#: Percentile of the body's values, and the stored value it becomes: 12 bits as scanners write them, with room above
#: to 65535 for slices that are brighter than the first.
PERCENTILE: Final = 0.999
TARGET: Final = 0.8 * 4095


def body(images: Tensor) -> Tensor:
    """Bool, where there is tissue in magnitude ``images``."""
    return images > BODY * torch.quantile(_thinned(images), 0.99)


def factor(images: Tensor) -> float:
    """Stored value of an image value of 1, from the first complete slice's magnitude ``images``; 1 if all are zero."""
    tissue = images[body(images)]
    if tissue.numel() == 0:
        return 1.0
    bright = float(torch.quantile(_thinned(tissue), PERCENTILE))
    return TARGET / bright if bright > 0 else 1.0


def _thinned(values: Tensor) -> Tensor:
    """At most the 2^24 values that torch.quantile takes, every nth of them."""
    flat = values.flatten()
    return flat[:: max(1, -(-flat.numel() // 2**24))]
