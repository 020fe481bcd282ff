"""Write what was measured into the card: ``python -m models.hemorrhage.card`` after ``evaluate``.

Everything between the two marks of CARD.md is replaced by tables made of ``evaluation.json``; words stay.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from models.hemorrhage.bars import SHORT

BEGIN: Final = "<!-- measured: written by models.hemorrhage.card -->\n"
END: Final = "<!-- end of what was measured -->\n"


def number(value: object, digits: int = 2) -> str:
    """A figure for a table; a dash where there is none."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return f"{value:.{digits}f}"
    return "–" if value is None else str(value)


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A markdown table."""
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    lines += ["| " + " | ".join(number(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def bars(found: dict[str, Any]) -> str:
    """Bars of stage 1."""
    rows = [(r["what"], number(r["measured"], 3), r["bar"], "met" if r["met"] else "**missed**") for r in found["bars"]]
    return "### Against the bars of stage 1\n\n" + table(("what", "measured", "bar", ""), rows)


def synthetic(made: dict[str, Any], about: dict[str, Any]) -> str:
    """Held-out simulated heads."""
    low, high = about["synthetic_seeds"]
    types = [
        (
            SHORT[name],
            made["dice_types"][name]["studies"],
            made["dice_types"][name]["median"],
            made["auc_types"][name],
            made["subtype_accuracy_types"][name],
        )
        for name in SHORT
    ]
    value, least, most = made["auc"]
    share = {point: made["sensitivity"][point] for point in made["sensitivity"]}
    lines = [
        f"### Held-out simulated heads\n\nSeeds {low}-{high}, simulator version {about['simulator_version']}: "
        f"{made['positive']} studies with at least 1 mL of visible blood, {made['negative']} without any; studies "
        f"between count neither way. Study AUC {value:.3f} (95 % interval {least:.3f}-{most:.3f}). "
        + ", ".join(
            f"{point}: sensitivity {number(share[point])}, specificity {number(made['specificity'][point])}"
            for point in share
        )
        + f". Found {number(made['lesions_found'])} of {made['lesions']} lesions of at least 0.2 mL; false positives "
        f"on the negatives: mean {number(made['false_ml_negative']['mean'])} mL, most "
        f"{number(made['false_ml_negative']['most'])} mL, {number(made['false_ml_negative']['clean'])} of them clean. "
        f"Midline shift was measured in {number(made['midline_measured'])} of the studies.\n",
        table(("type", "studies >= 1 mL", "Dice, median", "study AUC", "right type, of those found"), types),
    ]
    return "\n".join(lines)


def painted(found: dict[str, Any]) -> str:
    """Bleeds in the real head: ours, the threshold, blast-ct."""
    ours = found["summary"]["painted"]
    keys = ("cases", "truth_ml", "found", "flagged", "component_dice", "dice", "right_type", "false_ml")
    heads = (
        "painted bleed",
        "cases",
        "mL",
        "found",
        "flagged",
        "component Dice",
        "whole Dice",
        "right type",
        "false mL",
    )
    first = table(heads, [(name, *(row[k] for k in keys)) for name, row in ours.items()])
    others = [{row["name"]: row for row in found.get(key, ())} for key in ("threshold_real", "blastct_real")]
    rows = []
    for name in (row["name"] for row in found.get("blastct_real", ()) if row["truth_ml"]):
        mine = next((row for row in found["painted"] if row["name"] == name), {})
        rows.append([name, mine.get("truth_ml")])
        for method in (mine, *(other.get(name, {}) for other in others)):
            rows[-1] += [method.get("component_dice"), method.get("dice")]
    second = table(
        (
            "the same case",
            "mL",
            "ours: component",
            "whole",
            "threshold: component",
            "whole",
            "blast-ct: component",
            "near the blood",
        ),
        rows,
    )
    return (
        "### Our own bleeds in the real head\n\nMedians over seeds; what is marked elsewhere in the head counts as "
        "false in every case.\n\n"
        + first
        + "\nBeside others, Dice. blast-ct: one model of its twelve, asked only within 12 mm of the blood, so that its "
        "whole Dice is spared false positives elsewhere.\n\n" + second
    )


def negatives(found: dict[str, Any]) -> str:
    """Series without blood."""
    rows = [
        (name, row["found_ml"], row["false_components"], row["score"], row["flagged"]["triage"], row["note"] or "")
        for name, row in found["summary"]["negatives"].items()
    ]
    threshold, blast = (found["summary"].get(key, {}) for key in ("threshold_real", "blastct_real"))
    beside = [
        f"{name} {number(part['real negative']['false_ml'])} mL"
        for name, part in (("the threshold", threshold), ("blast-ct (one model)", blast))
        if "real negative" in part
    ]
    return (
        "### Series without blood\n\nThe detector alone, without the pipeline's gate; the gate refuses phantom and "
        "abdomen before the detector sees them.\n\n"
        + table(("series", "false mL", "components", "score", "flagged at triage", "its own doubts"), rows)
        + (f"\nOn the real head as it is, false positive: {'; '.join(beside)}.\n" if beside else "")
    )


def judge(made: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    """blast-ct on simulated heads."""
    outside = [row for row in rows if row["kind"] in ("epidural", "subdural")]
    heads = ("epidural or subdural blood", "mL", "brighter than brain by [HU]", "Dice")
    by_contrast = sorted(outside, key=lambda row: -float(row["contrast_hu"]))
    keys = ("name", "truth_ml", "contrast_hu", "extra_axial_dice")
    return (
        f"### Does the simulated blood look real?\n\nblast-ct, trained on real scans, on {made['heads'][0]} simulated "
        f"heads with blood (near the blood) and {made['heads'][1]} without (whole skull), one model: median Dice "
        f"{number(made['inside_dice'])} for intraparenchymal and intraventricular blood "
        f"({made['inside_heads']} heads), "
        f"{number(made['extra_axial_dice'])} for epidural and subdural ({made['extra_axial_heads']}), "
        f"{number(made['subarachnoid_dice'])} for subarachnoid ({made['subarachnoid_heads']}; it has no class for it); "
        f"on negatives {', '.join(f'{ml:.2f} mL' for ml in made['false_ml_negative']) or 'it was not asked'}.\n\n"
        + table(heads, [[row[key] for key in keys] for row in by_contrast])
    )


def render(found: dict[str, Any]) -> str:
    """The measured part of the card."""
    made, parts = found["summary"], [bars(found)]
    if "synthetic" in made:
        parts.append(synthetic(made["synthetic"], found["about"]))
    if "painted" in made:
        parts.append(painted(found))
    if "negatives" in made:
        parts.append(negatives(found))
    if "judge" in made:
        parts.append(judge(made["judge"], found["blastct_synthetic"]))
    return "\n".join(parts)


def main() -> None:
    """Replace the measured part of the card."""
    folder = Path(__file__).parent
    found = json.loads((folder / "evaluation.json").read_text())
    card = folder / "CARD.md"
    before, rest = card.read_text().split(BEGIN)
    card.write_text(before + BEGIN + "\n" + render(found) + "\n" + END + rest.split(END)[1])
    print(f"wrote {card}")


if __name__ == "__main__":
    main()
