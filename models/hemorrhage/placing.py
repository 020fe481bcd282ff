"""A series as it lies in the patient: turned to the usual view, thin slices averaged, and results turned back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from models.hemorrhage import inputs

#: Slices nearer to each other than this are averaged [mm], to about the second figure (ml-ct 1.1).
THIN_MM: Final = 2.0
AVERAGED_MM: Final = 2.75

Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """How a source image becomes one with the patient's left on the right and the face above."""

    transpose: bool
    flip_rows: bool
    flip_columns: bool
    #: Slices are in falling order of height.
    reverse: bool

    def apply(self, array: NDArray[Scalar]) -> NDArray[Scalar]:
        """(slice, row, column) to the usual view."""
        if self.transpose:
            array = array.swapaxes(1, 2)
        return array[:: -1 if self.reverse else 1, :: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]

    def undo(self, array: NDArray[Scalar]) -> NDArray[Scalar]:
        """The inverse of ``apply``."""
        array = array[:: -1 if self.reverse else 1, :: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]
        return np.ascontiguousarray(array.swapaxes(1, 2) if self.transpose else array)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A series in the usual view, its slices at least about ``THIN_MM`` apart."""

    #: (slice, row, column) [HU].
    values: NDArray[np.float32]
    #: (row, column) [mm].
    pixel: tuple[float, float]
    #: In-plane position (row, column) of each slice's first pixel in the common plane (slice, 2) [mm].
    origins: NDArray[np.float64]
    #: Height along the normal (slice,) [mm], falling.
    heights: NDArray[np.float64]
    #: What each slice stands for (slice,) [mm].
    thickness_mm: NDArray[np.float64]
    #: For each source slice in the usual order, the slice here (source slice,).
    group: NDArray[np.int64]
    turn: Turn

    def back(self, work: NDArray[np.float32], frame: inputs.Frame, linear: bool) -> NDArray[np.float32]:
        """A field on the work grid (slice, row, column), on this series' grid; 0 outside the work grid."""
        rows, columns = (np.arange(n) for n in self.values.shape[1:])
        offsets = inputs.work_offsets()
        out = np.empty((len(work), len(rows), len(columns)), np.float32)
        for k, plane in enumerate(work):
            at_row = (rows * self.pixel[0] + self.origins[k, 0] - frame.centre[0] - offsets[0][0]) / inputs.WORK_MM
            at_column = (
                columns * self.pixel[1] + self.origins[k, 1] - frame.centre[1] - offsets[1][0]
            ) / inputs.WORK_MM
            size = plane.shape
            unit = np.stack(
                np.broadcast_arrays(2 * at_column[None] / (size[1] - 1) - 1, 2 * at_row[:, None] / (size[0] - 1) - 1),
                -1,
            )
            sampled = torch.nn.functional.grid_sample(
                torch.from_numpy(np.ascontiguousarray(plane))[None, None],
                torch.from_numpy(unit.astype(np.float32))[None],
                mode="bilinear" if linear else "nearest",
                align_corners=True,
            )
            out[k] = sampled[0, 0].numpy()
        return out

    def spread(self, by_slice: NDArray[Scalar]) -> NDArray[Scalar]:
        """One value a slice here, to one a source slice in the source's order."""
        spread = by_slice[self.group]
        return np.ascontiguousarray(spread[::-1] if self.turn.reverse else spread)

    def restore(self, array: NDArray[Scalar]) -> NDArray[Scalar]:
        """(slice, row, column) on this grid, on the source grid: written to every slice of a group."""
        return self.turn.undo(array[self.group])


def place(
    values: NDArray[np.float32],
    pixel_spacing: tuple[float, float],
    positions: NDArray[np.float64],
    orientation: NDArray[np.float64],
) -> Placed:
    """Turn a series (slice, row, column) [HU] to the usual view and average its thin slices.

    ``positions`` (slice, 3) and ``orientation`` (6,) are DICOM's, in LPS [mm].
    """
    along_row, along_column = np.asarray(orientation[:3], np.float64), np.asarray(orientation[3:], np.float64)
    last = np.array(values.shape[1:]) - 1
    transpose = abs(along_row[0]) < abs(along_column[0])
    pixel, corner = pixel_spacing, np.asarray(positions, np.float64)
    if transpose:
        along_row, along_column, pixel, last = along_column, along_row, (pixel[1], pixel[0]), last[::-1]
    flip_columns, flip_rows = bool(along_row[0] < 0), bool(along_column[1] < 0)
    if flip_columns:
        corner, along_row = corner + along_row * last[1] * pixel[1], -along_row
    if flip_rows:
        corner, along_column = corner + along_column * last[0] * pixel[0], -along_column
    heights = corner @ np.cross(along_row, along_column)
    reverse = bool(heights[0] < heights[-1])
    turn = Turn(transpose=bool(transpose), flip_rows=flip_rows, flip_columns=flip_columns, reverse=reverse)
    order = slice(None, None, -1 if reverse else 1)
    origins = np.stack((corner @ along_column, corner @ along_row), 1)[order]
    return _averaged(np.ascontiguousarray(turn.apply(values)), pixel, origins, heights[order], turn)


def _averaged(
    values: NDArray[np.float32],
    pixel: tuple[float, float],
    origins: NDArray[np.float64],
    heights: NDArray[np.float64],
    turn: Turn,
) -> Placed:
    gaps = np.abs(np.diff(heights))
    median = float(np.median(gaps)) if len(gaps) else AVERAGED_MM
    together = max(1, round(AVERAGED_MM / max(median, 0.1))) if median < THIN_MM else 1
    group = np.arange(len(values)) // together
    thickness = spacings(heights)
    if together > 1:
        starts = np.arange(0, len(values), together)
        counts = np.diff(np.append(starts, len(values)))
        values = np.stack([values[a : a + n].mean(0) for a, n in zip(starts, counts, strict=True)])
        origins = np.add.reduceat(origins, starts) / counts[:, None]
        heights = np.add.reduceat(heights, starts) / counts
        thickness = np.add.reduceat(thickness, starts)
    return Placed(
        values=values, pixel=pixel, origins=origins, heights=heights, thickness_mm=thickness, group=group, turn=turn
    )


def spacings(heights: NDArray[np.floating]) -> NDArray[np.float64]:
    """How much of the head each slice stands for along the normal [mm], from the slices' positions (slice,)."""
    if len(heights) < 2:
        return np.ones(len(heights))
    gaps = np.abs(np.diff(np.asarray(heights, np.float64)))
    shares: NDArray[np.float64] = (np.concatenate((gaps[:1], gaps)) + np.concatenate((gaps, gaps[-1:]))) / 2.0
    return shares
