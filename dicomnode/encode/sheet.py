"""A sheet of pixels to draw a page on: matplotlib in pixel coordinates, with fonts that come with it.

The object-oriented interface only: no pyplot, no backend but Agg, and matplotlib's own defaults whatever a
``matplotlib.rc`` file of the machine says. The same calls give the same pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, get_font
from matplotlib.ft2font import LoadFlags
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

#: Pixels of a page: fills a reading-room display beside others, and a PACS client's viewport without scrolling.
WIDTH: Final = 1280
HEIGHT: Final = 960
#: Pixels in an inch: font sizes are points of 1/72 inch.
_DPI: Final = 100

#: Size at which characters are measured [pixel]; large, so that nothing is lost to rounding.
_MEASURED_AT: Final = 1000

# Grey on near-black: a bright page beside a head CT would dazzle.
BACKGROUND: Final = "#0c0e11"
TEXT: Final = "#e3e6ea"
FAINT: Final = "#98a1ac"
LINE: Final = "#2b3138"
#: Of the research mark.
AMBER: Final = "#f0b429"
AMBER_DARK: Final = "#2a2110"

Colour = str | tuple[float, float, float]


@contextmanager
def defaults() -> Iterator[None]:
    """Matplotlib as it was delivered, for as long as a page is drawn."""
    # Without hinting a line is as wide as its characters' advances say, so that what was measured fits.
    with mpl.rc_context({**mpl.rcParamsDefault, "text.hinting": "none"}):
        yield


class Sheet:
    """One page. Coordinates are pixels from the top-left corner; sizes of text are pixels of its em."""

    def __init__(self, width: int = WIDTH, height: int = HEIGHT) -> None:
        self.width, self.height = width, height
        self._figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor=BACKGROUND)
        self._canvas = FigureCanvasAgg(self._figure)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float,
        *,
        colour: Colour = TEXT,
        bold: bool = False,
        align: str = "left",
        outlined: bool = False,
    ) -> None:
        """One line whose baseline is at ``y``; ``align`` says which end of it, or its centre, is at ``x``."""
        written = self._figure.text(
            x / self.width, 1 - y / self.height, drawable(text), color=colour, fontproperties=_font(size, bold=bold),
            ha=align, va="baseline", parse_math=False, zorder=4,
        )  # fmt: skip
        if outlined:
            written.set_path_effects([withStroke(linewidth=2.5, foreground="black")])

    def measure(self, text: str, size: float, *, bold: bool = False) -> float:
        """Width of a line: what its characters advance, which kerning makes a little less at most."""
        return size * sum(_advance(character, bold=bold) for character in drawable(text))

    def wrap(self, text: str, size: float, width: float, *, bold: bool = False, lines: int = 0) -> list[str]:
        """Break text into lines no wider than ``width``; with ``lines``, at most so many, the last one cut."""
        found = [""]
        for word in text.split():
            longer = f"{found[-1]} {word}".strip()
            if self.measure(longer, size, bold=bold) <= width:
                found[-1] = longer
                continue
            if found[-1]:
                found.append("")
            for piece in self._pieces(word, size, width, bold=bold):
                if found[-1]:
                    found.append("")
                found[-1] = piece
        if lines and len(found) > lines:
            found = [*found[: lines - 1], self.cut(" ".join(found[lines - 1 :]), size, width, bold=bold)]
        return [line for line in found if line]

    def cut(self, text: str, size: float, width: float, *, bold: bool = False) -> str:
        """``text``, ended by an ellipsis where it is wider than ``width``."""
        if self.measure(text, size, bold=bold) <= width:
            return text
        low, high = 0, len(text)
        while low < high:
            middle = (low + high + 1) // 2
            fits = self.measure(text[:middle].rstrip() + "…", size, bold=bold) <= width
            low, high = (middle, high) if fits else (low, middle - 1)
        return text[:low].rstrip() + "…"

    def _pieces(self, word: str, size: float, width: float, *, bold: bool) -> Iterator[str]:
        """A word in pieces that fit: one that is longer than a line has no better place to break."""
        while word:
            count = len(word)
            while count > 1 and self.measure(word[:count], size, bold=bold) > width:
                count -= max(1, count // 8)
            yield word[:count]
            word = word[count:]

    def box(self, x: float, y: float, width: float, height: float, *, fill: Colour, edge: Colour | None = None) -> None:
        """A filled rectangle."""
        self._figure.add_artist(
            Rectangle(
                (x / self.width, 1 - (y + height) / self.height), width / self.width, height / self.height,
                facecolor=fill, edgecolor=edge or "none", linewidth=1.0 if edge else 0.0,
            )
        )  # fmt: skip

    def line(
        self,
        x: float,
        y: float,
        length: float,
        *,
        colour: Colour = LINE,
        width: float = 1.0,
        dashes: Sequence[float] = (),
    ) -> None:
        """A horizontal line; ``width`` and ``dashes`` in points."""
        ends = ([x / self.width, (x + length) / self.width], [1 - y / self.height] * 2)
        drawn = Line2D(*ends, color=colour, linewidth=width)
        if dashes:
            drawn.set_linestyle((0, tuple(dashes)))
        self._figure.add_artist(drawn)

    def mark(self, x: float, y: float, shape: str, size: float, colour: Colour, *, filled: bool) -> None:
        """A small sign around a point; ``shape`` as matplotlib names markers."""
        self._figure.add_artist(
            Line2D(
                [x / self.width], [1 - y / self.height], marker=shape, markersize=size * 72 / _DPI, linestyle="",
                markerfacecolor=colour if filled else "none", markeredgecolor=colour, markeredgewidth=1.6,
            )
        )  # fmt: skip

    def picture(self, x: float, y: float, width: float, height: float) -> Axes:
        """Axes without frame and ticks."""
        axes = self._figure.add_axes(
            (x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height)
        )
        axes.set_axis_off()
        axes.set_zorder(3)  # above boxes, below text
        return axes

    def pixels(self) -> NDArray[np.uint8]:
        """What was drawn: RGB, axes (row, column, colour)."""
        self._canvas.draw()  # type: ignore[no-untyped-call]
        drawn = np.asarray(self._canvas.buffer_rgba())  # type: ignore[no-untyped-call]
        return np.ascontiguousarray(drawn[..., :3])


def drawable(text: str) -> str:
    """``text`` with a box for every character that the font does not have, and without control characters."""
    known = _characters()
    return "".join(one if ord(one) in known else "" if not one.isprintable() else "\u25a1" for one in text)


@lru_cache(maxsize=64)
def _font(size: float, *, bold: bool) -> FontProperties:
    return FontProperties(fname=_file(bold=bold), size=size * 72 / _DPI)


@lru_cache(maxsize=4096)
def _advance(character: str, *, bold: bool) -> float:
    """Width of a character [em]."""
    font = get_font(_file(bold=bold))
    font.set_size(_MEASURED_AT, 72)
    return float(font.load_char(ord(character), flags=LoadFlags.NO_HINTING).linearHoriAdvance / 65536 / _MEASURED_AT)


def _file(*, bold: bool) -> str:
    return str(Path(mpl.get_data_path()) / "fonts" / "ttf" / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"))


@lru_cache(maxsize=1)
def _characters() -> frozenset[int]:
    return frozenset(get_font(_file(bold=False)).get_charmap())
