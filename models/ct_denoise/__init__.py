"""CT noise reduction: simulator, network, training and evaluation. See CARD.md."""

from __future__ import annotations

from models.ct_denoise.bundle import WeightsMismatchError, load
from models.ct_denoise.net import PRESETS_UP_TO, DenoiseUNet, precision
from models.ct_denoise.noise import noise_level, noise_map
from models.ct_denoise.stream import Stream

__all__ = [
    "PRESETS_UP_TO",
    "DenoiseUNet",
    "Stream",
    "WeightsMismatchError",
    "load",
    "noise_level",
    "noise_map",
    "precision",
]
