"""When the ventricle is fullest and emptiest, and which slices of it count."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.cardiac import shapes

#: Share of the cavity's outline along which muscle must lie for the slice to count. The usual rule is one half
#: (ml-mr 2.6); networks leave the thin wall beside the valves out, so a third of what they draw. Chosen on the three
#: real patients, see CARD.md.
LEAST_RING: Final = 1 / 3
#: A basal slice whose cavity is smaller than this share of the next one's is a cut through valve or outflow tract.
LEAST_BASE: Final = 0.5
#: Share that makes a ring closed, and slices in a row that need one for the stack to be a short axis (ml-mr 2.5).
CLOSED_RING: Final = 0.9
CLOSED_SLICES: Final = 3
#: Cavity below which a slice holds none, and which a closed ring must hold [mm^2] (ml-mr 2.6: 0.5 cm^2).
LEAST_AREA: Final = 50.0
#: Harmonics of the volume curve.
HARMONICS: Final = 3
#: End systole after end diastole [share of the cycle], and the least change of volume (ml-mr 2.6).
SYSTOLE: Final = (0.15, 0.65)
LEAST_CHANGE: Final = 0.08
#: Least share of the first harmonic in the curve's variance. A heart fills and empties once in a cycle: 0.89 for the
#: simulator's curve, 0.92 to 0.98 in the three real patients. Noise spreads over all harmonics: 0.1 to 0.3 on average.
LEAST_BEAT: Final = 0.6


class UnsuitableStackError(Exception):
    """The stack shows no beating left ventricle in short axis; the message says what was looked for and missed."""


@dataclass(frozen=True, slots=True)
class Cycle:
    """The two phases that are measured."""

    ed: int
    es: int
    #: (phase,) smoothed volume of the left cavity [mL].
    curve_ml: NDArray[np.float64]


def ring(labels: shapes.Labels) -> float:
    """Share of the left cavity's outline that has myocardium beside it; 0 without a cavity."""
    lv, myo = np.pad(labels == shapes.LV, 1), np.pad(labels == shapes.MYO, 1)
    beside = closed = 0
    for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
        edge = lv & ~np.roll(lv, step, axis)
        beside += int(edge.sum())
        closed += int((edge & np.roll(myo, step, axis)).sum())
    return closed / beside if beside else 0.0


def counted(labels: NDArray[np.uint8], pixel_mm2: float) -> NDArray[np.bool_]:
    """(phase, slice) which slices of (phase, slice, row, column) count: the longest run with a cavity and enough ring.

    Ring and area are means over three phases, so that a slice does not come and go from one phase to the next.
    """
    area = _over_time(np.array([[(one == shapes.LV).sum() * pixel_mm2 for one in phase] for phase in labels], float))
    round_it = _over_time(np.array([[ring(one) for one in phase] for phase in labels], float))
    base_last = base_is_last(labels[int(area.sum(1).argmax())])
    out = np.zeros(area.shape, bool)
    for p in range(len(out)):
        out[p] = longest_run(_bridged((area[p] >= LEAST_AREA) & (round_it[p] >= LEAST_RING)))
        inward = np.flatnonzero(out[p])[:: -1 if base_last else 1]
        for outer, inner in pairwise(inward):
            if area[p, outer] >= LEAST_BASE * area[p, inner]:
                break
            out[p, outer] = False
    return out


def base_is_last(labels: NDArray[np.uint8]) -> bool:
    """Whether the base is at the end of (slice, row, column) of a full heart: towards it both cavities grow.

    Only slices with enough ring are asked, and the slope of their areas: what is drawn beyond the heart is no cavity.
    """
    slices = np.flatnonzero([ring(one) >= CLOSED_RING for one in labels])
    areas = np.array([((labels[k] == shapes.LV) | (labels[k] == shapes.RV)).sum() for k in slices], float)
    return bool(((slices - slices.mean()) * areas).sum() >= 0.0) if len(slices) else True


def _over_time(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(phase, slice) means of every phase and its two neighbours around the cycle."""
    return np.asarray((np.roll(values, 1, 0) + values + np.roll(values, -1, 0)) / 3.0, np.float64)


def _bridged(flags: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The flags with gaps of one slice closed: a slice between two that count counts."""
    out = flags.copy()
    out[1:-1] |= flags[:-2] & flags[2:]
    return out


def longest_run(flags: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The flags of the longest run of them only."""
    out, best, begin = np.zeros_like(flags), 0, 0
    for k in range(len(flags) + 1):
        if k == len(flags) or not flags[k]:
            if k - begin > best:
                best = k - begin
                out[:] = False
                out[begin:k] = True
            begin = k + 1
    return out


def require_short_axis(labels: shapes.Labels, pixel_mm2: float) -> None:
    """Raise `UnsuitableStackError` unless enough slices in a row show a closed ring of muscle."""
    closed = [ring(one) >= CLOSED_RING and (one == shapes.LV).sum() * pixel_mm2 >= LEAST_AREA for one in labels]
    found = int(longest_run(np.array(closed, bool)).sum())
    if found < CLOSED_SLICES:
        raise UnsuitableStackError(
            f"not a short-axis stack: a closed ring of myocardium in {found} slices in a row, not in {CLOSED_SLICES}"
        )


def find(volumes_ml: NDArray[np.float64]) -> Cycle:
    """ED and ES from the (phase,) volumes of the left cavity.

    Raises
    ------
    UnsuitableStackError
        If the volume changes by less than ``LEAST_CHANGE``, or otherwise than once in a cycle.
    """
    curve = smoothed(volumes_ml)
    ed, phases = int(curve.argmax()), len(curve)
    after = (np.arange(phases) - ed) % phases / phases
    window = (after >= SYSTOLE[0]) & (after <= SYSTOLE[1])
    es = int(np.where(window, curve, np.inf).argmin())
    if curve[ed] <= 0.0 or (curve[ed] - curve[es]) / curve[ed] < LEAST_CHANGE:
        raise UnsuitableStackError("no contraction found: the left cavity's volume hardly changes over the phases")
    if beat_share(volumes_ml) < LEAST_BEAT:
        raise UnsuitableStackError("no contraction found: the left cavity does not fill and empty once in the cycle")
    return Cycle(ed, es, curve)


def beat_share(volumes_ml: NDArray[np.float64]) -> float:
    """Share of the first harmonic of the cycle in the variance of (phase,) volumes; 0 if they are all the same."""
    change = volumes_ml - volumes_ml.mean()
    variance = float(np.mean(change**2))
    first = abs(np.fft.rfft(change)[1]) / len(change)
    return float(2.0 * first**2 / variance) if variance > 0.0 else 0.0


def smoothed(volumes_ml: NDArray[np.float64]) -> NDArray[np.float64]:
    """The curve with ``HARMONICS`` harmonics of the cycle only."""
    spectrum = np.fft.rfft(volumes_ml)
    spectrum[HARMONICS + 1 :] = 0.0
    return np.asarray(np.fft.irfft(spectrum, len(volumes_ml)), np.float64)
