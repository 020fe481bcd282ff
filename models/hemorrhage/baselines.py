"""Other hemorrhage segmenters to compare with. For evaluation only: nothing shipped imports this module.

`threshold` is what anybody would write first. `BlastCT` runs weights that others trained on real scans (Monteiro et al.
2020, Lancet Digital Health 2:e314; github.com/biomedia-mira/blast-ct, tag v0.1.1, Apache-2.0), as a comparison and as a
judge of how real the simulator looks. Its code and weights are not part of this repository, and nothing is trained on
its output.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from models.hemorrhage.cases import AIR_HU, Array, Labels, Mask, Study

#: Threshold and in-plane smoothing of the baseline [HU, mm] (the prototype's, ml-ct 3.2).
BASELINE_HU: Final = 50.0
BASELINE_SMOOTHING_MM: Final = 1.5
#: Components below this are dropped by the baseline [mL].
BASELINE_LEAST_ML: Final = 0.3

#: blast-ct v0.1.1: window mapped to -1..1 [HU], sub-sampling of its paths, widths, grid [mm] (its config.json).
WINDOW_HU: Final = (-15.0, 100.0)
FACTORS: Final = (5, 3, 1)
WIDTHS: Final = (30, 30, 40, 40, 40, 40, 50, 50)
HIDDEN: Final = (250, 250)
GRID_MM: Final = 1.0
#: Voxels a side that one pass gives and needs: a multiple of 15 suits all paths; the difference is its field of view.
GIVES: Final = 60
NEEDS: Final = GIVES + 80
#: Its classes: intraparenchymal, extra-axial, oedema, intraventricular.
IPH, EXTRA_AXIAL, OEDEMA, IVH = 1, 2, 3, 4


def threshold(study: Study, intracranial: Mask) -> Mask:
    """Smoothed HU above `BASELINE_HU` inside the skull, small components dropped; (slice, row, column)."""
    smooth = np.stack([_smooth(plane, study.pixel_spacing) for plane in study.hu])
    found = (smooth > BASELINE_HU) & intracranial
    image = sitk.GetImageFromArray(found.astype(np.uint8))
    parts = sitk.GetArrayFromImage(sitk.ConnectedComponent(image))
    volumes = sum(
        np.bincount(part.ravel(), minlength=int(parts.max()) + 1) * ml
        for part, ml in zip(parts, study.voxel_ml, strict=True)
    )
    kept = np.asarray(volumes) >= BASELINE_LEAST_ML
    kept[0] = False
    mask: Mask = kept[parts]
    return mask


def _smooth(plane: Array, spacing: tuple[float, float]) -> Array:
    image = sitk.GetImageFromArray(plane)
    image.SetSpacing((spacing[1], spacing[0]))
    return np.asarray(sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(image, BASELINE_SMOOTHING_MM)))


class _Layer(nn.Module):
    """Batch normalisation, PReLU, convolution without padding, and the input again where the width is the same."""

    def __init__(self, given: int, wanted: int, size: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm3d(given)
        self.conv = nn.Conv3d(given, wanted, size, bias=False)
        self.prelu = nn.PReLU()
        self.edge = size // 2

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(self.prelu(self.bn(x)))
        if x.shape[1] == out.shape[1]:
            out += _cropped(x, tuple(out.shape[2:]))
        return out


class _Scale(nn.Module):
    """One path: every ``factor``-th voxel, eight layers, and back by repetition."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        widths = (1, *WIDTHS)
        layers = [_Layer(widths[i], widths[i + 1], 3) for i in range(len(WIDTHS))]
        # the state dict counts the sub-sampling as layer 0
        self.path = nn.ModuleDict({str(i + 1): layer for i, layer in enumerate(layers)})
        self.factor = factor

    def forward(self, x: Tensor, gives: tuple[int, ...]) -> Tensor:
        f = self.factor
        x = _cropped(x, tuple((-(-n // f) + 2 * len(WIDTHS)) * f for n in gives))
        x = x[:, :, f // 2 :: f, f // 2 :: f, f // 2 :: f]
        for layer in self.path.values():
            x = layer(x)
        return _cropped(F.interpolate(x, scale_factor=float(f), mode="nearest") if f > 1 else x, gives)


def _cropped(x: Tensor, size: tuple[int, ...]) -> Tensor:
    for axis, wanted in enumerate(size):
        have = x.shape[axis + 2]
        x = x.narrow(axis + 2, have // 2 - wanted // 2, wanted)
    return x


class DeepMedic(nn.Module):
    """The three-path network whose state dict blast-ct v0.1.1 publishes: N, 1, D, H, W to N, 5 and 80 voxels less."""

    def __init__(self) -> None:
        super().__init__()
        self.names = [f"path({f}, {f}, {f}){i}" for i, f in enumerate(FACTORS)]
        for name, factor in zip(self.names, FACTORS, strict=True):
            self.add_module(name, _Scale(factor))
        widths = (len(FACTORS) * WIDTHS[-1], *HIDDEN, 5)
        self.fully_connected = nn.Sequential(*[_Layer(widths[i], widths[i + 1], 1) for i in range(len(widths) - 1)])

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the five classes."""
        gives = tuple(n - 80 for n in x.shape[2:])
        merged = torch.cat([getattr(self, name)(x, gives) for name in self.names], dim=1)
        out: Tensor = self.fully_connected(merged)
        return out


class BlastCT:
    """blast-ct v0.1.1 on a study: resampled to 1 mm in patient axes, one model or the mean of several."""

    def __init__(self, *weights: Path) -> None:
        self.nets = []
        for file in weights:
            net = DeepMedic()
            net.load_state_dict(torch.load(file, map_location="cpu", weights_only=True), strict=True)
            self.nets.append(net.eval().requires_grad_(False).to(memory_format=torch.channels_last_3d))

    def __call__(self, study: Study, region: Mask) -> Labels:
        """Its classes 0..4 on the study's own grid, where ``region`` (slice, row, column); 0 elsewhere."""
        grid = Grid(study)
        image = grid.resample(study.hu, AIR_HU)
        inside = grid.resample(region.astype(np.float32), 0.0) > 0.5
        return grid.back(self.on_grid(image, inside))

    def on_grid(self, image: Array, inside: Mask) -> Labels:
        """Classes 0..4 on the 1 mm grid (z up, y back, x left) where ``inside``."""
        low, high = WINDOW_HU
        scaled = (np.clip(image, low, high) - low) * (2.0 / (high - low)) - 1.0
        padded = np.pad(scaled, 40 + GIVES, constant_values=-1.0).astype(np.float32)
        found = np.zeros(image.shape, np.uint8)
        for corner in _corners(inside):
            part = tuple(slice(c, c + GIVES) for c in corner)
            given = padded[tuple(slice(c + GIVES, c + GIVES + NEEDS) for c in corner)]
            tensor = torch.from_numpy(np.ascontiguousarray(given))[None, None]
            # bfloat16 changes 11 of 216,000 voxels of a cube of the real head, in two fifths of the time
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                shares = torch.stack([net(tensor).float().softmax(dim=1)[0] for net in self.nets]).mean(dim=0)
            labels = shares.argmax(dim=0).byte().numpy()
            here = found[part]
            found[part] = labels[tuple(slice(0, n) for n in here.shape)]
        found[~inside] = 0
        return found


def _corners(inside: Mask) -> Iterator[tuple[int, ...]]:
    """Corners of cubes of `GIVES` voxels that cover ``inside``."""
    where = np.argwhere(inside)
    if not len(where):
        return
    low, high = where.min(axis=0), where.max(axis=0) + 1
    for z in range(low[0], high[0], GIVES):
        for y in range(low[1], high[1], GIVES):
            for x in range(low[2], high[2], GIVES):
                if inside[z : z + GIVES, y : y + GIVES, x : x + GIVES].any():
                    yield z, y, x


class Grid:
    """A study's bounding box in patient axes at 1 mm, and the way there and back; uneven and tilted stacks too."""

    def __init__(self, study: Study) -> None:
        self.shape = study.hu.shape
        row, column = study.orientation[:3], study.orientation[3:]
        self.axes = np.stack([column, row])  # (row index, column index) directions
        self.normal = np.cross(row, column)
        self.spacing, self.positions = np.array(study.pixel_spacing), study.positions
        ends = np.array([[r, c] for r in (0, self.shape[1] - 1) for c in (0, self.shape[2] - 1)])
        corners = (self.positions[:, None] + ((ends * self.spacing) @ self.axes)[None]).reshape(-1, 3)
        self.low = corners.min(axis=0)
        self.size = np.ceil((corners.max(axis=0) - self.low) / GRID_MM).astype(int)[::-1] + 1  # (z, y, x)

    def _plane(self, z: int) -> NDArray[np.float32]:
        """Fractional (slice, row, column) of the grid's voxels at height ``z``: (3, y, x)."""
        height = self.low[2] + GRID_MM * z
        y, x = (self.low[2 - i] + GRID_MM * np.arange(self.size[i]) for i in (1, 2))
        point = np.stack(np.broadcast_arrays(x[None, :], y[:, None], height), axis=-1)
        along = self.positions @ self.normal
        order = np.argsort(along)
        slices = np.interp(point @ self.normal, along[order], order.astype(float), left=-1.0, right=float(len(along)))
        planes = np.clip(slices, 0, len(along) - 1)
        below = np.floor(planes).astype(int)
        above = np.minimum(below + 1, len(along) - 1)
        share = (planes - below)[..., None]
        offset = point - (self.positions[below] * (1 - share) + self.positions[above] * share)
        indices = [slices, *((offset @ self.axes[i]) / self.spacing[i] for i in range(2))]
        return np.stack(indices).astype(np.float32)

    def resample(self, values: Array, outside: float) -> Array:
        """``values`` (slice, row, column) on the grid (z up, y back, x left), linearly."""
        given = torch.from_numpy(values)[None, None] - outside
        out = np.empty(tuple(self.size), np.float32)
        for z in range(self.size[0]):
            index = torch.from_numpy(self._plane(z))
            unit = torch.stack([2.0 * index[i] / (self.shape[i] - 1) - 1.0 for i in (2, 1, 0)], dim=-1)
            plane = F.grid_sample(given, unit[None, None], mode="bilinear", padding_mode="zeros", align_corners=True)
            out[z] = plane[0, 0, 0].numpy() + outside
        return out

    def back(self, labels: Labels) -> Labels:
        """Labels of the grid at the study's own voxel centres, nearest neighbour."""
        out = np.zeros(self.shape, np.uint8)
        r, c = np.meshgrid(np.arange(self.shape[1]), np.arange(self.shape[2]), indexing="ij")
        plane = (r * self.spacing[0])[..., None] * self.axes[0] + (c * self.spacing[1])[..., None] * self.axes[1]
        for k in range(self.shape[0]):
            index = np.rint((self.positions[k] + plane - self.low) / GRID_MM).astype(int)[..., ::-1]
            index = np.clip(index, 0, self.size - 1)
            out[k] = labels[index[..., 0], index[..., 1], index[..., 2]]
        return out
