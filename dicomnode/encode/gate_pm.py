"""A parametric map read back by another path than it was written, and compared with the result value by value."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import ParametricMapStorage

from dicomnode.encode.cine import at_phase
from dicomnode.encode.gate_frames import Laid, grid_faults, groups_of
from dicomnode.encode.source import Source
from dicomnode.pipeline import ParametricMap, Result

MAPS: Final = frozenset({str(ParametricMapStorage)})
#: Characters of a label that SeriesDescription has beside the marks of research and missing instances.
_LABEL: Final = 40


def map_faults(ds: Dataset, source: Source, result: Result) -> Iterator[str]:
    """What is wrong with the parametric map ``ds`` of ``source``; nothing if it says exactly what ``result`` says."""
    alike = [list(_faults(ds, source, one)) for one in result.parametric_maps if _is_of(ds, one)]
    if not alike:
        yield "its quantity and label are of none of the result's parametric maps"
        return
    # Maps of several phases may share quantity and label: it must be one of them.
    yield from min(alike, key=len)


def _faults(ds: Dataset, source: Source, one: ParametricMap) -> Iterator[str]:
    """What keeps ``ds`` from being ``one``."""
    source = at_phase(source, one.phase)
    yield from grid_faults(ds, source)
    yield from _meaning_faults(ds, one)
    values = _values(ds)
    groups = ds.get("PerFrameFunctionalGroupsSequence") or ()
    if values is None or len(values) != len(groups) or len(groups) != len(source.planes):
        yield f"{len(groups)} frames are described for {len(source.planes)} planes, or FloatPixelData is not their size"
        return
    laid, seen = Laid(ds, source), set()
    for number, (group, frame) in enumerate(zip(groups, values, strict=True), 1):
        plane = laid.plane(group)
        if isinstance(plane, list):
            yield from (f"frame {number}: {fault}" for fault in plane)
            continue
        seen.add(plane)
        if not np.array_equal(frame, one.values[plane]):
            different = int((frame != one.values[plane]).sum())
            yield f"frame {number}: differs from the result in {different} voxels of plane {plane}"
    if len(seen) != len(source.planes):
        yield f"{len(source.planes) - len(seen)} planes of the source are in no frame"


def _is_of(ds: Dataset, one: ParametricMap) -> bool:
    """Whether ``ds`` carries ``one``: by what it says of itself, not by its pixels."""
    description = str(ds.get("SeriesDescription") or "")
    return description.startswith(one.label[:_LABEL]) and [_code(item) for item in _quantities(ds)] == [
        (one.quantity.value, one.quantity.scheme_designator)
    ]


def _meaning_faults(ds: Dataset, one: ParametricMap) -> Iterator[str]:
    if list(ds.get("ImageType") or ())[:1] != ["DERIVED"]:
        yield "ImageType does not say DERIVED"
    mappings = groups_of(ds, "RealWorldValueMappingSequence")
    if len(mappings) != 1:
        yield f"it has {len(mappings)} real world value mappings, not one"
        return
    (mapping,) = mappings
    if (mapping.get("RealWorldValueSlope"), mapping.get("RealWorldValueIntercept")) != (1.0, 0.0):
        yield "the real world values are not the stored ones"
    units = [_code(item) for item in mapping.get("MeasurementUnitsCodeSequence") or ()]
    if units != [(one.unit.value, one.unit.scheme_designator)]:
        yield f"its unit is {units}, the result's {one.unit.value}"
    low = mapping.get("DoubleFloatRealWorldValueFirstValueMapped")
    high = mapping.get("DoubleFloatRealWorldValueLastValueMapped")
    if low is None or high is None or low > one.values.min() or high < one.values.max():
        yield f"its mapping holds from {low} to {high}, which leaves out values of the result"


def _quantities(ds: Dataset) -> list[Dataset]:
    return [
        code
        for mapping in groups_of(ds, "RealWorldValueMappingSequence")
        for item in mapping.get("QuantityDefinitionSequence") or ()
        for code in item.get("ConceptCodeSequence") or ()
    ]


def _code(item: Dataset) -> tuple[str, str]:
    return str(item.get("CodeValue")), str(item.get("CodingSchemeDesignator"))


def _values(ds: Dataset) -> NDArray[np.float32] | None:
    """Axes (frame, row, column); None if the pixel data is not of whole frames."""
    raw, size = ds.get("FloatPixelData") or b"", int(ds.Rows) * int(ds.Columns) * 4
    if not raw or len(raw) % size:
        return None
    return np.frombuffer(raw, "<f4").reshape(-1, ds.Rows, ds.Columns)
