"""How k-space was acquired, as attributes of the MR Image module: what the header says, and honest defaults."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Final

from pydicom import Dataset
from pydicom.valuerep import format_number_as_ds

from dicomnode.encode.common import cut
from dicomnode.kspace import KSpaceHeader, Trajectory
from dicomnode.pipeline import ReconstructedPlane

#: Vendors' names of sequences -> ScanningSequence and SequenceVariant (PS3.3 C.8.3.1.1.1); the first match counts.
_NAMES: Final = (
    (r"ep2d|epi|ep_", "EP", "NONE"),
    (r"trufi|fiesta|ssfp|b-?ffe|tfi", "GR", "SS"),
    (r"flash|spgr|fl[23]d|t1-?ffe|gre|ffe|fgre|vibe|tfl|mprage", "GR", "SP"),
    (r"tse|fse|haste|rare|space", "SE", "SK"),
    (r"spin|se2d|^se$", "SE", "NONE"),
)
#: Where the sequence is not known: "research mode" says no more than is true (PS3.3 C.8.3.1, Scanning Sequence).
_UNKNOWN: Final = ("RM", "NONE")
#: Which counters a list of sequenceParameters may run over, the likelier first.
_RUNS: Final = {
    "TE": ("contrast", "set"),
    "TR": ("contrast", "set"),
    "TI": ("set", "contrast"),
    "flipAngle_deg": ("set", "contrast"),
}
_MAX_SH: Final = 16


def add_acquisition(ds: Dataset, header: KSpaceHeader, plane: ReconstructedPlane) -> None:
    """Write how ``plane`` was acquired into ``ds``; what is not known and of type 2 stays empty."""
    encoding, acquired = header.encodings[0], header.acquisition
    times = {name: at(header, name, plane) for name in _RUNS}
    ds.ScanningSequence, ds.SequenceVariant = _sequence(header)
    ds.ScanOptions = None
    ds.MRAcquisitionType = "3D" if encoding.three_dimensional else "2D"
    ds.RepetitionTime, ds.EchoTime = _ds(times["TR"]), _ds(times["TE"])
    train = acquired.get("EchoTrainLength")
    ds.EchoTrainLength = str(int(train)) if isinstance(train, float) else None
    if times["TI"]:
        ds.InversionTime = _ds(times["TI"])
    if times["flipAngle_deg"] is not None:
        ds.FlipAngle = _ds(times["flipAngle_deg"])
    ds.EchoNumbers = str(plane.contrast + 1)
    ds.ImagedNucleus = "1H"  # the header gives the resonance frequency of 1H and of nothing else
    for keyword in ("MagneticFieldStrength", "ImagingFrequency"):
        value = acquired.get(keyword)
        if isinstance(value, float):
            setattr(ds, keyword, _ds(value))
    averages = encoding.limits.get("average")
    if averages is not None:
        ds.NumberOfAverages = str(averages.count)
    name = acquired.get("SequenceName")
    if isinstance(name, str):
        ds.SequenceName = cut(name, _MAX_SH)
    _add_time(ds, header, plane)


def at(header: KSpaceHeader, name: str, plane: ReconstructedPlane) -> float | None:
    """The value of a list of sequenceParameters that holds for ``plane``; None if that cannot be told."""
    values, limits = header.sequence.get(name, ()), header.encodings[0].limits
    if len(set(values)) <= 1:
        return values[0] if values else None
    for counter in _RUNS[name]:
        limit = limits.get(counter)
        index: int = getattr(plane, counter)
        if limit is not None and limit.count == len(values) and index < len(values):
            return values[index]
    # A list longer than what was encoded (vendors write eight echo times and acquire one): by the echo, if any.
    return values[plane.contrast] if name == "TE" and plane.contrast < len(values) else None


def _add_time(ds: Dataset, header: KSpaceHeader, plane: ReconstructedPlane) -> None:
    """Phase of the heartbeat and repetition."""
    limits = header.encodings[0].limits
    phases, repetitions = limits.get("phase"), limits.get("repetition")
    if phases is not None and phases.count > 1:
        # Phases of the heartbeat: scanners stamp every line, but the time after the R wave means something here only.
        ds.ScanOptions = "CG"
        ds.TriggerTime = _ds(plane.trigger_time)
        ds.CardiacNumberOfImages = str(phases.count)
    ds.AcquisitionNumber = str(plane.repetition + 1)
    if repetitions is not None and repetitions.count > 1:
        ds.TemporalPositionIdentifier = str(plane.repetition + 1)
        ds.NumberOfTemporalPositions = str(repetitions.count)


def _sequence(header: KSpaceHeader) -> tuple[str, str]:
    if header.encodings[0].trajectory is Trajectory.EPI:
        return "EP", "NONE"
    for key in ("PulseSequenceName", "SequenceName"):
        name = str(header.acquisition.get(key) or "").lower()
        for pattern, scanning, variant in _NAMES:
            if re.search(pattern, name):
                return scanning, variant
    return _UNKNOWN


def _ds(value: float | None) -> str | None:
    return None if value is None or not math.isfinite(value) else format_number_as_ds(float(value))


def numbers(values: Iterable[float]) -> list[str]:
    """``values`` as DS: 16 characters, which is 1e-9 mm or better for any patient."""
    return [format_number_as_ds(float(value)) for value in values]
