"""Planes of the input as small pictures: window, outlines of segments, orientation letters, where the plane lies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from dicomnode.encode.sheet import FAINT, TEXT, Sheet
from dicomnode.encode.source import CineSource, Source
from dicomnode.encode.window import window
from dicomnode.pipeline import KeyPlane, Result, Segment

#: Most planes on a page; the rest is named in words.
MAX_PLANES: Final = 6
#: Planes of an overview, where the result names none.
_OVERVIEW: Final = 4
#: Columns of the grid by number of planes.
_COLUMNS: Final = {1: 1, 2: 2, 3: 2, 4: 2, 5: 3, 6: 3}
#: Outlines differ in their dashes too, so that they are told apart without colours [points].
DASHES: Final[tuple[tuple[float, ...], ...]] = ((), (6, 1.6), (1.6, 1.2), (7, 1.5, 1.6, 1.5), (3.2, 1.4), (9, 2))
#: A direction is named by a second letter from this cosine on: 15 degrees off an axis.
_OBLIQUE: Final = math.sin(math.radians(15))
#: Positive and negative end of each axis of the patient (PS3.3 C.7.6.1.1.1): LPS, and head, foot.
_ENDS: Final = (("L", "R"), ("P", "A"), ("H", "F"))
_CAPTION: Final = 13.0
_LETTER: Final = 15.0
_GAP: Final = 14.0


@dataclass(frozen=True, slots=True)
class Area:
    """A rectangle on the sheet [pixel]."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Outlined:
    """A segment with its own look: what the legend explains."""

    segment: Segment
    labels: NDArray[np.uint8]
    number: int
    dashes: tuple[float, ...]

    @property
    def colour(self) -> tuple[float, float, float]:
        """sRGB 0..1."""
        red, green, blue = self.segment.colour
        return red / 255, green / 255, blue / 255

    def mask(self, plane: int) -> NDArray[np.bool_]:
        """Where it lies on a plane."""
        found: NDArray[np.bool_] = self.labels[plane] == self.number
        return found


def outlined(result: Result) -> list[Outlined]:
    """Every segment of ``result`` with its dashes."""
    found = [
        (one, segmentation.labels, number)
        for segmentation in result.segmentations
        for number, one in enumerate(segmentation.segments, 1)
    ]
    return [Outlined(*parts, DASHES[index % len(DASHES)]) for index, parts in enumerate(found)]


def shown(source: Source, result: Result) -> list[KeyPlane]:
    """Planes that go on the page: the first key planes, or an overview of an input of which none was named."""
    if result.key_planes:
        return list(result.key_planes[:MAX_PLANES])
    count = len(source.planes)
    steps = {round((count - 1) * (number + 1) / (_OVERVIEW + 1)) for number in range(_OVERVIEW)}
    return [KeyPlane(plane=plane, reason="") for plane in sorted(steps)]


def letters(direction: Sequence[float]) -> str:
    """Where in the patient a direction leads, strongest first (as PatientOrientation has it, PS3.3 C.7.6.1.1.1)."""
    strength = sorted(range(3), key=lambda axis: -abs(direction[axis]))
    named = [axis for axis in strength if abs(direction[axis]) >= _OBLIQUE]
    return "".join(_ENDS[axis][0 if direction[axis] > 0 else 1] for axis in named)


def edges(orientation: NDArray[np.float64]) -> tuple[str, str, str, str]:
    """Letters at the left, right, top and bottom edge of a plane."""
    row, column = orientation[:3], orientation[3:]
    return letters(tuple(-row)), letters(tuple(row)), letters(tuple(-column)), letters(tuple(column))


def where(source: Source, plane: int) -> str:
    """How a reader finds a plane: the number that viewers show, its place in the stack, its position."""
    of = source.planes[plane]
    header = source.headers[of.header]
    number = header.get("InstanceNumber")
    image = f"Image {number}" if number not in (None, "") else "Image"
    name = f"Frame {of.frame}" if of.frame else image
    position = source.images.positions[plane]
    normal = np.cross(source.images.orientation[:3], source.images.orientation[3:])
    axis = int(np.argmax(np.abs(normal)))
    value = float(position[axis])
    return f"{name} ({_count(source, plane)})  ·  {_ENDS[axis][value < 0]} {abs(value):.1f} mm"


def _count(source: Source, plane: int) -> str:
    """Which plane of how many, and of which phase in a cine."""
    if not isinstance(source, CineSource):
        return f"{plane + 1} of {len(source.planes)}"
    phase, index = divmod(plane, source.slices)
    return f"{index + 1} of {source.slices}, phase {phase + 1} of {len(source.planes) // source.slices}"


class Planes:
    """The pictures of a page."""

    def __init__(self, sheet: Sheet, source: Source, result: Result) -> None:
        self._sheet, self._source, self._result = sheet, source, result
        self._outlined = outlined(result)

    def draw(self, area: Area) -> None:
        """Fill ``area`` with the planes in a grid, and the legend of what is outlined below them."""
        chosen = shown(self._source, self._result)
        legend = self._legend(chosen)
        below = 24.0 * math.ceil(len(legend) / 2) + (24.0 if legend else 0.0) + 22.0
        columns = _COLUMNS[len(chosen)]
        rows = math.ceil(len(chosen) / columns)
        width = (area.width - _GAP * (columns - 1)) / columns
        height = (area.height - below - _GAP * (rows - 1)) / rows
        # As many lines are kept free under every picture as the longest reason takes, so that rows stay level.
        reasons = max(len(self._sheet.wrap(one.reason, _CAPTION, width, lines=2)) for one in chosen)
        words = _CAPTION * 1.45 * (1 + reasons) + 6
        height = min(height, width / self._aspect() + words)
        for index, key in enumerate(chosen):
            row, column = divmod(index, columns)
            cell = Area(area.x + column * (width + _GAP), area.y + row * (height + _GAP), width, height)
            self._cell(key, cell, height - words)
        bottom = area.y + rows * height + (rows - 1) * _GAP + 20
        if not self._result.key_planes:
            self._sheet.text(area.x, bottom, "Overview of the input; no plane was pointed out.", _CAPTION, colour=FAINT)
        elif len(self._result.key_planes) > len(chosen):
            more = len(self._result.key_planes) - len(chosen)
            self._sheet.text(area.x, bottom, f"… and {more} more key images", _CAPTION, colour=FAINT)
        self._explain(legend, area, bottom + 24)

    def _aspect(self) -> float:
        """Width of a plane by its height [mm / mm]."""
        _, rows, columns = self._source.images.array.shape
        between_rows, between_columns = self._source.images.pixel_spacing
        return float(columns * between_columns / (rows * between_rows))

    def _on(self, key: KeyPlane) -> list[Outlined]:
        wanted = [one for one in self._outlined if not key.segments or one.segment.key in key.segments]
        return [one for one in wanted if one.mask(key.plane).any()]

    def _legend(self, chosen: Sequence[KeyPlane]) -> list[Outlined]:
        drawn = {id(one) for key in chosen for one in self._on(key)}
        return [one for one in self._outlined if id(one) in drawn]

    def _cell(self, key: KeyPlane, cell: Area, height: float) -> None:
        """One plane and what is said of it."""
        aspect = self._aspect()
        width = min(cell.width, height * aspect)
        tall = width / aspect
        left = cell.x + (cell.width - width) / 2
        self._sheet.box(cell.x, cell.y, cell.width, height, fill="black")
        top = cell.y + (height - tall) / 2
        self.plane(self._sheet.picture(left, top, width, tall), key)
        self._letters(cell, height)
        y = cell.y + height + _CAPTION * 1.45
        caption = self._sheet.cut(where(self._source, key.plane), _CAPTION, cell.width)
        self._sheet.text(cell.x, y, caption, _CAPTION, colour=FAINT)
        for line in self._sheet.wrap(key.reason, _CAPTION, cell.width, lines=2):
            y += _CAPTION * 1.45
            self._sheet.text(cell.x, y, line, _CAPTION, colour=TEXT)

    def plane(self, axes: Axes, key: KeyPlane, *, thin: bool = False) -> None:
        """One plane with its outlines; ``thin`` ones, without dashes, on a small picture."""
        low, high = window(self._source, self._result, key.plane)
        grey = np.clip((self._source.images.array[key.plane] - low) / (high - low), 0.0, 1.0)
        header = self._source.headers[self._source.planes[key.plane].header]
        if header.get("PhotometricInterpretation") == "MONOCHROME1":  # the least value is white (PS3.3 C.7.6.3.1.2)
            grey = 1.0 - grey
        grey[self._source.images.padding[key.plane]] = 0.0
        axes.imshow(grey, cmap="gray", vmin=0, vmax=1, interpolation="bilinear", aspect="auto")
        for one in self._on(key):
            mask = np.pad(one.mask(key.plane), 1).astype(float)
            rows, columns = np.arange(mask.shape[0]) - 1, np.arange(mask.shape[1]) - 1
            if thin:
                axes.contour(columns, rows, mask, levels=[0.5], colors=[one.colour], linewidths=0.9)
                continue
            axes.contour(columns, rows, mask, levels=[0.5], colors=["black"], linewidths=3.0, alpha=0.65)
            style = (0.0, one.dashes) if one.dashes else "solid"
            axes.contour(columns, rows, mask, levels=[0.5], colors=[one.colour], linewidths=1.7, linestyles=[style])
        axes.set_xlim(-0.5, grey.shape[1] - 0.5)
        axes.set_ylim(grey.shape[0] - 0.5, -0.5)

    def _letters(self, cell: Area, height: float) -> None:
        left, right, top, bottom = edges(self._source.images.orientation)
        middle, baseline = cell.x + cell.width / 2, cell.y + height / 2 + _LETTER / 3
        put = self._sheet.text
        put(cell.x + 6, baseline, left, _LETTER, colour=TEXT, outlined=True)
        put(cell.x + cell.width - 6, baseline, right, _LETTER, colour=TEXT, align="right", outlined=True)
        put(middle, cell.y + _LETTER + 4, top, _LETTER, colour=TEXT, align="center", outlined=True)
        put(middle, cell.y + height - 7, bottom, _LETTER, colour=TEXT, align="center", outlined=True)

    def _explain(self, legend: Sequence[Outlined], area: Area, y: float) -> None:
        """Colour, dashes and name of what is outlined, in two columns."""
        width = (area.width - _GAP) / 2
        for index, one in enumerate(legend):
            row, column = divmod(index, 2)
            x, baseline = area.x + column * (width + _GAP), y + 24 * row
            self._sheet.line(x, baseline - 5, 38, colour=one.colour, width=2.2, dashes=one.dashes)
            label = self._sheet.cut(one.segment.label, 14, width - 50)
            self._sheet.text(x + 48, baseline, label, 14, colour=TEXT)
