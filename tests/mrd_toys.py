"""Small pipelines for k-space: each does one thing that a live session must survive."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dicomnode import pipeline as dn
from dicomnode.kspace import Flag

SCALE = 1000.0


class Lines(dn.Stream):
    """Gathers the lines of a slice; its last line makes the image."""

    def __init__(self, owner: Fourier, header: dn.KSpaceHeader) -> None:
        self.owner, self.encoding = owner, header.encodings[0]
        self.lines: dict[int, dict[int, np.ndarray]] = {}
        self.first: dict[int, dn.Readout] = {}
        self.made: list[dn.Reconstruction] = []

    def add(self, readout: dn.Readout) -> Sequence[dn.Reconstruction]:
        if readout.has(Flag.IS_NOISE_MEASUREMENT) or not np.isfinite(readout.data).all():
            return ()
        if readout.step_1 >= self.encoding.encoded_matrix[1]:
            return ()
        self.owner.line(readout)
        self.first.setdefault(readout.slice, readout)
        self.lines.setdefault(readout.slice, {})[readout.step_1] = readout.data
        return [self.image(readout.slice)] if readout.has(Flag.LAST_IN_SLICE) else ()

    def finish(self, *, incomplete: bool = False) -> Sequence[dn.Reconstruction]:
        rest = [self.image(number, "incomplete k-space" if incomplete else "") for number in sorted(self.lines)]
        if not (self.made or rest):
            raise dn.Unsuitable("no line belongs to an image")
        return rest

    def image(self, number: int, remark: str = "") -> dn.Reconstruction:
        first, lines = self.first[number], self.lines.pop(number)
        columns, rows, _ = self.encoding.encoded_matrix
        space = np.zeros((len(first.data), rows, columns), np.complex64)
        for row, data in lines.items():
            space[:, row] = data
        images = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(space, axes=(1, 2)), axes=(1, 2)), axes=(1, 2))
        keep = self.encoding.recon_matrix[0]
        left = columns // 2 - keep // 2
        array = np.sqrt((np.abs(images[:, :, left : left + keep]) ** 2).sum(0)).astype(np.float32)
        x, y, _ = self.encoding.recon_fov
        dx, dy = x / keep, y / rows
        along, down = np.array(first.read_dir), np.array(first.phase_dir)
        plane = dn.ReconstructedPlane(
            array=array * np.float32(np.sqrt(columns * rows)),
            position=np.array(first.position) - keep // 2 * dx * along - rows // 2 * dy * down,
            orientation=np.concatenate([along, down]),
            slice=number,
            remark=remark,
        )
        made = dn.Reconstruction(
            planes=(plane,), pixel_spacing=(dy, dx), thickness=self.encoding.recon_fov[2], role="magnitude",
            label="toy Fourier", description="Fourier transform of a test", learned=False, scale=SCALE,
        )  # fmt: skip
        self.made.append(made)
        return made

    def result(self) -> dn.Result:
        planes = tuple(plane for made in self.made for plane in made.planes)
        first = self.made[0]
        whole = dn.Reconstruction(
            planes=planes, pixel_spacing=first.pixel_spacing, thickness=first.thickness, role=first.role,
            label=first.label, description=first.description, learned=False, scale=first.scale,
        )  # fmt: skip
        return dn.Result(reconstructions=(whole,), notes=("a toy made it",))


class Fourier(dn.StreamingPipeline):
    """Fourier transform."""

    algorithm = dn.Algorithm(name="toy-fourier", version="1.0.0")
    accepts_incomplete = True

    @dataclass(frozen=True)
    class Options:
        #: What goes wrong: nothing, raise, die, hang, refuse.
        fault: str = ""
        #: After so many lines.
        after: int = 5

    options: Options

    def setup(self, runtime: dn.Runtime) -> None:
        self.seen = 0

    def begin(self, header: dn.KSpaceHeader) -> dn.Stream:
        self.seen = 0
        if self.options.fault == "refuse":
            raise dn.Unsuitable("does not like the header")
        return Lines(self, header)

    def line(self, readout: dn.Readout) -> None:
        self.seen += 1
        if self.seen != self.options.after:
            return
        match self.options.fault:
            case "raise":
                raise RuntimeError("broken on purpose")
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                time.sleep(600)
