"""Images being gathered: readouts by place and counter, when they are complete, and the problems they pose."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dicomnode import pipeline as dn
from dicomnode.kspace import Encoding, Flag
from models.mr_recon import geometry, lines, prep
from models.mr_recon.fft import fftc, ifftc
from models.mr_recon.problem import Problem
from pipelines import mr_readouts
from pipelines.mr_readouts import Profiles

#: Contrast, set, phase.
Frame = tuple[int, int, int]


@dataclass(slots=True, eq=False)
class Gathered:
    """What came of one image, or of one volume."""

    #: The readout nearest to the centre of k-space: its position and time stamps are the image's.
    central: dn.Readout
    lines: lines.Lines = field(default_factory=lines.Lines)
    #: Of radial and spiral measurements: samples (coil, sample) and trajectory (sample, 2) of every readout.
    samples: list[Tensor] = field(default_factory=list)
    trajectory: list[Tensor] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.lines) or len(self.samples)


@dataclass(slots=True, eq=False)
class Part:
    """Frames of one contrast that are reconstructed together."""

    frames: list[Frame]
    problem: Problem
    #: What is missing of each, for the reader; empty: nothing.
    missing: dict[Frame, str]
    #: Partition of a volume that the images show.
    partition: int = 0
    #: The problem's frames are the columns of one frame's volume, its images are (partition, row) transposed.
    columns: bool = False


class Unit:
    """One slice (or slab) of one repetition: what a live reconstruction waits for and gives out together."""

    def __init__(self, encoding: Encoding, profiles: Profiles, *, noise: bool) -> None:
        self.encoding, self.profiles = encoding, profiles
        self.images: dict[Frame, Gathered] = {}
        self.steps: set[tuple[int, ...]] = set()
        #: Where there is no noise scan.
        self.noise = prep.OwnNoise() if noise else None

    def add(self, readout: dn.Readout) -> None:
        """Take an imaging readout of a grid."""
        row, partition = mr_readouts.place(self.encoding, readout)
        profile = self.profiles.profile(readout)
        middle = self.encoding.encoded_matrix[1] // 2
        image = self._image(readout, abs(row - middle))
        flagged = readout.has(Flag.IS_PARALLEL_CALIBRATION_AND_IMAGING)
        image.lines.add(row, partition, profile, calibration=flagged)
        if self.noise is not None:
            share = 1.0 if self.profiles.epi else self.profiles.line.kept / self.profiles.line.columns
            self.noise.add(readout.data, abs(row - middle), share)
        counters = (readout.average, readout.contrast, readout.set, readout.phase)
        self.steps.add((*counters, row, partition))

    def add_samples(self, readout: dn.Readout, trajectory: Tensor) -> None:
        """Take an imaging readout along ``trajectory`` (sample, 2)."""
        image = self._image(readout, 0)
        last = readout.data.shape[1] - readout.discard_post
        image.samples.append(torch.tensor(readout.data[:, readout.discard_pre : last], dtype=torch.complex64))
        image.trajectory.append(trajectory)
        if self.noise is not None:
            self.noise.add(readout.data, 0, 1.0)

    def _image(self, readout: dn.Readout, distance: int) -> Gathered:
        key = (readout.contrast, readout.set, readout.phase)
        image = self.images.get(key)
        if image is None:
            image = self.images[key] = Gathered(readout)
        else:
            row = mr_readouts.place(self.encoding, image.central)[0]
            if distance < abs(row - self.encoding.encoded_matrix[1] // 2):
                image.central = readout
        return image

    def whole(self) -> bool:
        """Whether every step that the limits name is there (only where no line is left out on purpose)."""
        limits = self.encoding.limits
        if self.encoding.acceleration != (1, 1) or "kspace_encoding_step_1" not in limits:
            return False
        wanted = 1
        for name in ("kspace_encoding_step_1", "kspace_encoding_step_2", "average", "contrast", "phase", "set"):
            wanted *= max(limits[name].count, 1) if name in limits else 1
        return len(self.steps) >= wanted

    def ends_with(self, readout: dn.Readout) -> bool:
        """Whether ``readout``, the last of its slice, is also the last of the slice's further counters."""
        limits = self.encoding.limits
        for name in ("average", "contrast", "set", "phase"):
            if name in limits and getattr(readout, name) < limits[name].maximum:
                return False
        deep = limits.get("kspace_encoding_step_2")
        if mr_readouts.volume(self.encoding) and deep is not None and self.encoding.acceleration[1] == 1:
            return len({step[-1] for step in self.steps}) >= deep.count
        return True

    def row_limits(self) -> tuple[int, int]:
        """First and last + 1 row that the header says are measured."""
        return mr_readouts.measured_range(self.encoding, 1)

    def sampling(self, frame: Frame) -> lines.Sampling:
        """The pattern of the rows of one image."""
        gathered = self.images[frame].lines
        rows = gathered.rows(self.encoding.encoded_matrix[1])
        return lines.sampling(rows, self.row_limits(), gathered.flagged, self.encoding.acceleration[0])

    def count(self, frame: Frame, sampling: lines.Sampling, most_rows: int) -> tuple[int, int]:
        """Lines of one image that are there, and that should be."""
        expected = max(sampling.expected, most_rows) if sampling.pattern == "variable" else sampling.expected
        if mr_readouts.volume(self.encoding) and self.encoding.acceleration[1] == 1:
            low, high = mr_readouts.measured_range(self.encoding, 2)
            return len(self.images[frame].lines), expected * (high - low)
        return sampling.measured, expected


def calibration_of(gathered: lines.Lines, rows: int, line: prep.Line, columns: tuple[int, int]) -> Tensor | None:
    """complex64 (coil, ky, kx): the fully sampled block around the centre of one partition; None if there is none."""
    low, high = lines.block(gathered.rows(rows))
    left, right = lines.symmetric(*columns, line.kept // 2)
    if high - low < 2 or right - left < 2:
        return None
    grid, _ = gathered.assemble(rows)
    return line.to_kspace(grid[:, 0])[:, low:high, left:right]


def merged(images: list[Gathered]) -> lines.Lines:
    """All lines of several frames on one grid: their mean, for calibration."""
    together = lines.Lines()
    for image in images:
        for key, total in image.lines.sums.items():
            there = together.sums.get(key)
            together.sums[key] = total if there is None else there + total
            together.counts[key] = together.counts.get(key, 0) + image.lines.counts[key]
        together.flagged |= image.lines.flagged
    return together


class Problems:
    """The problems that a complete unit poses.

    Parameters
    ----------
    whitening
        Of the channels.
    separate
        Calibration lines of the slice that belong to no image.
    most_missing
        Part of the lines of an image that may be missing.
    most_rows
        Rows of the fullest image of the measurement so far: what irregular patterns are compared with.
    """

    def __init__(
        self, unit: Unit, whitening: prep.Whitening, separate: lines.Lines, most_missing: float, most_rows: int
    ) -> None:
        self.unit, self.whitening, self.separate = unit, whitening, separate
        self.most_missing, self.most_rows = most_missing, most_rows
        self.refused: list[str] = []

    def parts(self) -> list[Part]:
        """Frames of equal contrast and pattern together; images with too many missing lines are ``refused``."""
        groups: dict[tuple[int, int, str, int], list[Frame]] = {}
        samplings: dict[Frame, lines.Sampling] = {}
        remarks: dict[Frame, str] = {}
        for frame in sorted(self.unit.images):
            sampling = self.unit.sampling(frame)
            measured, expected = self.unit.count(frame, sampling, self.most_rows)
            missing = 1 - measured / max(expected, 1)
            if missing > 0:
                remarks[frame] = f"incomplete k-space: {measured} of {expected} lines"
            if missing > self.most_missing:
                self.refused.append(f"{remarks[frame]}; at most {self.most_missing:.0%} may be missing")
                continue
            samplings[frame] = sampling
            step = round(sampling.acceleration) if sampling.pattern == "uniform" else 0
            groups.setdefault((*frame[:2], sampling.pattern, step), []).append(frame)
        made: list[Part] = []
        for frames in groups.values():
            missing_of = {frame: remarks.get(frame, "") for frame in frames}
            made += self._pose(frames, samplings[frames[0]], missing_of)
        return made

    def _pose(self, frames: list[Frame], sampling: lines.Sampling, missing: dict[Frame, str]) -> list[Part]:
        unit, line = self.unit, self.unit.profiles.line
        _, rows, deep = unit.encoding.encoded_matrix
        deep = deep if mr_readouts.volume(unit.encoding) else 1
        images = [unit.images[frame].lines.assemble(rows, deep) for frame in frames]
        grid = self.whitening.apply(torch.stack([grid for grid, _ in images]), 1)  # (frame, coil, kz, ky, x)
        counts = torch.stack([counts for _, counts in images])  # (frame, kz, ky)
        measured = counts > 0
        if deep > 1 and not bool((measured.any(1, keepdim=True) == measured).all()):
            return self._columns(frames, grid, counts, missing)
        if deep > 1:
            # Before coils are combined: their combination has a phase of its own in every partition.
            whole, wanted = unit.encoding.encoded_fov[2], unit.encoding.recon_fov[2]
            grid = geometry.resample(ifftc(grid, (2,)), 2, whole, unit.encoding.recon_matrix[2], wanted)
        data = line.to_kspace(grid)
        left, right = unit.profiles.columns
        region = torch.zeros(rows, line.kept, dtype=torch.bool)
        low, high = unit.row_limits()
        region[low:high, left:right] = True
        data = data * region
        weights = counts.amax(1)[:, None, :, None] * region
        made = []
        for partition in range(grid.shape[2]):
            problem = Problem(
                data=data[:, :, partition],
                counts=weights,
                calibration=self._calibration(data[:, :, partition], weights),
                sampling=sampling,
                region=region,
                noise_scan=self.whitening.source == "scan",
                dynamic=len({phase for _, _, phase in frames}) > 1,
            )
            made.append(Part(frames, problem, missing, partition))
        return made

    def _calibration(self, data: Tensor, weights: Tensor) -> Tensor | None:
        """The wider of the frames' own mean centre and the separate calibration lines."""
        unit, found = self.unit, None
        total = weights.sum(0)
        there = (total[0] > 0).any(-1).numpy()
        low, high = lines.block(there)
        left, right = lines.symmetric(*unit.profiles.columns, unit.profiles.line.kept // 2)
        if high - low > 1 and right - left > 1:
            mean = (data * weights).sum(0) / total.clamp(min=1)
            found = mean[:, low:high, left:right]
        rows = unit.encoding.encoded_matrix[1]
        own = 0 if found is None else found.shape[-2]
        if len(self.separate):
            apart = calibration_of(self.separate, rows, unit.profiles.line, unit.profiles.columns)
            if apart is not None and apart.shape[-2] > own:
                found = self.whitening.apply(apart, 0)
        return found

    def _columns(self, frames: list[Frame], grid: Tensor, counts: Tensor, missing: dict[Frame, str]) -> list[Part]:
        """A volume undersampled in both directions: every column of the readout is a problem of (ky, kz)."""
        encoding, line = self.unit.encoding, self.unit.profiles.line
        factor = float(np.prod(encoding.acceleration))
        made = []
        wide = line.kept * encoding.encoded_fov[0] / line.columns
        grid = geometry.resample(grid, 4, wide, encoding.recon_matrix[0], encoding.recon_fov[0])
        for index, frame in enumerate(frames):
            data = grid[index].permute(3, 0, 2, 1).contiguous()  # (x, coil, ky, kz)
            weight = counts[index].mT  # (ky, kz)
            low, high, near, far = _block2(weight > 0)
            calibration = data[:, :, low:high, near:far] if min(high - low, far - near) > 1 else None
            share = weight.numel() / float((weight > 0).sum())
            pattern = "uniform" if factor > 1 and share <= 4 else "variable"
            sampling = lines.Sampling(pattern, max(share, 1.0), (low, high), 1, 1, partial=False)
            problem = Problem(
                data=data,
                counts=weight[None, None].expand(data.shape[0], 1, -1, -1),
                calibration=calibration,
                sampling=sampling,
                region=torch.ones(weight.shape, dtype=torch.bool),
                noise_scan=self.whitening.source == "scan",
            )
            made.append(Part([frame], problem, missing, columns=True))
        return made


def _block2(there: Tensor) -> tuple[int, int, int, int]:
    """The fully sampled block around the centre of (ky, kz), as first and last + 1 of both."""
    middle = there.shape[0] // 2, there.shape[1] // 2
    low, high = lines.block(there[:, middle[1]].numpy())
    near, far = lines.block(there[middle[0]].numpy())
    while high - low > 1 and far - near > 1 and not bool(there[low:high, near:far].all()):
        if high - low >= far - near:
            low, high = lines.symmetric(low + 1, high - 1, middle[0])
        else:
            near, far = lines.symmetric(near + 1, far - 1, middle[1])
    return low, high, near, far


def filtered(images: Tensor, kind: str) -> Tensor:
    """``images`` (..., row, column) with a window over k-space: ``hamming``, ``tukey`` (0.3), or ``none``."""
    if kind == "none":
        return images
    for dim in (-2, -1):
        size = images.shape[dim]
        place = (torch.arange(size, device=images.device) - size // 2).abs() / (size / 2)
        shape = (size, 1) if dim == -2 else (1, size)
        images = ifftc(fftc(images, (dim,)) * window_at(place, kind).reshape(shape), (dim,))
    return images


def window_at(place: Tensor, kind: str) -> Tensor:
    """The window at ``place``, 0 at the centre of k-space and 1 at its rim."""
    if kind == "none":
        return torch.ones_like(place)
    if kind == "hamming":
        return 0.54 + 0.46 * torch.cos(torch.pi * place)
    return torch.where(place < 0.7, 1.0, 0.5 + 0.5 * torch.cos(torch.pi * (place - 0.7) / 0.3))
