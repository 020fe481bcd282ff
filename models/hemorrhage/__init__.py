"""Intracranial hemorrhage in head CT: simulator, network, training and evaluation. See CARD.md."""

from __future__ import annotations

from models.hemorrhage.bundle import Package, WeightsMismatchError
from models.hemorrhage.detect import CLASSES, Detection, Detector, load

__all__ = ["CLASSES", "Detection", "Detector", "Package", "WeightsMismatchError", "load"]
