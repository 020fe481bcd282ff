"""One measurement being reconstructed while its readouts arrive."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dicomnode import pipeline as dn
from dicomnode.kspace import Flag, Trajectory
from models.mr_recon import geometry, ladder, lines, noncartesian, prep, scale
from pipelines import mr_components, mr_images, mr_planes, mr_readouts, mr_snr
from pipelines.mr_images import Part, Unit
from pipelines.mr_readouts import Kind

if TYPE_CHECKING:
    from pipelines.mr_recon import MRReconstruction

#: Encoding, repetition, slice.
Place = tuple[int, int, int]
#: Planes by component.
Made = dict[str, list[dn.ReconstructedPlane]]
#: Readouts of calibration that a slice takes: those of its first contrast, phase, set and repetition.
First = tuple[int, int, int, int]


class Measurement(dn.Stream):
    """Gathers readouts by slice, and reconstructs a slice when it is complete."""

    def __init__(self, pipeline: MRReconstruction, header: dn.KSpaceHeader) -> None:
        self.options, self.ladder, self.device = pipeline.options, pipeline.ladder, pipeline.device
        self.shown = mr_components.Shown(self.options.images)
        self.units_of_noise = mr_snr.Units(wanted=self.options.scale == "snr")
        self.progress = pipeline.progress
        self.header = header
        self.gate = mr_readouts.Gate(header)
        self.profiles: dict[int, mr_readouts.Profiles] = {}
        self.noise, self.noise_readouts = prep.Noise(), 0
        self.noise_dwell = 0.0
        self.whitening: prep.Whitening | None = None
        self.units: dict[Place, Unit] = {}
        self.done: set[Place] = set()
        self.separate: dict[tuple[int, int], tuple[First, lines.Lines]] = {}
        self.most_rows: dict[int, int] = {}
        self.series: dict[int, mr_planes.Series] = {}
        #: By encoding and component.
        self.planes: dict[tuple[int, str], list[dn.ReconstructedPlane]] = {}
        self.axes: np.ndarray | None = None
        self.kinds: dict[Kind, int] = dict.fromkeys(Kind, 0)
        self.late = 0
        self.angles: dict[Place, int] = {}
        self.notes: list[str] = []
        self.quality: dict[str, list[float]] = {}

    def add(self, readout: dn.Readout) -> Sequence[dn.Reconstruction]:
        kind = mr_readouts.kind_of(readout)
        if self.gate.admits(readout, kind):
            self.kinds[kind] += 1
            self._take(readout, kind)
        # The flags of a readout that is left out count too: it may be the one that ends the slice.
        return self._complete(self._ended(readout, kind))

    def finish(self, *, incomplete: bool = False) -> Sequence[dn.Reconstruction]:
        if incomplete:
            self._announce()
        made = self._complete(sorted(self.units))
        if incomplete:
            self.notes.append("the measurement ended before the scanner said that it was complete")
        if not self.series:
            raise dn.Unsuitable(self._nothing())
        return made

    def result(self) -> dn.Result:
        if not self.series:
            raise dn.Unsuitable(self._nothing())
        said = [*self.notes, *self.gate.sentences()]
        if any(profiles.uncentred for profiles in self.profiles.values()):
            said.append("center_sample is 0 in whole readouts: their middle was taken")
        if self.late:
            said.append(f"{self.late} readouts came after their image was complete, and were left out")
        notes = tuple(dict.fromkeys(said))
        reconstructions = tuple(
            self.series[index].reconstruction(planes, component)
            for (index, component), planes in sorted(self.planes.items(), key=lambda one: one[0][0])
        )
        known = {name: [v for v in values if np.isfinite(v)] for name, values in self.quality.items()}
        quality = {name: float(np.mean(values)) for name, values in known.items() if values}
        return dn.Result(reconstructions=reconstructions, notes=notes, quality=quality)

    def _announce(self) -> None:
        """Where nothing complete tells how many lines an irregular pattern has, the header's acceleration does."""
        for index, encoding in enumerate(self.header.encodings):
            limit = encoding.limits.get("kspace_encoding_step_1")
            if limit is not None and encoding.acceleration[0] > 1:
                self.most_rows.setdefault(index, limit.count // encoding.acceleration[0])

    def _take(self, readout: dn.Readout, kind: Kind) -> None:
        if kind is Kind.NOISE:
            if self.whitening is None:
                # Scaled to readouts of 1 us here, and to the images' when they are known.
                self.noise.add(readout.data, readout.dwell_time or 1.0)
                self.noise_readouts += 1
                self.noise_dwell = readout.dwell_time
            else:
                self.notes.append("a noise scan after the first image was not used")
            return
        if kind is Kind.OTHER:
            return
        profiles = self._profiles(readout.encoding)
        if kind is Kind.PHASE_CORRECTION:
            profiles.navigate(readout)
            return
        self._orient(readout)
        if kind is Kind.CALIBRATION:
            self._calibrate(readout, profiles)
            return
        place = (readout.encoding, readout.repetition, readout.slice)
        if place in self.done:
            self.late += 1
            return
        unit = self.units.get(place)
        if unit is None:
            unit = Unit(self.header.encodings[readout.encoding], profiles, noise=not self.noise_readouts)
            self.units[place] = unit
        if unit.encoding.trajectory in mr_readouts.NON_CARTESIAN:
            unit.add_samples(readout, self._trajectory(readout, place))
        else:
            unit.add(readout)

    def _profiles(self, encoding: int) -> mr_readouts.Profiles:
        if encoding not in self.profiles:
            mr_readouts.refuse_encoding(self.header.encodings[encoding])
            self.profiles[encoding] = mr_readouts.Profiles(self.header.encodings[encoding])
        return self.profiles[encoding]

    def _orient(self, readout: dn.Readout) -> None:
        """Refuse a measurement without geometry as soon as the first line shows it."""
        if self.axes is not None:
            return
        self.axes = self._axes(readout)

    def _axes(self, readout: dn.Readout) -> np.ndarray:
        try:
            if not np.isfinite(readout.position).all():
                raise geometry.GeometryError(f"position is {readout.position}")
            return geometry.directions(readout.read_dir, readout.phase_dir, readout.slice_dir)
        except geometry.GeometryError as error:
            if not self.options.allow_no_geometry:
                raise dn.Unsuitable(
                    f"no geometry: {error}; option allow_no_geometry makes images without a place in the patient"
                ) from error
            self.notes.append(f"no geometry: {error}; positions only number the slices")
            return mr_planes.NO_GEOMETRY

    def _calibrate(self, readout: dn.Readout, profiles: mr_readouts.Profiles) -> None:
        place = (readout.encoding, readout.slice)
        own = (readout.repetition, readout.contrast, readout.set, readout.phase)
        first, gathered = self.separate.setdefault(place, (own, lines.Lines()))
        if own == first:
            row, partition = mr_readouts.place(self.header.encodings[readout.encoding], readout)
            gathered.add(row, partition, profiles.profile(readout))

    def _trajectory(self, readout: dn.Readout, place: Place) -> Tensor:
        """(sample, 2) of the samples that are kept, as the readout has it or as the header's rule makes it."""
        keep = slice(readout.discard_pre, readout.data.shape[1] - readout.discard_post)
        if readout.trajectory is not None:
            return torch.tensor(np.asarray(readout.trajectory, np.float32)[keep])
        encoding, user = self.header.encodings[readout.encoding], self.header.user
        step: float | str | None = user.get("angle_increment_deg")
        if step is None and encoding.trajectory is Trajectory.GOLDEN_ANGLE:
            step = noncartesian.GOLDEN_ANGLE
        if encoding.trajectory is Trajectory.SPIRAL or not isinstance(step, int | float):
            raise dn.Unsuitable(
                f"{encoding.trajectory.value} readouts without a trajectory, and the header's user parameters give no "
                "angle_increment_deg"
            )
        count = self.angles.get(place, 0)
        self.angles[place] = count + 1
        return noncartesian.spoke(count * float(step), readout.data.shape[1], readout.center_sample)[keep]

    def _ended(self, readout: dn.Readout, kind: Kind) -> list[Place]:
        """The slices that are complete because of ``readout``."""
        if readout.has(Flag.LAST_IN_MEASUREMENT):
            return sorted(self.units)
        if kind in (Kind.NOISE, Kind.OTHER, Kind.CALIBRATION):
            return []
        place = (readout.encoding, readout.repetition, readout.slice)
        if readout.has(Flag.LAST_IN_REPETITION):
            return sorted(key for key in self.units if key[:2] == place[:2])
        unit = self.units.get(place)
        if unit is not None and ((readout.has(Flag.LAST_IN_SLICE) and unit.ends_with(readout)) or unit.whole()):
            return [place]
        return []

    def _complete(self, places: list[Place]) -> list[dn.Reconstruction]:
        made: dict[tuple[int, str], list[dn.ReconstructedPlane]] = {}
        for place in places:
            unit = self.units.pop(place)
            self.done.add(place)
            began = time.perf_counter()
            for component, planes in self._reconstruct(place, unit).items():
                key = (place[0], component)
                if key[1] == self.options.images[0]:
                    self._measure("seconds_per_plane", (time.perf_counter() - began) / len(planes))
                made.setdefault(key, []).extend(planes)
                self.planes.setdefault(key, []).extend(planes)
            self.progress("reconstructing", min(1.0, len(self.done) / self._expected(place[0])))
        return [self.series[one].reconstruction(planes, component) for (one, component), planes in made.items()]

    def _expected(self, encoding: int) -> int:
        """Slices and repetitions that the header announces."""
        limits = self.header.encodings[encoding].limits
        counts = [limits[name].count for name in ("slice", "repetition") if name in limits]
        return max(1, int(np.prod(counts)), len(self.done))

    def _reconstruct(self, place: Place, unit: Unit) -> Made:
        whitening = self._whitening(unit)
        if unit.encoding.trajectory in mr_readouts.NON_CARTESIAN:
            return self._off_grid(place, unit, whitening)
        separate = self.separate.get((place[0], place[2]), ((0, 0, 0, 0), lines.Lines()))[1]
        problems = mr_images.Problems(
            unit, whitening, separate, self.options.max_missing, self.most_rows.get(place[0], 0)
        )
        parts = problems.parts()
        for refused in problems.refused:
            self.notes.append(f"slice {place[2]} of repetition {place[1]} left out: {refused}")
        solved: list[tuple[Part, dict[str, Tensor], ladder.Outcome]] = []
        magnitudes: list[Tensor] = []
        for part in parts:
            self.most_rows[place[0]] = max(self.most_rows.get(place[0], 0), part.problem.sampling.measured)
            outcome = self._solve(place, part)
            if outcome is not None:
                self._keep_calibration(place, unit, part)
                outcome, note = self.units_of_noise.applied(place[0], part, outcome, unit, self.options.filter)
                self._note(note)
                images = self.shown.turned(place[0], outcome.images, part.problem)
                images = mr_planes.gridded(part, images, unit, self.options.filter)
                magnitude, shown = self.shown.of(place[0], images)
                magnitudes.append(magnitude)
                solved.append((part, shown, outcome))
        if not solved:
            return {}
        self._begin_series(place, unit, magnitudes, solved[0][2])
        made: Made = {}
        for part, shown, outcome in solved:
            for component, pixels in shown.items():
                made.setdefault(component, []).extend(self._planes(place, unit, part, pixels, outcome))
        return made

    def _keep_calibration(self, place: Place, unit: Unit, part: Part) -> None:
        """Keep the first repetition's centre for those that come without one."""
        if unit.encoding.acceleration != (1, 1) and part.problem.calibration is not None:
            contrast, member, phase = part.frames[0]
            merged = mr_images.merged([unit.images[frame] for frame in part.frames])
            self.separate.setdefault((place[0], place[2]), ((place[1], contrast, member, phase), merged))

    def _solve(self, place: Place, part: Part) -> ladder.Outcome | None:
        begun = self.series.get(place[0])
        networks = begun is None or begun.rung == "learned"
        problem = part.problem
        linear = self.units_of_noise.method_for(place[0], problem) if self.options.method == "auto" else ""
        wanted = ladder.Ladder(linear) if linear else self.ladder
        if self.device.type != "cpu":
            problem = problem.on(self.device)
        try:
            outcome = wanted.reconstruct(problem, networks=networks)
        except ArithmeticError as error:
            self.notes.append(f"slice {place[2]} of repetition {place[1]} left out: {error}")
            return None
        self._measure("acceleration", problem.sampling.acceleration)
        for name, value in outcome.quality.items():
            self._measure(name, value)
        self.notes += [f"Reconstruction fallback: {reason}" for reason in outcome.reasons]
        return replace(outcome, images=outcome.images.cpu())

    def _off_grid(self, place: Place, unit: Unit, whitening: prep.Whitening) -> Made:
        """Radial and spiral images, one frame after the other."""
        encoding, line = unit.encoding, unit.profiles.line
        planes: Made = {}
        self._note(self.units_of_noise.refuse(place[0], "the noise of gridded images is not even"))
        rows = prep.Line.of(encoding.encoded_matrix[1], encoding.encoded_fov[1], encoding.recon_fov[1]).kept
        shape = (rows, line.kept)
        for frame, image in sorted(unit.images.items()):
            samples = whitening.apply(torch.cat(image.samples, 1), 0)
            try:
                trajectory = noncartesian.in_cycles(torch.cat(image.trajectory), encoding.encoded_matrix[1::-1], shape)
                if encoding.trajectory is not Trajectory.SPIRAL and len({len(part) for part in image.trajectory}) == 1:
                    trajectory = noncartesian.undelayed(samples, trajectory, len(image.trajectory), shape)
                made = noncartesian.reconstruct(samples.to(self.device), trajectory.to(self.device), shape).cpu()
            except noncartesian.TrajectoryError as error:
                raise dn.Unsuitable(str(error)) from error
            except ladder.FAILURES as error:
                self.notes.append(f"slice {place[2]} of repetition {place[1]} left out: {error}")
                continue
            made = self.shown.turned_off_grid(place[0], made, samples, trajectory)
            made = geometry.resample(made, 0, rows * encoding.encoded_fov[1] / encoding.encoded_matrix[1],
                                     encoding.recon_matrix[1], encoding.recon_fov[1])  # fmt: skip
            made = geometry.resample(made, 1, line.kept * encoding.encoded_fov[0] / line.columns,
                                     encoding.recon_matrix[0], encoding.recon_fov[0])  # fmt: skip
            images = mr_images.filtered(made, self.options.filter)[None, None, None]
            outcome = ladder.Outcome(images=made[None, None], rung="nufft-cg", maps="low-resolution")
            magnitude, shown = self.shown.of(place[0], images)
            self._begin_series(place, unit, [magnitude], outcome)
            for component, pixels in shown.items():
                plane = self._plane(place, unit, frame, 0, pixels[0, 0], "")
                planes.setdefault(component, []).append(plane)
        return planes

    def _whitening(self, unit: Unit) -> prep.Whitening:
        """Of the noise scan, else of the first image's readouts; the same for the whole measurement."""
        if self.whitening is not None:
            return self.whitening
        dwell = next(iter(unit.images.values())).central.dwell_time or self.noise_dwell or 1.0
        try:
            if self.noise_readouts:
                self.whitening = self.noise.whitening(self.header.noise_bandwidth * dwell)
        except ValueError as error:
            self.notes.append(f"noise scan not used: {error}")
        if self.whitening is None:
            noise = unit.noise or prep.OwnNoise()
            try:
                self.whitening = noise.whitening()
                self.notes.append("no noise scan: noise estimated from the quietest part of the readouts")
            except ValueError as error:
                same = torch.eye(self.gate.coils, dtype=torch.complex64)
                self.whitening = prep.Whitening(same, np.zeros(1), (), "none")
                self.notes.append(f"noise not known: {error}")
        for channel in self.whitening.rejected:
            self.notes.append(f"receiver channel {channel} left out: its noise is {self.whitening.sd[channel]:.3g}")
        self._measure("noise_sd", float(np.median(self.whitening.sd)))
        return self.whitening

    def _note(self, text: str) -> None:
        if text:
            self.notes.append(text)

    def _measure(self, name: str, value: float) -> None:
        self.quality.setdefault(name, []).append(value)

    def _begin_series(self, place: Place, unit: Unit, images: list[Tensor], outcome: ladder.Outcome) -> None:
        """Fix what all planes share, from the first slice that is complete."""
        if place[0] not in self.series:
            assert self.whitening is not None
            snr, units = self.units_of_noise.there(place[0]), self.units_of_noise.said(place[0])
            brightness = mr_snr.SCALE if snr else scale.factor(torch.cat([image.flatten() for image in images]))
            description = mr_planes.description(outcome, self.whitening.source, self.options.filter, units)
            turned = None
            if self.options.orientation == "display":
                axes = self._axes(next(iter(unit.images.values())).central)
                turned = geometry.lies(axes[:2].flatten())
            self.series[place[0]] = mr_planes.Series(
                unit.encoding, place[0], brightness, outcome.rung, description, turned, snr, self.options.filter
            )

    def _planes(
        self, place: Place, unit: Unit, part: Part, images: Tensor, outcome: ladder.Outcome
    ) -> list[dn.ReconstructedPlane]:
        series, planes = self.series[place[0]], []
        for index, frame in enumerate(part.frames):
            remark = series.remark(outcome, part.missing[frame])
            for partition, pixels in enumerate(images[index], part.partition):
                planes.append(self._plane(place, unit, frame, partition, pixels, remark))
        return planes

    def _plane(
        self, place: Place, unit: Unit, frame: mr_images.Frame, partition: int, pixels: Tensor, remark: str
    ) -> dn.ReconstructedPlane:
        axes = self._axes(unit.images[frame].central)
        made = self.series[place[0]].plane(unit, frame, (place[2], partition), axes, pixels)
        time_of = mr_planes.trigger_times(unit, self.options.tick_ms)[frame]
        return replace(made, repetition=place[1], trigger_time=time_of, remark=remark)

    def _nothing(self) -> str:
        """Why there is no image."""
        if self.notes and self.kinds[Kind.IMAGE]:
            return "no image: " + "; ".join(dict.fromkeys(self.notes))
        skipped = self.gate.sentences()
        if skipped and not sum(self.kinds.values()):
            return "no readout is usable: " + "; ".join(skipped)
        seen = [f"{count} of {kind.value}" for kind, count in self.kinds.items() if count]
        return "; ".join((f"no imaging readouts: {', '.join(seen) or 'nothing came'}", *skipped))
