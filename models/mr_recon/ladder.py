"""The rungs of reconstruction, from the most able that fits the data down to the one that always works.

A rung whose preconditions do not hold is not tried, one that fails is left for the next, and why is said.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Protocol

import torch
from torch import Tensor

from models.mr_recon import checks, coils, compress, conditioning, grappa, partial, sparse
from models.mr_recon.domain import Domain, Facts
from models.mr_recon.fft import ifft2c
from models.mr_recon.lines import FULL
from models.mr_recon.linops import Sense, SoftSense
from models.mr_recon.problem import Problem
from models.mr_recon.solvers import conjugate_gradient

#: Best first. What each needs and does: `Ladder` and `models/mr_recon/CARD.md`.
RUNGS: Final = ("learned", "cs-kttv", "cs-l1", "sense-cg", "grappa", "fft-adaptive", "fft-rss")
#: Names for the reader.
LABELS: Final = {
    "learned": "AI reconstruction",
    "cs-kttv": "CS temporal TV",
    "cs-l1": "CS wavelet",
    "sense-cg": "CG-SENSE",
    "grappa": "GRAPPA",
    "fft-adaptive": "adaptive combination",
    "fft-rss": "root sum of squares",
    "nufft-cg": "gridding CG-SENSE",
}
#: Iterations of CG-SENSE, and its damping relative to the largest eigenvalue (ml-mr 1.2).
CG_ITERATIONS: Final = 15
CG_DAMPING: Final = 2e-3
#: Of compressed sensing; its weights, in standard deviations of the noise, are those that `sparse` found best.
CS_ITERATIONS: Final = 60
#: From CG-SENSE on, 12 frames at R=4 are 0.0718, 0.0714, 0.0713 (NRMSE) from the truth after 10, 20, 60 of them.
TEMPORAL_ITERATIONS: Final = 20
#: Lines that GRAPPA's kernels are fitted to at least, and the accelerations it is good for.
GRAPPA_LINES: Final = 16
GRAPPA_ACCELERATION: Final = (2.0, 4.0)
#: Fewer calibration lines than this make no map at all, not even a smooth one.
LEAST_LINES: Final = 4
#: Part of the calibration energy that maps cannot explain before methods without maps, or with two sets of them, are
#: the better ones: of smooth maps, which leave up to 0.03 of a phantom in the field of view, and of ESPIRiT's, which
#: leave at most 0.006 there, and 0.02 to 0.11 where the body folds over (GRAPPA is 7 to 13 dB better then).
LEAKAGE: Final = 0.05
LEAKAGE_ESPIRIT: Final = 0.01
#: Frames, and acceleration, from which neighbours in time help.
DYNAMIC_FRAMES: Final = 8
DYNAMIC_ACCELERATION: Final = (3.5, 12.0)
#: Irregular sampling below this acceleration is a few lost lines, which SENSE fills.
INCOHERENT: Final = 1.5
#: Coils whose local covariance is combined; of more it takes too long and too much memory (coils squared images).
WALSH_COILS: Final = 12
#: What a rung may raise when its arithmetic fails: torch reports nearly everything as RuntimeError, of which
#: torch.linalg.LinAlgError and torch.OutOfMemoryError are kinds.
FAILURES: Final = (RuntimeError, ArithmeticError, ValueError, IndexError)


class Network(Protocol):
    """A learned reconstruction, see `models.mr_recon.bundle`."""

    @property
    def domain(self) -> Domain:
        """What it was trained for."""

    def reconstruct(self, maps: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        """(frame, row, column)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """Images, and how they came about."""

    #: complex64 (frame, channel, row, column): magnitude is the root sum of squares over channels.
    images: Tensor
    rung: str
    #: Why an earlier choice was not taken; and what a reader must know.
    reasons: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    #: How coil maps were made; empty: none were.
    maps: str = ""
    quality: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _State:
    """What the rungs of one problem share."""

    problem: Problem
    maps: Tensor | None = None
    method: str = ""
    leakage: float = 0.0
    #: Of the noise by CG-SENSE; none: not known, or not asked for.
    amplification: float | None = None
    notes: list[str] = field(default_factory=list)
    quality: dict[str, float] = field(default_factory=dict)

    @property
    def leaking(self) -> str:
        """What the maps leave, in words; empty where that is little."""
        limit = LEAKAGE_ESPIRIT if self.method.startswith("espirit") else LEAKAGE
        return f"coil maps leave {self.leakage:.0%} of the calibration unexplained" if self.leakage > limit else ""


class Ladder:
    """Picks and runs the rungs.

    Parameters
    ----------
    method
        ``auto``, or the rung to begin with.
    learned
        The network; None: there is none, and ``absent`` says why (empty: nobody asked for it).
    """

    def __init__(self, method: str = "auto", learned: Network | None = None, absent: str = "") -> None:
        if method != "auto" and method not in RUNGS:
            raise ValueError(f"method must be auto or one of {', '.join(RUNGS)}, is {method!r}")
        self.method, self.learned, self.absent = method, learned, absent

    @torch.inference_mode()
    def reconstruct(self, problem: Problem, *, networks: bool = True) -> Outcome:
        """Reconstruct on the first rung that works.

        Parameters
        ----------
        networks
            False: no network may shape these images.
        """
        state = _State(problem)
        reasons: list[str] = []
        for rung in self._order(state, reasons, networks):
            try:
                images = getattr(self, "_" + rung.replace("-", "_"))(state)
                if not bool(torch.isfinite(torch.view_as_real(images)).all()):
                    raise ArithmeticError("values that are not finite")
            except FAILURES as error:
                reasons.append(f"{rung}: {error}")
                continue
            filled = images if bool(problem.region.all()) else self._filled(images, state)
            state.quality["data_residual"] = self._residual(state, images)
            method = state.method if rung not in ("grappa", "fft-rss") else ""
            return Outcome(
                images=filled, rung=rung, reasons=tuple(reasons), remarks=tuple(state.notes), maps=method,
                quality=state.quality,
            )  # fmt: skip
        raise ArithmeticError("; ".join(reasons))

    def _order(self, state: _State, reasons: list[str], networks: bool) -> Iterator[str]:
        """The rungs to try, best first; what is left out is added to ``reasons`` where it was wanted."""
        sampling = state.problem.sampling
        # Who asks for a method gets nothing above it, but CG-SENSE stays open to whom GRAPPA fails.
        begin = min(RUNGS.index(self.method), RUNGS.index("sense-cg")) if self.method != "auto" else 0
        wanted = set(RUNGS[begin:])
        self._prepare(state, reasons)
        if self.method != "auto":
            refused = self._refusal(self.method, state, networks)
            if not refused:
                yield self.method
            else:
                reasons.append(f"{self.method}: {refused}")
            wanted.discard(self.method)
        elif (
            sampling.acceleration >= INCOHERENT
            and (self.learned is not None or self.absent)
            and (refused := self._refusal("learned", state, networks))
        ):
            reasons.append(f"learned: {refused}")
        order = [rung for rung in RUNGS if rung in wanted]
        if self.method == "auto" and self._ill_conditioned(state):
            reasons.append(f"sense-cg: amplifies noise {state.amplification:.1f} times")
        if state.leaking and sampling.pattern != "full":
            state.notes.append(state.leaking)
            if sampling.pattern == "uniform" and "grappa" in order:
                order.remove("grappa")
                order.insert(order.index("sense-cg") if "sense-cg" in order else 0, "grappa")
        if sampling.pattern != "full" and state.maps is None:
            state.notes.append("no calibration lines: undersampling is not resolved")
        yield from (rung for rung in order if not self._refusal(rung, state, networks))

    def _prepare(self, state: _State, reasons: list[str]) -> None:
        """Coil maps, where the calibration allows any."""
        problem = state.problem
        shape = (problem.data.shape[-2], problem.data.shape[-1])
        if problem.data.shape[1] == 1:
            state.maps, state.method = torch.ones_like(problem.data[0]), ""
            return
        if problem.calibration is None or min(problem.calibration.shape[-2:]) < LEAST_LINES:
            return
        if problem.sampling.pattern == "full" and self.method in ("auto", "fft-adaptive", "fft-rss"):
            # Nothing is to be unfolded: local covariance combines best, and is at home in every pixel with signal.
            if problem.data.shape[1] <= WALSH_COILS and bool(problem.region.all()):
                state.maps, state.method = torch.stack([coils.walsh(ifft2c(frame)) for frame in problem.data]), "Walsh"
            else:
                state.maps, state.method = coils.low_resolution(problem.calibration, shape), "low-resolution"
            return
        try:
            if problem.calibration.ndim == 4:
                parts = [coils.low_resolution(part, shape) for part in problem.calibration]
                state.maps, state.method = torch.stack(parts), "low-resolution"
                return
            found = coils.choose(problem.calibration, shape)
        except FAILURES as error:
            reasons.append(f"coil maps: {error}")
            return
        state.maps, state.method, state.leakage = found.maps, found.method, found.leakage
        state.quality["map_leakage"] = found.leakage

    def _refusal(self, rung: str, state: _State, networks: bool) -> str:
        """Why ``rung`` does not fit; empty if it does."""
        problem, sampling = state.problem, state.problem.sampling
        if rung == "fft-rss":
            return ""
        if rung == "grappa":
            fits = sampling.pattern == "uniform" and GRAPPA_ACCELERATION[0] <= sampling.acceleration
            flat = problem.calibration is None or problem.calibration.ndim == 3
            few = problem.data.shape[1] == 1
            if not fits or sampling.acceleration > GRAPPA_ACCELERATION[1] or few or not flat:
                return "needs several coils and uniform undersampling along one axis by 2 to 4"
            lines = 0 if problem.calibration is None else problem.calibration.shape[-2]
            return "" if lines >= GRAPPA_LINES else f"needs {GRAPPA_LINES} calibration lines, there are {lines}"
        if state.maps is None:
            return f"needs {LEAST_LINES} calibration lines or more"
        if rung == "learned":
            return self._refused_network(state, networks)
        if rung == "fft-adaptive":
            fits = sampling.pattern == "full" and sampling.acceleration <= FULL
            return "" if fits else "needs every line"
        if rung == "cs-kttv":
            low, high = DYNAMIC_ACCELERATION
            fits = problem.dynamic and len(problem.data) >= DYNAMIC_FRAMES and low <= sampling.acceleration <= high
            if not fits or not problem.varied:
                return f"needs {DYNAMIC_FRAMES} frames with lines of their own, undersampled by {low:g} to {high:g}"
            return state.leaking
        if rung == "cs-l1" and self.method != "cs-l1":
            irregular = sampling.pattern == "variable" and sampling.acceleration >= INCOHERENT
            few = problem.data.shape[1] == 1 and sampling.pattern != "full"
            if irregular or few or sampling.acceleration > 4 or self._ill_conditioned(state):
                return ""
            return "needs irregular sampling, or more than 4, or coils that amplify noise"
        if rung == "sense-cg" and sampling.pattern == "full" and self.method != "sense-cg":
            return "nothing is missing"
        return ""

    def _ill_conditioned(self, state: _State) -> bool:
        """Whether the coils are too alike for CG-SENSE to unfold a regular pattern that it would be taken for."""
        problem, sampling = state.problem, state.problem.sampling
        linear = sampling.pattern == "uniform" and sampling.acceleration <= 4 and problem.data.shape[1] > 1
        if not linear or state.maps is None or state.leaking:
            return False
        if state.amplification is None:
            try:
                state.amplification = conditioning.amplification(*self._operator(state), sampling.acceleration)
                state.quality["noise_amplification"] = state.amplification
            except FAILURES as error:
                state.amplification = float("nan")
                state.notes.append(f"noise amplification not known ({error})")
        return state.amplification > conditioning.AMPLIFICATION

    def _refused_network(self, state: _State, networks: bool) -> str:
        problem = state.problem
        if self.learned is None:
            return self.absent or "not asked for"
        if not networks:
            return "images of this series are linear already"
        if state.leaking:
            return state.leaking
        if problem.calibration is not None and problem.calibration.ndim == 4:
            return "not offered for volumes that are undersampled in both directions"
        facts = Facts(
            acceleration=problem.sampling.acceleration,
            pattern=problem.sampling.pattern,
            calibration=0 if problem.calibration is None else problem.calibration.shape[-2],
            coils=compress.count(problem.data.shape[1], problem.calibration),
            rows=problem.data.shape[-2],
            columns=problem.data.shape[-1],
            partial_fourier=not bool(problem.region.all()),
        )
        return str(self.learned.domain.refusal(facts))

    def _compressed(self, state: _State) -> tuple[Sense, Tensor]:
        """Operator and measurement with at most `compress.VIRTUAL` coils."""
        assert state.maps is not None
        problem = state.problem
        y, calibration = self._virtual(problem)
        if calibration is None or calibration is problem.calibration:
            return Sense(state.maps, problem.counts.sqrt()), y
        # Maps of virtual coils are not the virtual coils of maps where the projection drops some: made anew.
        return Sense(coils.choose(calibration, (y.shape[-2], y.shape[-1])).maps, problem.counts.sqrt()), y

    def _virtual(self, problem: Problem) -> tuple[Tensor, Tensor | None]:
        """Weighted measurement and calibration of at most `compress.VIRTUAL` coils."""
        y, calibration = problem.counts.sqrt() * problem.data, problem.calibration
        if problem.data.shape[1] <= compress.VIRTUAL or calibration is None or calibration.ndim == 4:
            return y, calibration
        mix = compress.matrix(calibration)
        return compress.apply(mix, y), compress.apply(mix, calibration)

    def _operator(self, state: _State) -> tuple[Sense, Tensor]:
        assert state.maps is not None
        weight = state.problem.counts.sqrt()
        return Sense(state.maps, weight), weight * state.problem.data

    def _learned(self, state: _State) -> Tensor:
        assert self.learned is not None
        most = float(state.problem.counts.max())
        operator, y = self._compressed(state)
        # Trained on masks of 0 and 1: averages raise no weight above it, they lower the noise.
        operator, y = Sense(operator.maps, operator.mask / most**0.5), y / most**0.5
        images = self.learned.reconstruct(operator.maps, y, operator.mask)
        linear = _cg(operator, y)
        noise = most**-0.5 if state.problem.noise_scan else None
        mean = torch.where(operator.mask > 0, y / operator.mask.clamp(min=1e-6), 0)
        for frame in range(len(images)):
            one = Sense(operator.maps, operator.mask[frame])
            judged = checks.judge(images[frame], linear[frame], one, mean[frame], noise)
            for check in judged:
                state.quality[check.name.replace(" ", "_")] = float(check.value)
                if not check.passed and not check.refuses:
                    state.notes.append(f"strong {check.name} ({check.value:.1%} of the body)")
            if refused := checks.refusal(judged):
                raise ArithmeticError(refused)
        return images[:, None]

    def _cs_kttv(self, state: _State) -> Tensor:
        operator, y = self._compressed(state)
        return sparse.temporal_tv(operator, y, sparse.TEMPORAL_WEIGHT, TEMPORAL_ITERATIONS, _cg(operator, y))[:, None]

    def _cs_l1(self, state: _State) -> Tensor:
        known = state.problem.calibration
        if state.leaking and known is not None and known.ndim == 3 and min(known.shape[1:]) >= coils.LEAST_FULL_KERNEL:
            return self._two_sets(state)
        operator, y = self._compressed(state)
        if operator.maps.ndim == 4:
            return sparse.wavelet_l1(operator, y, sparse.WAVELET_WEIGHT, CS_ITERATIONS)[:, None]
        frames = []
        for frame in range(len(y)):
            one = Sense(operator.maps, operator.mask[frame])
            start = _cg(one, y[frame])
            frames.append(sparse.wavelet_l1(one, y[frame], sparse.WAVELET_WEIGHT, CS_ITERATIONS, start))
        return torch.stack(frames)[:, None]

    def _two_sets(self, state: _State) -> Tensor:
        """Images that lie over each other where the body is larger than the field of view, a channel each."""
        y, calibration = self._virtual(state.problem)
        assert calibration is not None
        maps, weight = coils.espirit_pair(calibration, (y.shape[-2], y.shape[-1])), state.problem.counts.sqrt()
        pairs = [(SoftSense(maps, mask), one) for mask, one in zip(weight, y, strict=True)]
        made = [sparse.wavelet_l1(operator, one, sparse.WAVELET_WEIGHT, CS_ITERATIONS) for operator, one in pairs]
        state.method = f"espirit-{coils.FULL_KERNEL}, two sets"
        return torch.stack(made)

    def _sense_cg(self, state: _State) -> Tensor:
        return _cg(*self._operator(state))[:, None]

    def _grappa(self, state: _State) -> Tensor:
        problem = state.problem
        assert problem.calibration is not None
        step = round(problem.sampling.acceleration)
        made = []
        for data, counts in zip(problem.data, problem.counts, strict=True):
            images = ifft2c(grappa.fill(data, counts > 0, problem.calibration, step))
            made.append((coils.walsh(images).conj() * images).sum(0, keepdim=True))
        return torch.stack(made)

    def _fft_adaptive(self, state: _State) -> Tensor:
        assert state.maps is not None
        return (state.maps.conj() * ifft2c(state.problem.data)).sum(-3, keepdim=True)

    def _fft_rss(self, state: _State) -> Tensor:
        return ifft2c(state.problem.data)

    def _filled(self, images: Tensor, state: _State) -> Tensor:
        """Partial Fourier and asymmetric echoes filled in where that can be done."""
        try:
            return partial.filled(images, state.problem.region)
        except FAILURES as error:
            state.notes.append(f"partial Fourier: filled with zeros ({error})")
            return images

    def _residual(self, state: _State, images: Tensor) -> float:
        """Part of the measurement that ``images`` do not explain; nan where there are no maps to tell."""
        if state.maps is None or images.shape[1] != 1:
            return float("nan")
        operator, y = self._operator(state)
        left = torch.linalg.vector_norm(operator.forward(images[:, 0]) - y)
        return float(left / torch.linalg.vector_norm(y).clamp(min=torch.finfo(torch.float32).tiny))


def _cg(operator: Sense, y: Tensor) -> Tensor:
    damping = CG_DAMPING * float((operator.mask**2).max())
    return conjugate_gradient(operator.normal, operator.adjoint(y), iterations=CG_ITERATIONS, damping=damping)
