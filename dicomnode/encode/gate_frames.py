"""Frames of an object laid over the planes of its source: on which plane each lies, by two ways that must agree."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from pydicom import Dataset

from dicomnode.encode.source import Source

#: Farther apart than this, viewers hold planes for different ones [mm].
_SAME_PLACE: Final = 1e-3
#: Direction cosines and spacings that differ by more are other ones (PS3.3 C.7.6.2 leaves it open; viewers use 1e-3).
_SAME_DIRECTION: Final = 1e-4


def grid_faults(ds: Dataset, source: Source) -> Iterator[str]:
    """Size, direction and spacing of the planes, and what they are laid over."""
    images, header = source.images, source.headers[0]
    _, rows, columns = images.array.shape
    for keyword, expected in (("Rows", rows), ("Columns", columns)):
        if ds.get(keyword) != expected:
            yield f"{keyword} is {ds.get(keyword)}, the source's {expected}: another resolution"
    if ds.get("FrameOfReferenceUID") != header.get("FrameOfReferenceUID"):
        yield "FrameOfReferenceUID is not the source's"
    for name, keyword, expected_values in (
        ("PlaneOrientationSequence", "ImageOrientationPatient", images.orientation),
        ("PixelMeasuresSequence", "PixelSpacing", np.asarray(images.pixel_spacing)),
    ):
        for group in groups_of(ds, name):
            values = np.asarray(group.get(keyword) or [np.nan], np.float64)
            if values.shape != expected_values.shape or not np.allclose(values, expected_values, 0, _SAME_DIRECTION):
                yield f"{keyword} is {values.tolist()}, the source's {expected_values.tolist()}"
        if not groups_of(ds, name):
            yield f"{name} is absent"
    series = ds.get("ReferencedSeriesSequence") or ()
    listed = {str(one.get("ReferencedSOPInstanceUID")) for item in series for one in _listed(item)}
    expected_series = list(dict.fromkeys(str(one.SeriesInstanceUID) for one in source.headers))
    if [str(item.get("SeriesInstanceUID")) for item in series] != expected_series:
        yield "ReferencedSeriesSequence does not name the source's series, and that one alone: viewers show nothing"
    elif listed != {str(one.SOPInstanceUID) for one in source.headers}:
        yield "ReferencedSeriesSequence does not list the source's instances"


def _listed(series: Dataset) -> list[Dataset]:
    return list(series.get("ReferencedInstanceSequence") or ())


def groups_of(ds: Dataset, name: str) -> list[Dataset]:
    """Items of a functional group, wherever it stands."""
    every = (*(ds.get("SharedFunctionalGroupsSequence") or ()), *(ds.get("PerFrameFunctionalGroupsSequence") or ()))
    return [item for group in every for item in group.get(name) or ()]


class Laid:
    """The frames of one object over the planes of ``source``."""

    def __init__(self, ds: Dataset, source: Source) -> None:
        self._ds, self._source = ds, source
        self._plane_of = {
            (str(source.headers[plane.header].SOPInstanceUID), plane.frame): index
            for index, plane in enumerate(source.planes)
        }

    def plane(self, group: Dataset) -> int | list[str]:
        """Index of the plane on which a frame lies, given its functional groups; or what is wrong with it."""
        plane, named = self._place(group), self._named(group)
        wrong = [one for one in (plane, named) if isinstance(one, str)]
        if isinstance(plane, str) or isinstance(named, str):
            return wrong
        return plane if plane == named else [f"lies on plane {plane} of the source but names plane {named}"]

    def _place(self, group: Dataset) -> int | str:
        """Index of the plane on which the frame lies by its own position, or what is wrong."""
        positions = group.get("PlanePositionSequence") or groups_of(self._ds, "PlanePositionSequence")
        if len(positions) != 1:
            return "has no position of its own"
        position = np.asarray(positions[0].get("ImagePositionPatient") or [np.nan] * 3, np.float64)
        distances = np.linalg.norm(self._source.images.positions - position, axis=1)
        nearest = int(distances.argmin())
        if not distances[nearest] <= _SAME_PLACE:
            return f"lies {distances[nearest]:.3f} mm from the nearest plane of the source"
        return nearest

    def _named(self, group: Dataset) -> int | str:
        """Index of the plane that the frame says it was made from, or what is wrong."""
        derivations = group.get("DerivationImageSequence") or ()
        images = [image for item in derivations for image in item.get("SourceImageSequence") or ()]
        if not all(item.get("DerivationCodeSequence") for item in derivations) or not all(
            image.get("PurposeOfReferenceCodeSequence") for image in images
        ):
            return "does not say what its source image is to it (codes of DerivationImageSequence)"
        if len(images) != 1:
            return f"names {len(images)} source images (DerivationImageSequence), not one: viewers guess the plane"
        key = str(images[0].get("ReferencedSOPInstanceUID")), int(images[0].get("ReferencedFrameNumber") or 0)
        if key not in self._plane_of:
            return f"names {key[0]} frame {key[1]}, which is not of the source"
        return self._plane_of[key]
