"""What an image says of itself that makes it no part of a cine of the beating heart: by its header, never its name."""

from __future__ import annotations

import math
import re
from typing import Final

from pydicom import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import EnhancedMRImageStorage, LegacyConvertedEnhancedMRImageStorage, MRImageStorage

from dicomnode.volumes import frames

#: Classes that a cine may come in.
MR_CLASSES: Final = frozenset({MRImageStorage, EnhancedMRImageStorage, LegacyConvertedEnhancedMRImageStorage})

#: Values of ImageType or FrameType from the third on (PS3.3 C.8.3.1.1.1 and vendors' own) that name velocity or phase.
_PHASE_CONTRAST: Final = frozenset(
    {"P", "PCA", "M_PCA", "PHASE", "PHASE MAP", "PHASE CONTRAST", "VELOCITY", "VELOCITY MAP", "FLOW"}
)
#: SequenceName of velocity-encoded images of one maker: ``fl2d1_v150in``.
_VELOCITY: Final = re.compile(r"_v\d+(in|through|rl|ap|fh)?", re.IGNORECASE)
#: AcquisitionContrast (PS3.3 C.8.13.3.1.2) of what is no cine.
_CONTRASTS: Final = {
    "FLOW_ENCODED": "phase contrast",
    "PERFUSION": "perfusion",
    "DIFFUSION": "diffusion",
}


def why_not(header: Dataset, frame: int) -> str:
    """Why the image is no phase of a cine, with the attribute that says it; empty if nothing speaks against it.

    A cine shows the whole beat after each R wave. Images prepared by inversion or saturation (late enhancement,
    mapping, first-pass perfusion) show one moment of it, even where a header carries trigger times.
    """
    types = [*_texts(header, frame, "ImageType"), *_texts(header, frame, "FrameType")]
    if "LOCALIZER" in types:
        return "a localizer (ImageType LOCALIZER)"
    if "MOSAIC" in types:
        return "a mosaic: several planes in one picture (ImageType MOSAIC)"
    return _velocity(header, frame) or _prepared(header, frame)


def _velocity(header: Dataset, frame: int) -> str:
    for keyword in ("ImageType", "FrameType"):
        named = _PHASE_CONTRAST & set(_texts(header, frame, keyword)[2:])
        if named:
            return f"phase contrast ({keyword} {min(named)})"
    for keyword, values in (("ComplexImageComponent", {"PHASE", "MIXED"}), ("PhaseContrast", {"YES"})):
        if values & set(_texts(header, frame, keyword)):
            return f"phase contrast ({keyword} {_texts(header, frame, keyword)[0]})"
    if (number(header, frame, "VelocityEncodingMaximumValue") or 0) > 0:
        return "phase contrast (VelocityEncodingMaximumValue above 0)"
    if any(_VELOCITY.search(name) for name in _texts(header, frame, "SequenceName")):
        return "phase contrast (SequenceName names a velocity)"
    return ""


def _prepared(header: Dataset, frame: int) -> str:
    for contrast in _texts(header, frame, "AcquisitionContrast"):
        if _CONTRASTS.get(contrast):
            return f"{_CONTRASTS[contrast]} (AcquisitionContrast {contrast})"
    for keyword in ("InversionTime", "InversionTimes"):
        if (number(header, frame, keyword) or 0) > 0:
            return f"inversion-prepared: late enhancement, mapping or perfusion ({keyword} above 0)"
    if "YES" in _texts(header, frame, "InversionRecovery") or "IR" in _texts(header, frame, "ScanningSequence"):
        return "inversion-prepared: late enhancement, mapping or perfusion (inversion recovery)"
    if "YES" in _texts(header, frame, "SaturationRecovery"):
        return "saturation-prepared: perfusion (SaturationRecovery YES)"
    if {"GRID", "LINE"} & set(_texts(header, frame, "Tagging")):
        return "tagged (Tagging)"
    return ""


def number(header: Dataset, frame: int, keyword: str) -> float | None:
    """First value of ``keyword`` as a finite number; None if there is none."""
    value = frames.find(header, frame, keyword)
    first = value[0] if isinstance(value, MultiValue | list | tuple) and value else value
    try:
        found = float(first) if first not in (None, "") else math.nan
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def _texts(header: Dataset, frame: int, keyword: str) -> list[str]:
    value = frames.find(header, frame, keyword)
    parts = value if isinstance(value, MultiValue | list | tuple) else [] if value is None else [value]
    return [str(part).strip().upper() for part in parts]
