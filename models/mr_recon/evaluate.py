"""Measure the learned reconstruction beside others: ``python -m models.mr_recon.evaluate --patient DIR --raw DIR``.

``--patient`` is a folder of the Sunnybrook Cardiac Data (see ``models.cardiac.scd``) that nothing was trained on,
``--raw`` holds real k-space and the weights of the published cascade by the names in ``cases`` and below. What other
methods gave is kept in ``--work`` by case, so that new weights cost only their own time. Writes ``evaluation.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from models.mr_recon import bars, baselines, bundle, cases, checks, compress, metrics
from models.mr_recon import coils as coil_maps
from models.mr_recon.baseline_cascade import Cascade
from models.mr_recon.cases import Case

CASCADE: Final = "weights-mr-cascade/d5_c5.npz"
#: How many frames of each kind the methods get; what is not named gets all of them.
MOST: Final = {"cs-wavelet": 12, "cs-tv": 4, "bart-l1": 12, "sigpy-l1": 4, "grappa": 12, "d5_c5": 12, "dictionary": 1}
#: Kinds that dictionary learning, which takes minutes, is asked about.
DICTIONARY: Final = ("cine, 1 coil, variable R=4", "cine, 8 coils, variable R=4")
#: Widths of the calibration block and first lines that the gate is tried with.
GATE_WIDTHS: Final = (12, 16, 24, 28, 32)
#: From more coils than this a real phantom is tried at R=4.
MANY: Final = 4

Row = dict[str, Any]


class Kept:
    """What others gave, by case and method, in one file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows: dict[str, Row] = json.loads(file.read_text()) if file.exists() else {}

    def ask(self, case: Case, method: str, image: Callable[[], Tensor]) -> Row:
        """The figures of ``image()``, computed once."""
        key = f"{case.kind} | {case.number} | {method}"
        if key not in self.rows:
            begun = time.process_time()
            made = image()
            assert case.reference is not None
            self.rows[key] = metrics.figures(made, case.reference) | {"seconds": time.process_time() - begun}
            self.write()
        return self.rows[key]

    def outcome(self, case: Case, method: str) -> Row | None:
        """One of ``baselines``; none where it cannot be used."""
        key = f"{case.kind} | {case.number} | {method}"
        if key not in self.rows:
            try:
                made = baselines.reconstruct(method, case.problem)
            except baselines.NotApplicable:
                return None
            assert case.reference is not None
            self.rows[key] = metrics.figures(made.image, case.reference) | {"seconds": made.cpu_s}
            self.write()
        return self.rows[key]

    def write(self) -> None:
        """Keep all rows."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.with_suffix(".new").write_text(json.dumps(self.rows, indent=0))
        self.file.with_suffix(".new").replace(self.file)


def learned_row(case: Case, learned: bundle.Learned) -> Row:
    """Figures of ours, and what the gate says."""
    problem, begun = case.problem, time.process_time()
    image = learned.reconstruct(problem.maps, problem.kspace, problem.mask)
    seconds = time.process_time() - begun
    judged = checks.judge(image, baselines.cg_sense(problem), problem.operator, problem.kspace, problem.noise)
    by_checks = checks.refusal(judged)
    refused = learned.domain.refusal(case.facts) or by_checks
    row: Row = {"seconds": seconds, "refused": refused, "refused_by_checks": by_checks}
    row["marked"] = not refused and any(not one.passed for one in judged)
    return row | (metrics.figures(image, case.reference) if case.reference is not None else {})


def rows_of(
    group: Iterable[Case], learned: bundle.Learned | None, kept: Kept, cascade: Cascade | None
) -> Iterator[tuple[str, int, Row]]:
    """(method, number of the case, figures)."""
    for place, case in enumerate(group):
        for method in baselines.METHODS:
            if place >= MOST.get(method, cases.FRAMES):
                continue
            if method == "dictionary" and case.kind not in DICTIONARY:
                continue
            row = kept.outcome(case, method)
            if row is not None:
                yield method, case.number, row
        if cascade is not None and case.facts.coils == 1 and place < MOST["d5_c5"]:
            network, problem = cascade, case.problem
            yield (
                "d5_c5",
                case.number,
                kept.ask(case, "d5_c5", lambda n=network, p=problem: n(p.operator, p.kspace)),  # type: ignore[misc]
            )
        if learned is not None:
            yield "learned", case.number, learned_row(case, learned)


def summary(rows: Iterable[tuple[str, int, Row]]) -> dict[str, Row]:
    """Mean and worst by method; the gain over every other method on the frames that both saw."""
    found: dict[str, dict[int, Row]] = {}
    for method, number, row in rows:
        found.setdefault(method, {})[number] = row
    made: dict[str, Row] = {}
    for method, by_number in found.items():
        values = list(by_number.values())
        one: Row = {"n": len(values)}
        for name in ("psnr", "ssim", "nmse", "hfen", "seconds"):
            one[name] = round(float(np.mean([row[name] for row in values])), 5)
        one["psnr_worst"] = round(min(row["psnr"] for row in values), 3)
        if method == "learned":
            reasons = [row["refused"] for row in values if row["refused"]]
            one |= {"refused": len(reasons), "reasons": sorted(set(reasons))[:3]}
            one["marked"] = sum(row["marked"] for row in values)
        elif "learned" in found:
            both = [found["learned"][k]["psnr"] - row["psnr"] for k, row in by_number.items()]
            one["learned_gain"] = round(float(np.mean(both)), 3)
        made[method] = one
    return made


def gate(full: Tensor, kind: str, learned: bundle.Learned, work: Path) -> list[Row]:
    """Uniform R=4 of complete data from every first line and several calibration widths, as the node would do it."""
    found = []
    for width in GATE_WIDTHS:
        for offset in range(4):
            whole = cases.remembered(
                work, f"gate {kind} {width} {offset}", partial(cases.raw, full, kind, 4, width, offset)
            )
            case = cases.remembered(work, f"gate {kind} {width} {offset} compressed", partial(compressed, whole))
            row = learned_row(case, learned)
            linear = metrics.figures(baselines.cg_sense(whole.problem), whole.reference)["psnr"]  # type: ignore[arg-type]
            good = row["psnr"] >= linear
            found.append(
                {
                    "lines": width,
                    "offset": offset,
                    "cg-sense": round(linear, 3),
                    "learned": round(row["psnr"], 3),
                    "refused": row["refused"],
                    "refused_by_checks": row["refused_by_checks"],
                    "passes": bool(good or row["refused"]),
                }
            )
    return found


def compressed(case: Case) -> Case:
    """The case with the node's number of virtual coils."""
    problem = case.problem
    if problem.kspace.shape[0] > compress.VIRTUAL:
        mix = compress.matrix(problem.acs)
        acs = compress.apply(mix, problem.acs)
        maps = coil_maps.choose(acs, (problem.kspace.shape[-2], problem.kspace.shape[-1])).maps
        problem = replace(problem, kspace=compress.apply(mix, problem.kspace), maps=maps, acs=acs)
    facts = cases.facts_of(problem, case.facts.pattern, case.facts.acceleration)
    return replace(case, problem=problem, facts=facts)


def agreement(case: Case, learned: bundle.Learned) -> dict[str, Row]:
    """How near everyone comes to BART, where nobody knows the truth."""
    truth = baselines.reconstruct("bart-l1", case.problem).image
    made = {name: baselines.reconstruct(name, case.problem).image for name in ("zero-filled", "cg-sense", "cs-wavelet")}
    made["learned"] = learned.reconstruct(case.problem.maps, case.problem.kspace, case.problem.mask)
    rows = {name: metrics.figures(image, truth) for name, image in made.items()}
    rows["learned"]["refused"] = learned.domain.refusal(case.facts)  # type: ignore[assignment]
    return rows


def jobs(options: argparse.Namespace) -> Iterator[tuple[str, Iterable[Case]]]:
    """Every kind of measurement by name, those that bars are about before the slow ones of many coils."""
    frames, work = cases.cine_frames(options.patient), options.work / "cases"
    kinds = [(coils, *pattern) for coils in cases.COILS for pattern in cases.PATTERNS]
    for coils, pattern, acceleration, width in sorted(
        kinds, key=lambda kind: (kind[0] > compress.VIRTUAL, kind[1] == "uniform")
    ):
        group = cases.cine(frames, work, coils, pattern, acceleration, width)
        yield cases.cine_kind(coils, pattern, acceleration), group
    for kind, (path, oversampling) in cases.RAW.items():
        full = cases.read_twix(options.raw / path, oversampling)
        for acceleration in (4, 2) if full.shape[0] > MANY else (2,):
            group = (
                cases.remembered(
                    work,
                    f"{kind} {acceleration} {offset}",
                    partial(cases.raw, full, kind, acceleration, 16, offset),
                )
                for offset in range(acceleration)
            )
            yield f"{kind}, uniform R={acceleration}", group


def evaluate(options: argparse.Namespace) -> None:
    """Write what ``evaluation.json`` holds, again after every kind of measurement."""
    present = (options.model / bundle.MANIFEST).exists()
    learned = bundle.load(options.model, torch.device("cpu")) if present else None
    kept, file = Kept(options.work / "baselines.json"), options.raw / CASCADE
    cascade = Cascade(file) if file.exists() else None
    found: dict[str, Any] = {"about": about(learned, options.patient.name), "groups": {}, "gate": {}, "brain": {}}
    if learned is not None:
        for kind, (path, oversampling) in cases.RAW.items():
            full = cases.read_twix(options.raw / path, oversampling)
            if full.shape[0] > MANY:
                found["gate"][kind] = gate(full, kind, learned, options.work / "cases")
    for name, group in jobs(options):
        groups = found["groups"]
        groups[name] = summary(rows_of(group, learned, kept, cascade))
        print(name, {k: (v["n"], round(v["psnr"], 2)) for k, v in groups[name].items()}, flush=True)
        if learned is not None:
            found["bars"] = bars.judge(found)
            options.out.write_text(json.dumps(found, indent=1) + "\n")
    if learned is not None:
        found["brain"] = agreement(cases.brain(options.raw / cases.BRAIN), learned)
        options.out.write_text(json.dumps(found, indent=1) + "\n")


def about(learned: bundle.Learned | None, patient: str) -> Row:
    """What was measured with what."""
    weights: Row = {}
    if learned is not None:
        files = {name: one["sha256"] for name, one in learned.manifest["files"].items()}
        weights = {"name": learned.name, "version": learned.version, "sha256": files}
    return weights | {"torch": torch.__version__, "snr": cases.SNR, "seed": cases.SEED, "patient": patient}


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patient", type=Path, required=True, help="folder of the test patient")
    parser.add_argument("--raw", type=Path, required=True, help="folder of real k-space")
    parser.add_argument("--model", type=Path, default=Path(__file__).parent, help="folder of the weights")
    parser.add_argument("--work", type=Path, default=Path("build/mr_recon"), help="what other methods gave")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "evaluation.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    evaluate(options)


if __name__ == "__main__":
    main()
