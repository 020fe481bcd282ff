"""Below the key planes of a summary page: every slice of a cine's segmented phases, and curves."""

from __future__ import annotations

from typing import Final

import numpy as np
from matplotlib.ticker import MaxNLocator

from dicomnode.encode.planes import Area, Planes
from dicomnode.encode.sheet import FAINT, LINE, TEXT, Sheet
from dicomnode.encode.source import CineSource, Source
from dicomnode.pipeline import Curve, KeyPlane, Result

#: Most slices in a row of the montage; of more, so many evenly spaced ones are shown.
_TILES: Final = 14
#: What is shown around the outlined part, as a share of its size.
_AROUND: Final = 0.3
#: Largest tile and height of a curve with its title and axis [pixel].
_TILE: Final = 82.0
_CURVE: Final = 150.0
_TITLE: Final = 13.0
_GAP: Final = 3.0
#: Left of a curve, for its numbers [pixel].
_NUMBERS: Final = 44.0


def height(source: Source, result: Result, width: float) -> float:
    """What `draw` takes of a column ``width`` wide [pixel]."""
    rows = _phases(source, result)
    taken = sum(_CURVE for _ in result.curves[:1])
    if rows:
        taken += len(rows) * (_tile(source, width) + _TITLE * 1.6) + 6
    return taken


def draw(sheet: Sheet, planes: Planes, source: Source, result: Result, area: Area) -> None:
    """The montage, then the first curve, from the top of ``area``."""
    y = area.y
    for phase, label in _phases(source, result):
        y = _row(sheet, planes, source, result, phase, label, Area(area.x, y, area.width, 0.0))
    for curve in result.curves[:1]:
        _curve(sheet, curve, Area(area.x, area.y + area.height - _CURVE, area.width, _CURVE))


# -- slices


def _phases(source: Source, result: Result) -> list[tuple[int, str]]:
    """The segmented phases of a cine and what they are called."""
    if not isinstance(source, CineSource):
        return []
    named = {
        one.phase: one.time_point.label if one.time_point else f"Phase {one.phase + 1}"
        for one in result.segmentations
        if one.phase is not None
    }
    return list(named.items())


def _shown(source: CineSource) -> list[int]:
    count = min(source.slices, _TILES)
    return [round(index * (source.slices - 1) / max(1, count - 1)) for index in range(count)]


def _tile(source: Source, width: float) -> float:
    count = len(_shown(source)) if isinstance(source, CineSource) else 1
    return min(_TILE, (width - _GAP * (count - 1)) / count)


def _row(sheet: Sheet, planes: Planes, source: Source, result: Result, phase: int, label: str, area: Area) -> float:
    """One phase: all its slices, cut to what is outlined in any. Return where the row ends."""
    assert isinstance(source, CineSource)
    size, (rows, columns) = _tile(source, area.width), _cut(result)
    sheet.text(area.x, area.y + _TITLE, f"{label}, slice by slice", _TITLE, colour=FAINT)
    top = area.y + _TITLE * 1.6
    for number, index in enumerate(_shown(source)):
        axes = sheet.picture(area.x + number * (size + _GAP), top, size, size)
        planes.plane(axes, KeyPlane(plane=phase * source.slices + index, reason=""), thin=True)
        axes.set_xlim(columns[0] - 0.5, columns[1] + 0.5)
        axes.set_ylim(rows[1] + 0.5, rows[0] - 0.5)
    return top + size


def _cut(result: Result) -> tuple[tuple[float, float], tuple[float, float]]:
    """First and last row and column of a square around everything that is outlined, with some of its surroundings."""
    seen = np.any([(one.labels > 0).any(0) for one in result.segmentations], axis=0)
    found = [np.flatnonzero(seen.any(axis)) for axis in (1, 0)]
    middles = [(float(one[0]) + float(one[-1])) / 2 for one in found]
    half = max(float(one[-1] - one[0]) for one in found) / 2 * (1 + 2 * _AROUND) + 1
    (row, column) = middles
    return (row - half, row + half), (column - half, column + half)


# -- curves


def _curve(sheet: Sheet, curve: Curve, area: Area) -> None:
    """Title, a line with named points, and a few numbers on either axis."""
    title = sheet.cut(f"{curve.title} [{curve.y_label}]", _TITLE, area.width)
    sheet.text(area.x, area.y + _TITLE, title, _TITLE, colour=FAINT)
    x, top = area.x + _NUMBERS, area.y + _TITLE * 1.9
    width, tall = area.width - _NUMBERS - 8, area.height - _TITLE * 1.9 - 34
    lines = [curve.y] if curve.other is None else [curve.y, curve.other]
    values = [*np.concatenate(lines), *(point[1] for point in curve.points)]
    ticks = MaxNLocator(nbins=3).tick_values(min(values), max(values))
    low, high = float(min(ticks[0], min(values))), float(max(ticks[-1], max(values)))
    first, last = float(curve.x[0]), float(curve.x[-1])
    for tick in ticks:
        y = top + tall * (high - float(tick)) / (high - low)
        sheet.line(x, y, width, colour=LINE)
        sheet.text(x - 6, y + 4, f"{tick:g}", 11.5, colour=FAINT, align="right")
    for tick in MaxNLocator(nbins=6).tick_values(first, last):
        if first <= tick <= last:
            at = x + width * (float(tick) - first) / (last - first)
            sheet.text(at, top + tall + 15, f"{tick:g}", 11.5, colour=FAINT, align="center")
    sheet.text(x + width, top + tall + 30, curve.x_label, 11.5, colour=FAINT, align="right")
    axes = sheet.picture(x, top, width, tall)
    if curve.other is not None:
        axes.plot(curve.x, curve.other, color=FAINT, linewidth=1.2, linestyle="--")
    axes.plot(curve.x, curve.y, color=TEXT, linewidth=1.4)
    axes.plot([one[0] for one in curve.points], [one[1] for one in curve.points], "o", color="#6fb7ea", markersize=5)
    axes.set_xlim(first, last)
    axes.set_ylim(low, high)
    axes.margins(0)
    for at, value, name in curve.points:
        place = x + width * (at - first) / (last - first)
        right = place > x + 0.9 * width
        y = top + tall * (high - value) / (high - low)
        sheet.text(place + (-8 if right else 8), y - 5, name, 12, align="right" if right else "left", outlined=True)
