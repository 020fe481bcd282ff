"""CT noise reduction: simulator, network, training and evaluation. See CARD.md."""

from __future__ import annotations

from models.ct_denoise.bundle import WeightsMismatchError, load
from models.ct_denoise.net import DenoiseUNet, precision
from models.ct_denoise.noise import noise_level, noise_map

__all__ = ["DenoiseUNet", "WeightsMismatchError", "load", "noise_level", "noise_map", "precision"]
