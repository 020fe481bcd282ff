"""The summary page as pixels: title, findings in words and signs, measurements, remarks, and the key planes.

Nothing of the patient or the order is drawn: a viewer shows these from the header, and what is burnt in cannot be
taken out again. Every text is cut or wrapped to its place, and where there is more to say than fits, the page says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dicomnode import __version__
from dicomnode.encode import panels
from dicomnode.encode.identity import EncodeContext
from dicomnode.encode.planes import Area, Planes
from dicomnode.encode.sheet import AMBER, AMBER_DARK, FAINT, LINE, TEXT, Sheet, defaults
from dicomnode.encode.source import CineSource, Source
from dicomnode.pipeline import Finding, Measurement, Presence, Result, Urgency

#: On every page.
RESEARCH: Final = "RESEARCH USE ONLY  –  NOT FOR DIAGNOSIS"

_MARGIN: Final = 32.0
_TOP: Final = 134.0
_BOTTOM: Final = 912.0
_TEXT_WIDTH: Final = 432.0
_PLANES_X: Final = _MARGIN + _TEXT_WIDTH + 36.0
#: Text becomes smaller until it fits, in these steps; below the last nobody reads it from an arm's length.
_SCALES: Final = (1.0, 0.94, 0.88, 0.82, 0.76)
#: Fewer lines each for remarks and for details of findings, tried in turn at the smallest size; 0: all.
_LINES: Final = (0, 6, 4, 3, 2, 1)
#: Most findings on a page.
_FINDINGS: Final = 8


@dataclass(frozen=True, slots=True)
class _Look:
    """How a presence is shown: shape and word say it, the colour only helps (Okabe and Ito's palette)."""

    shape: str
    colour: str
    word: str
    filled: bool


_LOOKS: Final = {
    Presence.PRESENT: _Look("^", "#f08a3c", "Present", True),
    Presence.ABSENT: _Look("o", "#6fb7ea", "Absent", False),
    Presence.UNDETERMINED: _Look("s", "#b3b9c1", "Not determined", False),
}
_URGENCIES: Final = {
    Urgency.MINUTES: "communicate within minutes",
    Urgency.HOURS: "communicate within hours",
    Urgency.DAYS: "communicate within days",
}


def draw(source: Source, result: Result, context: EncodeContext) -> NDArray[np.uint8]:
    """The page: RGB, axes (row, column, colour). The same input gives the same pixels."""
    with defaults():
        sheet = Sheet()
        _head(sheet, source, context)
        _pictures(sheet, source, result)
        _column(sheet, result)
        _foot(sheet, context)
        return sheet.pixels()


def _pictures(sheet: Sheet, source: Source, result: Result) -> None:
    """Key planes, and below them the panels where the result has any."""
    planes, width = Planes(sheet, source, result), sheet.width - _PLANES_X - _MARGIN
    below = panels.height(source, result, width)
    planes.draw(Area(_PLANES_X, _TOP, width, _BOTTOM - _TOP - below))
    panels.draw(sheet, planes, source, result, Area(_PLANES_X, _BOTTOM - below, width, below))


def _head(sheet: Sheet, source: Source, context: EncodeContext) -> None:
    algorithm = context.algorithm
    title = sheet.cut(algorithm.name, 28, 720, bold=True)
    sheet.text(_MARGIN, 48, title, 28, bold=True)
    after = _MARGIN + sheet.measure(title, 28, bold=True) + 14
    sheet.text(after, 48, sheet.cut(f"version {algorithm.version}", 17, 300), 17, colour=FAINT)
    planes = f"{len(source.planes)} planes"
    if isinstance(source, CineSource):
        planes = f"{source.slices} planes at {len(source.planes) // source.slices} phases"
    said = [f"AI result on {planes}"]
    if context.revision > 1:
        said.append(f"revision {context.revision}, replaces the earlier page")
    sheet.text(sheet.width - _MARGIN, 48, "  ·  ".join(said), 14, colour=FAINT, align="right")
    sheet.box(_MARGIN, 66, sheet.width - 2 * _MARGIN, 36, fill=AMBER_DARK, edge=AMBER)
    missing = context.incomplete or source.images.incomplete
    words = RESEARCH + ("      INPUT INCOMPLETE: IMAGES ARE MISSING" if missing else "")
    sheet.text(sheet.width / 2, 90, words, 16.5, colour=AMBER, bold=True, align="center")


def _foot(sheet: Sheet, context: EncodeContext) -> None:
    sheet.line(_MARGIN, 926, sheet.width - 2 * _MARGIN)
    weights = f"  ·  weights {context.weights_digest[:12]}" if context.weights_digest else ""
    made = f"dicomnode {__version__}{weights}  ·  job {context.job_key[:12]}"
    sheet.text(_MARGIN, 945, made, 11.5, colour=FAINT)
    words = "Values, codes and outlines are in the report and the segmentation of the same study."
    sheet.text(sheet.width - _MARGIN, 945, words, 11.5, colour=FAINT, align="right")


def _column(sheet: Sheet, result: Result) -> None:
    """Findings, measurements and remarks below each other, as large as fits."""
    tries = [*((scale, 0) for scale in _SCALES), *((_SCALES[-1], lines) for lines in _LINES[1:])]
    for scale, lines in tries:
        column = _Column(sheet, result, scale, lines)
        if column.flow(drawn=False) <= _BOTTOM:
            break
    column.shorten()
    column.flow(drawn=True)


class _Column:
    """The text of a page at one size. `flow` is walked twice: to learn how far it reaches, then to draw it."""

    def __init__(self, sheet: Sheet, result: Result, scale: float, lines: int) -> None:
        self._sheet, self._result, self._scale, self._lines = sheet, result, scale, lines
        self._drawn = False
        self._y = _TOP
        # How many are shown: fewer where the smallest size is still too large.
        self._rows, self._said = len(result.measurements), len(result.remarks)

    def flow(self, *, drawn: bool) -> float:
        """Go through everything from the top. Return where it ends."""
        self._y, self._drawn = _TOP, drawn
        self._findings()
        self._measurements()
        self._remarks()
        return self._y

    def shorten(self) -> None:
        """Leave out measurements, then remarks, until the rest fits."""
        while self.flow(drawn=False) > _BOTTOM and (self._rows or self._said):
            if self._rows:
                self._rows -= 1
            else:
                self._said -= 1

    # -- parts

    def _findings(self) -> None:
        if self._result.findings:
            self._heading("Findings")
        for finding in sorted(self._result.findings, key=_weight)[:_FINDINGS]:
            self._finding(finding)
        self._more(len(self._result.findings) - _FINDINGS)

    def _finding(self, finding: Finding) -> None:
        look, size = _LOOKS[finding.presence], 16 * self._scale
        word = self._sheet.measure(look.word, size, bold=True)
        room = _TEXT_WIDTH - 26 - word - 12
        lines = self._sheet.wrap(finding.code.meaning, size, room, lines=2)
        self._y += 1.45 * size
        if self._drawn:
            self._sheet.mark(
                _MARGIN + 8, self._y - 0.36 * size, look.shape, 0.8 * size, look.colour, filled=look.filled
            )
            self._sheet.text(
                _MARGIN + _TEXT_WIDTH, self._y, look.word, size, colour=look.colour, bold=True, align="right"
            )
        for number, line in enumerate(lines):
            self._y += 1.3 * size if number else 0
            self._put(line, size, indent=26)
        self._paragraph(_details(finding), 13, FAINT, indent=26, lines=min(self._lines or 4, 4))
        self._y += 7 * self._scale

    def _measurements(self) -> None:
        if not self._result.measurements:
            return
        self._heading("Measurements")
        size = 14 * self._scale
        names = {one.key: one.label for part in self._result.segmentations for one in part.segments}
        for measurement in self._result.measurements[: self._rows]:
            value, interval = _value(measurement)
            right = self._sheet.measure(value, size, bold=True)
            beside = self._sheet.measure(interval, 0.88 * size) + 10 if interval else 0.0
            self._y += 1.5 * size
            name = measurement.name.meaning
            if measurement.segment:
                name = f"{names.get(measurement.segment, measurement.segment)}: {name[:1].lower()}{name[1:]}"
            lines = self._sheet.wrap(name, size, _TEXT_WIDTH - right - beside - 12, lines=2)
            if self._drawn:
                end = _MARGIN + _TEXT_WIDTH
                self._sheet.text(end, self._y, interval, 0.88 * size, colour=FAINT, align="right")
                self._sheet.text(end - beside, self._y, value, size, bold=True, align="right")
            for number, line in enumerate(lines):
                self._y += 1.25 * size if number else 0
                self._put(line, size)
        self._more(len(self._result.measurements) - self._rows)
        self._y += 6 * self._scale

    def _remarks(self) -> None:
        if not self._result.remarks:
            return
        self._heading("Remarks")
        for remark in self._result.remarks[: self._said]:
            self._paragraph(remark, 13.5, TEXT, lines=self._lines)
            self._y += 5 * self._scale
        self._more(len(self._result.remarks) - self._said)

    # -- lines

    def _more(self, left: int) -> None:
        if left > 0:
            self._y += 1.5 * 13 * self._scale
            self._put(f"… and {left} more in the report", 13 * self._scale, FAINT)

    def _heading(self, text: str) -> None:
        size = 13 * self._scale
        self._y += (10 if self._y > _TOP else 0) * self._scale + size
        if self._drawn:
            self._sheet.text(_MARGIN, self._y, text.upper(), size, colour=FAINT, bold=True)
            self._sheet.line(_MARGIN, self._y + 0.6 * size, _TEXT_WIDTH, colour=LINE)
        self._y += 0.7 * size

    def _paragraph(self, text: str, size: float, colour: str, *, indent: float = 0.0, lines: int = 0) -> None:
        size *= self._scale
        for line in self._sheet.wrap(text, size, _TEXT_WIDTH - indent, lines=lines):
            self._y += 1.4 * size
            self._put(line, size, colour, indent=indent)

    def _put(self, line: str, size: float, colour: str = TEXT, *, indent: float = 0.0) -> None:
        if self._drawn:
            self._sheet.text(_MARGIN + indent, self._y, line, size, colour=colour)


def _weight(finding: Finding) -> tuple[int, int]:
    """Place on the page, which may not hold all: what is present comes first, then what is undetermined."""
    presence = (Presence.PRESENT, Presence.UNDETERMINED, Presence.ABSENT).index(finding.presence)
    return presence, [*_URGENCIES, None].index(finding.urgency)


def _details(finding: Finding) -> str:
    """What is known beyond the presence, in one line."""
    said = []
    if finding.probability is not None:
        # Outputs of a network are no probabilities before somebody has checked them on patients.
        percent = f"probability {100 * finding.probability:.0f} %"
        said.append(percent if finding.calibrated else f"score {finding.probability:.2f}")
    if finding.site is not None:
        side = f", {finding.site.laterality.meaning.lower()}" if finding.site.laterality else ""
        said.append(f"{finding.site.code.meaning}{side}")
    if finding.urgency is not None and finding.presence is Presence.PRESENT:
        said.append(_URGENCIES[finding.urgency])
    if finding.reason:
        said.append(finding.reason)
    return "  ·  ".join(said)


def _value(measurement: Measurement) -> tuple[str, str]:
    """Value with its unit, and the interval."""
    unit = _unit(measurement)
    if measurement.value is None:
        return "not measured", measurement.qualifier.meaning if measurement.qualifier else ""
    value = f"{_number(measurement.value)} {unit}".strip()
    if measurement.interval is None:
        return value, ""
    low, high = measurement.interval
    return value, f"[{_number(low)} – {_number(high)}]"


def _unit(measurement: Measurement) -> str:
    """Unit as people write it: UCUM's annotations in braces and brackets, and the unity, are for machines."""
    known = {
        "1": "",
        "ml": "mL",
        "[hnsf'U]": "HU",
        "{ratio}": "",
        "cm2": "cm²",
        "mm2": "mm²",
        "cm3": "cm³",
        "mm3": "mm³",
    }
    value = str(measurement.unit.value)
    return known.get(value, "" if value.startswith("{") else value)


def _number(value: float) -> str:
    """Three significant digits, without an exponent where people would not write one."""
    if value == 0:
        return "0"
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        return f"{value:.2e}"
    digits = max(0, 2 - int(np.floor(np.log10(abs(value)))))
    return f"{value:.{min(digits, 5)}f}"
