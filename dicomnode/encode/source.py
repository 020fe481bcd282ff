"""What an encoder needs to know about the input, as protocols: the room that reads series meets them unimported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from dicomnode.pipeline import ImageSeries, KSpace


class SourcePlane(Protocol):
    """One plane of the input."""

    @property
    def header(self) -> int:
        """Index in the source's headers."""

    @property
    def frame(self) -> int:
        """Frame number in that instance, counted from 1; 0 for a single-frame object."""

    @property
    def slope(self) -> float:
        """Rescale slope: value = stored * slope + intercept."""

    @property
    def intercept(self) -> float:
        """Rescale intercept, in the units of the values."""

    @property
    def bits_stored(self) -> int:
        """Bits of a stored value."""

    @property
    def signed(self) -> bool:
        """Whether stored values have a sign."""

    @property
    def padding(self) -> tuple[int, int] | None:
        """Least and greatest stored value of padding; None without."""


class Source(Protocol):
    """A series as it was read. Headers are normalised (Unicode, no private elements, no pixel data) and read-only."""

    @property
    def headers(self) -> Sequence[Dataset]:
        """Headers in plane order; one header if the series is one multi-frame instance."""

    @property
    def images(self) -> ImageSeries:
        """What the pipeline saw."""

    @property
    def stored(self) -> NDArray[np.integer]:
        """Stored values in plane order, axes (slice, row, column)."""

    @property
    def planes(self) -> Sequence[SourcePlane]:
        """One per plane, in plane order."""


@runtime_checkable
class CineSource(Source, Protocol):
    """A cine as it was read: as a source, its planes come phase after phase."""

    @property
    def slices(self) -> int:
        """Planes of one phase."""

    def at_phase(self, phase: int) -> Source:
        """One phase as a series of its own."""


@runtime_checkable
class RawSource(Protocol):
    """A measurement of raw k-space as it was read."""

    @property
    def headers(self) -> Sequence[Dataset]:
        """Normalised headers of the raw data objects that carried it."""

    @property
    def kspace(self) -> KSpace:
        """What the pipeline saw."""

    @property
    def frame_of_reference(self) -> str:
        """FrameOfReferenceUID of the measurement; empty if nobody said it."""

    @property
    def equipment(self) -> Mapping[str, str]:
        """The scanner by DICOM keyword, as the measurement names it."""
