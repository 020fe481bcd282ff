"""Write what was measured into the card: ``python -m models.mr_recon.card`` after ``evaluate``.

Everything between the two marks of CARD.md is replaced by tables made of ``evaluation.json``, ``training.json`` and
``manifest.yaml``; words stay.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from models.mr_recon.bundle import MANIFEST

BEGIN: Final = "<!-- measured: written by models.mr_recon.card -->\n"
END: Final = "<!-- end of what was measured -->\n"
NAMES: Final = {
    "zero-filled": "zero-filled",
    "cg-sense": "CG-SENSE",
    "grappa": "GRAPPA (ours)",
    "cs-wavelet": "L1-wavelet (ours)",
    "cs-tv": "total variation (ours)",
    "bart-l1": "BART L1-wavelet",
    "sigpy-l1": "sigpy L1-wavelet",
    "dictionary": "dictionary learning",
    "d5_c5": "published d5_c5 cascade",
    "learned": "**learned**",
}


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A markdown table."""
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def bars(found: dict[str, Any]) -> str:
    """What had to be reached."""
    rows = [
        (one["what"], f"{one['measured']:.2f}", one["bar"], "met" if one["met"] else "**missed**")
        for one in found["bars"]
    ]
    return "### Against the bars\n\n" + table(("what", "measured", "bar", ""), rows)


def group(name: str, methods: dict[str, Any]) -> str:
    """One kind of measurement."""
    rows = []
    for method, shown in NAMES.items():
        if method not in methods:
            continue
        one = methods[method]
        gain = f"{one['learned_gain']:+.2f}" if "learned_gain" in one else ""
        rows.append(
            (
                shown,
                one["n"],
                f"{one['psnr']:.2f}",
                f"{one['psnr_worst']:.2f}",
                f"{one['ssim']:.3f}",
                f"{one['nmse']:.4f}",
                f"{one['hfen']:.3f}",
                f"{one['seconds']:.2f}",
                gain,
            )
        )
    ours = methods["learned"]
    gate = f"The gate refuses {ours['refused']} of {ours['n']}" + (
        f" ({'; '.join(ours['reasons'])})" if ours["reasons"] else ""
    )
    heads = ("method", "n", "PSNR, mean", "worst", "SSIM", "NMSE", "HFEN", "CPU s", "learned is better by")
    marked = f"; {ours['marked']} leave with the mark of a strong prior." if ours["marked"] else "."
    return f"#### {name[0].upper()}{name[1:]}\n\n" + table(heads, rows) + f"\n{gate}{marked}\n"


def gate(found: dict[str, Any]) -> str:
    """Real complete data, undersampled in many ways."""
    lines = []
    for kind, tried in found["gate"].items():
        refused = [one for one in tried if one["refused"]]
        good = [one for one in tried if not one["refused"] and one["passes"]]
        bad = [one for one in tried if not one["passes"]]
        gains = [one["learned"] - one["cg-sense"] for one in tried]
        reasons = Counter(one["refused"].split(" ")[0] for one in refused)
        lines.append(
            f"*{kind}*, uniform R=4, {len(tried)} samplings (every first line, "
            f"{', '.join(str(w) for w in sorted({one['lines'] for one in tried}))} calibration lines, coils "
            f"compressed as the node does): {len(refused)} refused, {len(good)} let through and at least as good as "
            f"CG-SENSE, {len(bad)} let through and worse. Against CG-SENSE, gate aside: {min(gains):+.2f} to "
            f"{max(gains):+.2f} dB."
            + (f" Reasons: {', '.join(f'{word} ({n})' for word, n in reasons.items())}." if reasons else "")
        )
    return "### The gate on real data\n\n" + "\n\n".join(lines) + "\n"


def brain(found: dict[str, Any]) -> str:
    """Agreement with BART."""
    rows = [
        (NAMES[name], f"{one['psnr']:.2f}", f"{one['ssim']:.3f}", one.get("refused", ""))
        for name, one in found["brain"].items()
    ]
    return (
        "### A head in vivo, 8 coils, two-dimensional undersampling\n\nNobody knows the truth: this is agreement with "
        "BART's L1-wavelet, not quality, and the gate refuses it.\n\n"
        + table(("method", "PSNR to BART", "SSIM", "gate"), rows)
    )


def domain(record: Mapping[str, Any]) -> str:
    """The trained domain."""

    def pair(values: Sequence[float]) -> str:
        return f"{values[0]:g} to {values[1]:g}"

    rows = [(f"{name} sampling: acceleration", pair(values)) for name, values in record["acceleration"].items()]
    alone = record.get("single", {})
    rows += [(f"one coil, {name} sampling: acceleration", pair(values)) for name, values in alone.items()]
    rows += [(f"{name} sampling: calibration lines", pair(v)) for name, v in record["calibration"].items()]
    rows += [(name, pair(record[name])) for name in ("coils", "rows", "columns")]
    rows.append(("partial Fourier", "yes" if record["partial_fourier"] else "refused"))
    return "### Trained domain\n\n" + table(("what", "from, to"), rows)


def training(log: dict[str, Any]) -> str:
    """How weights were made."""
    ended = "" if log["finished"] else " **The run was cut short.**"
    slabs = [f"{log['config'][name]} {name}-coil" for name in ("single", "multiple") if log["config"][name]]
    minutes = log["training_seconds"] / 60
    return (
        f"{log['steps']} steps of {' and '.join(slabs)} slabs, {minutes:.0f} minutes of clock on a crowded machine "
        f"({log['device']}, torch {log['torch']}).{ended} Data: {log['training_data']}.\n"
    )


def render(found: dict[str, Any], logs: Sequence[dict[str, Any]], manifest: Mapping[str, Any]) -> str:
    """The measured part of the card; ``logs`` of the training runs, one after the other."""
    runs = "### Training runs\n\n" + "\n".join(training(log) for log in logs)
    parts = [bars(found), domain(manifest["domain"]), runs]
    parts.append(
        "### By kind of measurement\n\nPSNR in dB of magnitudes after one least-squares scale. "
        "*n* is how many frames a method saw; gains are on the frames that both saw.\n"
    )
    parts += [group(name, methods) for name, methods in found["groups"].items()]
    return "\n".join([*parts, gate(found), brain(found)])


def main() -> None:
    """Replace the measured part of the card."""
    folder = Path(__file__).parent
    found = json.loads((folder / "evaluation.json").read_text())
    manifest = yaml.safe_load((folder / MANIFEST).read_text())
    names = [name for key, name in manifest["metrics"].items() if key.startswith("training")]
    logs = [json.loads((folder / name).read_text()) for name in names]
    card = folder / "CARD.md"
    before, rest = card.read_text().split(BEGIN)
    measured = render(found, logs, manifest)
    card.write_text(before + BEGIN + "\n" + measured + "\n" + END + rest.split(END)[1])
    print(f"wrote {card}")


if __name__ == "__main__":
    main()
