"""Evaluate: ``python -m models.cardiac.evaluate --data DIR`` writes ``evaluation.json`` beside this file.

Simulated stacks of frozen seeds, and the real patients of ``--data`` left out one at a time, "simulation only" beside
"simulation + CC0"; the weights come from ``--work``, where ``train`` and ``tune`` left them. Bars: ml-mr section 3.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
import SimpleITK as sitk
import torch

from models.cardiac import bundle, cycle, indices, scd, shapes, study, wrong
from models.cardiac.segment import Segmenter
from models.cardiac.simulate import TEST_SEED, simulate_stack
from models.cardiac.train import MEMBERS, SHIPPED

#: What must be reached (issue 4 and ml-mr section 3).
BARS: Final = {
    "lv_dice_ed": 0.92,
    "lv_dice_es": 0.90,
    "myo_dice_ed": 0.78,
    "ef_error_points": 5.0,
    "edv_bias_percent": 8.0,
    "ed_frame_error": 1.0,
    "es_frame_error": 2.0,
    "violations_delivered": 0.0,
    "seconds_12x25": 60.0,
}


#: What an evaluation consists of.
PARTS: Final = ("real", "simulated", "refused", "speed")


def dice(a: shapes.Mask, b: shapes.Mask) -> float:
    """Overlap 2 |a b| / (|a| + |b|); 1 where both are empty."""
    both = int(a.sum() + b.sum())
    return 2.0 * float((a & b).sum()) / both if both else 1.0


def surface_distances(a: shapes.Mask, b: shapes.Mask, pixel_mm: float) -> tuple[float, float]:
    """Hausdorff distance and its 95th percentile between the outlines of two masks of one slice [mm]."""
    if not a.any() or not b.any():
        return float("nan"), float("nan")
    away = []
    for one, other in ((a, b), (b, a)):
        edges = [m & ~np.asarray(sitk.GetArrayFromImage(sitk.BinaryErode(_itk(m))), bool) for m in (one, other)]
        field = sitk.SignedMaurerDistanceMap(_itk(edges[1]), False, False, False)
        away.append(np.abs(sitk.GetArrayFromImage(field))[edges[0]] * pixel_mm)
    return float(max(part.max() for part in away)), float(np.percentile(np.concatenate(away), 95))


def _itk(mask: shapes.Mask) -> sitk.Image:
    return sitk.GetImageFromArray(mask.astype(np.uint8))


def segmenter(work: Path, members: Iterable[str], file: str) -> Segmenter:
    """The members with the weights of ``file`` in their folders."""
    views = []
    for name in members:
        member = MEMBERS[name]
        state = torch.load(work / name / file, map_location="cpu", weights_only=True)
        net = bundle.loaded({"widths": member.widths}, state.get("average", state), torch.device("cpu"))
        for view in bundle.views_of(member.pixels, member.pixel_mm):
            views.append(bundle.View(net=net, pixels=int(view["pixels"]), pixel_mm=view["pixel_mm"]))
    return Segmenter(tuple(views), torch.device("cpu"))


def patient_figures(patient: scd.Patient, network: Segmenter) -> dict[str, Any]:
    """One real patient; Dice and distances are means over the slices and phases that the expert drew on."""
    spacing = (patient.pixel_mm, patient.pixel_mm)
    seen = network.look(patient.images, spacing)
    positions = np.arange(patient.images.shape[1]) * patient.step_mm
    out: dict[str, Any] = {"name": patient.name}
    for name, phase in (("ed", patient.ed), ("es", patient.es)):
        p, corner = seen.native(phase)
        labels = seen.whole(np.stack([shapes.clean(one) for one in p.argmax(1).numpy().astype(np.uint8)]), corner)
        drawn = patient.at(phase)
        lv = [(labels[k] == shapes.LV, one.inner > 0.5) for k, one in drawn.items()]
        far = np.array([surface_distances(a, b, patient.pixel_mm) for a, b in lv])
        out[f"lv_dice_{name}"] = _mean(dice(a, b) for a, b in lv)
        far = far[~np.isnan(far[:, 0])]
        if len(far):
            out[f"lv_hd_{name}"], out[f"lv_hd95_{name}"] = (round(float(v), 2) for v in far.mean(0))
        ringed = {k: one for k, one in drawn.items() if one.outer is not None}
        if ringed:
            pairs = [(labels[k] == shapes.MYO, (o.outer > 0.5) & (o.inner <= 0.5)) for k, o in ringed.items()]
            out[f"myo_dice_{name}"] = _mean(dice(a, b) for a, b in pairs)
        expert = sum(float(one.inner.sum()) for one in drawn.values()) * patient.pixel_mm**2 * patient.step_mm / 1000.0
        out[f"lv_volume_expert_{name}"] = round(expert, 1)
        ring = sum(float((o.outer - o.inner).clip(0).sum()) for o in ringed.values() if o.outer is not None)
        if ringed:
            mass = indices.DENSITY * ring * patient.pixel_mm**2 * patient.step_mm / 1000.0
            out["lv_mass_expert"] = round(mass, 1)
    try:
        found = study.judge(seen, positions)
    except cycle.UnsuitableStackError as error:
        return out | {"refused": str(error)}
    return out | _study_figures(found) | _frames(found, patient.ed, patient.es, len(patient.images))


def _study_figures(found: study.Study) -> dict[str, Any]:
    f = found.function
    values = {name: round(float(getattr(f, name)), 1) for name in found.intervals}
    phases = (found.ed, found.es)
    return values | {
        "lv_ef_interval": [round(v, 1) for v in found.intervals["lv_ef"]],
        "lv_edv_interval": [round(v, 1) for v in found.intervals["lv_edv"]],
        "slices_counted": [int(one.counted.sum()) for one in phases],
        "slices_violating_as_seen": sum(bool(v) for one in phases for v in one.before.values()),
        "slices_violating_after_cleaning": sum(bool(v) for one in phases for v in one.cleaned.values()),
        "slices_fitted": sum(len(one.fitted) for one in phases),
        "slices_withheld": sum(len(one.withheld) for one in phases),
        "slices_violating_delivered": sum(bool(v) for one in phases for v in one.after.values()),
        "doubts": list(found.doubts),
    }


def _frames(found: study.Study, ed: int, es: int, phases: int) -> dict[str, int]:
    """Frame errors around the cycle."""
    off = [abs(a - b) for a, b in ((found.ed.phase, ed), (found.es.phase, es))]
    return {"ed_frame_error": min(off[0], phases - off[0]), "es_frame_error": min(off[1], phases - off[1])}


def simulated_figures(seed: int, network: Segmenter) -> dict[str, Any]:
    """One simulated stack: Dice over whole stacks at the true phases, indices against the labels' own."""
    stack = simulate_stack(seed)
    seen = network.look(stack.images, (stack.pixel_mm, stack.pixel_mm))
    positions = np.arange(stack.images.shape[1]) * stack.step_mm
    es = int(stack.times.argmax())
    out: dict[str, Any] = {"seed": seed, "pathology": stack.scene.heart.pathology}
    volumes = []
    for name, phase in (("ed", 0), ("es", es)):
        p, corner = seen.native(phase)
        labels = seen.whole(np.stack([shapes.clean(one) for one in p.argmax(1).numpy().astype(np.uint8)]), corner)
        truth = stack.labels[phase]
        for c, word in ((shapes.RV, "rv"), (shapes.MYO, "myo"), (shapes.LV, "lv")):
            out[f"{word}_dice_{name}"] = round(dice(labels == c, truth == c), 4)
        volumes.append(indices.volumes_ml(truth, stack.pixel_mm**2, indices.widths(positions)))
    truth_function = indices.function(*volumes)
    out |= {f"{name}_true": round(getattr(truth_function, name), 1) for name in ("lv_edv", "lv_esv", "lv_ef", "rv_ef")}
    out["lv_mass_true"] = round(truth_function.lv_mass, 1)
    try:
        found = study.judge(seen, positions)
    except cycle.UnsuitableStackError as error:
        return out | {"refused": str(error)}
    return out | _study_figures(found) | _frames(found, 0, es, len(stack.images))


def _mean(values: Iterable[float]) -> float:
    return round(float(np.mean(list(values))), 4)


def summary(rows: list[dict[str, Any]], truth: str) -> dict[str, Any]:
    """Means over patients or stacks; ``truth`` names the columns of true volumes: "expert" or "true"."""
    kept = [row for row in rows if "refused" not in row]
    out: dict[str, Any] = {"n": len(rows), "refused": len(rows) - len(kept)}
    for key in ("lv_dice_ed", "lv_dice_es", "myo_dice_ed", "myo_dice_es", "rv_dice_ed", "rv_dice_es"):
        have = [row[key] for row in rows if key in row]
        if have:
            out[key] = _mean(have)
    for key in ("lv_hd_ed", "lv_hd_es", "lv_hd95_ed", "lv_hd95_es"):
        have = [row[key] for row in rows if key in row]
        if have:
            out[key] = round(float(np.mean(have)), 2)
    if not kept:
        return out
    pairs = [_truth(row, truth) for row in kept]
    edv, ef = (
        np.array([(row[name], pair[name]) for row, pair in zip(kept, pairs, strict=True)])
        for name in ("lv_edv", "lv_ef")
    )
    out["edv_bias_percent"] = round(100.0 * float(np.mean(edv[:, 0] / edv[:, 1] - 1.0)), 1)
    out["ef_error_points"] = round(float(np.mean(np.abs(ef[:, 0] - ef[:, 1]))), 2)
    out["ef_bias_points"] = round(float(np.mean(ef[:, 0] - ef[:, 1])), 2)
    inside = [
        row["lv_ef_interval"][0] <= pair["lv_ef"] <= row["lv_ef_interval"][1]
        for row, pair in zip(kept, pairs, strict=True)
    ]
    out["ef_in_interval"] = f"{sum(inside)} of {len(kept)}"
    mass = [100.0 * (row["lv_mass"] / row[f"lv_mass_{truth}"] - 1.0) for row in kept if f"lv_mass_{truth}" in row]
    out["mass_bias_percent"] = round(float(np.mean(mass)), 1)
    for key in ("ed_frame_error", "es_frame_error"):
        out[key] = max(row[key] for row in kept)
    counted = sum(sum(row["slices_counted"]) for row in kept)
    for key in ("as_seen", "after_cleaning", "delivered"):
        out[f"violations_{key}"] = round(sum(row[f"slices_violating_{key}"] for row in kept) / max(1, counted), 4)
    out["slices_withheld"] = sum(row["slices_withheld"] for row in kept)
    out["held_for_review"] = sum(bool(row["doubts"]) for row in kept)
    return out


def _truth(row: dict[str, Any], word: str) -> dict[str, float]:
    if word == "true":
        return {"lv_edv": row["lv_edv_true"], "lv_ef": row["lv_ef_true"]}
    edv, esv = row["lv_volume_expert_ed"], row["lv_volume_expert_es"]
    return {"lv_edv": edv, "lv_ef": 100.0 * (edv - esv) / edv}


def speed(work: Path, members: list[str], threads: int) -> dict[str, float]:
    """Seconds and peak memory of 12 slices, 25 phases and 256 x 256 pixels, as far as the indices.

    In a process of its own, whose peak holds the interpreter, torch and the weights, and nothing that ran before.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
        return alone.submit(_speed, work, members, threads).result()


def _speed(work: Path, members: list[str], threads: int) -> dict[str, float]:
    torch.set_num_threads(threads)
    network = segmenter(work, members, "tuned-none.pt")
    stack = simulate_stack(TEST_SEED - 1, phases=25, step_mm=8.0)
    around = (256 - stack.images.shape[-1]) // 2
    images = np.pad(stack.images, ((0, 0), (0, 0), (around, around), (around, around)))
    images = images[:, np.linspace(0, images.shape[1] - 1, 12).round().astype(int)]
    wall, before = time.monotonic(), time.process_time()
    seen = network.look(images, (stack.pixel_mm, stack.pixel_mm))
    study.judge(seen, np.arange(12) * 8.0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0  # Linux counts it in KiB
    return {
        "wall_s": round(time.monotonic() - wall, 1),
        "cpu_s": round(time.process_time() - before, 1),
        "peak_mib": round(peak),
        "threads": threads,
    }


def refusals(network: Segmenter, count: int) -> dict[str, str]:
    """How many of ``count`` stacks of each wrong kind are refused."""
    out = {}
    for kind in wrong.KINDS:
        refused = 0
        for seed in range(count):
            images = wrong.draw(kind, seed)
            try:
                study.measure(network, images, (wrong.PIXEL_MM, wrong.PIXEL_MM), 8.0 * np.arange(images.shape[1]))
            except cycle.UnsuitableStackError:
                refused += 1
        out[kind] = f"{refused} of {count}"
    return out


def real_rows(data: Path, work: Path, members: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Real patients by networks that saw simulations only, and by networks tuned without the patient."""
    rows: dict[str, list[dict[str, Any]]] = {"simulation_only": [], "leave_one_out": []}
    alone = segmenter(work, members, "simulation.pt")
    for folder in scd.patients(data):
        patient, left_out = scd.read(folder), f"tuned-{folder.name}.pt"
        rows["simulation_only"].append(patient_figures(patient, alone))
        if not all((work / name / left_out).exists() for name in members):
            print(f"{patient.name}: no member was tuned without this patient", flush=True)
            continue
        rows["leave_one_out"].append(patient_figures(patient, segmenter(work, members, left_out)))
        print(json.dumps(rows["leave_one_out"][-1]), flush=True)
    return rows


def main() -> None:
    """Read the command line and evaluate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of patients as models.cardiac.scd reads them")
    parser.add_argument("--work", type=Path, default=Path("build/cardiac"))
    parser.add_argument("--members", nargs="+", choices=sorted(MEMBERS), default=list(SHIPPED))
    parser.add_argument("--stacks", type=int, default=20, help="simulated stacks")
    parser.add_argument("--wrong", type=int, default=4, help="stacks of each kind that must be refused")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="others stay as they were")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("evaluation.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    report |= {"bars": BARS, "members": options.members}
    rows: dict[str, list[dict[str, Any]]] = report.pop("rows", {})
    shipped = segmenter(options.work, options.members, "tuned-none.pt")
    for part in options.parts:
        if part == "real":
            rows |= real_rows(options.data, options.work, options.members)
        elif part == "simulated":
            rows[part] = [simulated_figures(TEST_SEED + k, shipped) for k in range(options.stacks)]
        elif part == "refused":
            report[part] = refusals(shipped, options.wrong)
        else:
            report["speed_12x25"] = speed(options.work, options.members, options.threads)
        report |= {name: summary(some, "true" if name == "simulated" else "expert") for name, some in rows.items()}
        options.out.write_text(json.dumps(report | {"rows": rows}, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
