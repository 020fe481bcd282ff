"""The bars of stage 1 (ml-ct 4.2) beside what `evaluate` measured: summaries per set, and met or missed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from models.hemorrhage import metrics
from models.hemorrhage.detect import CLASSES

Rows = Sequence[dict[str, Any]]

#: A study, or a type within it, counts as positive from this visible volume on [mL] (ml-ct 4.2).
VISIBLE_ML: Final = 1.0
#: Overlap from which on a painted bleed counts as found.
FOUND_DICE: Final = 0.1
#: Least median Dice per type, and lesion subtype accuracy (ml-ct 4.2, stage 1).
DICE_BARS: Final = {
    "epidural": 0.75,
    "subdural": 0.70,
    "subarachnoid": 0.55,
    "intraparenchymal": 0.85,
    "intraventricular": 0.80,
}
SHORT: Final = dict(zip(CLASSES, ("EDH", "SDH", "SAH", "IPH", "IVH"), strict=True))


def median(values: Sequence[float | None]) -> float | None:
    """The median of what is finite; None of nothing."""
    finite = [v for v in values if v is not None and np.isfinite(v)]
    return float(np.median(finite)) if finite else None


def share(values: Sequence[bool]) -> float | None:
    """How many are true; None of nothing."""
    return float(np.mean(values)) if values else None


def synthetic(rows: Rows) -> dict[str, Any]:
    """Held-out simulated studies."""
    positive = [r for r in rows if r["truth_ml"] >= VISIBLE_ML]
    negative = [r for r in rows if r["negative"]]
    scored = [*positive, *negative]
    scores = np.array([r["score"] for r in scored])
    lesions = [lesion for r in positive for lesion in r["lesions"]]
    found = [lesion for lesion in lesions if lesion[2]]
    shifts = [abs(r["shift_mm"] - r["true_shift_mm"]) for r in scored if r["shift_mm"] is not None]
    truth_ml, found_ml = (sum(r[key] for r in positive) for key in ("truth_ml", "found_ml"))
    return {
        "positive": len(positive),
        "negative": len(negative),
        "auc": metrics.auc_interval(scores[: len(positive)], scores[len(positive) :]),
        "auc_types": {name: _type_auc(rows, name) for name in CLASSES},
        "sensitivity": {p: share([r["flagged"][p] for r in positive]) for p in ("triage", "second-read")},
        "specificity": {p: share([not r["flagged"][p] for r in negative]) for p in ("triage", "second-read")},
        "dice": median([r["dice"] for r in positive]),
        "dice_types": {name: _type_dice(rows, name) for name in CLASSES},
        "volume_similarity": median([r["volume_similarity"] for r in positive]),
        "hd95_mm": median([r["hd95_mm"] for r in positive]),
        "volume_bias": found_ml / truth_ml - 1.0 if truth_ml else None,
        "lesions": len(lesions),
        "lesions_found": len(found) / len(lesions) if lesions else None,
        "subtype_accuracy": share([lesion[0] == lesion[2] for lesion in found]),
        "subtype_accuracy_types": {
            name: share([lesion[0] == lesion[2] for lesion in found if lesion[0] == label])
            for label, name in enumerate(CLASSES, start=1)
        },
        "false_ml_negative": {
            "mean": float(np.mean([r["false_ml"] for r in negative])) if negative else None,
            "most": max((r["false_ml"] for r in negative), default=None),
            "clean": share([r["false_components"] == 0 for r in negative]),
        },
        "ece": metrics.calibration_error(scores, np.array([r["truth_ml"] > 0 for r in scored])) if scored else None,
        "midline_mae_mm": float(np.mean(shifts)) if shifts else None,
        "midline_measured": len(shifts) / len(scored) if scored else None,
        "cpu_s": median([r["cpu_s"] for r in rows]),
        "cpu_s_most": max((r["cpu_s"] for r in rows), default=None),
    }


def _type_dice(rows: Rows, name: str) -> dict[str, Any]:
    dice = [
        r["classes"][name]["dice"]
        for r in rows
        if name in r["classes"] and r["classes"][name]["truth_ml"] >= VISIBLE_ML
    ]
    return {"median": median(dice), "studies": len(dice)}


def _type_auc(rows: Rows, name: str) -> float:
    scores: dict[bool, list[float]] = {True: [], False: []}
    for r in rows:
        truth = r["classes"].get(name, {}).get("truth_ml", 0.0)
        if truth >= VISIBLE_ML or truth == 0.0:
            scores[truth > 0.0].append(r["scores"][name])
    return metrics.auc(np.array(scores[True]), np.array(scores[False]))


def painted(rows: Rows) -> dict[str, Any]:
    """Bleeds painted into the real head, by kind and size."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["name"].split(",")[0], []).append(row)
        groups.setdefault(row["name"].split(" ")[0], []).append(row)
    return {
        name: {
            "cases": len(of),
            "truth_ml": median([r["truth_ml"] for r in of]),
            "found": share([r["component_dice"] > FOUND_DICE for r in of]),
            "flagged": share([r["flagged"]["triage"] for r in of]),
            "dice": median([r["dice"] for r in of]),
            "component_dice": median([r["component_dice"] for r in of]),
            "volume_similarity": median([r["volume_similarity"] for r in of]),
            "right_type": share([a == b for r in of for a, _ml, b in r["lesions"] if b]),
            "false_ml": median([r["false_ml"] for r in of]),
        }
        for name, of in groups.items()
    }


def judge(rows: Rows) -> dict[str, Any]:
    """blast-ct on simulated heads: does a network trained on real scans take our blood for blood."""
    positive, negative = [r for r in rows if r["kind"]], [r for r in rows if not r["kind"]]
    inside = [r["inside_dice"] for r in positive if r["kind"] in CLASSES[3:]]
    outside = [r["extra_axial_dice"] for r in positive if r["kind"] in CLASSES[:2]]
    thin = [r["dice"] for r in positive if r["kind"] == CLASSES[2]]
    return {
        "heads": [len(positive), len(negative)],
        "inside_dice": median(inside),
        "inside_heads": len(inside),
        "extra_axial_dice": median(outside),
        "extra_axial_heads": len(outside),
        "subarachnoid_dice": median(thin),
        "subarachnoid_heads": len(thin),
        "dice": median([r["dice"] for r in positive]),
        "false_ml_negative": [round(r["found_ml"], 2) for r in negative],
    }


def others(rows: Rows) -> dict[str, Any]:
    """Another method on painted heads, by kind, and its false positives."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        key = row["name"].split(" ")[0] if row["group"] == "painted" else row["group"]
        kinds.setdefault(key, []).append(row)
    return {
        key: {
            "cases": len(of),
            "dice": median([r["dice"] for r in of]) if any(r["truth_ml"] for r in of) else None,
            "component_dice": median([r["component_dice"] for r in of]) if any(r["truth_ml"] for r in of) else None,
            "false_ml": median([r["false_ml"] for r in of]),
        }
        for key, of in kinds.items()
    }


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """Every set's summary, as far as it was measured."""
    parts: dict[str, tuple[str, Callable[[Rows], dict[str, Any]]]] = {
        "synthetic": ("synthetic", synthetic),
        "painted": ("painted", painted),
        "threshold_real": ("threshold_real", others),
        "threshold_synthetic": ("threshold_synthetic", others),
        "blastct_real": ("blastct_real", others),
        "judge": ("blastct_synthetic", judge),
    }
    made = {name: make(found[key]) for name, (key, make) in parts.items() if found.get(key)}
    negatives: dict[str, Any] = {}
    for row in found.get("negatives", ()):
        negatives[f"{row['group']}: {row['name']}"] = {
            key: row[key] for key in ("found_ml", "false_components", "score", "flagged", "note")
        }
    return made | ({"negatives": negatives} if negatives else {})


def table(made: dict[str, Any]) -> list[dict[str, Any]]:
    """The bars of stage 1: what, measured, bar, met."""
    rows: list[dict[str, Any]] = []

    def add(what: str, value: float | None, bar: float, least: bool = True) -> None:
        met = value is not None and np.isfinite(value) and (value >= bar if least else value <= bar)
        rows.append({"what": what, "measured": value, "bar": f"{'>=' if least else '<='} {bar:g}", "met": bool(met)})

    if found := made.get("synthetic"):
        add("synthetic: study AUC, any", found["auc"][0], 0.97)
        add("synthetic: Dice any, median", found["dice"], 0.75)
        for name, bar in DICE_BARS.items():
            add(f"synthetic: Dice {SHORT[name]}, median", found["dice_types"][name]["median"], bar)
        add("synthetic: lesion subtype accuracy", found["subtype_accuracy"], 0.80)
        add("synthetic: volume similarity, median", found["volume_similarity"], 0.85)
        add("synthetic: HD95, median [mm]", found["hd95_mm"], 8.0, least=False)
        bias = found["volume_bias"]
        add("synthetic: volume bias, absolute", None if bias is None else abs(bias), 0.10, least=False)
        add("synthetic: calibration error", found["ece"], 0.05, least=False)
        add("synthetic: midline shift, mean error [mm]", found["midline_mae_mm"], 1.5, least=False)
        add("CPU seconds per study, median", found["cpu_s"], 10.0, least=False)
    for name, row in made.get("negatives", {}).items():
        if name.startswith("real negative: "):
            add("real negative head: false positive [mL]", row["found_ml"], 1.0, least=False)
        if not name.startswith("real negative, "):
            add(f"flagged at triage by the detector alone: {name}", float(row["flagged"]["triage"]), 0.0, least=False)
    if found := made.get("painted"):
        add("painted: IPH component Dice, median", found["IPH"]["component_dice"], 0.85)
        add("painted: SDH component Dice, median", found["SDH"]["component_dice"], 0.65)
        smallest = [row for name, row in found.items() if name.startswith("IPH r 5")]
        add("painted: share of small IPH found", smallest[0]["found"] if smallest else None, 1.0)
    if found := made.get("judge"):
        add("blast-ct judges the simulator: Dice IPH+IVH", found["inside_dice"], 0.85)
        add("blast-ct judges the simulator: Dice extra-axial", found["extra_axial_dice"], 0.65)
        most = max(found["false_ml_negative"], default=None)
        add("blast-ct judges the simulator: most on a negative [mL]", most, 1.0, least=False)
    return rows
