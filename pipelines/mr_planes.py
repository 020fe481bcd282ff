"""From complex images on the measured grid to planes: the header's matrix, magnitude, place in the patient, time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dicomnode import pipeline as dn
from dicomnode.kspace import Encoding
from models.mr_recon import geometry, ladder
from pipelines import mr_components, mr_images, mr_readouts
from pipelines.mr_images import Frame, Part, Unit

#: Fields of view that differ by less are equal [mm].
SQUARE_MM: Final = 1e-6
#: Axes where the header has none, and it is allowed to have none: the scanner's.
NO_GEOMETRY: Final = np.eye(3)


def gridded(part: Part, images: Tensor, unit: Unit, window: str) -> Tensor:
    """complex64 (frame, channel, partition, row, column) on the header's grid.

    Parameters
    ----------
    images
        complex64 (frame, channel, row, column), or (column, channel, row, partition) of a volume's columns.
    """
    encoding, line = unit.encoding, unit.profiles.line
    fov, matrix = encoding.recon_fov, encoding.recon_matrix
    if part.columns:
        images = geometry.resample(images, 2, encoding.encoded_fov[1], matrix[1], fov[1])
        images = geometry.resample(images, 3, encoding.encoded_fov[2], matrix[2], fov[2])
        volume = images.permute(1, 3, 2, 0)  # (channel, partition, row, column)
        return mr_images.filtered(volume, window)[None]
    images = geometry.resample(images, 2, encoding.encoded_fov[1], matrix[1], fov[1])
    images = geometry.resample(images, 3, line.kept * encoding.encoded_fov[0] / line.columns, matrix[0], fov[0])
    return mr_images.filtered(images, window)[:, :, None]


def trigger_times(unit: Unit, tick_ms: float) -> dict[Frame, float | None]:
    """Time after the R wave of every frame [ms], of its line nearest to the centre of k-space; None without stamps."""
    stamps = {frame: image.central.physiology[0] for frame, image in unit.images.items()}
    if not any(stamps.values()):
        return dict.fromkeys(stamps)
    return {frame: stamp * tick_ms for frame, stamp in stamps.items()}


def description(outcome: ladder.Outcome, noise: str, window: str, snr: str = "") -> str:
    """DerivationDescription: the method, its settings, and why an earlier choice was not taken.

    Parameters
    ----------
    snr
        What became of the wish for units of the noise; empty: nobody had it.
    """
    said = [f"{ladder.LABELS[outcome.rung]} ({outcome.rung}) from k-space"]
    if outcome.maps:
        said.append(f"coil maps {outcome.maps}")
    said.append({"scan": "noise whitened", "edges": "channels scaled to equal noise"}.get(noise, "noise not known"))
    if snr:
        said.append(snr)
    if window != "none":
        said.append(f"{window} filter")
    said += [f"Reconstruction fallback: {reason}" for reason in outcome.reasons]
    return "; ".join((*said, *outcome.remarks))


@dataclass(slots=True, eq=False)
class Series:
    """What all planes of one encoding share, fixed by the first slice that is complete."""

    encoding: Encoding
    index: int
    scale: float
    rung: str
    description: str
    #: Whether rows and columns change places, of planes that are not square; None: as they were measured, unturned.
    transposed: bool | None
    #: Values are signal over noise.
    snr: bool = False
    #: Window over k-space.
    window: str = "none"

    @property
    def spacing(self) -> tuple[float, float]:
        """Distance between rows, between columns as measured [mm]."""
        (columns, rows, _), (width, height, _) = self.encoding.recon_matrix, self.encoding.recon_fov
        return height / rows, width / columns

    @property
    def thickness(self) -> float:
        """SliceThickness [mm]."""
        deep = self.encoding.recon_matrix[2] if mr_readouts.volume(self.encoding) else 1
        return self.encoding.recon_fov[2] / deep

    def remark(self, outcome: ladder.Outcome, missing: str) -> str:
        """What sets a plane apart from its series."""
        said = [missing]
        if outcome.rung != self.rung:
            said.append("; ".join((f"reconstructed by {ladder.LABELS[outcome.rung]}", *outcome.reasons)))
        said += [remark for remark in outcome.remarks if remark not in self.description]
        return "; ".join(text for text in said if text)

    def plane(
        self, unit: Unit, frame: Frame, at: tuple[int, int], axes: NDArray[np.float64], pixels: Tensor
    ) -> dn.ReconstructedPlane:
        """One image of slice and partition ``at``, where its header says it lies."""
        level, partition = at
        contrast, member, phase = frame
        central, encoding = unit.images[frame].central, unit.encoding
        deep = mr_readouts.volume(encoding)
        matrix = tuple(float(n) for n in encoding.recon_matrix)
        where = geometry.plane(
            central.position, axes, (matrix[0], matrix[1], matrix[2]), encoding.recon_fov, partition if deep else None
        )
        if self.transposed is not None:
            pixels, where, _ = geometry.hung(pixels, where, self.spacing, transpose=self._transpose(where))
        first = where.position
        if axes is NO_GEOMETRY and not any(central.position):
            first = first + np.array([0.0, 0.0, level * self.thickness])
        return dn.ReconstructedPlane(
            array=np.ascontiguousarray(pixels.numpy(), np.float32),
            position=first,
            orientation=where.orientation,
            slice=level * encoding.recon_matrix[2] + partition if deep else level,
            contrast=contrast,
            phase=phase,
            set=member,
        )

    def _transpose(self, where: geometry.Plane) -> bool:
        """Square planes of several orientations (a localizer) turn by themselves, others with the series' first."""
        (columns, rows, _), (width, height, _) = self.encoding.recon_matrix, self.encoding.recon_fov
        square = rows == columns and abs(width - height) < SQUARE_MM
        return geometry.lies(where.orientation) if square else bool(self.transposed)

    def reconstruction(self, planes: list[dn.ReconstructedPlane], component: str = "magnitude") -> dn.Reconstruction:
        """``planes`` of one component as the node takes them."""
        label = ladder.LABELS[self.rung]
        return dn.Reconstruction(
            planes=tuple(planes),
            pixel_spacing=self.spacing[::-1] if self.transposed else self.spacing,
            thickness=self.thickness,
            role=component if self.index == 0 else f"{component}-{self.index}",
            label=label if component == "magnitude" else f"{label}, {component}",
            description=self.description,
            learned=self.rung == "learned",
            scale=mr_components.PHASE_SCALE if component == "phase" else self.scale,
            component=mr_components.COMPONENTS[component],
            snr=self.snr and component != "phase",
            filtering=self.window.upper(),
        )
